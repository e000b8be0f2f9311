"""The agent's session by tables and by chance: what it sends, starts and keeps for every order of events."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from dwrap.agent import session as s
from dwrap.protocol import messages
from dwrap.protocol.messages import Value

EPOCH = "7"


def received(verb: str, *bodies: bytes, **fields: Value) -> s.Received:
    return s.Received(verb, messages.decode_fields(messages.encode_fields(fields.items())), bodies)


def assign(job: str = "j1", attempt: int = 1, epoch: str = EPOCH) -> s.Received:
    return received("ASSIGN", b"", b"true\0", b"", job=job, attempt=attempt, epoch=epoch, uid=0, cwd="/")


def ended(job: str = "j1", attempt: int = 1, status: int = 0) -> s.RunnerSaid:
    return s.RunnerSaid((job, attempt), s.Kind.ENDED, 0, 0, messages.encode_fields([("status", status)]))


WELCOME = received("WELCOME", epoch=EPOCH, token="t", lease_ms=10_000)


def welcomed(slots: int = 2) -> s.Session:
    session = s.Session(s.Registration("a", slots, ("/srv",), "any"))
    session.handle(s.Connected(), 0)
    session.handle(WELCOME, 0)
    return session


def sent(actions: Sequence[s.Action]) -> list[tuple[str, messages.Fields]]:
    return [messages.parse(action.frames)[:2] for action in actions if isinstance(action, s.Send)]


def verbs(actions: Sequence[s.Action]) -> list[str]:
    return [verb for verb, _ in sent(actions)]


def only(actions: Sequence[s.Action], kind: type[s.Action]) -> list[s.Action]:
    return [action for action in actions if isinstance(action, kind)]


def test_registers_on_connecting_and_beats_at_once_when_welcomed() -> None:
    session = s.Session(s.Registration("a", 2, ("/srv", "/home"), "any", (("label", "arch=arm64"),)))
    [(verb, fields)] = sent(session.handle(s.Connected(), 5))
    assert verb == "REGISTER"
    assert (fields.text("name"), fields.number("slots"), fields.texts("root")) == ("a", 2, ("/srv", "/home"))
    assert fields.texts("label") == ("arch=arm64",)
    actions = session.handle(WELCOME, 5)
    assert only(actions, s.Ready)
    [(verb, fields)] = sent(actions)
    assert (verb, fields.text("token")) == ("HEARTBEAT", "t")
    assert not only(session.handle(WELCOME, 6), s.Ready), "ready is said once"


def test_a_job_from_assign_to_ack() -> None:
    session = welcomed()
    [start] = session.handle(assign(), 1)
    assert isinstance(start, s.Start)
    assert (start.key, start.argv) == (("j1", 1), b"true\0")
    assert session.handle(assign(), 1) == [], "an assignment that came twice starts once"
    output = session.handle(s.RunnerSaid(("j1", 1), s.Kind.OUTPUT, 2, 10, b"x"), 1)
    assert isinstance(output[0], s.Send)
    assert output[0].frames == (b"OUTPUT", b"job=j1\0attempt=1\0stream=stderr\0offset=10\0", b"x")
    [(verb, fields)] = sent(session.handle(ended(status=256), 2))
    assert (verb, fields.number("status"), fields.number("attempt")) == ("RESULT", 256, 1)
    assert (session.running, session.kept) == ((), (("j1", 1),))
    session.handle(received("ACK", job="j1", attempt=1), 3)
    assert session.kept == ()


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (received("INPUT", b"data", job="j1", offset=3), [(s.Kind.INPUT, 0, 3, b"data")]),
        (received("INPUT", b"d", job="j1", offset=3, eof=1), [(s.Kind.INPUT, 0, 3, b"d"), (s.Kind.INPUT, 0, 4, b"")]),
        (received("INPUT", job="j1", offset=0, eof=1), [(s.Kind.INPUT, 0, 0, b"")]),
        (received("CREDIT", job="j1", stream="stdout", limit=70_000), [(s.Kind.CREDIT, 1, 70_000, b"")]),
        (received("CLOSE", job="j1", stream="stderr"), [(s.Kind.CLOSE, 2, 0, b"")]),
        (received("SIGNAL", job="j1", signal=2), [(s.Kind.SIGNAL, 0, 2, b"")]),
        (received("KILL", job="j1", attempt=1), [(s.Kind.KILL, 0, 0, b"")]),
        (received("KILL", job="j1", attempt=2), []),
        (received("SIGNAL", job="gone", signal=2), []),
        (received("CREDIT", job="j1", stream="nonsense", limit=1), []),
        (received("CREDIT", job="j1", stream="stdout"), []),
        (received("INPUT", b"x" * 32_769, job="j1", offset=0), []),
        (received("UNHEARDOF", job="j1"), []),
    ],
)
def test_what_a_runner_is_told(event: s.Received, told: list[tuple[s.Kind, int, int, bytes]]) -> None:
    session = welcomed()
    session.handle(assign(), 0)
    tells = only(session.handle(event, 0), s.Tell)
    assert [(t.kind, t.stream, t.number, t.payload) for t in tells if isinstance(t, s.Tell)] == told


@pytest.mark.parametrize(
    ("before", "event", "reason"),
    [
        ([], assign(epoch="6"), "epoch"),
        ([assign("x"), assign("y")], assign(), "slot"),
        ([assign(attempt=1)], assign(attempt=2), "earlier"),
        ([s.DrainAsked()], assign(), "leaving"),
        ([], received("ASSIGN", job="j1", attempt=1, epoch=EPOCH), "lacks"),
    ],
)
def test_assignments_that_are_rejected(before: list[s.Event], event: s.Received, reason: str) -> None:
    session = welcomed()
    for earlier in before:
        session.handle(earlier, 0)
    actions = session.handle(event, 0)
    [(verb, fields)] = sent(actions)
    assert verb == "REJECT"
    assert reason in fields.text("reason")
    assert not only(actions, s.Start)


def test_a_runner_that_could_not_start_frees_its_slot() -> None:
    session = welcomed(1)
    session.handle(assign(), 0)
    assert verbs(session.handle(s.RunnerSaid(("j1", 1), s.Kind.REJECTED, 0, 0, b"no\nroom"), 0)) == ["REJECT"]
    assert session.running == ()
    assert only(session.handle(assign(attempt=2), 0), s.Start)


def test_a_runner_that_dies_is_no_failure_of_the_command() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    [(verb, fields)] = sent(session.handle(s.RunnerEnded(("j1", 1)), 0))
    assert (verb, fields.text("error"), fields.get("status")) == ("RESULT", "infrastructure", None)


def test_the_lease_runs_from_the_heartbeat_that_was_answered() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(s.Tick(), 4)
    lease = received("LEASE", epoch=EPOCH, lease_ms=10_000)
    session.handle(lease, 9)  # answers the heartbeat of the welcome, at 0
    assert session.lease_until == 10
    session.handle(lease, 9)
    assert session.lease_until == 14
    session.handle(lease, 9)  # answers nothing
    session.handle(received("LEASE", epoch="6", lease_ms=99_000), 9)
    assert session.lease_until == 14


def test_when_the_lease_is_over_jobs_are_killed_and_their_status_is_not_told() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(s.Disconnected(), 1)
    assert not only(session.handle(s.Tick(), 9.9), s.Tell)
    assert [t.kind for t in session.handle(s.Tick(), 10) if isinstance(t, s.Tell)] == [s.Kind.KILL]
    assert not sent(session.handle(ended(status=9), 10.1)), "nobody is connected"
    session.handle(s.Connected(), 11)
    results = [fields for verb, fields in sent(session.handle(WELCOME, 11)) if verb == "RESULT"]
    assert [fields.text("error") for fields in results] == ["infrastructure"]


def test_after_a_new_connection_it_says_what_runs_and_what_ended() -> None:
    session = welcomed()
    session.handle(assign("run"), 0)
    session.handle(assign("end"), 0)
    session.handle(s.Disconnected(), 1)
    session.handle(ended("end"), 2)
    [(_, fields)] = sent(session.handle(s.Connected(), 3))
    assert fields.texts("running") == ("run:1",)
    assert verbs(session.handle(WELCOME, 3)) == ["HEARTBEAT", "RESULT"]
    assert "RESULT" not in verbs(session.handle(s.Tick(), 4))
    assert "RESULT" in verbs(session.handle(s.Tick(), 8)), "sent again until ACK"


def test_what_is_said_while_nobody_listens_follows_the_next_welcome() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(s.Disconnected(), 1)
    for offset in (0, 1):
        assert not session.handle(s.RunnerSaid(("j1", 1), s.Kind.OUTPUT, 1, offset, b"x"), 2)
    assert verbs(session.handle(s.Connected(), 3)) == ["REGISTER"]
    messages_sent = sent(session.handle(WELCOME, 3))
    assert [verb for verb, _ in messages_sent] == ["HEARTBEAT", "OUTPUT", "OUTPUT"]
    assert [fields.number("offset") for _, fields in messages_sent[1:]] == [0, 1]


def test_a_result_that_nobody_acknowledges_is_dropped_in_the_end() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(ended(), 1)
    session.handle(s.Tick(), 1 + s.ORPHAN_SECONDS)
    assert session.kept
    session.handle(s.Tick(), 2 + s.ORPHAN_SECONDS)
    assert not session.kept


def test_drain_finishes_and_leaves() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    assert verbs(session.handle(received("DRAIN"), 0)) == ["LEAVING"]
    assert not only(session.handle(s.Tick(), 1), s.Quit)
    session.handle(ended(), 2)
    assert session.handle(received("ACK", job="j1", attempt=1), 3) == [s.Quit(0)]


def test_an_idle_agent_drains_at_once() -> None:
    session = welcomed()
    session.handle(s.DrainAsked(), 0)
    assert only(session.handle(s.Tick(), 0), s.Quit) == [s.Quit(0)]


def test_stop_kills_and_does_not_wait_for_ever() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    assert only(session.handle(s.StopAsked(), 0), s.Tell)
    assert not only(session.handle(s.Tick(), 1), s.Quit)
    assert only(session.handle(s.Tick(), s.STOP_SECONDS), s.Quit)


def test_refused_at_first_is_the_end_later_it_is_asked_again() -> None:
    fresh = s.Session(s.Registration("a", 1, ("/",), "any"))
    fresh.handle(s.Connected(), 0)
    [quit_action] = fresh.handle(received("REFUSED", reason="the name a is taken"), 0)
    assert isinstance(quit_action, s.Quit)
    assert (quit_action.status, "the name a is taken" in quit_action.reason) == (1, True)
    session = welcomed()
    session.handle(s.Disconnected(), 1)
    session.handle(s.Connected(), 2)
    refused = received("REFUSED", reason="the name a is taken")
    assert not only(session.handle(refused, 2), s.Quit)
    assert verbs(session.handle(s.Tick(), 3)) == ["REGISTER"]
    assert only(session.handle(refused, 11), s.Quit)


JOBS = some.sampled_from(["j1", "j2", "j3"])
ATTEMPTS = some.integers(1, 2)
EVENTS = some.one_of(
    some.builds(assign, JOBS, ATTEMPTS, some.sampled_from([EPOCH, EPOCH, "6"])),
    some.builds(ended, JOBS, ATTEMPTS),
    some.builds(lambda job, attempt: s.RunnerEnded((job, attempt)), JOBS, ATTEMPTS),
    some.builds(lambda job, attempt: s.RunnerSaid((job, attempt), s.Kind.REJECTED, 0, 0, b"no"), JOBS, ATTEMPTS),
    some.builds(lambda job, attempt: received("ACK", job=job, attempt=attempt), JOBS, ATTEMPTS),
    some.builds(lambda job, attempt: received("KILL", job=job, attempt=attempt), JOBS, ATTEMPTS),
    some.builds(lambda job: received("SIGNAL", job=job, signal=15), JOBS),
    some.sampled_from([s.Connected(), s.Disconnected(), s.Tick(), WELCOME, received("LEASE", epoch=EPOCH, lease_ms=10_000)]),
)


@settings(max_examples=300, deadline=None)
@given(some.lists(some.tuples(EVENTS, some.floats(0, 3)), max_size=60))
def test_invariants_hold_in_every_order(story: list[tuple[s.Event, float]]) -> None:
    session, now = welcomed(), 0.0
    started: set[s.Key] = set()
    for event, pause in story:
        now += pause
        before = set(session.running)
        for action in session.handle(event, now):
            if isinstance(action, s.Start):
                assert action.key not in before
                started.add(action.key)
            if isinstance(action, s.Tell):
                assert action.key in started
        running, kept = set(session.running), set(session.kept)
        assert len(running) <= 2, story
        assert not running & kept, story
        assert len({job for job, _ in running}) == len(running), story
        assert running | kept <= started, story
        if event == s.Tick() and now >= session.lease_until:
            assert not any(isinstance(action, s.Start) for action in session.handle(s.Tick(), now))
