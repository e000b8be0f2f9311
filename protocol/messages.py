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
MAX_STRINGS: Final = 262_144
INITIAL_OUTPUT_CREDIT_BYTES: Final = 65_536
OFFER_SECONDS: Final = 2.0

_VERB = re.compile(rb"[A-Z]{1,16}\Z")
_KEY = re.compile(rb"[a-z0-9_]{1,32}\Z")
_NAME = re.compile(rb"[0-9A-Za-z._-]{1,64}\Z")
_NUMBER = re.compile(rb"[0-9]{1,18}\Z")
_MAX_KNOWN_KEYS: Final = 1_024
_known_keys: set[bytes] = set()  # keys that were found well-formed: the same few dozen come in every message

Value = bytes | str | int
FieldsIn = Iterable[tuple[str, Value]]


class ProtocolError(ValueError):
    """A message that does not follow PROTOCOL.md. The text says what is wrong, in a line fit for `reason`."""


class Fields:
    """The fields of one message. Values are bytes; the typed getters check and convert."""

    __slots__ = ("_all",)

    def __init__(self, pairs: dict[bytes, list[bytes]]) -> None:
        self._all = pairs

    def get(self, key: str) -> bytes | None:
        """The first value of `key`, or None."""
        values = self._all.get(key.encode())
        return values[0] if values else None

    def need(self, key: str) -> bytes:
        """The first value of `key`. Raises ProtocolError when there is none."""
        values = self._all.get(key.encode())
        if not values:
            raise ProtocolError(f"field {key} is missing")
        return values[0]

    def text(self, key: str, default: str = "") -> str:
        """The value as text; bytes that are not UTF-8 are kept as surrogates (os.fsdecode's convention)."""
        value = self.get(key)
        return default if value is None else value.decode("utf-8", "surrogateescape")

    def name(self, key: str) -> str:
        """A required value of the form of a job id. Raises ProtocolError."""
        value = self.need(key)
        if not _NAME.match(value):
            raise ProtocolError(f"field {key} is not of the form [0-9A-Za-z._-]{{1,64}}")
        return value.decode("ascii")

    def number(self, key: str, default: int | None = None) -> int:
        """A number without sign. Raises ProtocolError when malformed, or missing without a default."""
        value = self.get(key)
        if value is None:
            if default is None:
                raise ProtocolError(f"field {key} is missing")
            return default
        if not _NUMBER.match(value):
            raise ProtocolError(f"field {key} is not a number")
        return int(value)

    def signed(self, key: str, default: int = 0) -> int:
        """A number that may be negative. Raises ProtocolError when malformed."""
        value = self.get(key)
        if value is None:
            return default
        if not _NUMBER.match(value.removeprefix(b"-")):
            raise ProtocolError(f"field {key} is not a number")
        return int(value)

    def flag(self, key: str) -> bool:
        """True when the value is 1."""
        return self.get(key) == b"1"

    def all(self, key: str) -> list[bytes]:
        """Every value of `key`, in order."""
        return self._all.get(key.encode(), [])

    def texts(self, key: str) -> tuple[str, ...]:
        """Every value of `key` as text, in order."""
        return tuple(value.decode("utf-8", "surrogateescape") for value in self.all(key))


def encode_fields(pairs: FieldsIn) -> bytes:
    """Fields to one frame. Raises ProtocolError when a value holds NUL or a key is malformed."""
    out: list[bytes] = []
    for key, value in pairs:
        if isinstance(value, int):
            raw = b"%d" % value
        elif isinstance(value, str):
            raw = value.encode("utf-8", "surrogateescape")
        else:
            raw = value
        if b"\0" in raw:
            raise ProtocolError(f"field {key} holds a NUL byte")
        out.append(key.encode() + b"=" + raw + b"\0")
    return b"".join(out)


def decode_fields(frame: bytes) -> Fields:
    """One frame to fields. Raises ProtocolError."""
    if not frame:
        return Fields({})
    if len(frame) > MAX_FIELDS_BYTES:
        raise ProtocolError("fields frame is too large")
    if frame[-1] != 0:
        raise ProtocolError("fields frame does not end in NUL")
    items = frame[:-1].split(b"\0")
    if len(items) > MAX_FIELDS:
        raise ProtocolError("too many fields")
    pairs: dict[bytes, list[bytes]] = {}
    for item in items:
        key, equals, value = item.partition(b"=")
        known = pairs.get(key)
        if known is not None:
            known.append(value)
            continue
        if not equals or (key not in _known_keys and not _is_key(key)):
            raise ProtocolError("a field is not of the form key=value")
        pairs[key] = [value]
    return Fields(pairs)


def _is_key(key: bytes) -> bool:
    if not _KEY.match(key):
        return False
    if len(_known_keys) < _MAX_KNOWN_KEYS:
        _known_keys.add(key)
    return True


def encode(verb: str, pairs: FieldsIn = (), *bodies: bytes) -> list[bytes]:
    """A message as its frames. Raises ProtocolError as encode_fields does."""
    return [verb.encode(), encode_fields(pairs), *bodies]


def parse(frames: Sequence[bytes]) -> tuple[str, Fields, Sequence[bytes]]:
    """Frames to (verb, fields, bodies), limits checked. Raises ProtocolError."""
    if not 2 <= len(frames) <= MAX_FRAMES:
        raise ProtocolError("a message has 2 to 8 frames")
    if not _VERB.match(frames[0]):
        raise ProtocolError("the verb is malformed")
    return frames[0].decode("ascii"), decode_fields(frames[1]), frames[2:]


def encode_strings(strings: Iterable[bytes]) -> bytes:
    """An argv or env body. Raises ProtocolError when a string holds NUL."""
    out: list[bytes] = []
    for string in strings:
        if b"\0" in string:
            raise ProtocolError("a string holds a NUL byte")
        out.append(string + b"\0")
    return b"".join(out)


def decode_strings(body: bytes) -> list[bytes]:
    """An argv or env body to its strings. Raises ProtocolError."""
    if not body:
        return []
    if body[-1] != 0:
        raise ProtocolError("a body of strings does not end in NUL")
    if body.count(b"\0") > MAX_STRINGS:
        raise ProtocolError("too many strings in a body")
    return body[:-1].split(b"\0")


def one_line(text: str) -> str:
    """Text as it may stand in `reason`: one line, printable, at most MAX_REASON_BYTES bytes of UTF-8."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
