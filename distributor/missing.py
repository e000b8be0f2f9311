"""Attempts that are not heard of, until they are found, lost, or known to be over.

An agent whose connection ends leaves its jobs MISSING. They are found again when it comes back and names them; they were never started when
it comes back, or another incarnation vouches for it, and nobody names them; they are lost when its lease is over and it has not come back.
So are all jobs of the epoch before this one. Those that the ledger knows are as it says; of others there is the word of agents, each of
whom is believed of jobs of those only whom it serves, and of submitters: hearsay, of which the newest attempt counts, and what it did is
not known before its agent has told it again. Knows jobs.py. Does not know who says what (fleet.py, submitters.py).
"""

from __future__ import annotations

import json
from typing import Final

from dwrap.distributor import events as e
from dwrap.distributor.events import JobState
from dwrap.distributor.job import NOBODY, Job
from dwrap.distributor.jobs import Jobs
from dwrap.distributor.past import RETURN_SECONDS, Epitaph
from dwrap.distributor.placement import Agent
from dwrap.distributor.roster import LEASE_GRACE_SECONDS, dead_at

ORPHAN_SECONDS: Final = 300.0  # how long an attempt that cannot be followed by another may go on without its distributor
BLIND_BEATS: Final = 2  # what an agent tells again follows its WELCOME; one HEARTBEAT may have been under way before
GONE: Final = "it was ended because its submitter was away"


def serves(agent: Agent, job: Job) -> bool:
    """Whether the job's user is one whom the agent serves."""
    return job.uid is None or agent.pool.serves in (e.ANY_UID, job.uid)


