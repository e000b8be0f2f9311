"""The broker: the distributor's one socket loop. Messages in, the scheduler's actions out, streams passed through.

The only room that reads and writes the ROUTER (listen.py makes it). It parses a message, checks that its sender may say it, turns it
into an event for the scheduler and sends what the actions say; QUERY goes to questions.py. OUTPUT, INPUT, CREDIT, CLOSE and SIGNAL go
from one side to the other as they are. Everything happens in one thread; others (HTTP) ask through `ask`. Knows sockets and who may
speak of which job. Does not know how jobs are scheduled.

Order matters where descriptors are reused: a batch of messages is received first, then the monitor's events that led up
to it; messages of known connections are handled, then the events applied, then the messages of those that were unknown.
Where an event is an end, what was said before it is received first, for a moment at most.
A batch without unknown ones leaves the events for the next turn of the loop.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any, Final

import zmq
import zmq.backend

from dwrap.distributor import events as e
from dwrap.distributor import wire
from dwrap.distributor.connections import Connection, Connections
from dwrap.distributor.descriptors import evict, is_silent, samples
from dwrap.distributor.events import JobState
from dwrap.distributor.identity import of_message, property_of
from dwrap.distributor.job import Job
from dwrap.distributor.keyring import Keyring
from dwrap.distributor.ledger import Ledger
from dwrap.distributor.listen import Listener
from dwrap.distributor.questions import Doors, Questions
from dwrap.distributor.reports import Reports
from dwrap.distributor.scheduler import Scheduler
from dwrap.distributor.watch import MAX_MESSAGE_BYTES, Watch
from dwrap.protocol.messages import MAX_FRAMES, Fields, FrameLostError, ProtocolError, parse

_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_ACCEPTED: Final = int(zmq.EVENT_ACCEPTED)
_DISCONNECTED: Final = int(zmq.EVENT_DISCONNECTED)
_EVENT: Final = struct.Struct("=hi")
_BATCH: Final = 256
_BATCH_BYTES: Final = 1024 * 1024
_SMALL_BYTES: Final = 512 * 1024  # no message but GO is larger
_BATCHES_SECONDS: Final = 0.1
_ASK_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 1.0
_WATCH_SECONDS: Final = 0.1  # also the longest that the loop sleeps
_WATCH_AGAIN_SECONDS: Final = 0.04  # while it grows
_PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")

log = logging.getLogger("dwrap.distributor")
Batch = list[tuple[bytes, zmq.Frame, list[bytes]]]  # routing id, the first frame with its properties, all frames
"""Messages: the routing id, with the connection's properties, and the frames."""


