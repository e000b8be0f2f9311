"""Daemons killed in the middle of everything: each job ends with its own status, its output exactly once, and none runs here.

PROOF_FULL=1 takes 600 jobs instead of 150; JOBS any number, SEED repeats the moments.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from farm import DWRAP, Farm, eventually
from troubles import chaos, kill_an_agent

JOBS = int(os.environ.get("JOBS", "0")) or (600 if os.environ.get("PROOF_FULL") else 150)
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
AT_ONCE = 6
END_SECONDS = 120.0


@dataclass
class Ended:
    """How one wrapper ended."""

    number: int
    status: int
    stdout: bytes
    stderr: bytes


def script(number: int) -> str:
    """Prints, makes files (one name by a rename), waits a little in between, and has a status of its own."""
    wait = f"sleep 0.{number % 5}"
    return (
        f"echo begin {number}; echo half {number} >part.{number}; {wait}; echo whole {number} >>part.{number}; "
        f"mv part.{number} out.{number}; "
        f"echo warning {number} >&2; {wait}; echo end {number}; exit {number % 3}"
    )


def run(farm: Farm, directory: Path, number: int, **more: str) -> Ended:
    """One wrapper, from beginning to end."""
    environment = farm.environment(DWRAP_FALLBACK="fail", XDG_RUNTIME_DIR=str(directory / "runtime"), **more)
    argv = [DWRAP, "sh", "-c", script(number)]
    done = subprocess.run(argv, env=environment, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, timeout=END_SECONDS)
    return Ended(number, done.returncode, done.stdout, done.stderr)


def wrong(directory: Path, ended: Ended) -> str:
    """What is not as it should be; empty when all is."""
    number = ended.number
    if ended.status != number % 3 or ended.stderr != b"warning %d\n" % number or ended.stdout != b"begin %d\nend %d\n" % (number, number):
        return f"{ended}"
    if (directory / f"out.{number}").read_bytes() != b"half %d\nwhole %d\n" % (number, number):
        return f"job {number} left {(directory / f'out.{number}').read_bytes()!r}"
    return f"job {number} left its part" if (directory / f"part.{number}").exists() else ""


def test_each_job_ends_as_its_own_while_everything_is_killed(farm: Farm, tmp_path: Path) -> None:
    """A distributor every 5 s, an agent every 2 s, by SIGKILL."""
    print(f"seed {SEED}, {JOBS} jobs")
    chance = random.Random(SEED)
    (tmp_path / "runtime").mkdir(mode=0o700)
    began = time.monotonic()
    with (
        chaos((5, farm.restart_distributor), (2, lambda: kill_an_agent(farm, chance))) as counts,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        ended = list(pool.map(lambda number: run(farm, tmp_path, number), range(JOBS)))
    print(f"{JOBS} jobs in {time.monotonic() - began:.0f} s, {counts[0]} distributors and {counts[1]} agents killed")
    problems = [problem for one in ended if (problem := wrong(tmp_path, one))]
    assert not problems, "\n".join(problems)
    assert counts[0] >= 2
    assert counts[1] >= 5
    log = tmp_path / "state-home" / "dwrap" / "here.log"
    assert not log.exists(), "nothing ran here"


def test_a_distributor_is_replaced_in_the_middle_of_a_build(farm: Farm, tmp_path: Path) -> None:
    """SIGTERM, as an upgrade does: what runs goes on, what waits is placed by the next one."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    with chaos((1.5, lambda: farm.restart_distributor(signal.SIGTERM))) as counts, ThreadPoolExecutor(AT_ONCE) as pool:
        ended = list(pool.map(lambda number: run(farm, tmp_path, number), range(60)))
    assert [problem for one in ended if (problem := wrong(tmp_path, one))] == []
    assert counts[0] >= 2


@pytest.mark.parametrize("which", ["agent", "distributor"])
def test_a_long_pause_of_a_daemon_costs_time_only(which: str, farm: Farm, tmp_path: Path) -> None:
    """SIGSTOP for 15 s: longer than an agent's lease."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    stopped = farm.distributor if which == "distributor" else farm.agents["agent-1"]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(run, farm, tmp_path, number) for number in range(12)]
        eventually(lambda: (tmp_path / "part.0").exists() or (tmp_path / "out.0").exists())
        stopped.send_signal(signal.SIGSTOP)
        threading.Timer(15, lambda: stopped.send_signal(signal.SIGCONT)).start()
        ended = [one.result() for one in running]
    assert [problem for one in ended if (problem := wrong(tmp_path, one))] == []
