"""Whose message is this, and what may they do? The key that ZAP vouched for, else the kernel's word; never the peer's.

libzmq notes a Unix peer's credentials when the connection is made, and what ZAP said, and hands both out with each message; the owner
of a loopback TCP peer is asked for. Knows messages' properties and grants. Does not know what is asked for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import zmq

from dwrap.distributor.keyring import Keyring
from dwrap.protocol.authorized import Grant
from dwrap.protocol.messages import ProtocolError
from dwrap.protocol.peer import Identity, of_tcp_peer

_UNIX_PREFIX: Final = "localhost:"  # libzmq's name for the address of a Unix peer; a TCP peer's is numeric
ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class Who:
    """Somebody: by a key (`grant`), or by the kernel's word (`kernel`), which is None of a peer with a key."""

    kernel: Identity | None = None
    grant: Grant | None = None

    @property
    def is_unknown(self) -> bool:
        return self.grant is None and (self.kernel is None or self.kernel.uid is None)

    @property
    def why(self) -> str:
        """Why nobody can tell who it is."""
        return self.kernel.why if self.kernel is not None else ""

    @property
    def owner(self) -> str:
        """Whose connections are counted together."""
        return f"key {self.grant.name}" if self.grant else f"uid {self.kernel.uid if self.kernel else None}"

    @property
    def uid(self) -> int | None:
        """The one uid that this stands for; None when that is not known, or several."""
        if self.grant is not None:
            return self.grant.only_uid
        return self.kernel.uid if self.kernel is not None else None

    @property
    def is_operator(self) -> bool:
        """Whether it may tell the distributor what to do with agents."""
        return self.grant.may("operate") if self.grant is not None else self.uid in (ROOT, os.geteuid())

    def check(self, right: str) -> None:
        """Raises ProtocolError when it has not this right. Whoever the kernel knows has them all."""
        if self.grant is not None and not self.grant.may(right):
            has = ", ".join(sorted(self.grant.rights)) if "invite" not in self.grant.rights else "join, by dwrapctl join"
            raise ProtocolError(f"the key {self.grant.name} may not {right}; its entry in authorized_keys lets it only {has}")

    def submits_as(self, claim: int | None) -> int | None:
        """The uid for a job of its; `claim` counts only where a key leaves a choice. Raises ProtocolError."""
        self.check("submit")
        grant = self.grant
        if grant is None or grant.only_uid is not None:
            return self.uid
        if claim is None or not grant.allows(claim):
            said = "names none" if claim is None else f"is {claim}"
            raise ProtocolError(f"the key {grant.name} may not submit for every uid, and the job's {said}; its entry says which it may")
        return claim

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups that the key gives beside what an agent's database does."""
        return self.grant.groups if self.grant is not None else ()

    def serves_as(self) -> int | None:
        """Whose jobs an agent of its may run: root's word counts for anybody's. Raises ProtocolError."""
        self.check("serve")
        if self.grant is None:
            return self.uid
        return self.grant.uids[0][0] if self.grant.uids else ROOT


def of_unix_peer(peer_address: str) -> Identity | None:
    """The identity in a message's Peer-Address property when it came over a Unix socket, else None."""
    if not peer_address.startswith(_UNIX_PREFIX):
        return None
    parts = peer_address.split(":")
    if len(parts) != 4 or not parts[1].isdigit():
        return Identity(None, why="the Unix socket told no credentials", is_unix=True)
    return Identity(int(parts[1]), is_unix=True)


def of_message(frame: zmq.Frame, fd: int, keyring: Keyring | None) -> Who:
    """Who has sent this message over this descriptor."""
    key = keyring.of_user_id(property_of(frame, "User-Id")) if keyring is not None else None
    if keyring is not None and key is not None:
        grant = keyring.grant(key)
        return Who(Identity(None, why="its key is not let in any more"), grant)
    return Who(of_unix_peer(property_of(frame, "Peer-Address")) or of_tcp_peer(fd))


def property_of(frame: zmq.Frame, name: str) -> str:
    """A property that the handshake told, as each message carries it; empty when there is none."""
    try:
        return str(frame.get(name))
    except (zmq.ZMQError, UnicodeDecodeError):  # a peer may give a property of its own any name, and any bytes
        return ""
