"""How a distributor is reached: by its key, by the kernel's word on this machine, or unprotected because somebody said so.

For agents and dwrapctl; the wrapper's keys.c keeps the same rules. Knows addresses, keys and who runs what listens here.
Does not know what is said on the connection.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq

from dwrap.protocol import keys
from dwrap.protocol.endpoint import Endpoint
from dwrap.protocol.keys import KeysError, Pair
from dwrap.protocol.peer import of_descriptor

_UID: Final = "uid="
ROOT: Final = 0
FAILURES: Final = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_RIGHTS: Final = {"client": "--submit --uid UID", "agent": "--serve"}


@dataclass(frozen=True, slots=True)
class Dial:
    """One distributor. `server` is its public key, `pair` ours; without them whoever listens must be one of `uids`, or anybody (None)."""

    address: str
    server: str = ""
    pair: Pair | None = None
    uids: frozenset[int] | None = None

    @property
    def is_unprotected(self) -> bool:
        """Whether neither a key nor the kernel says who is at the other end."""
        return self.pair is None and self.uids is None

    def configure(self, socket: zmq.Socket[bytes]) -> None:
        """Prepares a socket for it."""
        if self.pair is not None:
            keys.dial_with(socket, self.pair, self.server)

    def why_not(self, fd: int) -> str:
        """Why whoever listens at the other end of a connection is not to be trusted; empty when it is."""
        if self.uids is None:
            return ""
        who = of_descriptor(fd)
        if who.uid is None:
            return f"nobody can tell who runs what listens at {self.address}: {who.why}"
        if who.uid not in self.uids:
            remedy = f"dwrapctl key trust {self.address} uid={who.uid}, if you do"
            return f"what listens at {self.address} is run by uid {who.uid}, who is neither root nor we; {remedy}"
        return ""


def dial(endpoint: Endpoint, folder: Path | None, kind: str, insecure: bool, is_named: bool = False) -> Dial:
    """How to reach it with the keys in a folder, ours being that of this kind; a folder that somebody named has to be there.

    Raises KeysError.
    """
    keys.check_library()
    if is_named and folder is not None and not folder.is_dir():
        raise KeysError(f"{folder}, where keys should be, is no directory; make it, or leave it out")
    pinned = keys.known_distributor(folder, endpoint.address)
    if pinned and not pinned.startswith(_UID):
        if folder is None:
            raise KeysError("there is no place for keys of yours: neither HOME nor DWRAP_KEYS is set; set one")
        return Dial(endpoint.address, pinned, keys.read_pair(folder, kind))
    if endpoint.is_local:
        also = {int(pinned.removeprefix(_UID))} if pinned else set()
        return Dial(endpoint.address, uids=frozenset({ROOT, os.geteuid(), *also}))
    if insecure:
        return Dial(endpoint.address)
    raise KeysError(
        f"{endpoint.address} is on another machine, and no key of it is known; join by an invitation (dwrapctl join), "
        "say dwrapctl key trust ADDRESS KEY, or allow it insecurely on a network that you trust wholly"
    )


def by_environment(endpoint: Endpoint, environment: Mapping[str, str]) -> Dial:
    """How a user's own programs reach it, by the settings that the wrapper has too. Raises KeysError."""
    folder = keys.directory(environment, os.geteuid())
    return dial(endpoint, folder, "client", environment.get("DWRAP_INSECURE") == "1", bool(environment.get("DWRAP_KEYS")))


def why_refused(dial: Dial, event: int, kind: str) -> str:
    """What a failed handshake (one of libzmq's FAILURES) means, and what to do."""
    if dial.pair is None:
        return f"no handshake with {dial.address}: it may ask for keys, or be something else; dwrapctl join, or check the address"
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return f"{dial.address} does not let this key in; on its host: dwrapctl key allow NAME {dial.pair.public} {_RIGHTS[kind]}"
    remedy = "compare dwrapctl key show server there"
    return f"no handshake with {dial.address}: its key may not be {dial.server} any more, or it uses none; {remedy}"
