"""A distributor for the wrapper's tests whose connections can be cut at any byte; a job's script goes on over the next one.

It speaks ZMTP itself, as far as one DEALER needs it, so that it decides which byte is the last. Scripts are those of
fake_distributor.py, and may also yield a Cut. Every message of a job (ATTACH too) goes to the job's script; what
the script sends goes to the newest connection that has spoken for the job. Does not run commands, and knows no agents.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from types import TracebackType

from fake_distributor import Message, Reply

from dwrap.protocol import messages

GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01NULL" + bytes(48)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER"


@dataclass(frozen=True)
class Cut:
    """Sends the first `size` bytes of `reply` (all of it when None), then ends the connection. `reset`: without a farewell."""

    reply: Reply | None = None
    size: int | None = None
    reset: bool = False


Script = Generator[Reply | Cut | None, Message | None, None]


def wire(frames: list[bytes]) -> bytes:
    """A message as ZMTP's bytes."""
    more = [1] * (len(frames) - 1) + [0]
    return b"".join(
        bytes([flag, len(frame)]) + frame if len(frame) < 256 else bytes([flag | 2]) + len(frame).to_bytes(8, "big") + frame
        for flag, frame in zip(more, frames, strict=True)
    )


def encoded(job: bytes, reply: Reply) -> bytes:
    verb, pairs, *bodies = reply
    return wire(messages.encode(verb, [("job", job), *pairs], *bodies))


@dataclass
class Connection:
    """One peer: what came of it, and whether it still counts."""

    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    frames: list[bytes] = field(default_factory=list)
    greeted: bool = False
    ended: bool = False

    def take_frame(self) -> tuple[int, bytes] | None:
        """The next frame, with its flags."""
        data = self.received
        header = 9 if data and data[0] & 2 else 2
        if len(data) < header:
            return None
        size = int.from_bytes(data[1:header], "big")
        if len(data) < header + size:
            return None
        flags, body = data[0], bytes(data[header : header + size])
        del data[: header + size]
        return flags, body


class TornDistributor:
    """Use as a context manager. `seen` holds every message, in order; `connections` counts those that were made."""

    def __init__(self, script: Callable[[Message], Script], port: int = 0, *, adopt: bool = False) -> None:
        """`adopt`: an ATTACH of an unknown job starts a script too."""
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._script = script
        self._starters = {"SUBMIT", "ATTACH"} if adopt else {"SUBMIT"}
        self._jobs: dict[bytes, tuple[Connection, Script]] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._awake = threading.Event()
        self._awake.set()
        self._stop = False
        self._arrived = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.seen: list[Message] = []
        self.connections = 0

    def __enter__(self) -> TornDistributor:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop = True
        self._awake.set()
        self._thread.join(5)

    def freeze(self) -> None:
        """From now on nothing is read or answered; the kernel still takes connections."""
        self._awake.clear()

    def thaw(self) -> None:
        self._awake.set()

    def cut_all(self) -> None:
        """Ends all connections, while no script is about to send anything."""
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                key.data.ended = True
                key.data.socket.shutdown(socket.SHUT_WR)

    def by_verb(self, verb: str) -> list[Message]:
        with self._arrived:
            return [m for m in self.seen if m[0] == verb]

    def wait_for(self, verb: str, count: int = 1, seconds: float = 20) -> list[Message]:
        """Waits until `count` such messages have come. Raises TimeoutError."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: sum(m[0] == verb for m in self.seen) >= count, seconds):
                raise TimeoutError(f"no {verb}: saw {[m[0] for m in self.seen]}")
            return [m for m in self.seen if m[0] == verb]

    def _run(self) -> None:
        while not self._stop:
            ready = self._selector.select(0.05)
            self._awake.wait()
            for key, _ in ready:
                if key.data is None:
                    self._accept()
                else:
                    with contextlib.suppress(OSError):  # the wrapper has ended
                        self._receive(key.data)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _accept(self) -> None:
        peer = self._listener.accept()[0]
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(peer)
        self._selector.register(peer, selectors.EVENT_READ, connection)
        peer.sendall(GREETING)
        self.connections += 1

    def _receive(self, c: Connection) -> None:
        try:
            data = c.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(c.socket)
            c.socket.close()
            c.ended = True
            return
        c.received += data
        if not c.greeted and len(c.received) >= len(GREETING):
            del c.received[: len(GREETING)]
            c.greeted = True
            c.socket.sendall(READY)
        while c.greeted and not c.ended and (frame := c.take_frame()):
            self._take_frame(c, *frame)

    def _take_frame(self, c: Connection, flags: int, body: bytes) -> None:
        if flags & 4:
            if body.startswith(b"\x04PING"):
                c.socket.sendall(b"\x04\x05\x04PONG")
            return
        c.frames.append(body)
        if flags & 1:
            return
        verb, fields, bodies = messages.parse(c.frames)
        c.frames = []
        message = (verb, fields, list(bodies))
        with self._arrived:
            self.seen.append(message)
            self._arrived.notify_all()
        job = fields.need("job")
        if job in self._jobs:
            self._jobs[job] = (c, self._jobs[job][1])
            self._advance(job, message)
        elif verb in self._starters:
            self._jobs[job] = (c, self._script(message))
            self._advance(job, None)

    def _advance(self, job: bytes, message: Message | None) -> None:
        c, script = self._jobs[job]
        try:
            step = script.send(message)
            while step is not None:
                if isinstance(step, Cut):
                    self._cut(c, job, step)
                else:
                    c.socket.sendall(encoded(job, step))
                step = next(script)
        except StopIteration:
            del self._jobs[job]

    def _cut(self, c: Connection, job: bytes, cut: Cut) -> None:
        if cut.reply:
            c.socket.sendall(encoded(job, cut.reply)[: cut.size])
        c.ended = True
        if cut.reset:
            self._selector.unregister(c.socket)
            c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            c.socket.close()
        else:
            c.socket.shutdown(socket.SHUT_WR)
