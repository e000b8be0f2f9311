"""What the scheduler is told (events: facts of the past) and what it answers (actions: imperatives), and the record of each transition.

Knows the vocabulary only. Does not know messages, sockets, or the rules by which events become actions.
A `Peer` is one connection, named by a number that is never used again; who it belongs to is told by its `uid`, which is
the kernel's word (None: nobody vouches for it, and the operator allowed that with --insecure).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Peer: TypeAlias = int
Fact: TypeAlias = str | int | float | None
ANY_UID = -1


class JobState(enum.Enum):
    """Where a job stands. `Scheduler._move` makes every change from one to the next.

    QUEUED → OFFERED → ASSIGNED → SETTLED; OFFERED → QUEUED (not answered, or its agent left);
    ASSIGNED → QUEUED (rejected: it was never started); and from each to SETTLED.
    """

    QUEUED = "queued"  #: waits for a slot, for an agent, or for its submitter to be heard again
    OFFERED = "offered"  #: a slot is held for it; its submitter has 2 s to say GO
    ASSIGNED = "assigned"  #: an agent has it; it may have started
    SETTLED = "settled"  #: its submitter has been told how it ended, or has gone


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a submitter asks for. Nothing in it says who asks."""

    job: str
    cwd: str
    command: str
    build: str
    host: str = ""
    pid: int = 0
    paths: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    priority: int = 0
    remote: bool = False
    identity: str = ""


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """What an agent says of itself."""

    name: str
    slots: int
    roots: tuple[str, ...]
    serves: int = ANY_UID  #: the one uid it can run jobs as, or ANY_UID
    labels: frozenset[str] = frozenset()
    identity: str = ""
    allow_root: bool = False
    host: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    tree: str = ""
    running: tuple[tuple[str, int], ...] = ()
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """What an agent measured: processors busy with others' work, memory that is free, pressure (percent of the last 10 s)."""

    foreign_cpus: float = 0.0
    memory_available_bytes: int = 0
    psi_cpu: float = 0.0
    psi_memory: float = 0.0
    psi_io: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, in the agent's words: a raw wait status, or an error and its reason."""

    status: int | None
    error: str = ""
    reason: str = ""
    facts: Mapping[str, Fact] = field(default_factory=dict)


# ---- events ----


@dataclass(frozen=True, slots=True)
class Submitted:
    peer: Peer
    uid: int | None
    spec: JobSpec


@dataclass(frozen=True, slots=True)
class Explained:
    """A submitter wants to know where a job would run; nothing is to be run."""

    peer: Peer
    uid: int | None
    spec: JobSpec


@dataclass(frozen=True, slots=True)
class Committed:
    """GO. The payload (its fields, argv, env) goes to the agent as it is."""

    peer: Peer
    job: str
    stamp: str
    payload: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    peer: Peer
    job: str


@dataclass(frozen=True, slots=True)
class Registered:
    peer: Peer
    uid: int | None
    spec: AgentSpec


@dataclass(frozen=True, slots=True)
class Heartbeat:
    peer: Peer
    token: str
    load: Load


@dataclass(frozen=True, slots=True)
class Leaving:
    peer: Peer


@dataclass(frozen=True, slots=True)
class Rejected:
    peer: Peer
    job: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """RESULT. The payload (its fields) goes to the submitter as it is."""

    peer: Peer
    job: str
    attempt: int
    outcome: Outcome
    payload: bytes


@dataclass(frozen=True, slots=True)
class Disconnected:
    peer: Peer


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """An operator wants the agent of this name to finish and leave."""

    name: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; nothing else has happened."""


Event: TypeAlias = (
    Submitted
    | Explained
    | Committed
    | Acknowledged
    | Registered
    | Heartbeat
    | Leaving
    | Rejected
    | Finished
    | Disconnected
    | DrainAsked
    | Tick
)

# ---- actions ----


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a job that never reached an agent: verb is HERE, UNAVAILABLE or REFUSED."""

    peer: Peer
    job: str
    verb: str
    reason: str


@dataclass(frozen=True, slots=True)
class TellExplained:
    peer: Peer
    job: str
    where: str
    agent: str
    reason: str


@dataclass(frozen=True, slots=True)
class TellQueued:
    peer: Peer
    job: str
    ahead: int


@dataclass(frozen=True, slots=True)
class Offer:
    peer: Peer
    job: str
    stamp: str


@dataclass(frozen=True, slots=True)
class Assign:
    peer: Peer
    spec: JobSpec
    attempt: int
    uid: int
    payload: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class DeliverResult:
    peer: Peer
    job: str
    payload: bytes
    agent: str
    queued_ms: int


@dataclass(frozen=True, slots=True)
class TellFailed:
    peer: Peer
    job: str
    reason: str
    safe: bool


@dataclass(frozen=True, slots=True)
class Welcome:
    peer: Peer
    token: str


@dataclass(frozen=True, slots=True)
class RenewLease:
    peer: Peer


@dataclass(frozen=True, slots=True)
class RefuseAgent:
    peer: Peer
    reason: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """End this connection: its agent was given up, and must come back as a new one to be believed again."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Drain:
    peer: Peer


@dataclass(frozen=True, slots=True)
class Kill:
    peer: Peer
    job: str
    attempt: int


@dataclass(frozen=True, slots=True)
class AckResult:
    peer: Peer
    job: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Unexpected:
    """The event did not fit the state; it was dropped and is to be counted."""

    what: str


@dataclass(frozen=True, slots=True)
class Record:
    """One transition, flat: what the history, the metrics and every page read. `what` names it, `facts` is what is new since the last."""

    at: float
    job: str
    what: str
    facts: Mapping[str, Fact]


Action: TypeAlias = (
    Answer
    | TellExplained
    | TellQueued
    | Offer
    | Assign
    | DeliverResult
    | TellFailed
    | Welcome
    | RenewLease
    | RefuseAgent
    | Disconnect
    | Drain
    | Kill
    | AckResult
    | Unexpected
    | Record
)
