"""The table of connections: routing id ↔ descriptor ↔ identity.

ZeroMQ names a peer by its routing id in each message, and by its descriptor in the monitor's events. A descriptor number
is used again as soon as it is closed, so the events are applied in their order, and messages of routing ids that are not
known yet are looked at only after the events that came before them (broker.py keeps that order).
Knows connections. Does not know messages or jobs.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Final

from dwrap.distributor.events import Peer
from dwrap.distributor.identity import Who
from dwrap.protocol.peer import cookie_of

_RID_BYTES: Final = 5
_SHORT, _LONG, _SHORT_MOST = 2, 9, 255  # bytes of a frame's head, and how long a frame has a short one (ZMTP)
_SEALED_BYTES: Final = 33  # more in a frame of CURVE's: its name, nonce, MAC and flags


@dataclass(slots=True)
class Connection:
    """One connection that has spoken. `peer` is its number for the scheduler."""

    peer: Peer
    fd: int
    rid: bytes
    who: Who
    is_trusted: bool = False
    is_refused: bool = False  #: it has been told that it is not served; the next thing it says ends the connection
    token: str = ""
    messages: int = 0  #: that have come whole
    heard_bytes: int = 0  #: of theirs, as they are on the wire
    told_bytes: int = 0  #: that it was sent
    questions: int = 0  #: of its that wait

    def heard(self, frames: list[bytes]) -> int:
        """A message has come whole. Returns its size on the wire."""
        self.messages += 1
        more = _SEALED_BYTES if self.who.grant is not None else 0
        size = sum([len(frame) + more + (_LONG if len(frame) + more > _SHORT_MOST else _SHORT) for frame in frames])
        self.heard_bytes += size
        return size

    def confirm(self) -> bool:
        """The peer has echoed a secret: its identity counts from now on, if this is still the socket that was asked about."""
        if not self.is_trusted:
            kernel = self.who.kernel
            self.is_trusted = self.who.grant is not None or (kernel is not None and (kernel.is_unix or cookie_of(self.fd) == kernel.cookie))
        return self.is_trusted


def _is_later(rid: bytes, than: bytes) -> bool:
    """Whether ZeroMQ gave out `rid` after `than`: a zero byte and a counter of four, which wraps. A chosen id is never later."""
    if len(rid) != _RID_BYTES or len(than) != _RID_BYTES:
        return False
    return 0 < int.from_bytes(rid[1:]) - int.from_bytes(than[1:]) & 0xFFFFFFFF < 1 << 31


class Connections:
    """All open connections."""

    def __init__(self) -> None:
        self._serials = itertools.count(1)
        self.by_fd: dict[int, Connection | None] = {}  #: all that are open, oldest first; None until it has spoken
        self._silent: dict[int, None] = {}  # those, oldest first
        self._owned: Counter[str] = Counter()
        self.by_rid: dict[bytes, Connection] = {}
        self.by_peer: dict[Peer, Connection] = {}

    def __len__(self) -> int:
        return len(self.by_fd)

    def owned_by(self, owner: str) -> int:
        """How many connections somebody has that have spoken."""
        return self._owned[owner]

    def silent_beyond(self, most: int) -> int | None:
        """The oldest connection that has not spoken yet, when there are more than `most` of them."""
        return next(iter(self._silent)) if len(self._silent) > most else None

    def opened(self, fd: int) -> Connection | None:
        """A connection was accepted. Returns the one that had this descriptor when its end was not seen."""
        before = self.closed(fd)
        self.by_fd[fd] = None
        self._silent[fd] = None
        return before

    def closed(self, fd: int) -> Connection | None:
        """A connection has ended. Returns it when it had spoken."""
        known = self.by_fd.pop(fd, None)
        self._silent.pop(fd, None)
        if known is not None:
            self._owned[known.who.owner] -= 1
            if not self._owned[known.who.owner]:
                del self._owned[known.who.owner]
            del self.by_rid[known.rid]
            del self.by_peer[known.peer]
        return known

    def is_open(self, fd: int) -> bool:
        return fd in self.by_fd

    def is_overtaken(self, fd: int, rid: bytes) -> bool:
        """Whether a later connection has spoken on this descriptor: then this message is the last word of one that has ended.

        Messages of different peers overtake each other in ZeroMQ, but it numbers its routing ids in the order of connection.
        """
        known = self.by_fd.get(fd)
        return known is not None and not _is_later(rid, known.rid)

    def bind(self, fd: int, rid: bytes, who: Who) -> tuple[Connection, Connection | None]:
        """The first message of an open connection. Returns it, and one that was wrongly taken for this descriptor's."""
        mistaken = self.closed(fd)
        link = Connection(next(self._serials), fd, rid, who)
        self.by_fd[fd] = self.by_rid[rid] = self.by_peer[link.peer] = link
        self._owned[who.owner] += 1
        return link, mistaken
