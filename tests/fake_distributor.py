"""A distributor for the wrapper's tests: a real ROUTER in a thread whose answers are scripted.

A script is a generator function: it is started for each job with its SUBMIT, yields messages to send as
`(verb, pairs, *bodies)`, or None to be handed the job's next message. Does not run commands, and knows no agents.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any

import zmq

from dwrap.protocol import messages

Message = tuple[str, messages.Fields, list[bytes]]
Reply = tuple[Any, ...]
Script = Generator[Reply | None, Message | None, None]


def offer_then(*replies: Reply, stamp: str = "s1") -> Callable[[Message], Script]:
    """A script that offers, waits for GO, and sends `replies`."""

    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", stamp)])
        yield None
        yield from replies

    return script


def output(data: bytes, offset: int = 0, stream: str = "stdout") -> Reply:
    return ("OUTPUT", [("attempt", 1), ("stream", stream), ("offset", offset)], data)


def result(status: int = 0, agent: str = "a1", **fields: int | str) -> Reply:
    """RESULT with a raw wait status, or with `error=...` among the fields."""
    pairs = [("attempt", 1), *(() if "error" in fields else [("status", status)]), *fields.items()]
    return ("RESULT", pairs, messages.encode_fields([("agent", agent), ("queued_ms", 3)]))


class FakeDistributor:
    """Use as a context manager. `seen` holds every message, in order; `by_verb` selects."""

    def __init__(
        self, script: Callable[[Message], Script], endpoint: str = "tcp://127.0.0.1:*", *, ipv6: bool = False,
        prepare: Callable[[zmq.Context[Any], zmq.Socket[bytes]], None] | None = None,
    ) -> None:
        """`prepare` may set more options before the socket listens, keys for instance."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 0)
        self._socket.setsockopt(zmq.IPV6, ipv6)
        if prepare:
            prepare(self._context, self._socket)
        self._socket.bind(endpoint)
        self.address = self._socket.getsockopt(zmq.LAST_ENDPOINT).decode().rstrip("\0")
        self._script = script
        self._jobs: dict[bytes, tuple[bytes, bytes, Script]] = {}
        self.seen: list[Message] = []
        self.problems: list[str] = []
        self._arrived = threading.Condition()
        self._control = self._context.socket(zmq.PAIR)
        self._control.bind(f"inproc://stop-{id(self)}")
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeDistributor:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._control.closed:
            return
        self._control.send(b"")
        self._thread.join(5)
        self._control.close(0)
        self._context.term()

    def by_verb(self, verb: str) -> list[Message]:
        with self._arrived:
            return [m for m in self.seen if m[0] == verb]

    def wait_for(self, verb: str, count: int = 1, seconds: float = 10) -> list[Message]:
        """Waits until `count` such messages have come. Raises TimeoutError."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: sum(m[0] == verb for m in self.seen) >= count, seconds):
                raise TimeoutError(f"no {verb}: saw {[m[0] for m in self.seen]}; {self.problems}")
            return [m for m in self.seen if m[0] == verb]

    def _run(self) -> None:
        stop = self._context.socket(zmq.PAIR)
        stop.connect(f"inproc://stop-{id(self)}")
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(stop, zmq.POLLIN)
        while stop not in (ready := dict(poller.poll())):
            if self._socket in ready:
                self._take(self._socket.recv_multipart())
        stop.close(0)
        self._socket.close(0)

    def _take(self, frames: list[bytes]) -> None:
        peer, *rest = frames
        try:
            verb, fields, bodies = messages.parse(rest)
        except messages.ProtocolError as problem:
            self.problems.append(str(problem))
            return
        message = (verb, fields, list(bodies))
        with self._arrived:
            self.seen.append(message)
            self._arrived.notify_all()
        job = fields.need("job")
        if verb == "SUBMIT":
            self._jobs[job] = (peer, job, self._script(message))
            self._advance(job, None, first=True)
        elif job in self._jobs:
            self._advance(job, message)

    def _advance(self, job: bytes, message: Message | None, first: bool = False) -> None:
        peer, name, script = self._jobs[job]
        try:
            step = next(script) if first else script.send(message)
            while step is not None:
                self._send(peer, name, step)
                step = next(script)
        except StopIteration:
            del self._jobs[job]

    def _send(self, peer: bytes, job: bytes, step: Reply) -> None:
        verb, pairs, *bodies = step
        self._socket.send_multipart([peer, *messages.encode(verb, [("job", job), *pairs], *bodies)])
