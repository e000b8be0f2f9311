"""The roster: every registered agent, by its connection and by its name, and how long each is believed to live.

Knows who may register under which name, of how many kinds, and leases. Does not know what becomes of an agent's jobs, nor what it is told.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import replace
from typing import Final

from dwrap.distributor import events as e
from dwrap.distributor.events import Peer
from dwrap.distributor.placement import Agent
from dwrap.distributor.policy import Pool, pool_of
from dwrap.distributor.standing import Standing

LEASE_SECONDS: Final = 10.0
LEASE_GRACE_SECONDS: Final = 3.0
NAME_TAKEOVER_SECONDS: Final = 2.5
MAX_STANDINGS: Final = 4_096
MAX_KINDS_OF_ONE: Final = 256  # pools: a job that none suits at once is held against all of them


class Roster:
    """All agents that have registered and are not lost."""

    def __init__(self) -> None:
        self.by_peer: dict[Peer, Agent] = {}
        self._by_name: dict[str, Agent] = {}
        self._standings: OrderedDict[str, Standing] = OrderedDict()
        self._kinds: dict[str, Counter[Pool]] = {}  # how many agents of each kind somebody has
        self.with_views = 0  #: how many have a network file system under their roots

    def named(self, name: str) -> Agent | None:
        """The agent of that name, or None."""
        return self._by_name.get(name)

    def standing(self, name: str) -> Standing:
        """What is known of an agent's faults, over its connections."""
        found = self._standings.setdefault(name, Standing())
        self._standings.move_to_end(name)
        if len(self._standings) > MAX_STANDINGS:
            self._standings.popitem(last=False)
        return found

    def refusal(self, event: e.Registered, now: float) -> str:
        """Why this connection may not register so; empty when it may, be it in place of `displaced`."""
        spec = event.spec
        if event.uid not in (None, 0, spec.serves):
            return f"an agent of uid {event.uid} may serve that uid only"
        kinds = self._kinds.get(event.owner, Counter())
        if len(kinds) >= MAX_KINDS_OF_ONE and pool_of(spec) not in kinds:
            remedy = "give them fewer different labels and roots, or keys of their own"
            return f"{event.owner} has agents of {MAX_KINDS_OF_ONE} kinds already; {remedy}"
        known = self.displaced(event)
        if known is None:
            return ""
        is_same = spec.incarnation and spec.incarnation == known.spec.incarnation  # it knows that its old connection is of no use
        if (known.uid, known.owner) == (event.uid, event.owner) and (is_same or now - known.heard_at > NAME_TAKEOVER_SECONDS):
            return ""
        return f"an agent named {spec.name} is already connected from {known.spec.host or 'another host'}; choose another --name"

    def displaced(self, event: e.Registered) -> Agent | None:
        """The agent that has this name on another connection, or None."""
        known = self._by_name.get(event.spec.name)
        return None if known is None or known.peer == event.peer else known

    def enter(self, event: e.Registered, token: str, now: float) -> Agent:
        """A new agent."""
        agent = Agent(event.peer, event.uid, self._with_known_packages(event.spec), token, event.owner)
        agent.heard_at = now
        agent.lease_until = now + LEASE_SECONDS
        standing = self._standings.get(event.spec.name)
        if standing is not None and standing.is_suspended(now):
            agent.suspended = standing.why
        self.by_peer[event.peer] = self._by_name[event.spec.name] = agent
        self._count(agent, 1)
        self.with_views += agent.spec.views
        return agent

    def rename(self, agent: Agent, spec: e.AgentSpec) -> None:
        """An agent says anew what it is."""
        del self._by_name[agent.name]
        self.with_views += spec.views - agent.spec.views
        spec = self._with_known_packages(spec)
        self._count(agent, -1)
        agent.spec, agent.pool, agent.draining = spec, pool_of(spec), spec.draining
        self._count(agent, 1)
        self._by_name[spec.name] = agent

    def _count(self, agent: Agent, by: int) -> None:
        kinds = self._kinds.setdefault(agent.owner, Counter())
        kinds[agent.pool] += by
        if not kinds[agent.pool]:
            del kinds[agent.pool]
        if not kinds:
            del self._kinds[agent.owner]

    def _with_known_packages(self, spec: e.AgentSpec) -> e.AgentSpec:
        """The same; the list of packages, which may be long, is kept once for all agents that have it."""
        known = (agent.spec.packages for agent in self.by_peer.values() if agent.spec.identity == spec.identity)
        return next((replace(spec, packages=text) for text in known if text == spec.packages), spec)

    def heard(self, agent: Agent, load: e.Load, now: float) -> None:
        """An agent has sent its token: it is who it was when it registered, and it lives."""
        agent.trusted = True
        agent.load = load
        agent.heard_at = now
        agent.lease_until = now + LEASE_SECONDS

    def remove(self, agent: Agent) -> None:
        """The agent is lost."""
        del self.by_peer[agent.peer]
        self._count(agent, -1)
        self.with_views -= agent.spec.views
        del self._by_name[agent.name]


def dead_at(agent: Agent) -> float:
    """When an agent of which nothing more is heard is given up."""
    return agent.lease_until + LEASE_GRACE_SECONDS
