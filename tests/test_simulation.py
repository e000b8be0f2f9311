"""The simulation finds nothing wrong with the scheduler, and does find what is planted."""

from __future__ import annotations

import random
from typing import Any

import pytest
from simulation import Chances, Violation, World, run_many

from dwrap.distributor import events as e
from dwrap.distributor.events import JobState
from dwrap.distributor.job import Job
from dwrap.distributor.scheduler import Scheduler

SCHEDULES = 200


def test_invariants_hold_over_random_schedules() -> None:
    first = random.SystemRandom().randrange(1_000_000)
    print(f"seeds {first} to {first + SCHEDULES - 1}")
    covered = run_many(SCHEDULES, first)
    met = set(covered)
    assert {("Committed", "offered"), ("Committed", "queued"), ("Finished", "assigned"), ("Finished", "settled")} <= met
    assert {("Rejected", "assigned"), ("Acknowledged", "settled")} <= met


def test_a_schedule_is_made_from_its_seed_alone() -> None:
    one, other = World(7).run(), World(7).run()
    assert {job: story.lines for job, story in one.stories.items()} == {job: story.lines for job, story in other.stories.items()}


def test_without_faults_every_job_reaches_an_end_of_its_own() -> None:
    calm = Chances(reject=0, infrastructure=0, wrapper_dies=0, wrapper_sleeps=0, lose_ack=0, faults=0)
    for seed in range(20):
        world = World(seed, chances=calm).run()
        assert all(story.ends == 1 for story in world.stories.values())


def leaks_slots(self: Scheduler, job: Job, forget: bool = True) -> None:
    job.agent = None


def places_lost_jobs_again(self: Scheduler, job: Job, reason: str, safe: bool) -> None:
    if job.state is JobState.ASSIGNED and not safe and job.peer is not None:
        return self._requeue(job, "rejected", reason)
    original_fail(self, job, reason, safe)


def calls_every_failure_safe(self: Scheduler, job: Job, reason: str, safe: bool) -> None:
    original_fail(self, job, reason, True)


def lets_offers_stand(self: Scheduler, job: Job, stamp: str) -> None:
    return None


def forgets_the_submitters_end(self: Scheduler, job: Job) -> None:
    return None


def takes_any_result(self: Scheduler, event: e.Finished) -> None:
    job = self.jobs.get(event.job)
    if job is not None and job.peer is not None:
        self._act(e.DeliverResult(job.peer, job.id, event.payload, "", 0))
    original_finished(self, event)


original_fail = Scheduler._fail
original_finished = Scheduler._finished


@pytest.mark.parametrize(
    ("method", "planted"),
    [
        ("_release", leaks_slots),
        ("_fail", places_lost_jobs_again),
        ("_fail", calls_every_failure_safe),
        ("_offer_due", lets_offers_stand),
        ("_submitter_gone", forgets_the_submitters_end),
        ("_finished", takes_any_result),
    ],
)
def test_planted_defects_are_found(monkeypatch: pytest.MonkeyPatch, method: str, planted: Any) -> None:
    monkeypatch.setattr(Scheduler, method, planted)
    with pytest.raises((Violation, AssertionError, KeyError)):
        run_many(100, 0)
