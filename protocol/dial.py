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


def dial(endpoint: Endpoint, folder: Path, kind: str, insecure: bool) -> Dial:
    """How to reach it with the keys in a folder, ours being that of this kind. Raises KeysError."""
    keys.check_library()
    pinned = keys.known_distributor(folder, endpoint.address)
    if pinned and not pinned.startswith(_UID):
        return Dial(endpoint.address, pinned, keys.read_pair(folder, kind))
    if endpoint.is_local:
        also = {int(pinned.removeprefix(_UID))} if pinned.removeprefix(_UID).isdecimal() else set()
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
    return dial(endpoint, folder, "client", environment.get("DWRAP_INSECURE") == "1")
