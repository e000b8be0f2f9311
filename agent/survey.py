"""What is mounted under the roots, at the start and whenever it changes, in the words of the session.

Knows mounts.py and /proc/self/mountinfo, which tells by poll(2) that it has changed. A look at the mounts may hang as long as a
file server is silent, so every look after the first is made in a thread of its own: the lease must not depend on it.
"""

from __future__ import annotations

import logging
import select
import threading
from typing import Final

from dwrap.agent import mounts
from dwrap.agent.events import Mounted

_MOUNTINFO: Final = "/proc/self/mountinfo"
_BLIND: Final = "--views never: its jobs see late what other hosts write, and others what they write; start it without"
log = logging.getLogger("dwrap.agent")


class Survey:
    """The mounts under `roots`. `views`: `auto`, `always` or `never` (--views)."""

    def __init__(self, roots: tuple[str, ...], views: str) -> None:
        self._roots = roots
        self._views = views
        self._told = Mounted(views=False)
        self._found: Mounted | None = None
        self._looking: threading.Thread | None = None
        self._is_due = False
        self._file = open(_MOUNTINFO, "rb", buffering=0)  # noqa: SIM115 (as long as the agent lives)
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)

    def first(self, accept_flaws: bool) -> Mounted:
        """What is mounted now. Raises ValueError when that would give commands wrong bytes."""
        self._poll.poll(0)
        found = mounts.find(self._roots)
        if found.refusal and not accept_flaws:
            raise ValueError(found.refusal)
        self._told = self._in_words(found)
        return self._told

    def news(self) -> Mounted | None:
        """What is mounted now, when that is not what was told last. Never waits."""
        if self._looking is not None:
            if self._looking.is_alive():
                return None
            self._looking = None
            if self._found is not None and self._found != self._told:
                self._told = self._found
                return self._told
        self._is_due |= bool(self._poll.poll(0))
        if self._is_due:
            looking = threading.Thread(target=self._look, daemon=True)
            try:
                looking.start()
                self._looking, self._is_due = looking, False
            except RuntimeError as error:  # jobs have used up the threads: there is a next time
                log.warning("cannot look at what is mounted here: %s", error)
        return None

    def _look(self) -> None:
        try:
            self._found = self._in_words(mounts.find(self._roots))
        except OSError as error:
            log.warning("the mounts cannot be read: %s", error.strerror)

    def _in_words(self, found: mounts.Found) -> Mounted:
        if self._views == "never":
            return Mounted(False, found.mounts, (*found.flaws, _BLIND) if found.views else found.flaws)
        return Mounted(found.views or self._views == "always", found.mounts, found.flaws)
