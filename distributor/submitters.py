"""What submitters say: SUBMIT, GO, ATTACH, ACK, and that they are gone.

A submitter whose connection ends may claim its job on another one; a job that was never assigned is dropped at once, any other after
RECLAIM_SECONDS. Knows jobs.py and what becomes of an attempt meanwhile (missing.py). Does not know messages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from dwrap.distributor import events as e
from dwrap.distributor.events import JobState, Peer
from dwrap.distributor.job import Job
from dwrap.distributor.jobs import Jobs
from dwrap.distributor.missing import Missing
from dwrap.distributor.past import Epitaph
from dwrap.distributor.placement import Agent

RECLAIM_SECONDS: Final = 1.0
_UNKNOWN: Final = Epitaph("this distributor does not know whether it ran; look at its outputs, then run it again")


class Submitters:
    """The submitters' side of the scheduler."""

    def __init__(self, jobs: Jobs, missing: Missing) -> None:
        self._jobs = jobs
        self._missing = missing

    def submitted(self, event: e.Submitted, attempt: int = 0, made: tuple[str, ...] = ()) -> None:
        """SUBMIT. `attempt`: the number that its last OFFER named, if it has had one; `made`: what is left of that."""
        jobs, spec = self._jobs, event.spec
        known = jobs.by_id.get(spec.job)
        if known is not None:
            jobs.act(e.Unexpected("duplicate_job"))
            if known.peer != event.peer:
                jobs.act(e.Answer(event.peer, spec.job, "REFUSED", "a job of this id is already here; ids must be unique"))
            return
        if full := jobs.why_full(event.uid):
            return jobs.act(e.Answer(event.peer, spec.job, "UNAVAILABLE", full))
        job = jobs.enter(event.peer, event.uid, spec)
        job.attempt = attempt
        job.made.update(dict.fromkeys(made))
        jobs.views.see(job, jobs.now)
        self._let_wait(job)

    def _let_wait(self, job: Job) -> None:
        jobs, ahead = self._jobs, len(self._jobs.room)
        jobs.admit(job)
        jobs.place()
        if job.state is JobState.QUEUED and job.peer is not None:
            jobs.act(e.TellQueued(job.peer, job.id, ahead))

    def explained(self, event: e.Explained) -> None:
        """SUBMIT with explain=1."""
        self._jobs.act(e.TellExplained(event.peer, event.spec.job, *self._jobs.room.foresee(event.spec, event.uid)))

    def committed(self, event: e.Committed) -> None:
        """GO."""
        jobs = self._jobs
        job = jobs.by_id.get(event.job)
        if job is None or job.peer != event.peer or job.stamp != event.stamp:
            return jobs.act(e.Unexpected("go"))
        if job.state is JobState.OFFERED:
            return jobs.assign(job, event.payload)
        if job.state is JobState.QUEUED and jobs.room.is_aside(job):
            return jobs.admit(job)  # late, therefore void; but its submitter lives
        jobs.act(e.Unexpected("go"))

    def acknowledged(self, event: e.Acknowledged) -> None:
        """ACK."""
        job = self._jobs.unacknowledged.get(event.job)
        if job is None or job.peer != event.peer:
            return self._jobs.act(e.Unexpected("ack"))
        self._jobs.forget(job)

    # ---- gone, and back ----

    def disconnected(self, peer: Peer) -> None:
        """A connection has ended, a submitter's perhaps."""
        for job in self._jobs.of(peer):
            self._gone(job)

    def _gone(self, job: Job) -> None:
        jobs = self._jobs
        jobs.bind(job, None)
        if job.state in (JobState.QUEUED, JobState.OFFERED) and not job.was_committed:
            return jobs.settle(job, "cancelled", {"reason": "its submitter went away before it was assigned"})
        if job.state is JobState.OFFERED:
            jobs.requeue(job, "unanswered", "its submitter is away")
        elif job.state is JobState.QUEUED:
            jobs.room.step_out(job)
        job.gone_at, job.homeless_since = jobs.now, None
        jobs.timers.at(jobs.now + RECLAIM_SECONDS, self._missing.unclaimed, job, job.gone_at)

    def attached(self, event: e.Attached) -> None:
        """ATTACH, from a peer that has shown who it is."""
        jobs, name = self._jobs, event.spec.job
        job = jobs.by_id.get(name)
        epitaph = jobs.past.epitaph(name)
        if job.is_anothers(event.uid) if job is not None else jobs.past.is_anothers(name, event.uid):
            return jobs.act(e.Answer(event.peer, name, "REFUSED", "the job is another user's"))
        if job is not None:
            return self._claim(job, event)
        if epitaph is not None and not epitaph.safe:
            return jobs.act(e.TellFailed(event.peer, name, *epitaph))
        if epitaph is not None or jobs.past.was_never_assigned(name, event.epoch, jobs.now - event.since):
            undo = epitaph.undo if epitaph else ()
            if full := jobs.why_full(event.uid):
                return jobs.act(e.TellFailed(event.peer, name, full, True, undo))
            jobs.past.exhume(name)
            return self.submitted(e.Submitted(event.peer, event.uid, event.spec), event.attempt, undo)
        if jobs.now < jobs.past.recover_until:
            return self._claim(self._missing.restore(name, event.attempt, event.uid), event)
        jobs.act(e.TellFailed(event.peer, name, *_UNKNOWN))

    def _claim(self, job: Job, event: e.Attached) -> None:
        jobs, is_assigned = self._jobs, job.state not in (JobState.QUEUED, JobState.OFFERED)
        if is_assigned and event.attempt != job.attempt and not self._missing.supersede(job, event.attempt):
            jobs.act(e.Unexpected("attach"))
            return jobs.act(e.Answer(event.peer, job.id, "REFUSED", f"its attempt is number {job.attempt}, not {event.attempt}"))
        jobs.bind(job, event.peer)
        if not job.is_described:
            job.spec, job.uid, job.is_described = event.spec, event.uid, True
            jobs.views.see(job, jobs.now)
        elif job.spec.groups != event.spec.groups:  # its key gives others now
            job.spec = replace(job.spec, groups=event.spec.groups)
        jobs.record(job, "claimed", jobs.described(job))
        if job.state is JobState.OFFERED:
            jobs.requeue(job, "unanswered", "its submitter has a new connection")
        if job.state is JobState.QUEUED:
            return self._let_wait(job)
        if job.state is JobState.MISSING:
            jobs.act(e.TellMissing(event.peer, job.id))
        if job.agent is None:
            return
        if jobs.roster.by_peer.get(job.agent.peer) is not job.agent:
            return self._missing.await_result(job, job.agent)
        self._attach(job, job.agent, event.offsets)

    def _attach(self, job: Job, agent: Agent, offsets: tuple[tuple[str, int], ...]) -> None:
        """The agent is to say again what the submitter misses; until it begins to, what it says has gaps."""
        job.joining = True
        self._jobs.act(e.ForwardAttach(agent.peer, job.id, job.attempt, offsets))
