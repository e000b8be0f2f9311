"""The incarnations of this agent before this one: which of them are gone for good, and what became of the attempts they held.

Knows work directories and the records that runners leave in them (runfile.c). Does not know who is told. Nothing of an incarnation
lives once both locks of its directory can be had: the agent's own on it, and that on its `runs`, which every process that holds a job
inherits. A directory goes when its last result is forgotten; an agent that dies before that leaves it to the next, with the names of all
that it knows to be gone.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from dwrap.agent import workplace
from dwrap.agent.events import Key, News
from dwrap.agent.registration import MAX_FORMER
from dwrap.agent.runner import RECORD
from dwrap.protocol import messages

FORMER: Final = "former"
FOREIGN_SECONDS: Final = 600.0  # after so long another agent's leftovers are anybody's to remove
_UNKNOWN: Final = messages.encode_fields([("error", "lost"), ("reason", "the agent that ran it has died, and so has its runner")])
_KEPT: Final = (workplace.RUNS, workplace.NAME)

Result = tuple[Key, int, bytes, bytes]
"""An attempt, its user's uid, RESULT's fields, the manifest's entries."""


class Former:
    """Looks after what incarnations of the agent `name` before the one that has `own` left in `parent` (None: beside `own`)."""

    def __init__(self, parent: Path | None, name: str, own: Path) -> None:
        self._parent = parent or own.parent
        self._name, self._owner = name, workplace.owner(name)
        self._own = own
        self._taken: dict[Path, int] = {}  # directories whose results wait, and their locks
        self._records: dict[Key, Path] = {}

    def look(self) -> News:
        """What was not told before. To be asked again as long as there are leftovers. Raises OSError: then all is told next time."""
        gone: dict[Path, int] = {}
        try:
            leftover = self._survey(gone)
            former, results = self._inherit(gone) if gone else ((), [])
        except OSError:
            for fd in gone.values():
                os.close(fd)
            raise
        return News(former, tuple(results), leftover)

    def _survey(self, gone: dict[Path, int]) -> int:
        """Finds the directories of incarnations that are gone, and locks them. Returns how much of others still lives."""
        leftover = 0
        for folder in sorted(self._parent.glob(f"{workplace.PREFIX}*-*")):
            fd = None if folder == self._own or folder in self._taken else _take(folder)
            if fd is None:
                continue
            gone[folder] = fd  # until it is known to be another's, or alive: so that whoever cannot go on can close it
            if not self._is_ours(folder):
                if workplace.is_free(folder) and (self._was_ours(folder) or time.time() - os.fstat(fd).st_mtime > FOREIGN_SECONDS):
                    workplace.remove(folder)
                os.close(gone.pop(folder))
            elif not workplace.is_free(folder):
                leftover += max(1, sum(not fields for _, _, fields, _ in _records(folder)))
                os.close(gone.pop(folder))
        return leftover

    def _inherit(self, gone: dict[Path, int]) -> tuple[tuple[str, ...], list[Result]]:
        """Who is gone, and what is left of them. Whoever is told to be gone without what it left would count as never having had it."""
        found = {folder: _records(folder) for folder in gone}
        former = self._hand_down(gone)
        for folder, fd in gone.items():
            self._take_over(folder, fd, found[folder])
        return former, [(key, uid, fields or _UNKNOWN, entries) for records in found.values() for key, uid, fields, entries in records]

    def _hand_down(self, gone: Collection[Path]) -> tuple[str, ...]:
        """Whoever comes after this incarnation can vouch for those too, when this one dies before it was heard. Returns who they are
        and those that they have handed down, the oldest, which are forgotten first, in front.
        """
        newest = {workplace.incarnation(folder): None for folder in gone}
        older = {name: None for folder in gone for name in _lines(folder / FORMER) if name not in newest}
        file = self._own / FORMER
        fresh = file.with_suffix(".new")
        known = [name for name in _lines(file) if name not in newest and name not in older]
        fresh.write_text("\n".join([*older, *known, *newest][-MAX_FORMER:]), encoding="utf-8")
        fresh.replace(file)
        return (*older, *newest)

    def _is_ours(self, folder: Path) -> bool:
        return _owner(folder) == self._owner

    def _was_ours(self, folder: Path) -> bool:
        """Before the machine was started anew: nothing of it lives, but nobody can vouch for what was not written to the disk."""
        return _owner(folder).startswith(f"{self._name}\n")

    def _take_over(self, folder: Path, fd: int, found: list[Result]) -> None:
        """Keeps the records; all else goes, and the directory with it when there are none."""
        self._taken[folder] = fd
        self._records.update({key: folder for key, *_ in found})
        for other in _listed(folder):
            if other.name not in _KEPT:
                workplace.remove(other)
        self._remove_settled(folder)

    def forget(self, key: Key) -> None:
        """The result was acknowledged. Attempts of this incarnation's own are none of its business."""
        folder = self._records.pop(key, None)
        if folder is not None:
            (folder / workplace.RUNS / f"{key[0]}.{key[1]}").unlink(missing_ok=True)
            self._remove_settled(folder)

    def _remove_settled(self, folder: Path) -> None:
        if folder not in self._records.values():
            workplace.remove(folder)
            os.close(self._taken.pop(folder))


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # a shortage: it is removed with the directory
        return []


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").split("\n") if file.exists() else []


def _owner(folder: Path) -> str:
    try:
        return (folder / workplace.NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _take(folder: Path) -> int | None:
    """Locks a work directory of this user's. None when it is another's, its agent lives, or it is gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # One that is not yet locked may be an agent's that is just starting: it is 0700 until it is.
        status = os.fstat(fd)
        if status.st_uid == os.geteuid() and status.st_mode & 0o777 == workplace.IN_USE:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None


def _records(folder: Path) -> list[Result]:
    """Of each attempt that was started there; without fields where the result is not known."""
    found: list[Result] = []
    try:
        paths = sorted((folder / workplace.RUNS).iterdir())
    except FileNotFoundError:
        return found
    for path in paths:
        job, _, attempt = path.name.rpartition(".")
        data = path.read_bytes()
        if job and attempt.isdigit() and len(data) >= RECORD.size:  # a shorter one was never started
            uid, size, entries = RECORD.unpack_from(data)
            at = RECORD.size + size
            whole = len(data) >= at + entries
            found.append(((job, int(attempt)), uid, data[RECORD.size : at] if whole else b"", data[at : at + entries] if whole else b""))
    return found
