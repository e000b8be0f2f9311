"""Jobs without wrappers: submits over a few persistent connections, and measures how long each takes from SUBMIT to RESULT.

Knows PROTOCOL.md's submitter side. `flood` keeps a fixed number of jobs under way, `paced` submits at a given rate.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import zmq

from dwrap.protocol import messages

CONNECTIONS = 8
ARGV = messages.encode_strings([b"g++", b"-O2", b"-c", b"source.cpp", b"-o", b"source.o"])
ENVIRONMENT = messages.encode_strings(b"%s=%s" % pair for pair in os.environb.items())


@dataclass
class Load:
    """What a load did: seconds per job, in order of their ends, and how long it all took."""

    latencies: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds


class Generator:
    """A submitter of many jobs at once."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._sockets = []
        for _ in range(CONNECTIONS):
            socket = self._context.socket(zmq.DEALER)
            socket.linger = 0
            socket.connect(address)
            self._poller.register(socket, zmq.POLLIN)
            self._sockets.append(socket)
        self._next = 0
        self._mark = os.urandom(8).hex()
        self._submitted: dict[bytes, float] = {}
        self._done: list[float] = []

    def flood(self, jobs: int, under_way: int) -> Load:
        """`jobs` jobs, `under_way` of them at any time."""
        self._done = []
        started = time.perf_counter()
        while len(self._done) < jobs:
            while len(self._submitted) < under_way and len(self._done) + len(self._submitted) < jobs:
                self._submit()
            self._take(1000)
        return Load(self._done, time.perf_counter() - started)

    def paced(self, rate: float, seconds: float) -> Load:
        """`rate` jobs a second for `seconds`, whether or not the earlier ones have ended."""
        self._done = []
        started = time.perf_counter()
        count, total = 0, int(rate * seconds)
        while len(self._done) < total:
            due = min(total, int((time.perf_counter() - started) * rate))
            while count < due:
                self._submit(started + count / rate)
                count += 1
            self._take(1)
        return Load(self._done, time.perf_counter() - started)

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _submit(self, when: float | None = None) -> None:
        """One more job; its time counts from `when` it was due."""
        job = f"{self._mark}-{self._next}".encode()
        socket = self._sockets[self._next % CONNECTIONS]
        self._next += 1
        self._submitted[job] = time.perf_counter() if when is None else when
        fields = [("version", messages.VERSION), ("job", job), ("cwd", "/"), ("command", "g++"), ("build", "bench")]
        socket.send_multipart(messages.encode("SUBMIT", fields))

    def _take(self, milliseconds: int) -> None:
        """Answer what has arrived; wait at most so long for something."""
        for socket, _ in self._poller.poll(milliseconds):
            while True:
                try:
                    frames = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._answer(socket, frames)

    def _answer(self, socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
        verb, fields, _ = messages.parse(frames)
        job = fields.need("job")
        if verb == "OFFER":
            answer = [("job", job), ("stamp", fields.need("stamp")), ("umask", "022"), ("gid", os.getgid()), ("stdin", "null")]
            socket.send_multipart(messages.encode("GO", [*answer, ("stdout", "stream"), ("stderr", "stream")], ARGV, ENVIRONMENT))
        elif verb == "RESULT":
            self._done.append(time.perf_counter() - self._submitted.pop(job))
            socket.send_multipart(messages.encode("ACK", [("job", job)]))
        elif verb != "QUEUED":
            raise SystemExit(f"generator: the distributor answers {verb}: {fields.text('reason')}; is another load on it?")
