"""The ledger: which assignments there were, in a file, so that a restarted distributor knows what its agents may still be doing.

It is folded from the scheduler's records, a line each, written before the assignment is sent: `E boot time epoch whole` (a distributor
began; or, not whole, its older lines were dropped), `A time job attempt uid agent incarnation made beyond` (assigned; or what an epoch
without a ledger assigned is known by now), `M time job made
beyond` (MADE), `L time job until` (its agent is not heard: it is lost then; or null: found), `U time job made` (waits again), `S time job
made` (it is over; names to remove before it may be run again, or null: it may not), `T time` (it lived). Each line is JSON without the
outer brackets. Times are CLOCK_MONOTONIC, which goes on over restarts and not over boots: what another boot wrote does not count. Nothing
is synced to disk: a machine that goes down takes its connections with it. The file is begun anew when it is large, and the one before is
kept.
When a line cannot be written, the file is removed and begun anew once there is room.
Knows records, lines, and the file. Does not know what is done with what it tells (past.py).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dwrap.distributor.events import Record
from dwrap.distributor.past import RETURN_SECONDS, Assigned, Past
from dwrap.distributor.records import BACK, ENDS

ALIVE_SECONDS: Final = 1.0
MAX_BYTES: Final = 4 * 1024 * 1024
SILENCE_SECONDS: Final = 13.0  # after this long without a distributor no lease runs: LEASE_SECONDS + LEASE_GRACE_SECONDS
_OVER: Final = (ENDS - {"done"}) | {"acknowledged"}  # until then its agent keeps the result

Line = tuple[Any, ...]
log = logging.getLogger("dwrap.distributor")


class Book:
    """The lines, without the file: what a record adds, and what all of them add up to."""

    def __init__(self) -> None:
        self.live: dict[str, Assigned] = {}  #: each job that was assigned and is not over

    def fold(self, record: Record) -> Line | None:
        """The line that a record adds, or None."""
        job, facts, at = record.job, record.facts, record.at
        if record.what == "assigned":
            made = json.loads(str(facts.get("made", "[]")))
            uid = None if facts.get("anyones") else facts["uid"]  # the submitter's
            return self._take(("A", at, job, facts["attempt"], uid, facts["agent"], facts["incarnation"], made, ""))
        if record.what == "known":
            made = json.loads(str(facts["made"]))
            return self._take(("A", at, job, facts["attempt"], facts["uid"], facts["agent"], facts["incarnation"], made, facts["beyond"]))
        if job not in self.live:
            return None
        if record.what == "made":
            return self._take(("M", at, job, json.loads(str(facts["made"])), facts["beyond"]))
        if record.what in ("missing", "found"):
            return self._take(("L", at, job, facts.get("until")))
        if record.what in BACK:
            made = json.loads(str(facts["made"])) if "made" in facts else list(self.live[job].made)
            return self._take(("U", at, job, made))
        if record.what in _OVER:
            return self._take(("S", at, job, json.loads(str(facts.get("made", "null")))))
        return None

    def _take(self, line: Line) -> Line:
        kind, _, job, *rest = line
        known = self.live.get(job)
        if kind == "A":
            self.live[job] = Assigned(rest[0], rest[2], rest[3], rest[1], tuple(rest[4]), rest[5])
        elif kind == "S":
            self.live.pop(job, None)
        elif known is not None and kind == "L":
            self.live[job] = replace(known, lost_at=rest[0])
        elif known is not None and kind == "M":
            self.live[job] = replace(known, made=(*known.made, *rest[0]), beyond=known.beyond or rest[1])
        elif known is not None:
            self.live[job] = replace(known, agent=None, made=tuple(rest[0]), beyond="", lost_at=None)
        return line

    def lines(self, now: float) -> Iterator[Line]:
        """All that is live, in as few lines as it takes."""
        for job, known in self.live.items():
            yield "A", now, job, known.attempt, known.uid, known.agent or "", known.incarnation, list(known.made), known.beyond
            if known.agent is None:
                yield "U", now, job, list(known.made)
            elif known.lost_at is not None:
                yield "L", now, job, known.lost_at

    def read(self, lines: Iterable[Line], boot: str, now: float, epoch: int) -> Past:
        """What is known of the past from these lines, in an epoch that begins now."""
        epochs: set[int] = set()
        forgotten_at = -math.inf
        alive_at = now
        settled: dict[str, tuple[str, ...] | None] = {}
        owners: dict[str, int | None] = {}
        for line in lines:
            if line[0] == "E" and line[1] != boot:
                self.live, epochs, settled = {}, set(), {}
            elif line[0] == "E":
                if not line[4] and line[3] not in epochs:
                    forgotten_at = line[2]
                epochs.add(line[3])
            elif line[0] != "T":
                self._take(line)
            if line[0] == "A":
                owners[line[2]] = line[4]
            if line[0] == "S":
                settled[line[2]] = None if line[3] is None else tuple(line[3])
            alive_at = line[2] if line[0] == "E" else line[1]
        if not epochs:
            return Past(now, frozenset({epoch}), now + SILENCE_SECONDS)
        until = max(alive_at + SILENCE_SECONDS, now + RETURN_SECONDS)
        past = Past(now, frozenset({epoch, *epochs}), until, forgotten_at, dict(self.live))
        past.ended_before({job: undo for job, undo in settled.items() if job not in self.live}, owners)
        return past


_TIME: Final = (int, float)
_NAMES: Final = (list, type(None))
_FORMS: Final[dict[str, tuple[Any, ...]]] = {
    "E": (str, _TIME, int, bool),
    "A": (_TIME, str, int, (int, type(None)), str, str, list, str),
    "M": (_TIME, str, list, str),
    "L": (_TIME, str, (*_TIME, type(None))),
    "U": (_TIME, str, list),
    "S": (_TIME, str, _NAMES),
    "T": (_TIME,),
}


def _lines(file: Path) -> Iterator[Line]:
    """The lines that are whole: the last one of a distributor that was killed may not be."""
    for text in file.read_bytes().split(b"\n") if file.exists() else ():
        try:
            line = tuple(json.loads(b"[" + text + b"]"))
        except ValueError:
            continue
        form = _FORMS.get(line[0], ()) if line and isinstance(line[0], str) else ()
        if form and len(line) == len(form) + 1 and all(isinstance(value, kind) for value, kind in zip(line[1:], form, strict=True)):
            yield line


def boot_id() -> str:
    """The name of this boot of the machine. Raises OSError."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _unmake(file: Path) -> None:
    """Emptied too, for who may not remove it."""
    with contextlib.suppress(OSError):
        os.truncate(file, 0)
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)


