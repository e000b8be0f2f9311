"""Which agent gets the next job: the least loaded one of the pools that may take it.

An agent's load is the slots that are assigned, plus the processors that are busy with others' work, over its slots; ours
are counted exactly and at once, theirs are a measurement that is a second old, and count in whole processors: its noise
must not decide. Among equals the one goes first that was given a job the longest ago. One that is short of memory takes jobs
only while it has none, and only when no other agent is free: so that work never stops, and never piles up there.

Each pool keeps a heap of its agents that have a free slot. A change pushes a new entry and leaves the old one stale
(its version tells); the heap is rebuilt when it is mostly stale, so a placement costs O(log agents).
Knows agents as slots and load. Does not know jobs beyond their number, nor why a pool may take them.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from heapq import heapify, heappop, heappush
from typing import Protocol, TypeAlias

from dwrap.distributor.events import AgentSpec, JobSpec, Load, Peer
from dwrap.distributor.journal import NEVER
from dwrap.distributor.policy import Pool, pool_of

SHORT_OF_MEMORY_BYTES = 256 * 1024 * 1024
SHORT_OF_MEMORY_PSI_PERCENT = 20.0
_LAST_RESORT = 1_000.0


class Agent:
    """One registered connection of an agent."""

    __slots__ = (
        "done",
        "draining",
        "heard_at",
        "jobs",
        "lease_until",
        "load",
        "mark",
        "owner",
        "peer",
        "pool",
        "reserved",
        "spec",
        "stale",
        "suspended",
        "token",
        "trusted",
        "turn",
        "uid",
        "version",
    )

    def __init__(self, peer: Peer, uid: int | None, spec: AgentSpec, token: str, owner: str = "") -> None:
        self.peer = peer
        self.uid = uid
        self.owner = owner
        self.spec = spec
        self.pool = pool_of(spec)
        self.token = token
        self.trusted = False  #: it has sent the token back, so the uid is its own
        self.draining = spec.draining
        self.load = Load()
        self.jobs: set[str] = set()  #: offered or assigned here; each holds a slot
        self.done = 0
        self.turn = 0  #: grows with each job that any agent is given
        self.heard_at = 0.0
        self.lease_until = 0.0
        self.version = 0
        self.reserved = False  #: kept free for a job that needs it for itself
        self.stale: set[tuple[str, int]] = set()  #: attempts that it still runs, and that nobody waits for
        self.suspended = ""  #: why it is given no work for a while
        self.mark = NEVER  #: how far it was told what others changed

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def is_serving(self) -> bool:
        """Whether it may be given work at all, a free slot aside. One on which what was given up still runs may not: that may write where
        others do now.
        """
        return self.trusted and not (self.draining or self.suspended or self.stale or self.spec.leftover)

    @property
    def is_short_of_memory(self) -> bool:
        known = self.load.memory_available_bytes
        return 0 < known < SHORT_OF_MEMORY_BYTES or self.load.psi_memory > SHORT_OF_MEMORY_PSI_PERCENT

    @property
    def has_room(self) -> bool:
        held = len(self.jobs)
        return held < self.spec.slots and not self.reserved and not (held and self.is_short_of_memory)

    @property
    def score(self) -> float:
        """Lower is better."""
        busy = (len(self.jobs) + round(self.load.foreign_cpus)) / self.spec.slots
        return busy + _LAST_RESORT if self.is_short_of_memory else busy


class Choosy(Protocol):
    """What there is to know of a job that not every agent of a pool will do for."""

    alone: bool
    memory_bytes: int
    avoid: tuple[str, ...]
    spec: JobSpec

    @property
    def id(self) -> str: ...


_Entry: TypeAlias = tuple[float, int, Peer, int, Agent]  # score, turn, then the peer so that all have an order; the version


def is_stale(entry: _Entry) -> bool:
    """Whether the agent has changed since the entry was made."""
    return entry[3] != entry[4].version


class _Group:
    """The serving agents of one pool."""

    __slots__ = ("agents", "heap")

    def __init__(self) -> None:
        self.agents: set[Agent] = set()
        self.heap: list[_Entry] = []

    def push(self, agent: Agent) -> None:
        if len(self.heap) > 4 * len(self.agents) + 64:
            self.heap = [entry for entry in self.heap if not is_stale(entry)]
            heapify(self.heap)
        if agent.has_room:
            heappush(self.heap, (agent.score, agent.turn, agent.peer, agent.version, agent))

    def best(self, avoid: Collection[str]) -> _Entry | None:
        """The entry of the least loaded agent whose name is not to be avoided, or None."""
        avoided: list[_Entry] = []
        while self.heap and (is_stale(self.heap[0]) or self.heap[0][4].name in avoid):
            entry = heappop(self.heap)
            if not is_stale(entry):
                avoided.append(entry)
        found = self.heap[0] if self.heap else None
        for entry in avoided:
            heappush(self.heap, entry)
        return found


class Placement:
    """The serving agents, by pool."""

    def __init__(self) -> None:
        self._groups: dict[Pool, _Group] = {}
        self._alike: dict[str, dict[Pool, None]] = {}  # the same pools in the same order, by environment
        self._named: dict[str, Agent] = {}
        self._reserved: dict[str, Agent] = {}  # by job
        self._turns = itertools.count(1)
        self._has_changed = False
        self._appeared: set[str] = set()

    def has_changed(self) -> bool:
        """Whether a pool has appeared or gone since this was asked last."""
        changed, self._has_changed = self._has_changed, False
        return changed

    def appeared(self) -> set[str]:
        """The environments of the pools that have appeared since this was asked last."""
        appeared, self._appeared = self._appeared, set()
        return appeared

    @property
    def pools(self) -> Collection[Pool]:
        """The pools that have a serving agent."""
        return self._groups.keys()

    def pools_like(self, identity: str) -> Collection[Pool]:
        """Those of this environment."""
        return self._alike.get(identity, {}).keys()

    def example(self, pool: Pool) -> str:
        """The name of one of its agents, for people."""
        group = self._groups.get(pool)
        return f"agent {next(iter(group.agents)).name}" if group else "an agent"

    def pools_of(self, name: str) -> Collection[Pool]:
        """The pool that the serving agent of this name is in, if there is one."""
        agent = self._named.get(name)
        return (agent.pool,) if agent else ()

    def gave(self, agent: Agent) -> None:
        """The agent was given a job: among equals it comes last now."""
        agent.turn = next(self._turns)
        self.update(agent)

    def update(self, agent: Agent) -> None:
        """The agent's slots, load or standing have changed."""
        agent.version += 1
        if not agent.is_serving:
            return self.remove(agent)
        group = self._groups.get(agent.pool)
        if group is None:
            group = self._groups[agent.pool] = _Group()
            self._alike.setdefault(agent.pool.identity, {})[agent.pool] = None
            self._has_changed = True
            self._appeared.add(agent.pool.identity)
        group.agents.add(agent)
        self._named[agent.name] = agent
        group.push(agent)

    def remove(self, agent: Agent) -> None:
        """The agent takes no more work."""
        agent.version += 1
        group = self._groups.get(agent.pool)
        if group is None or agent not in group.agents:
            return
        group.agents.remove(agent)
        del self._named[agent.name]
        if not group.agents:
            del self._groups[agent.pool]
            alike = self._alike[agent.pool.identity]
            del alike[agent.pool]
            if not alike:
                del self._alike[agent.pool.identity]
            self._has_changed = True

    def best(self, pools: Collection[Pool], avoid: Collection[str] = (), only: str = "") -> Agent | None:
        """The least loaded agent of these pools that has a free slot and whose name is not to be avoided (and is `only`), or None."""
        if only:
            agent = self._named.get(only)
            return agent if agent and agent.pool in pools and agent.has_room and only not in avoid else None
        found: _Entry | None = None
        for pool in pools:
            group = self._groups.get(pool)
            entry = group.best(avoid) if group else None
            if entry is not None and (found is None or entry < found):
                found = entry
        return found[4] if found else None

    def best_for(self, job: Choosy, pools: Collection[Pool]) -> Agent | None:
        """As `best`, for a job that not every agent will do for, or None. One that needs an agent for itself has it kept free."""
        if not (job.memory_bytes or job.alone):
            return self.best(pools, job.avoid, job.spec.agent)
        able = [agent for pool in pools if pool in self._groups for agent in self._groups[pool].agents if agent.name not in job.avoid]
        able = [agent for agent in able if job.spec.agent in ("", agent.name)]
        larger = [agent for agent in able if agent.spec.memory_bytes > job.memory_bytes]
        if larger and not job.alone:
            return min((agent for agent in larger if agent.has_room), key=lambda agent: (agent.score, agent.turn), default=None)
        job.alone = True
        return self._reserve(job.id, able)

    def _reserve(self, job: str, able: list[Agent]) -> Agent | None:
        """The agent that is kept free for a job, once it is free."""
        chosen = self._reserved.get(job)
        if chosen not in able:
            self.unreserve(job)
            chosen = max((agent for agent in able if not agent.reserved), key=lambda agent: agent.spec.memory_bytes, default=None)
            if chosen is None:
                return None
            self._reserved[job] = chosen
            chosen.reserved = True
            self.update(chosen)
        return chosen if chosen is not None and not chosen.jobs else None

    def unreserve(self, job: str) -> None:
        """The job needs no agent for itself any more."""
        agent = self._reserved.pop(job, None) if self._reserved else None
        if agent is not None:
            agent.reserved = False
            if self._named.get(agent.name) is agent:
                self.update(agent)

    def is_full(self, name: str) -> bool:
        """Whether the serving agent of this name has no free slot."""
        agent = self._named.get(name)
        return agent is not None and not agent.has_room

    def count(self, pools: Iterable[Pool]) -> int:
        """How many serving agents these pools have."""
        return sum(len(self._groups[pool].agents) for pool in pools if pool in self._groups)

    def are_all_among(self, pools: Collection[Pool], names: Collection[str], only: str = "") -> bool:
        """Whether each serving agent of these pools (that is `only`) has one of the names. Names are unique: mostly the numbers tell."""
        if only:
            return only in names
        if self.count(pools) > len(names):
            return False
        return all(agent.name in names for pool in pools if pool in self._groups for agent in self._groups[pool].agents)
