"""What ran where: the distributor's records and this user's own log of commands that ran here, as one list.

Knows the shape of both. Does not fetch them over the network, and does not print.

The wrapper appends a line to here.log for each command that it runs here, also while no distributor answers
(wrapper/local.c describes it): seconds since 1970, pid, reason, directory, command, between tabs, control characters escaped.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
SAME_SECONDS = 10.0
"""A line of the log and a record within this time, of one process, are one command."""


def here_log_files(environment: Mapping[str, str]) -> list[Path]:
    """The log of commands that ran here, the older part first."""
    base = environment.get("XDG_STATE_HOME") or os.path.join(environment.get("HOME", "/"), ".local", "state")
    return [Path(base, "dwrap", "here.log.1"), Path(base, "dwrap", "here.log")]


def read_here_log(files: Iterable[Path], since: float = 0.0) -> list[dict[str, Any]]:
    """The log's lines from `since` (seconds since 1970) on, as records, oldest first. Lines that make no sense are left out."""
    records = []
    for file in files:
        try:
            text = file.read_text("utf-8", "surrogateescape")
        except OSError:
            continue
        for line in text.split("\n"):
            record = _here_record(line)
            if record is not None and record["submitted_at"] >= since:
                records.append(record)
    return records


def _here_record(line: str) -> dict[str, Any] | None:
    parts = line.split("\t", 4)
    try:
        when, pid = float(parts[0]), int(parts[1])
        reason, cwd, command = parts[2:]
    except (ValueError, IndexError):
        return None
    name = os.path.basename(command.split(" ", 1)[0])
    return {
        "job": "", "where": "here", "state": "ran here", "submitted_at": when, "pid": pid, "reason": reason, "cwd": cwd, "command": name,
        "line": command, "uid": os.getuid(),
    }  # fmt: skip


def merge(distributor: Iterable[Record], here: Iterable[Record]) -> list[Record]:
    """Both lists as one, oldest first. A command in both (a rule of the distributor sent it here) is told once."""
    records = list(distributor)
    known: dict[tuple[int, str], list[float]] = defaultdict(list)
    for record in records:
        if record.get("where") == "here":
            known[int(record.get("pid") or 0), str(record.get("command"))].append(float(record.get("submitted_at") or 0.0))
    for record in here:
        times = known.get((record["pid"], record["command"]), ())
        if not any(abs(time - record["submitted_at"]) < SAME_SECONDS for time in times):
            records.append(record)
    return sorted(records, key=lambda record: float(record.get("submitted_at") or 0.0))


@dataclass
class Place:
    """What ran at one place: how many commands, and their time in milliseconds."""

    commands: int = 0
    run_ms: int = 0
    queued_ms: int = 0
    flush_ms: int = 0
    reasons: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, record: Record) -> None:
        self.commands += 1
        self.run_ms += int(record.get("run_ms") or 0)
        self.queued_ms += int(record.get("queued_ms") or 0)
        self.flush_ms += int(record.get("flush_ms") or 0)
        if record.get("where") == "here":
            self.reasons[str(record.get("reason"))] += 1


def by_place(records: Iterable[Record]) -> dict[str, Place]:
    """What ran at each place, by the place's name, agents before `here`."""
    places: dict[str, Place] = defaultdict(Place)
    for record in records:
        if record.get("where"):
            places[str(record["where"])].add(record)
    return dict(sorted(places.items(), key=lambda item: (item[0] == "here", item[0])))


def slowest(records: Iterable[Record], count: int) -> Sequence[Record]:
    """The `count` commands that ran longest."""
    return sorted(records, key=lambda record: -int(record.get("run_ms") or 0))[:count]
