"""Many wrappers wait at once, as real processes: little memory each, none falls back, and every command runs in the end (G9).

PROOF_FULL=1 starts 10,000 of them; otherwise 500 keep `make test` quick.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from farm import DWRAP, Farm, eventually, ready_line, resident_bytes

WAITERS = int(os.environ.get("WAITERS", 0)) or (10_000 if os.environ.get("PROOF_FULL") else 500)
SECONDS = 30 + WAITERS / 20
WRAPPER_BYTES = 1_250_000  # libsodium is 0.14 MB of it
DISTRIBUTOR_BYTES_EACH = 64_000


def highest_bytes(pid: int) -> int:
    """The kernel's own record of a process's peak resident set."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def spawn(farm: Farm, directory: Path, number: int) -> int:
    """A wrapper as its own process, started as cheaply as can be; returns its pid."""
    argv = [DWRAP, "sh", "-c", f"echo {number} >>{directory}/counter"]
    environment = farm.environment(DWRAP_PATIENCE="120")
    return os.posix_spawn(DWRAP, argv, environment, file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)])


def queued(farm: Farm) -> int:
    return int(farm.status()["queued"])


def needs_memory() -> None:
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE") < WAITERS * WRAPPER_BYTES:
        pytest.skip(f"{WAITERS} processes need {WAITERS * WRAPPER_BYTES / 1e9:.0f} GB of memory")


def fill(farm: Farm, directory: Path) -> list[subprocess.Popen[bytes]]:
    """Takes both slots, until these wrappers are told to end."""
    full = [subprocess.Popen([DWRAP, "sleep", "100000"], env=farm.environment(), cwd=directory) for _ in range(2)]
    eventually(lambda: assigned(farm) == 2)
    return full


def assigned(farm: Farm) -> int:
    return sum(agent["assigned"] for agent in farm.status()["agents"])


def all_run(pids: list[int], full: list[subprocess.Popen[bytes]], directory: Path) -> None:
    for process in full:
        process.send_signal(signal.SIGTERM)
    assert {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids} == {0}
    for process in full:
        process.wait()
    numbers = [int(line) for line in (directory / "counter").read_text().split()]
    assert sorted(numbers) == list(range(WAITERS))


def test_many_wrappers_wait_at_once(short_dir: Path, tmp_path: Path) -> None:
    needs_memory()
    with Farm(short_dir, agents=2, slots=1) as farm:
        idle = highest_bytes(farm.distributor.pid)
        full = fill(farm, tmp_path)
        started = time.monotonic()
        pids = [spawn(farm, tmp_path, number) for number in range(WAITERS)]
        eventually(lambda: queued(farm) >= WAITERS, SECONDS, "all of them wait")
        waiting = time.monotonic() - started
        largest = max(resident_bytes(pid) for pid in pids)
        distributor, agents = highest_bytes(farm.distributor.pid), [highest_bytes(agent.pid) for agent in farm.agents.values()]
        all_run(pids, full, tmp_path)
        took = time.monotonic() - started
        after = highest_bytes(farm.distributor.pid)
    print(
        f"{WAITERS} wrappers waiting after {waiting:.1f} s: wrapper {largest / 1e6:.2f} MB each at most, distributor {idle / 1e6:.1f} -> "
        f"{distributor / 1e6:.1f} MB ({(distributor - idle) / WAITERS / 1e3:.1f} kB each), agents {max(agents) / 1e6:.1f} MB; "
        f"all had run after {took:.1f} s, distributor's peak {after / 1e6:.1f} MB"
    )
    assert largest <= WRAPPER_BYTES
    assert distributor - idle <= WAITERS * DISTRIBUTOR_BYTES_EACH


def test_many_wrappers_wait_over_a_restart(short_dir: Path, tmp_path: Path) -> None:
    """None runs here, none twice, none fails: all of them come back to the next distributor at once."""
    needs_memory()
    with Farm(short_dir, agents=2, slots=1) as farm:
        full = fill(farm, tmp_path)
        pids = [spawn(farm, tmp_path, number) for number in range(WAITERS)]
        eventually(lambda: queued(farm) >= WAITERS, SECONDS, "all of them wait")
        begun = time.monotonic()
        farm.restart_distributor()
        ready_line(farm.distributor)
        eventually(lambda: queued(farm) >= WAITERS and assigned(farm) == 2, SECONDS, "all of them wait again, and what ran goes on")
        print(f"{WAITERS} wrappers wait again {time.monotonic() - begun:.1f} s after their distributor was killed")
        all_run(pids, full, tmp_path)
