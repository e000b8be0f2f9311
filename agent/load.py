"""How busy this machine is with others' work, from the kernel's counters.

Foreign processors = all that was busy, less what this agent's own jobs used: live processes of the runners' sessions, and what
runners that have ended had used. Knows counters; does not know what is done about them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from dwrap.agent.memory import memory

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PRESSURES: Final = ("cpu", "memory", "io")

Counters = tuple[float, float]
"""Seconds of processor time since the start: the whole machine's busy time, and the jobs' own."""


def busy_seconds() -> float:
    """Processor seconds this machine has been busy since it started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))


def session_seconds(leaders: frozenset[int]) -> float:
    """Processor seconds that the processes of these sessions, and the children they reaped, have used."""
    if not leaders:
        return 0.0
    ticks = 0
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            text = Path("/proc", name, "stat").read_bytes()
        except OSError:  # it has just ended
            continue
        fields = text[text.rindex(b")") + 2 :].split(b" ")
        if int(fields[3]) in leaders:
            ticks += sum(int(used) for used in fields[11:15])  # utime, stime, cutime, cstime
    return ticks / _TICKS_PER_SECOND


def pressure(resource: str) -> int | None:
    """Share of time in which something waited for it, over 10 s, in hundredths of a percent. None when the kernel does not say."""
    try:
        some = Path("/proc/pressure", resource).read_text(encoding="ascii").splitlines()[0]
        return round(float(some.split("avg10=")[1].split(" ")[0]) * 100)
    except (OSError, IndexError, ValueError):
        return None


class Load:
    """Samples the counters; each `sample` covers the time since the one before."""

    def __init__(self, own_seconds: Callable[[], float], busy: Callable[[], float] = busy_seconds) -> None:
        self._own_seconds = own_seconds
        self._busy = busy
        self._last: tuple[float, Counters] | None = None

    def sample(self, now: float) -> tuple[tuple[str, int], ...]:
        """HEARTBEAT's fields on load, at `now` (monotonic seconds)."""
        fields = [("foreign", self._foreign(now)), ("memory_available_bytes", memory().available)]
        for resource in _PRESSURES:
            value = pressure(resource)
            if value is not None:
                fields.append((f"psi_{resource}", value))
        return tuple(fields)

    def _foreign(self, now: float) -> int:
        counters = (self._busy(), self._own_seconds())
        before, self._last = self._last, (now, counters)
        if before is None or now <= before[0]:
            return 0
        busy, own = counters[0] - before[1][0], counters[1] - before[1][1]
        return max(0, round((busy - own) / (now - before[0]) * 1000))
