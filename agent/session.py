"""The agent's side of the protocol, without I/O: registration, lease, attempts, drain, results kept until acknowledged.

`Session.handle(event, now)` takes what happened and returns what to do. It knows PROTOCOL.md and what an attempt goes through;
it does not know sockets, processes, users or files. `now` is seconds on a clock that never goes back and counts suspend.

An attempt is here in one of two forms: running (a runner holds it), then kept (its RESULT waits for ACK). The lease runs from the
moment a HEARTBEAT was sent that a LEASE answers; when it is over, whatever runs is killed, since others may now be allowed to run
it again. Events and actions are in events.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from dwrap.agent.events import (
    Action,
    Connected,
    Disconnected,
    DrainAsked,
    Event,
    Key,
    Kind,
    Log,
    Mounted,
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
from dwrap.agent.marks import Due, Marks
from dwrap.protocol import messages
from dwrap.protocol.messages import ProtocolError, Value

ORPHAN_SECONDS: Final = 300.0
RESEND_SECONDS: Final = 5.0
STOP_SECONDS: Final = 3.0
MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024  # of one attempt; the runner keeps to it
MAX_RECENT_BYTES: Final = 4 * 1024 * 1024
STREAMS: Final = {b"stdin": 0, b"stdout": 1, b"stderr": 2}
STREAM_NAMES: Final = ("stdin", "stdout", "stderr")
_ALL_LOCAL: Final = Mounted(views=False)


@dataclass(frozen=True, slots=True)
class Registration:
    """What REGISTER says of this agent. Required fields are in PROTOCOL.md; `extra` are the optional ones."""

    name: str
    slots: int
    roots: tuple[str, ...]
    serves: str
    extra: tuple[tuple[str, Value], ...] = ()
    records: bool = True  # whether runners record what commands write, where the distributor asks for it
    mounted: Mounted = _ALL_LOCAL


@dataclass(slots=True)
class _Manifest:
    """What the command of one attempt wrote, as far as its runner has said it."""

    pieces: list[bytes] = field(default_factory=list)
    size: int = 0
    sent: int = 0  # how many pieces have gone out on this connection

    def add(self, piece: bytes) -> bool:
        """False when there was no room for it."""
        if self.size + len(piece) > MAX_MANIFEST_BYTES:
            return False
        self.pieces.append(piece)
        self.size += len(piece)
        return True

    def unsent(self, key: Key) -> list[Action]:
        """The messages that this connection has not carried yet."""
        pieces, self.sent = self.pieces[self.sent :], len(self.pieces)
        return [_send("MANIFEST", [("job", key[0]), ("attempt", key[1])], piece) for piece in pieces]


@dataclass(slots=True)
class _Running:
    due: Due | None = None  # what its runner was given to apply, and has not yet
    lost: str = ""  # why its status, when it comes, is not the command's own
    manifest: _Manifest = field(default_factory=_Manifest)


@dataclass(slots=True)
class _Kept:
    frames: tuple[bytes, ...]
    manifest: _Manifest
    made: float
    sent: float


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
    _registered_at: float = 0.0
    _quit_at: float | None = None
    _running: dict[Key, _Running] = field(default_factory=dict)
    _attempt: dict[str, Key] = field(default_factory=dict)
    _kept: dict[Key, _Kept] = field(default_factory=dict)
    _outbox: list[Send] = field(default_factory=list)
    _marks: Marks = field(default_factory=Marks)
    _recent: deque[bytes] = field(default_factory=deque)  # pieces of the newest manifests, for a distributor that has no journal
    _recent_size: int = 0
    _heartbeats: deque[float] = field(default_factory=deque)

    @property
    def running(self) -> tuple[Key, ...]:
        """The attempts that a runner holds."""
        return tuple(self._running)

    @property
    def kept(self) -> tuple[Key, ...]:
        """The attempts whose RESULT has not been acknowledged."""
        return tuple(self._kept)

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
                self.connected = True
                return [self._register(now)]
            case Disconnected():
                self.connected = self.welcomed = False
                self._heartbeats.clear()
                for manifest in self._manifests():
                    manifest.sent = 0
                return [Log("disconnected", (("running", len(self._running)),))]
            case RunnerEnded():
                return self._runner_ended(event.key, now)
            case Mounted():
                self.registration = replace(self.registration, mounted=event)
                return [self._register(now)] if self.welcomed else []
            case DrainAsked():
                return self._drain()
            case StopAsked():
                self._quit_at = now + STOP_SECONDS
                return [*self._drain(), *self._kill_all("the agent was stopped")]

    # ---- the distributor

    def _register(self, now: float) -> Send:
        self._registered_at = now
        known = self.registration
        pairs: list[tuple[str, Value]] = [("version", messages.VERSION), ("name", known.name), ("slots", known.slots)]
        pairs += [("root", root) for root in known.roots]
        pairs += [("serves", known.serves), *known.extra, *([("views", 1)] if known.mounted.views else [])]
        pairs += [*(("mount", mount) for mount in known.mounted.mounts), *(("flaw", flaw) for flaw in known.mounted.flaws)]
        pairs += [("running", f"{job}:{attempt}") for job, attempt in self._running]
        if self.draining:
            pairs.append(("draining", 1))
        return _send("REGISTER", pairs)

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
        self.lease_until = self._registered_at + event.fields.number("lease_ms") / 1000
        self.welcomed = True
        self._heartbeats.clear()
        actions: list[Action] = [Log("welcomed", (("epoch", self.epoch.decode(errors="replace")),))]
        if not self._ever_welcomed:
            self._ever_welcomed = True
            actions.append(Ready())
        actions.append(self._heartbeat((), now))  # echoes the token: only then may work come
        if before != self.epoch:
            self._marks.restart()
            actions += [_send("MANIFEST", [("offer", 1)], piece) for piece in self._recent]
        actions += self._outbox
        self._outbox.clear()
        for key, running in self._running.items():
            actions += running.manifest.unsent(key)
        return [*actions, *self._send_kept(list(self._kept), now)]

    def _lease(self, event: Received, now: float) -> list[Action]:
        if event.fields.need("epoch") != self.epoch or not self._heartbeats:
            self.unexpected += 1
            return []
        self.lease_until = max(self.lease_until, self._heartbeats.popleft() + event.fields.number("lease_ms") / 1000)
        return []

    def _assign(self, event: Received, now: float) -> list[Action]:
        key = (event.fields.name("job"), event.fields.number("attempt"))
        if key in self._running or key in self._kept:
            return []
        claims, argv, env, seen, journal = (*event.bodies, b"", b"", b"", b"", b"")[:5]
        if event.fields.need("epoch") == self.epoch and self.registration.records:  # also of a job that is not taken
            self._marks.take(journal, event.fields.flag("behind"))
        reason = self._why_not(event, key, now)
        if reason:
            return [_send("REJECT", [("job", key[0]), ("attempt", key[1]), ("reason", reason)])]
        due: Due | None = None
        start = Start(key, event.fields, claims, argv, env)
        if self.registration.records and event.fields.flag("views"):
            due = self._marks.due(event.fields.number("uid"), event.fields.need("cwd"), event.fields.number("burst", 0))
            start = replace(start, seen=seen, journal=due.journal, views=True, refresh=due.refresh)
        self._running[key] = _Running(due)
        self._attempt[key[0]] = key
        return [start]

    def _why_not(self, event: Received, key: Key, now: float) -> str:
        if event.fields.need("epoch") != self.epoch:
            return "the assignment is of another epoch"
        if len(event.bodies) < 3:
            return "the assignment lacks its command"
        if not (event.fields.get("cwd") or b"").startswith(b"/"):
            return "the assignment names no absolute directory"
        if now >= self.lease_until:  # read late, by an agent that was frozen: others may run it by now
            return "the agent's lease is over"
        if self.draining:
            return "the agent is leaving"
        if key[0] in self._attempt:
            return "an earlier attempt still lives here"
        if len(self._running) >= self.registration.slots:
            return "no slot is free"
        return ""

    def _to_runner(self, event: Received, kind: Kind) -> Tell | None:
        key = self._attempt.get(event.fields.name("job"))
        if key is None:  # it has just ended: the message crossed its RESULT
            return None
        stream = STREAMS.get(event.fields.get("stream") or b"stdin")
        if stream is None:
            raise ProtocolError("field stream names no stream")
        return Tell(key, kind, stream)

    def _input(self, event: Received, now: float) -> list[Action]:
        tell = self._to_runner(event, Kind.INPUT)
        if tell is None:
            return []
        offset, data = event.fields.number("offset"), event.bodies[0] if event.bodies else b""
        if len(data) > messages.MAX_DATA_BYTES:
            raise ProtocolError("data is too large")
        actions: list[Action] = [Tell(tell.key, Kind.INPUT, 0, offset, data)] if data else []
        if event.fields.flag("eof"):
            actions.append(Tell(tell.key, Kind.INPUT, 0, offset + len(data)))
        return actions

    def _credit(self, event: Received, now: float) -> list[Action]:
        tell = self._to_runner(event, Kind.CREDIT)
        return [Tell(tell.key, tell.kind, tell.stream, event.fields.number("limit"))] if tell else []

    def _close(self, event: Received, now: float) -> list[Action]:
        tell = self._to_runner(event, Kind.CLOSE)
        return [tell] if tell else []

    def _signal(self, event: Received, now: float) -> list[Action]:
        tell = self._to_runner(event, Kind.SIGNAL)
        return [Tell(tell.key, tell.kind, 0, event.fields.number("signal"))] if tell else []

    def _kill(self, event: Received, now: float) -> list[Action]:
        key = (event.fields.name("job"), event.fields.number("attempt"))
        if key in self._running:
            return [Tell(key, Kind.KILL)]
        return self._send_kept([key], now) if key in self._kept else []

    def _ack(self, event: Received, now: float) -> list[Action]:
        self._kept.pop((event.fields.name("job"), event.fields.number("attempt")), None)
        return self._leave_when_idle(now)

    def _drain_asked(self, event: Received, now: float) -> list[Action]:
        return [*self._drain(), *self._leave_when_idle(now)]

    def _refused(self, event: Received, now: float) -> list[Action]:
        reason = messages.one_line(event.fields.text("reason", "no reason given"))
        if self._ever_welcomed and now < self.lease_until:  # the distributor may not have noticed yet that we were away
            self.welcomed = False
            return [Log("refused", (("reason", reason),))]
        return [*self._kill_all("the distributor refused this agent"), Quit(1, f"the distributor refused this agent: {reason}")]

    # ---- runners

    def _runner_said(self, event: RunnerSaid, now: float) -> list[Action]:
        state = self._running.get(event.key)
        if state is None:
            return []
        job, attempt = event.key
        who: list[tuple[str, Value]] = [("job", job), ("attempt", attempt)]
        if event.kind == Kind.OUTPUT:
            pairs = [*who, ("stream", STREAM_NAMES[event.stream]), ("offset", event.number)]
            return self._say(_send("OUTPUT", pairs, event.payload))
        if event.kind == Kind.CREDIT:
            return self._say(_send("CREDIT", [*who, ("stream", "stdin"), ("limit", event.number)]))
        if event.kind == Kind.APPLIED:
            if state.due is not None:
                self._marks.applied(state.due)
                state.due = None
            return []
        if event.kind == Kind.MANIFEST:
            return self._wrote(event.key, state.manifest, event.payload)
        if event.kind == Kind.REJECTED and not state.lost:
            self._forget(event.key)
            reason = messages.one_line(event.payload.decode(errors="replace"))
            return [*self._say(_send("REJECT", [*who, ("reason", reason)])), Log("rejected", (("job", job), ("reason", reason)))]
        outcome = event.payload if event.kind == Kind.ENDED and not state.lost else _infrastructure(state.lost)
        return self._settle(event.key, outcome, now)

    def _runner_ended(self, key: Key, now: float) -> list[Action]:
        state = self._running.get(key)
        if state is None:
            return []
        log = Log("runner_lost", (("job", key[0]), ("attempt", key[1])))
        return [log, *self._settle(key, _infrastructure(state.lost or "the runner of the job died"), now)]

    def _say(self, send: Send) -> list[Action]:
        """Now, or after the next WELCOME, in order. What waits is bounded by the jobs' credit."""
        if self.welcomed:
            return [send]
        self._outbox.append(send)
        return []

    def _manifests(self) -> list[_Manifest]:
        return [running.manifest for running in self._running.values()] + [kept.manifest for kept in self._kept.values()]

    def _wrote(self, key: Key, manifest: _Manifest, piece: bytes) -> list[Action]:
        self._recent.append(piece)
        self._recent_size += len(piece)
        while self._recent_size > MAX_RECENT_BYTES:
            self._recent_size -= len(self._recent.popleft())
        if not manifest.add(piece):
            return [Log("manifest_cut", (("job", key[0]), ("attempt", key[1])))]
        return manifest.unsent(key) if self.welcomed else []

    def _settle(self, key: Key, outcome: bytes, now: float) -> list[Action]:
        manifest = self._running[key].manifest
        self._forget(key)
        fields = messages.encode_fields([("job", key[0]), ("attempt", key[1])]) + outcome
        self._kept[key] = _Kept((b"RESULT", fields), manifest, now, now)
        return self._send_kept([key], now) if self.welcomed else []

    def _send_kept(self, keys: list[Key], now: float) -> list[Action]:
        """Results, each after what is left of its manifest."""
        actions: list[Action] = []
        for key in keys:
            kept = self._kept[key]
            kept.sent = now
            actions += [*kept.manifest.unsent(key), Send(kept.frames)]
        return actions

    def _forget(self, key: Key) -> None:
        ended = self._running.pop(key)
        if ended.due is not None and not ended.lost:
            self._marks.failed(ended.due)
        del self._attempt[key[0]]

    def _kill_all(self, why: str) -> list[Action]:
        for state in self._running.values():
            state.lost = state.lost or why
        return [Tell(key, Kind.KILL) for key in self._running]

    # ---- time

    def _heartbeat(self, load: tuple[tuple[str, int], ...], now: float) -> Send:
        self._heartbeats.append(now)
        return _send("HEARTBEAT", [("token", self.token), *load])

    def _tick(self, event: Tick, now: float) -> list[Action]:
        actions: list[Action] = []
        if self.welcomed:
            actions.append(self._heartbeat(event.load, now))
            actions += self._send_again(now)
        elif self.connected and now - self._registered_at >= 1:
            actions.append(self._register(now))
        if self._running and now >= self.lease_until:
            actions.append(Log("lease_over", (("running", len(self._running)),)))
            actions += self._kill_all("the agent's lease was over: it had not heard from the distributor")
        for key in [key for key, kept in self._kept.items() if now - kept.made > ORPHAN_SECONDS]:
            del self._kept[key]
            actions.append(Log("result_dropped", (("job", key[0]), ("attempt", key[1]))))
        return [*actions, *self._leave_when_idle(now)]

    def _send_again(self, now: float) -> list[Action]:
        return self._send_kept([key for key, kept in self._kept.items() if now - kept.sent >= RESEND_SECONDS], now)

    def _drain(self) -> list[Action]:
        if self.draining:
            return []
        self.draining = True
        leaving = [_send("LEAVING")] if self.welcomed else []
        return [*leaving, Log("draining", (("running", len(self._running)),))]

    def _leave_when_idle(self, now: float) -> list[Action]:
        if self._quit_at is not None and now >= self._quit_at:
            return [Quit(0)]
        if self.draining and not self._running and not self._kept:
            return [Quit(0)]
        return []


def _send(verb: str, pairs: list[tuple[str, Value]] | None = None, *bodies: bytes) -> Send:
    return Send(tuple(messages.encode(verb, pairs or (), *bodies)))


def _infrastructure(reason: str) -> bytes:
    return messages.encode_fields([("error", "infrastructure"), ("reason", reason)])


_HANDLERS: Final[dict[str, Callable[[Session, Received, float], list[Action]]]] = {
    "WELCOME": Session._welcome,
    "LEASE": Session._lease,
    "ASSIGN": Session._assign,
    "INPUT": Session._input,
    "CREDIT": Session._credit,
    "CLOSE": Session._close,
    "SIGNAL": Session._signal,
    "KILL": Session._kill,
    "ACK": Session._ack,
    "DRAIN": Session._drain_asked,
    "REFUSED": Session._refused,
}
