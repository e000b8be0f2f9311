"""What the distributor tells of itself: /status.json, /metrics and the answers to QUERY.

Puts together the history (records.py) and what the scheduler holds now. Knows the shape of the answers; changes nothing.
What anybody may ask for, and the log, name no job and no path of a job's.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from prometheus_client import generate_latest

import dwrap.distributor
from dwrap.distributor.events import ANY_UID, JobState, Record
from dwrap.distributor.placement import Agent
from dwrap.distributor.records import HISTORY_JOBS, Asker, History, Metrics, explain, pathless
from dwrap.distributor.scheduler import Scheduler
from dwrap.protocol.messages import VERSION, Fields, ProtocolError

log: Final = logging.getLogger("dwrap.distributor")


class Reports:
    """The distributor's answers about itself. To be used from the broker's thread only."""

    def __init__(self, scheduler: Scheduler, epoch: int) -> None:
        self.epoch = epoch
        self._scheduler = scheduler
        self._started_at = time.monotonic()
        self._history = History(time.time() - time.monotonic())
        self._metrics = Metrics(self._gauges)

    def fold(self, record: Record) -> None:
        """Takes a record in."""
        if record.job:
            self._history.fold(record)
            self._metrics.fold(record)
        else:
            facts = {key: pathless(value) if isinstance(value, str) else value for key, value in record.facts.items()}
            log.info("agent %s %s", record.what, json.dumps(facts))

    def unexpected(self, what: str) -> None:
        """Counts a message that was dropped."""
        self._metrics.unexpected(what)

    def answer(
        self, what: str, fields: Fields, addresses: Sequence[str], *, asker: int | None = None, is_operator: bool = False
    ) -> dict[str, Any]:
        """The answer to a QUERY of this uid. Raises ProtocolError for a kind that is not known."""
        who = Asker(asker, is_operator)
        if what == "status":
            return self.status(addresses)
        if what == "agents":
            return {"agents": self._agents(), "environment": self._policy}
        if what == "jobs":
            return {"jobs": self._history.entries(fields.text("build"), fields.number("limit", HISTORY_JOBS), who)}
        if what == "why":
            found = self._history.find(fields.text("job", "last"), who)
            if isinstance(found, str):
                return {"record": None, "lines": [found]}
            return {"record": found, "lines": explain(found)}
        if what == "environment":
            return self._environment(fields.text("agent"))
        raise ProtocolError("field what is not one of status, agents, jobs, why, environment, drain, join")

    def status(self, addresses: Sequence[str]) -> dict[str, Any]:
        """The whole state in numbers."""
        gauges = self._gauges()
        return {
            "version": dwrap.distributor.version(),
            "protocol": VERSION,
            "epoch": self.epoch,
            "uptime_seconds": round(time.monotonic() - self._started_at, 1),
            "addresses": list(addresses),
            "environment": self._policy,
            "agents": self._agents(),
            "slots": int(gauges["slots"]),
            "queued": int(gauges["queued_jobs"]),
            "running": int(gauges["running_jobs"]),
            "missing": int(gauges["missing_jobs"]),
            "journal": {"directories": int(gauges["journal_directories"]), "bytes": int(gauges["journal_bytes"])},
            "totals": dict(self._history.totals),
            "here_by_reason": dict(self._history.here_reasons),
        }

    def metrics_text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._metrics.registry)

    @property
    def _policy(self) -> str:
        """What becomes of jobs for which there is no agent of the same environment: cli.py's --environment."""
        return "strict" if self._scheduler.is_strict else "warn"

    def _agents(self) -> list[dict[str, Any]]:
        return [_shown(agent) for agent in sorted(self._scheduler.agents.values(), key=lambda agent: agent.name)]

    def _environment(self, name: str) -> dict[str, Any]:
        spec = next((agent.spec for agent in self._scheduler.agents.values() if agent.name == name), None)
        if spec is None:
            return {"error": f"no agent is named {name}"}
        return {"agent": name, "identity": spec.identity, "cpu": spec.cpu, "packages": spec.packages.splitlines()}

    def _gauges(self) -> dict[str, float]:
        agents = [agent for agent in self._scheduler.agents.values() if agent.is_serving]
        states = Counter(job.state for job in self._scheduler.jobs.values())
        running, missing = states[JobState.ASSIGNED], states[JobState.MISSING]
        return {
            "agents": len(agents),
            "slots": sum(agent.spec.slots for agent in agents),
            "assigned_slots": sum(len(agent.jobs) for agent in self._scheduler.agents.values()),
            "queued_jobs": self._scheduler.waiting,
            "running_jobs": running,
            "missing_jobs": missing,
            "journal_directories": len(self._scheduler.views.journal),
            "journal_bytes": self._scheduler.views.journal.size,
        }


def _shown(agent: Agent) -> dict[str, Any]:
    spec, load = agent.spec, agent.load
    return {
        "name": spec.name,
        "host": spec.host,
        "uid": agent.uid,
        "serves": "any" if spec.serves == ANY_UID else spec.serves,
        "allow_root": spec.allow_root,
        "slots": spec.slots,
        "assigned": len(agent.jobs),
        "jobs_done": agent.done,
        "is_serving": agent.is_serving,
        "is_draining": agent.draining,
        "is_short_of_memory": agent.is_short_of_memory,
        "suspended": pathless(agent.suspended),
        "leftover": len(agent.stale) + spec.leftover,
        "foreign_cpus": load.foreign_cpus,
        "memory_available_bytes": load.memory_available_bytes,
        "psi": {"cpu": load.psi_cpu, "memory": load.psi_memory, "io": load.psi_io},
        "cpus": spec.cpus,
        "memory_bytes": spec.memory_bytes,
        "labels": sorted(spec.labels),
        "roots": list(spec.roots),
        "identity": spec.identity,
        "cpu": spec.cpu,
        "tree": spec.tree,
        "views": spec.views,
        "mounts": list(spec.mounts),
        "flaws": list(spec.flaws),
    }
