"""The agent's session by tables and by chance: what it sends, starts and keeps for every order of events."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from dwrap.agent import events as e
from dwrap.agent import session as s
from dwrap.protocol import messages
from dwrap.protocol.messages import Value

EPOCH = "7"


def received(verb: str, *bodies: bytes, **fields: Value) -> e.Received:
    return e.Received(verb, messages.decode_fields(messages.encode_fields(fields.items())), bodies)


def assign(job: str = "j1", attempt: int = 1, epoch: str = EPOCH) -> e.Received:
    return received("ASSIGN", b"", b"true\0", b"", job=job, attempt=attempt, epoch=epoch, uid=0, cwd="/")


def ended(job: str = "j1", attempt: int = 1, status: int = 0) -> e.RunnerSaid:
    return e.RunnerSaid((job, attempt), e.Kind.ENDED, 0, 0, messages.encode_fields([("status", status)]))


WELCOME = received("WELCOME", epoch=EPOCH, token="t", lease_ms=10_000)


def welcomed(slots: int = 2) -> s.Session:
    session = s.Session(s.Registration("a", slots, ("/srv",), "any"))
    session.handle(e.Connected(), 0)
    session.handle(WELCOME, 0)
    return session


def sent(actions: Sequence[e.Action]) -> list[tuple[str, messages.Fields]]:
    return [messages.parse(action.frames)[:2] for action in actions if isinstance(action, e.Send)]


def verbs(actions: Sequence[e.Action]) -> list[str]:
    return [verb for verb, _ in sent(actions)]


def only(actions: Sequence[e.Action], kind: type[e.Action]) -> list[e.Action]:
    return [action for action in actions if isinstance(action, kind)]


def test_registers_on_connecting_and_beats_at_once_when_welcomed() -> None:
    session = s.Session(s.Registration("a", 2, ("/srv", "/home"), "any", (("label", "arch=arm64"),)))
    [(verb, fields)] = sent(session.handle(e.Connected(), 5))
    assert verb == "REGISTER"
    assert (fields.text("name"), fields.number("slots"), fields.texts("root")) == ("a", 2, ("/srv", "/home"))
    assert fields.texts("label") == ("arch=arm64",)
    actions = session.handle(WELCOME, 5)
    assert only(actions, e.Ready)
    [(verb, fields)] = sent(actions)
    assert (verb, fields.text("token")) == ("HEARTBEAT", "t")
    assert not only(session.handle(WELCOME, 6), e.Ready), "ready is said once"


def test_a_job_from_assign_to_ack() -> None:
    session = welcomed()
    [start] = session.handle(assign(), 1)
    assert isinstance(start, e.Start)
    assert (start.key, start.argv) == (("j1", 1), b"true\0")
    assert session.handle(assign(), 1) == [], "an assignment that came twice starts once"
    output = session.handle(e.RunnerSaid(("j1", 1), e.Kind.OUTPUT, 2, 10, b"x"), 1)
    assert isinstance(output[0], e.Send)
    assert output[0].frames == (b"OUTPUT", b"job=j1\0attempt=1\0stream=stderr\0offset=10\0", b"x")
    [(verb, fields)] = sent(session.handle(ended(status=256), 2))
    assert (verb, fields.number("status"), fields.number("attempt")) == ("RESULT", 256, 1)
    assert (session.running, session.kept) == ((), (("j1", 1),))
    session.handle(received("ACK", job="j1", attempt=1), 3)
    assert session.kept == ()


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (received("INPUT", b"data", job="j1", offset=3), [(e.Kind.INPUT, 0, 3, b"data")]),
        (received("INPUT", b"d", job="j1", offset=3, eof=1), [(e.Kind.INPUT, 0, 3, b"d"), (e.Kind.INPUT, 0, 4, b"")]),
        (received("INPUT", job="j1", offset=0, eof=1), [(e.Kind.INPUT, 0, 0, b"")]),
        (received("CREDIT", job="j1", stream="stdout", limit=70_000), [(e.Kind.CREDIT, 1, 70_000, b"")]),
        (received("CLOSE", job="j1", stream="stderr"), [(e.Kind.CLOSE, 2, 0, b"")]),
        (received("SIGNAL", job="j1", signal=2), [(e.Kind.SIGNAL, 0, 2, b"")]),
        (received("KILL", job="j1", attempt=1), [(e.Kind.KILL, 0, 0, b"")]),
        (received("KILL", job="j1", attempt=2), []),
        (received("SIGNAL", job="gone", signal=2), []),
        (received("CREDIT", job="j1", stream="nonsense", limit=1), []),
        (received("CREDIT", job="j1", stream="stdout"), []),
        (received("INPUT", b"x" * 32_769, job="j1", offset=0), []),
        (received("UNHEARDOF", job="j1"), []),
    ],
)
def test_what_a_runner_is_told(event: e.Received, told: list[tuple[e.Kind, int, int, bytes]]) -> None:
    session = welcomed()
    session.handle(assign(), 0)
    tells = only(session.handle(event, 0), e.Tell)
    assert [(t.kind, t.stream, t.number, t.payload) for t in tells if isinstance(t, e.Tell)] == told


@pytest.mark.parametrize(
    ("before", "event", "reason"),
    [
        ([], assign(epoch="6"), "epoch"),
        ([assign("x"), assign("y")], assign(), "slot"),
        ([assign(attempt=1)], assign(attempt=2), "earlier"),
        ([e.DrainAsked()], assign(), "leaving"),
        ([], received("ASSIGN", job="j1", attempt=1, epoch=EPOCH), "lacks"),
    ],
)
def test_assignments_that_are_rejected(before: list[e.Event], event: e.Received, reason: str) -> None:
    session = welcomed()
    for earlier in before:
        session.handle(earlier, 0)
    actions = session.handle(event, 0)
    [(verb, fields)] = sent(actions)
    assert verb == "REJECT"
    assert reason in fields.text("reason")
    assert not only(actions, e.Start)


def test_a_runner_that_could_not_start_frees_its_slot() -> None:
    session = welcomed(1)
    session.handle(assign(), 0)
    assert verbs(session.handle(e.RunnerSaid(("j1", 1), e.Kind.REJECTED, 0, 0, b"no\nroom"), 0)) == ["REJECT"]
    assert session.running == ()
    assert only(session.handle(assign(attempt=2), 0), e.Start)


def test_a_runner_that_dies_is_no_failure_of_the_command() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    [(verb, fields)] = sent(session.handle(e.RunnerEnded(("j1", 1)), 0))
    assert (verb, fields.text("error"), fields.get("status")) == ("RESULT", "infrastructure", None)


def test_the_lease_runs_from_the_heartbeat_that_was_answered() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(e.Tick(), 4)
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
    session.handle(e.Disconnected(), 1)
    assert not only(session.handle(e.Tick(), 9.9), e.Tell)
    assert [t.kind for t in session.handle(e.Tick(), 10) if isinstance(t, e.Tell)] == [e.Kind.KILL]
    assert not sent(session.handle(ended(status=9), 10.1)), "nobody is connected"
    session.handle(e.Connected(), 11)
    results = [fields for verb, fields in sent(session.handle(WELCOME, 11)) if verb == "RESULT"]
    assert [fields.text("error") for fields in results] == ["infrastructure"]


def test_an_assignment_that_was_read_too_late_is_not_started() -> None:
    session = welcomed()
    actions = session.handle(assign(), 10)  # an agent that was frozen meanwhile: the job may run elsewhere by now
    [(verb, fields)] = sent(actions)
    assert (verb, "lease" in fields.text("reason")) == ("REJECT", True)
    assert not only(actions, e.Start)


def test_after_a_new_connection_it_says_what_runs_and_what_ended() -> None:
    session = welcomed()
    session.handle(assign("run"), 0)
    session.handle(assign("end"), 0)
    session.handle(e.Disconnected(), 1)
    session.handle(ended("end"), 2)
    [(_, fields)] = sent(session.handle(e.Connected(), 3))
    assert fields.texts("running") == ("run:1",)
    assert verbs(session.handle(WELCOME, 3)) == ["HEARTBEAT", "RESULT"]
    assert "RESULT" not in verbs(session.handle(e.Tick(), 4))
    assert "RESULT" in verbs(session.handle(e.Tick(), 8)), "sent again until ACK"


def test_what_is_said_while_nobody_listens_follows_the_next_welcome() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(e.Disconnected(), 1)
    for offset in (0, 1):
        assert not session.handle(e.RunnerSaid(("j1", 1), e.Kind.OUTPUT, 1, offset, b"x"), 2)
    assert verbs(session.handle(e.Connected(), 3)) == ["REGISTER"]
    messages_sent = sent(session.handle(WELCOME, 3))
    assert [verb for verb, _ in messages_sent] == ["HEARTBEAT", "OUTPUT", "OUTPUT"]
    assert [fields.number("offset") for _, fields in messages_sent[1:]] == [0, 1]


def test_a_result_that_nobody_acknowledges_is_dropped_in_the_end() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(ended(), 1)
    session.handle(e.Tick(), 1 + s.ORPHAN_SECONDS)
    assert session.kept
    session.handle(e.Tick(), 2 + s.ORPHAN_SECONDS)
    assert not session.kept


def test_drain_finishes_and_leaves() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    assert verbs(session.handle(received("DRAIN"), 0)) == ["LEAVING"]
    assert not only(session.handle(e.Tick(), 1), e.Quit)
    session.handle(ended(), 2)
    assert session.handle(received("ACK", job="j1", attempt=1), 3) == [e.Quit(0)]


def test_an_idle_agent_drains_at_once() -> None:
    session = welcomed()
    session.handle(e.DrainAsked(), 0)
    assert only(session.handle(e.Tick(), 0), e.Quit) == [e.Quit(0)]


def test_stop_kills_and_does_not_wait_for_ever() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    assert only(session.handle(e.StopAsked(), 0), e.Tell)
    assert not only(session.handle(e.Tick(), 1), e.Quit)
    assert only(session.handle(e.Tick(), s.STOP_SECONDS), e.Quit)


def test_refused_at_first_is_the_end_later_it_is_asked_again() -> None:
    fresh = s.Session(s.Registration("a", 1, ("/",), "any"))
    fresh.handle(e.Connected(), 0)
    [quit_action] = fresh.handle(received("REFUSED", reason="the name a is taken"), 0)
    assert isinstance(quit_action, e.Quit)
    assert (quit_action.status, "the name a is taken" in quit_action.reason) == (1, True)
    session = welcomed()
    session.handle(e.Disconnected(), 1)
    session.handle(e.Connected(), 2)
    refused = received("REFUSED", reason="the name a is taken")
    assert not only(session.handle(refused, 2), e.Quit)
    assert verbs(session.handle(e.Tick(), 3)) == ["REGISTER"]
    assert only(session.handle(refused, 11), e.Quit)


JOBS = some.sampled_from(["j1", "j2", "j3"])
ATTEMPTS = some.integers(1, 2)
EVENTS = some.one_of(
    some.builds(assign, JOBS, ATTEMPTS, some.sampled_from([EPOCH, EPOCH, "6"])),
    some.builds(ended, JOBS, ATTEMPTS),
    some.builds(lambda job, attempt: e.RunnerEnded((job, attempt)), JOBS, ATTEMPTS),
    some.builds(lambda job, attempt: e.RunnerSaid((job, attempt), e.Kind.REJECTED, 0, 0, b"no"), JOBS, ATTEMPTS),
    some.builds(lambda job, attempt: received("ACK", job=job, attempt=attempt), JOBS, ATTEMPTS),
    some.builds(lambda job, attempt: received("KILL", job=job, attempt=attempt), JOBS, ATTEMPTS),
    some.builds(lambda job: received("SIGNAL", job=job, signal=15), JOBS),
    some.sampled_from([e.Connected(), e.Disconnected(), e.Tick(), WELCOME, received("LEASE", epoch=EPOCH, lease_ms=10_000)]),
)


@settings(max_examples=300, deadline=None)
@given(some.lists(some.tuples(EVENTS, some.floats(0, 3)), max_size=60))
def test_invariants_hold_in_every_order(story: list[tuple[e.Event, float]]) -> None:
    session, now = welcomed(), 0.0
    started: set[e.Key] = set()
    for event, pause in story:
        now += pause
        before = set(session.running)
        for action in session.handle(event, now):
            if isinstance(action, e.Start):
                assert action.key not in before
                started.add(action.key)
            if isinstance(action, e.Tell):
                assert action.key in started
        running, kept = set(session.running), set(session.kept)
        assert len(running) <= 2, story
        assert not running & kept, story
        assert len({job for job, _ in running}) == len(running), story
        assert running | kept <= started, story
        if event == e.Tick() and now >= session.lease_until:
            assert not any(isinstance(action, e.Start) for action in session.handle(e.Tick(), now))


# ---- views


def viewing(job: str = "j1", journal: bytes = b"", seen: bytes = b"", burst: int = 1, **more: Value) -> e.Received:
    fields = {"job": job, "attempt": 1, "epoch": EPOCH, "uid": 1000, "cwd": "/srv", "views": 1, "burst": burst, **more}
    return received("ASSIGN", b"", b"true\0", b"", seen, journal, **fields)


def wrote(piece: bytes, job: str = "j1") -> e.RunnerSaid:
    return e.RunnerSaid((job, 1), e.Kind.MANIFEST, 0, 0, piece)


def start_of(actions: Sequence[e.Action]) -> e.Start:
    [start] = [action for action in actions if isinstance(action, e.Start)]
    return start


APPLIED = e.RunnerSaid(("j1", 1), e.Kind.APPLIED, 0, 0, b"")


def test_a_runner_is_given_what_was_seen_and_what_others_changed() -> None:
    session = welcomed()
    start = start_of(session.handle(viewing(journal=b"J", seen=b"S", behind=1), 0))
    assert (start.seen, start.journal, start.views, start.refresh) == (b"S", b"J", True, True)
    session.handle(APPLIED, 0)
    start = start_of(session.handle(viewing("j2", journal=b"K"), 0))
    assert (start.journal, start.refresh) == (b"K", False)
    session.handle(e.RunnerEnded(("j2", 1)), 0)
    assert start_of(session.handle(viewing("j3", burst=2), 0)).journal == b"K", "j2 never said that it had applied it"


def test_runners_that_cannot_apply_what_they_are_given_end_in_asking_the_server() -> None:
    session = welcomed()
    refused = []
    for number in range(6):
        start = start_of(session.handle(viewing(f"j{number}", journal=b"" if number else b"J"), 0))
        refused.append(start.journal)
        session.handle(e.RunnerSaid(start.key, e.Kind.REJECTED, 0, 0, b"/srv/a does not show"), 0)
    assert refused == [b"J"] * 3 + [b""] * 3


def test_entries_that_come_with_a_job_that_is_not_taken_are_not_lost() -> None:
    session = welcomed(1)
    session.handle(viewing(), 0)
    session.handle(APPLIED, 0)
    assert verbs(session.handle(viewing("j2", journal=b"K", behind=1), 0)) == ["REJECT"]
    session.handle(ended(), 0)
    start = start_of(session.handle(viewing("j3"), 0))
    assert (start.journal, start.refresh) == (b"K", True)


def test_an_agent_that_never_records_gives_its_runners_nothing() -> None:
    session = welcomed()
    session.registration = s.Registration("a", 2, ("/srv",), "any", records=False)
    start = start_of(session.handle(viewing(journal=b"J"), 0))
    assert (start.views, start.refresh, start.journal) == (False, False, b"")


def test_manifests_go_out_at_once_and_again_before_the_result_on_a_new_connection() -> None:
    session = welcomed()
    session.handle(viewing(), 0)
    [(verb, fields)] = sent(session.handle(wrote(b"one"), 1))
    assert (verb, fields.text("job"), fields.number("attempt")) == ("MANIFEST", "j1", 1)
    session.handle(e.Disconnected(), 1)
    assert not sent(session.handle(wrote(b"two"), 2))
    assert not sent(session.handle(ended(), 2))
    session.handle(e.Connected(), 3)
    actions = session.handle(WELCOME, 3)
    assert verbs(actions) == ["HEARTBEAT", "MANIFEST", "MANIFEST", "RESULT"]
    assert [a.frames[2] for a in actions if isinstance(a, e.Send) and a.frames[0] == b"MANIFEST"] == [b"one", b"two"]
    assert verbs(session.handle(e.Tick(), 9)) == ["HEARTBEAT", "RESULT"], "this connection has carried the manifest"


def test_a_distributor_of_a_new_epoch_is_offered_what_was_written_lately() -> None:
    session = welcomed()
    session.handle(viewing(), 0)
    session.handle(wrote(b"one"), 0)
    session.handle(ended(), 0)
    session.handle(received("ACK", job="j1", attempt=1), 0)
    for epoch, offered in ((EPOCH, []), ("8", [b"one"])):
        session.handle(e.Disconnected(), 1)
        session.handle(e.Connected(), 1)
        actions = session.handle(received("WELCOME", epoch=epoch, token="t", lease_ms=10_000), 1)
        offers = [a.frames for a in actions if isinstance(a, e.Send) and a.frames[0] == b"MANIFEST"]
        assert offers == [(b"MANIFEST", b"offer=1\0", piece) for piece in offered]
    assert verbs(actions)[0] == "HEARTBEAT", "its uid counts only once the token is back"


def test_what_is_offered_is_bounded() -> None:
    session = welcomed()
    session.handle(viewing(), 0)
    for number in range(s.MAX_RECENT_BYTES // 32_768 + 10):
        session.handle(wrote(bytes([number % 256]) * 32_768), 0)
    session.handle(e.Disconnected(), 1)
    session.handle(ended(), 1)
    session.handle(e.Connected(), 1)
    actions = session.handle(received("WELCOME", epoch="8", token="t", lease_ms=10_000), 1)
    offers = [a for a in actions if isinstance(a, e.Send) and a.frames[1] == b"offer=1\0"]
    assert len(offers) == s.MAX_RECENT_BYTES // 32_768


def test_it_registers_again_when_the_mounts_have_changed() -> None:
    session = welcomed()
    [(verb, fields)] = sent(session.handle(e.Mounted(True, ("/srv nfs4 s:/x rw",), ("s:/x: soft",)), 1))
    assert (verb, fields.flag("views"), fields.texts("mount"), fields.texts("flaw")) == (
        "REGISTER", True, ("/srv nfs4 s:/x rw",), ("s:/x: soft",),
    )  # fmt: skip
    session.handle(e.Disconnected(), 2)
    assert not sent(session.handle(e.Mounted(False), 3))
    [(_, fields)] = sent(session.handle(e.Connected(), 4))
    assert not fields.flag("views")
