"""Entries of a manifest: bytes to entries and back, as manifest.h reads and writes them (PROTOCOL.md, Manifests).

Pure. Knows the form of an entry and its limits. Does not know why it was written down, or what its reader does about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from dwrap.protocol.messages import MAX_DATA_BYTES, ProtocolError

MAX_PIECE_BYTES: Final = MAX_DATA_BYTES
MAX_SEEN_BYTES: Final = 1024 * 1024  # GO's and ASSIGN's bodies of entries
MAX_PATH_BYTES: Final = 4_095
DIRECTORY: Final = b"D"
FILE: Final = b"F"
GONE: Final = b"G"
READ: Final = b"R"
_ENTRY = re.compile(rb"([DFGRdfg]) ([0-9]{1,20}) ([0-9]{1,20}) ([0-9]{1,20}) ([0-9]{1,20}) (/[^\0]{0,4094})\0")
_MAX_NUMBER: Final = 2**64 - 1
_MAX_TIME: Final = 2**63 - 1
_SAFE_DIGITS: Final = 18  # any number of so many digits is in range


class Entry(NamedTuple):
    """How a name stood: its kind (in upper case), its path, its ctime, and the whole entry as it is on the wire, its NUL included."""

    kind: bytes
    path: bytes
    ctime: int
    raw: bytes

    @property
    def directory(self) -> bytes:
        """What it is about: the directory itself, or the one that the name is in."""
        return self.path if self.kind in (DIRECTORY, READ) else parent(self.path)

    def as_seen(self) -> Entry:
        """The same as somebody merely saw it: nobody's view has to come to agree with it."""
        return self if self.kind == READ else self._replace(raw=self.kind.lower() + self.raw[1:])


def parent(path: bytes) -> bytes:
    """The directory that a name is in; of `/` it is `/`."""
    return path[: path.rfind(b"/")] or b"/"


def make(kind: bytes, path: bytes, ino: int = 0, size: int = 0, mtime: int = 0, ctime: int = 0) -> Entry:
    """An entry. Raises ProtocolError when it cannot be one."""
    [entry] = parse(b"%b %d %d %d %d %b\0" % (kind, ino, size, mtime, ctime, path))
    return entry


def parse(piece: bytes) -> list[Entry]:
    """The entries of a body, in order. Raises ProtocolError when one is malformed; of no body there are none."""
    entries: list[Entry] = []
    at, match = 0, _ENTRY.match
    while at < len(piece):
        found = match(piece, at)
        if found is None:
            raise ProtocolError("an entry of a manifest is malformed")
        kind, ino, size, mtime, ctime, path = found.groups()
        if max(len(ino), len(size), len(mtime), len(ctime)) > _SAFE_DIGITS and not _in_range(int(ino), int(size), int(mtime), int(ctime)):
            raise ProtocolError("a number in an entry of a manifest is too large")
        entries.append(Entry(kind.upper(), path, int(ctime), found[0]))
        at = found.end()
    return entries


def join(entries: Iterable[Entry]) -> bytes:
    """One body of these entries."""
    return b"".join(entry.raw for entry in entries)


def pieces(entries: Iterable[Entry]) -> list[bytes]:
    """Bodies of MANIFEST, none larger than a piece may be, no entry cut in two."""
    out: list[list[bytes]] = []
    size = MAX_PIECE_BYTES
    for entry in entries:
        if size + len(entry.raw) > MAX_PIECE_BYTES:
            out.append([])
            size = 0
        out[-1].append(entry.raw)
        size += len(entry.raw)
    return [b"".join(piece) for piece in out]


def _in_range(ino: int, size: int, mtime: int, ctime: int) -> bool:
    return max(ino, size) <= _MAX_NUMBER and max(mtime, ctime) <= _MAX_TIME
