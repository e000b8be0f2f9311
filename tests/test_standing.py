"""What outlives an agent's connection and a job's end: faults, names, endings. The bounds of each."""

from __future__ import annotations

import math
from typing import Any

import pytest
from test_scheduler import USER, Desk

from dwrap.distributor import events as e
from dwrap.distributor import past as pasts
from dwrap.distributor import roster as rosters
from dwrap.distributor.past import SLACK_SECONDS, Epitaph, Past
from dwrap.distributor.roster import NAME_TAKEOVER_SECONDS, Roster
from dwrap.distributor.standing import Standing

OVER = Epitaph("over")


@pytest.mark.parametrize(
    ("times", "suspended", "until"),
    [
        ((100, 100), [False] * 2, 0),
        ((100, 100, 100), [False, False, True], 160),
        (range(100, 1_000, 60), [False] * 15, 0),  # one a minute never adds up
        ((100, 100, 160, 160), [False, False, False, True], 220),
        ((100, 100, 100, 110), [False, False, True, False], 160),  # one that is suspended is not suspended anew
        ((100, 100, 100, 160, 160), [False, False, True, False, True], 160 + 60 * math.log2(3.5 / 1.5)),
        ((100, 100, 100, 110, 160), [False, False, True, False, True], 221.749),
    ],
)
def test_faults_add_up_and_are_forgiven(times: Any, suspended: list[bool], until: float) -> None:
    standing = Standing()
    assert [standing.fault(f"at {at}", at) for at in times] == suspended
    assert standing.suspended_until == pytest.approx(until, abs=0.001)
    assert standing.why == f"at {times[-1]}"
    assert (standing.is_suspended(max(until - 0.01, 0.0)), standing.is_suspended(standing.suspended_until)) == (until > 0, False)


def test_only_so_many_standings_are_kept_and_the_newest_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rosters, "MAX_STANDINGS", 2)
    roster = Roster()
    first, second = roster.standing("a"), roster.standing("b")
    assert roster.standing("a") is first
    roster.standing("c")
    assert roster.standing("a") is first
    assert roster.standing("b") is not second


# ---- names ----


@pytest.mark.parametrize(
    ("incarnation", "seconds", "welcome"),
    [
        ("i1", 0, True),
        ("i2", 0, False),
        ("", 0, False),
        ("i2", NAME_TAKEOVER_SECONDS, False),
        ("i2", NAME_TAKEOVER_SECONDS + 0.1, True),
        ("i2", 2.5, False),
        ("i2", 2.6, True),
    ],
)
def test_a_name_is_taken_over_from_who_is_silent_or_was_oneself(incarnation: str, seconds: float, welcome: bool) -> None:
    desk = Desk()
    desk.do(e.Registered(1, 0, e.AgentSpec("a1", 1, ("/srv",), incarnation="i1")))
    token = desk.one(e.Welcome).token
    if seconds:
        desk.now += 1
        desk.do(e.Heartbeat(1, token, e.Load()))
        desk.now += seconds
    desk.do(e.Registered(2, 0, e.AgentSpec("a1", 1, ("/srv",), incarnation=incarnation)))
    assert desk.said(2) == (["Welcome"] if welcome else ["RefuseAgent"])
    assert desk.said(1) == (["Disconnect"] if welcome else [])


def test_nobody_without_an_incarnation_is_taken_for_another_without() -> None:
    desk = Desk()
    desk.agent(1, "a1")
    desk.do(e.Registered(2, 0, e.AgentSpec("a1", 1, ("/srv",))))
    assert desk.said(2) == ["RefuseAgent"]


def test_where_nobody_tells_who_an_agent_is_it_may_serve_whom_it_says() -> None:
    desk = Desk()
    desk.do(e.Registered(1, None, e.AgentSpec("a1", 1, ("/srv",), 5)))
    assert desk.said(1) == ["Welcome"]


def test_an_agent_that_has_another_name_has_left_its_old_one() -> None:
    desk = Desk()
    desk.agent(1, "old")
    desk.do(e.Registered(1, 0, e.AgentSpec("new", 1, ("/srv",))))
    desk.agent(2, "old")
    desk.do(e.DrainAsked("new"))
    assert desk.one(e.Drain).peer == 1
    desk.do(e.DrainAsked("old"))
    assert desk.one(e.Drain).peer == 2
    desk.do(e.DrainAsked("nobody"))
    assert desk.last == []
    desk.do(e.Disconnected(1))
    desk.do(e.Disconnected(2))
    assert not desk.scheduler.agents


def test_one_fault_does_not_follow_an_agent_to_its_next_connection() -> None:
    desk = Desk()
    desk.agent(1)
    desk.run(50)
    desk.do(e.Rejected(1, "j50", 1, "no room in /tmp", fault=True))
    assert desk.scheduler.agents[1].suspended == ""
    desk.do(e.Disconnected(1))
    desk.do(e.Registered(2, 0, e.AgentSpec("a1", 1, ("/srv",))))
    assert desk.scheduler.agents[2].suspended == ""


def test_what_an_agent_measures_counts_at_once() -> None:
    desk = Desk()
    desk.agent(1, slots=2)
    desk.agent(2, slots=2)
    desk.beat(1, e.Load(foreign_cpus=2.0))
    assert [desk.run(job).peer for job in (50, 51)] == [2, 2]


# ---- endings ----


def test_only_so_many_endings_are_known_and_when_others_were_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pasts, "MAX_ENDED", 3)
    past = Past(5.0, frozenset({1}))
    past.ended_before({"before": None})
    for at, job in enumerate(("a", "b", "a"), 10):
        past.bury(job, OVER, None, at)
    assert past.forgotten_at == -math.inf, "as many as there may be"
    past.bury("c", OVER, None, 20)
    assert (past.epitaph("before"), past.forgotten_at) == (None, 5.0)
    past.bury("d", OVER, None, 30)
    assert (past.epitaph("b"), past.epitaph("a"), past.forgotten_at) == (None, OVER, 11)


@pytest.mark.parametrize(
    ("job", "epoch", "go_at", "never"),
    [("new", 1, 10 + 60.1, True), ("new", 1, 10 + SLACK_SECONDS, False), ("new", 2, 100, False), ("over", 1, 100, False)],
)
def test_who_was_never_assigned(job: str, epoch: int, go_at: float, never: bool) -> None:
    past = Past(5.0, frozenset({1}), forgotten_at=10.0)
    past.bury("over", OVER, None, 20)
    assert past.was_never_assigned(job, epoch, go_at) is never


def test_who_lives_again_has_not_ended() -> None:
    past = Past(5.0, frozenset({1}))
    past.bury("job", OVER, None, 20)
    past.exhume("job")
    assert past.epitaph("job") is None
    assert past.was_never_assigned("job", 1, 100)


def test_a_message_that_was_under_way_for_long_may_be_of_what_was_forgotten() -> None:
    for since, answer in ((1.0, "Offer"), (30.0, "TellFailed")):
        desk = Desk()
        desk.agent(1)
        desk.scheduler._jobs.past.forgotten_at = 20.0
        desk.do(e.Attached(50, USER, e.JobSpec("j50", "/srv", "cc", "b"), 1, 0, since, ()))
        assert desk.said(50) == [answer]
