"""What the agent keeps of one attempt: output that nobody may have printed yet, entries, names about to be made, the result.

Pure. Knows offsets, limits, and the messages that these become. Does not know connections, time, or what other attempts there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from dwrap.agent.events import Action, Key, Kind, Send, Tell
from dwrap.agent.marks import Due
from dwrap.protocol import manifest as entries
from dwrap.protocol import messages
from dwrap.protocol.messages import INITIAL_OUTPUT_CREDIT_BYTES, MAX_DATA_BYTES, FieldsIn, ProtocolError, Value

MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024  # of one attempt; the runner keeps to it
MAX_MADE: Final = 256  # names; who makes more cannot be run again
STREAMS: Final = ("stdin", "stdout", "stderr")
ENDED_BY_AGENT: Final = 1  # KILL's number: its RESULT says `lost`


@dataclass(slots=True)
class Output:
    """What lies above what was printed of one stream. The runner sends no byte above the limit, so it is never more than 65,536 bytes."""

    start: int = 0  # the offset of the first byte that is kept
    limit: int = INITIAL_OUTPUT_CREDIT_BYTES
    kept: bytearray = field(default_factory=bytearray)

    def add(self, data: bytes) -> None:
        """The next bytes."""
        self.kept += data
        self.drop(self.limit - INITIAL_OUTPUT_CREDIT_BYTES)

    def credit(self, limit: int) -> None:
        """Bytes up to this offset may be sent; those that lie the first credit or more below it are printed."""
        if limit > self.limit:
            self.limit = limit
            self.drop(limit - INITIAL_OUTPUT_CREDIT_BYTES)

    def drop(self, below: int) -> None:
        """What lies below this offset will not be asked for again."""
        size = min(below - self.start, len(self.kept))
        if size > 0:
            del self.kept[:size]
            self.start += size

    def pieces(self) -> list[tuple[int, bytes]]:
        """All that is kept, with its offsets, as it may be sent."""
        places = range(0, len(self.kept), MAX_DATA_BYTES)
        return [(self.start + at, bytes(self.kept[at : at + MAX_DATA_BYTES])) for at in places]


@dataclass(slots=True)
class Stdin:
    """How much of stdin the runner has, by its own rules (streams.c)."""

    limit: int = 0
    received: int = 0

    def take(self, offset: int, size: int) -> bool:
        """False when there is a gap before this, or it goes beyond the credit, or all of it has come before."""
        end = offset + size
        if offset > self.received or end > self.limit or end <= self.received:
            return False
        self.received = end
        return True


@dataclass(slots=True)
class Manifest:
    """What the command wrote, as far as its runner has said it."""

    pieces: list[bytes] = field(default_factory=list)
    size: int = 0
    sent: int = 0  # how many pieces have gone out since this was last asked for

    def add(self, piece: bytes) -> bool:
        """False when there was no room for it."""
        if self.size + len(piece) > MAX_MANIFEST_BYTES:
            return False
        self.pieces.append(piece)
        self.size += len(piece)
        return True

    def unsent(self) -> list[bytes]:
        """The pieces that have not gone out, which now do."""
        pieces, self.sent = self.pieces[self.sent :], len(self.pieces)
        return pieces


@dataclass(slots=True)
class Made:
    """The names that the command was about to make, or why there can be no other attempt: the fields of MADE, by their number."""

    told: list[tuple[int, bytes, bool]] = field(default_factory=list)
    names: int = 0
    noted: int = 0  # up to this number the distributor has answered

    def add(self, seq: int, fields: bytes, ask: bool) -> bytes:
        """What the runner says; returns what is to be told. One that makes more than can be kept cannot be run again."""
        whole = b"\0" + fields
        self.names += whole.count(b"\0path=")
        if self.names > MAX_MADE and b"\0beyond=" not in whole:
            fields = messages.encode_fields([("beyond", f"it made more than {MAX_MADE} names")])
            whole = b"\0" + fields
        if b"\0beyond=" in whole:  # with no other attempt to come nobody needs the names
            self.told.clear()
        self.told.append((seq, fields, ask))
        return fields


@dataclass(slots=True)
class Attempt:
    """One attempt, from its assignment until its RESULT is acknowledged."""

    key: Key
    uid: int
    connection: int = 0  # the one on which it was last assigned, attached or killed: only there it is spoken of
    due: Due | None = None  # what its runner was given to apply, and has not yet
    stdin: Stdin = field(default_factory=Stdin)
    outputs: tuple[Output, Output] = field(default_factory=lambda: (Output(), Output()))
    manifest: Manifest = field(default_factory=Manifest)
    made: Made = field(default_factory=Made)
    signals: int = 0  # the number of the last one delivered
    lacks: bool = False  # output was asked for that is not kept
    outcome: bytes | None = None  # RESULT's fields, once it has ended
    ended_at: float = 0.0
    sent_at: float = 0.0

    @property
    def name(self) -> str:
        """What REGISTER calls it."""
        return f"{self.key[0]}:{self.key[1]}:{self.uid}"

    def message(self, verb: str, pairs: FieldsIn = (), *bodies: bytes) -> Send:
        """A message about it."""
        return Send(tuple(messages.encode(verb, (("job", self.key[0]), ("attempt", self.key[1]), *pairs), *bodies)))

    def said(self, stream: int, offset: int, data: bytes) -> Send:
        """OUTPUT."""
        return self.message("OUTPUT", (("stream", STREAMS[stream]), ("offset", offset)), data)

    def names(self, seq: int, fields: bytes, ask: bool) -> Send:
        """MADE."""
        verb, own = self.message("MADE", (("seq", seq), *((("ask", 1),) if ask else ()))).frames
        return Send((verb, own + fields))

    def names_again(self) -> list[Send]:
        """Every MADE, for a new connection. One that was answered is no question any more."""
        return [self.names(seq, fields, ask and seq > self.made.noted) for seq, fields, ask in self.made.told]

    def written(self) -> list[Send]:
        """The MANIFESTs that have not been sent on this connection."""
        return [self.message("MANIFEST", (), piece) for piece in self.manifest.unsent()]

    def ended(self) -> list[Send]:
        """What is left of the MANIFESTs, then RESULT, if it has ended."""
        if self.outcome is None:
            return []
        verb, own = self.message("RESULT").frames
        outcome = _without_output(self.outcome) if self.lacks else self.outcome
        return [*self.written(), Send((verb, own + outcome))]

    def join(self, connection: int) -> None:
        """It is spoken of on this connection from now on."""
        if self.connection != connection:
            self.connection = connection
            self.manifest.sent = 0

    def attach(self, have: Sequence[int], limits: Sequence[int]) -> list[Action]:
        """All that a submitter lacks that has so many bytes of stdout and stderr, and gave them such credit."""
        pairs = (("stream", "stdin"), ("limit", self.stdin.limit), ("received", self.stdin.received))
        again: list[Action] = [self.message("CREDIT", pairs)]  # it comes first: from here on nothing is left out
        for stream, output, offset, limit in zip((1, 2), self.outputs, have, limits, strict=True):
            if self.outcome is None:
                again.append(Tell(self.key, Kind.CREDIT, stream, limit))
            output.credit(limit)
            self.lacks |= offset < output.start
            output.drop(offset)
            again += [self.said(stream, at, data) for at, data in output.pieces()]
        if self.lacks and self.outcome is None:  # nobody can make anything of what it will still say
            again.append(Tell(self.key, Kind.KILL, number=ENDED_BY_AGENT))
        self.manifest.sent = 0
        return [*again, *self.written(), *self.ended()]


def of_former(key: Key, uid: int, outcome: bytes, written: bytes) -> Attempt:
    """One that a former incarnation's runner ended: its output died with that agent. A record that cannot be read says nothing else."""
    try:
        fields = messages.decode_fields(outcome)
        taken, *ends = [fields.number(name, 0) for name in ("stdin_taken", "stdout_bytes", "stderr_bytes")]
        pieces = entries.pieces(entries.parse(written))
    except ProtocolError as error:
        outcome = failure("lost", f"its agent died, and what is left of it cannot be read: {error}")
        taken, ends, pieces = 0, [0, 0], []
    attempt = Attempt(key, uid, stdin=Stdin(taken, taken), outputs=(Output(ends[0]), Output(ends[1])), outcome=outcome)
    attempt.manifest = Manifest(pieces, sum(map(len, pieces)))
    return attempt


def failure(error: str, reason: str, more: FieldsIn = ()) -> bytes:
    """RESULT's fields of an attempt that has no status."""
    return messages.encode_fields([("error", error), ("reason", messages.one_line(reason)), *more])


def _without_output(outcome: bytes) -> bytes:
    """What is left of a result when its output is not: a status means nothing without what was printed on the way to it."""
    try:
        fields = messages.decode_fields(outcome)
    except ProtocolError:
        return failure("lost", "its output was lost with the agent")
    if fields.get("status") is None:
        return outcome
    again: list[tuple[str, Value]] = [("repeat", 1)] if fields.flag("repeat") else []
    again += [("outputs", outputs) for outputs in fields.texts("outputs")]
    return failure("lost", "it ended, but its output was lost with the agent", [*again, *(("made", name) for name in fields.all("made"))])
