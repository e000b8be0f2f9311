"""The agent's side of the protocol, without I/O: registration, lease, attempts, drain, results kept until acknowledged.

`Session.handle(event, now)` takes what happened and returns what to do. It knows PROTOCOL.md and what an attempt goes through;
it does not know sockets, processes, users or files. `now` is seconds on a clock that never goes back and counts suspend.

An attempt is here in one of two forms: running (a runner holds it), then kept (its RESULT waits for ACK); attempt.py has what is
remembered of it. REGISTER names both. On a connection an attempt is spoken of once it was assigned, attached or killed there: what
it says before is remembered only. The lease runs from the sending of the REGISTER or HEARTBEAT that was answered; the runners are
told and end their jobs when it is over, since others may then be allowed to run them again. Events and actions are in events.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from dwrap.agent.attempt import ENDED_BY_AGENT, STREAMS, Attempt, failure, of_former
from dwrap.agent.events import (
    Action,
    Connected,
    Disconnected,
    DrainAsked,
    Event,
    Forget,
    Installed,
    Key,
    Kind,
    Lease,
    Log,
    Mounted,
    News,
    Quit,
    Ready,
    Received,
    RunnerEnded,
    RunnerSaid,
    Send,
    Start,
    StopAsked,
    Tell,
    Tick,
)
from dwrap.agent.marks import Marks
from dwrap.agent.registration import Ancestry, Registration, register
from dwrap.protocol import messages
from dwrap.protocol.messages import Fields, ProtocolError, Value

ORPHAN_SECONDS: Final = 600.0  # longer than any distributor counts on an agent that it does not hear (PROTOCOL.md: 10 + 300)
RESEND_SECONDS: Final = 5.0
STOP_SECONDS: Final = 3.0
REFUSED_SECONDS: Final = 5.0  # a name is free NAME_TAKEOVER_SECONDS (2.5) after its last sign of life
UNFETCHED_SECONDS: Final = 20.0  # a draining agent waits no longer for its last results to be fetched; a distributor keeps them less long
MAX_RECENT_BYTES: Final = 4 * 1024 * 1024
MAX_ATTEMPTS: Final = 2_000  # running and kept: REGISTER names them all, in one frame
_STREAM_NUMBERS: Final = {name.encode(): number for number, name in enumerate(STREAMS)}


@dataclass(slots=True)
class Session:
    """One agent towards one distributor."""

    registration: Registration
    epoch: bytes = b""
    token: bytes = b""
    connected: bool = False
    welcomed: bool = False
    draining: bool = False
    lease_until: float = 0.0
    unexpected: int = 0
    _ever_welcomed: bool = False
    _connection: int = 0  # how many there have been
    _unheard_since: float = 0.0
    _quit_at: float | None = None
    _refused_since: float | None = None
    _idle_since: float | None = None  # draining, and nothing runs any more
    _running: dict[Key, Attempt] = field(default_factory=dict)
    _attempt: dict[str, Attempt] = field(default_factory=dict)  # of each job that runs
    _kept: dict[Key, Attempt] = field(default_factory=dict)
    _ancestry: Ancestry = field(default_factory=Ancestry)
    _marks: Marks = field(default_factory=Marks)
    _recent: deque[bytes] = field(default_factory=deque)  # pieces of the newest manifests, for a distributor that has no journal
    _recent_size: int = 0
    _registered: deque[float] = field(default_factory=deque)  # when what was not answered on this connection was sent
    _heartbeats: deque[float] = field(default_factory=deque)

    @property
    def running(self) -> tuple[Key, ...]:
        """The attempts that a runner holds."""
        return tuple(self._running)

    @property
    def kept(self) -> tuple[Key, ...]:
        """The attempts whose RESULT has not been acknowledged."""
        return tuple(self._kept)

    def is_serving(self, now: float) -> bool:
        """Whether a distributor took us in and counts on us still, if only for what a drain leaves to be done."""
        return self.welcomed and now < self.lease_until

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event. Messages that break the protocol are counted and dropped."""
        match event:
            case RunnerSaid():
                return self._runner_said(event, now)
            case Received():
                return self._received(event, now)
            case Tick():
                return self._tick(event, now)
            case Connected():
                self.connected, self.welcomed = True, False
                self._connection += 1
                self._registered.clear()
                self._heartbeats.clear()
                return [self._register(now)]
            case Disconnected():
                self._unheard_since = now if self.welcomed else self._unheard_since
                self.connected = self.welcomed = False
                return [Log("disconnected", (("running", len(self._running)),))]
            case RunnerEnded():
                return self._runner_ended(event.key, now)
            case Mounted():
                self.registration = replace(self.registration, mounted=event)
                return self._register_again(now)
            case Installed():
                self.registration = replace(self.registration, installed=event)
                return self._register_again(now)
            case News():
                return self._news(event, now)
            case DrainAsked():
                return self._drain()
            case StopAsked():
                self._quit_at = now + STOP_SECONDS
                return [*self._drain(), *self._end_all()]

    # ---- the distributor

    def _register(self, now: float) -> Send:
        self._registered.append(now)
        return register(self.registration, self._ancestry, self._running.values(), self._kept.values(), self.draining)

    def _register_again(self, now: float) -> list[Action]:
        return [self._register(now)] if self.connected else []

    def _news(self, event: News, now: float) -> list[Action]:
        if not self._ancestry.learn(event):
            return []
        log = Log("former", (("ended", len(event.former)), ("results", len(event.results)), ("leftover", event.leftover)))
        actions: list[Action] = [log]
        for key, uid, outcome, written in event.results:
            if key not in self._running and key not in self._kept:
                actions += self._keep(of_former(key, uid, outcome, written), now)
        return [*actions, *self._register_again(now)]

    def _received(self, event: Received, now: float) -> list[Action]:
        handler = _HANDLERS.get(event.verb)
        if handler is None:
            self.unexpected += 1
            return []
        try:
            return handler(self, event, now)
        except ProtocolError as error:
            self.unexpected += 1
            return [Log("malformed", (("verb", event.verb), ("cause", str(error))))]

    def _welcome(self, event: Received, now: float) -> list[Action]:
        before, self.epoch, self.token = self.epoch, event.fields.need("epoch"), event.fields.need("token")
        lease = event.fields.number("lease_ms")
        self.welcomed, self._refused_since = True, None
        actions: list[Action] = [Log("welcomed", (("epoch", self.epoch.decode(errors="replace")),))]
        if self._registered:
            actions += self._renew(self._registered.popleft(), lease)
        if not self._ever_welcomed:
            self._ever_welcomed = True
            actions.append(Ready())
        actions.append(self._heartbeat((), now))  # echoes the token: only then may work come
        for attempts in (self._running, self._kept):
            for attempt in attempts.values():
                actions += attempt.names_again()
        if before != self.epoch:
            self._marks.restart()
            actions += [_send("MANIFEST", [("offer", 1)], piece) for piece in self._recent]
        return actions

    def _lease(self, event: Received, now: float) -> list[Action]:
        if event.fields.need("epoch") != self.epoch or not self._heartbeats:
            self.unexpected += 1
            return []
        return self._renew(self._heartbeats.popleft(), event.fields.number("lease_ms"))

    def _renew(self, asked: float, lease_ms: int) -> list[Action]:
        self.lease_until = max(self.lease_until, asked + lease_ms / 1000)
        return [Lease(self.lease_until)]

    def _assign(self, event: Received, now: float) -> list[Action]:
        key = _key(event.fields)
        if key in self._running or key in self._kept:
            return []
        claims, argv, env, seen, journal = (*event.bodies, b"", b"", b"", b"", b"")[:5]
        if event.fields.need("epoch") == self.epoch and self.registration.records:  # also of a job that is not taken
            self._marks.take(journal, event.fields.flag("behind"))
        reason = self._why_not(event, key, now)
        if reason:
            return [_send("REJECT", [("job", key[0]), ("attempt", key[1]), ("reason", reason)])]
        attempt = Attempt(key, event.fields.number("uid"), self._connection)
        start = Start(key, event.fields, claims, argv, env)
        if self.registration.records and event.fields.flag("views"):
            due = attempt.due = self._marks.due(attempt.uid, event.fields.need("cwd"), event.fields.number("burst", 0))
            start = replace(start, seen=seen, journal=due.journal, views=True, refresh=due.refresh)
        self._running[key] = self._attempt[key[0]] = attempt
        return [start]

    def _why_not(self, event: Received, key: Key, now: float) -> str:
        if event.fields.need("epoch") != self.epoch:
            return "the assignment is of another epoch"
        if len(event.bodies) < 3:
            return "the assignment lacks its command"
        if not (event.fields.get("cwd") or b"").startswith(b"/"):
            return "the assignment names no absolute directory"
        if not (event.fields.get("uid") or b"").isdigit():
            return "the assignment names no user"
        if now >= self.lease_until:  # read late, by an agent that was frozen: others may run it by now
            return "the agent's lease is over"
        if self.draining:
            return "the agent is leaving"
        if key[0] in self._attempt:
            return "an earlier attempt still lives here"
        if len(self._running) >= self.registration.slots:
            return "no slot is free"
        if len(self._running) + len(self._kept) >= MAX_ATTEMPTS:
            return "too many results of this agent wait to be acknowledged"
        return ""

    def _attach(self, event: Received, now: float) -> list[Action]:
        key = _key(event.fields)
        have = [event.fields.number(name) for name in STREAMS[1:]]
        limits = [event.fields.number(f"{name}_limit") for name in STREAMS[1:]]
        attempt = self._running.get(key) or self._kept.get(key)
        if attempt is None:  # nothing of it lives here: whoever waits for it need not
            attempt = Attempt(key, 0, outcome=failure("lost", "the agent knows nothing of it any more"))
        attempt.join(self._connection)
        attempt.sent_at = now
        return attempt.attach(have, limits)

    def _input(self, event: Received, now: float) -> list[Action]:
        attempt = self._attempt.get(event.fields.name("job"))
        if attempt is None:  # it has just ended: the message crossed its RESULT
            return []
        offset, data = event.fields.number("offset"), event.bodies[0] if event.bodies else b""
        if len(data) > messages.MAX_DATA_BYTES:
            raise ProtocolError("data is too large")
        actions: list[Action] = [Tell(attempt.key, Kind.INPUT, 0, offset, data)] if attempt.stdin.take(offset, len(data)) else []
        end = offset + len(data)
        if event.fields.flag("eof") and end == attempt.stdin.received:
            actions.append(Tell(attempt.key, Kind.INPUT, 0, end))
        return actions

    def _credit(self, event: Received, now: float) -> list[Action]:
        attempt, stream, limit = self._attempt.get(event.fields.name("job")), _stream(event.fields), event.fields.number("limit")
        if stream == 0:
            raise ProtocolError("credit for stdin is given to the submitter, not by it")
        if attempt is None:
            return []
        attempt.outputs[stream - 1].credit(limit)
        return [Tell(attempt.key, Kind.CREDIT, stream, limit)]

    def _close(self, event: Received, now: float) -> list[Action]:
        attempt, stream = self._attempt.get(event.fields.name("job")), _stream(event.fields)
        return [Tell(attempt.key, Kind.CLOSE, stream)] if attempt else []

    def _signal(self, event: Received, now: float) -> list[Action]:
        attempt, number = self._attempt.get(event.fields.name("job")), event.fields.number("signal")
        seq = event.fields.number("seq", 0)  # submitters of earlier releases do not count: theirs are never repeated
        if attempt is None or 0 < seq <= attempt.signals:
            return []
        attempt.signals = max(attempt.signals, seq)
        return [Tell(attempt.key, Kind.SIGNAL, 0, number)]

    def _noted(self, event: Received, now: float) -> list[Action]:
        key, seq = _key(event.fields), event.fields.number("seq")
        attempt = self._running.get(key)
        if attempt is None:
            return []
        attempt.made.noted = max(attempt.made.noted, seq)
        return [Tell(key, Kind.NOTED, 0, seq)]

    def _kill(self, event: Received, now: float) -> list[Action]:
        key = _key(event.fields)
        attempt = self._running.get(key) or self._kept.get(key)
        if attempt is None:  # its assignment never came, or could not be read: nobody need wait for its end
            return [_send("REJECT", [("job", key[0]), ("attempt", key[1]), ("reason", "nothing of it is here")])]
        attempt.join(self._connection)
        return [Tell(key, Kind.KILL, number=ENDED_BY_AGENT)] if attempt.outcome is None else self._send_result(attempt, now)

    def _ack(self, event: Received, now: float) -> list[Action]:
        known = self._kept.pop(_key(event.fields), None)
        forget: list[Action] = [Forget(known.key)] if known else []
        return [*forget, *self._leave_when_idle(now)]

    def _drain_asked(self, event: Received, now: float) -> list[Action]:
        return [*self._drain(), *self._leave_when_idle(now)]

    def _refused(self, event: Received, now: float) -> list[Action]:
        reason = messages.one_line(event.fields.text("reason", "no reason given"))
        if self._registered:
            self._registered.popleft()
        # What it says anew was refused, what it said first stands; or the distributor may not have noticed yet that we were away;
        # or something runs or waits here, which is worth asking again.
        if self.welcomed or (self._ever_welcomed and (now < self.lease_until or self._running or self._kept)):
            return [Log("refused", (("reason", reason),))]
        # At first it may be that the end of the incarnation before this one has not been noticed.
        self._refused_since = now if self._refused_since is None else self._refused_since
        if event.fields.flag("again") and now - self._refused_since < REFUSED_SECONDS:
            return [Log("refused", (("reason", reason),))]
        return [Quit(1, f"the distributor refused this agent: {reason}")]

    # ---- runners

    def _runner_said(self, event: RunnerSaid, now: float) -> list[Action]:
        attempt = self._running.get(event.key)
        if attempt is None:
            return []
        if event.kind == Kind.OUTPUT:
            attempt.outputs[event.stream - 1].add(event.payload)
            return [attempt.said(event.stream, event.number, event.payload)] if self._speaks_of(attempt) else []
        if event.kind == Kind.CREDIT:
            attempt.stdin.limit = event.number
            return [attempt.message("CREDIT", (("stream", "stdin"), ("limit", event.number)))] if self._speaks_of(attempt) else []
        if event.kind == Kind.APPLIED:
            if attempt.due is not None:
                self._marks.applied(attempt.due)
                attempt.due = None
            return []
        if event.kind == Kind.MADE:
            fields = attempt.made.add(event.number, event.payload, event.stream == 1)
            return [attempt.names(event.number, fields, event.stream == 1)] if self.welcomed else []
        if event.kind == Kind.MANIFEST:
            return self._wrote(attempt, event.payload)
        if event.kind == Kind.REJECTED:
            return self._rejected(attempt, event, now)
        return self._settle(attempt, event.payload, now) if event.kind == Kind.ENDED else []

    def _rejected(self, attempt: Attempt, event: RunnerSaid, now: float) -> list[Action]:
        reason = messages.one_line(event.payload.decode(errors="replace"))
        why = (("reason", reason),) if event.number else ()  # what is no fault of this agent is the submitter's to know
        log = Log("rejected", (_named(attempt.key), *why))
        if self.connected and not self.welcomed:  # REGISTER has just named it: it will be asked for
            return [log, *self._settle(attempt, failure("lost", reason, [("repeat", 1)]), now)]
        self._end(attempt)
        if not self.welcomed:  # the next REGISTER does not name it: it was never started
            return [log, Forget(attempt.key)]
        facts = (("reason", reason), *((("fault", 1),) if event.number else ()))
        return [attempt.message("REJECT", facts), log, Forget(attempt.key)]

    def _runner_ended(self, key: Key, now: float) -> list[Action]:
        attempt = self._running.get(key)
        if attempt is None:
            return []
        log = Log("runner_lost", (_named(key), ("attempt", key[1])))
        return [log, *self._settle(attempt, failure("infrastructure", "the runner of the job died"), now)]

    def _speaks_of(self, attempt: Attempt) -> bool:
        return self.welcomed and attempt.connection == self._connection

    def _wrote(self, attempt: Attempt, piece: bytes) -> list[Action]:
        self._recent.append(piece)
        self._recent_size += len(piece)
        while self._recent_size > MAX_RECENT_BYTES:
            self._recent_size -= len(self._recent.popleft())
        if not attempt.manifest.add(piece):
            return [Log("manifest_cut", (_named(attempt.key), ("attempt", attempt.key[1])))]
        return [*attempt.written()] if self._speaks_of(attempt) else []

    def _settle(self, attempt: Attempt, outcome: bytes, now: float) -> list[Action]:
        self._end(attempt)
        attempt.outcome = outcome
        dropped = self._keep(attempt, now)
        return [*dropped, *(self._send_result(attempt, now) if self._speaks_of(attempt) else ())]

    def _keep(self, attempt: Attempt, now: float) -> list[Action]:
        attempt.ended_at = now
        self._kept[attempt.key] = attempt
        too_many = len(self._running) + len(self._kept) > MAX_ATTEMPTS  # only what former incarnations left can be
        return [self._drop(next(iter(self._kept)))] if too_many else []

    def _drop(self, key: Key) -> Log:
        del self._kept[key]
        return Log("result_dropped", (_named(key), ("attempt", key[1])))

    def _send_result(self, attempt: Attempt, now: float) -> list[Action]:
        attempt.sent_at = now
        return [*attempt.ended()]

    def _end(self, attempt: Attempt) -> None:
        del self._running[attempt.key], self._attempt[attempt.key[0]]
        if attempt.due is not None:
            self._marks.failed(attempt.due)

    def _end_all(self) -> list[Action]:
        return [Tell(key, Kind.KILL, number=ENDED_BY_AGENT) for key in self._running]

    # ---- time

    def _heartbeat(self, load: tuple[tuple[str, int], ...], now: float) -> Send:
        self._heartbeats.append(now)
        return _send("HEARTBEAT", [("token", self.token), *load])

    def _tick(self, event: Tick, now: float) -> list[Action]:
        actions: list[Action] = []
        if self.welcomed:
            actions.append(self._heartbeat(event.load, now))
            for attempt in self._kept.values():
                if attempt.connection == self._connection and now - attempt.sent_at >= RESEND_SECONDS:
                    actions += self._send_result(attempt, now)
            return [*actions, *self._leave_when_idle(now)]
        if self.connected and not self._registered:  # it was refused
            actions.append(self._register(now))
        late = [key for key, kept in self._kept.items() if now - max(kept.ended_at, self._unheard_since) > ORPHAN_SECONDS]
        return [*actions, *map(self._drop, late), *self._leave_when_idle(now)]

    def _drain(self) -> list[Action]:
        if self.draining:
            return []
        self.draining = True
        leaving = [_send("LEAVING")] if self.welcomed else []
        return [*leaving, Log("draining", (("running", len(self._running)),))]

    def _leave_when_idle(self, now: float) -> list[Action]:
        if self._quit_at is not None and now >= self._quit_at:
            return [Quit(0)]
        if not self.draining or self._running:
            return []
        if self._idle_since is None:
            self._idle_since = now
        is_over = not self._kept or now - self._idle_since >= UNFETCHED_SECONDS  # the next incarnation finds them in their records
        return [Quit(0)] if is_over else []


def _key(fields: Fields) -> Key:
    return fields.name("job"), fields.number("attempt")


def _named(key: Key) -> tuple[str, str]:
    """A job as the log names it: a whole id would be a claim to it."""
    return "job", key[0][:8]


def _stream(fields: Fields) -> int:
    stream = _STREAM_NUMBERS.get(fields.need("stream"))
    if stream is None:
        raise ProtocolError("field stream names no stream")
    return stream


def _send(verb: str, pairs: list[tuple[str, Value]] | None = None, *bodies: bytes) -> Send:
    return Send(tuple(messages.encode(verb, pairs or (), *bodies)))


_HANDLERS: Final[dict[str, Callable[[Session, Received, float], list[Action]]]] = {
    "WELCOME": Session._welcome,
    "LEASE": Session._lease,
    "ASSIGN": Session._assign,
    "ATTACH": Session._attach,
    "INPUT": Session._input,
    "CREDIT": Session._credit,
    "CLOSE": Session._close,
    "SIGNAL": Session._signal,
    "NOTED": Session._noted,
    "KILL": Session._kill,
    "ACK": Session._ack,
    "DRAIN": Session._drain_asked,
    "REFUSED": Session._refused,
}
