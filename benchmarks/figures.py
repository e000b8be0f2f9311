"""Figures and how they are printed: interleaved pairs, medians, CPU time of children, one row beside its alternative.

Knows nothing of dwrap. Every benchmark prints rows of one table, which the README quotes.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def row(what: str, ours: str, beside: str, budget: str = "", *, kept: bool | None = None) -> None:
    """Print a row of the table. `kept` says whether the budget was kept; None where there is none."""
    verdict = {True: "kept", False: "MISSED", None: ""}[kept]
    print(f"| {what} | {ours} | {beside} | {budget} | {verdict} |", flush=True)


def heading() -> None:
    """The table's head."""
    print("| what | dwrap | beside it, in the same run | budget | |\n|---|---|---|---|---|", flush=True)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def interleaved(pairs: int, ours: Callable[[], float], other: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Measure the two in turn, so that a change of the machine's mood meets both; the order alternates."""
    mine, others = [], []
    for number in range(pairs):
        if number % 2:
            others.append(other())
            mine.append(ours())
        else:
            mine.append(ours())
            others.append(other())
    return mine, others


def run(argv: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of wall and of CPU of one command, output discarded. Exits with a message when it fails."""
    discard = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    started = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=discard)
    _, status, used = os.wait4(pid, 0)
    wall = time.perf_counter() - started
    if status:
        sys.exit(f"benchmark: {' '.join(argv)} failed: status {os.waitstatus_to_exitcode(status)}; see its message above")
    return wall, used.ru_utime + used.ru_stime


def cpu_seconds(pid: int, *, reaped: bool = False) -> float:
    """CPU that a live process has used so far; with `reaped` also that of the children it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(one) for one in fields[11 : 15 if reaped else 13]) / TICKS_PER_SECOND


def peak_bytes(pid: int) -> int:
    """The highest resident set that a live process ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