class Missing:
    """What becomes of attempts that are not heard of."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        for name, known in jobs.past.assigned.items():
            orphaned = jobs.past.recover_until + ORPHAN_SECONDS if known.beyond else None
            job = self.restore(name, known.attempt, known.uid, (known.agent or "", known.incarnation), known.lost_at or orphaned)
            job.made.update(dict.fromkeys(known.made))
            job.beyond, job.blind, job.hearsay = known.beyond, 0, False
            if known.agent is None:
                jobs.requeue(job, "restored", "the attempt before is over")
                self._expect_claim(job)

    def restore(
        self, name: str, attempt: int, uid: int | None, holder: tuple[str, str] = NOBODY, lost_at: float | None = None
    ) -> Job:
        """A job of an epoch before this one, of which more may be heard until the time for that is over: `lost_at`, if that was known,
        for restarts in a row must not put it off, but not before its agent had time to dial again.
        """
        jobs = self._jobs
        job = jobs.enter(None, uid, e.JobSpec(name, "/", "?", ""))
        job.state, job.attempt, job.holder, job.blind = JobState.MISSING, attempt, holder, BLIND_BEATS
        jobs.missing[name] = job
        job.hearsay, job.is_described = True, False
        until = max(jobs.now, jobs.past.recover_until) if lost_at is None else max(jobs.past.began + RETURN_SECONDS, lost_at)
        jobs.record(job, "missing", {"until": until})
        self._await(job, until)
        return job

    # ---- missing, and lost ----

    def miss(self, job: Job, agent: Agent, reason: str) -> None:
        """Nothing more is heard of the agent that has the job."""
        job.joining = False
        until = agent.lease_until + (ORPHAN_SECONDS if job.beyond else LEASE_GRACE_SECONDS)
        self._jobs.release(job)
        self._jobs.move(job, JobState.MISSING, "missing", {"reason": f"nothing is heard of agent {agent.name}: {reason}", "until": until})
        self._await(job, until)
        if job.peer is not None:
            self._jobs.act(e.TellMissing(job.peer, job.id))

    def lease_begins(self, agent: Agent) -> None:
        """WELCOME gives an agent a lease, and so what it has, which it has not named yet."""
        for job in self._jobs.missing.values():
            if job.holder == (agent.name, agent.spec.incarnation) and serves(agent, job):
                self._await(job, max(job.lost_at, dead_at(agent)))

    def _await(self, job: Job, until: float) -> None:
        job.lost_at = until
        self._jobs.timers.at(until, self._lost, job, until)

    def _lost(self, job: Job, until: float) -> None:
        """Its agent's lease is over, and it has not come back."""
        jobs, name = self._jobs, job.holder[0] or "its agent"
        if job.state is not JobState.MISSING or job.lost_at != until or jobs.by_id.get(job.id) is not job:
            return
        jobs.views.nobody_can_tell()
        job.killed |= job.is_unclaimed
        self.over(job, f"agent {name} was lost while it had the job")

    def over(self, job: Job, reason: str) -> None:
        """No attempt of the job lives, and another one may follow, if it may at all, and if anybody wants it."""
        if self.is_final(job, reason):
            return
        if job.killed and job.peer is None:
            return self._jobs.settle(job, "cancelled", {"reason": reason}, Epitaph(GONE, True, job.undo))
        self._jobs.again(job, reason)

    def is_final(self, job: Job, reason: str) -> bool:
        """Whether there can be no other attempt; then the job has failed."""
        if job.why_not_again:
            self._jobs.fail(job, f"{reason}; it is not run again: {job.why_not_again}", safe=False)
        return bool(job.why_not_again)

    # ---- results that are away ----

    def await_result(self, job: Job, agent: Agent) -> None:
        """The agent that keeps the job's result is away. Its submitter waits for both."""
        if job.peer is not None:
            self._jobs.act(e.TellMissing(job.peer, job.id))
        self._jobs.timers.at(dead_at(agent), self._result_lost, job, agent)

    def _result_lost(self, job: Job, agent: Agent) -> None:
        """Unless the agent has come back meanwhile, or nobody waits any more."""
        if job.peer is not None and job.agent is agent:
            self._jobs.begin_anew(job)

    # ---- what agents say that they have ----

    def compare(self, agent: Agent) -> None:
        """What an agent says that it has, against what it should have."""
        for held in agent.spec.running:
            self._has(agent, held, runs=True)
        for held in agent.spec.kept:
            self._has(agent, held, runs=False)
        vouched = {(agent.name, incarnation) for incarnation in (agent.spec.incarnation, *agent.spec.former) if incarnation}
        for job in [job for job in self._jobs.missing.values() if job.holder in vouched]:
            if serves(agent, job):
                self._never_started(job)

    def _has(self, agent: Agent, held: e.Held, runs: bool) -> None:
        jobs, (name, attempt, uid) = self._jobs, held
        job = self._restored(agent, name, attempt, uid)
        is_its = job is not None and job.attempt == attempt and serves(agent, job) and job.holder[0] in ("", agent.name)
        if job is not None and is_its and job.state is JobState.MISSING:
            return self._found(job, agent, runs)
        if job is not None and is_its and job.state is JobState.SETTLED:
            job.agent = agent  # its result is being fetched
            if job.peer is not None:
                jobs.act(e.Resume(job.peer, name))
        elif jobs.held_by(agent.peer, name, attempt) is None and runs:
            self._end_stale(agent, name, attempt)
        elif jobs.held_by(agent.peer, name, attempt) is None:
            jobs.act(e.AckResult(agent.peer, name, attempt))

    def _end_stale(self, agent: Agent, name: str, attempt: int) -> None:
        """It runs what nobody waits for: in quarantine until that has ended."""
        agent.stale.add((name, attempt))
        self._jobs.act(e.Kill(agent.peer, name, attempt))

    def _restored(self, agent: Agent, name: str, attempt: int, uid: int) -> Job | None:
        """The job of an attempt that an agent says to have, as far as its word counts."""
        jobs, whom = self._jobs, agent.pool.serves
        job = jobs.by_id.get(name)
        if whom != e.ANY_UID:
            uid = whom
        elif job is not None and job.hearsay and job.uid != uid:  # one that may serve anybody knows for whom it runs
            self._disown(job)
            job = None
        if job is None and jobs.now < jobs.past.recover_until and jobs.past.epitaph(name) is None:
            job = self.restore(name, attempt, uid, (agent.name, agent.spec.incarnation))
            job.is_anyones = whom != e.ANY_UID
        if job is not None and serves(agent, job):
            self.supersede(job, attempt)
        return job

    def _disown(self, job: Job) -> None:
        """Whoever claimed the job was not its submitter."""
        jobs, agent = self._jobs, job.agent
        if job.peer is not None:
            jobs.act(e.Answer(job.peer, job.id, "REFUSED", "the job is another user's"))
        if agent is not None:
            self._end_stale(agent, job.id, job.attempt)
        jobs.settle(job, "cancelled", {"reason": "it was claimed by another user"})
        jobs.past.exhume(job.id)

    def supersede(self, job: Job, attempt: int) -> bool:
        """Somebody knows of a newer attempt than whoever told of the job first: there is no newer one unless the others are over."""
        agent = job.agent
        if attempt <= job.attempt or not job.hearsay or job.state not in (JobState.MISSING, JobState.ASSIGNED):
            return False
        if agent is not None:
            self._end_stale(agent, job.id, job.attempt)
            self.miss(job, agent, "a newer attempt is known of")
        job.attempt, job.holder, job.blind = attempt, NOBODY, BLIND_BEATS
        self._await(job, self._jobs.past.recover_until)
        return True

    def _found(self, job: Job, agent: Agent, runs: bool) -> None:
        jobs = self._jobs
        jobs.take_back(job, agent, runs)
        job.holder = agent.name, agent.spec.incarnation
        job.blind = BLIND_BEATS if job.blind else 0
        if job.killed:
            jobs.act(e.Kill(agent.peer, job.id, job.attempt))
        elif job.peer is not None:
            jobs.act(e.Resume(job.peer, job.id))
        elif job.is_unclaimed:
            self._expect_claim(job)

    def _never_started(self, job: Job) -> None:
        """Its agent never got it; or it has told what cannot be done again, or not all that was done, and its result is no more."""
        if self.is_final(job, "its result was lost"):
            return
        if job.is_unclaimed or (job.killed and job.peer is None):  # its submitter, if it comes, begins anew
            self._jobs.settle(job, "cancelled", {"reason": GONE}, Epitaph(GONE, True, job.undo))
        else:
            self._jobs.requeue(job, "withdrawn", f"agent {job.holder[0]} never got it")

    def learn(self, agent: Agent) -> None:
        """A HEARTBEAT: by the time of some of them it has told again what its attempts did before this epoch."""
        for name in agent.jobs:
            job = self._jobs.by_id[name]
            if job.blind:
                job.blind -= 1
                if not job.blind:
                    self._know(job, agent)

    def _know(self, job: Job, agent: Agent) -> None:
        facts: dict[str, e.Fact] = {"attempt": job.attempt, "uid": job.owner, "agent": agent.name, "incarnation": agent.spec.incarnation}
        facts.update(made=json.dumps(job.undo), beyond=job.beyond)
        self._jobs.record(job, "known", facts)

    # ---- submitters that are away ----

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
            return jobs.settle(job, "cancelled", {"reason": GONE}, Epitaph(GONE, True, job.undo))
        job.killed = True
        jobs.record(job, "abandoned", {})
        if job.agent is not None:
            jobs.act(e.Kill(job.agent.peer, job.id, job.attempt))  # its slot stays taken until its tree is gone
