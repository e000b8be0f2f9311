"""Tables and lines for a terminal. Knows widths and escaping. Does not know where the figures come from.

What jobs and hosts say of themselves is hostile text: nothing that could move the cursor or change colours reaches the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dwrap.control.records import Record, by_place, slowest


def safe(value: object) -> str:
    """Text without control characters, each written as \\xNN (or \\uNNNN)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in str(value))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; numbers to the right. A cell of None is a dash."""
    cells = [["-" if cell is None else safe(cell) for cell in row] for row in rows]
    widths = [max([len(head), *(len(row[i]) for row in cells)]) for i, head in enumerate(heads)]
    right = [
        bool(cells) and all(row[i].rstrip("%").replace(".", "", 1).isdigit() or row[i] == "-" for row in cells) for i in range(len(heads))
    ]

    def line(row: Sequence[str]) -> str:
        return "  ".join(cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(row, widths, right, strict=True)).rstrip()

    return "\n".join([line(heads), *(line(row) for row in cells)])


def seconds(milliseconds: object) -> str | None:
    """Milliseconds as seconds; None stays None."""
    return f"{float(milliseconds) / 1000:.2f}" if isinstance(milliseconds, int | float) else None


def clock(stamp: object) -> str | None:
    """A time of day from seconds since 1970."""
    return time.strftime("%H:%M:%S", time.localtime(stamp)) if isinstance(stamp, int | float) else None


def outcome(record: Record) -> str:
    """How a job ended, in a word or two: its status, its signal, or what became of it; else the state it is in."""
    status = record.get("status")
    if isinstance(status, int):
        return f"signal {status & 127}" if status & 127 else f"status {status >> 8}"
    return str(record.get("outcome") or record.get("state") or "-")


def agents_table(agents: Iterable[Mapping[str, Any]]) -> str:
    """One line an agent, then one for each thing that is wrong with how it mounts the tree."""
    known = list(agents)
    rows = [
        (
            agent.get("name"),
            agent.get("host"),
            f"{agent.get('assigned', 0)}/{agent.get('slots', 0)}",
            agent.get("jobs_done"),
            agent.get("foreign_cpus"),
            _gigabytes(agent.get("memory_available_bytes")),
            _agent_state(agent),
            " ".join(map(str, agent.get("roots") or ())),
            _shared_file_systems(agent),
            " ".join(map(str, agent.get("labels") or ())) or None,
        )
        for agent in known
    ]
    flaws = [f"{safe(agent.get('name'))}: {safe(flaw)}" for agent in known for flaw in (*_troubles(agent), *(agent.get("flaws") or ()))]
    return "\n".join(
        [
            table(("AGENT", "HOST", "SLOTS", "DONE", "FOREIGN CPUS", "FREE GB", "STATE", "ROOTS", "SHARED", "LABELS"), rows),
            *_environments(known),
            *flaws,
        ]
    )


def _environments(agents: Iterable[Mapping[str, Any]]) -> list[str]:
    """Which agents have which environment, where there is more than one: no job goes from one to another."""
    alike: dict[str, list[str]] = {}
    for agent in agents:
        alike.setdefault(str(agent.get("identity") or "unknown"), []).append(str(agent.get("name")))
    return [f"environment {safe(line)}: {safe(' '.join(names))}" for line, names in sorted(alike.items())] if len(alike) > 1 else []


def _troubles(agent: Mapping[str, Any]) -> Iterable[str]:
    """Why it is given no work for a while."""
    if agent.get("suspended"):
        yield f"suspended for a minute or so: it failed by itself again and again: {agent['suspended']}"
    if agent.get("leftover"):
        yield f"in quarantine: {agent['leftover']} process trees of jobs that were given up still live there"


def _shared_file_systems(agent: Mapping[str, Any]) -> str | None:
    """The network file systems under its roots, each kind once, with the version of NFS."""
    kinds = []
    for mount in agent.get("mounts") or ():
        words = str(mount).split(" ")
        version = next((word.removeprefix("vers=") for word in ",".join(words[3:]).split(",") if word.startswith("vers=")), "")
        kinds += [f"{words[1]} {version}".strip()] if len(words) > 1 else []
    return ", ".join(dict.fromkeys(kinds)) or ("recorded" if agent.get("views") else None)


def _agent_state(agent: Mapping[str, Any]) -> str:
    if agent.get("is_draining"):
        return "draining"
    if agent.get("suspended"):
        return "suspended"
    if agent.get("leftover"):
        return "in quarantine"
    if agent.get("is_short_of_memory"):
        return "short of memory"
    return "serving" if agent.get("is_serving", True) else "not serving"


def jobs_table(records: Iterable[Record]) -> str:
    """One line a job, oldest first."""
    rows = [
        (
            clock(record.get("submitted_at")),
            str(record.get("job") or "")[:8] or None,
            record.get("command"),
            record.get("where") or None,
            outcome(record),
            seconds(record.get("queued_ms")),
            seconds(record.get("run_ms")),
            record.get("reason") or None,
        )
        for record in records
    ]
    return table(("AT", "JOB", "COMMAND", "WHERE", "OUTCOME", "QUEUED s", "RAN s", "WHY"), rows)


def status_lines(status: Mapping[str, Any]) -> str:
    """The distributor in a few lines, then its agents."""
    agents = [agent for agent in status.get("agents", []) if isinstance(agent, Mapping)]
    addresses = " ".join(map(str, status.get("addresses", [])))
    lines = [
        f"distributor {status.get('version')} at {addresses}, up {_span(status.get('uptime_seconds'))}",
        f"jobs: {status.get('running')} running, {status.get('queued')} queued{_missing(status.get('missing'))}; "
        f"in all: {_counts(status.get('totals')) or 'none'}",
    ]
    reasons = _counts(status.get("here_by_reason"))
    if reasons:
        lines.append(f"ran on the desktop by rule: {reasons}")
    return safe_lines(lines) + "\n" + (agents_table(agents) if agents else "no agent is registered")


def here_lines(record: Record) -> str:
    """A command that ran here, from the user's own log."""
    lines = (
        f"{record.get('command')} ran here: {record.get('reason')}",
        f"at {clock(record.get('submitted_at'))}, process {record.get('pid')}, in {record.get('cwd')}: {record.get('line')}",
    )
    return safe_lines(lines)


