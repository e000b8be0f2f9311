"""messages.py: the golden vectors, and that what is encoded comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwrap.protocol import messages
from dwrap.protocol.messages import (
    Fields,
    ProtocolError,
    decode_fields,
    encode,
    encode_fields,
    encode_strings,
    one_line,
    parse,
)

VECTORS = Path(messages.__file__).parent / "vectors.txt"
KEYS = st.from_regex(r"[a-z0-9_]{1,32}\Z", fullmatch=True)
VALUES = st.binary(max_size=64).filter(lambda value: b"\0" not in value)


def read_vectors() -> tuple[dict[str, tuple[list[bytes], bytes]], dict[str, list[bytes]]]:
    """The good vectors (frames and wire bytes) and the bad ones (frames), by name."""
    good: dict[str, tuple[list[bytes], bytes]] = {}
    bad: dict[str, list[bytes]] = {}
    frames: list[bytes] = []
    name = ""
    for line in VECTORS.read_text(encoding="ascii").splitlines():
        word, _, rest = line.partition(" ")
        if word in ("vector", "bad"):
            name, frames = rest.split(" ")[0], []
            if word == "bad":
                bad[name] = frames
        elif word == "frame":
            frames.append(bytes.fromhex(rest))
        elif word == "wire":
            good[name] = (frames, bytes.fromhex(rest))
    return good, bad


GOOD, BAD = read_vectors()


def zmtp(frames: list[bytes]) -> bytes:
    """The frames as ZMTP 3.1 puts them on the wire."""
    out = b""
    for number, frame in enumerate(frames):
        more = int(number < len(frames) - 1)
        out += bytes([more, len(frame)]) if len(frame) < 256 else bytes([more | 2]) + len(frame).to_bytes(8, "big")
        out += frame
    return out


@pytest.mark.parametrize("name", GOOD)
def test_golden_vectors(name: str) -> None:
    frames, wire = GOOD[name]
    assert zmtp(frames) == wire
    verb, _, bodies = parse(frames)
    assert [verb.encode(), frames[1], *bodies] == frames


@pytest.mark.parametrize("name", BAD)
def test_bad_vectors_are_refused(name: str) -> None:
    with pytest.raises(ProtocolError):
        parse(BAD[name])


def test_there_are_vectors_of_both_kinds() -> None:
    assert len(GOOD) > 5
    assert BAD


@given(st.lists(st.tuples(KEYS, VALUES), max_size=20))
def test_fields_come_back(pairs: list[tuple[str, bytes]]) -> None:
    fields = decode_fields(encode_fields(pairs))
    for key in {key for key, _ in pairs}:
        assert fields.all(key) == [value for known, value in pairs if known == key]


@given(st.lists(st.binary(max_size=80), max_size=10))
def test_any_frames_are_parsed_or_refused(frames: list[bytes]) -> None:
    try:
        verb, fields, bodies = parse(frames)
    except ProtocolError:
        return
    assert verb.isupper()
    assert isinstance(fields, Fields)
    assert list(bodies) == frames[2:]


@given(st.text())
def test_a_reason_is_one_printable_line(text: str) -> None:
    line = one_line(text)
    assert "\n" not in line
    assert len(line.encode()) <= messages.MAX_REASON_BYTES
    assert line.isprintable()


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"a=b", "NUL"),
        (b"ab\0", "key=value"),
        (b"A=b\0", "key=value"),
        (b"=b\0", "key=value"),
        (b"a=b\0" * 4097, "too many"),
        (b"a=" + b"b" * messages.MAX_FIELDS_BYTES + b"\0", "too large"),
    ],
)
def test_malformed_fields(frame: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        decode_fields(frame)


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", "1" * 19, " 1", "\uff11"])
def test_malformed_numbers(value: str) -> None:
    with pytest.raises(ProtocolError):
        decode_fields(encode_fields([("n", value)])).number("n")


def test_getters() -> None:
    fields = decode_fields(encode_fields([("n", 7), ("s", "-8"), ("t", b"\xff"), ("f", 1), ("j", "a.b-c_9"), ("r", "1"), ("r", "2")]))
    assert (fields.number("n"), fields.signed("s"), fields.flag("f"), fields.name("j")) == (7, -8, True, "a.b-c_9")
    assert fields.text("t") == "\udcff"
    assert fields.texts("r") == ("1", "2")
    assert (fields.number("none", 3), fields.get("none"), fields.text("none", "x")) == (3, None, "x")
    for get in (fields.need, fields.number, fields.name):
        with pytest.raises(ProtocolError, match="missing"):
            get("none")


def test_nul_is_not_encoded() -> None:
    with pytest.raises(ProtocolError):
        encode("GO", [("key", "a\0b")])
    with pytest.raises(ProtocolError):
        encode_strings([b"a\0b"])


@pytest.mark.parametrize(
    ("verb", "bodies"), [("INPUT", 2), ("OUTPUT", 0), ("OUTPUT", 2), ("ASSIGN", 2), ("ASSIGN", 6), ("MANIFEST", 2)]
)
def test_a_message_that_lost_a_frame_or_ran_into_the_next_is_none(verb: str, bodies: int) -> None:
    with pytest.raises(messages.FrameLostError):
        parse(encode(verb, [("job", "j")], *[b"x"] * bodies))


@pytest.mark.parametrize(("verb", "bodies"), [("INPUT", 0), ("INPUT", 1), ("OUTPUT", 1), ("ASSIGN", 3), ("ASSIGN", 5), ("RESULT", 1)])
def test_the_numbers_of_bodies_that_messages_have(verb: str, bodies: int) -> None:
    assert len(parse(encode(verb, [("job", "j")], *[b"x"] * bodies))[2]) == bodies
