"""How an agent stands: what went wrong through its own fault, and for how long it is given no work therefore.

Each fault adds one to a score that halves every HALF_LIFE_SECONDS. At SUSPENDED_AT the agent is suspended until the score has decayed to
RESUMED_AT. Only what no submitter can cause is a fault: an agent that cannot start a runner or make a temporary directory, a runner that
died, an output that its host could not store; never what a command did. Knows numbers; does not know agents' work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

HALF_LIFE_SECONDS: Final = 60.0
SUSPENDED_AT: Final = 3.0
RESUMED_AT: Final = 1.5


@dataclass(slots=True)
class Standing:
    """The record of one name, which outlives its connections."""

    score: float = 0.0
    at: float = 0.0
    suspended_until: float = 0.0
    why: str = ""  #: the newest fault

    def now(self, now: float) -> float:
        """The score as it has decayed."""
        return float(self.score * 0.5 ** ((now - self.at) / HALF_LIFE_SECONDS))

    def fault(self, why: str, now: float) -> bool:
        """Something went wrong. Returns whether the agent is suspended by it."""
        self.score, self.at, self.why = self.now(now) + 1.0, now, why
        if self.score < SUSPENDED_AT or self.suspended_until > now:
            return False
        self.suspended_until = now + HALF_LIFE_SECONDS * math.log2(self.score / RESUMED_AT)
        return True

    def is_suspended(self, now: float) -> bool:
        """Whether it gets no work now."""
        return now < self.suspended_until