class Broker:
    """One distributor. `run` returns after `stop`."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoints: Sequence[str],
        scheduler: Scheduler,
        reports: Reports,
        secret: Callable[[], str],
        insecure: bool = False,
        ledger: Ledger | None = None,
        keyring: Keyring | None = None,
        most_connections: int = 65_536,
        each_look: Callable[[], None] = lambda: None,
    ) -> None:
        """Binds the endpoints. Raises zmq.ZMQError when one cannot be had, KeysError when the installed libzmq will not do."""
        self._scheduler = scheduler
        self._reports = reports
        self._secret = secret
        self._insecure = insecure
        self._ledger = ledger
        self._links = Connections()
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._stopping = False
        self._keyring = keyring
        self._most_of_one = most_connections // 2
        self._most_silent = most_connections // 4
        self._each_look = each_look
        self._watch = Watch()
        self._refused: list[e.Peer] = []  # since the last look around
        self._leaving: list[e.Peer] = []  # since the one before
        self._look_at = self._watch_at = 0.0
        self._early: Batch = []  # came before the events that tell of their senders
        self._listener = Listener(context, keyring)
        self._router = self._listener.router
        self._send_frame = partial(zmq.backend.Socket.send, self._router)  # Socket.send without the sugar, a third of the cost
        self._monitor = self._router.get_monitor_socket(_ACCEPTED | _DISCONNECTED)
        self.addresses = self._listener.bind(endpoints)
        self._poller = zmq.Poller()
        for source in (self._router, self._monitor, self._listener.zap, self._wake_read):
            self._poller.register(source, zmq.POLLIN)
        doors = Doors(self._happened, self._send, self._refuse, self._found_defect)
        self._questions = Questions(scheduler, reports, self._links, keyring, secret, self.addresses, doors)
        self._handlers = self._make_handlers()
        self._deeds: dict[type, Callable[[Any], None]] = {
            **dict.fromkeys(wire.MESSAGES, self._tell),
            e.Record: self._record,
            e.Unexpected: lambda action: reports.unexpected(action.what),
            e.Disconnect: lambda action: self._evict(action.peer),
        }

    # ---- from outside ----

    def run(self) -> None:
        """Serves until `stop`."""
        has_more = False
        while not self._stopping:
            due = self._scheduler.next_deadline()
            wait = max(0.0, min(self._watch_at, due if due is not None else self._watch_at) - time.monotonic())
            ready = dict(self._poller.poll(0 if has_more else round(wait * 1_000) + 1))
            self._listener.answer_zap()
            if self._wake_read.fileno() in ready:
                self._answer_asks()
            has_more = self._take_batches(self._monitor in ready)
            has_more |= self._questions.answer()
            if due is not None and time.monotonic() >= due:
                self._happened(e.Tick())
            self._look_around(time.monotonic())
            if self._ledger is not None:
                self._ledger.lives(time.monotonic())
        log.info("stopped")

    def stop(self) -> None:
        """Ends `run` soon. May be called from a signal handler or another thread."""
        self._stopping = True
        self._wake()

    def close(self) -> None:
        """Closes the sockets, and removes the files of Unix ones."""
        self._router.disable_monitor()
        self._monitor.close(0)
        self._listener.close()
        self._wake_read.close()
        self._wake_write.close()

    def ask(self, what: Callable[[], Any]) -> Any:
        """Runs something in the broker's thread and returns its result. Raises TimeoutError when the broker is too busy."""
        answer: Future[Any] = Future()
        self._asked.put((what, answer))
        self._wake()
        try:
            return answer.result(_ASK_SECONDS)
        except FutureTimeout:
            raise TimeoutError from None

    # ---- the loop's parts ----

    def _wake(self) -> None:
        try:
            self._wake_write.send(b"!")
        except BlockingIOError:
            return  # it has been woken often enough

    def _answer_asks(self) -> None:
        while True:
            try:
                if not self._wake_read.recv(4_096):
                    break
            except BlockingIOError:
                break
        while not self._asked.empty():
            what, answer = self._asked.get()
            try:
                answer.set_result(what())
            except Exception as error:
                answer.set_exception(error)

    def _take_batches(self, has_events: bool) -> bool:
        """A few of them, so that nobody keeps the loop from everything else. Returns whether there are more."""
        until = time.monotonic() + _BATCHES_SECONDS
        has_more = True
        while has_more and time.monotonic() < until:
            has_more = self._take_batch(has_events)
        return has_more

    def _take_batch(self, has_events: bool) -> bool:
        """Handles some messages, and the monitor's events. Returns whether there are more."""
        late, has_more = self._receive()
        batch = [*self._early, *late]
        self._early = []
        has_strangers = any(rid not in self._links.by_rid for rid, _, _ in batch)
        happenings = self._receive_events() if has_strangers or has_events else ()
        strangers = self._dispatch_known(batch)
        if any(kind == _DISCONNECTED for kind, _ in happenings):
            self._take_last_words()
        for kind, fd in happenings:
            self._watch.forget(fd)
            self._lost(self._links.opened(fd) if kind == _ACCEPTED else self._links.closed(fd))
        self._bound_silent()
        for rid, first, frames in strangers:
            link = self._links.by_rid.get(rid) or self._meet(rid, first)
            if link is not None:
                self._dispatch(link, frames)
        return has_more or bool(self._early)

    def _dispatch_known(self, batch: Batch) -> Batch:
        """Handles the messages of connections that have spoken before. Returns the others."""
        strangers: Batch = []
        for rid, first, frames in batch:
            link = self._links.by_rid.get(rid)
            if link is None:
                strangers.append((rid, first, frames))
            else:
                self._dispatch(link, frames)
        return strangers

    def _take_last_words(self) -> None:
        """What was said before the ends that have just been read of. Strangers among them wait for the events of their own beginnings.

        Not for ever: there are those who never stop talking. What then is not read does not count, as if it had been lost on its way.
        """
        until = time.monotonic() + _BATCHES_SECONDS
        has_more = True
        while has_more and time.monotonic() < until:
            late, has_more = self._receive()
            self._early += self._dispatch_known(late)

    def _receive(self) -> tuple[Batch, bool]:
        """Up to _BATCH messages, and about _BATCH_BYTES of them; and whether there may be more."""
        receive = self._router.recv
        batch: Batch = []
        size = 0
        try:
            while len(batch) < _BATCH and size < _BATCH_BYTES:
                rid = receive(_NOBLOCK)
                first = frame = receive(_NOBLOCK, copy=False)  # libzmq 4.3.4 leaves the properties out of the id's own frame
                frames = [frame.bytes]
                while frame.more:
                    frame = receive(_NOBLOCK, copy=False)
                    frames.append(frame.bytes)
                batch.append((rid, first, frames))
                size += sum(map(len, frames))
        except zmq.Again:
            return batch, False
        return batch, True

    def _receive_events(self) -> list[tuple[int, int]]:
        receive = self._monitor.recv
        happenings: list[tuple[int, int]] = []
        try:
            while True:
                happenings.append(_EVENT.unpack(receive(_NOBLOCK)))
                receive(_NOBLOCK)  # the endpoint
        except zmq.Again:
            return happenings

    def _meet(self, rid: bytes, first: zmq.Frame) -> Connection | None:
        """The first message of a connection: who is it? None when it has gone already, or may not stay."""
        try:
            fd = int(first.get(zmq.SRCFD))
        except zmq.ZMQError:  # a message without properties: its sender speaks ZMTP 1 or 2, or something else altogether
            self._reports.unexpected("no_zmtp_3")
            return None
        if not self._links.is_open(fd) or self._links.is_overtaken(fd, rid):
            return None
        who = of_message(first, fd, self._keyring)
        link, mistaken = self._links.bind(fd, rid, who)
        self._lost(mistaken)
        refusal = ""
        if property_of(first, "Socket-Type") != "DEALER":
            refusal = "only DEALER sockets are served"
        elif not rid.startswith(b"\0"):
            refusal = "the peer chose a routing id; leave it to the distributor"
        elif who.is_unknown and not (self._insecure and who.why):
            refusal = f"nobody can tell who is at the other end: {who.why}"
        elif self._links.owned_by(who.owner) > self._most_of_one:
            refusal = f"{who.owner} has {self._most_of_one} connections already"
        if refusal:
            link.is_refused = True
            self._refused.append(link.peer)
            self._refuse(link, refusal)
            return None
        if who.is_unknown:
            log.warning("peer without identity let in, as --insecure says: %s", who.why)
        return link

    def _bound_silent(self) -> None:
        """Connections that say nothing must not use up the descriptors; whoever means it has spoken within milliseconds."""
        while (oldest := self._links.silent_beyond(self._most_silent)) is not None:
            evict(oldest)
            self._lost(self._links.closed(oldest))

    def _lost(self, link: Connection | None) -> None:
        if link is not None:
            self._happened(e.Disconnected(link.peer))

    # ---- messages ----

    def _dispatch(self, link: Connection, frames: list[bytes]) -> None:
        fields: Fields | None = None
        size = link.heard(frames)
        if link.is_refused:
            return evict(link.fd)
        if size > _SMALL_BYTES and (frames[0] != b"GO" or size > MAX_MESSAGE_BYTES):
            return self._end_unbounded(link, "it sends a message that is larger than any")
        try:
            if len(frames) > MAX_FRAMES:
                evict(link.fd)
            verb, fields, bodies = parse(frames)
            handler = self._handlers.get(verb)
            if handler is None:
                return self._reports.unexpected("unknown_verb")
            handler(link, fields, bodies, frames)
        except FrameLostError as error:  # what it has said is said again on its next connection
            self._reports.unexpected("malformed")
            log.warning("a connection of %s is ended: %s", link.who.owner, error)
            evict(link.fd)
        except ProtocolError as error:
            self._reports.unexpected("malformed")
            self._refuse(link, str(error), _job_named_in(fields))
            link.is_refused = size > _SMALL_BYTES  # more such is not looked at
        except Exception:
            self._found_defect(link)

    def _found_defect(self, link: Connection) -> None:
        """Of ours, while a message was handled: whoever found it must not make it everybody's."""
        self._reports.unexpected("defect")
        log.exception("a connection of %s is ended: its message could not be handled", link.who.owner)
        evict(link.fd)

    def _make_handlers(self) -> dict[str, Callable[[Connection, Fields, Sequence[bytes], list[bytes]], None]]:
        happened = self._happened
        return {
            "SUBMIT": lambda link, fields, _, __: happened(wire.submit(link.peer, *_submitter(link, fields), fields)),
            "GO": self._go,
            "ATTACH": self._attach,
            "MADE": lambda link, fields, _, __: happened(wire.made(link.peer, fields)),
            "ACK": lambda link, fields, _, __: happened(e.Acknowledged(link.peer, fields.name("job"))),
            "OUTPUT": self._to_submitter,
            "CREDIT": self._to_either,
            "INPUT": self._to_agent,
            "CLOSE": self._to_agent,
            "SIGNAL": self._to_agent,
            "QUERY": self._questions.ask,
            "REGISTER": lambda link, fields, _, __: happened(wire.register(link.peer, link.who.serves_as(), fields, link.who.owner)),
            "HEARTBEAT": self._heartbeat,
            "LEAVING": lambda link, *_: happened(e.Leaving(link.peer)),
            "REJECT": lambda link, fields, _, __: happened(wire.rejected(link.peer, fields)),
            "MANIFEST": lambda link, fields, bodies, frames: happened(wire.manifest(link.peer, fields, bodies, frames)),
            "RESULT": lambda link, fields, _, frames: happened(wire.finished(link.peer, fields, frames[1])),
        }

    def _go(self, link: Connection, fields: Fields, bodies: Sequence[bytes], frames: list[bytes]) -> None:
        event = wire.go(link.peer, fields, bodies, frames[1])
        job = self._scheduler.jobs.get(event.job)
        is_its = job is not None and job.peer == link.peer and job.stamp == event.stamp
        if is_its and not link.confirm():
            return evict(link.fd)
        is_awaited = is_its and job is not None and job.state in (JobState.QUEUED, JobState.OFFERED)
        if not is_awaited and sum(map(len, frames)) > _SMALL_BYTES:  # a late one of a submitter that means well is said again
            return self._end_unbounded(link, "it sends large messages that nobody asked for")
        self._happened(event)

    def _attach(self, link: Connection, fields: Fields, *_: object) -> None:
        """It may be a new connection: who is at its other end counts once the stamp of PROVE is back."""
        event = wire.attach(link.peer, *_submitter(link, fields), fields)
        link.token = link.token or self._secret()
        if fields.text("stamp") != link.token:
            return self._send(link.peer, wire.prove(event.spec.job, link.token))
        if not link.confirm():
            return evict(link.fd)
        self._happened(event)

    def _heartbeat(self, link: Connection, fields: Fields, *_: object) -> None:
        event = wire.heartbeat(link.peer, fields)
        agent = self._scheduler.agents.get(link.peer)
        if agent is not None and agent.token == event.token and not link.confirm():
            return evict(link.fd)
        self._happened(event)

    def _to_submitter(self, link: Connection, fields: Fields, _: object, frames: list[bytes]) -> None:
        if fields.get("received") is not None:
            self._happened(e.Joined(link.peer, fields.name("job"), fields.number("attempt")))
        job = self._scheduler.told_by(link.peer, fields.name("job"), fields.number("attempt"))
        if job is None:
            return self._reports.unexpected("stream")
        if job.peer is not None:
            self._send(job.peer, frames)

    def _to_agent(self, link: Connection, fields: Fields, _: object, frames: list[bytes]) -> None:
        job = self._running(link, fields)
        if job is None or job.agent is None:
            return self._reports.unexpected("stream")
        self._send(job.agent.peer, frames)

    def _to_either(self, link: Connection, fields: Fields, bodies: object, frames: list[bytes]) -> None:
        if self._running(link, fields) is not None:
            self._to_agent(link, fields, bodies, frames)
        elif fields.get("attempt") is None:  # a submitter's, whose job has ended meanwhile, or whose agent is away
            self._reports.unexpected("stream")
        else:
            self._to_submitter(link, fields, bodies, frames)

    def _running(self, link: Connection, fields: Fields) -> Job | None:
        job = self._scheduler.jobs.get(fields.name("job"))
        if job is None or job.peer != link.peer or job.state is not JobState.ASSIGNED:
            return None
        return job

    # ---- out ----

    def _happened(self, event: e.Event) -> None:
        for action in self._scheduler.handle(event, time.monotonic()):
            self._deeds[type(action)](action)

    def _record(self, record: e.Record) -> None:
        if self._ledger is not None and record.job:
            self._ledger.fold(record)  # first of all: an assignment is written down before it is sent
        self._reports.fold(record)

    def _tell(self, action: Any) -> None:
        self._send(action.peer, wire.MESSAGES[type(action)](action, self._reports.epoch))

    def _evict(self, peer: e.Peer) -> None:
        link = self._links.by_peer.get(peer)
        if link is not None:
            evict(link.fd)

    def _look_around(self, now: float) -> None:
        """What nobody tells: hosts that have gone, keys that were withdrawn, connections that make us grow."""
        if now >= self._watch_at:
            has_grown = self._look_for_growth(_resident_bytes())
            self._watch_at = now + (_WATCH_AGAIN_SECONDS if has_grown else _WATCH_SECONDS)
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            self._each_look()
            self._look_for_silence()
            self._end_refused()
            if self._keyring is not None and self._keyring.refresh(time.time()):
                self._end_withdrawn(self._keyring)

    def _look_for_growth(self, resident: int) -> bool:
        now = time.monotonic()
        if not self._watch.is_due(resident, now):
            return False
        for fd, why in self._watch.look(resident, now, self._links.by_fd, samples(self._links.by_fd)):
            link = self._links.by_fd.get(fd)
            self._say_unbounded(link.who.owner if link else "somebody who has said nothing yet", why)
            evict(fd)
        return True

    def _end_unbounded(self, link: Connection, why: str) -> None:
        """What it has sent already is not looked at any more."""
        self._say_unbounded(link.who.owner, why)
        link.is_refused = True
        evict(link.fd)

    def _say_unbounded(self, owner: str, why: str) -> None:
        log.warning("a connection of %s is ended: %s", owner, why)
        self._reports.unexpected("unbounded")

    def _look_for_silence(self) -> None:
        """Ends the connections of submitters whose hosts have gone. As long as jobs run, agents' heartbeats turn the loop often enough."""
        for job in self._scheduler.jobs.values():
            link = self._links.by_peer.get(job.peer) if job.peer is not None and job.state is JobState.ASSIGNED else None
            if link is not None and is_silent(link.fd):
                evict(link.fd)

    def _end_refused(self) -> None:
        """They have had a second to read why."""
        for peer in self._leaving:
            self._evict(peer)
        self._leaving, self._refused = self._refused, []

    def _end_withdrawn(self, keyring: Keyring) -> None:
        """Ends the connections of keys that may not do any more just what they might when they came."""
        for link in self._links.by_peer.values():
            grant = link.who.grant
            if grant is not None and keyring.grant(grant.key) != grant:
                log.info("a connection of the key %s is ended: its entry has changed", grant.name)
                link.is_refused = True
                evict(link.fd)

    def _refuse(self, link: Connection, reason: str, job: str = "") -> None:
        log.info("refused a message: %s", json.dumps(reason))
        self._send(link.peer, wire.refused(reason, job))

    def _send(self, peer: e.Peer, frames: Sequence[bytes]) -> None:
        link = self._links.by_peer.get(peer)
        if link is None:
            return
        link.told_bytes += sum(map(len, frames))
        send = self._send_frame
        try:
            send(link.rid, _MORE)
            for frame in frames[:-1]:
                send(frame, _MORE)
            send(frames[-1], _NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise  # a peer that has gone is told by the monitor in a moment; anything else is a defect


def _submitter(link: Connection, fields: Fields) -> tuple[int | None, tuple[int, ...]]:
    """As whom this connection submits the job that these fields describe, and with which groups of its key's. Raises ProtocolError."""
    claim = fields.number("uid") if fields.get("uid") is not None else None
    return link.who.submits_as(claim), link.who.groups


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb", buffering=0) as pages:
        return int(pages.read(128).split()[1]) * _PAGE_BYTES


def _job_named_in(fields: Fields | None) -> str:
    try:
        return fields.name("job") if fields is not None else ""
    except ProtocolError:
        return ""
