"""What outlives a connection of an attempt: output until it is printed, stdin, signals, names about to be made; incarnations before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from test_session import WELCOME, again, assign, attach, ended, only, received, sent, verbs, welcomed

from dwrap.agent import events as e
from dwrap.agent.attempt import MAX_MADE, MAX_MANIFEST_BYTES
from dwrap.agent.registration import MAX_TOLD, Registration
from dwrap.agent.session import Session
from dwrap.protocol import messages
from dwrap.protocol.messages import INITIAL_OUTPUT_CREDIT_BYTES as WINDOW
from dwrap.protocol.messages import MAX_DATA_BYTES, Value

KEY = ("j1", 1)


def said(data: bytes, offset: int = 0, stream: int = 1) -> e.RunnerSaid:
    return e.RunnerSaid(KEY, e.Kind.OUTPUT, stream, offset, data)


def made(seq: int, *names: str, ask: int = 0, **more: Value) -> e.RunnerSaid:
    return e.RunnerSaid(KEY, e.Kind.MADE, ask, seq, messages.encode_fields([*(("path", name) for name in names), *more.items()]))


def outputs(actions: Sequence[e.Action]) -> list[tuple[str, int, bytes]]:
    parsed = [messages.parse(action.frames) for action in actions if isinstance(action, e.Send)]
    return [(fields.text("stream"), fields.number("offset"), bodies[0]) for verb, fields, bodies in parsed if verb == "OUTPUT"]


def running() -> Session:
    session = welcomed()
    session.handle(assign(), 0)
    return session


def test_what_is_said_while_nobody_listens_waits_for_attach() -> None:
    session = running()
    session.handle(said(b"heard"), 0)
    session.handle(e.Disconnected(), 1)
    assert not session.handle(said(b"un", 5), 2)
    session.handle(e.Connected(), 3)
    session.handle(WELCOME, 3)
    assert not session.handle(said(b"heard", 7), 3), "its submitter may not be back yet"
    session.handle(e.RunnerSaid(KEY, e.Kind.CREDIT, 0, 4_096, b""), 3)
    actions = session.handle(attach(stdout=5, credit=65_541), 4)
    assert verbs(actions) == ["CREDIT", "OUTPUT"], "what comes before that CREDIT may leave something out"
    assert outputs(actions) == [("stdout", 5, b"unheard")]
    assert [t.number for t in actions if isinstance(t, e.Tell)] == [65_541, 65_541]
    [(_, credit)] = [message for message in sent(actions) if message[0] == "CREDIT"]
    assert (credit.text("stream"), credit.number("limit"), credit.number("received")) == ("stdin", 4_096, 0)
    assert outputs(session.handle(said(b"!", 12), 5)) == [("stdout", 12, b"!")]


def test_what_was_printed_is_not_kept() -> None:
    session = running()
    for at in range(0, WINDOW, MAX_DATA_BYTES):
        session.handle(said(b"x" * MAX_DATA_BYTES, at), 0)
    session.handle(received("CREDIT", job="j1", stream="stdout", limit=WINDOW + 40_000), 0)
    session.handle(said(b"y" * 40_000, WINDOW), 0)
    assert [(at, len(data)) for _, at, data in outputs(session.handle(attach(stdout=40_000), 0))] == [(40_000, 32_768), (72_768, 32_768)]


def test_credit_beyond_all_reason_only_harms_whoever_gave_it() -> None:
    session = running()
    session.handle(said(b"x" * 10), 0)
    session.handle(received("CREDIT", job="j1", stream="stdout", limit=10**17), 0)
    session.handle(said(b"x" * 10, 10), 0)
    assert not session._running[KEY].outputs[0].kept
    assert outputs(session.handle(attach(stdout=20, credit=10**17), 0)) == []


def test_what_is_kept_is_bounded_whatever_credit_is_claimed() -> None:
    session = running()
    session.handle(attach(credit=10**17), 0)
    for offset in range(0, 4 * WINDOW, 1_024):
        session.handle(said(b"x" * 1_024, offset), 0)
        session.handle(said(b"x" * 1_024, offset, 2), 0)
    assert all(len(output.kept) <= WINDOW for output in session._running[KEY].outputs)


def test_credit_that_would_shrink_what_was_given_is_none() -> None:
    session = running()
    for limit in (WINDOW + 40_000, WINDOW):
        session.handle(received("CREDIT", job="j1", stream="stdout", limit=limit), 0)
    for offset in range(0, WINDOW + 40_000, 776):
        session.handle(said(b"x" * 776, offset), 0)
    assert len(session._running[KEY].outputs[0].kept) <= WINDOW


def test_not_a_byte_is_sent_again_that_has_come() -> None:
    session = running()
    session.handle(said(b"x"), 0)
    actions = session.handle(attach(stdout=1), 0)
    assert outputs(actions) == []
    [(_, credit)] = sent(actions)
    assert (credit.number("limit"), credit.number("received")) == (0, 0), "said though the runner has asked for nothing yet"


def test_output_that_is_no_longer_there_makes_the_result_a_lost_one() -> None:
    session = running()
    session.handle(said(b"x" * 10), 0)
    session.handle(attach(stdout=10), 0)
    assert e.Tell(KEY, e.Kind.KILL, 0, 1) in session.handle(attach(stdout=9), 0), "nobody can make anything of the rest"
    facts = [("status", 0), ("repeat", 1), ("made", "/srv/a"), ("made", "/srv/b"), ("stdout_bytes", 10), ("outputs", "exact")]
    outcome = messages.encode_fields(facts)
    [(verb, fields)] = sent(session.handle(e.RunnerSaid(KEY, e.Kind.ENDED, 0, 0, outcome), 1))
    assert (verb, fields.text("error"), fields.flag("repeat"), fields.texts("made")) == ("RESULT", "lost", True, ("/srv/a", "/srv/b"))
    assert fields.text("outputs") == "exact", "what it made is the runner's own word"
    assert (fields.get("status"), fields.get("stdout_bytes")) == (None, None)


@pytest.mark.parametrize(
    ("have", "outcome", "error"),
    [
        (0, b"status=0\0", ""),
        (5, b"status=0\0", ""),
        (4, b"status=0\0", "lost"),
        (4, b"error=lost\0repeat=1\0memory=1\0", "lost"),
        (4, b"error=cwd\0", "cwd"),
    ],
)
def test_a_result_of_a_former_incarnation_counts_if_its_output_was_heard(have: int, outcome: bytes, error: str) -> None:
    session = welcomed()
    told = b"stdout_bytes=5\0" if have else b""
    session.handle(e.News(("a-1",), ((KEY, 1000, outcome + told, b""),), 0), 0)
    [(credit, _), (verb, fields)] = sent(session.handle(attach(stdout=have), 1))
    assert (credit, verb, fields.text("error")) == ("CREDIT", "RESULT", error)
    assert (fields.flag("memory"), fields.flag("repeat")) == (b"memory" in outcome, b"repeat" in outcome)


def test_attaching_to_what_is_not_here_is_answered() -> None:
    session = welcomed()
    [(credit, _), (verb, fields)] = sent(session.handle(attach(stdout=7), 0))
    assert (credit, verb, fields.text("error"), fields.flag("repeat")) == ("CREDIT", "RESULT", "lost", False)
    assert session.kept == ()


def test_stdin_is_counted_as_the_runner_counts_it() -> None:
    session = running()
    session.handle(e.RunnerSaid(KEY, e.Kind.CREDIT, 0, 10, b""), 0)
    pieces = [(0, b"abc", True), (4, b"x", False), (0, b"abc", False), (1, b"bcde", True), (5, b"f" * 6, False), (5, b"f" * 4, True)]
    for offset, data, is_taken in pieces:
        assert bool(only(session.handle(received("INPUT", data, job="j1", offset=offset), 0), e.Tell)) == is_taken
    [(_, fields)] = sent(session.handle(attach(), 0))
    assert (fields.number("limit"), fields.number("received")) == (10, 9)
    assert only(session.handle(received("INPUT", b"g", job="j1", offset=9, eof=1), 0), e.Tell) == [
        e.Tell(KEY, e.Kind.INPUT, 0, 9, b"g"),
        e.Tell(KEY, e.Kind.INPUT, 0, 10, b""),
    ]
    session.handle(ended(), 0)
    assert verbs(session.handle(attach(), 0)) == ["CREDIT", "RESULT"]


def test_credit_for_stdin_is_told_to_whoever_is_there() -> None:
    session = running()
    credit = e.RunnerSaid(KEY, e.Kind.CREDIT, 0, 4_096, b"")
    [(verb, fields)] = sent(session.handle(credit, 0))
    assert (verb, fields.number("attempt"), fields.text("stream"), fields.number("limit")) == ("CREDIT", 1, "stdin", 4_096)
    again(session, 1)
    assert not session.handle(credit, 1)


def test_each_signal_is_delivered_once() -> None:
    session = running()
    delivered = [
        bool(session.handle(received("SIGNAL", job="j1", signal=2, **({"seq": seq} if seq else {})), 0)) for seq in (1, 2, 2, 1, 3, 0, 0)
    ]
    assert delivered == [True, True, False, False, True, True, True], "submitters that do not count are believed"


def test_what_was_written_goes_with_a_killed_result_once_a_connection() -> None:
    session = running()
    session.handle(e.RunnerSaid(KEY, e.Kind.MANIFEST, 0, 0, b"entries"), 0)
    session.handle(ended(), 0)
    kill = received("KILL", job="j1", attempt=1)
    assert verbs(session.handle(kill, 0)) == ["RESULT"]
    again(session, 1)
    assert verbs(session.handle(kill, 1)) == ["MANIFEST", "RESULT"]
    assert verbs(session.handle(kill, 1)) == ["RESULT"]


def test_more_than_a_manifest_may_hold_is_cut() -> None:
    session = running()
    room = MAX_MANIFEST_BYTES // MAX_DATA_BYTES
    piece = e.RunnerSaid(KEY, e.Kind.MANIFEST, 0, 0, b"e" * MAX_DATA_BYTES)
    logged = [bool(only(session.handle(piece, 0), e.Log)) for _ in range(room + 2)]
    assert logged == [False] * room + [True] * 2
    assert verbs(session.handle(attach(), 0)).count("MANIFEST") == room


# ---- names about to be made


def test_names_are_told_at_once_and_again_on_each_connection() -> None:
    session = running()
    for event, ask in ((made(1, "/srv/a", "/srv/b"), False), (made(2, "/srv/c", ask=1), True), (made(3, "/srv/d", ask=1), True)):
        [(verb, fields)] = sent(session.handle(event, 0))
        assert (verb, fields.number("attempt"), fields.number("seq"), fields.flag("ask")) == ("MADE", 1, event.number, ask)
        assert list(fields.texts("path")) == event.payload.decode().replace("path=", "").split("\0")[:-1]
    assert session.handle(received("NOTED", job="j1", attempt=1, seq=2), 0) == [e.Tell(KEY, e.Kind.NOTED, 0, 2)]
    session.handle(ended(), 0)
    told = again(session, 1)
    assert [verb for verb, _ in told] == ["REGISTER", "HEARTBEAT", "MADE", "MADE", "MADE"]
    assert [(fields.number("seq"), fields.flag("ask")) for _, fields in told[2:]] == [(1, False), (2, False), (3, True)]
    session.handle(received("ACK", job="j1", attempt=1), 2)
    assert [verb for verb, _ in again(session, 3)] == ["REGISTER", "HEARTBEAT"]


def test_names_that_come_while_nobody_listens_are_told_with_the_others() -> None:
    session = running()
    session.handle(e.Disconnected(), 1)
    assert not session.handle(made(1, "/srv/a", ask=1), 1)
    session.handle(e.Connected(), 2)
    [(beat, _), (verb, fields)] = sent(session.handle(WELCOME, 2))
    assert (beat, verb, fields.flag("ask")) == ("HEARTBEAT", "MADE", True)
    assert verbs(session.handle(made(2, "/srv/b"), 3)) == ["MADE"], "whether or not its submitter is back"


def test_who_is_beyond_needs_no_names() -> None:
    session = running()
    session.handle(made(1, "/srv/a"), 0)
    session.handle(made(2, beyond="it opened /srv/x for writing", ask=1), 0)
    [(_, fields)] = again(session, 1)[2:]
    assert (fields.number("seq"), fields.text("beyond"), fields.flag("ask")) == (2, "it opened /srv/x for writing", True)


def test_more_names_than_can_be_kept_are_beyond() -> None:
    session = running()
    [(_, fields)] = sent(session.handle(made(1, *(f"/srv/{number}" for number in range(MAX_MADE))), 0))
    assert len(fields.texts("path")) == MAX_MADE
    [(_, fields)] = sent(session.handle(made(2, "/srv/last", ask=1), 0))
    assert (fields.number("seq"), fields.flag("ask"), fields.texts("path")) == (2, True, ())
    assert "256" in fields.text("beyond")
    assert len(again(session, 1)) == 3


# ---- incarnations


def test_what_a_former_incarnation_left_is_named_and_delivered() -> None:
    session = Session(Registration("a", 2, ("/srv",), "any", incarnation="a-2"))
    session.handle(e.Connected(), 0)
    entry = b"F 1 2 3 4 /srv/x\0"
    news = e.News(("a-1",), ((("j1", 1), 1000, b"status=0\0stdin_taken=7\0stdout_bytes=5\0", entry),), 1)
    [(verb, fields)] = sent(session.handle(news, 1))
    assert (verb, fields.text("incarnation"), fields.texts("former"), fields.number("leftover")) == ("REGISTER", "a-2", ("a-1",), 1)
    assert fields.texts("kept") == ("j1:1:1000",)
    session.handle(WELCOME, 1)
    assert session.handle(replace(news, former=(), results=()), 2) == [], "nothing new"
    assert [fields.texts("former") for _, fields in sent(session.handle(e.News((), (), 0), 3))] == [("a-1",)]
    actions = session.handle(attach(stdout=5), 4)
    assert [a.frames for a in actions if isinstance(a, e.Send)] == [
        (b"CREDIT", b"job=j1\0attempt=1\0stream=stdin\0limit=7\0received=7\0"),  # no more of it is needed again
        (b"MANIFEST", b"job=j1\0attempt=1\0", entry),
        (b"RESULT", b"job=j1\0attempt=1\0status=0\0stdin_taken=7\0stdout_bytes=5\0"),
    ]
    session.handle(assign("j2"), 4)
    again_told = e.News((), ((("j1", 1), 1, b"status=9\0", b""), (("j2", 1), 1, b"status=9\0", b"")), 0)
    assert sent(session.handle(again_told, 4))[0][1].texts("kept") == ("j1:1:1000",), "what is known already"
    assert session.handle(received("ACK", job="j1", attempt=1), 5) == [e.Forget(("j1", 1))]


def test_what_is_told_of_former_incarnations_is_bounded() -> None:
    session = welcomed()
    for number in range(MAX_TOLD + 1):
        [(_, fields)] = sent(session.handle(e.News((f"a-{number}",), (), 0), 0))
    assert fields.texts("former") == tuple(f"a-{number}" for number in range(1, MAX_TOLD + 1))
    assert (fields.get("incarnation"), fields.number("leftover")) == (None, 0)


@pytest.mark.parametrize(("outcome", "written"), [(b"status=0", b""), (b"stdout_bytes=x\0", b""), (b"status=0\0", b"F nonsense\0")])
def test_a_former_result_that_cannot_be_read_is_no_result(outcome: bytes, written: bytes) -> None:
    session = welcomed()
    session.handle(e.News(("a-1",), ((("j1", 1), 1000, outcome, written),), 0), 0)
    [(credit, _), (verb, fields)] = sent(session.handle(attach(), 1))
    assert (credit, verb, fields.text("error"), fields.flag("repeat")) == ("CREDIT", "RESULT", "lost", False)


# ---- every interleaving


def text(stream: int, offset: int, size: int) -> bytes:
    """What the command prints there."""
    period = bytes((number * 7 + stream) % 251 for number in range(251))
    start = offset % 251
    return (period * (size // 251 + 2))[start : start + size]


@dataclass
class Farm:
    """A session between a runner that keeps to its credit and an honest submitter. What is under way when they part is lost."""

    session: Session = field(default_factory=running)
    produced: dict[int, int] = field(default_factory=lambda: {1: 0, 2: 0})
    runner_limit: dict[int, int] = field(default_factory=lambda: {1: WINDOW, 2: WINDOW})
    heard: dict[int, bytes] = field(default_factory=lambda: {1: b"", 2: b""})
    printed: dict[int, int] = field(default_factory=lambda: {1: 0, 2: 0})
    under_way: list[tuple[bytes, ...]] = field(default_factory=list)
    is_attached: bool = True
    is_up: bool = True
    has_ended: bool = False
    status: int | None = None

    def feed(self, event: e.Event) -> None:
        for action in self.session.handle(event, 0):
            if isinstance(action, e.Send) and self.is_up:
                self.under_way.append(action.frames)
            if isinstance(action, e.Tell) and action.kind == e.Kind.CREDIT:
                self.runner_limit[action.stream] = max(self.runner_limit[action.stream], action.number)
            assert not (isinstance(action, e.Tell) and action.kind == e.Kind.KILL)

    def write(self, stream: int, size: int) -> None:
        size = min(size, self.runner_limit[stream] - self.produced[stream], MAX_DATA_BYTES)
        if size > 0 and not self.has_ended:
            self.feed(said(text(stream, self.produced[stream], size), self.produced[stream], stream))
            self.produced[stream] += size

    def deliver(self, count: int) -> None:
        arrived, self.under_way = self.under_way[:count], self.under_way[count:]
        for frames in arrived:
            verb, fields, bodies = messages.parse(frames)
            if verb == "OUTPUT" and self.is_attached:
                stream, offset = {"stdout": 1, "stderr": 2}[fields.text("stream")], fields.number("offset")
                known = len(self.heard[stream]) - offset
                assert known >= 0, "a gap"
                self.heard[stream] += bodies[0][known:]
            if verb == "RESULT":
                assert {stream: len(data) for stream, data in self.heard.items()} == self.produced, "output follows its result"
                self.status = fields.number("status")

    def show(self, stream: int, size: int) -> None:
        """The submitter prints, and gives credit, which is lost when nobody carries it."""
        self.printed[stream] = min(self.printed[stream] + size, len(self.heard[stream]))
        if self.is_up and self.is_attached:
            self.feed(received("CREDIT", job="j1", stream=name_of(stream), limit=self.printed[stream] + WINDOW))

    def cut(self) -> None:
        self.under_way.clear()
        self.is_up = self.is_attached = False
        self.feed(e.Disconnected())

    def attach(self) -> None:
        """The submitter's connection is new, and the agent's where it was cut."""
        if not self.is_up:
            self.is_up = True
            self.feed(e.Connected())
            self.feed(WELCOME)
        self.under_way.clear()
        self.is_attached = True
        have = {name_of(stream): len(self.heard[stream]) for stream in (1, 2)}
        limits = {f"{name_of(stream)}_limit": self.printed[stream] + WINDOW for stream in (1, 2)}
        self.feed(received("ATTACH", job="j1", attempt=1, **have, **limits))

    def connect(self) -> None:
        """The agent is back before its submitter is."""
        if not self.is_up:
            self.is_up = True
            self.feed(e.Connected())
            self.feed(WELCOME)

    def end(self) -> None:
        if not self.has_ended:
            self.has_ended = True
            self.feed(ended(status=768))


def name_of(stream: int) -> str:
    return ("stdin", "stdout", "stderr")[stream]


STREAM = some.sampled_from([1, 2])
SIZE = some.one_of(some.integers(1, 300), some.integers(1, 100_000))
STEPS = some.one_of(
    some.tuples(some.just("write"), STREAM, SIZE),
    some.tuples(some.just("write"), STREAM, SIZE),
    some.tuples(some.just("show"), STREAM, SIZE),
    some.tuples(some.just("deliver"), some.integers(1, 20)),
    some.sampled_from([("cut",), ("connect",), ("attach",), ("attach",), ("end",)]),
)


@settings(max_examples=300, deadline=None)
@given(some.lists(STEPS, max_size=60))
def test_a_submitter_hears_every_byte_once_in_any_interleaving(steps: list[tuple[object, ...]]) -> None:
    farm = Farm()
    for name, *arguments in steps:
        getattr(farm, str(name))(*arguments)
        for attempt in [*farm.session._running.values(), *farm.session._kept.values()]:
            assert all(len(output.kept) <= WINDOW for output in attempt.outputs)
    farm.cut()
    farm.end()
    farm.attach()
    farm.deliver(1_000)
    assert farm.heard == {stream: text(stream, 0, size) for stream, size in farm.produced.items()}
    assert farm.status == 768
