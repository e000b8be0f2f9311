"""Signals, stops and ends of the wrapper reach the command, at every stage of a job's life (G6).

The commands hold a fifo open for writing: end-of-file at the test's end means that their whole tree has gone, in whatever
process namespace it lived. Nothing here waits for a fixed time; every wait has a condition and a deadline.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from farm import DWRAP, Farm, eventually

TREE_SECONDS = 2.0
FORWARDED = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]


class Job:
    """A command run through dwrap in a process group of its own, holding a fifo."""

    def __init__(self, farm: Farm, directory: Path, script: str, **environment: str) -> None:
        self.fifo = directory / "alive"
        os.mkfifo(self.fifo)
        self.read_end = os.open(self.fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.process = subprocess.Popen(
            [DWRAP, "sh", "-c", f"exec 9>{self.fifo}; {script}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=directory, env=farm.environment(**environment), process_group=0,
        )  # fmt: skip

    def wait_for(self, line: bytes) -> None:
        """Until the command has printed `line`."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == line + b"\n"

    def signal(self, number: int) -> None:
        """As the terminal does it: to the wrapper's whole group."""
        os.killpg(self.process.pid, number)

    def end(self, seconds: float = 10.0) -> tuple[int, bytes, bytes]:
        """Status and what else was printed."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def tree_gone(self, seconds: float = TREE_SECONDS) -> float:
        """Seconds until no process of the command's tree is left. Fails when it takes longer than `seconds`."""
        started = time.monotonic()
        while select.select([self.read_end], [], [], max(0.0, started + seconds - time.monotonic()))[0]:
            if not os.read(self.read_end, 4096):
                return time.monotonic() - started
        raise AssertionError(f"the tree lives {seconds:g} s later")

    def close(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.communicate()
        os.close(self.read_end)


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with Farm(tmp_path_factory.mktemp("farm"), agents=2, slots=1) as running:
        yield running


@pytest.fixture
def start(farm: Farm, tmp_path: Path) -> Iterator[object]:
    """Starts jobs, each in a directory of its own, and leaves none behind."""
    jobs: list[Job] = []

    def run(script: str, **environment: str) -> Job:
        directory = tmp_path / f"job-{len(jobs)}"
        directory.mkdir()
        jobs.append(Job(farm, directory, script, **environment))
        return jobs[-1]

    yield run
    for job in jobs:
        job.close()
    eventually(lambda: not live(farm), saying="the farm is idle again")


def live(farm: Farm) -> list[str]:
    """The states of the jobs that have not ended."""
    return [job["state"] for job in farm.jobs() if job["state"] in ("queued", "offered", "running")]


def fill(farm: Farm, start) -> list[Job]:  # type: ignore[no-untyped-def]
    """Occupy every slot."""
    jobs = [start("echo started; sleep 1000") for _ in farm.agents]
    for job in jobs:
        job.wait_for(b"started")
    return jobs


@pytest.mark.parametrize("number", FORWARDED, ids=lambda one: one.name)
def test_signal_reaches_a_command_that_handles_it(start, number: signal.Signals) -> None:  # type: ignore[no-untyped-def]
    job = start(f"trap 'echo caught; exit 7' {number.name[3:]}; sleep 1000 & echo started; wait")
    job.wait_for(b"started")
    job.signal(number)
    assert job.end() == (7, b"caught\n", b"")
    job.tree_gone()


@pytest.mark.parametrize("number", FORWARDED, ids=lambda one: one.name)
def test_signal_ends_a_command_that_does_not(start, number: signal.Signals) -> None:  # type: ignore[no-untyped-def]
    job = start("echo started; sleep 1000")
    job.wait_for(b"started")
    job.signal(number)
    assert job.end() == (-number, b"", b"")
    job.tree_gone()


def test_wrapper_lives_until_the_command_has_cleaned_up(start) -> None:  # type: ignore[no-untyped-def]
    job = start("trap 'sleep 0.5; echo clean; exit 0' TERM; sleep 1000 & echo started; wait")
    job.wait_for(b"started")
    job.signal(signal.SIGTERM)
    assert job.end() == (0, b"clean\n", b"")


def test_interrupt_before_the_distributor_answers(farm: Farm, start) -> None:  # type: ignore[no-untyped-def]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        job = start("touch ran", DWRAP_HOST=f"tcp://127.0.0.1:{silent.getsockname()[1]}", DWRAP_FALLBACK="local")
        silent.settimeout(5)
        connection, _ = silent.accept()
        with connection:
            job.signal(signal.SIGINT)
            assert job.end(2) == (-signal.SIGINT, b"", b"")
    assert not (job.fifo.parent / "ran").exists()


def test_interrupt_while_queued(farm: Farm, start) -> None:  # type: ignore[no-untyped-def]
    fill(farm, start)
    job = start("touch ran")
    eventually(lambda: "queued" in live(farm))
    job.signal(signal.SIGINT)
    assert job.end(2) == (-signal.SIGINT, b"", b"")
    eventually(lambda: "queued" not in live(farm))
    assert not (job.fifo.parent / "ran").exists()


def test_interrupt_while_offered(farm: Farm, start) -> None:  # type: ignore[no-untyped-def]
    """The wrapper is stopped while the offer arrives, and finds the signal before it when it goes on."""
    full = fill(farm, start)
    job = start("touch ran")
    eventually(lambda: "queued" in live(farm))
    job.signal(signal.SIGSTOP)
    full[0].signal(signal.SIGTERM)
    eventually(lambda: "offered" in live(farm))
    job.signal(signal.SIGINT)
    job.signal(signal.SIGCONT)
    assert job.end(2) == (-signal.SIGINT, b"", b"")
    eventually(lambda: "offered" not in live(farm))
    assert not (job.fifo.parent / "ran").exists()


@pytest.mark.parametrize("script", ["sleep 1000", "sleep 1000 & setsid sleep 1000 & wait", "trap '' TERM INT HUP; sleep 1000; sleep 1000"])
def test_killed_wrapper_takes_the_tree_along(start, script: str) -> None:  # type: ignore[no-untyped-def]
    job = start(f"echo started; {script}")
    job.wait_for(b"started")
    job.process.kill()
    assert job.end()[0] == -signal.SIGKILL
    print(f"tree gone {job.tree_gone():.3f} s after SIGKILL of the wrapper")


def test_stop_and_continue(start) -> None:  # type: ignore[no-untyped-def]
    job = start("echo x >>ticks; echo started; while :; do echo x >>ticks; sleep 0.02; done")
    job.wait_for(b"started")
    ticks = job.fifo.parent / "ticks"
    job.signal(signal.SIGTSTP)
    eventually(lambda: state(job.process.pid) == "T", saying="the wrapper has stopped")
    eventually(lambda: stands_still(ticks), saying="the command has stopped")
    size = ticks.stat().st_size
    job.signal(signal.SIGCONT)
    eventually(lambda: ticks.stat().st_size > size, saying="the command goes on")
    job.signal(signal.SIGINT)
    assert job.end()[0] == -signal.SIGINT


def test_a_closed_pipe_ends_the_command(farm: Farm, tmp_path: Path) -> None:
    script = f"{DWRAP} yes | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], env=farm.environment(), cwd=tmp_path, capture_output=True, timeout=10)
    assert done.stdout.split() == [b"y", b"141"]
    assert done.stderr == b""


def test_a_background_child_does_not_hold_the_caller(farm: Farm, tmp_path: Path) -> None:
    """ninja waits for end-of-file on the pipe: a daemon that kept it would hang a build."""
    started = time.monotonic()
    argv = [DWRAP, "sh", "-c", "sleep 1000 & echo main"]
    done = subprocess.run(argv, env=farm.environment(), cwd=tmp_path, capture_output=True, timeout=10)
    assert (done.returncode, done.stdout) == (0, b"main\n")
    assert time.monotonic() - started < 3.0


def state(pid: int) -> str:
    """The letter that ps shows."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def stands_still(path: Path) -> bool:
    """Whether the file has not grown for ten times the period in which it should."""
    before = path.stat().st_size
    time.sleep(0.2)
    return path.stat().st_size == before
