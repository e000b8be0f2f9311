"""fleet.py at its edges: what nobody should say, what comes twice, too late, or in another order. Plain cases are in test_scheduler.py."""

from __future__ import annotations

import json

import pytest
from test_fleet_results import LOST, leave, records
from test_scheduler import OLD, USER, Desk, after_a_restart, attach, come_back

from dwrap.distributor import events as e
from dwrap.distributor.events import JobState
from dwrap.distributor.past import Assigned


@pytest.fixture
def desk() -> Desk:
    return Desk()


# ---- who may say what of which attempt ----


@pytest.mark.parametrize(
    ("state", "peer", "name", "attempt", "may"),
    [
        ("assigned", 1, "j50", 1, True),
        ("settled", 1, "j50", 1, True),
        ("assigned", 1, "unknown", 1, False),
        ("assigned", 1, "j50", 2, False),
        ("assigned", 2, "j50", 1, False),
        ("settled", 2, "j50", 1, False),
        ("joining", 1, "j50", 1, False),
        ("offered", 1, "j50", 0, False),
        ("missing", 1, "j50", 1, False),
    ],
)
def test_who_may_tell_of_an_attempt(desk: Desk, state: str, peer: int, name: str, attempt: int, may: bool) -> None:
    desk.agent(1)
    desk.submit(50)
    desk.agent(2)
    if state != "offered":
        desk.go(50)
    if state == "settled":
        desk.finish(1, "j50")
    if state == "joining":
        attach(desk, 51, "j50")
    if state == "missing":
        desk.do(e.Disconnected(1))
    assert (desk.scheduler.told_by(peer, name, attempt) is not None) is may


@pytest.mark.parametrize(("peer", "name", "attempt"), [(1, "unknown", 1), (1, "j50", 2), (2, "j50", 1), (1, "j60", 0)])
def test_only_the_agent_that_was_asked_joins(desk: Desk, peer: int, name: str, attempt: int) -> None:
    desk.agent(1)
    desk.run(50)
    attach(desk, 51, "j50")
    desk.submit(60)
    desk.agent(2, roots=("/home",))
    desk.do(e.Joined(peer, name, attempt))
    assert desk.scheduler.told_by(1, "j50", 1) is None
    desk.do(e.Joined(1, "j50", 1))
    assert desk.scheduler.told_by(1, "j50", 1) is not None


@pytest.mark.parametrize(
    ("event", "what"),
    [
        (e.Leaving(9), "leaving"),
        (e.Made(1, "unknown", 1, 1, (), "", True), "made"),
        (e.Made(1, "j50", 2, 1, (), "", True), "made"),
        (e.Rejected(1, "unknown", 1, "no"), "reject"),
        (e.Rejected(1, "j50", 2, "no"), "reject"),
        (e.Rejected(9, "j50", 1, "no"), "reject"),
    ],
)
def test_what_nobody_should_say_is_counted_and_changes_nothing(desk: Desk, event: e.Event, what: str) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(event)
    assert desk.last == [e.Unexpected(what)]
    assert desk.state("j50") is JobState.ASSIGNED


def test_what_an_agent_does_is_told(desk: Desk) -> None:
    desk.agent(1)
    desk.do(e.Registered(2, 0, e.AgentSpec("a2", 3, ("/srv",))))
    assert records(desk, "joined") == [{"agent": "a2", "slots": 3, "reason": "", "uid": 0}]
    desk.do(e.DrainAsked("a1"))
    assert len(records(desk, "draining")) == 1
    desk.do(e.Leaving(1))
    assert records(desk, "draining") == []
    desk.do(e.Disconnected(1))
    assert [facts["reason"] for facts in records(desk, "left")] == ["its connection was closed"]


@pytest.mark.parametrize("how", ["is lost", "serves other trees"])
def test_with_the_last_agent_of_a_tree_goes_the_wait_for_it(desk: Desk, how: str) -> None:
    desk.agent(1)
    desk.agent(2, roots=("/home",))
    desk.run(50)
    desk.submit(51)
    assert desk.said(51) == ["TellQueued"]
    desk.do(e.Disconnected(1) if how == "is lost" else e.Registered(1, 0, e.AgentSpec("a1", 1, ("/home",), running=(("j50", 1, USER),))))
    assert desk.one(e.Answer).verb == "HERE"


