"""What the scheduler is told (events: facts of the past) and what it answers (actions: imperatives), and the record of each transition.

Knows the vocabulary only. Does not know messages, sockets, or the rules by which events become actions.
A `Peer` is one connection, named by a number that is never used again; who it belongs to is told by its `uid`, which is
the kernel's word (None: nobody vouches for it, and the operator allowed that with --insecure).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar, dataclass_transform

from dwrap.protocol.manifest import Entry

Peer: TypeAlias = int
Fact: TypeAlias = str | int | float | None
ANY_UID = -1
Held: TypeAlias = tuple[str, int, int]
"""An attempt as an agent names it in REGISTER: job, number, and the uid it runs as."""
_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def _fact(cls: type[_T]) -> type[_T]:
    """A dataclass that nobody may change: mypy sees to it. A check at run time as well would triple what making one costs."""
    return dataclass(slots=True)(cls)


class JobState(enum.Enum):
    """Where a job stands. `Scheduler._move` makes every change from one to the next.

    QUEUED → OFFERED → ASSIGNED → SETTLED; OFFERED → QUEUED (not answered, or its agent left); ASSIGNED ↔ MISSING (its agent's
    connection ends, and is there again); ASSIGNED, MISSING → QUEUED (no attempt lives, and it may be run again); and from each to SETTLED.
    """

    QUEUED = "queued"  #: waits for a slot, for an agent, or for its submitter to be heard again
    OFFERED = "offered"  #: a slot is held for it; its submitter has 2 s to say GO
    ASSIGNED = "assigned"  #: an agent has it; it may have started
    MISSING = "missing"  #: as ASSIGNED, and nothing is heard of that agent
    SETTLED = "settled"  #: its submitter has been told how it ended, or has gone


@_fact
class JobSpec:
    """What a submitter asks for. Nothing in it says who asks, but for the groups of the key."""

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
    identity: str = ""  #: the environment that it comes from; empty: any will do
    cpu: str = ""  #: the processor that it has to run on; empty: any will do
    agent: str = ""  #: the one agent that it asks for, by the label that every agent has
    views: bool = False  #: it is submitted in a directory of which other hosts have a view of their own
    groups: tuple[int, ...] = ()  #: that its submitter's key gives; not what it claims


@_fact
class AgentSpec:
    """What an agent says of itself."""

    name: str
    slots: int
    roots: tuple[str, ...]
    serves: int = ANY_UID  #: the one uid it can run jobs as, or ANY_UID
    labels: frozenset[str] = frozenset()
    identity: str = ""  #: its environment
    cpu: str = ""
    packages: str = ""  #: what counts in it, a line each; for people
    allow_root: bool = False
    host: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    tree: str = ""
    incarnation: str = ""  #: the agent's process; another one has another name
    former: tuple[str, ...] = ()  #: incarnations before it of which no process lives
    leftover: int = 0  #: process trees of incarnations before it that live still
    running: tuple[Held, ...] = ()
    kept: tuple[Held, ...] = ()  #: their results wait
    draining: bool = False
    views: bool = False
    mounts: tuple[str, ...] = ()
    flaws: tuple[str, ...] = ()


@_fact
class Load:
    """What an agent measured: processors busy with others' work, memory that is free, pressure (percent of the last 10 s)."""

    foreign_cpus: float = 0.0
    memory_available_bytes: int = 0
    psi_cpu: float = 0.0
    psi_memory: float = 0.0
    psi_io: float = 0.0


@_fact
class Outcome:
    """How an attempt ended, in the agent's words: a raw wait status, or an error and its reason."""

    status: int | None
    error: str = ""
    reason: str = ""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    repeat: bool = False  #: it may be run again, once what it made is removed
    made: tuple[str, ...] = ()
    memory: bool = False  #: it was killed for want of memory
    fault: bool = False  #: it is the agent's own trouble


# ---- events ----


@_fact
class Submitted:
    peer: Peer
    uid: int | None
    spec: JobSpec


@_fact
class Explained:
    """A submitter wants to know where a job would run; nothing is to be run."""

    peer: Peer
    uid: int | None
    spec: JobSpec


@_fact
class Committed:
    """GO. The payload (its fields, argv, env, what its submitter saw) goes to the agent as it is."""

    peer: Peer
    job: str
    stamp: str
    payload: tuple[bytes, ...]


@_fact
class Attached:
    """A submitter's connection is new, or its agent's is. `attempt` was offered in `epoch`, and GO sent `since` seconds ago. `offsets` are
    for the agent.
    """

    peer: Peer
    uid: int | None
    spec: JobSpec
    attempt: int
    epoch: int
    since: float
    offsets: tuple[tuple[str, int], ...]