class Ledger:
    """The file in `folder`, read, and open to be written. Raises OSError."""

    def __init__(self, folder: Path, epoch: int, now: float, boot: str) -> None:
        self._file = folder / "assignments"
        self._before = folder / "assignments.before"
        self._boot, self._epoch = boot, epoch
        self._book = Book()
        self._alive_at = now
        self.past = self._book.read([*_lines(self._before), *_lines(self._file)], boot, now, epoch)
        self._out = self._file.open("ab", buffering=0)
        self._is_whole = True
        self._write_bytes(b"\n")  # after what was cut
        self._write(("E", boot, now, epoch, True))

    def fold(self, record: Record) -> None:
        """Takes a record in."""
        line = self._book.fold(record)
        if line is not None:
            self._write(line)
            if self._is_whole and self._out.tell() > MAX_BYTES:
                self._turn_over(record.at)

    def lives(self, now: float) -> None:
        """To be called at least once in ALIVE_SECONDS: the leases that run are as new as this."""
        if now - self._alive_at >= ALIVE_SECONDS:
            self._alive_at = now
            if self._is_whole:
                self._write(("T", now))
            else:
                self._begin_again(now)

    def close(self) -> None:
        """Closes the file."""
        self._out.close()

    def _turn_over(self, now: float) -> None:
        self._out.close()
        try:
            self._file.replace(self._before)
            self._begin(now)
        except OSError as error:
            self._give_up(error.strerror or str(error))

    def _begin(self, now: float) -> None:
        self._out = self._file.open("ab", buffering=0)
        self._is_whole = True
        self._write(("E", self._boot, now, self._epoch, False))
        for line in self._book.lines(now):
            self._write(line)

    def _begin_again(self, now: float) -> None:
        """After a line was lost: is there room by now?"""
        with contextlib.suppress(OSError):
            self._begin(now)

    def _write(self, line: Line) -> None:
        if self._is_whole:
            self._write_bytes(json.dumps(line, separators=(",", ":"))[1:-1].encode() + b"\n")

    def _write_bytes(self, text: bytes) -> None:
        try:
            if self._out.write(text) == len(text):
                return
            why = "no room"
        except OSError as error:
            why = error.strerror or str(error)
        self._give_up(why)

    def _give_up(self, why: str) -> None:
        """A ledger that lacks a line would be believed: none at all only makes the next distributor wait."""
        self._is_whole = False
        log.warning("cannot write %s: %s; a restart now would not know what runs; make room", self._file, why)
        self._out.close()
        for file in (self._file, self._before):
            _unmake(file)
