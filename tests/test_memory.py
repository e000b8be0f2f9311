"""1 GB through stdout into a slow reader: the memory of everything on its way stays flat (G9).

Flat: the peak after 1 GB is at most 1.1 times the peak at 100 MB, for wrapper, distributor, agent and runner. PROOF_FULL=1 sends
the whole gigabyte; otherwise 300 MB keep `make test` quick, by the same rule.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from farm import DWRAP, Farm, resident_bytes

MEGABYTE = 1_000_000
TOTAL_BYTES = (1000 if os.environ.get("PROOF_FULL") else 300) * MEGABYTE
MARK_BYTES = 100 * MEGABYTE
FLAT = 1.1
PAUSE_EVERY_BYTES = 5 * MEGABYTE
PAUSE_SECONDS = 0.005
"""The reader's slowness: it lets every buffer before it fill up."""
WRAPPER_BYTES = 4 * MEGABYTE


class Peaks:
    """The highest resident set seen of each process of the way."""

    def __init__(self, processes: dict[str, int]) -> None:
        self._processes = processes
        self.highest = dict.fromkeys(processes, 0)

    def sample(self) -> None:
        for name, pid in self._processes.items():
            self.highest[name] = max(self.highest[name], resident_bytes(pid))


def runner_of(agent: int) -> int | None:
    """The process below the agent that holds a job, or None."""
    children = psutil.Process(agent).children()
    return children[0].pid if children else None


def ways(farm: Farm, wrapper: int) -> dict[str, int]:
    """Name to pid of everything that a job's output passes."""
    busy = [(agent.pid, runner) for agent in farm.agents.values() if (runner := runner_of(agent.pid))]
    (agent, runner), = busy
    return {"wrapper": wrapper, "distributor": farm.distributor.pid, "agent": agent, "runner": runner}


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_memory_is_flat_under_endless_output(stream: str, farm: Farm, tmp_path: Path) -> None:
    redirect = ">&2" if stream == "stderr" else ""
    process = subprocess.Popen(
        [DWRAP, "sh", "-c", f"exec head -c {TOTAL_BYTES} /dev/zero {redirect}"], env=farm.environment(), cwd=tmp_path,
        stdin=subprocess.DEVNULL, **{stream: subprocess.PIPE},  # type: ignore[call-overload]
    )  # fmt: skip
    pipe = process.stdout or process.stderr
    read, at_mark, started = len(pipe.read(MEGABYTE)), {}, time.monotonic()
    peaks = Peaks(ways(farm, process.pid))
    while piece := os.read(pipe.fileno(), 65536):
        if (read + len(piece)) // PAUSE_EVERY_BYTES != read // PAUSE_EVERY_BYTES:
            time.sleep(PAUSE_SECONDS)  # what makes it slow
            peaks.sample()
        read += len(piece)
        if read >= MARK_BYTES and not at_mark:
            at_mark = dict(peaks.highest)
    pipe.close()
    seconds = time.monotonic() - started
    assert process.wait() == 0
    assert abs(read - TOTAL_BYTES) <= 65536, "what BufferedReader had read ahead is not counted"
    for name, peak in peaks.highest.items():
        print(f"{stream} {name}: {at_mark[name] / 1e6:.2f} MB at 100 MB, {peak / 1e6:.2f} MB at {TOTAL_BYTES / 1e6:.0f} MB")
    print(f"{read / seconds / 1e6:.0f} MB/s")
    assert {name for name, peak in peaks.highest.items() if peak > FLAT * at_mark[name]} == set()
    assert peaks.highest["wrapper"] <= WRAPPER_BYTES
