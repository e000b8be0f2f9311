"""placement.py: the least loaded agent, and what a placement costs."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace

import pytest

from dwrap.distributor.events import AgentSpec, JobSpec, Load
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
    assert placement.has_changed()
    assert not placement.has_changed(), "it is said once"
    placement.update(agent)
    assert not placement.has_changed()
    agent.draining = True
    placement.update(agent)
    assert not list(placement.pools)
    assert placement.has_changed()
    placement.remove(agent)
    assert not placement.has_changed()


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


@pytest.mark.parametrize(
    ("load", "is_short"),
    [
        (Load(memory_available_bytes=0), False),  # not known
        (Load(memory_available_bytes=1), True),
        (Load(memory_available_bytes=(256 << 20) - 1), True),
        (Load(memory_available_bytes=256 << 20), False),
        (Load(psi_memory=20.0), False),
        (Load(psi_memory=20.1), True),
    ],
)
def test_when_an_agent_is_short_of_memory(load: Load, is_short: bool) -> None:
    assert made(Placement(), 1, load=load).is_short_of_memory is is_short


def test_an_agent_with_processes_that_others_left_takes_no_work() -> None:
    placement = Placement()
    agent = made(placement, 1)
    agent.spec = replace(agent.spec, leftover=1)
    placement.update(agent)
    assert placement.best(placement.pools) is None


def test_a_pool_is_there_as_long_as_one_agent_is() -> None:
    placement = Placement()
    first, second = made(placement, 1), made(placement, 2)
    assert placement.has_changed()
    placement.remove(first)
    assert not placement.has_changed()
    placement.remove(second)
    assert placement.has_changed()


def test_an_agent_by_name_is_taken_only_where_it_may_be() -> None:
    placement = Placement()
    agent, elsewhere = made(placement, 1, slots=1), made(placement, 2, roots=("/home",))
    assert placement.best([agent.pool], only="a1") is agent
    assert placement.best([agent.pool], only="a2") is None
    assert placement.best([elsewhere.pool], ("a2",), only="a2") is None
    agent.jobs.add("x")
    assert placement.best([agent.pool], only="a1") is None


def test_the_best_of_all_pools_is_found_whichever_are_full_or_gone() -> None:
    placement = Placement()
    full, free = made(placement, 1, slots=1, jobs=1, roots=("/a",)), made(placement, 2, roots=("/b",))
    gone = made(Placement(), 3, roots=("/c",))
    for pools in itertools.permutations((full.pool, free.pool, gone.pool)):
        assert placement.best(pools) is free
        assert placement.count(pools) == 2
        assert placement.are_all_among(pools, ("a1", "a2"))
        assert not placement.are_all_among(pools, ("a1", "a3", "a4"))


def test_a_heap_that_was_swept_is_one() -> None:
    dice, placement = random.Random(1), Placement()
    agents = [made(placement, peer, slots=64) for peer in range(1, 40)]
    for step in range(400):
        for agent in dice.sample(agents, 20):  # nobody looks meanwhile
            agent.jobs = {str(number) for number in range(dice.randint(0, 60))}
            placement.update(agent)
        assert placement.best(placement.pools) is min(agents, key=lambda one: (one.score, one.peer)), step


# ---- jobs that not every agent will do for


@dataclass
class Wish:
    """A job that is choosy."""

    id: str = "j"
    memory_bytes: int = 0
    alone: bool = False
    avoid: tuple[str, ...] = ()
    spec: JobSpec = field(default_factory=lambda: JobSpec("j", "/", "cc", "b"))


def sized(placement: Placement, *sizes: int, slots: int = 2) -> list[Agent]:
    """Agents with so much memory each."""
    agents = [made(placement, peer, slots=slots) for peer in range(1, len(sizes) + 1)]
    for agent, size in zip(agents, sizes, strict=True):
        agent.spec = replace(agent.spec, memory_bytes=size)
        placement.update(agent)
    return agents


def test_a_job_that_only_avoids_an_agent_goes_to_the_best_of_the_others() -> None:
    placement = Placement()
    _, second = sized(placement, 0, 0)
    job = Wish(avoid=("a1",))
    assert placement.best_for(job, placement.pools) is second
    assert not job.alone


def test_where_there_is_more_memory_the_least_loaded_is_taken_in_turn() -> None:
    placement = Placement()
    _, *larger, full = sized(placement, 4, 8, 8, 8, 8)
    full.jobs.update("xy")
    job = Wish(memory_bytes=4)
    given = []
    for _ in range(6):
        chosen = placement.best_for(job, placement.pools)
        assert chosen is not None
        placement.gave(chosen)
        given.append(chosen)
    assert set(given) == set(larger)
    assert given[3:] == given[:3]
    for agent in given[:2]:
        agent.jobs.add("x")
    assert placement.best_for(job, placement.pools) is given[2]
    for agent in larger:
        agent.jobs.update("xy")
    assert placement.best_for(job, placement.pools) is None
    assert not job.alone, "it waits for one that has more"


def test_a_job_for_one_agent_has_that_one_for_itself() -> None:
    placement = Placement()
    _, second, _ = sized(placement, 8, 4, 4)
    job = Wish(memory_bytes=4, spec=JobSpec("j", "/", "cc", "b", agent="a2"))
    assert placement.best_for(job, placement.pools) is second
    assert (job.alone, second.reserved) == (True, True)


def test_a_job_alone_is_so_wherever_it_goes() -> None:
    placement = Placement()
    small, large = sized(placement, 4, 8)
    large.jobs.add("x")
    job = Wish(memory_bytes=4, alone=True)
    assert placement.best_for(job, placement.pools) is None
    assert (small.reserved, large.reserved) == (False, True)
    assert placement.best(placement.pools) is small, "nothing else is placed on the one that is kept free"
    small.jobs.update("xy")
    placement.update(small)
    assert placement.best(placement.pools) is None
    other = Wish("other", 8)
    assert placement.best_for(other, placement.pools) is None
    assert (other.alone, small.reserved) == (True, True), "each has its own"
    assert placement.best_for(Wish("third", 8), placement.pools) is None
    large.jobs.clear()
    assert placement.best_for(job, placement.pools) is large
    placement.unreserve("j")
    assert placement.best(placement.pools) is large


def test_an_agent_that_will_not_do_any_more_is_kept_free_no_longer() -> None:
    placement = Placement()
    small, large = sized(placement, 4, 8)
    job = Wish(memory_bytes=8)
    assert placement.best_for(job, placement.pools) is large
    job.avoid = ("a2",)
    assert placement.best_for(job, placement.pools) is small
    assert (small.reserved, large.reserved) == (True, False)
    assert placement.best(placement.pools) is large


def test_an_agent_that_has_left_does_not_come_back_with_its_reservation() -> None:
    placement = Placement()
    [agent] = sized(placement, 4)
    assert placement.best_for(Wish(memory_bytes=4), placement.pools) is agent
    placement.remove(agent)
    placement.unreserve("j")
    assert placement.best(placement.pools) is None
