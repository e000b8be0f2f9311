"""The scheduler: which job goes to which agent, and what everyone is told. `handle(event, now)` returns the actions.

Theory of operation. A job is admitted when the policy names pools of agents that may take it; it waits in the fair queue
of exactly those pools. Whenever anything has changed, `_place` offers the jobs whose turn it is to the least loaded
agents; an offer holds a slot, GO turns it into an assignment, and the agent's RESULT (or its loss) settles the job.
A job that no agent may take waits aside for NO_AGENT_SECONDS, and one that let an offer pass waits aside until its
submitter is heard again (its late GO shows that it lives; a stopped wrapper costs one slot for two seconds, no more).

Every change of a job's state goes through `_move`, which checks it against the table in job.py and emits a Record.
Knows no socket, message or clock: `now` is given, secrets come from a seam, connections are numbers, payloads are opaque.
Attempts are keyed (job, number). A slot is held from the offer until the attempt is known to be over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dwrap.distributor import events as e
from dwrap.distributor.events import JobState, Peer
from dwrap.distributor.job import MOVES, Job
from dwrap.distributor.placement import Agent, Placement
from dwrap.distributor.roster import Roster, dead_at
from dwrap.distributor.timers import Timers
from dwrap.distributor.views import Views
from dwrap.distributor.waiting import WaitingRoom

OFFER_SECONDS: Final = 2.0
MAX_PATIENCE_SECONDS: Final = 32.0
NO_AGENT_SECONDS: Final = 10.0
UNACKNOWLEDGED_SECONDS: Final = 60.0
MAX_REJECTIONS: Final = 3
MAX_JOBS: Final = 100_000


def expect_nothing(_: e.JobSpec) -> float:
    """The expected run time of a job of which nothing is known: with it a build's queue is first in, first out."""
    return 0.0