@_fact
class Acknowledged:
    peer: Peer
    job: str


@_fact
class Registered:
    peer: Peer
    uid: int | None
    spec: AgentSpec
    owner: str = ""  #: by which key or uid it is known: nobody else has its name while it is here


@_fact
class Heartbeat:
    peer: Peer
    token: str
    load: Load


@_fact
class Leaving:
    peer: Peer


@_fact
class Rejected:
    peer: Peer
    job: str
    attempt: int
    reason: str
    fault: bool = False  #: it is the agent's own trouble


@_fact
class Made:
    """An attempt is about to make these names, or to go beyond what can be run again; it waits for Noted when it asks."""

    peer: Peer
    job: str
    attempt: int
    seq: int
    paths: tuple[str, ...]
    beyond: str
    ask: bool


@_fact
class Joined:
    """An agent has begun to answer ForwardAttach."""

    peer: Peer
    job: str
    attempt: int


@_fact
class Finished:
    """RESULT. The payload (its fields) goes to the submitter as it is."""

    peer: Peer
    job: str
    attempt: int
    outcome: Outcome
    payload: bytes


@_fact
class ManifestTold:
    """MANIFEST: what a host changed. `attempt` is 0 from a submitter, `job` is empty when an agent offers what it had told before."""

    peer: Peer
    job: str
    attempt: int
    entries: list[Entry]
    frames: Sequence[bytes]


@_fact
class Disconnected:
    peer: Peer


@_fact
class DrainAsked:
    """An operator wants the agent of this name to finish and leave."""

    name: str


@_fact
class Tick:
    """Time has passed; nothing else has happened."""


Event: TypeAlias = (
    Submitted
    | Explained
    | Committed
    | Attached
    | Acknowledged
    | Registered
    | Heartbeat
    | Leaving
    | Rejected
    | Made
    | Joined
    | Finished
    | ManifestTold
    | Disconnected
    | DrainAsked
    | Tick
)

# ---- actions ----


@_fact
class Answer:
    """The end of a job that never reached an agent: verb is HERE, UNAVAILABLE or REFUSED."""

    peer: Peer
    job: str
    verb: str
    reason: str


@_fact
class TellExplained:
    peer: Peer
    job: str
    where: str
    agent: str
    reason: str


@_fact
class TellQueued:
    peer: Peer
    job: str
    ahead: int


@_fact
class Offer:
    peer: Peer
    job: str
    stamp: str
    attempt: int
    views: bool = False


@_fact
class Assign:
    peer: Peer
    spec: JobSpec
    attempt: int
    uid: int
    payload: tuple[bytes, ...]
    views: bool = False
    journal: bytes = b""
    behind: bool = False
    burst: int = 0
    undo: tuple[str, ...] = ()
    memory_retry: bool = False  #: if it is killed for want of memory, that is no result yet


@_fact
class TellMissing:
    """To a submitter: nothing is heard of its job's agent at the moment."""

    peer: Peer
    job: str


@_fact
class Resume:
    """To a submitter: its job's agent has a new connection."""

    peer: Peer
    job: str


@_fact
class ForwardAttach:
    """To an agent: say again what the submitter may have missed."""

    peer: Peer
    job: str
    attempt: int
    offsets: tuple[tuple[str, int], ...]


@_fact
class Noted:
    """To an agent: what the attempt told is written down."""

    peer: Peer
    job: str
    attempt: int
    seq: int


@_fact
class ForwardManifest:
    """An agent's MANIFEST, frames as they came."""

    peer: Peer
    frames: Sequence[bytes]


@_fact
class DeliverResult:
    peer: Peer
    job: str
    payload: bytes
    agent: str
    queued_ms: int


@_fact
class TellFailed:
    peer: Peer
    job: str
    reason: str
    safe: bool
    undo: tuple[str, ...] = ()


@_fact
class Welcome:
    peer: Peer
    token: str


@_fact
class RenewLease:
    peer: Peer


@_fact
class RefuseAgent:
    """`may_change`: it may ask again: whoever has its name may be gone."""

    peer: Peer
    reason: str
    may_change: bool


@_fact
class Disconnect:
    """End this connection: its agent was given up, and must come back as a new one to be believed again."""

    peer: Peer


@_fact
class Drain:
    peer: Peer


@_fact
class Kill:
    peer: Peer
    job: str
    attempt: int


@_fact
class AckResult:
    peer: Peer
    job: str
    attempt: int


@_fact
class Unexpected:
    """The event did not fit the state; it was dropped and is to be counted."""

    what: str


@_fact
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
    | TellMissing
    | Resume
    | ForwardAttach
    | Noted
    | ForwardManifest
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
