"""The simulation finds nothing wrong with the scheduler, and does find what is planted."""

from __future__ import annotations

import random
from typing import Any

import pytest
from simulation_plain import Chances, Violation, World, run_many
from simulation_views import ViewsWorld

from dwrap.agent.marks import Due, Marks
from dwrap.distributor import events as e
from dwrap.distributor.bursts import Bursts
from dwrap.distributor.events import JobState
from dwrap.distributor.job import Job
from dwrap.distributor.journal import Journal
from dwrap.distributor.scheduler import Scheduler
from dwrap.protocol.manifest import Entry

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


# ---- views of a shared tree ----


def run_views(schedules: int, first: int) -> int:
    """Returns how many looks were compared."""
    return sum(ViewsWorld(seed).run().looks for seed in range(first, first + schedules))


def test_no_job_sees_what_is_older_than_it_may_rely_on() -> None:
    first = random.SystemRandom().randrange(1_000_000)
    print(f"seeds {first} to {first + SCHEDULES - 1}")
    assert run_views(SCHEDULES, first) > SCHEDULES * 20


def tells_nothing(self: Journal, mark: int, reader: int) -> tuple[int, bytes, bool]:
    mark, _, behind = original_since(self, mark, reader)
    return mark, b"", behind


def never_says_behind(self: Journal, mark: int, reader: int) -> tuple[int, bytes, bool]:
    mark, entries, _ = original_since(self, mark, reader)
    return mark, entries, False


def takes_everything_for_the_readers_own(self: Journal, origin: int | None, entries: list[Entry]) -> None:
    original_add(self, 1 if origin is None else origin, [one for one in entries if one.kind != b"D"])


def forgets_batches(self: Marks, uid: int, cwd: bytes, burst: int) -> Due:
    return original_due(self, uid, cwd, burst)._replace(journal=b"")


def refreshes_once_for_all(self: Marks, uid: int, cwd: bytes, burst: int) -> Due:
    return original_due(self, uid, b"/", burst)


def never_begins_another(self: Bursts, build: object, now: float) -> int:
    original_begin(self, build, now)
    return 1


def does_nothing(*_: object) -> None:
    return None


original_since, original_add, original_due = Journal.since, Journal.add, Marks.due
original_begin = Bursts.begin


@pytest.mark.parametrize(
    ("owner", "method", "planted"),
    [
        (Journal, "since", tells_nothing),
        (Journal, "since", never_says_behind),
        (Journal, "add", takes_everything_for_the_readers_own),
        (Journal, "forget_all_marks", does_nothing),
        (Marks, "due", forgets_batches),
        (Marks, "due", refreshes_once_for_all),
        (Marks, "restart", does_nothing),
        (Bursts, "begin", never_begins_another),
    ],
)
def test_planted_defects_of_coherence_are_found(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, planted: Any) -> None:
    monkeypatch.setattr(owner, method, planted)
    with pytest.raises(Violation):
        run_views(400, 0)
