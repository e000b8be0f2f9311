"""The scheduler: which job goes to which agent, and what everyone is told. `handle(event, now)` returns the actions.

Theory of operation. A job is admitted when the policy names pools of agents that may take it; it waits in the fair queue
of exactly those pools. Whenever anything has changed, jobs whose turn it is are offered to the least loaded
agents; an offer holds a slot, GO turns it into an assignment, and the agent's RESULT settles the job. What happens when one of the two
is not heard of any more: missing.py.
A job that no agent may take waits aside for NO_AGENT_SECONDS, and one that let an offer pass waits aside until its
submitter is heard again (its late GO shows that it lives; a stopped wrapper costs one slot for two seconds, no more).

Knows no socket, message or clock: `now` is given, secrets come from a seam, connections are numbers, payloads are opaque.
Attempts are keyed (job, number).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dwrap.distributor import events as e
from dwrap.distributor.fleet import Fleet
from dwrap.distributor.jobs import UNACKNOWLEDGED_SECONDS, Jobs
from dwrap.distributor.missing import Missing
from dwrap.distributor.past import Past
from dwrap.distributor.submitters import Submitters


def expect_nothing(_: e.JobSpec) -> float:
    """The expected run time of a job of which nothing is known: with it a build's queue is first in, first out."""
    return 0.0


class Scheduler:
    """The core. All state of jobs and agents is in here, and nowhere else."""

    def __init__(
        self,
        secret: Callable[[], str],
        expect: Callable[[e.JobSpec], float] = expect_nothing,
        past: Past | None = None,
        strict: bool = True,
    ) -> None:
        """`past`: what is known of epochs before this one. `strict`: no job goes to an agent of another environment."""
        self._jobs = Jobs(secret, expect, past or Past(), strict)
        self.is_strict = strict
        self.jobs = self._jobs.by_id
        self.agents = self._jobs.roster.by_peer
        self.views = self._jobs.views
        missing = Missing(self._jobs)
        self._fleet = Fleet(self._jobs, missing)
        self._submitters = Submitters(self._jobs, missing)
        self.told_by = self._jobs.told_by
        self._handlers: dict[type, Callable[[Any], None]] = {
            e.Submitted: self._submitters.submitted,
            e.Explained: self._submitters.explained,
            e.Committed: self._submitters.committed,
            e.Attached: self._submitters.attached,
            e.Acknowledged: self._submitters.acknowledged,
            e.Registered: self._fleet.registered,
            e.Heartbeat: self._fleet.heartbeat,
            e.Leaving: self._fleet.leaving,
            e.Rejected: self._fleet.rejected,
            e.Made: self._fleet.made,
            e.Joined: self._fleet.joined,
            e.Finished: self._fleet.finished,
            e.ManifestTold: self._told,
            e.Disconnected: self._disconnected,
            e.DrainAsked: self._fleet.drain_asked,
            e.Tick: lambda _: None,
        }

    def handle(self, event: e.Event, now: float) -> list[e.Action]:
        """Takes one event in and returns what is to be done, in order. `now` never goes back."""
        jobs = self._jobs
        jobs.now = now
        jobs.timers.run(now)
        jobs.forget_old()
        self._handlers[type(event)](event)
        jobs.place()
        actions, jobs.actions = jobs.actions, []
        return actions

    def next_deadline(self) -> float | None:
        """When a Tick is due at the latest, or None."""
        due = self._jobs.timers.next()
        if not self._jobs.unacknowledged:
            return due
        forget_at = next(iter(self._jobs.unacknowledged.values())).settled_at + UNACKNOWLEDGED_SECONDS
        return forget_at if due is None else min(due, forget_at)

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot or for an agent."""
        return len(self._jobs.room)

    def _disconnected(self, event: e.Disconnected) -> None:
        self._fleet.disconnected(event.peer)
        self._submitters.disconnected(event.peer)

    def _told(self, event: e.ManifestTold) -> None:
        """What changed on the shared trees."""
        jobs, agent = self._jobs, self.agents.get(event.peer)
        if agent is not None and agent.trusted:  # also of a job that is no longer its own: it did write this
            jobs.views.wrote(agent, event.entries)
            job = self.jobs.get(event.job)
            if job is not None and job.peer is not None and self.told_by(event.peer, event.job, event.attempt) is job:
                jobs.act(e.ForwardManifest(job.peer, event.frames))
            return
        job = self.jobs.get(event.job)
        is_before_go = job is not None and job.peer == event.peer and job.state in (e.JobState.QUEUED, e.JobState.OFFERED)
        if job is None or not is_before_go or not jobs.views.changed(job, event.entries):
            jobs.act(e.Unexpected("manifest"))
