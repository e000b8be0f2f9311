"""queue.py: shares between builds, order within one."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass

import pytest

from dwrap.distributor.queue import AGE_BOUND_SECONDS, FairQueue, Shares


@dataclass(eq=False)
class Waiter:
    build: str = "b"
    submitted_at: float = 0.0
    expected_seconds: float = 0.0
    weight: float = 1.0
    ticket: int = 0

    @property
    def whose_build(self) -> str:
        return self.build


def queue(shares: Shares | None = None) -> FairQueue[Waiter]:
    return FairQueue(shares or Shares(), itertools.count(1))


def drained(line: FairQueue[Waiter], limit: int = 1 << 30) -> list[Waiter]:
    out: list[Waiter] = []
    while len(out) < limit and (job := line.take()) is not None:
        out.append(job)
    return out


def test_a_build_is_first_in_first_out_when_nothing_is_known() -> None:
    line, jobs = queue(), [Waiter(submitted_at=at) for at in range(10)]
    for job in jobs:
        line.add(job)
    assert drained(line) == jobs


def test_the_longest_goes_first_but_not_past_the_age_bound() -> None:
    line = queue()
    short, long = Waiter(submitted_at=0, expected_seconds=1), Waiter(submitted_at=10, expected_seconds=30)
    endless = Waiter(submitted_at=AGE_BOUND_SECONDS + 1, expected_seconds=1e9)
    for job in (short, endless, long):
        line.add(job)
    assert drained(line) == [long, short, endless]


@pytest.mark.parametrize(("heavy", "light"), [(1.0, 1.0), (2.0, 1.0), (8.0, 1.0), (1.0, 0.25)])
def test_builds_share_by_weight(heavy: float, light: float) -> None:
    line = queue()
    for _ in range(900):
        line.add(Waiter("heavy", weight=heavy))
        line.add(Waiter("light", weight=light))
    had = Counter(job.build for job in drained(line, 450))
    assert had["heavy"] / had["light"] == pytest.approx(heavy / light, rel=0.02)


def test_an_idle_build_saves_nothing_up() -> None:
    line = queue()
    for _ in range(100):
        line.add(Waiter("busy"))
    drained(line, 50)
    for _ in range(50):
        line.add(Waiter("late"))
    assert Counter(job.build for job in drained(line, 20))["late"] == pytest.approx(10, abs=1)


def test_a_build_that_is_empty_for_a_moment_does_not_start_afresh() -> None:
    line = queue()
    for _ in range(100):
        line.add(Waiter("patient"))
    had: Counter[str] = Counter()
    line.add(Waiter("pushy"))
    for _ in range(50):
        (job,) = drained(line, 1)
        had[job.build] += 1
        if job.build == "pushy":
            line.add(Waiter("pushy"))
    assert had["pushy"] == pytest.approx(25, abs=1)


def test_a_build_pays_for_what_it_had_in_another_queue() -> None:
    shares = Shares()
    serials = itertools.count(1)
    one: FairQueue[Waiter] = FairQueue(shares, serials)
    other: FairQueue[Waiter] = FairQueue(shares, serials)
    for _ in range(20):
        one.add(Waiter("both"))
        other.add(Waiter("both"))
        other.add(Waiter("single"))
    drained(one, 10)
    assert {job.build for job in drained(other, 10)} == {"single"}


def test_removal_anywhere_at_any_time() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice, line = random.Random(seed), queue()
    waiting: set[Waiter] = set()
    for step in range(20_000):
        choice = dice.random()
        if choice < 0.4:
            job = Waiter(dice.choice("abc"), step, dice.choice((0.0, 5.0)), dice.choice((0.5, 1.0, 4.0)))
            line.add(job)
            waiting.add(job)
        elif choice < 0.7 and waiting:
            job = dice.choice(sorted(waiting, key=id))
            line.remove(job)
            waiting.remove(job)
        else:
            taken = line.take()
            assert (taken is None) == (not waiting)
            if taken is not None:
                waiting.remove(taken)
        assert len(line) == len(waiting)
    assert set(line.all()) == waiting
    assert set(drained(line)) == waiting


def test_removed_jobs_do_not_pile_up() -> None:
    line = queue()
    for _ in range(10_000):
        job = Waiter()
        line.add(job)
        line.remove(job)
    assert sum(len(one.heap) for one in line._lines.values()) < 200
    assert len(line._turns) < 200
