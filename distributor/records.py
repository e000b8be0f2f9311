"""What has happened: the history of jobs, the totals and the metrics, all folded from the scheduler's records.

Knows records and counters, and what of a job is its own user's. Does not know the scheduler: what is true *now* (agents, queue) is passed
in when asked for. Nothing of a job's environment or arguments is in here beyond the basename of its command.
A job's id is a claim to it, and paths tell what somebody works on: others than its user and operators see neither.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter as Tally
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from dwrap.distributor.events import Fact, Record

HISTORY_JOBS: Final = 4_096
MAX_REASONS: Final = 256
BACK: Final = frozenset({"rejected", "withdrawn", "unanswered", "lost"})  # the job waits again
ENDS: Final = frozenset({"done", "here", "unavailable", "refused", "failed", "cancelled"})
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_TIMES: Final = (("queued", "queued_ms"), ("made sure of its view", "revalidate_ms"), ("ran", "run_ms"), ("flushed", "flush_ms"))
_CORRECTED: Final = {
    "stale": "Names of the shared tree that an agent had wrong when a job came",
    "reran": "Jobs that failed while their agent's view was stale and ran again",
    "escaped": "Files that jobs left outside the shared roots",
}

SHOWN_ID: Final = 8
"""This much of a job's id everybody may see: enough to tell jobs apart, too little to claim one."""
_PATHS = re.compile(r"/.*(?=: | is under no shared root$)|/.*", re.DOTALL)

Entry = dict[str, Any]


class Asker(NamedTuple):
    """Who wants to know."""

    uid: int | None
    is_operator: bool = False

    def may_see(self, entry: Entry) -> bool:
        """Whether all of the job is this one's to see."""
        return self.is_operator or (self.uid is not None and self.uid == entry["uid"])


OPERATOR: Final = Asker(None, True)


def pathless(text: str) -> str:
    """A reason as anybody may read it: a path in it, and whatever else stands before the last colon behind it, is left out."""
    return _PATHS.sub("…", text)


class History:
    """The newest jobs, live ones included, as flat dictionaries; and what became of all jobs ever."""

    def __init__(self, wall_offset: float) -> None:
        self.totals: Tally[str] = Tally()
        self.here_reasons: Tally[str] = Tally()
        self._wall_offset = wall_offset
        self._jobs: OrderedDict[str, Entry] = OrderedDict()

    def fold(self, record: Record) -> Entry | None:
        """Takes a record in. Returns the job's entry, None for a record about an agent."""
        if not record.job:
            return None
        if record.what == "submitted":
            entry = self._begin(record)
        else:
            known = self._jobs.get(record.job)
            if known is None:
                return None  # it is older than the history is long
            entry = known
        entry.update(record.facts)
        for name in ("made", "until", "anyones"):  # for the ledger
            entry.pop(name, None)
        if record.what == "lost":
            entry["losses"] += 1
            entry["lost_why"] = record.facts["reason"]
        if record.what in ENDS:
            self._end(record, entry)
        elif record.what in BACK:
            entry["agent"] = ""
        return entry

    def entries(self, build: str = "", limit: int = HISTORY_JOBS, asker: Asker = OPERATOR) -> list[Entry]:
        """The newest jobs, oldest first; of one build when one is named."""
        chosen = [entry for entry in self._jobs.values() if not build or entry["build"] == build]
        return [self.shown(entry, asker) for entry in chosen[-limit:]] if limit else []

    def find(self, name: str, asker: Asker = OPERATOR) -> Entry | str:
        """The job of this id or unique prefix, or the `last` one; or a line that says why there is none.

        The prefix is one of what the asker may see: an id cannot be guessed a character at a time.
        """
        if name == "last":
            return self.shown(next(reversed(self._jobs.values())), asker) if self._jobs else "no job has been seen yet"
        if name in self._jobs:
            return self.shown(self._jobs[name], asker)
        found = [entry for entry in self._jobs.values() if _id(entry, asker).startswith(name)] if name else []
        if len(found) == 1:
            return self.shown(found[0], asker)
        return f"{len(found)} jobs begin with {name}; give more of the id" if found else f"no job {name} is among the last {HISTORY_JOBS}"

    @staticmethod
    def shown(entry: Entry, asker: Asker = OPERATOR) -> Entry:
        """A copy as it is handed out."""
        where = "here" if entry["outcome"] in ("here", "unavailable") else entry["agent"]
        shown = {**entry, "where": where}
        if not asker.may_see(entry):
            shown = {key: pathless(value) if isinstance(value, str) else value for key, value in shown.items()}
            shown["job"] = _id(entry, asker)
        return shown

    def _begin(self, record: Record) -> Entry:
        entry: Entry = {
            "job": record.job,
            "submitted_at": round(record.at + self._wall_offset, 3),
            "outcome": "",
            "agent": "",
            "attempt": 0,
            "losses": 0,
            "lost_why": "",
            "beyond": "",
            "reason": "",
            "status": None,
            "error": "",
            "queued_ms": None,
            "run_ms": None,
            "flush_ms": None,
            "tree": "",
            "outputs": "",
            "outputs_why": "",
            "stale": 0,
            "reran": 0,
            "escaped": 0,
            "escaped_path": "",
            "revalidate_ms": None,
            "groups_dropped": "",
            "environment": "",
        }
        self._jobs[record.job] = entry
        self._jobs.move_to_end(record.job)
        if len(self._jobs) > HISTORY_JOBS:
            self._jobs.popitem(last=False)
        return entry

    def _end(self, record: Record, entry: Entry) -> None:
        entry["outcome"] = record.what
        entry["settled_at"] = round(record.at + self._wall_offset, 3)
        self.totals[record.what] += 1
        reason = pathless(str(record.facts.get("reason", "")))
        if record.what == "here" and (reason in self.here_reasons or len(self.here_reasons) < MAX_REASONS):
            self.here_reasons[reason] += 1


