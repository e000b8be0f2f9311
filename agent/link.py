"""The agent's loop: one DEALER to the distributor, its monitor, the runners' sockets, signals, a tick each second.

It turns what arrives into events for the session and carries out the actions that the session answers with. It decides nothing.
Each connection gets a fresh socket, so that nothing queued for an old connection can reach a new one ahead of REGISTER.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import socket
from collections.abc import Callable
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from dwrap.agent import events as e
from dwrap.agent.accounts import Accounts, Refusal, Shortage
from dwrap.agent.former import Former
from dwrap.agent.health import boot_clock
from dwrap.agent.load import Load
from dwrap.agent.runner import Runner, Runners, StartError
from dwrap.agent.session import Session
from dwrap.protocol import messages
from dwrap.protocol.dial import FAILURES, Dial, why_refused

TICK_SECONDS: Final = 1.0
_RETRY_MS: Final = 100
_RETRY_MAX_MS: Final = 2_000
_HANDSHAKE_MS: Final = 5_000
_SILENCE_MS: Final = 10_000
_BURST: Final = 256  # messages taken in one turn, so that no source starves another
_GID_DIGITS: Final = 10
_EVENTS: Final = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | FAILURES

log = logging.getLogger("dwrap.agent")


class Link:
    """Carries a session. `on_ready` is called once the distributor took us in;
    `survey` is asked each second for what is mounted or installed now, and answers when that has changed. `each_tick` is told whether
    we serve, and drain.
    """

    def __init__(
        self,
        dial: Dial,
        session: Session,
        runners: Runners,
        former: Former,
        accounts: Accounts,
        load: Load,
        on_ready: Callable[[], None],
        clock: Callable[[], float] = boot_clock,
        survey: Callable[[], e.Mounted | e.Installed | None] = lambda: None,
        each_tick: Callable[[bool, bool], None] = lambda *_: None,
    ) -> None:
        self._dial = dial
        self._session = session
        self._runners = runners
        self._former = former
        self._accounts = accounts
        self._load = load
        self._on_ready = on_ready
        self._clock = clock
        self._survey = survey
        self._each_tick = each_tick
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._poller = zmq.Poller()
        self._live: dict[e.Key, Runner] = {}
        self._by_fd: dict[int, Runner] = {}
        self._ending: e.Quit | None = None
        self._wake, self._signals = socket.socketpair()
        self._signals.setblocking(False)
        self._poller.register(self._wake.fileno(), zmq.POLLIN)
        self._complaint, self._has_failed = "", False
        self._connect()

    # ---- the connection

    def _connect(self) -> None:
        self._open()
        self._dealer.connect(self._dial.address)

    def _open(self) -> None:
        self._up = self._is_waiting = False
        self._fd = -1
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.linger = 0
        self._dealer.sndhwm = 0  # bounded by the jobs' credit
        self._dealer.rcvhwm = 0  # bounded by the credit given for stdin
        self._dealer.maxmsgsize = messages.MAX_FRAME_BYTES
        self._dealer.ipv6 = True
        self._dealer.setsockopt(zmq.RECONNECT_IVL, _RETRY_MS)
        self._dealer.setsockopt(zmq.RECONNECT_IVL_MAX, _RETRY_MAX_MS)
        self._dealer.setsockopt(zmq.CONNECT_TIMEOUT, _RETRY_MAX_MS)  # the kernel's own tries become rare: half a minute apart, and more
        self._dealer.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        self._dealer.setsockopt(zmq.HEARTBEAT_IVL, int(TICK_SECONDS * 1000))
        self._dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)
        self._dial.configure(self._dealer)
        self._monitor = self._dealer.get_monitor_socket(_EVENTS)
        self._poller.register(self._monitor, zmq.POLLIN)  # nothing is read from the dealer until it is known who is at its other end

    def _disconnect(self) -> None:
        if self._up:
            self._poller.unregister(self._dealer)
        self._poller.unregister(self._monitor)
        self._dealer.disable_monitor()
        self._dealer.close(linger=0)

    def _watch_connection(self) -> None:
        said = recv_monitor_message(self._monitor)
        event = said["event"]
        if event & FAILURES and not self._up:  # libzmq itself does not always try again
            if event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL or self._has_failed:  # the first time it may just be starting anew
                self._complain(why_refused(self._dial, event, "agent"))
            self._has_failed = True
            self._stand_off()
        elif event == zmq.EVENT_CONNECTED:
            self._fd = said["value"]
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED and not self._up:
            why = self._dial.why_not(self._fd)
            if why:
                self._complain(why)
            if why or self._monitor.poll(0):  # it has ended already: what was looked at may have been another one's descriptor
                return self._stand_off()
            self._complaint, self._has_failed = "", False
            self._up = True
            self._poller.register(self._dealer, zmq.POLLIN)
            self._feed(e.Connected())
        elif event == zmq.EVENT_DISCONNECTED and self._up:
            self._take_messages()  # what was said before the end
            if self._up:
                self._reconnect()

    def _reconnect(self) -> None:
        self._disconnect()
        self._connect()
        self._feed(e.Disconnected())

    def _stand_off(self) -> None:
        """Nothing that was said on this connection counts, and a new one waits for the next tick."""
        self._disconnect()
        self._open()
        self._is_waiting = True

    def _complain(self, why: str) -> None:
        """Logs it, once as long as it stays so."""
        if why != self._complaint:
            self._complaint = why
            log.warning("%s", why)

    # ---- the loop

    def run(self) -> e.Quit:
        """Serves until the session says to quit. Returns what it said."""
        previous = signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
        next_tick = self._clock()
        try:
            while self._ending is None:
                now = self._clock()
                if now >= next_tick:
                    next_tick = now + TICK_SECONDS
                    self._tick(now)
                    continue
                self._turn(max(0.0, next_tick - now))
            return self._ending
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous)
            self._close()

    def _turn(self, seconds: float) -> None:
        for source, events in self._poller.poll(math.ceil(seconds * 1000)):
            if source is self._dealer:
                self._take_messages()
            elif source is self._monitor:
                self._watch_connection()
            elif source == self._wake.fileno():
                self._take_signals()
            elif source in self._by_fd:
                self._serve_runner(self._by_fd[source], events)

    def _tick(self, now: float) -> None:
        self._runners.reap()
        self._runners.kill_hanging(self._live.values())
        self._runners.kill_orphans()
        self._runners.refill()
        if self._is_waiting:
            self._is_waiting = False
            self._dealer.connect(self._dial.address)
        self._feed(e.Tick(self._load.sample(now)))
        self._look_back()
        changed = self._survey()
        if changed is not None:
            self._feed(changed)
        self._each_tick(self._session.is_serving(now), self._session.draining)

    def _look_back(self) -> None:
        try:
            self._feed(self._former.look())
        except OSError as error:  # a shortage: what is there still will be there next time
            log.warning("cannot look at what agents before this one left: %s", error)

    def _take_messages(self) -> None:
        dealer = self._dealer
        for _ in range(_BURST):
            try:
                frames = dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                verb, fields, bodies = messages.parse(frames)
            except messages.FrameLostError as error:  # all of it is said again on the next connection
                log.warning("the connection is made anew: %s", error)
                return self._reconnect()
            except messages.ProtocolError as error:
                log.warning("a malformed message was dropped: %s", error)
                continue
            self._feed(e.Received(verb, fields, tuple(bodies)))

    def _take_signals(self) -> None:
        for number in self._wake.recv(64):
            stop = number == signal.SIGINT or self._session.draining
            self._feed(e.StopAsked() if stop else e.DrainAsked())

    def _serve_runner(self, runner: Runner, events: int) -> None:
        if events & zmq.POLLOUT:
            runner.flush()
            self._watch_runner(runner)
        for said in runner.receive():
            self._feed(said)
            if isinstance(said, e.RunnerEnded):
                self._forget_runner(runner)
                self._runners.reap()

    def _feed(self, event: e.Event) -> None:
        for action in self._session.handle(event, self._clock()):
            self._carry_out(action)

    # ---- actions

    def _carry_out(self, action: e.Action) -> None:
        match action:
            case e.Send():
                with contextlib.suppress(zmq.Again):  # no connection at all, which the monitor is about to tell
                    self._dealer.send_multipart(action.frames, zmq.NOBLOCK)
            case e.Tell():
                self._tell(action)
            case e.Start():
                self._start(action)
            case e.Lease():
                self._runners.lease(action.until)
            case e.Forget():
                self._runners.forget(action.key)
                self._former.forget(action.key)
            case e.Log():
                log.info("%s%s", action.event, "".join(f" {key}={value}" for key, value in action.fields))
            case e.Ready():
                self._on_ready()
            case e.Quit():
                self._ending = self._ending or action

    def _tell(self, tell: e.Tell) -> None:
        runner = self._live.get(tell.key)
        if runner is not None:
            runner.tell(tell)
            if runner.congested:
                self._watch_runner(runner)

    def _start(self, start: e.Start) -> None:
        try:
            claims = messages.decode_fields(start.claims)
            messages.check_whole(claims, start.argv, start.env)
            gid = claims.number("gid") if claims.get("gid") is not None else None
            given = _groups(start.fields)  # the distributor's word, unlike the claims
            identity = self._accounts.identity(start.fields.number("uid"), gid, _groups(claims), self._clock(), given)
            runner = self._runners.start(start, identity)
        except (Refusal, Shortage, StartError, messages.ProtocolError) as error:
            is_ours = isinstance(error, (Shortage, StartError))
            self._feed(e.RunnerSaid(start.key, e.Kind.REJECTED, 0, is_ours, str(error).encode()))
            return
        self._live[start.key] = self._by_fd[runner.fileno()] = runner
        self._watch_runner(runner)

    def _watch_runner(self, runner: Runner) -> None:
        self._poller.register(runner.fileno(), zmq.POLLIN | (zmq.POLLOUT if runner.congested else 0))

    def _forget_runner(self, runner: Runner) -> None:
        self._poller.unregister(runner.fileno())
        del self._by_fd[runner.fileno()]
        del self._live[runner.key]
        runner.close()

    def _close(self) -> None:
        for runner in self._live.values():
            runner.close()
        self._runners.close()
        if self._up:
            self._poller.unregister(self._dealer)
        self._dealer.disable_monitor()
        self._dealer.close(linger=200)
        self._context.destroy(linger=200)
        self._wake.close()
        self._signals.close()


def _groups(fields: messages.Fields) -> list[int]:
    """Those that can be groups."""
    return [int(group) for group in fields.all("group") if group.isdigit() and len(group) <= _GID_DIGITS]
