"""A distributor that is unreachable, drops packets, says nothing or is frozen costs one bounded wait (G4).

The first wrapper runs its command here within 2 s, those after it within 0.1 s, and all of them on agents again once it is back.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from farm import DWRAP, Farm, eventually

FIRST_SECONDS = 2.0
LATER_SECONDS = 0.1
LATER_RUNS = 7
SHOW_JOB = 'echo "job=$DWRAP_JOB"'


class Wrapper:
    """Runs commands for one user, whose memory of silent distributors is in a directory of the test's own."""

    def __init__(self, directory: Path, address: str) -> None:
        runtime = directory / "runtime"
        runtime.mkdir(mode=0o700)
        self.directory = directory
        self.environment = {**os.environ, "DWRAP_HOST": address, "DWRAP_FALLBACK": "local", "XDG_RUNTIME_DIR": str(runtime)}

    def run(self, *under: str) -> tuple[float, bytes]:
        """Seconds it took, and `job=ID` (no ID when it ran here)."""
        started = time.monotonic()
        done = subprocess.run(
            [*under, DWRAP, "sh", "-c", SHOW_JOB],
            env=self.environment, cwd=self.directory, capture_output=True, timeout=30, stdin=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        return time.monotonic() - started, done.stdout.strip()

    def must_run_here(self, what: str) -> None:
        """The bound for the first and for those after it."""
        first, where = self.run()
        assert where == b"job="
        later = [self.run() for _ in range(LATER_RUNS)]
        assert {where for _, where in later} == {b"job="}
        median = statistics.median(seconds for seconds, _ in later)
        print(f"{what}: first {first:.3f} s, later median {median:.3f} s, worst {max(seconds for seconds, _ in later):.3f} s")
        assert first <= FIRST_SECONDS
        assert median <= LATER_SECONDS


@pytest.fixture
def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where connections are taken, and not a byte is ever said."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@pytest.fixture
def dropping_port() -> Iterator[int]:
    """A port whose backlog is full: the kernel drops every packet that asks for a connection."""
    with ExitStack() as held:
        server = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = server.getsockname()
        while True:
            filler = held.enter_context(socket.socket())
            filler.settimeout(0.2)
            try:
                filler.connect(address)
            except TimeoutError:
                break
        yield address[1]


def test_unreachable(closed_port: int, tmp_path: Path) -> None:
    Wrapper(tmp_path, f"tcp://127.0.0.1:{closed_port}").must_run_here("unreachable")


def test_silent(silent_port: int, tmp_path: Path) -> None:
    Wrapper(tmp_path, f"tcp://127.0.0.1:{silent_port}").must_run_here("silent")


def test_dropping(dropping_port: int, tmp_path: Path) -> None:
    Wrapper(tmp_path, f"tcp://127.0.0.1:{dropping_port}").must_run_here("dropping")


def test_dropping_by_a_firewall(tmp_path: Path) -> None:
    """The same in a network namespace where iptables drops the packets; this file runs itself there."""
    if os.getuid() != 0 or not shutil.which("iptables") or not shutil.which("unshare"):
        pytest.skip("needs root, unshare and iptables")
    rules = "ip link set lo up && iptables -A INPUT -p tcp --dport 7776 -j DROP"
    if subprocess.run(["unshare", "--net", "sh", "-c", rules], capture_output=True).returncode != 0:
        pytest.skip("no network namespaces with iptables here")
    script = f'{rules} && exec "$@"'
    argv = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, __file__, str(tmp_path)]
    subprocess.run(argv, check=True, timeout=60)


def test_missing_unix_socket(tmp_path: Path) -> None:
    Wrapper(tmp_path, f"ipc://{tmp_path}/nobody.sock").must_run_here("missing socket")


@pytest.mark.parametrize("carrier", ["tcp", "ipc"])
def test_frozen_and_back(carrier: str, farm: Farm, tmp_path: Path) -> None:
    wrapper = Wrapper(tmp_path, farm.over(carrier))
    assert wrapper.run()[1] != b"job="
    farm.distributor.send_signal(signal.SIGSTOP)
    try:
        wrapper.must_run_here(f"frozen, {carrier}")
    finally:
        farm.distributor.send_signal(signal.SIGCONT)
    eventually(lambda: wrapper.run()[1] != b"job=", saying="the silence is forgotten once it is back")
    assert [wrapper.run()[1] != b"job=" for _ in range(5)] == [True] * 5


def test_killed_and_back(short_dir: Path, tmp_path: Path) -> None:
    """A distributor that died leaves its Unix socket behind; one that starts anew at the same place is found again."""
    address = f"ipc://{short_dir}/one.sock"
    wrapper = Wrapper(tmp_path, address)
    with Farm(short_dir, listen=[address]) as farm:
        assert wrapper.run()[1] != b"job="
        farm.distributor.kill()
        farm.distributor.wait()
        wrapper.must_run_here("killed")
    with Farm(short_dir, listen=[address]):
        eventually(lambda: wrapper.run()[1] != b"job=", saying="the new one is used")


def test_fail_instead_of_falling_back(closed_port: int, tmp_path: Path) -> None:
    """DWRAP_FALLBACK=fail retries for DWRAP_PATIENCE, then 125 with one line; the command has not run."""
    environment = {**os.environ, "DWRAP_HOST": f"127.0.0.1:{closed_port}", "DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "1"}
    started = time.monotonic()
    done = subprocess.run([DWRAP, "touch", "ran"], env=environment, cwd=tmp_path, capture_output=True, timeout=20)
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.startswith(b"dwrap: ")
    assert done.stderr.count(b"\n") == 1
    assert 0.8 <= time.monotonic() - started <= 4.0
    assert not (tmp_path / "ran").exists()


if __name__ == "__main__":
    Wrapper(Path(sys.argv[1]), "tcp://127.0.0.1:7776").must_run_here("dropped by iptables")
