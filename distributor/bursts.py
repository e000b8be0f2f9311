"""Bursts: when a build goes on after a pause, its user may have edited files in it.

A burst begins when a job of a build is submitted while none of its jobs is live and the last one has settled a second ago or
earlier. Its number is larger than that of every burst before it, whatever the build, so that a host that has made sure of a
directory for one burst has done so for all with smaller numbers. Knows names of builds and times; knows no job.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

PAUSE_SECONDS: Final = 1.0
FORGET_SECONDS: Final = 3_600.0


class Bursts:
    """The builds that have a live job, or had one lately."""

    def __init__(self) -> None:
        self._newest = 0
        self._live: dict[Hashable, tuple[int, int]] = {}  # burst, how many jobs
        self._idle: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()  # burst, since when

    def __len__(self) -> int:
        return len(self._live) + len(self._idle)

    def begin(self, build: Hashable, now: float) -> int:
        """A job of this build was submitted. Returns the number of its burst, at least 1."""
        while self._idle and next(iter(self._idle.values()))[1] + FORGET_SECONDS < now:
            self._idle.popitem(last=False)
        burst, jobs = self._live.get(build, (0, 0))
        if not jobs:
            burst, since = self._idle.pop(build, (0, 0.0))
            if not burst or now - since >= PAUSE_SECONDS:
                self._newest += 1
                burst = self._newest
        self._live[build] = burst, jobs + 1
        return burst

    def end(self, build: Hashable, now: float) -> None:
        """A job of this build has settled."""
        burst, jobs = self._live.pop(build)
        if jobs > 1:
            self._live[build] = burst, jobs - 1
        else:
            self._idle[build] = burst, now
