"""The simulation finds nothing wrong with the scheduler, the ledger and the sessions, and does find what is planted.

SCHEDULES is how many schedules are run, FIRST_SEED where they begin; `.ci/run simulate` takes many.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from simulation import World, run_many, run_seeds, table
from simulation_peers import Violation
from simulation_views import ViewsWorld

from dwrap.agent.attempt import Attempt, Output
from dwrap.agent.marks import Due, Marks
from dwrap.agent.session import Session
from dwrap.distributor import events as e
from dwrap.distributor.bursts import Bursts
from dwrap.distributor.events import JobState
from dwrap.distributor.fleet import Fleet
from dwrap.distributor.job import Job
from dwrap.distributor.jobs import Jobs
from dwrap.distributor.journal import Journal
from dwrap.distributor.ledger import Book
from dwrap.distributor.missing import Missing
from dwrap.distributor.past import Past
from dwrap.distributor.submitters import Submitters
from dwrap.protocol.manifest import Entry

SCHEDULES = int(os.environ.get("SCHEDULES", "1500"))
VIEWS_SCHEDULES = 200
#: Events, and the states of their job in which a thousand schedules surely meet them; "-" is a job that is not known.
MET = {
    "Submitted": "-",
    "Committed": "queued offered",
    "Attached": "- queued assigned missing settled",
    "Acknowledged": "settled",
    "Made": "- queued assigned",
    "Joined": "assigned settled",
    "Finished": "- queued assigned missing settled",
    "Rejected": "assigned",
}


def first_seed(schedules: int) -> int:
    """As the environment says, or any."""
    first = int(os.environ.get("FIRST_SEED", "-1"))
    if first < 0:
        first = random.SystemRandom().randrange(1_000_000_000)
    print(f"seeds {first} to {first + schedules - 1}")
    return first


def test_invariants_hold_over_random_schedules() -> None:
    first = first_seed(SCHEDULES)
    covered = run_many(SCHEDULES, first)
    print(table(covered))
    if SCHEDULES >= 1_000:
        lacking = [f"{event} {state}" for event, states in MET.items() for state in states.split() if not covered[event, state]]
        assert not lacking, "these were not met: " + ", ".join(lacking)
    ends = covered["ended", "all"]
    assert covered["ended", "status"] > 0.8 * ends
    assert covered["attempts", "2"] > 0.01 * ends


def test_a_schedule_is_made_from_its_seed_alone() -> None:
    one, other = World(7).run(), World(7).run()
    assert {name: story.lines for name, story in one.stories.items()} == {name: story.lines for name, story in other.stories.items()}


def test_without_faults_every_job_ends_with_its_own_status_at_its_first_attempt() -> None:
    for seed in range(40):
        world = World(seed, faults=0)
        world.chance = lambda _: False  # type: ignore[method-assign]
        for story in world.run().stories.values():
            assert [ending.split()[0] for ending in story.endings] == ["status"]


# ---- what is planted ----


def leaks_slots(self: Jobs, job: Job, forget: bool = True) -> None:
    job.agent = None


def calls_every_failure_safe(self: Jobs, job: Job, reason: str, safe: bool) -> None:
    original_fail(self, job, reason, True)


def lets_offers_stand(self: Jobs, job: Job, stamp: str) -> None:
    return None


def takes_results_of_old_attempts(self: Jobs, peer: int, name: str, attempt: int) -> Job | None:
    job = self.by_id.get(name)
    return job if job is not None and job.state is JobState.ASSIGNED and job.agent is not None else None


def places_missing_jobs_at_once(self: Missing, job: Job, agent: Any, reason: str) -> None:
    self._jobs.again(job, reason)


def believes_in_no_start(self: Past, job: str, epoch: int, go_at: float) -> bool:
    return True


def writes_nothing_down(self: Book, record: e.Record) -> None:
    return None


def forgets_what_was_made(self: Fleet, event: e.Made) -> None:
    event.paths = ()
    original_made(self, event)


def never_goes_beyond(self: Fleet, event: e.Made) -> None:
    event.beyond = ""
    original_made(self, event)


def sends_results_unasked(self: Session, attempt: Attempt) -> bool:
    return self.welcomed


def drops_too_much(self: Output, limit: int) -> None:
    self.limit = max(self.limit, limit)
    self.drop(limit - 32_768)


def does_nothing(*_: object) -> None:
    return None


def says_it_joined(self: Submitters, job: Job, agent: Any, offsets: Any) -> None:
    original_attach(self, job, agent, offsets)
    job.joining = False


original_fail, original_made, original_attach = Jobs.fail, Fleet.made, Submitters._attach


@pytest.mark.parametrize(
    ("owner", "method", "planted"),
    [
        (Jobs, "release", leaks_slots),
        (Jobs, "fail", calls_every_failure_safe),
        (Jobs, "_offer_due", lets_offers_stand),
        (Jobs, "held_by", takes_results_of_old_attempts),
        (Missing, "miss", places_missing_jobs_at_once),
        (Fleet, "made", forgets_what_was_made),
        (Fleet, "made", never_goes_beyond),
        (Missing, "unclaimed", does_nothing),
        (Submitters, "_attach", says_it_joined),
        (Missing, "compare", does_nothing),
        (Past, "was_never_assigned", believes_in_no_start),
        (Book, "fold", writes_nothing_down),
        (Session, "_speaks_of", sends_results_unasked),
        (Output, "credit", drops_too_much),
    ],
)
def test_planted_defects_are_found(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, planted: Callable[..., Any]) -> None:
    monkeypatch.setattr(owner, method, planted)
    with pytest.raises((Violation, AssertionError, KeyError)):
        run_seeds(range(1_500))


# ---- views of a shared tree ----


def run_views(schedules: int, first: int) -> int:
    """Returns how many looks were compared."""
    return sum(ViewsWorld(seed).run().looks for seed in range(first, first + schedules))


def test_no_job_sees_what_is_older_than_it_may_rely_on() -> None:
    assert run_views(VIEWS_SCHEDULES, first_seed(VIEWS_SCHEDULES)) > VIEWS_SCHEDULES * 20


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


original_since, original_add, original_due = Journal.since, Journal.add, Marks.due
original_begin = Bursts.begin


@pytest.mark.parametrize(
    ("owner", "method", "planted"),
    [
        (Journal, "since", tells_nothing),
        (Journal, "since", never_says_behind),
        (Journal, "add", takes_everything_for_the_readers_own),
        (Marks, "due", forgets_batches),
        (Marks, "due", refreshes_once_for_all),
        (Marks, "restart", does_nothing),
        (Bursts, "begin", never_begins_another),
    ],
)
def test_planted_defects_of_coherence_are_found(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, planted: Any) -> None:
    """Only those that chance meets often: what a lost host wrote is mostly told by someone else in time (test_journal.py has that case)."""
    monkeypatch.setattr(owner, method, planted)
    with pytest.raises(Violation):
        run_views(400, 0)
