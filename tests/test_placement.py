"""placement.py: the least loaded agent, and what a placement costs."""

from __future__ import annotations

import random

from dwrap.distributor.events import AgentSpec, Load
from dwrap.distributor.placement import Agent, Placement

GIB = 1 << 30


def made(
    placement: Placement, peer: int, slots: int = 4, load: Load | None = None, jobs: int = 0, roots: tuple[str, ...] = ("/",)
) -> Agent:
    agent = Agent(peer, 0, AgentSpec(f"a{peer}", slots, roots), "token")
    agent.trusted = True
    agent.load = load or Load(memory_available_bytes=8 * GIB)
    agent.jobs = {f"{peer}.{number}" for number in range(jobs)}
    placement.update(agent)
    return agent


def test_assigned_slots_count_in_proportion() -> None:
    placement = Placement()
    made(placement, 1, slots=4, jobs=2)
    big = made(placement, 2, slots=16, jobs=4)
    assert placement.best(placement.pools) is big


def test_others_work_counts_our_own_does_not() -> None:
    placement = Placement()
    made(placement, 1, load=Load(foreign_cpus=3.0, memory_available_bytes=GIB))
    quiet = made(placement, 2, jobs=2)
    assert placement.best(placement.pools) is quiet


def test_equals_take_turns_and_the_noise_of_a_measurement_makes_nobody_unequal() -> None:
    placement = Placement()
    for peer, foreign_cpus in ((1, 0.02), (2, 0.31), (3, 0.0)):
        made(placement, peer, load=Load(foreign_cpus=foreign_cpus, memory_available_bytes=GIB))
    given = []
    for number in range(6):  # one job at a time, each ended before the next
        agent = placement.best(placement.pools)
        assert agent is not None
        given.append(agent.name)
        agent.jobs.add(str(number))
        placement.gave(agent)
        agent.jobs.clear()
        placement.update(agent)
    assert given == ["a1", "a2", "a3"] * 2


def test_an_agent_short_of_memory_comes_last_and_takes_one_at_a_time() -> None:
    placement = Placement()
    short = made(placement, 1, load=Load(memory_available_bytes=GIB // 8))
    pressed = made(placement, 2, load=Load(memory_available_bytes=GIB, psi_memory=40.0), jobs=1)
    busy = made(placement, 3, jobs=3)
    assert placement.best(placement.pools) is busy
    busy.jobs.add("one more")
    placement.update(busy)
    assert placement.best(placement.pools) is short
    short.jobs.add("x")
    placement.update(short)
    assert placement.best(placement.pools) is None
    pressed.jobs.clear()
    placement.update(pressed)
    assert placement.best(placement.pools) is pressed


def test_avoided_agents_are_passed_over() -> None:
    placement = Placement()
    made(placement, 1)
    busy = made(placement, 2, jobs=3)
    assert placement.best(placement.pools, avoid=("a1",)) is busy
    assert placement.best(placement.pools, avoid=("a1", "a2")) is None


def test_pools_come_and_go_with_their_agents() -> None:
    placement = Placement()
    agent = made(placement, 1)
    assert placement.update(agent) is False
    agent.draining = True
    assert placement.update(agent) is True
    assert not list(placement.pools)
    assert placement.remove(agent) is False


def test_the_heap_agrees_with_looking_at_everyone() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice, placement = random.Random(seed), Placement()
    agents = [made(placement, peer, slots=dice.randint(1, 8), roots=dice.choice((("/",), ("/srv",)))) for peer in range(1, 40)]
    for step in range(5_000):
        agent = dice.choice(agents)
        action = dice.random()
        if action < 0.4 and agent.has_room:
            agent.jobs.add(str(step))
        elif action < 0.8 and agent.jobs:
            agent.jobs.pop()
        else:
            agent.load = Load(dice.uniform(0, 4), dice.choice((GIB // 8, GIB)))
            agent.draining = dice.random() < 0.1
        placement.update(agent)
        able = [one for one in agents if one.is_serving and one.has_room]
        best = placement.best(list(placement.pools))
        assert best is min(able, key=lambda one: (one.score, one.peer), default=None)


def test_stale_entries_are_swept() -> None:
    placement = Placement()
    agents = [made(placement, peer) for peer in range(1, 11)]
    for _ in range(10_000):
        for agent in agents:
            placement.update(agent)
    assert sum(len(group.heap) for group in placement._groups.values()) <= 4 * len(agents) + 65
