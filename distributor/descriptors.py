"""What the kernel tells of a connection by its descriptor, which libzmq owns; and ending one, for which libzmq has no call.

Knows descriptors. Does not know what a connection is for, nor when it has earned its end: watch.py.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from dwrap.protocol.peer import Borrowed

_TCP_INFO_BYTES: Final = 60
_TCP_INFO_WITH_BYTES: Final = 136
_RECEIVED_AT: Final = 128  # tcpi_bytes_received
_MOMENT_SECONDS: Final = 0.003
_PING_BYTES: Final = 64  # and those of a PONG: who waits says no more than that
_SILENT_MS: Final = 10_000  # as long as keepalive takes (listen.py)
_SILENT_RETRANSMITS: Final = 3  # after 1.4 s: a host that was not spoken to for long need not have said anything


class Sample(NamedTuple):
    """How a connection stands: bytes received in all (None where the kernel does not count them: a Unix socket), for want of that
    whether more of them than a PING has waited to be read in the moment of the look, and whether there is room for more of ours.
    """

    received: int | None
    is_sending: bool
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
    received = {fd: _received(fd) for fd in fds}
    writable = select.poll()
    uncounted = select.poll()
    for fd, count in received.items():
        writable.register(fd, select.POLLOUT)
        if count is None:
            uncounted.register(fd, select.POLLIN)
    sending = _sending(uncounted) if None in received.values() else set()
    events = dict(writable.poll(0))
    return {
        fd: Sample(count, fd in sending, bool(events.get(fd, 0) & select.POLLOUT))
        for fd, count in received.items()
        if not events.get(fd, 0) & select.POLLNVAL
    }


def _sending(uncounted: select.poll) -> set[int]:
    """On which of these something arrives, for a moment at most: libzmq's thread reads it as fast as it comes, so that at one instant
    it is chance whether anything of a flood is there.
    """
    until = time.monotonic() + _MOMENT_SECONDS
    sending: set[int] = set()
    while time.monotonic() < until and (found := uncounted.poll(1)):
        for fd, _ in found:
            if _waiting(fd) > _PING_BYTES:
                sending.add(fd)
                uncounted.unregister(fd)
    return sending


def _waiting(fd: int) -> int:
    """How many bytes wait to be read."""
    try:
        return int(struct.unpack("=i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])
    except OSError:
        return 0


def _received(fd: int) -> int | None:
    try:
        with Borrowed(fd) as link:
            info = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_WITH_BYTES)
    except OSError:
        return None
    return int(struct.unpack_from("=Q", info, _RECEIVED_AT)[0]) if len(info) >= _TCP_INFO_WITH_BYTES else None
