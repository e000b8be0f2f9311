"""The waiting room: where each QUEUED job stands, and which job and agent are next.

A job stands in the fair queue of the pools that may take it; or it is homeless (no agent may take it); or it is choosy (it asks
for one agent, or some have rejected it); or it stands aside, in none of these, until its submitter is heard.
Knows queues and placement. Does not know what made a job wait, or what is told to anyone.
"""

from __future__ import annotations

import itertools

from dwrap.distributor.events import JobSpec
from dwrap.distributor.job import Job
from dwrap.distributor.placement import Agent, Placement
from dwrap.distributor.policy import Pool, Verdict, judge
from dwrap.distributor.queue import FairQueue, Shares
from dwrap.protocol.likeness import difference

_MAX_IDLE_QUEUES = 32


def is_other(spec: JobSpec, agent: Agent) -> bool:
    """Whether the agent's environment is not the one that the job comes from."""
    return bool(spec.identity) and spec.identity != agent.spec.identity


class WaitingRoom:
    """All jobs that wait."""

    def __init__(self, placement: Placement, strict: bool) -> None:
        self.homeless: dict[str, Job] = {}
        self.choosy: dict[str, Job] = {}
        self._awaiting: dict[str, Job] = {}  # the homeless that ask for one agent
        self._placement = placement
        self._strict = strict
        self._serials = itertools.count(1)
        self._shares = Shares()
        self._queues: dict[tuple[Pool, ...], FairQueue[Job]] = {}
        self._queued = 0  # how many stand in them

    def __len__(self) -> int:
        return self._queued + len(self.homeless) + len(self.choosy)

    def is_aside(self, job: Job) -> bool:
        """Whether a QUEUED job stands aside."""
        return job.queue is None and job.id not in self.homeless and job.id not in self.choosy

    def judge(self, spec: JobSpec, uid: int | None) -> Verdict:
        """Which pools may take such a job now."""
        pools = self._placement.pools_of(spec.agent) if spec.agent else self._placement.pools
        if spec.identity and not spec.agent:  # mostly an equal one will do, and there may be hundreds of others
            verdict = judge(spec, uid, self._placement.pools_like(spec.identity), self._placement.example, self._strict)
            if verdict.pools:
                return verdict
        return judge(spec, uid, pools, self._placement.example, self._strict)

    def make_homeless(self, job: Job) -> None:
        """No agent may take a job that stands aside."""
        self.homeless[job.id] = job
        if job.spec.agent:
            self._awaiting[job.id] = job

    def awaiting(self, agent: str) -> list[Job]:
        """The homeless jobs that ask for this agent."""
        return [job for job in self._awaiting.values() if job.spec.agent == agent]

    def enqueue(self, job: Job, pools: tuple[Pool, ...]) -> None:
        """Puts a job that stands aside into the queue of these pools."""
        queue = self._queues.get(pools)
        if queue is None:
            if len(self._queues) >= _MAX_IDLE_QUEUES:
                self.forget_empty()
            queue = self._queues[pools] = FairQueue(self._shares, self._serials)
        queue.add(job)
        self._queued += 1
        job.queue = queue

    def step_out(self, job: Job) -> None:
        """Takes a job from wherever it stands; it stands aside then."""
        if job.queue is not None:
            job.queue.remove(job)
            self._queued -= 1
            job.queue = None
        elif self.homeless or self.choosy:
            self.homeless.pop(job.id, None)
            self._awaiting.pop(job.id, None)
            self.choosy.pop(job.id, None)

    def unsettled(self) -> list[Job]:
        """Every job whose place depends on which pools there are."""
        return list(itertools.chain(*(queue.all() for queue in self._queues.values()), self.homeless.values()))

    def forget_empty(self) -> None:
        """Drops the queues in which nobody stands."""
        self._queues = {pools: queue for pools, queue in self._queues.items() if len(queue)}

    def foresee(self, spec: JobSpec, uid: int | None) -> tuple[str, str, str]:
        """Where such a job would go now: `where` (PROTOCOL.md, EXPLAINED), the name of the agent if to one, and why."""
        verdict = self.judge(spec, uid)
        agent = self._placement.best(verdict.pools, only=spec.agent)
        able = 1 if spec.agent else self._placement.count(verdict.pools)
        if not verdict.pools:
            return "here" if verdict.verb == "HERE" else "nowhere", "", verdict.reason
        if agent is None:
            return "queue", "", f"all slots of the {able} agents that may take it are in use; {len(self)} jobs wait"
        differs = f", though it {difference(agent.spec.identity, spec.identity)}" if is_other(spec, agent) else ""
        return "agent", agent.name, f"the least loaded of {able} agents that may take it{differs}"

    def take_next(self) -> tuple[Job, Agent] | None:
        """The job whose turn it is and the least loaded agent that may take it, or None. The job stands aside then."""
        best: tuple[float, FairQueue[Job], Agent] | None = None
        for pools, queue in self._queues.items():
            turn = queue.turn() if len(queue) else None
            if turn is None or (best is not None and turn >= best[0]):
                continue
            agent = self._placement.best(pools)
            if agent is not None:
                best = (turn, queue, agent)
        if best is None:
            return None
        job = best[1].take()
        if job is None:
            return None
        self._queued -= 1
        job.queue = None
        return job, best[2]