def _id(entry: Entry, asker: Asker) -> str:
    """As much of a job's id as may be seen."""
    return str(entry["job"]) if asker.may_see(entry) else str(entry["job"])[:SHOWN_ID]


def explain(entry: Entry) -> list[str]:
    """A job's story in lines for people: where it ran, why there, how long each part took."""
    command, outcome, agent = entry["command"], entry["outcome"], entry["agent"]
    times = [f"{word} {entry[key]} ms" for word, key in _TIMES if entry[key] is not None]
    first = {
        "done": f"{command} ran on {agent}",
        "here": f"{command} ran where it was submitted: {entry['reason']}",
        "unavailable": f"{command} found no agent: {entry['reason']}",
        "refused": f"{command} was refused: {entry['reason']}",
        "failed": f"{command} failed to run, through no fault of its own: {entry['reason']}",
        "cancelled": f"{command} was cancelled by its submitter",
        "": f"{command} is {entry['state']}" + (f" on {agent}" if agent else ""),
    }[outcome]
    lines = [": ".join([first, ", ".join(times)]) if times else first]
    if outcome == "done":
        lines.append(f"{agent} was the least loaded agent that shares its paths and matches its labels")
        status = entry["status"]
        lines.append(f"wait status {status}" if status is not None else f"it could not be started: {entry['error']}: {entry['reason']}")
    lines.append(f"job {entry['job']}, attempt {entry['attempt']}, uid {entry['uid']}, build {entry['build']}")
    lines.append(f"in {entry['cwd']} on {entry['host'] or 'an unnamed host'}")
    if entry["groups_dropped"]:
        groups = entry["groups_dropped"].replace(",", " ")
        lines.append(f"groups {groups} were dropped: neither the agent's database nor the key gives them")
    if entry["environment"]:
        lines.append(f"its environment is another: {agent} {entry['environment']}")
    if entry["losses"]:
        lines.append(f"{entry['losses']} attempts before the last were lost and it ran again; why: {entry['lost_why']}")
    if entry["beyond"]:
        lines.append(f"it could not have been run again: {entry['beyond']}")
    if entry["tree"]:
        why = f" ({entry['outputs_why']})" if entry["outputs_why"] else ""
        lines.append(f"its processes were held by {entry['tree']}; its outputs on disk are {entry['outputs'] or 'not accounted for'}{why}")
    return lines + _views(entry)


def _views(entry: Entry) -> list[str]:
    """What there is to say of views of the shared tree."""
    lines: list[str] = []
    if entry["stale"]:
        again = "; it failed at first and ran again" if entry["reran"] else ""
        lines.append(f"{entry['agent']} had {entry['stale']} names of the shared tree wrong and corrected them{again}")
    if entry["escaped"]:
        lines.append(f"it left {entry['escaped']} files on {entry['agent']} that no other host sees, the first {entry['escaped_path']}")
    return lines


class _Times:
    """How many jobs took how long."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def observe(self, milliseconds: Fact) -> None:
        seconds = float(milliseconds or 0) / 1_000
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._sum += seconds

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        bounds = [*map(str, map(float, _SECONDS)), "+Inf"]
        return HistogramMetricFamily(name, text, buckets=list(zip(bounds, accumulate(self._counts), strict=True)), sum_value=self._sum)


class Metrics:
    """What Prometheus reads, made at the moment of the scrape: a job costs a few additions. Gauges are read from `now`."""

    def __init__(self, now: Callable[[], dict[str, float]]) -> None:
        self.registry = CollectorRegistry()
        self._now = now
        self._ends = dict.fromkeys(sorted(ENDS), 0)
        self._back = dict.fromkeys(sorted(BACK), 0)
        self._unexpected: Tally[str] = Tally()
        self._queued = _Times()
        self._ran = _Times()
        self._corrected = dict.fromkeys(_CORRECTED, 0)
        self.registry.register(self)

    def fold(self, record: Record) -> None:
        """Takes a record in."""
        what = record.what
        if what in self._back:
            self._back[what] += 1
        elif what == "assigned":
            self._queued.observe(record.facts.get("queued_ms"))
        elif what in ENDS:
            self._ends[what] += 1
            if what == "done" and "run_ms" in record.facts:
                self._ran.observe(record.facts["run_ms"])
            for name in self._corrected:
                self._corrected[name] += int(record.facts.get(name) or 0)

    def unexpected(self, what: str) -> None:
        """Counts a message that was dropped. `what` is one of our own words, never a peer's."""
        self._unexpected[what] += 1

    def collect(self) -> Iterator[Metric]:
        """The seam of prometheus_client: every metric as it is now."""
        yield _counts("dwrap_jobs", "Jobs that have ended, by how", "outcome", self._ends)
        yield _counts("dwrap_jobs_back", "Times that a job had to wait again after an offer or an attempt, by why", "why", self._back)
        yield _counts("dwrap_unexpected_messages", "Messages that did not fit the state they met", "what", self._unexpected)
        for name, text in _CORRECTED.items():
            yield CounterMetricFamily(f"dwrap_{name}", text, value=self._corrected[name])
        yield self._queued.family("dwrap_queue_seconds", "From submission to assignment")
        yield self._ran.family("dwrap_run_seconds", "Run time of commands on agents")
        for name, value in self._now().items():
            yield GaugeMetricFamily(f"dwrap_{name}", name.replace("_", " "), value=value)


def _counts(name: str, text: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
