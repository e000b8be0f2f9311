"""The journal: what changed on the shared trees, by directory, so that each agent can be told what others changed since its last job.

For each name the newest entry is kept, with the serial number and the origin of the change; a directory's entries are in the
order of their last change, and so are the directories: `since` looks at what has changed and at nothing else. An agent is not
told what it changed itself, unless another changed it too. Hosts that change one name at a time may tell it in the other order:
of two entries of a kind the one with the later ctime is kept, since that is the server's clock, whenever it came. What had to be
dropped is remembered as a number: an agent that was last told before it is *behind*, and has to ask the server instead.

Pure. Knows entries and numbers. Does not know jobs, users or messages.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, TypeAlias

from dwrap.distributor.events import Peer
from dwrap.protocol.manifest import DIRECTORY, MAX_SEEN_BYTES, READ, Entry, parent

MAX_FILES: Final = 256  # in one directory; of those that are dropped the directory's own entry tells
MAX_DIRECTORIES: Final = 65_536
MAX_BYTES: Final = 64 * 1024 * 1024
NEVER: Final = -1
_OVERHEAD_BYTES: Final = 250  # of an entry: its tuple, its place in a dictionary

_Change: TypeAlias = tuple[int, Peer | None, int, bytes, int]
"""When (a serial number), by whom, when last by anybody else (NEVER), the entry as bytes, its ctime."""


_SEEN: Final = b"\0"  # no path holds it


def _key(entry: Entry) -> bytes:
    """What was merely seen has a place of its own beside what was written: neither hides the other."""
    return entry.path if entry.raw[:1] == entry.kind else entry.path + _SEEN


class _Directory:
    """What is known of one directory and of the names in it."""

    __slots__ = ("changed", "dropped", "files", "own", "size")

    def __init__(self) -> None:
        self.changed = NEVER
        self.own: _Change | None = None
        self.files: dict[bytes, _Change] = {}
        self.dropped: _Change | None = None  # the newest change of a name that is no longer among the files
        self.size = _OVERHEAD_BYTES


class Journal:
    """Every change that somebody may not have been told of."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_directories: int = MAX_DIRECTORIES) -> None:
        self._max_bytes = max_bytes
        self._max_directories = max_directories
        self._directories: OrderedDict[bytes, _Directory] = OrderedDict()
        self._serial = 0
        self._floor = 0  # whoever was last told before this is behind
        self.size = 0  #: bytes that are kept, about

    def __len__(self) -> int:
        """How many directories it holds."""
        return len(self._directories)

    def add(self, origin: Peer | None, entries: Iterable[Entry]) -> None:
        """Takes in what a host told. `origin` is the agent that told it, None for a submitter: all agents are to know."""
        self._serial += 1
        for entry in entries:
            kind, path = entry.kind, entry.path
            if kind == DIRECTORY:
                directory = self._touch(path)
                directory.own = self._newer(directory, directory.own, origin, entry)
                above = self._directories.get(parent(path))
                if above is not None and above is not directory:
                    for key in (path, path + _SEEN):  # what else had this name before
                        self._forget(above, key)
            elif kind != READ:
                directory = self._touch(parent(path))
                key = _key(entry)
                change = self._newer(directory, directory.files.pop(key, None), origin, entry)
                directory.files[key] = change
                if len(directory.files) > MAX_FILES:
                    self._drop_file(directory)
        while len(self._directories) > self._max_directories or self.size > self._max_bytes:
            _, oldest = self._directories.popitem(last=False)
            self.size -= oldest.size
            self._floor = max(self._floor, oldest.changed)

    def forget_all_marks(self) -> None:
        """A host was lost with a job: what that changed nobody can tell. Everyone is behind."""
        self._serial += 1
        self._floor = self._serial

    def since(self, mark: int, reader: Peer) -> tuple[int, bytes, bool]:
        """What others changed since `mark` (NEVER: the reader was told nothing yet).

        Returns the reader's new mark, entries (directories before what is in them), and whether the reader is behind.
        """
        behind = mark < self._floor
        found: list[tuple[bytes, bytes]] = []
        room = MAX_SEEN_BYTES
        for name, directory in reversed(self._directories.items()):
            if directory.changed <= mark:
                break
            own, dropped = directory.own, directory.dropped
            raws: list[bytes] = []
            if own is not None and own[0] > mark and (own[1] != reader or own[2] > mark):
                raws.append(own[3])
            elif dropped is not None and dropped[0] > mark and (dropped[1] != reader or dropped[2] > mark):
                behind = True  # names that changed in place, in a directory that did not: nothing would show it
            for when, origin, others, raw, _ in reversed(directory.files.values()):
                if when <= mark:
                    break
                if origin != reader or others > mark:
                    raws.append(raw)
            if raws:
                told = b"".join(raws)
                room -= len(told)
                if room < 0:
                    behind = True
                    break
                found.append((name, told))
        found.sort()
        return self._serial, b"".join([told for _, told in found]), behind

    # ---- parts ----

    def _touch(self, name: bytes) -> _Directory:
        """The directory of that name, as the one that was changed last."""
        directory = self._directories.get(name)
        if directory is None:
            directory = self._directories[name] = _Directory()
            self.size += directory.size
        elif directory.changed != self._serial:
            self._directories.move_to_end(name)
        directory.changed = self._serial
        return directory

    def _newer(self, directory: _Directory, old: _Change | None, origin: Peer | None, entry: Entry) -> _Change:
        """The change that takes the place of another."""
        others = NEVER
        raw, ctime, grown = entry.raw, entry.ctime, _OVERHEAD_BYTES
        if old is not None:
            others = old[2] if old[1] == origin else old[0]
            if old[4] > ctime and old[3][:1].upper() == entry.kind:
                raw, ctime = old[3:]
            grown = -2 * len(old[3])
        grown += 2 * len(raw)
        directory.size += grown
        self.size += grown
        return self._serial, origin, others, raw, ctime

    def _forget(self, directory: _Directory, path: bytes) -> None:
        old = directory.files.pop(path, None)
        if old is not None:
            shrunk = 2 * len(old[3]) + _OVERHEAD_BYTES
            directory.size -= shrunk
            self.size -= shrunk

    def _drop_file(self, directory: _Directory) -> None:
        path, (when, origin, others, raw, ctime) = next(iter(directory.files.items()))
        before = directory.dropped
        if before is not None:
            others = max(others, before[2] if before[1] == origin else before[0])
        self._forget(directory, path)
        directory.dropped = when, origin, others, raw, ctime
