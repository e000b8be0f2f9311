"""The agent's session and its attempts at their edges: what is repeated, refused, cut short, or not to be understood."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_attempt import KEY, made, running, said
from test_session import EPOCH, REJECTED, WELCOME, again, assign, attach, ended, only, received, sent, verbs, welcomed

from dwrap.agent import events as e
from dwrap.agent.attempt import MAX_MADE
from dwrap.agent.registration import Registration
from dwrap.agent.session import Session
from dwrap.protocol import messages
from dwrap.protocol.messages import Value

REFUSED = received("REFUSED", reason="the name a is taken")
LEFT = e.News(("a-1",), ((KEY, 1000, b"status=0\0", b""),), 0)


def lease(milliseconds: int) -> e.Received:
    return received("LEASE", epoch=EPOCH, lease_ms=milliseconds)


# ---- the distributor ----


def test_what_registering_says_of_an_agent_that_is_new() -> None:
    [(_, fields)] = sent(Session(Registration("a", 2, ("/srv",), "1000")).handle(e.Connected(), 0))
    said_of_it = [fields.number("version"), fields.text("serves"), fields.number("leftover"), fields.texts("former")]
    assert said_of_it == [messages.VERSION, "1000", 0, ()]


def test_a_heartbeat_tells_the_load() -> None:
    [(_, fields)] = sent(welcomed().handle(e.Tick((("foreign", 1_500),)), 1))
    assert (fields.text("token"), fields.number("foreign")) == ("t", 1_500)


def test_a_lease_never_shrinks() -> None:
    session = welcomed()
    assert session.handle(lease(4_000), 1) == [e.Lease(10)]


def test_an_assignment_whose_result_waits_is_not_started_again() -> None:
    session = running()
    session.handle(ended(), 1)
    assert session.handle(assign(), 2) == []
    assert session.kept == (KEY,)


@pytest.mark.parametrize(("bodies", "fields", "reason"), [(2, {"uid": 0, "cwd": "/"}, "lacks"), (3, {"uid": 0}, "directory")])
def test_assignments_that_lack_something(bodies: int, fields: dict[str, Value], reason: str) -> None:
    event = received("ASSIGN", *(b"true\0",) * bodies, job="j1", attempt=1, epoch=EPOCH, **fields)
    [(verb, answer)] = sent(welcomed().handle(event, 0))
    assert (verb, reason in answer.text("reason")) == ("REJECT", True)


def test_views_are_for_jobs_that_have_them() -> None:
    [start] = welcomed().handle(assign(), 0)
    assert isinstance(start, e.Start)
    assert start.views is False


def test_a_stream_that_is_not_named_is_not_closed() -> None:
    session = running()
    assert not only(session.handle(received("CLOSE", job="j1"), 0), e.Tell)
    assert session.unexpected == 1


def test_signals_that_are_not_counted_do_not_make_others_new() -> None:
    session = running()
    for seq, is_delivered in ((1, True), (0, True), (1, False)):
        assert bool(session.handle(received("SIGNAL", job="j1", signal=2, seq=seq), 0)) is is_delivered


def test_what_was_noted_stays_so_when_an_older_answer_comes_later() -> None:
    session = running()
    for seq in (1, 2, 3):
        session.handle(made(seq, f"/srv/{seq}", ask=1), 0)
    for seq in (2, 1):
        session.handle(received("NOTED", job="j1", attempt=1, seq=seq), 0)
    assert [(fields.number("seq"), fields.flag("ask")) for _, fields in again(session, 1)[2:]] == [(1, False), (2, False), (3, True)]


def test_what_did_not_ask_does_not_ask_when_it_is_told_again() -> None:
    session = running()
    session.handle(made(1, "/srv/a"), 0)
    assert [fields.flag("ask") for _, fields in again(session, 1)[2:]] == [False]


@pytest.mark.parametrize(
    ("events", "now", "ends"),
    [
        ((e.Connected(), WELCOME), 20, False),  # what it said first stands
        ((e.Connected(), WELCOME, e.Disconnected(), e.Connected()), 9.9, False),
        ((e.Connected(), WELCOME, e.Disconnected(), e.Connected()), 10, True),
        ((e.Connected(), WELCOME, assign(), ended(), e.Disconnected(), e.Connected()), 20, False),  # its result waits
        ((e.Connected(), LEFT), 0, True),  # that of another before it does not count
    ],
)
def test_when_a_refusal_is_the_end(events: tuple[e.Event, ...], now: float, ends: bool) -> None:
    session = Session(Registration("a", 1, ("/srv",), "any"))
    for event in events:
        session.handle(event, 0)
    assert bool(only(session.handle(REFUSED, now), e.Quit)) is ends


# ---- leaving ----


def test_an_idle_agent_that_is_not_asked_to_leave_stays() -> None:
    session = welcomed()
    assert not only(session.handle(e.Tick(), 100), e.Quit)


def test_an_idle_agent_that_is_told_to_drain_leaves_at_once() -> None:
    actions = welcomed().handle(received("DRAIN"), 0)
    assert (verbs(actions), only(actions, e.Quit)) == (["LEAVING"], [e.Quit(0)])


def test_who_is_stopped_takes_nothing_new() -> None:
    session = running()
    assert verbs(session.handle(e.StopAsked(), 0)) == ["LEAVING"]
    assert verbs(session.handle(assign("j2"), 0)) == ["REJECT"]


# ---- attempts ----


def test_a_runner_that_could_not_start_while_nobody_listened_is_forgotten() -> None:
    session = running()
    session.handle(e.Disconnected(), 1)
    assert only(session.handle(REJECTED, 1), e.Forget) == [e.Forget(KEY)]


def test_all_that_was_written_goes_with_a_killed_result() -> None:
    session = running()
    for piece in (b"one", b"two"):
        session.handle(e.RunnerSaid(KEY, e.Kind.MANIFEST, 0, 0, piece), 0)
    session.handle(ended(), 0)
    again(session, 1)
    assert verbs(session.handle(received("KILL", job="j1", attempt=1), 1)) == ["MANIFEST", "MANIFEST", "RESULT"]


def test_why_it_is_beyond_is_told_in_its_own_words_however_much_it_made() -> None:
    session = running()
    session.handle(made(1, *(f"/srv/{number}" for number in range(MAX_MADE))), 0)
    [(_, fields)] = sent(session.handle(made(2, "/srv/last", beyond="it changed /srv/f"), 0))
    assert fields.text("beyond") == "it changed /srv/f"


def test_what_has_ended_is_not_killed_for_the_output_that_it_lacks() -> None:
    session = running()
    session.handle(said(b"x" * 10), 0)
    session.handle(ended(), 0)
    session.handle(attach(stdout=10), 0)
    actions = session.handle(attach(stdout=9), 0)
    assert not only(actions, e.Tell)
    assert sent(actions)[-1][1].text("error") == "lost"


def test_a_result_that_cannot_be_read_and_lacks_its_output_is_lost() -> None:
    session = running()
    session.handle(said(b"x" * 10), 0)
    session.handle(attach(stdout=10), 0)
    session.handle(attach(stdout=9), 0)
    [(verb, fields)] = sent(session.handle(replace(ended(), payload=b"nonsense"), 0))
    assert (verb, fields.text("error"), fields.flag("repeat")) == ("RESULT", "lost", False)


@pytest.mark.parametrize("outcome", [b"status=0\0", b"status=0"])
def test_of_a_former_incarnations_stdin_nothing_more_is_wanted(outcome: bytes) -> None:
    session = welcomed()
    session.handle(e.News(("a-1",), ((KEY, 1000, outcome, b""),), 0), 0)
    [(_, credit), _] = sent(session.handle(attach(), 1))
    assert (credit.number("limit"), credit.number("received")) == (0, 0)


def test_what_is_offered_after_a_welcome_of_the_same_epoch_is_nothing() -> None:
    session = running()
    session.handle(e.RunnerSaid(KEY, e.Kind.MANIFEST, 0, 0, b"one"), 0)
    assert verbs(session.handle(WELCOME, 1)) == ["HEARTBEAT"]
