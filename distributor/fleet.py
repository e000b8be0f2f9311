"""What agents say, and what follows for the jobs they have: registration, leases, results, faults.

What becomes of attempts that are not heard of: missing.py. An agent that runs what was given up is in quarantine until that has ended.
Knows jobs.py and missing.py; does not know what submitters say.
"""

from __future__ import annotations

import json

from dwrap.distributor import events as e
from dwrap.distributor.events import JobState, Peer
from dwrap.distributor.job import Job
from dwrap.distributor.jobs import MAX_REJECTIONS, Jobs
from dwrap.distributor.missing import GONE, Missing
from dwrap.distributor.past import Epitaph
from dwrap.distributor.placement import Agent
from dwrap.distributor.roster import dead_at


class Fleet:
    """The agents' side of the scheduler."""

    def __init__(self, jobs: Jobs, missing: Missing) -> None:
        self._jobs = jobs
        self._missing = missing
        self._roster = jobs.roster

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
        self._missing.lease_begins(agent)
        if agent.trusted:
            self._missing.compare(agent)
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
        jobs, pool = self._jobs, agent.pool
        jobs.placement.remove(agent)
        self._roster.rename(agent, spec)
        if agent.pool == pool:
            return
        for job in [jobs.by_id[name] for name in agent.jobs if jobs.by_id[name].state is JobState.OFFERED]:
            jobs.requeue(job, "withdrawn", f"agent {agent.name} is not what it was when it was chosen")

    def heartbeat(self, event: e.Heartbeat) -> None:
        """HEARTBEAT. The first one shows that the agent is who it is."""
        agent = self._roster.by_peer.get(event.peer)
        if agent is None or event.token != agent.token:
            return self._jobs.act(e.Unexpected("heartbeat"))
        is_first = not agent.trusted
        self._roster.heard(agent, event.load, self._jobs.now)
        self._missing.learn(agent)
        self._jobs.act(e.RenewLease(event.peer))
        if is_first:
            self._missing.compare(agent)
        self._changed(agent)

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
                self._missing.miss(job, agent, reason)
            elif job.peer != job.delivered_to:
                self._missing.await_result(job, agent)  # it was being fetched

    # ---- what an attempt says ----

    def made(self, event: e.Made) -> None:
        """MADE."""
        job = self._jobs.held_by(event.peer, event.job, event.attempt)
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
        job = self._jobs.held_by(event.peer, event.job, event.attempt)
        if job is None or job.agent is None:
            return self._jobs.act(e.Unexpected("reject"))
        if event.fault:
            self._fault(job.agent, event.reason)
        self._elsewhere(job, job.agent, "rejected", f"agent {job.agent.name} did not take it: {event.reason}")

    def _elsewhere(self, job: Job, agent: Agent, what: str, reason: str) -> None:
        job.avoid, job.refusal = (*job.avoid, agent.name), reason
        if self._missing.is_final(job, reason):  # it was started after all, and its result is no more
            return
        if job.killed:
            return self._missing.over(job, reason)
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
        job = self._jobs.held_by(event.peer, event.job, event.attempt)
        if job is not None:
            return None if job.joining else self._ended(job, agent, event)  # it comes again
        known = jobs.unacknowledged.get(event.job)
        if known is not None and known.joining:
            return None
        if known is None or known.attempt != event.attempt or known.agent is not agent:
            return jobs.act(e.AckResult(event.peer, event.job, event.attempt))  # nobody waits for it any more
        known.result = event
        self._take(known, outcome)
        if known.peer is not None and outcome.error == "lost":
            jobs.begin_anew(known)  # it had ended; what it printed is lost
        elif known.peer is not None:
            jobs.deliver(known, agent.name)

    @staticmethod
    def _take(job: Job, outcome: e.Outcome) -> None:
        """What an attempt says at its end of what it did: what it made and took away by itself is not its own any more."""
        job.blind = 0
        if outcome.repeat and outcome.facts.get("outputs"):  # the runner's own word; it had removed what those before had made
            job.made.clear()
        job.made.update(dict.fromkeys(outcome.made))

    def _ended(self, job: Job, agent: Agent, event: e.Finished) -> None:
        jobs, outcome = self._jobs, event.outcome
        facts = {**outcome.facts, "status": outcome.status, "error": outcome.error, "reason": outcome.reason}
        self._take(job, outcome)
        if outcome.fault:
            self._fault(agent, outcome.reason)
        if job.killed and not outcome.repeat:
            jobs.act(e.TellFailed(job.peer, job.id, GONE, False)) if job.peer is not None else None
            jobs.settle(job, "cancelled", facts, Epitaph(GONE))
        elif job.killed:
            self._missing.over(job, GONE)
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
            return self._elsewhere(job, agent, "rejected", reason)
        if outcome.memory:  # it is tried where there is more, then alone
            job.memory_bytes = max(job.memory_bytes, agent.spec.memory_bytes, 1)
        jobs.again(job, reason)

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
