"""jobs.py and submitters.py at their edges: what is said twice, late, or of nothing; clocks; bounds; what the ledger is told."""

from __future__ import annotations

import json

import pytest
from test_fleet_results import LOST, leave, records
from test_scheduler import OLD, USER, Desk, after_a_restart, attach, come_back

from dwrap.distributor import events as e
from dwrap.distributor import jobs
from dwrap.distributor.events import JobState
from dwrap.distributor.ledger import Book


@pytest.fixture
def desk() -> Desk:
    return Desk()


STARVED = e.Outcome(None, "lost", "killed for want of memory", repeat=True, memory=True)


# ---- what submitters say ----


def test_a_submit_that_came_twice_is_counted_only(desk: Desk) -> None:
    desk.submit(50)
    assert desk.submit(50) == [e.Unexpected("duplicate_job")]
    assert desk.submit(51, job="j50")[0] == e.Unexpected("duplicate_job")


def test_a_queue_that_is_full_is_said_to_be(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_JOBS", 2)
    for peer in (50, 51, 52):
        desk.submit(peer)
    assert desk.one(e.Answer) == e.Answer(52, "j52", "UNAVAILABLE", "the queue is full: 2 jobs")
    assert list(desk.scheduler.jobs) == ["j50", "j51"]


def test_one_user_has_a_part_of_the_queue_only(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_JOBS_OF_ONE", 3)
    desk.submit(50)
    desk.submit(51, paths=("/" + "x" * 4_095,) * 4)  # counts for two
    desk.submit(52)
    assert desk.one(e.Answer).verb == "UNAVAILABLE"
    assert "this user's part" in desk.one(e.Answer).reason
    desk.do(e.Submitted(53, 7, e.JobSpec("other", "/", "cc", "b")))
    assert "other" in desk.scheduler.jobs
    desk.do(e.Disconnected(51))
    desk.submit(54)
    assert "j54" in desk.scheduler.jobs


def test_a_queue_that_is_full_loses_nothing_of_who_comes_back_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = after_a_restart()
    monkeypatch.setattr(jobs, "MAX_JOBS", 1)
    desk.submit(50)
    for _ in range(2):
        attach(desk, 51, "undone", 1)
        failed = desk.one(e.TellFailed)
        assert (failed.safe, failed.undo) == (True, ("/srv/o",)), "it runs where it was submitted, after that was removed"


@pytest.mark.parametrize(
    ("event", "what"),
    [
        (e.Committed(50, "unknown", "", ()), "go"),
        (e.Acknowledged(50, "unknown"), "ack"),
        (e.Acknowledged(50, "j50"), "ack"),
        (e.Acknowledged(50, "j51"), "ack"),
    ],
)
def test_what_a_submitter_should_not_say_is_counted(desk: Desk, event: e.Event, what: str) -> None:
    desk.agent(1, slots=2)
    desk.run(50)
    desk.run(51)
    desk.finish(1, "j51")
    desk.do(event)
    assert desk.last == [e.Unexpected(what)]
    assert list(desk.scheduler.jobs) == ["j50", "j51"]


def test_a_late_go_counts_once(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50)
    late = desk.one(e.Offer).stamp
    desk.submit(51)
    desk.pass_time(2)
    assert desk.one(e.Offer).job == "j51"
    assert desk.do(e.Committed(50, "j50", late, ())) == []
    assert desk.do(e.Committed(50, "j50", late, ())) == [e.Unexpected("go")], "it stands in the queue by now"


def test_builds_take_turns(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.submit(51)
    desk.submit(52)
    desk.submit(53, build="another")
    desk.finish(1, "j50")
    assert desk.one(e.Offer).job == "j53"


def test_a_connection_that_has_had_many_jobs_ends_those_that_are_left(desk: Desk) -> None:
    desk.agent(1, slots=2)
    for job in ("one", "two"):
        desk.submit(50, job)
        desk.go(50, job)
    desk.finish(1, "one")
    desk.do(e.Acknowledged(50, "one"))
    desk.do(e.Disconnected(50))
    desk.pass_time(1)
    assert desk.one(e.Kill).job == "two"
    assert not desk.scheduler._jobs._of_peer


# ---- gone, and back ----


def test_who_is_away_keeps_no_place_in_the_queue(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.submit(51)
    desk.finish(1, "j50", 1, LOST)
    desk.go(51)
    assert desk.state("j50") is JobState.QUEUED
    leave(desk, 50, 0.5)
    desk.finish(1, "j51")
    desk.submit(52)
    assert desk.said(52) == ["Offer"]
    attach(desk, 53, "j50")
    assert desk.said(53) == ["TellQueued"]


def test_an_offer_goes_to_where_the_submitter_is_now(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50", 1, LOST)
    first = desk.one(e.Offer)
    attach(desk, 51, "j50")
    assert (desk.one(e.Offer).peer, desk.one(e.Offer).attempt) == (51, 2)
    assert desk.one(e.Offer).stamp != first.stamp
    assert len(records(desk, "claimed")) == 1


@pytest.mark.parametrize("attempt", [0, 2])
def test_an_attach_of_another_attempt_is_refused_and_takes_the_job_from_nobody(desk: Desk, attempt: int) -> None:
    desk.agent(1)
    desk.run(50)
    attach(desk, 51, "j50", attempt)
    assert desk.last == [e.Unexpected("attach"), e.Answer(51, "j50", "REFUSED", f"its attempt is number 1, not {attempt}")]
    assert desk.scheduler.jobs["j50"].peer == 50


@pytest.mark.parametrize(("seconds", "said"), [(12.9, ["TellMissing"]), (13.0, ["TellFailed"])])
def test_until_when_somebody_may_still_know_of_a_job(seconds: float, said: list[str]) -> None:
    desk = after_a_restart()
    desk.now += seconds
    attach(desk, 50, "new", epoch=7)
    assert desk.said(50) == said
    assert [action.safe for action in desk.last if isinstance(action, e.TellFailed)] == [False] * (seconds >= 13)


def test_a_job_without_an_identity_is_claimed_by_who_has_its_name(desk: Desk) -> None:
    desk.agent(1, serves=USER, uid=USER)
    desk.run(50, uid=None)
    attach(desk, 51, "j50")
    assert desk.said(1) == ["ForwardAttach"]


def test_who_cannot_be_told_from_others_claims_nothing_of_who_can(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Attached(51, None, e.JobSpec("j50", "/srv", "cc", "b"), 1, 0, 1.0, ()))
    assert desk.one(e.Answer) == e.Answer(51, "j50", "REFUSED", "the job is another user's")


@pytest.mark.parametrize(("serves", "said"), [(e.ANY_UID, []), (USER, ["ForwardAttach"])])
def test_a_job_of_the_past_whose_agent_serves_one_user_may_have_been_anyones(serves: int, said: list[str]) -> None:
    desk = after_a_restart()
    come_back(desk, 1, serves=serves, uid=0 if serves == e.ANY_UID else USER, running=(("new", 1, USER),))
    desk.do(e.Attached(51, None, e.JobSpec("new", "/srv", "cc", "b"), 1, 0, 1.0, ()))
    assert desk.said(1) == said


def test_what_may_be_anyones_is_not_another_users() -> None:
    desk = after_a_restart()
    come_back(desk, 1, serves=USER, uid=USER, running=(("new", 1, USER),))
    attach(desk, 51, "new", uid=USER + 1)
    assert desk.one(e.Answer).verb == "REFUSED"


@pytest.mark.parametrize("offered", [True, False])
def test_whose_go_was_lost_on_its_way_gets_its_place_back(desk: Desk, offered: bool) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Disconnected(1))
    desk.pass_time(13)
    if offered:
        desk.agent(2)
        assert desk.said(50) == ["Offer"]
    attach(desk, 51, "j50", 2)
    assert desk.said(51) == ["TellQueued", *(["Offer"] if offered else [])]


def test_an_older_attempt_than_its_agent_has_is_refused() -> None:
    desk = after_a_restart()
    come_back(desk, 1, running=(("new", 2, USER),))
    attach(desk, 50, "new", 1)
    assert desk.one(e.Answer).verb == "REFUSED"
    attach(desk, 50, "new", 2)
    assert desk.one(e.ForwardAttach).attempt == 2


def lose_the_only_agent(desk: Desk) -> None:
    """It had j50, which is homeless now."""
    desk.agent(1)
    desk.run(50)
    desk.do(e.Disconnected(1))
    desk.pass_time(13)


def test_two_jobs_of_one_name_do_not_share_a_clock(desk: Desk) -> None:
    """The first one's wrapper was away for too long; when it comes back the job begins anew."""
    lose_the_only_agent(desk)
    desk.pass_time(1)
    leave(desk, 50)
    assert not desk.scheduler.jobs
    desk.pass_time(1)
    attach(desk, 51, "j50")
    desk.pass_time(7)
    assert desk.said(51) == []
    desk.pass_time(3)
    assert desk.one(e.TellFailed).peer == 51


def test_who_was_away_when_there_was_no_agent_is_answered_all_the_same(desk: Desk) -> None:
    lose_the_only_agent(desk)
    desk.pass_time(9.7)
    desk.do(e.Disconnected(50))
    desk.pass_time(0.6)
    attach(desk, 51, "j50")
    desk.pass_time(10)
    assert desk.one(e.TellFailed).peer == 51


def test_a_result_is_not_forgotten_while_it_is_waited_for(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50")
    desk.do(e.Disconnected(50))
    desk.wait(49, 1)
    desk.do(e.Disconnected(1))
    desk.now += 1
    attach(desk, 51, "j50")
    desk.pass_time(10)
    assert desk.one(e.TellFailed).peer == 51


def test_a_result_that_was_told_is_forgotten_also_when_nobody_says_so(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50", 1, e.Outcome(0, repeat=True))
    desk.wait(61, 1)
    assert not desk.scheduler.jobs
    assert [action for action in desk.last if getattr(action, "peer", None) == 50] == []


def test_who_waits_anew_is_told_when_it_is_there_to_hear_it(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(40)
    desk.do(e.Disconnected(1))
    assert desk.said(40) == [], "it has not sent GO: nothing has changed for it"
    desk.agent(1)
    desk.go(40)
    desk.do(e.Disconnected(40))
    desk.do(e.Rejected(1, "j40", 1, "no room"))
    assert not any(isinstance(action, e.TellQueued) for action in desk.last)


@pytest.mark.parametrize("uid", [None, USER])
def test_the_ledger_knows_whose_a_job_is_not_as_whom_it_runs(desk: Desk, uid: int | None) -> None:
    desk.agent(1, serves=USER, uid=USER)
    desk.run(50, uid=uid)
    book = Book()
    [line] = [line for line in map(book.fold, [action for action in desk.last if isinstance(action, e.Record)]) if line]
    assert (line[0], line[4]) == ("A", uid)


def test_a_claimed_job_of_the_past_is_what_its_submitter_says_it_is() -> None:
    desk = after_a_restart(OLD)
    desk.agent(2, views=True)
    attach(desk, 50, "j50", 3)
    [facts] = records(desk, "claimed")
    assert (facts["build"], facts["command"]) == ("b", "cc")
    come_back(desk, 1)
    assert desk.one(e.Offer).views


def test_views_reach_a_job_that_begins_anew(desk: Desk) -> None:
    desk.agent(1, views=True)
    desk.run(50)
    desk.finish(1, "j50")
    desk.do(e.Disconnected(50))
    attach(desk, 51, "j50")
    desk.do(e.Joined(1, "j50", 1))
    desk.finish(1, "j50", 1, LOST)
    assert desk.one(e.Offer).views


def test_views_reach_a_job_that_waited_for_the_agent_that_has_them(desk: Desk) -> None:
    desk.submit(50)
    desk.agent(1, views=True)
    assert desk.one(e.Offer).views


def test_a_build_goes_on_while_a_job_of_it_waits(desk: Desk) -> None:
    desk.agent(1, views=True)
    first = desk.run(50).burst
    desk.submit(51, agent="a2")
    desk.finish(1, "j50")
    desk.wait(5, 1)
    desk.agent(2, views=True)
    desk.go(51)
    assert desk.one(e.Assign).burst == first


def test_what_begins_anew_is_not_forgotten_with_what_it_was(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50")
    attach(desk, 51, "j50")
    desk.do(e.Joined(1, "j50", 1))
    desk.finish(1, "j50", 1, LOST)
    assert desk.said(1) == ["AckResult"]
    desk.go(51, "j50")
    desk.wait(61, 1)
    assert desk.state("j50") is JobState.ASSIGNED


# ---- clocks ----


@pytest.mark.parametrize(("seconds", "there"), [(59.9, True), (60.0, False)])
def test_how_long_a_result_is_kept(desk: Desk, seconds: float, there: bool) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50")
    desk.pass_time(seconds)
    assert ("j50" in desk.scheduler.jobs) is there


def test_an_offer_has_its_own_two_seconds(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50)
    desk.agent(2)
    desk.now += 1
    desk.do(e.Disconnected(1))
    assert desk.one(e.Offer).job == "j50"
    desk.pass_time(1.9)
    assert desk.state("j50") is JobState.OFFERED
    desk.pass_time(0.1)
    assert desk.state("j50") is JobState.QUEUED


def test_who_stands_aside_is_asked_when_its_time_is_over_and_not_before(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50)
    late = desk.one(e.Offer).stamp
    desk.pass_time(2)  # aside for 2 s
    desk.now += 1
    desk.do(e.Committed(50, "j50", late, ()))
    assert desk.one(e.Offer).job == "j50"
    desk.pass_time(1)  # the first time is over
    assert desk.state("j50") is JobState.OFFERED
    desk.pass_time(1)  # aside for 4 s
    desk.pass_time(3.9)
    assert desk.said(50) == []
    desk.pass_time(0.1)
    assert desk.said(50) == ["Offer"]


def test_only_the_newest_wait_of_who_stands_aside_ends_it(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50)
    desk.wait(4, 1)  # unanswered at 2, offered again at 4
    late = desk.one(e.Offer).stamp
    desk.wait(2, 1)  # unanswered: aside until 10
    desk.do(e.Committed(50, "j50", late, ()))
    assert desk.said(50) == ["Offer"]
    assert [type(action) for action in desk.wait(9, 1) if isinstance(action, e.Offer)] == []  # unanswered at 8: aside until 16
    desk.wait(1, 1)
    assert desk.said(50) == ["Offer"]


def test_who_was_heard_keeps_its_place_in_the_queue(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50)
    late = desk.one(e.Offer).stamp
    desk.submit(60)
    desk.pass_time(2)
    desk.go(60)
    desk.do(e.Committed(50, "j50", late, ()))
    desk.submit(51)
    desk.wait(2, 1)
    desk.finish(1, "j60")
    assert desk.one(e.Offer).job == "j50"


def test_an_answer_makes_up_for_all_that_were_missed(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50)
    desk.pass_time(2)
    desk.pass_time(2)
    desk.go(50)
    desk.finish(1, "j50", 1, LOST)
    desk.pass_time(2)
    desk.pass_time(1.9)
    assert desk.said(50) == []
    desk.pass_time(0.1)
    assert desk.said(50) == ["Offer"]


def test_other_agents_that_come_do_not_put_off_the_answer_that_there_is_none(desk: Desk) -> None:
    desk.agent(1, roots=("/srv",), serves=7, uid=7)
    desk.submit(50)
    desk.pass_time(5)
    desk.agent(2, roots=("/srv", "/home"), serves=7, uid=7)
    desk.pass_time(4.9)
    assert desk.said(50) == []
    desk.pass_time(0.1)
    assert desk.one(e.Answer).verb == "UNAVAILABLE"


def test_after_go_a_job_that_no_agent_may_take_has_failed(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50", 1, LOST)
    desk.do(e.Disconnected(1))
    desk.pass_time(10)
    failed = desk.one(e.TellFailed)
    assert (failed.safe, failed.undo, "no agent is connected" in failed.reason) == (True, ("/srv/o",), True)
    assert not [action for action in desk.last if isinstance(action, e.Answer)]


@pytest.mark.parametrize("restarted", [False, True])
def test_how_long_it_was_queued_is_told(restarted: bool) -> None:
    if restarted:
        desk = after_a_restart(OLD)
        attach(desk, 50, "j50", 3)
        come_back(desk, 1, running=(("j50", 3, USER),))
        attempt = 3
    else:
        desk = Desk()
        desk.submit(50)
        desk.now += 9.876
        desk.agent(1)
        desk.go(50)
        assert records(desk, "assigned")[0]["queued_ms"] == 9_876
        attempt = 1
    desk.finish(1, "j50", attempt)
    assert desk.one(e.DeliverResult).queued_ms == (0 if restarted else 9_876), "an earlier epoch's times are not known"


# ---- memory ----


def test_an_agent_is_kept_free_only_as_long_as_its_job_wants_it(desk: Desk) -> None:
    desk.agent(1, memory_bytes=8, slots=2)
    desk.run(40)
    desk.run(50)
    desk.finish(1, "j50", 1, STARVED)
    desk.submit(60)
    assert desk.said(60) == ["TellQueued"]
    leave(desk, 50)
    assert "j50" not in desk.scheduler.jobs
    assert desk.said(60) == ["Offer"]


def test_an_agent_is_free_again_when_its_job_alone_has_been_taken_elsewhere(desk: Desk) -> None:
    desk.agent(1, memory_bytes=8, slots=2)
    desk.run(50)
    desk.finish(1, "j50", 1, STARVED)
    desk.go(50)
    desk.submit(60)
    assert desk.said(60) == ["TellQueued"]
    desk.do(e.Rejected(1, "j50", 2, "no"))
    desk.go(60)
    assert desk.one(e.Assign).spec.job == "j60"


# ---- what is told to the ledger, and to people ----


def test_what_a_submitter_says_of_its_job_is_told(desk: Desk) -> None:
    desk.submit(50, host="h", pid=7, priority=2)
    [facts] = records(desk, "submitted")
    told = {"uid": USER, "build": "b", "command": "cc", "cwd": "/srv", "host": "h", "pid": 7, "priority": 2, "state": "queued"}
    assert facts == told


def test_the_ledger_is_told_what_is_to_be_removed_before_another_attempt(desk: Desk) -> None:
    names = json.dumps(["/srv/o"])
    desk.agent(1, incarnation="i1")
    desk.run(50)
    [facts] = records(desk, "assigned")
    assert (facts["agent"], facts["incarnation"], facts["uid"], facts["attempt"], "made" in facts) == ("a1", "i1", USER, 1, False)
    desk.finish(1, "j50", 1, LOST)
    assert [facts["made"] for facts in records(desk, "lost")] == [names]
    desk.go(50)
    assert [facts["made"] for facts in records(desk, "assigned")] == [names]
    desk.finish(1, "j50", 2, e.Outcome(0, repeat=True))
    assert ["made" in facts for facts in records(desk, "done")] == [False]
    desk.do(e.Acknowledged(50, "j50"))
    assert records(desk, "acknowledged") == [{"state": "settled"}]
    desk.run(51)
    desk.finish(1, "j51", 1, LOST)
    desk.do(e.Disconnected(51))
    desk.pass_time(1)
    assert [facts["made"] for facts in records(desk, "cancelled")] == [names]


@pytest.mark.parametrize("many", [1, 300])
def test_a_result_that_is_not_fetched_is_kept_as_long_as_it_can_be_undone(desk: Desk, many: int) -> None:
    desk.agent(1)
    desk.run(50)
    names = tuple(f"/srv/{number}" for number in range(many))
    desk.finish(1, "j50", 1, e.Outcome(0, repeat=True, made=names))
    desk.do(e.Disconnected(50))
    desk.pass_time(60)
    [facts] = records(desk, "acknowledged")
    assert facts.get("made") == (json.dumps(names) if many == 1 else None)
    assert desk.one(e.AckResult) == e.AckResult(1, "j50", 1)
    attach(desk, 51, "j50")
    assert desk.said(51) == (["TellQueued"] if many == 1 else ["TellFailed"])
