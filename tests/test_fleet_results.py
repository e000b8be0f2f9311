"""fleet.py where attempts end: results that come twice or late, and what becomes of what nobody wants any more."""

from __future__ import annotations

import pytest
from test_scheduler import OFFSETS, USER, Desk, attach, come_back

from dwrap.distributor import events as e
from dwrap.distributor.events import JobState

LOST = e.Outcome(None, "lost", "it was ended", repeat=True, made=("/srv/o",))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def records(desk: Desk, what: str) -> list[dict[str, e.Fact]]:
    return [action.facts for action in desk.last if isinstance(action, e.Record) and action.what == what]


def leave(desk: Desk, peer: int, seconds: float = 1.0) -> None:
    """A submitter's connection ends, and nobody comes for its jobs."""
    desk.do(e.Disconnected(peer))
    desk.pass_time(seconds)


# ---- results ----


@pytest.mark.parametrize(("job", "attempt", "peer"), [("j50", 2, 1), ("j50", 1, 2)])
def test_a_result_is_taken_from_the_agent_that_has_it_only(desk: Desk, job: str, attempt: int, peer: int) -> None:
    desk.agent(1)
    desk.run(50)
    desk.agent(2)
    desk.finish(1, "j50")
    desk.finish(peer, job, attempt)
    assert (desk.said(peer), desk.said(50)) == (["AckResult"], [])


