"""The systemd units, as systemd-analyze reads them, and what the daemons tell systemd: ready, waiting, leaving, alive."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wrapper_program import ROOT

from dwrap.protocol.service import Watchdog

UNITS = ROOT / "deploy/systemd"
PROGRAMS = Path(sys.executable).parent
MOST_EXPOSED = 2.0  # of 10; below it systemd-analyze says OK
SECONDS = 30.0
# What would show in a job, or take something from it; see the unit's own words.
SEEN_BY_JOBS = ("Protect", "Private", "Restrict", "SystemCall", "Capability", "Ambient", "ReadOnly", "Inaccessible", "TemporaryFileSystem",
                "RootDirectory", "BindPaths", "LockPersonality", "MemoryDenyWriteExecute", "DynamicUser", "UMask", "Nice", "CPU", "Memory",
                "OOMScoreAdjust", "LimitNPROC", "LimitCORE", "IPAddress", "Device")  # fmt: skip


@pytest.fixture
def analyze(tmp_path: Path) -> Path:
    """The units with the programs of this tree, so that systemd finds them."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd is not installed")
    for unit in UNITS.glob("*.service"):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/dwrap", f"{PROGRAMS}/dwrap"))
    return tmp_path


def test_systemd_understands_the_units(analyze: Path) -> None:
    files = sorted(map(str, analyze.glob("*.service")))
    assert len(files) == 2
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_distributor_is_closed(analyze: Path) -> None:
    asked = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(analyze / "dwrap-distributor.service")]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"exposure level for dwrap-distributor.service: ([0-9.]+)", said)
    assert found, said
    print(found[0])
    assert float(found[1]) < MOST_EXPOSED


def test_nothing_is_set_for_the_agent_that_its_jobs_could_tell() -> None:
    settings = [line for line in (UNITS / "dwrap-agent.service").read_text().splitlines() if "=" in line and not line.startswith("#")]
    assert "NoNewPrivileges=yes" in settings
    assert [line for line in settings if line.startswith(SEEN_BY_JOBS)] == []


class Manager:
    """The end of sd_notify that systemd holds."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(SECONDS)

    def hears(self, line: str) -> str:
        """Waits until that is told, and returns all that was told with it."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            told = self._socket.recv(4_096).decode()
            if line in told.split("\n"):
                return told
        raise AssertionError(f"{line} was not told in time")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(short_dir: Path) -> Iterator[Manager]:
    one = Manager(short_dir)
    yield one
    one.close()


@contextlib.contextmanager
def daemon(name: str, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(PROGRAMS / name), *options], env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_an_agent_tells_that_it_serves_lives_and_leaves(manager: Manager, short_dir: Path) -> None:
    endpoint = f"ipc://{short_dir}/d.sock"
    with daemon("dwrap-distributor", "--listen", endpoint, "--http", "off") as distributor:
        assert distributor.stdout
        assert distributor.stdout.readline().startswith("ready")
        told = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "2000000"}
        with daemon("dwrap-agent", endpoint, "--work", str(short_dir / "work"), **told) as agent:
            assert f"STATUS=serving {endpoint}" in manager.hears("READY=1")
            manager.hears("WATCHDOG=1")
            manager.hears("WATCHDOG=1")
            agent.send_signal(signal.SIGTERM)
            manager.hears("STOPPING=1")
            assert agent.wait(SECONDS) == 0


def test_an_agent_without_an_answer_says_so_and_is_let_in_later(manager: Manager, short_dir: Path) -> None:
    endpoint = f"ipc://{short_dir}/d.sock"
    with daemon("dwrap-agent", endpoint, "--work", str(short_dir / "work"), NOTIFY_SOCKET=manager.address):
        assert f"STATUS=no answer from {endpoint} yet" in manager.hears("READY=1")
        with daemon("dwrap-distributor", "--listen", endpoint, "--http", "off"):
            manager.hears(f"STATUS=serving {endpoint}")


FIRST = """
import sys
print("here", flush=True)
sys.stdin.readline()
from dwrap.protocol.service import end_when_told
end_when_told()
print("goes on")
"""


@pytest.mark.parametrize("is_held", [True, False])
def test_a_first_process_is_told_what_came_before_it_could_hear(is_held: bool, tmp_path: Path) -> None:
    """As docker/bundle.py starts the daemons in containers; and without that, where the kernel drops the signal."""
    under = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*under, "true"], capture_output=True).returncode != 0:
        pytest.skip("a process that is the first of its namespace needs root and unshare")
    start = tmp_path / "start"
    build = ["cc", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", f'-DPYTHON="{sys.executable}"', str(ROOT / "docker/start.c")]
    subprocess.run([*build, "-o", str(start)], check=True, timeout=60)
    argv = [*under, str(start if is_held else sys.executable), "-c", FIRST]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "here\n"
        (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        said, _ = process.communicate("\n", timeout=SECONDS)
    assert (process.returncode, said) == (0, "" if is_held else "goes on\n")


def test_a_distributor_tells_that_it_lives(manager: Manager, short_dir: Path) -> None:
    told = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "2000000"}
    with daemon("dwrap-distributor", "--listen", f"ipc://{short_dir}/d.sock", "--http", "off", **told) as distributor:
        manager.hears("READY=1")
        manager.hears("WATCHDOG=1")
        manager.hears("WATCHDOG=1")
        distributor.send_signal(signal.SIGTERM)
        manager.hears("STOPPING=1")


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 1),
        ({"WATCHDOG_USEC": "60000000"}, 1),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, 0),
        ({"WATCHDOG_USEC": "often"}, 0),
        ({}, 0),
    ],
)
def test_the_watchdog_hears_as_often_as_it_asked(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], count: int) -> None:
    told: list[str] = []
    monkeypatch.setattr("dwrap.protocol.service.notify", told.append)
    watchdog = Watchdog(environment, 7)
    for _ in range(100):
        watchdog.beat()
    assert told == ["WATCHDOG=1"] * count