# ---- missing, and found again ----


def test_a_pool_that_an_agent_with_a_job_brings_back_is_noticed() -> None:
    desk = after_a_restart(("waits", Assigned(1, None, "", USER)))
    desk.submit(60)
    attach(desk, 61, "waits")
    desk.now += 1
    come_back(desk, 1, slots=4, running=(("old", 1, USER),))
    assert {action.job for action in desk.last if isinstance(action, e.Offer)} == {"j60", "waits"}


def test_a_pool_that_goes_into_quarantine_is_missed() -> None:
    desk = after_a_restart()
    come_back(desk, 1, running=(("old", 1, USER),))
    desk.submit(60)
    attach(desk, 61, "old", 2, epoch=7)
    desk.do(e.Disconnected(1))
    desk.pass_time(10)
    assert desk.one(e.Answer).peer == 60


@pytest.mark.parametrize(("beyond", "seconds"), [("", 13.0), ("it changed /srv/f", 310.0)])
def test_how_long_a_silent_agents_job_is_waited_for(desk: Desk, beyond: str, seconds: float) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Made(1, "j50", 1, 1, (), beyond, False))
    desk.do(e.Disconnected(1))
    desk.pass_time(seconds - 0.1)
    assert desk.state("j50") is JobState.MISSING
    desk.pass_time(0.1)
    assert "j50" not in desk.scheduler.jobs or desk.state("j50") is JobState.QUEUED


def test_what_has_gone_beyond_stays_so_whatever_is_told_later(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Made(1, "j50", 1, 1, (), "it changed /srv/f", True))
    desk.do(e.Made(1, "j50", 1, 2, ("/srv/o",), "", True))
    assert records(desk, "made") == [{"made": json.dumps(["/srv/o"]), "beyond": "it changed /srv/f", "state": "assigned"}]
    desk.finish(1, "j50", 1, e.Outcome(None, "infrastructure", "the runner of the job died"))
    reason = desk.one(e.TellFailed).reason
    assert "the runner of the job died; it changed /srv/f" in reason


