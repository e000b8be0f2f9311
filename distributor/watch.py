"""Which connections make the distributor grow: they send a message that never ends, or do not read what they ask for.

libzmq's limits are per frame, and a message counts as one however many frames it has; what waits for a peer that does not read is
bounded by credit only for streams. So when the process has grown by GROWTH_BYTES, each connection is looked at: one that went on
sending, but completed no message since the last look (or that has no room, and was sent more) earns a strike; with STRIKES in a row, or
beyond the limits at once, it is ended. Every LOOK_SECONDS it looks all the same, for those that began a long message and do not end it.
Of Unix sockets nobody counts bytes: what can be seen is that something comes just now. So one of them earns a strike when that is so and
the process has grown since its last message, however slowly; and after ALERT_BYTES of growth, for a while, it looks more often.
A submitter that was wronged so attaches again and loses nothing.
Pure. Knows counts. Does not know sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from dwrap.distributor.descriptors import Sample

GROWTH_BYTES: Final = 32 * 1024 * 1024
STRIKES: Final = 3
MAX_MESSAGE_BYTES: Final = 24 * 1024 * 1024  # GO with the longest argv and environment that Linux takes is smaller
LOOK_SECONDS: Final = 5.0
STALL_SECONDS: Final = 60.0
ALERT_BYTES: Final = 64 * 1024 * 1024
ALERT_SECONDS: Final = 60.0  # then that is what the process needs
ALERT_LOOK_SECONDS: Final = 0.1
_STALLED_BYTES: Final = 256 * 1024
MAX_BEGUN_BYTES: Final = 256 * 1024 * 1024  # of messages that are not whole, all connections together
_HANDSHAKE_BYTES: Final = 32 * 1024  # and what else is no message
_PING_BYTES: Final = 64  # a second
_BEGUN_BYTES: Final = 64 * 1024  # what less is begun is nobody's fault
MAX_OWED_BYTES: Final = 64 * 1024 * 1024
_LEAST_RECEIVED: Final = 16 * 1024  # between two looks; less is what waits in a busy moment
_LEAST_OWED: Final = 1024 * 1024
_ENDLESS: Final = "it sends a message without end"


class Counts(Protocol):
    """What a connection has done so far: messages that were whole and their bytes on the wire, bytes that it was sent."""

    messages: int
    heard_bytes: int
    told_bytes: int


@dataclass(slots=True)
class _Track:
    messages: int = 0
    received: int = 0  # when it last had completed a message
    seen: int = 0  # at the last look
    told: int = 0  # when it last had room
    seen_told: int = 0
    strikes: int = 0
    deaf_strikes: int = 0
    since: float = 0.0  # when it last had completed a message
    met: float = 0.0
    begun_at: float = 0.0  # the look after which it began the message at hand
    resident: int = 0  # bytes of the process when it last had completed a message, or since

    def begun(self, now: float) -> int:
        """Bytes of a message that is not whole, or waits to be handled."""
        return self.seen - self.received - int(_PING_BYTES * (now - self.since))


class Watch:
    """Remembers how each connection stood at the last look."""

    def __init__(self) -> None:
        self._tracks: dict[int, _Track] = {}
        self._calm: int | None = None
        self._looked_at = 0.0
        self._has_uncounted = False  # a Unix socket was among those looked at last
        self._low: int | None = None  # the process before it grew
        self._low_at = 0.0

    def is_due(self, resident: int, now: float) -> bool:
        """Whether the process, of this many bytes now, has grown enough since the last look to ask who it is, or that is long ago."""
        if self._calm is None or resident < self._calm:
            self._calm = resident
        return (
            resident - self._calm >= GROWTH_BYTES
            or now - self._looked_at >= LOOK_SECONDS
            or (self._is_alert(resident, now) and self._has_uncounted and now - self._looked_at >= ALERT_LOOK_SECONDS)
        )

    def _is_alert(self, resident: int, now: float) -> bool:
        if self._low is None or resident < self._low or now - self._low_at > ALERT_SECONDS:
            self._low = resident
        if resident - self._low < ALERT_BYTES:
            self._low_at = now
            return False
        return True

    def forget(self, fd: int) -> None:
        """The descriptor is, or was, another connection's."""
        self._tracks.pop(fd, None)

    def look(
        self, resident: int, now: float, counts: Mapping[int, Counts | None], found: Mapping[int, Sample]
    ) -> list[tuple[int, str]]:  # fmt: skip
        """The descriptors of connections to be ended, each with why. `counts` has None for one that has completed no message yet."""
        has_grown = self._calm is not None and resident - self._calm >= GROWTH_BYTES
        self._calm, self._looked_at = resident, now
        self._has_uncounted = any(sample.received is None for sample in found.values())
        ends: dict[int, str] = {}
        for fd, sample in found.items():
            track = self._tracks.setdefault(fd, _Track(since=now, met=now, begun_at=now, resident=resident))
            track.resident = min(track.resident, resident)
            if why := self._judge(track, counts.get(fd), sample, now, resident, has_grown):
                ends[fd] = why
        begun = {fd: size for fd in found if (size := self._tracks[fd].begun(now)) >= _BEGUN_BYTES}
        if sum(begun.values()) > MAX_BEGUN_BYTES:
            ends |= {fd: _ENDLESS for fd in begun if self._tracks[fd].begun_at < now}
        return [*ends.items()]

    @staticmethod
    def _judge(track: _Track, counts: Counts | None, sample: Sample, now: float, resident: int, has_grown: bool) -> str:
        messages, told = (counts.messages, counts.told_bytes) if counts is not None else (0, 0)
        received = sample.received if sample.received is not None else track.seen + (_LEAST_RECEIVED if sample.is_sending else 0)
        if messages != track.messages:
            heard = counts.heard_bytes + _HANDSHAKE_BYTES + int(_PING_BYTES * (now - track.met)) if counts is not None else 0
            baseline = received if sample.received is None else min(received, heard)
            track.messages, track.received, track.since, track.strikes, track.resident = messages, baseline, now, 0, resident
        if sample.is_writable:
            track.told = told
        is_endless = received > track.received and received - track.seen >= _LEAST_RECEIVED
        is_deaf = not sample.is_writable and told - track.seen_told >= _LEAST_OWED
        track.seen, track.seen_told = received, told
        if is_endless:
            track.strikes += has_grown if sample.received is not None else resident - track.resident >= GROWTH_BYTES
        elif sample.received is not None:  # of a Unix socket it is chance whether anything waits in that moment
            track.strikes = 0
        track.deaf_strikes = track.deaf_strikes + has_grown if is_deaf else 0
        begun = track.begun(now)
        if begun < _BEGUN_BYTES:
            track.begun_at = now
        is_stalled = begun > _STALLED_BYTES and now - track.begun_at > STALL_SECONDS
        if is_stalled or begun > MAX_MESSAGE_BYTES or (is_endless and track.strikes >= STRIKES):
            return _ENDLESS
        if told - track.told > MAX_OWED_BYTES or (is_deaf and track.deaf_strikes >= STRIKES):
            return "it does not read what it asked for"
        return ""
