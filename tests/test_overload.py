"""Too little of everything: an agent without room, descriptors or processes gives its jobs to others, and says why; want of memory;
a slow reader and many that wait while the distributor is killed.

PROOF_FULL=1 waits with 2,000 wrappers instead of 200, and until a suspension ends by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from farm import CONTROLLERS, DWRAP, Farm, eventually
from test_waiters import queued, spawn

FULL = bool(os.environ.get("PROOF_FULL"))
WAITERS = 2_000 if FULL else 200
ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="needs root: mounts, or control groups")
SUSPENDED_SECONDS = 90.0


def run(farm: Farm, cwd: Path, *argv: str) -> subprocess.CompletedProcess[bytes]:
    environment = farm.environment(XDG_RUNTIME_DIR=str(cwd))
    return subprocess.run([DWRAP, *argv], env=environment, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)


def agent(farm: Farm, name: str) -> dict[str, Any]:
    """What the distributor says of it."""
    return next(one for one in farm.status()["agents"] if one["name"] == name)


def last_agent(farm: Farm) -> str:
    return str(farm.jobs()[-1]["agent"])


def is_suspended_for(farm: Farm, cwd: Path, why: str) -> None:
    """Jobs end well, each of them; meanwhile the agent `tight` is found to be of no use."""
    for number in range(100):  # which of them a job goes to first depends on how busy they think the machine is
        ended = run(farm, cwd, "sh", "-c", f"echo {number}; exit 4")
        assert (ended.returncode, ended.stdout, ended.stderr) == (4, b"%d\n" % number, b"")
        assert last_agent(farm) == "other"
        if agent(farm, "tight")["suspended"]:
            break
    known = agent(farm, "tight")
    assert why in known["suspended"]
    assert not known["is_serving"]


def serves_again(farm: Farm, cwd: Path) -> None:
    """Its faults decay with time, and a distributor that starts anew knows nothing of them."""
    if FULL:
        eventually(lambda: agent(farm, "tight")["is_serving"], SUSPENDED_SECONDS)
    else:
        farm.restart_distributor()
        eventually(lambda: {one["name"] for one in farm.status()["agents"] if one["is_serving"]} == {"tight", "other"})
    assert run(farm, cwd, "env", "sh", "-c", "exit 5").returncode == 5
    farm.agents["other"].terminate()
    eventually(lambda: len(farm.status()["agents"]) == 1)
    assert run(farm, cwd, "sh", "-c", "exit 6").returncode == 6
    assert last_agent(farm) == "tight"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory with room for a megabyte, and for few files."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=200", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    """No room for bytes, nor for names; nor is anything left that was set aside, with which an agent goes on on a disk that is full."""
    for aside in [*folder.glob("*/spare/*"), *folder.glob("spare/*")]:
        aside.rmdir() if aside.is_dir() else aside.unlink()
    with (folder / "full").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (folder / f"full-{number}").touch()


@ROOT_ONLY
def test_an_agent_without_room_for_temporary_files(short_dir: Path, tmp_path: Path, small: Path) -> None:
    with Farm(short_dir, agents=0) as farm:
        farm.add_agent("tight", 4, "--work", str(small))
        farm.add_agent("other", 1)
        fill(small)
        is_suspended_for(farm, tmp_path, "No space left on device")
        for file in small.glob("full*"):
            file.unlink()
        serves_again(farm, tmp_path)


def test_an_agent_without_descriptors(short_dir: Path, tmp_path: Path) -> None:
    with Farm(short_dir, agents=0) as farm:
        pid = farm.add_agent("tight", 4).pid
        farm.add_agent("other", 1)
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        held = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (held, before[1]))
        is_suspended_for(farm, tmp_path, "Too many open files")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        serves_again(farm, tmp_path)


@pytest.fixture
def few() -> Iterator[Path]:
    """A control group of few processes, of either version."""
    parent = CONTROLLERS / "pids" if (CONTROLLERS / "pids").is_dir() else CONTROLLERS
    group = parent / f"dwrap-few-{os.getpid()}"
    try:
        group.mkdir()
        (group / "pids.max").write_text("max")
    except OSError as error:
        pytest.skip(f"no limit of processes to set here: {error}")
    yield group
    eventually(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


@ROOT_ONLY
def test_an_agent_without_processes(short_dir: Path, tmp_path: Path, few: Path) -> None:
    with Farm(short_dir, agents=0) as farm:
        farm.add_agent("tight", 4, under=["sh", "-c", f'echo $$ >{few}/cgroup.procs; exec "$@"', "sh"])
        farm.add_agent("other", 1)
        assert run(farm, tmp_path, "sh", "-c", "exit 3").returncode == 3
        eventually(lambda: len((few / "cgroup.procs").read_text().split()) <= 2)  # the agent, and what starts its runners
        (few / "pids.max").write_text((few / "pids.current").read_text())
        is_suspended_for(farm, tmp_path, "Resource temporarily unavailable")
        (few / "pids.max").write_text("max")
        serves_again(farm, tmp_path)


@ROOT_ONLY
def test_what_needs_more_memory_than_there_is_ends_as_it_does_here(farm: Farm, tmp_path: Path, narrow: Path) -> None:
    """Once more where there is more, then alone; then its own status counts."""
    eat = f"echo 0 >{narrow}/cgroup.procs; exec sort /dev/zero"
    ended = run(farm, tmp_path, "sh", "-c", eat)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGKILL, b"", b"")
    assert farm.jobs()[-1]["attempt"] >= 2
    assert run(farm, tmp_path, "true").returncode == 0
    assert [one["suspended"] for one in farm.status()["agents"]] == ["", ""], "that is no fault of an agent's"


def test_a_slow_reader_and_many_that_wait_while_the_distributor_is_killed(short_dir: Path, tmp_path: Path) -> None:
    """It is killed as they wait, and again as they run."""
    size = 5_000_000
    with Farm(short_dir, agents=2, slots=1) as farm:
        slow = subprocess.Popen([DWRAP, "head", "-c", str(size), "/dev/zero"], env=farm.environment(), stdout=subprocess.PIPE, cwd=tmp_path)
        full = subprocess.Popen([DWRAP, "sleep", "100000"], env=farm.environment(), cwd=tmp_path)
        eventually(lambda: sum(one["assigned"] for one in farm.status()["agents"]) == 2)
        assert slow.stdout is not None
        received = len(slow.stdout.read(1))
        pids = [spawn(farm, tmp_path, number) for number in range(WAITERS)]
        eventually(lambda: queued(farm) >= WAITERS, 30 + WAITERS / 20)
        farm.restart_distributor()
        eventually(lambda: queued(farm) >= WAITERS, 30 + WAITERS / 20, "all of them wait again")
        received += len(slow.stdout.read(1_000_000))
        full.send_signal(signal.SIGTERM)
        again = threading.Timer(2.0, farm.restart_distributor)
        again.start()
        statuses = {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids}
        again.join()
        received += len(slow.stdout.read())
        assert (slow.wait(), full.wait(), received) == (0, -signal.SIGTERM, size)
    assert statuses == {0}
    assert sorted(map(int, (tmp_path / "counter").read_text().split())) == list(range(WAITERS))
