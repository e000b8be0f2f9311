"""All jobs, and each change of a job's state: offered, assigned, put back, settled; and who is placed next.

Every change goes through `move`, which checks it against the table in job.py and emits a Record. A slot is held from the offer until the
attempt is known to be over. Knows jobs, the waiting room and placement. Does not know which event of whom asks for a change: submitters.py
fleet.py and missing.py do.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from dwrap.distributor import events as e
from dwrap.distributor.events import JobState, Peer
from dwrap.distributor.job import MOVES, Job
from dwrap.distributor.past import Epitaph, Past
from dwrap.distributor.placement import Agent, Placement
from dwrap.distributor.policy import Verdict
from dwrap.distributor.roster import Roster
from dwrap.distributor.timers import Timers
from dwrap.distributor.views import Views
from dwrap.distributor.waiting import WaitingRoom, is_other
from dwrap.protocol.likeness import difference

OFFER_SECONDS: Final = 2.0
MAX_PATIENCE_SECONDS: Final = 32.0
NO_AGENT_SECONDS: Final = 10.0
UNACKNOWLEDGED_SECONDS: Final = 60.0
MAX_REJECTIONS: Final = 3
MAX_LOSSES: Final = 5
MAX_JOBS: Final = 100_000
MAX_JOBS_OF_ONE: Final = 50_000
_WEIGHT_BYTES: Final = 16_384  # of paths and labels: as much as another job
_MAX_WISHES: Final = 1_024
_FEW_LOOKS: Final = 256
_MOST_LOOKS: Final = 2_048  # at once: some milliseconds
_LOOK_SECONDS: Final = 12.5e-6  # about ten times what it takes to hold a job, or one of its paths, against a pool
_AWAY: Final = Epitaph("it was ended because its submitter was away, or its result was not fetched")


class _Wish(NamedTuple):
    """What makes agents fit for a job. Where it lies is left out: that is no matter of time."""

    uid: int | None
    labels: tuple[str, ...]
    identity: str
    cpu: str


def _wish(job: Job) -> _Wish:
    return _Wish(job.uid, job.spec.labels, job.spec.identity, job.spec.cpu)


class Jobs:
    """The table of jobs. `by_id` has every live one."""

    def __init__(self, secret: Callable[[], str], expect: Callable[[e.JobSpec], float], past: Past, strict: bool = True) -> None:
        self.by_id: dict[str, Job] = {}
        self.roster = Roster()
        self.views = Views(self.roster)
        self.past = past
        self.placement = Placement()
        self.room = WaitingRoom(self.placement, strict)
        self._strict = strict
        self.timers = Timers()
        self.now = past.began
        self.actions: list[e.Action] = []
        self.unacknowledged: dict[str, Job] = {}
        self.missing: dict[str, Job] = {}  #: those that are MISSING
        self._in_vain: dict[_Wish, float] = {}  # since when no agent may take such jobs
        self._to_readmit: deque[Job] = deque()
        self._is_resting = self._will_readmit = False
        self._of_peer: dict[Peer, set[str]] = {}
        self._held_by: Counter[int | None] = Counter()
        self.secret = secret
        self._expect = expect

    # ---- entering and leaving ----

    def enter(self, peer: Peer | None, uid: int | None, spec: e.JobSpec) -> Job:
        """A new job, QUEUED and aside."""
        job = Job(uid, spec, self.now, self._expect(spec))
        self.by_id[spec.job] = job
        job.share = uid, _weight(spec)
        self._held_by[uid] += job.share[1]
        if peer is not None:
            self.bind(job, peer)
        self.record(job, "submitted", self.described(job))
        return job

    def why_full(self, uid: int | None) -> str:
        """Why nobody, or not this user, can have more jobs here now; empty when there is room."""
        if len(self.by_id) >= MAX_JOBS:
            return f"the queue is full: {MAX_JOBS} jobs"
        if self._held_by[uid] >= MAX_JOBS_OF_ONE:
            return f"this user's part of the queue is full: {MAX_JOBS_OF_ONE} jobs, less if they name many paths"
        return ""

    @staticmethod
    def described(job: Job) -> dict[str, e.Fact]:
        """What its submitter says of it, as facts."""
        spec = job.spec
        facts: dict[str, e.Fact] = {"uid": job.uid, "build": spec.build, "command": spec.command, "cwd": spec.cwd}
        facts.update(host=spec.host, pid=spec.pid, priority=spec.priority)
        return facts

    def bind(self, job: Job, peer: Peer | None) -> None:
        """The job's submitter speaks on this connection from now on; None: it is away."""
        if job.peer is not None:
            ids = self._of_peer[job.peer]
            ids.discard(job.id)
            if not ids:
                del self._of_peer[job.peer]
        job.peer = peer
        if peer is not None:
            job.gone_at = None
            self._of_peer.setdefault(peer, set()).add(job.id)

    def of(self, peer: Peer) -> list[Job]:
        """The jobs of a submitter's connection, in a fixed order."""
        return [self.by_id[name] for name in sorted(self._of_peer.get(peer, ()))]

    def drop(self, job: Job) -> None:
        """A settled job is forgotten."""
        del self.by_id[job.id]
        whose, weight = job.share
        self._held_by[whose] -= weight
        if not self._held_by[whose]:
            del self._held_by[whose]
        self.bind(job, None)

    def held_by(self, peer: Peer, name: str, attempt: int) -> Job | None:
        """The job, when this agent holds this attempt of it and it runs."""
        job = self.by_id.get(name)
        if job is None or job.state is not JobState.ASSIGNED or job.attempt != attempt:
            return None
        return job if job.agent is not None and job.agent.peer == peer else None

    def told_by(self, peer: Peer, name: str, attempt: int) -> Job | None:
        """The job whose attempt this agent may tell of: one that it holds, or whose result has not been acknowledged."""
        job = self.by_id.get(name)
        if job is None or job.attempt != attempt or job.joining or job.state not in (JobState.ASSIGNED, JobState.SETTLED):
            return None
        return job if job.agent is not None and job.agent.peer == peer else None

    # ---- placing ----

    def admit(self, job: Job) -> None:
        """Puts a QUEUED job where it is to wait, or answers it at once."""
        self.room.step_out(job)
        if job.peer is None:
            return  # aside, until its submitter is back
        verdict = self.room.judge(job.spec, job.uid)
        if verdict.pools:
            job.homeless_since = None
            if self._in_vain:
                self._in_vain.pop(_wish(job), None)
        if verdict.pools and job.is_choosy:
            self.room.choosy[job.id] = job
        elif verdict.pools:
            self.room.enqueue(job, verdict.pools)
        elif verdict.verb == "HERE":
            self.answer(job, verdict.verb, verdict.reason)
        else:
            self._wait_for_an_agent(job, verdict)

    def _wait_for_an_agent(self, job: Job, verdict: Verdict) -> None:
        """There may be one soon. But if there was none for others of its kind for so long already, a build need not wait for each job."""
        since = self._in_vain_since(job)
        if self.now - since >= NO_AGENT_SECONDS:
            return self.answer(job, verdict.verb, f"{verdict.reason} (for {self.now - since:.0f} s)")
        self.room.make_homeless(job)
        if job.homeless_since is None:
            job.homeless_since = since
            self.timers.at(since + NO_AGENT_SECONDS, self._homeless_due, job, since)

    def _in_vain_since(self, job: Job) -> float:
        """Since when no agent may take such jobs. A job that has run somewhere, or asks for one agent by name, has a clock of its own:
        the first must not be given up sooner because of others, and the second's agent may come and go while its pool stays.
        """
        if job.was_committed or job.spec.agent:
            return self.now if job.homeless_since is None else job.homeless_since
        wish = _wish(job)
        if wish not in self._in_vain and len(self._in_vain) >= _MAX_WISHES:
            del self._in_vain[next(iter(self._in_vain))]
        return self._in_vain.setdefault(wish, self.now)

    def _readmit(self) -> None:
        """Every waiting job is judged anew. Many are in pieces, with rests; agents that come and go meanwhile, who must not take up all
        time, bring one more round. Wishes that what has appeared may have fulfilled are new ones.
        """
        if self._is_resting:
            self._will_readmit = True
            return
        appeared = self.placement.appeared()
        for wish in [wish for wish in self._in_vain if appeared and (wish.identity in appeared or not (wish.identity and self._strict))]:
            del self._in_vain[wish]
        self._to_readmit.extend(self.room.unsettled())
        self._readmit_some()

    def _readmit_some(self) -> None:
        looks, pools = 0, 1 + len(self.placement.pools)
        while self._to_readmit and looks < _MOST_LOOKS:
            job = self._to_readmit.popleft()
            if job.state is JobState.QUEUED and not self.room.is_aside(job):
                self.admit(job)
            looks += pools * (1 + len(job.spec.paths))
        if not self._to_readmit:
            self.room.forget_empty()
        if self._to_readmit or looks > _FEW_LOOKS:
            self._is_resting = True
            self.timers.at(self.now + looks * _LOOK_SECONDS, self._has_rested, None)

    def _has_rested(self, *_: object) -> None:
        self._is_resting = False
        if self._to_readmit:
            self._readmit_some()
        elif self._will_readmit:
            self._will_readmit = False
            self._readmit()

    def place(self) -> None:
        """Offers the jobs whose turn it is to the least loaded agents. When a pool has come or gone, all are judged anew, as many at once
        as hold nobody up.
        """
        if self.placement.has_changed():
            self._readmit()
        if not len(self.room):
            return
        if self.room.choosy:
            self._place_choosy()
        while (chosen := self.room.take_next()) is not None:
            self._offer(*chosen)

    def _place_choosy(self) -> None:
        for job in list(self.room.choosy.values()):
            if self.placement.is_full(job.spec.agent):
                continue
            verdict = self.room.judge(job.spec, job.uid)
            agent = self.placement.best_for(job, verdict.pools)
            if agent is not None:
                self._offer(job, agent)
            elif not verdict.pools:
                self.admit(job)
            elif self.placement.are_all_among(verdict.pools, job.avoid, job.spec.agent):
                self.fail(job, f"every agent that may take it has refused it: {', '.join(job.avoid)}; the last: {job.refusal}", safe=True)

    def _offer(self, job: Job, agent: Agent) -> None:
        if job.peer is None:
            raise AssertionError("a job without a submitter is offered")
        job.stamp = self.secret()
        job.offered_at = self.now
        self._hold(job, agent)
        self.move(job, JobState.OFFERED, "offered", {"agent": agent.name})
        self.timers.at(self.now + OFFER_SECONDS, self._offer_due, job, job.stamp)
        self.views.see(job, self.now)
        self.act(e.Offer(job.peer, job.id, job.stamp, job.attempt + 1, job.views))

    def _offer_due(self, job: Job, stamp: str) -> None:
        if job.state is not JobState.OFFERED or job.stamp != stamp:
            return
        patience = min(OFFER_SECONDS * 2.0**job.missed_offers, MAX_PATIENCE_SECONDS)
        job.missed_offers += 1
        self.release(job)
        self.move(job, JobState.QUEUED, "unanswered", {"reason": "its submitter did not answer the offer in time"})
        self.timers.at(self.now + patience, self._patience_due, job, stamp)

    def _patience_due(self, job: Job, stamp: str) -> None:
        if job.state is JobState.QUEUED and job.stamp == stamp and self.room.is_aside(job):
            self.admit(job)

    def _homeless_due(self, job: Job, since: float) -> None:
        if job.homeless_since == since and self.room.homeless.get(job.id) is job:
            verdict = self.room.judge(job.spec, job.uid)
            if verdict.pools:  # that have just come
                return self.admit(job)
            self.answer(job, verdict.verb, f"{verdict.reason} (for {self.now - since:.0f} s)")

    def assign(self, job: Job, payload: tuple[bytes, ...]) -> None:
        """GO has come in time: the agent that holds a slot for the job gets it."""
        agent = job.agent
        uid = agent.pool.serves if job.uid is None and agent is not None else job.uid
        if agent is None or uid is None:
            raise AssertionError("a job without an agent or a user is assigned")
        job.attempt += 1
        job.holder = agent.name, agent.spec.incarnation
        job.beyond, job.blind, job.hearsay, job.missed_offers, job.assigned_at = "", 0, False, 0, self.now
        facts: dict[str, e.Fact] = {"attempt": job.attempt, "queued_ms": round(1_000 * (self.now - job.submitted_at))}
        facts.update(agent=agent.name, incarnation=agent.spec.incarnation, uid=uid)
        if job.uid is None:
            facts["anyones"] = True
        if is_other(job.spec, agent):
            facts["environment"] = difference(agent.spec.identity, job.spec.identity)
        if job.made:
            facts["made"] = json.dumps(job.undo)
        self.move(job, JobState.ASSIGNED, "assigned", facts)
        due = self.views.due(job, agent)
        self.act(e.Assign(agent.peer, job.spec, job.attempt, uid, payload, job.views, *due, job.burst, job.undo, not job.alone))

    # ---- transitions ----

    def move(self, job: Job, to: JobState, what: str, facts: dict[str, e.Fact]) -> None:
        """The one place where a job's state changes."""
        if to not in MOVES[job.state]:
            raise AssertionError(f"job {job.id}: no move from {job.state} to {to}")
        self.room.step_out(job)
        self.missing.pop(job.id, None)
        job.state = to
        if to is JobState.MISSING:
            self.missing[job.id] = job
        self.record(job, what, facts)

    def requeue(self, job: Job, what: str, reason: str) -> None:
        """No attempt of the job lives: it waits again, or aside while its submitter is away."""
        self.release(job)
        job.killed = job.joining = False
        facts: dict[str, e.Fact] = {"reason": reason, "agent": ""}
        if job.made:
            facts["made"] = json.dumps(job.undo)
        self.move(job, JobState.QUEUED, what, facts)
        if job.peer is not None and job.was_committed:  # a signal may end it now without asking anybody
            self.act(e.TellQueued(job.peer, job.id, len(self.room)))
        self.admit(job)

    def settle(self, job: Job, what: str, facts: dict[str, e.Fact], epitaph: Epitaph = _AWAY) -> None:
        """The end of a job. One whose RESULT is on its way to a submitter is kept until that has acknowledged it.

        `epitaph`: what a submitter is told that asks for it later; a safe one has it run anew instead.
        """
        self.release(job, forget=what != "done")
        if epitaph.safe:
            facts["made"] = json.dumps(epitaph.undo)
        job.settled_at = self.now
        self.views.settled(job, self.now)
        self.move(job, JobState.SETTLED, what, facts)
        if job.was_committed:
            self.past.bury(job.id, epitaph, job.owner, self.now)
        self.placement.unreserve(job.id)
        if what == "done":
            self.unacknowledged[job.id] = job
        else:
            self.drop(job)

    def answer(self, job: Job, verb: str, reason: str) -> None:
        """There is no agent for the job. Before GO its submitter may do as it likes."""
        if job.was_committed:
            return self.fail(job, reason, safe=True)
        if job.peer is not None:
            self.act(e.Answer(job.peer, job.id, verb, reason))
        self.settle(job, verb.lower(), {"reason": reason})

    def fail(self, job: Job, reason: str, safe: bool) -> None:
        """No result will come. `safe`: no attempt lives, and what they made is told."""
        epitaph = Epitaph(reason, safe, job.undo if safe else ())
        if job.peer is not None:
            self.act(e.TellFailed(job.peer, job.id, *epitaph))
        self.settle(job, "failed", {"reason": reason}, epitaph)

    def deliver(self, job: Job, agent: str) -> None:
        """Tells the job's result to its submitter, which is there."""
        if job.peer is None or job.result is None:
            raise AssertionError("there is nobody to be told, or nothing to tell")
        job.delivered_to = job.peer
        queued_ms = max(0, round(1_000 * (job.assigned_at - job.submitted_at)))
        self.act(e.DeliverResult(job.peer, job.id, job.result.payload, agent, queued_ms))

    def begin_anew(self, job: Job) -> None:
        """The job has ended, but what it printed is lost. Nothing of it lives, so it may begin anew, if what it did may be done again."""
        peer, result = job.peer, job.result
        if peer is None or result is None:
            raise AssertionError("nobody waits for the job, or it has not ended")
        epitaph = self._remains(job, "its output was lost with its agent")
        self.forget(job, epitaph)
        if not epitaph.safe:
            return self.act(e.TellFailed(peer, job.id, epitaph.reason, False))
        self.past.exhume(job.id)
        fresh = self.enter(peer, job.uid, job.spec)
        fresh.attempt, fresh.made = job.attempt, job.made
        self.views.see(fresh, self.now)
        self.admit(fresh)

    @staticmethod
    def _remains(job: Job, reason: str) -> Epitaph:
        """What is told of a job that has ended, once its result is no more."""
        if job.result is None:
            return Epitaph(reason)
        return Epitaph(reason, job.result.outcome.repeat and not job.why_too_many_made, job.undo)

    def again(self, job: Job, reason: str) -> None:
        """No attempt of the job lives, and none has done what cannot be done again: it gets another one, if not too many were lost."""
        job.losses += 1
        if job.losses > MAX_LOSSES:
            self.fail(job, f"{job.losses} agents were lost while they had it; the last one: {reason}", safe=True)
        else:
            self.requeue(job, "lost", reason)

    def forget(self, job: Job, epitaph: Epitaph = _AWAY) -> None:
        """The submitter has its result, or nobody wants it: the agent may drop it."""
        del self.unacknowledged[job.id]
        self.record(job, "acknowledged", {"made": json.dumps(epitaph.undo)} if epitaph.safe else {})
        if epitaph.safe:
            self.past.bury(job.id, epitaph, job.owner, self.now)
        if job.agent is not None:
            self.act(e.AckResult(job.agent.peer, job.id, job.attempt))
        self.drop(job)

    def forget_old(self) -> None:
        """Results that nobody has acknowledged for long."""
        while self.unacknowledged:
            oldest = next(iter(self.unacknowledged.values()))
            if oldest.settled_at + UNACKNOWLEDGED_SECONDS > self.now:
                return
            if oldest.peer not in (None, oldest.delivered_to):
                self.begin_anew(oldest)  # it is waited for, but its agent has not come back with it
            else:
                self.forget(oldest, self._remains(oldest, _AWAY.reason))

    # ---- slots ----

    def _hold(self, job: Job, agent: Agent) -> None:
        job.agent = agent
        agent.jobs.add(job.id)
        self.placement.gave(agent)

    def take_back(self, job: Job, agent: Agent, runs: bool) -> None:
        """An agent that was not heard of has the job's newest attempt after all; it holds a slot while it runs."""
        job.agent = agent
        if runs:
            agent.jobs.add(job.id)
            self.placement.update(agent)
        self.move(job, JobState.ASSIGNED, "found", {"agent": agent.name})

    def release(self, job: Job, forget: bool = True) -> None:
        """The job holds no slot any more. `forget`: no agent has anything of it."""
        agent = job.agent
        if agent is None:
            return
        agent.jobs.discard(job.id)
        self.placement.unreserve(job.id)
        if self.roster.by_peer.get(agent.peer) is agent:
            self.placement.update(agent)
        if forget:
            job.agent = None

    # ---- saying ----

    def act(self, action: e.Action) -> None:
        """One more thing to be done."""
        self.actions.append(action)

    def record(self, job: Job, what: str, facts: dict[str, e.Fact]) -> None:
        """A transition of a job, told."""
        facts["state"] = job.state.value
        self.act(e.Record(self.now, job.id, what, facts))

    def record_agent(self, agent: Agent, what: str, reason: str) -> None:
        """Something has changed about an agent."""
        facts: dict[str, e.Fact] = {"agent": agent.name, "slots": agent.spec.slots, "reason": reason, "uid": agent.uid}
        self.act(e.Record(self.now, "", what, facts))


def _weight(spec: e.JobSpec) -> int:
    """How many of the jobs that a user may have here this one is: it is what it takes of memory."""
    return 1 + (sum(map(len, spec.paths)) + sum(map(len, spec.labels))) // _WEIGHT_BYTES
