"""A job as the scheduler holds it: what was asked, by whom, where it stands, and which moves between states exist.

Knows the data and the table of moves. Does not know why a move is made; scheduler.py does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dwrap.distributor import events as e
from dwrap.distributor.events import JobSpec, JobState, Peer
from dwrap.distributor.queue import FairQueue

if TYPE_CHECKING:
    from dwrap.distributor.placement import Agent

MOVES: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.OFFERED, JobState.SETTLED}),
    JobState.OFFERED: frozenset({JobState.QUEUED, JobState.ASSIGNED, JobState.SETTLED}),
    JobState.ASSIGNED: frozenset({JobState.QUEUED, JobState.MISSING, JobState.SETTLED}),
    JobState.MISSING: frozenset({JobState.QUEUED, JobState.ASSIGNED, JobState.SETTLED}),
    JobState.SETTLED: frozenset(),
}


NOBODY: Final = ("", "")
MAX_MADE: Final = 256
MAX_MADE_BYTES: Final = 64 * 1024


class Job:
    """One job. Times are on the scheduler's clock, in seconds."""

    __slots__ = (
        "agent",
        "alone",
        "assigned_at",
        "attempt",
        "avoid",
        "beyond",
        "blind",
        "burst",
        "delivered_to",
        "expected_seconds",
        "gone_at",
        "hearsay",
        "holder",
        "homeless_since",
        "is_anyones",
        "is_described",
        "joining",
        "killed",
        "losses",
        "lost_at",
        "made",
        "memory_bytes",
        "missed_offers",
        "offered_at",
        "peer",
        "queue",
        "refusal",
        "result",
        "settled_at",
        "share",
        "spec",
        "stamp",
        "state",
        "submitted_at",
        "ticket",
        "told",
        "uid",
        "views",
    )

    def __init__(self, uid: int | None, spec: JobSpec, submitted_at: float, expected_seconds: float) -> None:
        self.peer: Peer | None = None  #: the submitter's connection; None while it has none
        self.uid = uid
        self.spec = spec
        self.submitted_at = submitted_at
        self.expected_seconds = expected_seconds
        self.state = JobState.QUEUED
        self.ticket = 0
        self.share: tuple[int | None, int] = (uid, 0)  #: whose part of the queue it takes up, and how much
        self.queue: FairQueue[Job] | None = None  #: the queue it stands in, while it stands in one
        self.agent: Agent | None = None  #: who holds a slot for it (OFFERED) or has it (ASSIGNED, SETTLED until acknowledged)
        self.attempt = 0  #: the number of its newest assignment
        self.holder = NOBODY  #: who was given that: an agent's name and incarnation
        self.made: dict[str, None] = {}  #: names that its attempts made, in order: to be removed before it runs again
        self.beyond = ""  #: why its newest attempt cannot be followed by another
        self.blind = 0  #: what its newest attempt did was told to an earlier epoch: so many HEARTBEATs until it has been told again
        self.hearsay = False  #: which attempt is its newest was told by an agent or its submitter, not written down
        self.is_described = True  #: else it is of an epoch before this one, and `spec` has its name only
        self.is_anyones = False  #: `uid` is its agent's word: its submitter may have none that we know
        self.result: e.Finished | None = None  #: how its newest attempt ended
        self.delivered_to: Peer | None = None  #: to which connection of its submitter that was told
        self.joining = False  #: its agent has not begun to say again what its submitter missed: what comes meanwhile has gaps
        self.losses = 0  #: attempts that were lost
        self.lost_at = 0.0  #: MISSING: when its attempt is taken for lost
        self.gone_at: float | None = None  #: since when its submitter is away
        self.killed = False  #: nobody wants it any more, and its agent was told so
        self.memory_bytes = 0  #: a machine with no more than this has too little memory for it
        self.alone = False  #: it needs a machine for itself
        self.avoid: tuple[str, ...] = ()  #: agents that rejected it
        self.refusal = ""  #: why the last of them did
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
    def whose_build(self) -> tuple[int | None, str]:
        """Its build, which nobody else's can be taken for."""
        return self.uid, self.spec.build

    @property
    def owner(self) -> int | None:
        """Who alone may claim it; None when that is not known."""
        return None if self.is_anyones else self.uid

    def is_anothers(self, uid: int | None) -> bool:
        """Whether whoever has this uid (None: that is not known) may not claim it."""
        return self.uid not in (None, uid) and not (self.is_anyones and uid is None)

    @property
    def weight(self) -> float:
        return 2.0**self.spec.priority

    @property
    def is_choosy(self) -> bool:
        """Whether not every agent of a pool will do."""
        return bool(self.avoid or self.spec.agent or self.memory_bytes or self.alone)

    @property
    def is_unclaimed(self) -> bool:
        """Whether it is of an epoch before this one, and its submitter has not been heard in this one."""
        return self.peer is None and self.gone_at is None

    @property
    def why_too_many_made(self) -> str:
        """Why there are too many names to remove for another attempt; empty when there are not."""
        many = len(self.made) > MAX_MADE or sum(map(len, self.made)) > MAX_MADE_BYTES
        return "it made too many files to remove them all" if many else ""

    @property
    def why_not_again(self) -> str:
        """Why its newest attempt cannot be followed by another, as far as it is known; empty when it can."""
        return self.beyond or ("nobody knows what it has done" if self.blind else "")

    @property
    def undo(self) -> tuple[str, ...]:
        return tuple(self.made)

    @property
    def was_committed(self) -> bool:
        """Whether its submitter has said GO once: from then on only RESULT or FAILED may end it."""
        return self.attempt > 0
