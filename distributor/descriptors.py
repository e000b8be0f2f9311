"""What the kernel tells of a connection by its descriptor, which libzmq owns; and ending one, for which libzmq has no call.

Knows descriptors. Does not know what a connection is for, nor when it has earned its end: watch.py.
"""

from __future__ import annotations

import array
import fcntl
import select
import socket
import struct
import termios
from collections.abc import Iterable
from typing import Final, NamedTuple

from dwrap.protocol.peer import Borrowed

_TCP_INFO_BYTES: Final = 60
_TCP_INFO_WITH_BYTES: Final = 136
_RECEIVED_AT: Final = 128  # tcpi_bytes_received
_SILENT_MS: Final = 10_000  # as long as keepalive takes (listen.py)
_SILENT_RETRANSMITS: Final = 3  # after 1.4 s: a host that was not spoken to for long need not have said anything


class Sample(NamedTuple):
    """How a connection stands: bytes received in all (None where the kernel does not count them: a Unix socket), bytes that wait to
    be read by us, whether there is room for more of ours.
    """

    received: int | None
    unread: int
    is_writable: bool


def evict(fd: int) -> None:
    """Ends the connection; libzmq sees a peer that closed."""
    try:
        with Borrowed(fd) as link:
            link.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is gone already


def is_silent(fd: int) -> bool:
    """Whether a TCP peer's host has not acknowledged for long what was sent to it. Keepalive does not ask while anything is under way,
    and a user timeout would also end connections whose host answers that it has no room, as that of a stopped wrapper does.
    """
    try:
        with Borrowed(fd) as link:
            return tells_of_silence(link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES))
    except OSError:
        return False


def tells_of_silence(info: bytes) -> bool:
    """The same of a struct tcp_info (<linux/tcp.h>)."""
    unacknowledged, last_acknowledged_ms = struct.unpack_from("=I", info, 24)[0], struct.unpack_from("=I", info, 56)[0]
    return unacknowledged > 0 and info[2] >= _SILENT_RETRANSMITS and last_acknowledged_ms >= _SILENT_MS


def has_room(fd: int) -> bool:
    """Whether its peer has read enough of what it was sent for more to be taken; also for one that is gone."""
    room = select.poll()
    room.register(fd, select.POLLOUT)
    return bool(room.poll(0))


def samples(fds: Iterable[int]) -> dict[int, Sample]:
    """How these connections stand; those that are gone are left out."""
    writable = select.poll()
    found: dict[int, tuple[int | None, int]] = {}
    for fd in fds:
        try:
            found[fd] = _received(fd), _unread(fd)
            writable.register(fd, select.POLLOUT)
        except OSError:
            found.pop(fd, None)
    has_room = {fd for fd, events in writable.poll(0) if events & select.POLLOUT}
    return {fd: Sample(*counts, fd in has_room) for fd, counts in found.items()}


def _received(fd: int) -> int | None:
    try:
        with Borrowed(fd) as link:
            info = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_WITH_BYTES)
    except OSError:
        return None
    return int(struct.unpack_from("=Q", info, _RECEIVED_AT)[0]) if len(info) >= _TCP_INFO_WITH_BYTES else None


def _unread(fd: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
