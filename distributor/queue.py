"""The queue of waiting jobs: fair between builds by weight, within a build the longest expected first, bounded by age.

Between builds this is start-time fair queueing. A build has a virtual time that grows by 1 / 2^priority with each job it
gets to place, and the build that is furthest behind goes next; one that was idle starts at the present, it saves nothing up.
Within a build a job that is expected to take long counts as if it had been submitted that much earlier, but never more
than AGE_BOUND_SECONDS earlier: so nothing waits longer than that behind what came after it, and no order ever changes.

Jobs that the same pools of agents can take share one `FairQueue`; all of them share one `Shares`.
Knows neither agents nor why a job waits. A removed job stays in the heaps as a stale entry until it is met or swept.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, Protocol, TypeVar

AGE_BOUND_SECONDS = 60.0
_SWEEP_ABOVE = 64
_REMEMBERED_BUILDS = 256


class Waiting(Protocol):
    """What the queue must know of a job. `ticket` is the queue's own: 0 when the job is in no queue."""

    ticket: int

    @property
    def whose_build(self) -> Hashable: ...
    @property
    def weight(self) -> float: ...
    @property
    def expected_seconds(self) -> float: ...
    @property
    def submitted_at(self) -> float: ...


J = TypeVar("J", bound=Waiting)


class Shares:
    """How much each build has had."""

    def __init__(self) -> None:
        self.present = 0.0
        self._had: dict[Hashable, float] = {}

    def had(self, build: Hashable) -> float:
        """The virtual time up to which the build has been served; 0 when that is forgotten."""
        return self._had.get(build, 0.0)

    def charge(self, build: Hashable, at: float, weight: float) -> float:
        """One job of the build, whose turn had come at virtual time `at`, has been placed. Returns when its next turn comes."""
        self.present = max(self.present, at)
        after = self._had[build] = at + 1.0 / weight
        if len(self._had) > _REMEMBERED_BUILDS:
            self._had = {name: had for name, had in self._had.items() if had > self.present}
        return after


class _Line(Generic[J]):
    """The waiting jobs of one build. The turn that carries its serial is its own; others are stale."""

    __slots__ = ("heap", "serial")

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.heap: list[tuple[float, int, J]] = []

    def head(self) -> J | None:
        while self.heap:
            _, ticket, job = self.heap[0]
            if job.ticket == ticket:
                return job
            heappop(self.heap)
        return None


class FairQueue(Generic[J]):
    """Jobs that wait for the same pools."""

    def __init__(self, shares: Shares, serials: Iterator[int]) -> None:
        self._shares = shares
        self._serials = serials  # shared by all queues: a ticket names one stay in one queue
        self._lines: dict[Hashable, _Line[J]] = {}
        self._turns: list[tuple[float, int, Hashable]] = []
        self._waiting = 0
        self._removed = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, job: J) -> None:
        """Puts a job in its place. One that comes back after an offer finds its old place, for the key is when it was submitted."""
        job.ticket = next(self._serials)
        line = self._lines.get(job.whose_build)
        if line is None or line.head() is None:
            line = self._lines[job.whose_build] = _Line(job.ticket)
            start = max(self._shares.had(job.whose_build), self._shares.present)
            heappush(self._turns, (start, line.serial, job.whose_build))
        key = job.submitted_at - min(job.expected_seconds, AGE_BOUND_SECONDS)
        heappush(line.heap, (key, job.ticket, job))
        self._waiting += 1

    def remove(self, job: J) -> None:
        """Takes a waiting job out, wherever it stands."""
        job.ticket = 0
        self._waiting -= 1
        self._removed += 1
        if self._removed > self._waiting + _SWEEP_ABOVE:
            self._sweep()

    def turn(self) -> float | None:
        """The virtual time of the build that goes next here, or None when nothing waits."""
        while self._turns:
            at, serial, build = self._turns[0]
            line = self._lines.get(build)
            if line is None or line.serial != serial or line.head() is None:
                heappop(self._turns)
                if line is not None and line.serial == serial:
                    del self._lines[build]
                continue
            due = self._shares.had(build)
            if due <= at:
                return at
            heapreplace(self._turns, (due, serial, build))  # the build was served through another queue meanwhile
        return None

    def take(self) -> J | None:
        """The job that goes next, taken out and charged to its build, or None."""
        at = self.turn()
        if at is None:
            return None
        _, serial, build = self._turns[0]
        _, _, job = heappop(self._lines[build].heap)
        job.ticket = 0
        self._waiting -= 1
        heapreplace(self._turns, (self._shares.charge(build, at, job.weight), serial, build))
        return job

    def all(self) -> list[J]:
        """Every waiting job, in no order."""
        return [job for line in self._lines.values() for _, ticket, job in line.heap if job.ticket == ticket]

    def _sweep(self) -> None:
        for build, line in list(self._lines.items()):
            line.heap = [entry for entry in line.heap if entry[2].ticket == entry[1]]
            heapify(line.heap)
            if not line.heap:
                del self._lines[build]
        self._turns = [turn for turn in self._turns if turn[2] in self._lines and self._lines[turn[2]].serial == turn[1]]
        heapify(self._turns)
        self._removed = 0
