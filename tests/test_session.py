"""The agent's session by tables and by chance: what it sends, starts and keeps for every order of events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from dwrap.agent import events as e
from dwrap.agent import session as s
from dwrap.agent.registration import Registration
from dwrap.protocol import messages
from dwrap.protocol.messages import Value

EPOCH = "7"


def received(verb: str, *bodies: bytes, **fields: Value) -> e.Received:
    return e.Received(verb, messages.decode_fields(messages.encode_fields(fields.items())), bodies)


def assign(job: str = "j1", attempt: int = 1, epoch: str = EPOCH) -> e.Received:
    return received("ASSIGN", b"", b"true\0", b"", job=job, attempt=attempt, epoch=epoch, uid=0, cwd="/")


def attach(job: str = "j1", attempt: int = 1, stdout: int = 0, stderr: int = 0, credit: int = 65_536) -> e.Received:
    limits = {"stdout_limit": credit, "stderr_limit": credit}
    return received("ATTACH", job=job, attempt=attempt, stdout=stdout, stderr=stderr, **limits)


def again(session: s.Session, now: float) -> list[tuple[str, messages.Fields]]:
    """Cuts the connection, and makes another: what is said on it."""
    session.handle(e.Disconnected(), now)
    return sent([*session.handle(e.Connected(), now), *session.handle(WELCOME, now)])


def ended(job: str = "j1", attempt: int = 1, status: int = 0) -> e.RunnerSaid:
    return e.RunnerSaid((job, attempt), e.Kind.ENDED, 0, 0, messages.encode_fields([("status", status)]))


WELCOME = received("WELCOME", epoch=EPOCH, token="t", lease_ms=10_000)


def welcomed(slots: int = 2) -> s.Session:
    session = s.Session(Registration("a", slots, ("/srv",), "any"))
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
    session = s.Session(Registration("a", 2, ("/srv", "/home"), "any", (("label", "arch=arm64"),)))
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
        (received("INPUT", b"data", job="j1", offset=0), [(e.Kind.INPUT, 0, 0, b"data")]),
        (received("INPUT", b"d", job="j1", offset=0, eof=1), [(e.Kind.INPUT, 0, 0, b"d"), (e.Kind.INPUT, 0, 1, b"")]),
        (received("INPUT", job="j1", offset=0, eof=1), [(e.Kind.INPUT, 0, 0, b"")]),
        (received("INPUT", b"d", job="j1", offset=1, eof=1), []),
        (received("INPUT", b"x" * 4_097, job="j1", offset=0), []),
        (received("CREDIT", job="j1", stream="stdout", limit=70_000), [(e.Kind.CREDIT, 1, 70_000, b"")]),
        (received("CLOSE", job="j1", stream="stderr"), [(e.Kind.CLOSE, 2, 0, b"")]),
        (received("SIGNAL", job="j1", signal=2), [(e.Kind.SIGNAL, 0, 2, b"")]),
        (received("KILL", job="j1", attempt=1), [(e.Kind.KILL, 0, 1, b"")]),
        (received("NOTED", job="j1", attempt=1, seq=3), [(e.Kind.NOTED, 0, 3, b"")]),
        (received("NOTED", job="j1", attempt=2, seq=3), []),
        (received("SIGNAL", job="j1", signal=2, seq=1), [(e.Kind.SIGNAL, 0, 2, b"")]),
        (received("SIGNAL", job="gone", signal=2), []),
        (received("INPUT", b"d", job="gone", offset=0), []),
        (received("CREDIT", job="gone", stream="stdout", limit=70_000), []),
        (received("CLOSE", job="gone", stream="stdout"), []),
        (received("CREDIT", job="j1", stream="nonsense", limit=1), []),
        (received("CREDIT", job="j1", stream="stdout"), []),
        (received("CREDIT", job="j1", stream="stdin", limit=1), []),
        (received("INPUT", b"x" * 32_769, job="j1", offset=0), []),
        (received("UNHEARDOF", job="j1"), []),
    ],
)
def test_what_a_runner_is_told(event: e.Received, told: list[tuple[e.Kind, int, int, bytes]]) -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(e.RunnerSaid(("j1", 1), e.Kind.CREDIT, 0, 4_096, b""), 0)
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
        ([], received("ASSIGN", b"", b"true\0", b"", job="j1", attempt=1, epoch=EPOCH, cwd="/"), "user"),
        ([], received("ASSIGN", b"", b"true\0", b"", job="j1", attempt=1, epoch=EPOCH, uid=0, cwd="srv"), "directory"),
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
    assert (fields.text("job"), fields.number("attempt")) == (event.fields.text("job"), event.fields.number("attempt"))
    assert not only(actions, e.Start)


REJECTED = e.RunnerSaid(("j1", 1), e.Kind.REJECTED, 0, 0, b"no\nroom")


@pytest.mark.parametrize("fault", [0, 1])
def test_a_runner_that_could_not_start_frees_its_slot(fault: int) -> None:
    session = welcomed(1)
    session.handle(assign(), 0)
    actions = session.handle(replace(REJECTED, number=fault), 0)
    [(verb, fields)] = sent(actions)
    assert (verb, fields.text("reason"), fields.flag("fault")) == ("REJECT", "no?room", bool(fault))
    assert only(actions, e.Forget) == [e.Forget(("j1", 1))]
    assert session.running == ()
    assert only(session.handle(assign(attempt=2), 0), e.Start)


def test_a_rejection_that_nobody_hears_is_told_by_registering_without_it() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(e.Disconnected(), 1)
    assert not sent(session.handle(REJECTED, 1))
    [(_, fields)] = sent(session.handle(e.Connected(), 2))
    assert (fields.texts("running"), fields.texts("kept")) == ((), ())


def test_a_rejection_after_it_was_registered_as_running_is_told_when_it_is_asked_for() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(e.Disconnected(), 1)
    [(_, fields)] = sent(session.handle(e.Connected(), 2))
    assert fields.texts("running") == ("j1:1:0",)
    session.handle(REJECTED, 2)
    session.handle(WELCOME, 2)
    [_, (verb, fields)] = sent(session.handle(attach(), 2))
    assert (verb, fields.text("error"), fields.flag("repeat"), fields.text("reason")) == ("RESULT", "lost", True, "no?room")


def test_a_word_of_a_runner_that_is_not_known_is_passed_over() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    assert session.handle(e.RunnerSaid(("j1", 1), 99, 0, 0, b""), 0) == []
    assert session.running


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


def test_runners_are_told_how_long_the_lease_is_and_end_their_jobs_themselves() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    assert session.handle(received("LEASE", epoch=EPOCH, lease_ms=12_000), 1) == [e.Lease(12)]
    assert not only(session.handle(e.Tick(), 12), e.Tell), "the runners know"
    session.handle(e.Disconnected(), 13)
    session.handle(e.Connected(), 14)
    assert only(session.handle(WELCOME, 15), e.Lease) == [e.Lease(24)], "from the sending of REGISTER"


def test_a_welcome_that_was_read_late_gives_the_lease_of_the_registration_that_it_answers() -> None:
    session = s.Session(Registration("a", 2, ("/srv",), "any"))
    session.handle(e.Connected(), 0)
    session.handle(e.Mounted(True), 20)
    session.handle(WELCOME, 20)
    assert session.lease_until == 10
    session.handle(WELCOME, 20)
    assert session.lease_until == 30


def test_a_second_registration_keeps_the_heartbeats_in_order() -> None:
    session = welcomed()
    session.handle(e.Mounted(True), 0)
    session.handle(e.Tick(), 0.5)
    session.handle(WELCOME, 5)
    session.handle(received("LEASE", epoch=EPOCH, lease_ms=11_000), 5)
    assert session.lease_until == 11, "that answered the heartbeat at 0"


def test_a_new_connection_answers_nothing_of_the_old_one() -> None:
    session = welcomed()
    session.handle(e.Mounted(True), 1)
    session.handle(e.Disconnected(), 2)
    session.handle(e.Connected(), 20)
    session.handle(WELCOME, 21)
    assert session.lease_until == 30
    session.handle(received("LEASE", epoch=EPOCH, lease_ms=10_000), 22)
    assert session.lease_until == 31


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
    assert (fields.texts("running"), fields.texts("kept")) == (("run:1:0",), ("end:1:0",))
    assert verbs(session.handle(WELCOME, 3)) == ["HEARTBEAT"], "nobody may be there yet to whom it could go"
    assert verbs(session.handle(e.Tick(), 9)) == ["HEARTBEAT"]
    assert verbs(session.handle(attach("end"), 10)) == ["CREDIT", "RESULT"]
    assert "RESULT" not in verbs(session.handle(e.Tick(), 14))
    assert "RESULT" in verbs(session.handle(e.Tick(), 15)), "sent again until ACK"
    assert "RESULT" not in verbs(session.handle(e.Tick(), 16))


def test_a_result_whose_submitter_is_gone_goes_out_when_it_is_killed() -> None:
    session = welcomed()
    session.handle(assign("run"), 0)
    session.handle(assign("end"), 0)
    session.handle(ended("end"), 0)
    assert [verb for verb, _ in again(session, 1)] == ["REGISTER", "HEARTBEAT"]
    assert verbs(session.handle(received("KILL", job="end", attempt=1), 2)) == ["RESULT"]
    assert session.handle(received("KILL", job="run", attempt=1), 2) == [e.Tell(("run", 1), e.Kind.KILL, 0, 1)], "its status is not its own"
    assert verbs(session.handle(ended("run"), 3)) == ["RESULT"]


def test_a_result_that_nobody_can_be_told_is_dropped_in_the_end() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(ended(), 1)
    session.handle(e.Tick(), 2 * s.ORPHAN_SECONDS)
    session.handle(e.Disconnected(), 3 * s.ORPHAN_SECONDS)
    session.handle(e.Tick(), 4 * s.ORPHAN_SECONDS)
    assert session.kept
    session.handle(e.Tick(), 4 * s.ORPHAN_SECONDS + 1)
    assert not session.kept


def test_a_result_that_came_about_late_waits_as_long() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(e.Disconnected(), 0)
    session.handle(ended(), 300)
    session.handle(e.Tick(), 300 + s.ORPHAN_SECONDS)
    assert session.kept
    session.handle(e.Tick(), 301 + s.ORPHAN_SECONDS)
    assert not session.kept


def test_connections_on_which_it_is_not_taken_in_do_not_count_as_being_heard() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(ended(), 0)
    session.handle(e.Disconnected(), 1)
    session.handle(e.Connected(), 500)
    session.handle(e.Disconnected(), 501)
    session.handle(e.Tick(), 2 + s.ORPHAN_SECONDS)
    assert not session.kept


def test_without_a_connection_nothing_is_sent() -> None:
    session = s.Session(Registration("a", 1, ("/srv",), "any"))
    assert not sent([*session.handle(e.Tick(), 0), *session.handle(e.Mounted(True), 0), *session.handle(e.DrainAsked(), 0)])
    assert only(session.handle(e.Tick(), 1), e.Quit) == [e.Quit(0)]


def test_it_registers_once_until_it_is_answered() -> None:
    session = s.Session(Registration("a", 1, ("/srv",), "any"))
    session.handle(e.Connected(), 0)
    assert not sent(session.handle(e.Tick(), 20)), "a distributor that is slow has it all the same"


def test_what_cannot_be_understood_is_counted() -> None:
    session = welcomed()
    unexpected = [
        received("UNHEARDOF"),
        received("CREDIT", job="j1"),
        received("LEASE", epoch="6", lease_ms=1),
        received("LEASE", epoch=EPOCH, lease_ms=1),
        received("LEASE", epoch=EPOCH, lease_ms=1),
    ]
    counts = []
    for event in unexpected:
        session.handle(event, 0)
        counts.append(session.unexpected)
    assert counts == [1, 2, 3, 3, 4], "the first LEASE answers a heartbeat"


def test_as_much_input_as_a_message_may_hold_is_taken() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(e.RunnerSaid(("j1", 1), e.Kind.CREDIT, 0, 10**6, b""), 0)
    for size, is_taken in ((messages.MAX_DATA_BYTES + 1, False), (messages.MAX_DATA_BYTES, True)):
        assert bool(only(session.handle(received("INPUT", b"x" * size, job="j1", offset=0), 0), e.Tell)) == is_taken


def test_no_more_is_taken_than_a_registration_can_name() -> None:
    session = welcomed(2)
    results = tuple(((f"old{number}", 1), 1, b"status=0\0", b"") for number in range(s.MAX_ATTEMPTS - 1))
    session.handle(e.News(("before",), results, 0), 0)
    session.handle(assign("j1"), 0)
    assert "acknowledged" in sent(session.handle(assign("j2"), 0))[0][1].text("reason")
    assert not only(session.handle(ended("j1"), 0), e.Log), "nothing had to be dropped for it"
    actions = session.handle(e.News(("earlier",), ((("x", 1), 1, b"status=0\0", b""),), 0), 0)
    assert ("result_dropped", (("job", "old0"), ("attempt", 1))) in [(a.event, a.fields) for a in actions if isinstance(a, e.Log)]
    assert len(session.running) + len(session.kept) == s.MAX_ATTEMPTS


# ---- the end


def test_drain_finishes_and_leaves() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    assert not sent(session.handle(e.Mounted(False), 0))[0][1].flag("draining")
    assert verbs(session.handle(received("DRAIN"), 0)) == ["LEAVING"]
    assert not sent(session.handle(e.DrainAsked(), 0)), "it has said so"
    assert sent(session.handle(e.Mounted(False), 0))[0][1].flag("draining")
    assert not only(session.handle(e.Tick(), 1), e.Quit)
    session.handle(ended(), 2)
    assert session.handle(received("ACK", job="j1", attempt=1), 3) == [e.Forget(("j1", 1)), e.Quit(0)]


def test_a_draining_agent_waits_for_its_last_results_to_be_fetched_but_not_for_ever() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(e.DrainAsked(), 1)
    session.handle(ended(), 2)
    session.handle(e.Disconnected(), 3)
    for now in range(4, 22):
        assert not only(session.handle(e.Tick(), now), e.Quit)
    assert only(session.handle(e.Tick(), 22 + s.UNFETCHED_SECONDS - 18), e.Quit) == [e.Quit(0)]


def test_an_idle_agent_drains_at_once() -> None:
    session = welcomed()
    session.handle(e.DrainAsked(), 0)
    assert only(session.handle(e.Tick(), 0), e.Quit) == [e.Quit(0)]


def test_stop_ends_all_so_that_it_can_run_elsewhere_and_does_not_wait_for_ever() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    assert only(session.handle(e.StopAsked(), 0), e.Tell) == [e.Tell(("j1", 1), e.Kind.KILL, 0, 1)]
    assert verbs(session.handle(replace(ended(), payload=b"error=lost\0repeat=1\0"), 0)) == ["RESULT"]
    assert not only(session.handle(e.Tick(), 1), e.Quit)
    assert only(session.handle(e.Tick(), s.STOP_SECONDS), e.Quit) == [e.Quit(0)]


@pytest.mark.parametrize(("job", "attempt"), [("j1", 2), ("gone", 1)])
def test_nobody_waits_for_the_end_of_what_never_came(job: str, attempt: int) -> None:
    session = welcomed()
    session.handle(assign(), 0)
    [(verb, fields)] = sent(session.handle(received("KILL", job=job, attempt=attempt), 1))
    assert (verb, fields.text("job"), fields.number("attempt")) == ("REJECT", job, attempt)
    assert fields.text("reason") == "nothing of it is here"


def test_a_refusal_does_not_end_what_runs() -> None:
    session = welcomed()
    session.handle(assign(), 0)
    session.handle(e.Disconnected(), 1)
    session.handle(e.Connected(), 20)
    refused = received("REFUSED", reason="the name a is taken")
    assert not only(session.handle(refused, 20), e.Quit)
    assert [fields.texts("running") for _, fields in sent(session.handle(e.Tick(), 21))] == [("j1:1:0",)]
    session.handle(WELCOME, 21)
    assert not only(session.handle(refused, 40), e.Quit), "what it said first stands"
    assert session.welcomed


def test_refused_at_first_is_the_end_later_it_is_asked_again() -> None:
    fresh = s.Session(Registration("a", 1, ("/",), "any"))
    fresh.handle(e.Connected(), 0)
    [quit_action] = fresh.handle(received("REFUSED", reason="the name a is taken"), 0)
    assert isinstance(quit_action, e.Quit)
    assert (quit_action.status, "the name a is taken" in quit_action.reason) == (1, True)
    early = s.Session(Registration("a", 1, ("/",), "any"))
    early.handle(e.Connected(), 10)
    taken = received("REFUSED", reason="the name a is taken", again=1)
    assert not only(early.handle(taken, 10), e.Quit), "its former incarnation's end may not have been noticed"
    assert verbs(early.handle(e.Tick(), 11)) == ["REGISTER"]
    early.handle(e.Tick(), 14)
    assert not only(early.handle(taken, 14.9), e.Quit)
    assert only(early.handle(taken, 15), e.Quit)
    early.handle(WELCOME, 16)
    early.handle(e.Disconnected(), 5000)
    early.handle(e.Connected(), 5001)
    assert not only(early.handle(taken, 5001), e.Quit), "that was long ago"
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
    some.builds(attach, JOBS, ATTEMPTS, some.integers(0, 3)),
    some.builds(lambda job, attempt: e.RunnerSaid((job, attempt), e.Kind.OUTPUT, 1, 0, b"x"), JOBS, ATTEMPTS),
    some.builds(lambda job, attempt: e.RunnerSaid((job, attempt), e.Kind.MADE, 1, 1, b"path=/x\0"), JOBS, ATTEMPTS),
    some.builds(lambda job: received("SIGNAL", job=job, signal=15, seq=1), JOBS),
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
