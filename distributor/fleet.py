"""What agents say, and what follows for the jobs they have: registration, leases, loss, return, results.

An agent whose connection ends leaves its jobs MISSING. They are found again when it comes back and names them; they were never started when
it comes back, or another incarnation vouches for it, and nobody names them; they are lost when its lease is over and it has not come back.
An agent that runs what was given up is in quarantine until that has ended. Knows jobs.py; does not know submitters' messages.
"""

from __future__ import annotations

import json
from typing import Final

from dwrap.distributor import events as e
from dwrap.distributor.events import JobState, Peer
from dwrap.distributor.job import NOBODY, Job
from dwrap.distributor.jobs import MAX_REJECTIONS, Jobs
from dwrap.distributor.past import RETURN_SECONDS, Epitaph
from dwrap.distributor.placement import Agent
from dwrap.distributor.roster import LEASE_GRACE_SECONDS, dead_at

ORPHAN_SECONDS: Final = 300.0  # how long an attempt that cannot be followed by another may go on without its distributor
_BLIND: Final = "nobody knows what it has done"
_GONE: Final = "it was ended because its submitter was away"


def _serves(agent: Agent, job: Job) -> bool:
    """Whether the job's user is one whom the agent serves: of anybody else's jobs its word says nothing."""
    return job.uid is None or agent.pool.serves in (e.ANY_UID, job.uid)


