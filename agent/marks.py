"""What each user of this host has been shown of what other hosts changed: journal batches, marks, and what must be asked anew.

Pure. Knows serial numbers, users and directories. Does not know entries, runners or messages. What a runner is to apply is
`due`; when it says that it has, `applied` moves that user's mark. A runner that never says so moves nothing, and two that start
at once are given the same: applying twice does no harm. What is kept is bounded; whoever lacks what was dropped asks the server.
So does a user whose runners fail time and again over what they are given: one entry that can never be seen, be it a lie, must
not keep every job away from this host. Each of these failures was loud.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MAX_BYTES: Final = 4 * 1024 * 1024
MAX_USERS: Final = 256
MAX_DIRECTORIES: Final = 4_096
MAX_FAILURES: Final = 3


class Due(NamedTuple):
    """What one runner is given. `refresh`: it asks the server about whatever is cached near `cwd`."""

    uid: int
    cwd: bytes
    journal: bytes
    refresh: bool
    serial: int
    behind: int
    burst: int


@dataclass(slots=True)
class _User:
    applied: int = 0  # the newest batch that a runner of this user has applied
    missed: int = 0  # how often batches were dropped that it had not
    failures: int = 0  # runners in a row that ended without having applied what they were given
    fresh: OrderedDict[bytes, tuple[int, int]] = field(default_factory=OrderedDict)  # by directory: behind and burst when refreshed


class Marks:
    """The batches that some user here has not applied, and the users' marks."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._batches: deque[tuple[int, bytes]] = deque()
        self._users: OrderedDict[int, _User] = OrderedDict()
        self._serial = 0
        self._behind = 0
        self.size = 0  #: bytes that are kept

    def restart(self) -> None:
        """Another distributor, whose journal and bursts begin anew: nothing counts as fresh any more."""
        for user in self._users.values():
            user.fresh.clear()

    def take(self, batch: bytes, behind: bool) -> None:
        """An assignment brought this. `behind`: the distributor cannot tell all that this host lacks."""
        self._behind += behind
        if not batch:
            return
        self._serial += 1
        self._batches.append((self._serial, batch))
        self.size += len(batch)
        dropped = 0
        while self.size > self._max_bytes:
            dropped = self._drop()
        for user in self._users.values():
            user.missed += user.applied < dropped

    def due(self, uid: int, cwd: bytes, burst: int) -> Due:
        """What a runner of this user must apply before it starts a command in `cwd`."""
        user = self._users.setdefault(uid, _User())
        self._users.move_to_end(uid)
        if len(self._users) > MAX_USERS:
            self._users.popitem(last=False)
        new: list[bytes] = []
        for serial, batch in reversed(self._batches):
            if serial <= user.applied:
                break
            new.append(batch)
        behind = self._behind + user.missed
        known_behind, known_burst = user.fresh.get(cwd, (-1, -1))
        refresh = known_behind < behind or known_burst < burst
        return Due(uid, cwd, b"".join(reversed(new)), refresh, self._serial, behind, burst)

    def applied(self, due: Due) -> None:
        """A runner has applied what it was given."""
        user = self._users.get(due.uid)
        if user is None:
            return
        user.applied = max(user.applied, due.serial)
        user.failures = 0
        if due.refresh:
            behind, burst = user.fresh.pop(due.cwd, (-1, -1))
            user.fresh[due.cwd] = max(behind, due.behind), max(burst, due.burst)
            if len(user.fresh) > MAX_DIRECTORIES:
                user.fresh.popitem(last=False)
        self._trim()

    def failed(self, due: Due) -> None:
        """A runner has ended without having applied what it was given."""
        user = self._users.get(due.uid)
        if user is None or not due.journal:
            return
        user.failures += 1
        if user.failures >= MAX_FAILURES:
            user.applied = max(user.applied, due.serial)
            user.failures = 0
            user.missed += 1
            self._trim()

    def _trim(self) -> None:
        everyone = min(user.applied for user in self._users.values())
        while self._batches and self._batches[0][0] <= everyone:
            self._drop()

    def _drop(self) -> int:
        serial, batch = self._batches.popleft()
        self.size -= len(batch)
        return serial
