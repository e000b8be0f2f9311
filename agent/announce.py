"""What whoever started this agent is told of it: the ready line, systemd's notifications and watchdog, the health file.

Knows who can be told. Does not know what the session does beyond whether it serves and drains; nothing is decided here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dwrap.agent.health import Health
from dwrap.protocol.service import Watchdog, notify

UNANSWERED_SECONDS: Final = 10.0


class Announcer:
    """Of an agent that is called `name`, has `slots` and dials `address`."""

    def __init__(self, name: str, slots: int, address: str, health: Health | None) -> None:
        self._name, self._slots, self._address, self._health = name, slots, address, health
        self._is_told = self._is_leaving = False
        self._unanswered_at = time.monotonic() + UNANSWERED_SECONDS
        self._watchdog = Watchdog(os.environ, os.getpid())

    def ready(self) -> None:
        """The distributor has let it in."""
        print(f"ready {self._name} slots={self._slots}", flush=True)
        self._is_told = True
        notify(f"READY=1\nSTATUS=serving {self._address}")

    def look(self, is_serving: bool, is_draining: bool) -> None:
        """For each tick. A boot does not wait for a distributor that is away: the agent goes on dialling."""
        self._watchdog.beat()
        if self._health is not None:
            self._health.tell(is_serving)
        if is_draining and not self._is_leaving:
            self._is_leaving = True
            notify("STOPPING=1\nSTATUS=draining")
        elif not (self._is_told or self._is_leaving) and time.monotonic() >= self._unanswered_at:
            self._is_told = True
            notify(f"READY=1\nSTATUS=no answer from {self._address} yet")


@contextmanager
def announcer(name: str, slots: int, address: str, health_file: Path | None) -> Iterator[Announcer]:
    """One that leaves no health file behind. Raises ValueError when that could not be kept where it is to be."""
    try:
        health = Health(health_file) if health_file is not None else None
    except OSError as error:
        raise ValueError(f"--health {health_file} cannot be kept: {error.strerror}; name one in a directory of its own") from error
    try:
        yield Announcer(name, slots, address, health)
    finally:
        if health is not None:
            health.close()