def test_more_than_can_be_removed_is_not_run_again_when_its_agent_is_lost(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    for seq in range(9):
        desk.do(e.Made(1, "j50", 1, seq, tuple(f"/srv/{seq}/{number}" for number in range(30)), "", True))
    desk.do(e.Disconnected(1))
    desk.pass_time(310)
    assert (desk.one(e.TellFailed).safe, "too many" in desk.one(e.TellFailed).reason) == (False, True)


def test_a_job_that_is_missing_again_is_waited_for_as_long_again(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Disconnected(1))
    desk.now += 5
    desk.agent(2, "a1", running=(("j50", 1, USER),))
    desk.now += 1
    desk.do(e.Disconnected(2))
    desk.pass_time(11.9)
    assert desk.state("j50") is JobState.MISSING
    desk.pass_time(0.1)
    assert desk.state("j50") is JobState.QUEUED


def test_nobody_is_asked_for_what_is_missing(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Disconnected(1))
    attach(desk, 51, "j50")
    assert not [action for action in desk.last if isinstance(action, e.ForwardAttach)]


def test_an_answer_that_was_cut_off_is_not_waited_for_when_its_agent_is_back(desk: Desk) -> None:
    desk.agent(1, "a1", incarnation="i1")
    desk.run(50)
    attach(desk, 51, "j50")
    desk.do(e.Disconnected(1))
    desk.do(e.Disconnected(51))
    come_back(desk, 2, running=(("j50", 1, USER),))
    desk.pass_time(1)
    assert desk.one(e.Kill).peer == 2
    desk.finish(2, "j50", 1, LOST)
    assert not desk.scheduler.jobs


def test_an_agent_that_names_an_older_attempt_does_not_have_the_newest(desk: Desk) -> None:
    desk.agent(1, "a1", incarnation="i1")
    desk.run(50)
    desk.do(e.Disconnected(1))
    desk.pass_time(13)
    come_back(desk, 2)
    desk.go(50)
    desk.do(e.Disconnected(2))
    come_back(desk, 3, running=(("j50", 1, USER),))
    assert desk.one(e.Kill) == e.Kill(3, "j50", 1)
    assert desk.state("j50") is JobState.QUEUED, "the newest was never started"


def test_an_agent_cannot_have_what_another_was_given(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Disconnected(1))
    desk.agent(2, "a2", running=(("j50", 1, USER),))
    assert desk.one(e.Kill) == e.Kill(2, "j50", 1)
    assert desk.state("j50") is JobState.MISSING


def test_who_was_found_once_is_vouched_for_by_the_next_incarnation(desk: Desk) -> None:
    desk.agent(1, "a1", incarnation="i1")
    desk.run(50)
    desk.do(e.Disconnected(1))
    come_back(desk, 2, "i2", running=(("j50", 1, USER),))
    desk.do(e.Disconnected(2))
    come_back(desk, 3, "i3", former=("i2",))
    assert desk.said(50) == ["TellQueued", "Offer"]


@pytest.mark.parametrize("runs", [True, False])
def test_what_was_found_holds_a_slot_while_it_runs(desk: Desk, runs: bool) -> None:
    desk.agent(1, "a1", incarnation="i1")
    desk.run(50)
    desk.do(e.Disconnected(1))
    held = (("j50", 1, USER),)
    come_back(desk, 2, running=held if runs else (), kept=() if runs else held)
    desk.submit(51)
    assert desk.said(51) == (["TellQueued"] if runs else ["Offer"])


@pytest.mark.parametrize(("running", "said"), [(True, ["Kill"]), (False, ["AckResult"])])
def test_what_was_given_up_is_ended_and_its_result_dropped(desk: Desk, running: bool, said: list[str]) -> None:
    held = (("ghost", 3, USER),)
    desk.agent(1, running=held if running else (), kept=() if running else held)
    assert desk.said(1) == ["RenewLease", *said]
    assert desk.scheduler.agents[1].is_serving is not running


def test_an_attempt_that_ended_while_its_agent_registered_again_is_still_its_own(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Registered(1, 0, e.AgentSpec("a1", 1, ("/srv",), kept=(("j50", 1, USER),))))
    assert desk.said(1) == ["Welcome"]
    desk.finish(1, "j50")
    assert desk.one(e.DeliverResult).peer == 50


@pytest.mark.parametrize(("attempt", "away"), [(1, False), (1, True), (2, False)])
def test_a_result_that_is_told_and_not_acknowledged_is_asked_for_where_its_agent_is_now(desk: Desk, attempt: int, away: bool) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50")
    desk.do(e.Disconnected(1))
    assert desk.said(50) == [], "it has it"
    if away:
        desk.do(e.Disconnected(50))
    desk.agent(2, "a1", kept=(("j50", attempt, USER),))
    asked = [action for action in desk.last if isinstance(action, e.Resume)]
    assert asked == ([e.Resume(50, "j50")] if attempt == 1 and not away else [])
    assert ("AckResult" in desk.said(2)) is (attempt == 2)
    if asked:
        desk.do(e.Acknowledged(50, "j50"))
        assert desk.said(2) == ["AckResult"]


def test_a_result_that_nobody_was_told_is_lost_with_its_agent_only_when_it_is_asked_for(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50", 1, e.Outcome(0, repeat=True))
    desk.do(e.Disconnected(50))
    desk.do(e.Disconnected(1))
    assert desk.state("j50") is JobState.SETTLED
    desk.agent(2)
    attach(desk, 51, "j50")
    assert desk.said(51) == ["TellMissing"]
    desk.wait(12, 2)
    assert desk.said(51) == []
    desk.wait(1, 2)
    assert desk.one(e.Offer).attempt == 2


def test_a_result_is_waited_for_when_both_ends_of_its_way_are_torn_at_once(desk: Desk) -> None:
    """It cannot be had by running the command again."""
    desk.agent(1, incarnation="i1")
    desk.run(50)
    desk.finish(1, "j50")
    desk.do(e.Disconnected(50))
    desk.do(e.Disconnected(1))
    attach(desk, 51, "j50")
    assert desk.said(51) == ["TellMissing"]
    come_back(desk, 2, kept=(("j50", 1, USER),))
    assert desk.said(51) == ["Resume"]
    attach(desk, 51, "j50")
    desk.do(e.Joined(2, "j50", 1))
    desk.wait(13, 2)
    desk.finish(2, "j50")
    assert desk.one(e.DeliverResult).peer == 51


@pytest.mark.parametrize("what", ["acknowledged", "away"])
def test_who_does_not_wait_for_a_result_any_more_is_told_nothing_when_it_is_lost(desk: Desk, what: str) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50")
    desk.do(e.Disconnected(50))
    desk.do(e.Disconnected(1))
    attach(desk, 51, "j50")
    desk.do(e.Acknowledged(51, "j50") if what == "acknowledged" else e.Disconnected(51))
    desk.pass_time(20)
    assert [action for action in desk.last if not isinstance(action, e.Record)] == []
    assert ("j50" in desk.scheduler.jobs) is (what == "away")


def test_a_job_that_waits_anew_has_nothing_to_do_with_the_agent_that_refused_it(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Rejected(1, "j50", 1, "no room"))
    desk.do(e.Disconnected(1))
    assert desk.said(50) == []
    desk.pass_time(20)
    assert "TellFailed" not in desk.said(50)


def test_a_result_that_went_with_its_agent_is_not_waited_for_longer_than_the_agent(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50")
    desk.do(e.Disconnected(50))
    desk.do(e.Disconnected(1))
    desk.now += 14
    attach(desk, 51, "j50")
    desk.pass_time(0)
    assert desk.one(e.TellFailed).safe is False
    assert not desk.scheduler.jobs


@pytest.mark.parametrize(("running", "beats", "said"), [(True, 2, ["Offer"]), (True, 1, ["TellFailed"]), (False, 2, ["TellFailed"])])
def test_what_was_found_may_be_run_again_once_all_that_it_did_was_told_again(running: bool, beats: int, said: list[str]) -> None:
    desk = after_a_restart()
    attach(desk, 50, "new", epoch=7)
    held = (("new", 1, USER),)
    come_back(desk, 1, running=held if running else (), kept=() if running else held)
    assert desk.one(e.Resume) == e.Resume(50, "new")
    for _ in range(beats):
        desk.beat(1)
    desk.do(e.Disconnected(1))
    desk.agent(2)
    desk.wait(13, 2)
    assert desk.said(50)[-1:] == said


def test_what_is_known_at_last_is_told_to_the_ledger() -> None:
    desk = after_a_restart()
    attach(desk, 50, "new", epoch=7)
    come_back(desk, 1, running=(("new", 1, USER),))
    desk.do(e.Made(1, "new", 1, 1, ("/srv/o",), "", True))
    desk.beat(1)
    assert records(desk, "known") == []
    desk.beat(1)
    known = {"attempt": 1, "uid": USER, "agent": "a1", "incarnation": "i1", "made": '["/srv/o"]', "beyond": "", "state": "assigned"}
    assert records(desk, "known") == [known]


def test_what_was_found_and_is_then_no_more_is_not_run_again_before_all_was_told() -> None:
    desk = after_a_restart()
    attach(desk, 50, "new", epoch=7)
    come_back(desk, 1, "i1", kept=(("new", 1, USER),))
    desk.do(e.Disconnected(1))
    come_back(desk, 2, "i1")
    assert desk.one(e.TellFailed).safe is False


def test_of_two_attempts_the_newer_one_counts_whoever_is_heard_first() -> None:
    desk = after_a_restart()
    come_back(desk, 1, running=(("new", 1, USER),))
    desk.agent(2, running=(("new", 2, USER),))
    assert e.Kill(1, "new", 1) in desk.last
    attach(desk, 50, "new", 2)
    assert desk.one(e.ForwardAttach).peer == 2
    assert (desk.scheduler.agents[1].is_serving, desk.scheduler.agents[1].jobs) == (False, set())
    desk.submit(60)
    assert desk.said(60) == ["TellQueued"], "the one is in quarantine, the other has no slot left"
    desk.finish(1, "new", 1)
    assert desk.scheduler.agents[1].is_serving


def test_a_submitter_that_has_sent_go_again_knows_of_a_newer_attempt_than_an_agent() -> None:
    desk = after_a_restart()
    come_back(desk, 1, running=(("new", 1, USER),))
    attach(desk, 50, "new", 2, epoch=7)
    assert e.Kill(1, "new", 1) in desk.last
    assert "TellMissing" in desk.said(50)
    desk.agent(2, running=(("new", 2, USER),))
    assert desk.said(50) == ["Resume"]


def test_a_newer_attempt_whose_agent_is_not_heard_is_lost_when_the_recovery_ends() -> None:
    desk = after_a_restart()
    desk.now += 9
    come_back(desk, 1, running=(("new", 1, USER),))
    desk.beat(1)
    desk.beat(1)
    attach(desk, 50, "new", 2, epoch=7)
    desk.wait(3, 1)
    assert "TellFailed" not in desk.said(50)
    desk.wait(1, 1)
    assert desk.one(e.TellFailed).safe is False, "nobody knows what it did"


def test_an_older_attempt_that_is_missing_makes_room_for_a_newer_one_too() -> None:
    desk = after_a_restart()
    come_back(desk, 1, running=(("new", 1, USER),))
    desk.do(e.Disconnected(1))
    desk.agent(2, running=(("new", 2, USER),))
    attach(desk, 50, "new", 2)
    assert desk.one(e.ForwardAttach).peer == 2


def test_what_is_known_by_now_stays_known_when_its_agent_registers_again() -> None:
    desk = after_a_restart()
    attach(desk, 50, "new", epoch=7)
    held = (("new", 1, USER),)
    come_back(desk, 1, running=held)
    desk.beat(1)
    desk.beat(1)
    desk.do(e.Registered(1, 0, e.AgentSpec("a1", 1, ("/srv",), incarnation="i1", running=held)))
    assert desk.said(1) == ["Welcome"]
    desk.do(e.Disconnected(1))
    desk.agent(2)
    desk.wait(13, 2)
    assert desk.said(50)[-1:] == ["Offer"]


def test_a_job_that_waits_anew_is_no_agents_whatever_it_says() -> None:
    desk = after_a_restart()
    attach(desk, 50, "new", epoch=7)
    come_back(desk, 1, running=(("new", 1, USER),))
    desk.finish(1, "new", 1, LOST)
    desk.do(e.Joined(1, "new", 1))
    attach(desk, 50, "new", 1)
    desk.do(e.Joined(1, "new", 1))
    desk.finish(1, "new", 1, LOST)
    assert desk.state("new") is JobState.OFFERED
    desk.agent(2, running=(("new", 9, USER),))
    assert e.Kill(2, "new", 9) in desk.last
    assert (desk.state("new"), desk.scheduler.jobs["new"].attempt) == (JobState.OFFERED, 1)
    desk.go(50, "new")
    desk.agent(3, running=(("new", 9, USER),))
    assert (desk.state("new"), desk.scheduler.jobs["new"].attempt) == (JobState.ASSIGNED, 2)


def test_a_job_that_may_be_anyones_runs_as_its_agents_user_and_is_found_there(desk: Desk) -> None:
    desk.agent(1, "a1", uid=USER, serves=USER)
    desk.run(50, uid=None)
    desk.do(e.Disconnected(1))
    desk.agent(2, "a1", uid=USER, serves=USER, running=(("j50", 1, USER),))
    assert desk.said(50) == ["Resume"]


@pytest.mark.parametrize("beyond", ["", "it changed /srv/f"])
def test_an_agent_that_has_nothing_of_what_was_begun_ends_it_for_good(beyond: str) -> None:
    """It says so when it is told to end it. What was begun and is no more cannot be told to be safe."""
    desk = after_a_restart()
    come_back(desk, 1, running=(("new", 1, USER),))
    if beyond:
        desk.do(e.Made(1, "new", 1, 1, (), beyond, False))
        desk.beat(1)
        desk.beat(1)
    desk.do(e.Rejected(1, "new", 1, "nothing of it is here"))
    assert "new" not in desk.scheduler.jobs
    attach(desk, 50, "new")
    assert desk.one(e.TellFailed).safe is False
    assert (beyond or "nobody knows") in desk.one(e.TellFailed).reason


def test_a_result_says_what_nobody_knew() -> None:
    desk = after_a_restart()
    attach(desk, 50, "new", epoch=7)
    come_back(desk, 1, running=(("new", 1, USER),))
    attach(desk, 50, "new", epoch=7)
    desk.do(e.Joined(1, "new", 1))
    desk.agent(2)
    desk.finish(1, "new", 1, e.Outcome(None, "infrastructure", "the runner of the job died", repeat=True))
    assert desk.said(50) == ["TellQueued", "Offer"]


def test_what_was_written_down_is_no_hearsay() -> None:
    desk = after_a_restart(("j50", Assigned(3, "a1", "i1", USER)))
    desk.agent(2, running=(("j50", 4, USER),))
    assert e.Kill(2, "j50", 4) in desk.last
    come_back(desk, 1, running=(("j50", 3, USER),))
    attach(desk, 50, "j50", 3)
    assert desk.one(e.ForwardAttach).peer == 1


@pytest.mark.parametrize(("serves", "found"), [(USER, True), (USER + 1, False)])
def test_an_agent_has_jobs_of_those_only_whom_it_serves(desk: Desk, serves: int, found: bool) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Disconnected(1))
    desk.agent(2, "a1", uid=serves, serves=serves, running=(("j50", 1, USER),))
    assert desk.said(50) == (["Resume"] if found else [])


def test_who_registers_and_is_silent_does_not_shorten_the_wait_for_what_went_beyond(desk: Desk) -> None:
    desk.agent(1, "a1", incarnation="i1")
    desk.run(50)
    desk.do(e.Made(1, "j50", 1, 1, (), "it changed /srv/f", False))
    desk.do(e.Disconnected(1))
    desk.do(e.Registered(2, 0, e.AgentSpec("a1", 1, ("/srv",), incarnation="i1")))
    desk.pass_time(13)
    desk.pass_time(296.9)
    assert desk.state("j50") is JobState.MISSING
    desk.pass_time(0.1)
    assert desk.one(e.TellFailed).safe is False


def test_who_is_away_for_a_moment_when_its_job_is_lost_finds_it_waiting(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Disconnected(1))
    desk.pass_time(12.7)
    leave(desk, 50, 0.3)
    assert desk.state("j50") is JobState.QUEUED


def test_who_does_not_have_what_it_should_end_is_out_of_quarantine(desk: Desk) -> None:
    desk.agent(1, running=(("ghost", 3, USER),))
    desk.submit(50)
    assert desk.said(50) == ["TellQueued"]
    desk.do(e.Rejected(1, "ghost", 3, "no"))
    assert desk.said(50) == ["Offer"]


# ---- another epoch ----


def test_what_was_missing_before_is_told_to_the_next_ledger_too() -> None:
    desk = after_a_restart(OLD)
    desk.do(e.Tick())
    assert [facts["until"] for facts in records(desk, "missing")] == [113.0]


def test_a_job_that_was_lost_before_a_restart_is_not_taken_for_lost_until_agents_can_be_back() -> None:
    desk = after_a_restart(("j50", Assigned(3, "a1", "i1", USER, lost_at=90.0)))
    desk.pass_time(3.9)
    assert desk.state("j50") is JobState.MISSING
    desk.pass_time(0.1)
    assert "j50" not in desk.scheduler.jobs


@pytest.mark.parametrize("known", [OLD[1], Assigned(3, None, "", USER)])
@pytest.mark.parametrize("how", ["nobody comes", "its agent comes"])
def test_a_job_of_the_past_that_nobody_claims_is_gone_and_may_begin_anew(known: Assigned, how: str) -> None:
    desk = after_a_restart(("j50", known))
    if how == "its agent comes":
        come_back(desk, 1)
    desk.pass_time(13)
    assert not desk.scheduler.jobs
    attach(desk, 50, "j50", 3)
    desk.agent(2)
    assert desk.one(e.Offer).attempt == 4


def test_a_job_that_its_submitter_has_claimed_already_is_found() -> None:
    desk = after_a_restart(OLD)
    attach(desk, 50, "j50", 3)
    come_back(desk, 1, running=(("j50", 3, USER),))
    assert desk.one(e.Resume) == e.Resume(50, "j50")


@pytest.mark.parametrize(
    ("job", "at", "said"),
    [("over", 100.0, "AckResult"), ("undone", 100.0, "AckResult"), ("other", 112.9, ""), ("other", 113.0, "AckResult")],
)
def test_what_an_agent_kept_over_a_restart_counts_for_a_while_unless_it_is_known_to_be_over(job: str, at: float, said: str) -> None:
    desk = after_a_restart()
    desk.now = at
    come_back(desk, 1, kept=((job, 1, USER),))
    assert desk.said(1) == ["RenewLease", *([said] if said else [])]
    assert (job in desk.scheduler.jobs) is not said


def test_who_is_found_late_in_the_recovery_is_claimed_within_a_second() -> None:
    desk = after_a_restart()
    desk.now = 112.9
    come_back(desk, 1, running=(("j50", 3, USER),))
    desk.pass_time(0.9)
    assert desk.said(1) == []
    desk.pass_time(0.1)
    assert desk.said(1) == ["Kill"]


@pytest.mark.parametrize(("known", "words"), [(OLD[1], "a1"), (None, "its agent was lost"), (None, "nobody knows what it has done")])
def test_a_job_of_the_past_that_is_lost_says_of_whom_and_why(known: Assigned | None, words: str) -> None:
    desk = after_a_restart(*((("j50", known),) if known else ()))
    if known:
        desk.scheduler.jobs["j50"].beyond = "it changed /srv/f"
    attach(desk, 50, "j50", 3, epoch=7)
    desk.pass_time(13)
    assert words in desk.one(e.TellFailed).reason
    assert desk.one(e.TellFailed).safe is False


# ---- faults ----


@pytest.mark.parametrize("by", ["REJECT", "RESULT"])
def test_a_suspended_agent_gets_work_again_when_the_time_is_over(desk: Desk, by: str) -> None:
    desk.agent(1)
    suspended = []
    for job in (50, 51, 52):
        desk.run(job, agent="a1")
        if job == 52:
            desk.submit(53)
        if by == "REJECT":
            desk.do(e.Rejected(1, f"j{job}", 1, "no room in /tmp", fault=True))
        else:
            desk.finish(1, f"j{job}", 1, e.Outcome(None, "infrastructure", "no room in /tmp", repeat=True, fault=True))
        suspended += [facts["reason"] for facts in records(desk, "suspended")]
    assert suspended == ["no room in /tmp"]
    desk.wait(9, 1)
    assert desk.said(53) == []
    desk.wait(1, 1)
    assert desk.said(53) == ["Answer"], "there is no other"
    desk.wait(45, 1)
    desk.submit(60)
    assert desk.said(60) == ["Answer"], "nor was there one for 55 s"
    desk.submit(61, agent="a1")
    desk.pass_time(4.9)
    assert desk.state("j61") is JobState.QUEUED
    desk.pass_time(0.1)
    assert (desk.said(61), len(records(desk, "resumed"))) == (["Offer"], 1)


def test_the_end_of_a_suspension_is_told_once_to_whom_the_agent_is_by_then(desk: Desk) -> None:
    desk.agent(1)
    for job in (50, 51, 52):
        desk.run(job, agent="a1")
        desk.do(e.Rejected(1, f"j{job}", 1, "no room in /tmp", fault=True))
    desk.do(e.Disconnected(1))
    desk.agent(2, "a1")
    desk.wait(59, 2)
    desk.pass_time(1)
    assert len(records(desk, "resumed")) == 1