class Fleet:
    """The agents' side of the scheduler."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._roster = jobs.roster
        for name, known in jobs.past.assigned.items():
            orphaned = jobs.past.recover_until + ORPHAN_SECONDS if known.beyond else None
            job = self.restore(name, known.attempt, known.uid, (known.agent or "", known.incarnation), known.lost_at or orphaned)
            job.made.update(dict.fromkeys(known.made))
            job.beyond, job.blind, job.hearsay = known.beyond, False, False
            if known.agent is None:
                jobs.requeue(job, "restored", "the attempt before is over")
                self._expect_claim(job)

    def held_by(self, peer: Peer, name: str, attempt: int) -> Job | None:
        """The job, when this agent holds this attempt of it and it runs."""
        job = self._jobs.by_id.get(name)
        if job is None or job.state is not JobState.ASSIGNED or job.attempt != attempt:
            return None
        return job if job.agent is not None and job.agent.peer == peer else None

    def told_by(self, peer: Peer, name: str, attempt: int) -> Job | None:
        """The job whose attempt this agent may tell of: one that it holds, or whose result has not been acknowledged."""
        job = self._jobs.by_id.get(name)
        if job is None or job.attempt != attempt or job.joining or job.state not in (JobState.ASSIGNED, JobState.SETTLED):
            return None
        return job if job.agent is not None and job.agent.peer == peer else None

    def attach(self, job: Job, offsets: tuple[tuple[str, int], ...]) -> None:
        """The agent, which is connected, is to say again what the job's submitter misses."""
        if job.agent is None:
            raise AssertionError("there is no agent to say anything")
        job.joining = True
        self._jobs.act(e.ForwardAttach(job.agent.peer, job.id, job.attempt, offsets))

    def joined(self, event: e.Joined) -> None:
        """It begins to."""
        job = self._jobs.by_id.get(event.job)
        if job is not None and job.attempt == event.attempt and job.agent is not None and job.agent.peer == event.peer:
            job.joining = False

    # ---- coming and going ----

    def registered(self, event: e.Registered) -> None:
        """REGISTER. What it says of attempts counts once its token is back."""
        jobs = self._jobs
        refusal = self._roster.refusal(event, jobs.now)
        if refusal:
            return jobs.act(e.RefuseAgent(event.peer, refusal, self._roster.displaced(event) is not None))
        displaced = self._roster.displaced(event)
        if displaced is not None:
            self._give_up(displaced, "it came back on a new connection")
        agent = self._roster.by_peer.get(event.peer)
        if agent is None:
            agent = self._new_agent(event)
        else:
            self._rename(agent, event.spec)
        jobs.act(e.Welcome(agent.peer, agent.token))
        for job in jobs.by_id.values():
            if job.state is JobState.MISSING and job.holder == (agent.name, agent.spec.incarnation) and _serves(agent, job):
                self._await(job, max(job.lost_at, dead_at(agent)))  # WELCOME gives it a lease
        if agent.trusted:
            self._compare(agent)
        self._changed(agent)

    def _new_agent(self, event: e.Registered) -> Agent:
        jobs = self._jobs
        agent = self._roster.enter(event, jobs.secret(), jobs.now)
        jobs.timers.at(dead_at(agent), self._lease_due, agent)
        if agent.suspended:
            jobs.timers.at(self._roster.standing(agent.name).suspended_until, self._resume, agent)
        jobs.record_agent(agent, "joined", "")
        return agent

    def _rename(self, agent: Agent, spec: e.AgentSpec) -> None:
        self._jobs.placement.remove(agent)
        self._roster.rename(agent, spec)

    def heartbeat(self, event: e.Heartbeat) -> None:
        """HEARTBEAT. The first one shows that the agent is who it is."""
        agent = self._roster.by_peer.get(event.peer)
        if agent is None or event.token != agent.token:
            return self._jobs.act(e.Unexpected("heartbeat"))
        is_first = not agent.trusted
        self._roster.heard(agent, event.load, self._jobs.now)
        self._learn(agent)
        self._jobs.act(e.RenewLease(event.peer))
        if is_first:
            self._compare(agent)
        self._changed(agent)

    def _learn(self, agent: Agent) -> None:
        """What its attempts did before this epoch has been told by the time of some HEARTBEAT."""
        for name in agent.jobs:
            job = self._jobs.by_id[name]
            if job.blind_for:
                job.blind_for -= 1
                if job.blind and not job.blind_for:
                    self._know(job, agent)

    def _know(self, job: Job, agent: Agent) -> None:
        job.blind = False
        facts: dict[str, e.Fact] = {"attempt": job.attempt, "uid": job.owner, "agent": agent.name, "incarnation": agent.spec.incarnation}
        facts.update(made=json.dumps(job.undo), beyond=job.beyond)
        self._jobs.record(job, "known", facts)

    def leaving(self, event: e.Leaving) -> None:
        """LEAVING."""
        agent = self._roster.by_peer.get(event.peer)
        if agent is None:
            return self._jobs.act(e.Unexpected("leaving"))
        self._stop_feeding(agent)

    def drain_asked(self, event: e.DrainAsked) -> None:
        """An operator's wish."""
        agent = self._roster.named(event.name)
        if agent is not None:
            self._stop_feeding(agent)
            self._jobs.act(e.Drain(agent.peer))

    def _stop_feeding(self, agent: Agent) -> None:
        if not agent.draining:
            agent.draining = True
            self._jobs.record_agent(agent, "draining", "")
        self._changed(agent)

    def _changed(self, agent: Agent) -> None:
        self._jobs.placement.update(agent)
        for job in self._jobs.room.awaiting(agent.name):
            self._jobs.admit(job)

    def _lease_due(self, agent: Agent, _: None) -> None:
        now = self._jobs.now
        if self._roster.by_peer.get(agent.peer) is not agent:
            return
        if dead_at(agent) > now:
            return self._jobs.timers.at(dead_at(agent), self._lease_due, agent)
        self._give_up(agent, f"it was silent for {now - agent.heard_at:.0f} s")

    def _give_up(self, agent: Agent, reason: str) -> None:
        self._lose(agent, reason)
        self._jobs.act(e.Disconnect(agent.peer))

    def disconnected(self, peer: Peer) -> None:
        """A connection has ended, an agent's perhaps."""
        agent = self._roster.by_peer.get(peer)
        if agent is not None:
            self._lose(agent, "its connection was closed")

    def _lose(self, agent: Agent, reason: str) -> None:
        """Nothing more is heard of the agent: what it has been given is missing."""
        jobs = self._jobs
        self._roster.remove(agent)
        jobs.record_agent(agent, "left", reason)
        jobs.placement.remove(agent)
        for job in [job for job in jobs.by_id.values() if job.agent is agent]:
            if job.state is JobState.OFFERED:
                jobs.requeue(job, "withdrawn", f"agent {agent.name} was lost: {reason}")
            elif job.state is JobState.ASSIGNED:
                self._miss(job, agent, reason)
            elif job.peer != job.delivered_to:
                self.await_result(job, agent)  # it was being fetched

    def _miss(self, job: Job, agent: Agent, reason: str) -> None:
        job.joining = False
        until = agent.lease_until + (ORPHAN_SECONDS if job.beyond else LEASE_GRACE_SECONDS)
        self._jobs.release(job)
        self._jobs.move(job, JobState.MISSING, "missing", {"reason": f"nothing is heard of agent {agent.name}: {reason}", "until": until})
        self._await(job, until)
        if job.peer is not None:
            self._jobs.act(e.TellMissing(job.peer, job.id))

    def await_result(self, job: Job, agent: Agent) -> None:
        """The agent that keeps the job's result is away. Its submitter waits for both."""
        if job.peer is not None:
            self._jobs.act(e.TellMissing(job.peer, job.id))
        self._jobs.timers.at(dead_at(agent), self._result_lost, job, agent)

    def _result_lost(self, job: Job, agent: Agent) -> None:
        """Unless the agent has come back meanwhile, or nobody waits any more."""
        if job.peer is not None and job.agent is agent:
            self._jobs.begin_anew(job)

    def _await(self, job: Job, until: float) -> None:
        job.lost_at = until
        self._jobs.timers.at(until, self._lost, job, until)

    # ---- what is missing, found and lost ----

    def restore(
        self, name: str, attempt: int, uid: int | None, holder: tuple[str, str] = NOBODY, lost_at: float | None = None
    ) -> Job:
        """A job of an epoch before this one, of which more may be heard until the time for that is over: `lost_at`, if that was known,
        for restarts in a row must not put it off, but not before its agent had time to dial again.
        """
        jobs = self._jobs
        job = jobs.enter(None, uid, e.JobSpec(name, "/", "?", ""))
        job.state, job.attempt, job.holder, job.blind, job.hearsay, job.is_described = JobState.MISSING, attempt, holder, True, True, False
        until = max(jobs.now, jobs.past.recover_until) if lost_at is None else max(jobs.past.began + RETURN_SECONDS, lost_at)
        jobs.record(job, "missing", {"until": until})
        self._await(job, until)
        return job

    def _compare(self, agent: Agent) -> None:
        """What an agent says that it has, against what it should have."""
        for held in agent.spec.running:
            self._has(agent, held, runs=True)
        for held in agent.spec.kept:
            self._has(agent, held, runs=False)
        vouched = {(agent.name, incarnation) for incarnation in (agent.spec.incarnation, *agent.spec.former) if incarnation}
        for job in [job for job in self._jobs.by_id.values() if job.state is JobState.MISSING and job.holder in vouched]:
            if _serves(agent, job):
                self._never_started(job)

    def _has(self, agent: Agent, held: e.Held, runs: bool) -> None:
        jobs, (name, attempt, uid) = self._jobs, held
        job = self._restored(agent, name, attempt, uid)
        is_its = job is not None and _serves(agent, job) and job.holder[0] in ("", agent.name)
        if job is not None and is_its and job.attempt == attempt and job.state is JobState.MISSING:
            return self._found(job, agent, runs)
        if job is not None and is_its and job.attempt == attempt and job.state is JobState.SETTLED:
            job.agent = agent  # its result is being fetched
            if job.peer is not None:
                jobs.act(e.Resume(job.peer, name))
        elif self.held_by(agent.peer, name, attempt) is None and runs:
            agent.stale.add((name, attempt))
            jobs.act(e.Kill(agent.peer, name, attempt))
        elif self.held_by(agent.peer, name, attempt) is None:
            jobs.act(e.AckResult(agent.peer, name, attempt))

    def _restored(self, agent: Agent, name: str, attempt: int, uid: int) -> Job | None:
        """The job of an attempt that an agent says to have, as far as its word counts."""
        jobs, serves = self._jobs, agent.pool.serves
        job = jobs.by_id.get(name)
        if serves != e.ANY_UID:
            uid = serves
        elif job is not None and job.hearsay and job.uid != uid:  # one that may serve anybody knows for whom it runs
            self._disown(job)
            job = None
        if job is None and jobs.now < jobs.past.recover_until and jobs.past.epitaph(name) is None:
            job = self.restore(name, attempt, uid, (agent.name, agent.spec.incarnation))
            job.is_anyones = serves != e.ANY_UID
        if job is not None and _serves(agent, job):
            self.supersede(job, attempt)
        return job

    def _disown(self, job: Job) -> None:
        """Whoever claimed the job was not its submitter."""
        jobs, agent = self._jobs, job.agent
        if job.peer is not None:
            jobs.act(e.Answer(job.peer, job.id, "REFUSED", "the job is another user's"))
        if agent is not None:
            agent.stale.add((job.id, job.attempt))
            jobs.act(e.Kill(agent.peer, job.id, job.attempt))
        jobs.settle(job, "cancelled", {"reason": "it was claimed by another user"})
        jobs.past.exhume(job.id)

    def supersede(self, job: Job, attempt: int) -> bool:
        """Somebody knows of a newer attempt than whoever told of the job first: there is no newer one unless the others are over."""
        agent = job.agent
        if attempt <= job.attempt or not job.hearsay or job.state not in (JobState.MISSING, JobState.ASSIGNED):
            return False
        if agent is not None:
            agent.stale.add((job.id, job.attempt))
            self._jobs.act(e.Kill(agent.peer, job.id, job.attempt))
            self._miss(job, agent, "a newer attempt is known of")
        job.attempt, job.holder, job.blind = attempt, NOBODY, True
        self._await(job, self._jobs.past.recover_until)
        return True

    def _found(self, job: Job, agent: Agent, runs: bool) -> None:
        jobs = self._jobs
        jobs.take_back(job, agent, runs)
        job.holder = agent.name, agent.spec.incarnation
        if job.killed:
            jobs.act(e.Kill(agent.peer, job.id, job.attempt))
        elif job.peer is not None:
            jobs.act(e.Resume(job.peer, job.id))
        elif job.is_unclaimed:
            self._expect_claim(job)

    def _expect_claim(self, job: Job) -> None:
        """The submitter of a job of an earlier epoch has until the end of the recovery to come back."""
        jobs = self._jobs
        job.gone_at = jobs.now
        jobs.timers.at(max(jobs.past.recover_until, jobs.now + 1.0), self.unclaimed, job, job.gone_at)

    def unclaimed(self, job: Job, gone_at: float) -> None:
        """The submitter has been away for too long."""
        jobs = self._jobs
        if job.peer is not None or job.gone_at != gone_at or job.killed or jobs.by_id.get(job.id) is not job:
            return
        if job.state is JobState.SETTLED:
            return  # its result waits as long as any does
        if job.state is JobState.QUEUED:
            return jobs.settle(job, "cancelled", {"reason": _GONE}, Epitaph(_GONE, True, job.undo))
        job.killed = True
        jobs.record(job, "abandoned", {})
        if job.agent is not None:
            jobs.act(e.Kill(job.agent.peer, job.id, job.attempt))  # its slot stays taken until its tree is gone

    def _never_started(self, job: Job) -> None:
        """Its agent never got it; or it has told what went beyond, or not all that was done, and its result is no more."""
        if job.beyond or job.blind:
            return self._jobs.fail(job, f"its result was lost, and it is not run again: {job.beyond or _BLIND}", safe=False)
        if job.is_unclaimed or (job.killed and job.peer is None):  # its submitter, if it comes, begins anew
            self._jobs.settle(job, "cancelled", {"reason": _GONE}, Epitaph(_GONE, True, job.undo))
        else:
            self._jobs.requeue(job, "withdrawn", f"agent {job.holder[0]} never got it")

    def _lost(self, job: Job, until: float) -> None:
        """Its agent's lease is over, and it has not come back."""
        jobs, name = self._jobs, job.holder[0] or "its agent"
        if job.state is not JobState.MISSING or job.lost_at != until or jobs.by_id.get(job.id) is not job:
            return
        jobs.views.nobody_can_tell()
        job.killed |= job.is_unclaimed
        why = job.beyond or _BLIND
        if job.beyond or job.blind:
            jobs.fail(job, f"agent {name} was lost while it had the job, and it is not run again: {why}", safe=False)
        else:
            self._over(job, f"agent {name} was lost while it had the job", ())

    def _over(self, job: Job, reason: str, made: tuple[str, ...]) -> None:
        """No attempt of the job lives, and another one may follow, if anybody wants it."""
        if job.killed and job.peer is None:
            job.made.update(dict.fromkeys(made))
            return self._jobs.settle(job, "cancelled", {"reason": reason}, Epitaph(_GONE, True, job.undo))
        self._jobs.again(job, reason, made)

    # ---- what an attempt says ----

    def made(self, event: e.Made) -> None:
        """MADE."""
        job = self.held_by(event.peer, event.job, event.attempt)
        if job is None:
            return self._jobs.act(e.Unexpected("made"))
        job.made.update(dict.fromkeys(event.paths))
        job.beyond = job.beyond or event.beyond or job.why_too_many_made
        self._jobs.record(job, "made", {"made": json.dumps(event.paths), "beyond": job.beyond})
        if event.ask:
            self._jobs.act(e.Noted(event.peer, event.job, event.attempt, event.seq))

    def rejected(self, event: e.Rejected) -> None:
        """REJECT."""
        agent = self._roster.by_peer.get(event.peer)
        if agent is not None and agent.stale:
            agent.stale.discard((event.job, event.attempt))
            self._changed(agent)
        job = self.held_by(event.peer, event.job, event.attempt)
        if job is None or job.agent is None:
            return self._jobs.act(e.Unexpected("reject"))
        if event.fault:
            self._fault(job.agent, event.reason)
        self._elsewhere(job, job.agent, "rejected", f"agent {job.agent.name} did not take it: {event.reason}")

    def _elsewhere(self, job: Job, agent: Agent, what: str, reason: str) -> None:
        job.avoid = (*job.avoid, agent.name)
        if job.beyond or job.blind:  # it was started after all, and its result is no more
            return self._jobs.fail(job, f"{reason}; it is not run again: {job.beyond or _BLIND}", safe=False)
        if job.killed:
            return self._over(job, reason, ())
        if len(job.avoid) >= MAX_REJECTIONS:
            return self._jobs.fail(job, reason, safe=True)
        self._jobs.requeue(job, what, reason)

    def finished(self, event: e.Finished) -> None:
        """RESULT."""
        jobs, outcome = self._jobs, event.outcome
        agent = self._roster.by_peer.get(event.peer)
        if agent is None:
            return jobs.act(e.Unexpected("result"))
        if agent.stale:
            agent.stale.discard((event.job, event.attempt))
            self._changed(agent)
        if outcome.error in ("infrastructure", "lost") and not outcome.facts.get("outputs"):
            jobs.views.nobody_can_tell()  # what it wrote is told by nobody
        job = self.held_by(event.peer, event.job, event.attempt)
        if job is not None:
            return None if job.joining else self._ended(job, agent, event)  # it comes again
        known = jobs.unacknowledged.get(event.job)
        if known is not None and known.joining:
            return None
        if known is None or known.attempt != event.attempt or known.agent is not agent:
            return jobs.act(e.AckResult(event.peer, event.job, event.attempt))  # nobody waits for it any more
        known.result = event
        if known.peer is not None and event.outcome.error == "lost":
            jobs.begin_anew(known)  # it had ended; what it printed is lost
        elif known.peer is not None:
            jobs.deliver(known, agent.name)

    def _ended(self, job: Job, agent: Agent, event: e.Finished) -> None:
        jobs, outcome = self._jobs, event.outcome
        facts = {**outcome.facts, "status": outcome.status, "error": outcome.error, "reason": outcome.reason}
        job.blind = False  # it says all
        if outcome.fault:
            self._fault(agent, outcome.reason)
        if job.killed and not outcome.repeat:
            jobs.act(e.TellFailed(job.peer, job.id, _GONE, False)) if job.peer is not None else None
            jobs.settle(job, "cancelled", facts, Epitaph(_GONE))
        elif job.killed:
            self._over(job, _GONE, outcome.made)
        elif outcome.error in ("infrastructure", "lost", "cwd"):
            self._ended_without_result(job, agent, outcome)
        elif job.peer is None:
            return jobs.release(job, forget=False)  # it waits with its agent until its submitter is back
        else:
            agent.done += 1
            job.result = event
            jobs.deliver(job, agent.name)
            return jobs.settle(job, "done", facts)
        jobs.act(e.AckResult(event.peer, event.job, event.attempt))

    def _ended_without_result(self, job: Job, agent: Agent, outcome: e.Outcome) -> None:
        jobs, reason = self._jobs, f"agent {agent.name}: {outcome.reason or outcome.error}"
        if outcome.error == "cwd":
            return jobs.fail(job, reason, safe=True)
        if not outcome.repeat or job.why_too_many_made:
            return jobs.fail(job, f"{reason}; {job.beyond}" if job.beyond else reason, safe=False)
        if outcome.error == "infrastructure":
            job.made.update(dict.fromkeys(outcome.made))
            return self._elsewhere(job, agent, "rejected", reason)
        if outcome.memory:  # it is tried where there is more, then alone
            job.memory_bytes = max(job.memory_bytes, agent.spec.memory_bytes, 1)
        jobs.again(job, reason, outcome.made)

    # ---- faults ----

    def _fault(self, agent: Agent, why: str) -> None:
        jobs, standing = self._jobs, self._roster.standing(agent.name)
        if standing.fault(why, jobs.now) and not agent.suspended:
            agent.suspended = why
            jobs.record_agent(agent, "suspended", why)
            jobs.timers.at(standing.suspended_until, self._resume, agent)
            self._changed(agent)

    def _resume(self, agent: Agent, _: None) -> None:
        if self._roster.by_peer.get(agent.peer) is agent and not self._roster.standing(agent.name).is_suspended(self._jobs.now):
            agent.suspended = ""
            self._jobs.record_agent(agent, "resumed", "")
            self._changed(agent)
