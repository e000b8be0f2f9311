"""Questions (QUERY): who may ask what, when it is answered, and the few that change something: drain, join.

They wait until there is time and their asker reads the answers, so that neither holds up jobs nor makes the distributor grow.
Knows rights and answers. Does not know the socket: `Doors` are the ways out.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dwrap.distributor import events as e
from dwrap.distributor.connections import Connection, Connections
from dwrap.distributor.descriptors import evict, has_room
from dwrap.distributor.keyring import Keyring
from dwrap.distributor.reports import Reports
from dwrap.distributor.scheduler import Scheduler
from dwrap.protocol.authorized import KeyLineError
from dwrap.protocol.messages import MAX_FRAME_BYTES, Fields, ProtocolError, encode

MAX_QUERY_ID: Final = 64
_MOST_WAITING: Final = 16  # of one connection
_MOST_BYTES: Final = 4_096
_TURN_SECONDS: Final = 0.02  # for answers in each turn of the loop; at least one

log = logging.getLogger("dwrap.distributor")


@dataclass(frozen=True, slots=True)
class Doors:
    """What the broker does for questions: an event for the scheduler, a message, a refusal, the end of whoever found a defect."""

    happened: Callable[[e.Event], None]
    send: Callable[[e.Peer, Sequence[bytes]], None]
    refuse: Callable[[Connection, str], None]
    found_defect: Callable[[Connection], None]


class Questions:
    """Those that wait, and their answers."""

    def __init__(
        self, scheduler: Scheduler, reports: Reports, links: Connections, keyring: Keyring | None, secret: Callable[[], str],
        addresses: Sequence[str], doors: Doors,
    ) -> None:  # fmt: skip
        self._scheduler = scheduler
        self._reports = reports
        self._links = links
        self._keyring = keyring
        self._secret = secret
        self._addresses = addresses
        self._doors = doors
        self._waiting: deque[tuple[Connection, Fields]] = deque()

    def ask(self, link: Connection, fields: Fields, _: object, frames: Sequence[bytes]) -> None:
        """QUERY. Raises ProtocolError."""
        if len(frames[1]) > _MOST_BYTES:
            raise ProtocolError(f"a question has more than {_MOST_BYTES} bytes")
        if link.questions >= _MOST_WAITING:
            log.warning("a connection of %s is ended: it asks faster than it reads the answers", link.who.owner)
            self._reports.unexpected("unbounded")
            return evict(link.fd)
        link.questions += 1
        self._waiting.append((link, fields))

    def answer(self) -> bool:
        """Answers a few. Returns whether more could be answered now."""
        until, has_answered = time.monotonic() + _TURN_SECONDS, False
        for _ in range(len(self._waiting)):
            if time.monotonic() >= until:
                return has_answered
            link, fields = self._waiting.popleft()
            if self._links.by_peer.get(link.peer) is not link or link.is_refused:
                continue
            if not has_room(link.fd):
                self._waiting.append((link, fields))
                continue
            link.questions -= 1
            has_answered = True
            self._reply(link, fields)
        return False

    def _reply(self, link: Connection, fields: Fields) -> None:
        try:
            asked = fields.text("id")
            if len(asked) > MAX_QUERY_ID:
                raise ProtocolError(f"field id has more than {MAX_QUERY_ID} characters")
            body = json.dumps(self._find(link, fields.text("what"), fields), separators=(",", ":")).encode()
            if len(body) > MAX_FRAME_BYTES:
                raise ProtocolError("the answer is too large; ask for fewer with limit")
            self._doors.send(link.peer, encode("REPLY", [("id", asked)], body))
        except ProtocolError as error:
            self._reports.unexpected("malformed")
            self._doors.refuse(link, str(error))
        except Exception:
            self._doors.found_defect(link)

    def _find(self, link: Connection, what: str, fields: Fields) -> dict[str, Any]:
        who = link.who
        if what == "drain":
            return self._drain(link, fields)
        if what == "join":
            return self._join(link, fields)
        if not who.is_operator:
            who.check("submit")
        return self._reports.answer(what, fields, self._addresses, asker=who.uid, is_operator=who.is_operator)

    def _drain(self, link: Connection, fields: Fields) -> dict[str, str]:
        if not link.who.is_operator:
            raise ProtocolError("only root, the distributor's own user, and keys with the right operate may drain agents")
        link.token = link.token or self._secret()
        if fields.text("token") != link.token or not link.confirm():
            return {"token": link.token}
        name = fields.text("agent")
        if not any(agent.name == name for agent in self._scheduler.agents.values()):
            raise ProtocolError(f"no agent named {name} is connected")
        self._doors.happened(e.DrainAsked(name))
        return {"draining": name}

    def _join(self, link: Connection, fields: Fields) -> dict[str, str]:
        """Exchanges an invitation. What vouches for its sender is the handshake itself."""
        invitation = link.who.grant
        if invitation is None or self._keyring is None or not invitation.may("invite"):
            raise ProtocolError("this is no invitation; dwrapctl invite makes one")
        try:
            joined = self._keyring.exchange(invitation, fields.text("key"))
        except KeyLineError as error:
            raise ProtocolError(f"cannot join: {error}") from error
        except OSError as error:
            log.error("an invitation could not be exchanged: %s", error)
            raise ProtocolError("cannot join: the distributor cannot write its authorized_keys; tell its operator") from error
        log.info("joined: %s", json.dumps(joined.line()))
        return {"joined": joined.name}
