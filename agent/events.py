"""What can happen to a session, and what it can ask for: its events and actions, all of them data.

Knows the words; does not know what follows from what (session.py), or how anything is done (link.py). Streams carry the numbers of
runner.h: 0 stdin, 1 stdout, 2 stderr.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from dwrap.protocol.messages import Fields

Key = tuple[str, int]
"""An attempt: (job, number)."""


class Kind(IntEnum):
    """What a packet between agent and runner is (runner.h)."""

    INPUT = 1
    CREDIT = 2
    CLOSE = 3
    SIGNAL = 4
    KILL = 5
    OUTPUT = 6
    REJECTED = 7
    ENDED = 8
    APPLIED = 9
    MANIFEST = 10
    MADE = 11
    NOTED = 12
    ENDING = 13


# ---- events


@dataclass(frozen=True, slots=True)
class Connected:
    """A new connection to the distributor is up."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """It is gone."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message from the distributor."""

    verb: str
    fields: Fields
    bodies: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RunnerSaid:
    """A packet from the runner of an attempt."""

    key: Key
    kind: int
    stream: int
    number: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class RunnerEnded:
    """A runner's socket is closed. When it had not said how its job ended, the job is lost."""

    key: Key


@dataclass(frozen=True, slots=True)
class Tick:
    """A second has passed. `load`: HEARTBEAT's fields on this machine's load."""

    load: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Mounted:
    """What is mounted here has changed: REGISTER's `views`, `mount` and `flaw`."""

    views: bool
    mounts: tuple[str, ...] = ()
    flaws: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Installed:
    """What is installed here has changed: REGISTER's `identity`, `cpu` and `packages`."""

    environment: str
    cpu: str
    packages: str


@dataclass(frozen=True, slots=True)
class News:
    """What has come to light of incarnations before this one: those whose last process is gone (in no News before), and of each
    attempt of theirs whose RESULT waits: whose it was (uid), RESULT's fields from the runner, its entries. `leftover` process trees live.
    """

    former: tuple[str, ...]
    results: tuple[tuple[Key, int, bytes, bytes], ...]
    leftover: int


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """The operator wants the agent to finish and leave."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The operator wants the agent to end now, and its jobs with it."""


Event = Connected | Disconnected | Received | RunnerSaid | RunnerEnded | Tick | Mounted | Installed | News | DrainAsked | StopAsked

# ---- actions


@dataclass(frozen=True, slots=True)
class Send:
    """A message for the distributor."""

    frames: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """Start a runner. `fields` are the distributor's word; `claims` (a fields frame), `argv` and `env` the submitter's.

    `seen` and `journal` are entries: what the submitter saw, and what other hosts changed that this user has not been shown here.
    """

    key: Key
    fields: Fields
    claims: bytes
    argv: bytes
    env: bytes
    seen: bytes = b""
    journal: bytes = b""
    views: bool = False
    refresh: bool = False


@dataclass(frozen=True, slots=True)
class Tell:
    """A packet for a runner."""

    key: Key
    kind: Kind
    stream: int = 0
    number: int = 0
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Lease:
    """The runners may go on until then, on the session's clock."""

    until: float


@dataclass(frozen=True, slots=True)
class Forget:
    """The attempt's RESULT has arrived, or it was never started: nothing of it need outlive this process any more."""

    key: Key


@dataclass(frozen=True, slots=True)
class Log:
    """A line for the log."""

    event: str
    fields: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """The distributor took this agent in, for the first time."""


@dataclass(frozen=True, slots=True)
class Quit:
    """End the process. `reason` is empty when all is well."""

    status: int
    reason: str = ""


Action = Send | Start | Tell | Lease | Forget | Log | Ready | Quit