def test_a_result_that_is_asked_for_again_counts_after_what_was_printed_only(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50")
    attach(desk, 51, "j50")
    desk.finish(1, "j50")
    assert desk.last == []
    desk.do(e.Joined(1, "j50", 1))
    desk.finish(1, "j50")
    assert desk.one(e.DeliverResult).peer == 51


def test_a_result_that_turns_out_to_be_lost_matters_to_who_waits_for_it(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50")
    desk.do(e.Disconnected(50))
    desk.finish(1, "j50", 1, LOST)
    assert desk.last == []
    assert desk.state("j50") is JobState.SETTLED


def test_a_result_waits_with_its_agent_while_its_submitter_is_away(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Disconnected(50))
    desk.finish(1, "j50")
    assert desk.said(1) == []
    desk.submit(60)
    assert desk.said(60) == ["Offer"], "it holds no slot"
    attach(desk, 51, "j50")
    assert desk.one(e.ForwardAttach) == e.ForwardAttach(1, "j50", 1, OFFSETS)
    desk.do(e.Joined(1, "j50", 1))
    desk.finish(1, "j50")
    assert desk.one(e.DeliverResult).peer == 51
    assert desk.scheduler.agents[1].done == 1


def test_an_agent_that_has_no_room_leaves_what_its_job_made_to_the_next(desk: Desk) -> None:
    desk.agent(1)
    desk.agent(2)
    holder = desk.run(50).peer
    desk.finish(holder, "j50", 1, e.Outcome(None, "infrastructure", "no space", {"outputs": "exact"}, repeat=True, made=("/srv/o",)))
    desk.go(50)
    assert (desk.one(e.Assign).peer, desk.one(e.Assign).undo) == (3 - holder, ("/srv/o",))


@pytest.mark.parametrize("error", ["infrastructure", "lost"])
@pytest.mark.parametrize(("facts", "undo"), [({"outputs": "exact"}, ("/srv/o",)), ({"outputs": ""}, ("/srv/lock", "/srv/o"))])
def test_what_an_attempt_took_away_by_itself_is_not_removed_again(
    desk: Desk, error: str, facts: dict[str, e.Fact], undo: tuple[str, ...]
) -> None:
    """A lock file may be another's by then. Only its runner can tell; an agent that has lost it cannot."""
    desk.agent(1)
    desk.agent(2)
    holder = desk.run(50).peer
    desk.do(e.Made(holder, "j50", 1, 1, ("/srv/lock",), "", True))
    desk.finish(holder, "j50", 1, e.Outcome(None, error, "", facts, repeat=True, made=("/srv/o",)))
    desk.go(50)
    assert desk.one(e.Assign).undo == undo


def test_nor_when_its_output_is_lost_after_its_end(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Made(1, "j50", 1, 1, ("/srv/lock",), "", True))
    desk.finish(1, "j50", 1, e.Outcome(0, facts={"outputs": "exact"}, repeat=True, made=("/srv/o",)))
    attach(desk, 51, "j50")
    desk.do(e.Joined(1, "j50", 1))
    lost = e.Outcome(None, "lost", "its output was lost with the agent", {"outputs": "exact"}, repeat=True, made=("/srv/o",))
    desk.finish(1, "j50", 1, lost)
    desk.go(51, "j50")
    assert desk.one(e.Assign).undo == ("/srv/o",)


def test_a_job_killed_for_want_of_memory_that_nobody_measured_gets_a_machine_for_itself(desk: Desk) -> None:
    desk.agent(1, slots=2)
    desk.run(50)
    desk.finish(1, "j50", 1, e.Outcome(None, "lost", "killed", repeat=True, memory=True))
    desk.go(50)
    assert desk.one(e.Assign).memory_retry is False


def test_who_cannot_tell_what_an_attempt_wrote_leaves_everyone_behind(desk: Desk) -> None:
    desk.agent(1, views=True)
    desk.agent(2, views=True)
    holders = {job: desk.run(job).peer for job in (50, 51)}
    desk.finish(holders[50], "j50")
    desk.finish(holders[51], "j51", 1, e.Outcome(None, "lost", "it was stopped"))
    assert desk.run(52).behind


# ---- nobody wants it ----


@pytest.mark.parametrize("how", ["RESULT", "REJECT", "no repeat"])
def test_what_was_ended_because_nobody_wanted_it(desk: Desk, how: str) -> None:
    desk.agent(1)
    desk.run(50)
    leave(desk, 50)
    assert (desk.one(e.Kill).job, len(records(desk, "abandoned"))) == ("j50", 1)
    if how == "REJECT":
        desk.do(e.Rejected(1, "j50", 1, "no room"))
    else:
        desk.finish(1, "j50", 1, LOST if how == "RESULT" else e.Outcome(9))
    assert not desk.scheduler.jobs
    assert not [action for action in desk.last if isinstance(action, e.TellFailed)]
    attach(desk, 51, "j50")
    if how == "no repeat":
        assert desk.one(e.TellFailed).safe is False
    else:
        desk.go(51, "j50")
        assert (desk.one(e.Assign).attempt, desk.one(e.Assign).undo) == (2, ("/srv/o",) if how == "RESULT" else ())


def test_who_comes_back_for_what_was_ended_and_cannot_be_repeated_is_told(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    leave(desk, 50)
    attach(desk, 51, "j50")
    desk.do(e.Joined(1, "j50", 1))
    desk.finish(1, "j50", 1, e.Outcome(9))
    assert (desk.one(e.TellFailed).peer, desk.one(e.TellFailed).safe) == (51, False)


def test_an_attempt_that_is_lost_while_its_submitter_may_still_come_back_waits_for_it(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    leave(desk, 50, 0.5)
    desk.finish(1, "j50", 1, LOST)
    assert desk.state("j50") is JobState.QUEUED
    attach(desk, 51, "j50")
    desk.go(51, "j50")
    assert desk.one(e.Assign).undo == ("/srv/o",)


def test_each_absence_has_its_own_second(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    leave(desk, 50, 0.5)
    attach(desk, 51, "j50")
    leave(desk, 51, 0.5)
    assert desk.said(1) == []
    desk.pass_time(0.5)
    assert desk.said(1) == ["Kill"]
    attach(desk, 52, "j50")
    leave(desk, 52)
    assert desk.said(1) == [], "it was told"


@pytest.mark.parametrize("back", [True, False])
def test_what_nobody_wanted_while_its_agent_was_missing_is_ended_when_it_is_back(desk: Desk, back: bool) -> None:
    desk.agent(1, "a1", incarnation="i1")
    desk.run(50)
    desk.do(e.Disconnected(1))
    leave(desk, 50)
    come_back(desk, 2, running=(("j50", 1, USER),) if back else ())
    if back:
        assert desk.one(e.Kill) == e.Kill(2, "j50", 1)
    else:
        assert not desk.scheduler.jobs, "it was never started"
        attach(desk, 51, "j50")
        assert desk.one(e.Offer).attempt == 2


@pytest.mark.parametrize("seconds", [0.5, 1.0])
def test_what_was_never_started_is_placed_for_who_still_wants_it(desk: Desk, seconds: float) -> None:
    desk.agent(1, "a1", incarnation="i1")
    desk.run(50)
    desk.do(e.Disconnected(1))
    leave(desk, 50, seconds)
    if seconds >= 1:
        attach(desk, 51, "j50")  # ended, and wanted again
    come_back(desk, 2)
    assert "j50" in desk.scheduler.jobs
    if seconds < 1:
        attach(desk, 51, "j50")
    assert desk.one(e.Offer).peer == 51
