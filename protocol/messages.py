"""Messages of the dwrap protocol: bytes to fields and back (PROTOCOL.md is the grammar).

Knows the grammar and its limits. Does not know sockets, who may send what, or what a message means.
Everything that arrives from a peer passes through `parse`, so the limits are checked in one place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

VERSION: Final = 1
DEFAULT_PORT: Final = 7776
DEFAULT_HTTP_PORT: Final = 7778

MAX_FRAMES: Final = 8
MAX_FRAME_BYTES: Final = 8 * 1024 * 1024
MAX_FIELDS_BYTES: Final = 256 * 1024
MAX_FIELDS: Final = 4096
MAX_DATA_BYTES: Final = 32 * 1024
MAX_REASON_BYTES: Final = 1024
INITIAL_OUTPUT_CREDIT_BYTES: Final = 65_536
OFFER_SECONDS: Final = 2.0

#: How many bodies messages that carry some have. A frame that is taken out on the way is not noticed by libzmq, and makes one message of
#: two: of these that shows here, of GO in `check_whole`, and of others in what then stands in the place of a verb or of fields.
_BODIES: Final = {
    "ASSIGN": range(3, 6), "MANIFEST": range(1, 2), "INPUT": range(2), "OUTPUT": range(1, 2), "RESULT": range(2), "REPLY": range(1, 2)
}  # fmt: skip
_VERB = re.compile(rb"[A-Z]{1,16}\Z")
_KEY = re.compile(rb"[a-z0-9_]{1,32}\Z")
_NAME = re.compile(rb"[0-9A-Za-z._-]{1,64}\Z")
_MAX_DIGITS: Final = 18
_MAX_KNOWN: Final = 1_024
_known_keys: dict[bytes, str] = {}  # keys that were found well-formed: the same few dozen come in every message
_known_verbs: dict[bytes, str] = {}

Value = bytes | str | int
FieldsIn = Iterable[tuple[str, Value]]


class ProtocolError(ValueError):
    """A message that does not follow PROTOCOL.md. The text says what is wrong, in a line fit for `reason`."""


class FrameLostError(ProtocolError):
    """Somebody on the way has taken a frame out, or the peer does not know the message: nothing more on that connection makes sense."""


def is_name(value: bytes) -> bool:
    """Whether this has the form of a job id: [0-9A-Za-z._-]{1,64}."""
    return _NAME.match(value) is not None


class Fields:
    """The fields of one message. Values are bytes; the typed getters check and convert."""

    __slots__ = ("_first", "_more", "get")

    def __init__(self, first: dict[str, bytes], more: dict[str, list[bytes]]) -> None:
        """`first` has the first value of each key, `more` those that followed it."""
        self._first = first
        self._more = more
        self.get = first.get  #: the first value of a key, or None

    def need(self, key: str) -> bytes:
        """The first value of `key`. Raises ProtocolError when there is none."""
        try:
            return self._first[key]
        except KeyError:
            raise ProtocolError(f"field {key} is missing") from None

    def text(self, key: str, default: str = "") -> str:
        """The value as text; bytes that are not UTF-8 are kept as surrogates (os.fsdecode's convention)."""
        value = self.get(key)
        return default if value is None else value.decode("utf-8", "surrogateescape")

    def name(self, key: str) -> str:
        """A required value of the form of a job id. Raises ProtocolError."""
        value = self.need(key)
        if not is_name(value):
            raise ProtocolError(f"field {key} is not of the form [0-9A-Za-z._-]{{1,64}}")
        return value.decode("ascii")

    def number(self, key: str, default: int | None = None) -> int:
        """A number without sign. Raises ProtocolError when malformed, or missing without a default."""
        value = self.get(key)
        if value is None:
            if default is None:
                raise ProtocolError(f"field {key} is missing")
            return default
        if len(value) > _MAX_DIGITS or not value.isdigit():
            raise ProtocolError(f"field {key} is not a number")
        return int(value)

    def signed(self, key: str, default: int = 0) -> int:
        """A number that may be negative. Raises ProtocolError when malformed."""
        value = self.get(key)
        if value is None:
            return default
        digits = value.removeprefix(b"-")
        if len(digits) > _MAX_DIGITS or not digits.isdigit():
            raise ProtocolError(f"field {key} is not a number")
        return int(value)

    def flag(self, key: str) -> bool:
        """True when the value is 1."""
        return self.get(key) == b"1"

    def all(self, key: str) -> list[bytes]:
        """Every value of `key`, in order."""
        first = self._first.get(key)
        return [] if first is None else [first, *self._more.get(key, ())]

    def texts(self, key: str) -> tuple[str, ...]:
        """Every value of `key` as text, in order."""
        return tuple(value.decode("utf-8", "surrogateescape") for value in self.all(key))


def encode_fields(pairs: FieldsIn) -> bytes:
    """Fields to one frame. Raises ProtocolError when a value holds NUL or a key is malformed."""
    out: list[str] = []
    for key, value in pairs:
        text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
        out.append(f"{key}={text}\0")
    whole = "".join(out)
    if whole.count("\0") != len(out):
        raise ProtocolError("a field holds a NUL byte")
    return whole.encode("utf-8", "surrogateescape")


def decode_fields(frame: bytes) -> Fields:
    """One frame to fields. Raises ProtocolError."""
    if not frame:
        return Fields({}, {})
    if len(frame) > MAX_FIELDS_BYTES:
        raise ProtocolError("fields frame is too large")
    if frame[-1] != 0:
        raise ProtocolError("fields frame does not end in NUL")
    items = frame[:-1].split(b"\0")
    if len(items) > MAX_FIELDS:
        raise ProtocolError("too many fields")
    first: dict[str, bytes] = {}
    more: dict[str, list[bytes]] = {}
    for item in items:
        raw, equals, value = item.partition(b"=")
        key = _known_keys.get(raw) or _learn(raw, _KEY, _known_keys)
        if not equals or not key:
            raise ProtocolError("a field is not of the form key=value")
        if key in first:
            more.setdefault(key, []).append(value)
        else:
            first[key] = value
    return Fields(first, more)


def _learn(word: bytes, form: re.Pattern[bytes], known: dict[bytes, str]) -> str:
    """A word as text, remembered; empty when it is not of the form."""
    if not form.match(word):
        return ""
    text = word.decode("ascii")
    if len(known) < _MAX_KNOWN:
        known[word] = text
    return text


def encode(verb: str, pairs: FieldsIn = (), *bodies: bytes) -> list[bytes]:
    """A message as its frames. Raises ProtocolError as encode_fields does."""
    return [verb.encode(), encode_fields(pairs), *bodies]


def parse(frames: Sequence[bytes]) -> tuple[str, Fields, Sequence[bytes]]:
    """Frames to (verb, fields, bodies), limits checked. Raises ProtocolError, FrameLostError."""
    if not 2 <= len(frames) <= MAX_FRAMES:
        raise ProtocolError("a message has 2 to 8 frames")
    verb = _known_verbs.get(frames[0]) or _learn(frames[0], _VERB, _known_verbs)
    if not verb:
        raise ProtocolError("the verb is malformed")
    if verb in _BODIES and len(frames) - 2 not in _BODIES[verb]:
        raise FrameLostError(f"{verb} has not {len(frames) - 2} bodies; has it lost a frame on its way?")
    return verb, decode_fields(frames[1]), frames[2:]


def encode_strings(strings: Iterable[bytes]) -> bytes:
    """An argv or env body. Raises ProtocolError when a string holds NUL."""
    out: list[bytes] = []
    for string in strings:
        if b"\0" in string:
            raise ProtocolError("a string holds a NUL byte")
        out.append(string + b"\0")
    return b"".join(out)


def check_whole(fields: Fields, argv: bytes, env: bytes) -> None:
    """Raises ProtocolError when these are not the bodies that GO's fields speak of: a frame that somebody on the way takes out is
    not noticed by libzmq, and the next one would stand in its place.
    """
    for name, body in (("argv_bytes", argv), ("env_bytes", env)):
        if fields.get(name) is not None and fields.number(name) != len(body):
            raise ProtocolError(f"the message has lost a frame on its way: {name} is {fields.number(name)}, and {len(body)} came")


def one_line(text: str) -> str:
    """Text as it may stand in `reason`: one line, printable, at most MAX_REASON_BYTES bytes of UTF-8."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
