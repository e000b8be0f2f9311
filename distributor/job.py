"""A job as the scheduler holds it: what was asked, by whom, where it stands, and which moves between states exist.

Knows the data and the table of moves. Does not know why a move is made; scheduler.py does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dwrap.distributor.events import JobSpec, JobState, Peer
from dwrap.distributor.queue import FairQueue

if TYPE_CHECKING:
    from dwrap.distributor.placement import Agent

MOVES: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.OFFERED, JobState.SETTLED}),
    JobState.OFFERED: frozenset({JobState.QUEUED, JobState.ASSIGNED, JobState.SETTLED}),
    JobState.ASSIGNED: frozenset({JobState.QUEUED, JobState.SETTLED}),
    JobState.SETTLED: frozenset(),
}


class Job:
    """One job. Times are on the scheduler's clock, in seconds."""

    __slots__ = (
        "agent",
        "assigned_at",
        "attempt",
        "avoid",
        "burst",
        "expected_seconds",
        "homeless_since",
        "missed_offers",
        "offered_at",
        "peer",
        "queue",
        "settled_at",
        "spec",
        "stamp",
        "state",
        "submitted_at",
        "ticket",
        "told",
        "uid",
        "views",
    )

    def __init__(self, peer: Peer, uid: int | None, spec: JobSpec, submitted_at: float, expected_seconds: float) -> None:
        self.peer: Peer | None = peer  #: the submitter's connection; None when it has gone
        self.uid = uid
        self.spec = spec
        self.submitted_at = submitted_at
        self.expected_seconds = expected_seconds
        self.state = JobState.QUEUED
        self.ticket = 0
        self.queue: FairQueue[Job] | None = None  #: the queue it stands in, while it stands in one
        self.agent: Agent | None = None  #: who holds a slot for it (OFFERED) or has it (ASSIGNED, SETTLED until acknowledged)
        self.attempt = 0  #: the number of its newest assignment
        self.avoid: tuple[str, ...] = ()  #: agents that rejected it
        self.stamp = ""
        self.offered_at = 0.0
        self.assigned_at = 0.0
        self.settled_at = 0.0
        self.missed_offers = 0
        self.homeless_since: float | None = None  #: since when no agent at all may take it
        self.views = False  #: somebody has a network file system: what it writes is recorded, what others wrote is told
        self.burst = 0  #: which burst of its build it belongs to; 0 while nobody asks
        self.told = 0  #: how many changes on its side the submitter has told

    @property
    def id(self) -> str:
        return self.spec.job

    @property
    def build(self) -> str:
        return self.spec.build

    @property
    def whose_build(self) -> tuple[int | None, str]:
        """Its build, which nobody else's can be taken for."""
        return self.uid, self.spec.build

    @property
    def weight(self) -> float:
        return 2.0**self.spec.priority

    @property
    def was_committed(self) -> bool:
        """Whether its submitter has said GO once: from then on only RESULT or FAILED may end it."""
        return self.attempt > 0