def safe_lines(lines: Iterable[str]) -> str:
    return "\n".join(safe(line) for line in lines)


def summary(records: Sequence[Record], wall_seconds: float) -> str:
    """What ran where and how long, for people: a table of places, why commands ran here, the longest commands."""
    places = by_place(records)
    total = sum(place.commands for place in places.values())
    if not total:
        return f"dwrap: no command ran through the farm in {wall_seconds:.1f} s"
    rows = [
        (
            name,
            place.commands,
            f"{100 * place.commands / total:.0f}%",
            *(seconds(ms) for ms in (place.run_ms, place.queued_ms, place.flush_ms)),
        )
        for name, place in places.items()
    ]
    at_once = sum(place.run_ms for place in places.values()) / 1000 / max(wall_seconds, 0.001)
    lines = [
        f"dwrap: {total} commands in {wall_seconds:.1f} s, {at_once:.1f} at once on average",
        table(("WHERE", "COMMANDS", "SHARE", "RAN s", "QUEUED s", "FLUSHED s"), rows),
    ]
    here = places.get("here")
    if here:
        lines.append("here, because: " + "; ".join(f"{safe(reason)} ({count})" for reason, count in sorted(here.reasons.items())))
    lines += _coherence(records)
    longest = ", ".join(
        f"{safe(r.get('command'))} {seconds(r.get('run_ms'))} s on {safe(r.get('where'))}" for r in slowest(records, 3) if r.get("run_ms")
    )
    if longest:
        lines.append(f"longest: {longest}")
    return "\n".join(lines)


def _coherence(records: Sequence[Record]) -> list[str]:
    """What had to be put right so that all saw one tree; nothing where nothing had to be."""
    stale, escaped = (sum(int(record.get(key) or 0) for record in records) for key in ("stale", "escaped"))
    reran = sum(1 for record in records if record.get("reran"))
    guessed = sum(1 for record in records if record.get("outputs") == "approximate")
    said = [
        f"{stale} names were stale and corrected" if stale else "",
        f"{reran} commands failed on a stale view and ran again" if reran else "",
        f"{guessed} commands could not be recorded, their outputs were found by time stamps" if guessed else "",
        f"{escaped} files were left outside the shared roots" if escaped else "",
    ]
    return ["the shared tree: " + "; ".join(filter(None, said))] if any(said) else []


def _gigabytes(size_bytes: object) -> str | None:
    return f"{size_bytes / 1e9:.1f}" if isinstance(size_bytes, int | float) else None


def _missing(count: object) -> str:
    """Jobs of agents that are not heard; nothing to say as long as there are none."""
    return f", {count} with agents that are not heard" if count else ""


def _span(seconds_up: object) -> str:
    if not isinstance(seconds_up, int | float):
        return "-"
    hours, rest = divmod(int(seconds_up), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def _counts(counts: object) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) if isinstance(counts, Mapping) else ""
