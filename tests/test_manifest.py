"""manifest.py: entries come back, what is none is refused, and C reads and writes the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from dwrap.protocol import manifest as m
from dwrap.protocol.manifest import Entry
from dwrap.protocol.messages import ProtocolError

TOP = Path(__file__).resolve().parent.parent
KINDS = some.sampled_from([b"D", b"F", b"G", b"R"])
PATHS = some.binary(max_size=60).filter(lambda path: b"\0" not in path).map(lambda path: b"/" + path)
SIZES, TIMES = some.integers(0, 2**64 - 1), some.integers(0, 2**63 - 1)
ENTRIES = some.builds(m.make, KINDS, PATHS, SIZES, SIZES, TIMES, TIMES)
ODD = (
    b"F 1 2 3 4 relative\0", b"F 1 2 3 4 /no-nul", b"F 1 2 3 /three\0", b"X 1 2 3 4 /kind\0", b"F  1 2 3 4 /space\0", b"F -1 2 3 4 /sign\0",
    b"F 18446744073709551616 2 3 4 /ino\0", b"F 1 2 9223372036854775808 4 /mtime\0", b"F 1 2 3 9223372036854775808 /ctime\0",
    b"F 000000000000000000001 2 3 4 /digits\0", b"F 1 2 3 4 /" + b"x" * 4095 + b"\0", b"\0", b"F 1 2 3 4 /a\0\0", b"F", b"F 1 2 3 4 \0",
    b"FF 1 2 3 4 /two\0", b"F 1 2 3 4 /a\0 ",
)  # fmt: skip
FINE = (
    b"", b"G 00 0 0 0 /a\nb\0",
    b"F 18446744073709551615 18446744073709551615 9223372036854775807 0 /\0", b"D 1 2 3 4 /" + b"x" * 4094 + b"\0",
)  # fmt: skip


@given(some.lists(ENTRIES, max_size=30))
def test_entries_come_back(entries: list[Entry]) -> None:
    assert m.parse(m.join(entries)) == entries


@given(some.lists(some.builds(m.make, KINDS, some.binary(max_size=4_000).map(lambda path: b"/" + path.replace(b"\0", b"")))))
def test_pieces_are_small_and_whole(entries: list[Entry]) -> None:
    pieces = m.pieces(entries * 20)
    assert all(0 < len(piece) <= m.MAX_PIECE_BYTES for piece in pieces)
    assert [entry for piece in pieces for entry in m.parse(piece)] == entries * 20


@given(some.binary(max_size=200))
def test_any_bytes_are_entries_or_refused(piece: bytes) -> None:
    try:
        entries = m.parse(piece)
    except ProtocolError:
        return
    assert m.join(entries) == piece


@pytest.mark.parametrize("piece", ODD)
def test_what_is_no_entry_is_refused(piece: bytes) -> None:
    with pytest.raises(ProtocolError):
        m.parse(piece)


def test_where_an_entry_belongs() -> None:
    assert [m.make(kind, b"/a/b").directory for kind in (b"D", b"F", b"G", b"R")] == [b"/a/b", b"/a", b"/a", b"/a/b"]
    assert (m.parent(b"/a"), m.parent(b"/")) == (b"/", b"/")


READER = r"""
#include "protocol/manifest.h"
#include <stdlib.h>
int main(int argc, char **argv)
{
    (void)argv;
    static char piece[1 << 16], again[1 << 16];
    size_t length = fread(piece, 1, sizeof piece, stdin), written = 0;
    struct entries rest = entries_of(piece, length);
    for (struct entry entry; entries_next(&rest, &entry);)
        written += entry_write(again + written, sizeof again - written, &entry);
    fwrite(again, 1, written, stdout);
    return rest.at == rest.end ? 0 : argc;
}
"""


def test_c_reads_and_writes_the_same(tmp_path: Path) -> None:
    (tmp_path / "reader.c").write_text(READER)
    argv = ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", TOP, tmp_path / "reader.c", "-o", tmp_path / "reader"]
    subprocess.run(argv, check=True)
    for piece in (*ODD, *FINE, b"".join(FINE)):
        read = subprocess.run([tmp_path / "reader"], input=piece, capture_output=True, check=False)
        try:
            m.parse(piece)
            refused = 0
        except ProtocolError:
            refused = 1
        assert read.returncode == refused, piece[:80]
        if not refused and b"00" not in piece:
            assert read.stdout == piece
