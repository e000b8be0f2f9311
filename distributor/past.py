"""What is known of assignments that no live job stands for: those that have ended, and those of epochs before this one.

The question it answers: a submitter says that it sent GO, and no such job is here. Was it ever assigned? Only if every assignment of the
epoch in which it was offered is known, and this is none of them, the answer is no, and the command may run. Knows names and times; does
not know files (ledger.py).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

RETURN_SECONDS: Final = 4.0  # agents dial again within 2 s
MAX_ENDED: Final = 100_000
SLACK_SECONDS: Final = 60.0  # how long a message may have been under way


class Epitaph(NamedTuple):
    """What a submitter is told that asks for a job which has ended: FAILED's fields."""

    reason: str
    safe: bool = False
    undo: tuple[str, ...] = ()


_NONE: Final[Mapping[str, int | None]] = {}
_ENDED_BEFORE: Final = Epitaph("it ended before this distributor started, and what became of it was not kept")


@dataclass(frozen=True, slots=True)
class Assigned:
    """An assignment of an earlier epoch that had not ended; with no agent, the last one is over and another was due."""

    attempt: int
    agent: str | None
    incarnation: str
    uid: int | None
    made: tuple[str, ...] = ()
    beyond: str = ""
    lost_at: float | None = None  #: nothing was heard of its agent any more, and then it was to be taken for lost


@dataclass(slots=True)
class Past:
    """`began`: when this epoch did. `epochs`: all assignments of these are known. `recover_until`: agents may come back until then."""

    began: float = 0.0
    epochs: frozenset[int] = frozenset({0})
    recover_until: float = 0.0
    forgotten_at: float = -math.inf  #: save those that were made before this
    assigned: Mapping[str, Assigned] = field(default_factory=dict)
    _ended: OrderedDict[str, tuple[Epitaph, int | None, float]] = field(default_factory=OrderedDict)

    def ended_before(self, jobs: Mapping[str, tuple[str, ...] | None], owners: Mapping[str, int | None] = _NONE) -> None:
        """These had ended when this epoch began. What is left of those that may be run again: names to remove; None of others."""
        for job, undo in jobs.items():
            epitaph = _ENDED_BEFORE if undo is None else Epitaph(_ENDED_BEFORE.reason, True, undo)
            self._ended[job] = epitaph, owners.get(job), self.began

    def bury(self, job: str, epitaph: Epitaph, owner: int | None, now: float) -> None:
        """A job that was assigned has ended. `owner`: its submitter's uid; None where there may be others."""
        self._ended[job] = epitaph, owner, now
        self._ended.move_to_end(job)
        if len(self._ended) > MAX_ENDED:
            _, (_, _, at) = self._ended.popitem(last=False)
            self.forgotten_at = at  # in the order in which they ended

    def epitaph(self, job: str) -> Epitaph | None:
        """How a job of this id has ended; None when none is known to have."""
        return self._ended.get(job, (None, None, 0.0))[0]

    def is_anothers(self, job: str, uid: int | None) -> bool:
        """Whether a job of this id has ended that was another user's."""
        return self._ended.get(job, (None, None, 0.0))[1] not in (None, uid)

    def exhume(self, job: str) -> None:
        """It lives again."""
        self._ended.pop(job, None)

    def was_never_assigned(self, job: str, epoch: int, go_at: float) -> bool:
        """Whether a job that is not live, and was offered in this epoch, cannot have been assigned. `go_at`: when its submitter sent GO,
        if the message that says so came at once.
        """
        return job not in self._ended and epoch in self.epochs and go_at - SLACK_SECONDS > self.forgotten_at
