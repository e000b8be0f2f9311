"""Who is at the other end of a connection on this machine: the kernel's word, never the peer's.

A Unix socket's peer: its credentials, noted when the connection was made. A loopback TCP peer: sock_diag names the owner of the
socket at the other end. Any other peer has no identity here. Knows descriptors and netlink. Does not know what an identity may do,
nor when it may be trusted (PROTOCOL.md, "Who someone is": only after the peer has echoed a secret from the socket with the same cookie).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

_SO_COOKIE: Final = 57
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
_ANY_STATE: Final = 0xFFFFFFFF
_ANY_INTERFACE: Final = struct.pack("=I", 0)
_CONNECTED: Final = frozenset({1, 4, 5, 8, 9, 11})  # ESTABLISHED, FIN_WAIT1 and 2, CLOSE_WAIT, LAST_ACK, CLOSING (<net/tcp_states.h>)
_ERROR_BYTES: Final = 20
_ANSWER_BYTES: Final = 88  # struct nlmsghdr and struct inet_diag_msg (<linux/inet_diag.h>)
_MAPPED: Final = bytes(10) + b"\xff\xff"
_NO_COOKIE: Final = struct.pack("=II", 0xFFFFFFFF, 0xFFFFFFFF)


class _Host(NamedTuple):
    """An address as it is shown and as sock_diag wants it."""

    shown: str
    family: int
    packed: bytes
    is_loopback: bool


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is at the other end. `uid` is None when nobody can tell, and `why` says so. `cookie` names the socket for good."""

    uid: int | None
    cookie: bytes = b""
    why: str = ""
    is_unix: bool = False


def of_descriptor(fd: int) -> Identity:
    """The owner of the socket at the other end of a connected descriptor, Unix or TCP; for one that stays open meanwhile."""
    try:
        with Borrowed(fd) as link:
            family = link.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
            if family != socket.AF_UNIX:
                return of_tcp_peer(fd)
            _, uid, _ = struct.unpack("=iII", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return Identity(uid, is_unix=True)
    except OSError as error:
        return Identity(None, why=f"its socket cannot be asked: {error.strerror}")


def of_tcp_peer(fd: int) -> Identity:
    """The owner of the socket at the other end of a connected TCP descriptor."""
    try:
        with Borrowed(fd) as link:  # the cookie first: when it is still the same later on, all was read of one socket
            cookie = link.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
            peer, peer_port = _address(link.getpeername())
            own, own_port = _address(link.getsockname())
    except OSError as error:
        return Identity(None, why=f"its socket cannot be asked: {error.strerror}")
    if not (peer.is_loopback or peer == own):
        return Identity(None, cookie, f"it comes from {peer.shown}, and only keys give such peers an identity")
    try:
        uid = _owner(peer, peer_port, own, own_port)
    except OSError as error:
        return Identity(None, cookie, f"the kernel does not tell the owner of {peer.shown}:{peer_port}: {error.strerror}")
    return Identity(uid, cookie, "" if uid is not None else "its socket has no owner any more")


def cookie_of(fd: int) -> bytes:
    """The cookie of a descriptor's socket now; empty when there is none."""
    try:
        with Borrowed(fd) as link:
            return link.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
    except OSError:
        return b""


@lru_cache(maxsize=1)
def _netlink() -> socket.socket:
    """The socket on which the kernel is asked; for one thread at a time."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG)
    netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))  # one call less each time than settimeout's poll
    return netlink


class Borrowed:
    """A socket object on a descriptor that libzmq owns, and goes on owning."""

    __slots__ = ("_socket",)

    def __init__(self, fd: int) -> None:
        # As told so, Python need not ask the kernel what it is; an IPv6 address has room for any that we look at.
        self._socket = socket.SocketType(socket.AF_INET6, socket.SOCK_STREAM, 0, fd)

    def __enter__(self) -> socket.SocketType:
        return self._socket

    def __exit__(self, *_: object) -> None:
        self._socket.detach()


def _address(name: object) -> tuple[_Host, int]:
    if not isinstance(name, tuple):
        raise OSError(errno.EAFNOSUPPORT, "it is no TCP socket")
    return _host(name[0]), name[1]


@lru_cache(maxsize=1_024)
def _host(text: str) -> _Host:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return _Host(str(address), family, address.packed.ljust(16, b"\0"), address.is_loopback)


def _owner(source: _Host, source_port: int, target: _Host, target_port: int) -> int | None:
    """The uid of the socket that is connected from source to target; None for one that no process holds. Raises OSError."""
    ports = struct.pack("!HH", source_port, target_port)
    what = struct.pack("=BBBBI", source.family, socket.IPPROTO_TCP, 0, 0, _ANY_STATE)
    request = b"".join((what, ports, source.packed, target.packed, _ANY_INTERFACE, _NO_COOKIE))
    header = struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    try:
        netlink = _netlink()
        netlink.send(header + request)
        answer = netlink.recv(4096)
    except OSError:
        _netlink.cache_clear()  # an answer that comes later must not be taken for that to the next question
        raise
    if len(answer) >= _ERROR_BYTES and struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", answer, 16)
        raise OSError(-code, os.strerror(-code))
    return _owner_in(answer, ports, source, target)


def _owner_in(answer: bytes, ports: bytes, source: _Host, target: _Host) -> int | None:
    """The uid in an answer that is about this very connection. Where no connection matches, as none does that is bound to a device,
    the kernel tells of whoever *listens* on that port: anybody can have a connection come from a port on which another user listens.
    """
    if len(answer) < _ANSWER_BYTES:
        raise OSError(errno.EBADMSG, "the kernel's answer is cut short")
    state, told_ports, told_source, told_target = answer[17], answer[20:24], answer[24:40], answer[40:56]
    is_this = told_ports == ports and _is_same(told_source, source) and _is_same(told_target, target)
    uid, inode = struct.unpack_from("=II", answer, 80)
    return int(uid) if inode and is_this and state in _CONNECTED else None


def _is_same(told: bytes, host: _Host) -> bool:
    """Whether an address in an answer is this one; a socket of the other family shows it mapped."""
    return told in (host.packed, _MAPPED + host.packed[:4] if host.family == socket.AF_INET else host.packed)
