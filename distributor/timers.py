"""What is to be done when: a heap of moments. A timer is never cancelled; what it calls looks whether it still matters.

Knows numbers and callables. Does not know a clock: `run` is told what time it is.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Timers:
    """Calls that are due at a time, each with a subject and a key that tells whether the subject has moved on since."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[Any, Any], None], Any, Any]] = []
        self._serial = 0

    def at(self, when: float, what: Callable[[Any, Any], None], subject: object, key: object = None) -> None:
        """Calls what(subject, key) at `when`; calls of one moment are made in the order they were asked for."""
        self._serial += 1
        heappush(self._heap, (when, self._serial, what, subject, key))

    def run(self, now: float) -> None:
        """Makes the calls that are due."""
        while self._heap and self._heap[0][0] <= now:
            _, _, what, subject, key = heappop(self._heap)
            what(subject, key)

    def next(self) -> float | None:
        """When the next call is due, or None."""
        return self._heap[0][0] if self._heap else None
