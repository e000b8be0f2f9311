"""dwrap-distributor as a process: what it prints, what it refuses, how it ends, what its HTTP port serves."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dwrap.distributor.cli import next_epoch
from dwrap.distributor.http import is_allowed_host

PROGRAM = os.path.join(sysconfig.get_path("scripts"), "dwrap-distributor")


@contextmanager
def started(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A distributor and the addresses of its ready line. It is ended by SIGTERM when the test has not done so."""
    with subprocess.Popen(
        [PROGRAM, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline().split()
            assert line[:1] == ["ready"], process.stderr.read()
            yield process, line[1:]
        finally:
            process.terminate()
            process.wait(10)


def refused(*options: str) -> str:
    done = subprocess.run([PROGRAM, *options], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def get(url: str, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    link = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    link.request(method, path, headers=headers)
    answer = link.getresponse()
    return answer.status, answer.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_serves_and_ends_cleanly(short_dir: Path, number: int) -> None:
    with started("--listen", "tcp://127.0.0.1:0", "--listen", f"ipc://{short_dir}/d", "--http", "127.0.0.1:0") as (process, addresses):
        tcp, ipc, url = addresses
        assert (tcp[:16], ipc) == ("tcp://127.0.0.1:", f"ipc://{short_dir}/d")
        status = json.loads(get(url, "/status.json")[1])
        assert status["addresses"] == [tcp, ipc]
        assert (short_dir / "d").stat().st_mode & 0o777 == 0o666, "for other users of this machine, whatever the umask"
        code, metrics = get(url, "/metrics")
        assert code == 200
        assert b"dwrap_agents 0.0" in metrics
        assert b"_created" not in metrics
        assert get(url, "/healthz") == (200, b"ok\n")
        assert get(url, "/elsewhere")[0] == 404
        assert get(url, "/metrics", Host="rebound.example:80")[0] == 403
        assert get(url, "/metrics", method="POST")[0] == 405
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert all(json.loads(line)["level"] == "info" for line in process.stderr)


def test_ports_that_are_taken_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        said = refused("--listen", "tcp://127.0.0.1:0", "--http", taken)
        assert said.startswith(f"dwrap: cannot serve http on {taken}: Address already in use;")
        for said in (refused("--listen", f"tcp://{taken}", "--http", "off"), refused("--listen", "ipc:///proc/dwrap/d", "--http", "off")):
            assert said.startswith("dwrap: cannot start: "), said
            assert said.count("\n") == 1, "a traceback is no answer"
        assert "Address already in use" in refused("--listen", f"tcp://{taken}", "--http", "off")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--listen", "tcp://0.0.0.0:0", "--http", "off"], "--insecure"),
        (["--listen", "tcp://*:0", "--http", "off"], "--insecure"),
        (["--listen", "tcp://127.0.0.1:0", "--http", "0.0.0.0:0"], "--insecure"),
        (["--listen", "udp://127.0.0.1:0", "--http", "off"], "neither tcp://"),
        (["--listen", "tcp://127.0.0.1:0", "--http", "nonsense"], "HOST:PORT"),
    ],
)
def test_refusals_name_the_remedy(options: list[str], why: str) -> None:
    said = refused(*options).splitlines()
    assert len(said) == 1
    assert said[0].startswith("dwrap: ")
    assert why in said[0]


def test_insecure_says_so_loudly() -> None:
    with started("--listen", "tcp://0.0.0.0:0", "--http", "off", "--insecure") as (process, _):
        process.terminate()
        assert process.stderr is not None
        levels = [json.loads(line)["level"] for line in process.stderr]
        assert levels.count("warning") == 1


def test_settings_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "distributor.toml"
    file.write_text('listen = ["tcp://127.0.0.1:0"]\nhttp = "127.0.0.1:0"\nhttp-host = ["Farm.example"]\n')
    with started("--config", str(file)) as (_, addresses):
        assert get(addresses[1], "/healthz", Host="farm.EXAMPLE:7778")[0] == 200
        assert get(addresses[1], "/healthz", Host="other.example")[0] == 403
    file.write_text("lissen = 1\n")
    assert "lissen" in refused("--config", str(file))
    assert "cannot read" in refused("--config", str(tmp_path / "missing"))


def test_the_service_manager_is_told(short_dir: Path) -> None:
    path = str(short_dir / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(10)
        with started("--listen", "tcp://127.0.0.1:0", "--http", "off", NOTIFY_SOCKET=path) as (process, _):
            assert manager.recv(100) == b"READY=1"
            process.terminate()
            assert manager.recv(100) == b"STOPPING=1"


def test_epochs_grow_whatever_the_clock_does(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = next_epoch(state, 5_000_000_000)
    assert first == 5_000
    assert next_epoch(state, 1_000_000) == 5_001
    assert next_epoch(state, 9_000_000_000) == 9_000
    assert next_epoch(None, 7_000_000) == 7


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        ("127.0.0.1:7778", True),
        ("127.0.0.1", True),
        ("localhost:1", True),
        ("[::1]:7778", True),
        ("10.1.2.3", True),
        ("build.example", False),
        ("buildhost:1", True),
        ("", False),
        ("localhost.example", False),
        ("127.0.0.1.evil.example", False),
        ("[::1].evil.example", False),
        ("127.0.0.1:80:80", False),
        ("127.0.0.1 evil.example", False),
    ],
)
def test_which_hosts_are_served(header: str, answer: bool) -> None:
    assert is_allowed_host(header, frozenset({"buildhost"})) is answer


def test_help_names_every_option() -> None:
    said = subprocess.run([sys.executable, PROGRAM, "--help"], capture_output=True, text=True, timeout=20, check=True).stdout
    assert all(option in said for option in ("--listen", "--http", "--http-host", "--state", "--config", "--insecure"))


def test_a_state_directory_is_one_distributors_own(short_dir: Path) -> None:
    with started("--listen", f"ipc://{short_dir}/one", "--http", "off", "--state", str(short_dir / "state")):
        argv = [PROGRAM, "--listen", f"ipc://{short_dir}/other", "--http", "off", "--state", str(short_dir / "state")]
        done = subprocess.run(argv, capture_output=True, timeout=20)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"another distributor does" in done.stderr


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    argv = [PROGRAM, "--listen", f"ipc://{tmp_path}/d", "--http", "off", "--state", str(tmp_path / "file" / "state")]
    done = subprocess.run(argv, capture_output=True, timeout=20)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"cannot use --state" in done.stderr