class Scheduler:
    """The core. All state of jobs and agents is in here, and nowhere else."""

    def __init__(self, secret: Callable[[], str], expect: Callable[[e.JobSpec], float] = expect_nothing) -> None:
        self.jobs: dict[str, Job] = {}
        self._roster = Roster()
        self.agents = self._roster.by_peer
        self.views = Views(self._roster)
        self._secret = secret
        self._expect = expect
        self._submitters: dict[Peer, set[str]] = {}
        self._placement = Placement()
        self._room = WaitingRoom(self._placement)
        self._unacknowledged: dict[str, Job] = {}
        self._timers = Timers()
        self._now = 0.0
        self._actions: list[e.Action] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            e.Submitted: self._submitted,
            e.Explained: self._explained,
            e.Committed: self._committed,
            e.Acknowledged: self._acknowledged,
            e.Registered: self._registered,
            e.Heartbeat: self._heartbeat,
            e.Leaving: self._leaving,
            e.Rejected: self._rejection,
            e.Finished: self._finished,
            e.ManifestTold: self._told,
            e.Disconnected: self._disconnected,
            e.DrainAsked: self._drain_asked,
            e.Tick: lambda _: None,
        }

    # ---- the surface ----

    def handle(self, event: e.Event, now: float) -> list[e.Action]:
        """Takes one event in and returns what is to be done, in order. `now` never goes back."""
        self._now = now
        self._run_timers()
        self._handlers[type(event)](event)
        self._place()
        actions, self._actions = self._actions, []
        return actions

    def next_deadline(self) -> float | None:
        """When a Tick is due at the latest, or None."""
        due = self._timers.next()
        if not self._unacknowledged:
            return due
        forget_at = next(iter(self._unacknowledged.values())).settled_at + UNACKNOWLEDGED_SECONDS
        return forget_at if due is None else min(due, forget_at)

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot or for an agent."""
        return len(self._room)

    def held_by(self, agent: Peer, job_id: str, attempt: int) -> Job | None:
        """The job, when this agent holds this attempt of it and it runs."""
        job = self.jobs.get(job_id)
        if job is None or job.state is not JobState.ASSIGNED or job.attempt != attempt:
            return None
        return job if job.agent is not None and job.agent.peer == agent else None

    # ---- submitters ----

    def _submitted(self, event: e.Submitted) -> None:
        spec = event.spec
        if spec.job in self.jobs:
            self._act(e.Unexpected("duplicate_job"))
            return self._act(e.Answer(event.peer, spec.job, "REFUSED", "a job of this id is already here; ids must be unique"))
        if len(self.jobs) >= MAX_JOBS:
            return self._act(e.Answer(event.peer, spec.job, "UNAVAILABLE", f"the queue is full: {MAX_JOBS} jobs"))
        job = Job(event.peer, event.uid, spec, self._now, self._expect(spec))
        self.jobs[spec.job] = job
        self._submitters.setdefault(event.peer, set()).add(spec.job)
        facts: dict[str, e.Fact] = {"uid": event.uid, "build": spec.build, "command": spec.command, "cwd": spec.cwd}
        facts.update(host=spec.host, pid=spec.pid, priority=spec.priority)
        self._record(job, "submitted", facts)
        self.views.see(job, self._now)
        ahead = self.waiting
        self._admit(job)
        self._place()
        if job.state is JobState.QUEUED:
            self._act(e.TellQueued(event.peer, spec.job, ahead))

    def _explained(self, event: e.Explained) -> None:
        self._act(e.TellExplained(event.peer, event.spec.job, *self._room.foresee(event.spec, event.uid)))

    def _committed(self, event: e.Committed) -> None:
        job = self.jobs.get(event.job)
        if job is None or job.peer != event.peer or job.stamp != event.stamp:
            return self._act(e.Unexpected("go"))
        if job.state is JobState.OFFERED:
            return self._assign(job, event.payload)
        if job.state is JobState.QUEUED and self._room.is_aside(job):
            return self._admit(job)  # late, therefore void; but its submitter lives
        self._act(e.Unexpected("go"))

    def _acknowledged(self, event: e.Acknowledged) -> None:
        job = self._unacknowledged.get(event.job)
        if job is None or job.peer != event.peer:
            return self._act(e.Unexpected("ack"))
        self._forget(job)

    def _submitter_gone(self, job: Job) -> None:
        job.peer = None
        if job.state is JobState.SETTLED:
            return self._forget(job)
        if job.state is JobState.ASSIGNED and job.agent is not None:
            self._record(job, "abandoned", {})
            return self._act(e.Kill(job.agent.peer, job.id, job.attempt))  # its slot stays taken until its tree is gone
        self._settle(job, "cancelled", {"reason": "its submitter went away before it was assigned"})

    # ---- agents ----

    def _registered(self, event: e.Registered) -> None:
        refusal = self._roster.refusal(event, self._now)
        if refusal:
            return self._act(e.RefuseAgent(event.peer, refusal))
        displaced = self._roster.displaced(event)
        if displaced is not None:
            self._give_up(displaced, "it came back on a new connection")
        agent = self.agents.get(event.peer)
        if agent is None:
            agent = self._new_agent(event)
        else:
            self._rename(agent, event.spec)
        self._act(e.Welcome(agent.peer, agent.token))
        for job_id, attempt in event.spec.running:
            if self.held_by(agent.peer, job_id, attempt) is None:
                self._act(e.Kill(agent.peer, job_id, attempt))
        self._agent_changed(agent)

    def _new_agent(self, event: e.Registered) -> Agent:
        agent = self._roster.enter(event, self._secret(), self._now)
        self._timers.at(dead_at(agent), self._lease_due, agent)
        self._record_agent(agent, "joined", "")
        return agent

    def _rename(self, agent: Agent, spec: e.AgentSpec) -> None:
        if self._placement.remove(agent):
            self._readmit_all()
        self._roster.rename(agent, spec)

    def _heartbeat(self, event: e.Heartbeat) -> None:
        agent = self.agents.get(event.peer)
        if agent is None or event.token != agent.token:
            return self._act(e.Unexpected("heartbeat"))
        self._roster.heard(agent, event.load, self._now)
        self._act(e.RenewLease(event.peer))
        self._agent_changed(agent)

    def _leaving(self, event: e.Leaving) -> None:
        agent = self.agents.get(event.peer)
        if agent is None:
            return self._act(e.Unexpected("leaving"))
        self._stop_feeding(agent)

    def _drain_asked(self, event: e.DrainAsked) -> None:
        agent = self._roster.named(event.name)
        if agent is not None:
            self._stop_feeding(agent)
            self._act(e.Drain(agent.peer))

    def _stop_feeding(self, agent: Agent) -> None:
        if not agent.draining:
            agent.draining = True
            self._record_agent(agent, "draining", "")
        self._agent_changed(agent)

    def _lease_due(self, agent: Agent, _: None) -> None:
        if self.agents.get(agent.peer) is not agent:
            return
        if dead_at(agent) > self._now:
            return self._timers.at(dead_at(agent), self._lease_due, agent)
        self._give_up(agent, f"it was silent for {self._now - agent.heard_at:.0f} s")

    def _give_up(self, agent: Agent, reason: str) -> None:
        self._lose(agent, reason)
        self._act(e.Disconnect(agent.peer))

    def _lose(self, agent: Agent, reason: str) -> None:
        """The agent is gone, with all that it had. What was assigned may have started, so nothing is placed again."""
        self._roster.remove(agent)
        self._record_agent(agent, "left", reason)
        pool_has_gone = self._placement.remove(agent)
        if any(self.jobs[job_id].state is JobState.ASSIGNED for job_id in agent.jobs):
            self.views.nobody_can_tell()
        for job_id in sorted(agent.jobs):
            job = self.jobs[job_id]
            if job.state is JobState.OFFERED:
                self._requeue(job, "withdrawn", f"agent {agent.name} was lost: {reason}")
            else:
                self._fail(job, f"agent {agent.name} was lost while it had the job: {reason}", safe=False)
        if pool_has_gone:
            self._readmit_all()

    def _rejection(self, event: e.Rejected) -> None:
        job = self.held_by(event.peer, event.job, event.attempt)
        if job is None or job.agent is None:
            return self._act(e.Unexpected("reject"))
        job.avoid = (*job.avoid, job.agent.name)
        reason = f"agent {job.agent.name} did not take it: {event.reason}"
        if job.peer is None:
            return self._settle(job, "cancelled", {"reason": reason})
        if len(job.avoid) >= MAX_REJECTIONS:
            return self._fail(job, reason, safe=True)
        self._requeue(job, "rejected", reason)

    def _finished(self, event: e.Finished) -> None:
        job = self.held_by(event.peer, event.job, event.attempt)
        if event.outcome.error == "infrastructure" and not event.outcome.facts.get("outputs") and event.peer in self.agents:
            self.views.nobody_can_tell()  # its runner died
        if job is None or job.agent is None:
            if event.peer not in self.agents:
                return self._act(e.Unexpected("result"))
            return self._act(e.AckResult(event.peer, event.job, event.attempt))  # nobody waits for it any more
        agent, outcome = job.agent, event.outcome
        agent.done += 1
        facts = {**outcome.facts, "status": outcome.status, "error": outcome.error, "reason": outcome.reason}
        if job.peer is None:
            self._settle(job, "cancelled", facts)
        elif outcome.error in ("infrastructure", "cwd"):
            self._fail(job, f"agent {agent.name}: {outcome.reason or outcome.error}", safe=outcome.error == "cwd")
        else:
            queued_ms = round(1_000 * (job.assigned_at - job.submitted_at))
            self._act(e.DeliverResult(job.peer, job.id, event.payload, agent.name, queued_ms))
            return self._settle(job, "done", facts)
        self._act(e.AckResult(event.peer, event.job, event.attempt))

    def _disconnected(self, event: e.Disconnected) -> None:
        agent = self.agents.get(event.peer)
        if agent is not None:
            self._lose(agent, "its connection was closed")
        for job_id in sorted(self._submitters.pop(event.peer, ())):
            self._submitter_gone(self.jobs[job_id])

    # ---- what changed on the shared trees ----

    def _told(self, event: e.ManifestTold) -> None:
        agent = self.agents.get(event.peer)
        if agent is not None and agent.trusted:  # also of a job that is no longer its own: it did write this
            self.views.wrote(agent, event.entries)
            job = self.held_by(agent.peer, event.job, event.attempt)
            if job is not None and job.peer is not None:
                self._act(e.ForwardManifest(job.peer, event.frames))
            return
        job = self.jobs.get(event.job)
        is_before_go = job is not None and job.peer == event.peer and job.state in (JobState.QUEUED, JobState.OFFERED)
        if job is None or not is_before_go or not self.views.changed(job, event.entries):
            self._act(e.Unexpected("manifest"))

    # ---- placing ----

    def _admit(self, job: Job) -> None:
        """Puts a QUEUED job where it is to wait, or answers it at once."""
        self._room.step_out(job)
        verdict = self._room.judge(job.spec, job.uid)
        if verdict.pools:
            job.homeless_since = None
        if verdict.pools and (job.avoid or job.spec.agent):
            self._room.choosy[job.id] = job
        elif verdict.pools:
            self._room.enqueue(job, verdict.pools)
        elif verdict.verb == "HERE":
            self._answer(job, verdict.verb, verdict.reason)
        else:
            self._room.make_homeless(job)
            if job.homeless_since is None:
                job.homeless_since = self._now
                self._timers.at(self._now + NO_AGENT_SECONDS, self._homeless_due, job, self._now)

    def _readmit_all(self) -> None:
        """A pool has come or gone: every waiting job is judged anew."""
        for job in self._room.unsettled():
            self._admit(job)
        self._room.forget_empty()

    def _place(self) -> None:
        if not len(self._room):
            return
        if self._room.choosy:
            self._place_choosy()
        while (chosen := self._room.take_next()) is not None:
            self._offer(*chosen)

    def _place_choosy(self) -> None:
        for job in list(self._room.choosy.values()):
            if self._placement.is_full(job.spec.agent):
                continue
            verdict = self._room.judge(job.spec, job.uid)
            agent = self._placement.best(verdict.pools, job.avoid, job.spec.agent)
            if agent is not None:
                self._offer(job, agent)
            elif not verdict.pools:
                self._admit(job)
            elif self._placement.are_all_among(verdict.pools, job.avoid, job.spec.agent):
                self._fail(job, f"every agent that may take it has refused it: {', '.join(job.avoid)}", safe=True)

    def _offer(self, job: Job, agent: Agent) -> None:
        if job.peer is None:
            raise AssertionError("a job without a submitter is offered")
        job.stamp = self._secret()
        job.offered_at = self._now
        self._hold(job, agent)
        self._move(job, JobState.OFFERED, "offered", {"agent": agent.name})
        self._timers.at(self._now + OFFER_SECONDS, self._offer_due, job, job.stamp)
        self.views.see(job, self._now)
        self._act(e.Offer(job.peer, job.id, job.stamp, job.views))

    def _offer_due(self, job: Job, stamp: str) -> None:
        if job.state is not JobState.OFFERED or job.stamp != stamp:
            return
        patience = min(OFFER_SECONDS * 2.0**job.missed_offers, MAX_PATIENCE_SECONDS)
        job.missed_offers += 1
        self._release(job)
        self._move(job, JobState.QUEUED, "unanswered", {"reason": "its submitter did not answer the offer in time"})
        self._timers.at(self._now + patience, self._patience_due, job, stamp)

    def _patience_due(self, job: Job, stamp: str) -> None:
        if job.state is JobState.QUEUED and job.stamp == stamp and self._room.is_aside(job):
            self._admit(job)

    def _assign(self, job: Job, payload: tuple[bytes, ...]) -> None:
        agent = job.agent
        uid = agent.pool.serves if job.uid is None and agent is not None else job.uid
        if agent is None or uid is None:
            raise AssertionError("a job without an agent or a user is assigned")
        job.attempt += 1
        job.missed_offers = 0
        job.assigned_at = self._now
        facts: dict[str, e.Fact] = {"attempt": job.attempt, "queued_ms": round(1_000 * (self._now - job.submitted_at))}
        self._move(job, JobState.ASSIGNED, "assigned", facts)
        self._act(e.Assign(agent.peer, job.spec, job.attempt, uid, payload, job.views, *self.views.due(job, agent), job.burst))

    # ---- transitions ----

    def _move(self, job: Job, to: JobState, what: str, facts: dict[str, e.Fact]) -> None:
        """The one place where a job's state changes."""
        if to not in MOVES[job.state]:
            raise AssertionError(f"job {job.id}: no move from {job.state} to {to}")
        self._room.step_out(job)
        job.state = to
        self._record(job, what, facts)

    def _requeue(self, job: Job, what: str, reason: str) -> None:
        self._release(job)
        self._move(job, JobState.QUEUED, what, {"reason": reason, "agent": ""})
        self._admit(job)

    def _settle(self, job: Job, what: str, facts: dict[str, e.Fact]) -> None:
        """The end of a job. One whose RESULT is on its way to a submitter is kept until that has acknowledged it."""
        self._release(job, forget=what != "done")
        job.settled_at = self._now
        self.views.settled(job, self._now)
        self._move(job, JobState.SETTLED, what, facts)
        if what == "done":
            self._unacknowledged[job.id] = job
        else:
            self._drop(job)

    def _answer(self, job: Job, verb: str, reason: str) -> None:
        if job.was_committed:
            return self._fail(job, reason, safe=True)
        if job.peer is not None:
            self._act(e.Answer(job.peer, job.id, verb, reason))
        self._settle(job, verb.lower(), {"reason": reason})

    def _fail(self, job: Job, reason: str, safe: bool) -> None:
        if job.peer is not None:
            self._act(e.TellFailed(job.peer, job.id, reason, safe))
        self._settle(job, "failed", {"reason": reason})

    def _forget(self, job: Job) -> None:
        """The submitter has its result, or nobody wants it: the agent may drop it."""
        del self._unacknowledged[job.id]
        if job.agent is not None:
            self._act(e.AckResult(job.agent.peer, job.id, job.attempt))
        self._drop(job)

    def _drop(self, job: Job) -> None:
        del self.jobs[job.id]
        if job.peer is not None:
            ids = self._submitters[job.peer]
            ids.discard(job.id)
            if not ids:
                del self._submitters[job.peer]

    # ---- helpers ----

    def _hold(self, job: Job, agent: Agent) -> None:
        job.agent = agent
        agent.jobs.add(job.id)
        self._placement.gave(agent)

    def _release(self, job: Job, forget: bool = True) -> None:
        agent = job.agent
        if agent is None:
            return
        agent.jobs.discard(job.id)
        if self.agents.get(agent.peer) is agent:
            self._placement.update(agent)
        if forget:
            job.agent = None

    def _agent_changed(self, agent: Agent) -> None:
        if self._placement.update(agent):
            self._readmit_all()
        for job in self._room.awaiting(agent.name):
            self._admit(job)

    def _homeless_due(self, job: Job, since: float) -> None:
        if job.homeless_since == since and job.id in self._room.homeless:
            verdict = self._room.judge(job.spec, job.uid)
            self._answer(job, verdict.verb, f"{verdict.reason} (waited {NO_AGENT_SECONDS:.0f} s)")

    def _run_timers(self) -> None:
        self._timers.run(self._now)
        while self._unacknowledged:
            oldest = next(iter(self._unacknowledged.values()))
            if oldest.settled_at + UNACKNOWLEDGED_SECONDS > self._now:
                return
            self._forget(oldest)

    def _act(self, action: e.Action) -> None:
        self._actions.append(action)

    def _record(self, job: Job, what: str, facts: dict[str, e.Fact]) -> None:
        facts["state"] = job.state.value
        self._act(e.Record(self._now, job.id, what, facts))

    def _record_agent(self, agent: Agent, what: str, reason: str) -> None:
        facts: dict[str, e.Fact] = {"agent": agent.name, "slots": agent.spec.slots, "reason": reason, "uid": agent.uid}
        self._act(e.Record(self._now, "", what, facts))
