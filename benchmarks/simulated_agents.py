"""Many agents in one process that finish every job at once: a load for the distributor, not a simulation of work.

    python simulated_agents.py ADDRESS AGENTS SLOTS        prints `ready` when all are registered, runs until it is ended

Knows PROTOCOL.md's agent side. Each agent has a connection of its own, as real ones have.
"""

from __future__ import annotations

import itertools
import os
import select
import sys
import time

import zmq

from dwrap.protocol import messages

HEARTBEAT_SECONDS = 1.0
SERVES = "any" if os.getuid() == 0 else str(os.getuid())


class SimulatedAgent:
    """One agent: REGISTER, a heartbeat each second, RESULT for every ASSIGN."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, name: str, slots: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(address)
        self.token = b""
        fields = [("version", messages.VERSION), ("name", name), ("slots", slots), ("root", "/"), ("serves", SERVES), ("allow_root", 1)]
        self.socket.send_multipart(messages.encode("REGISTER", fields))

    def drain(self) -> None:
        """Take every message there is; the descriptor is edge-triggered, so until none is left."""
        while True:
            try:
                verb, fields, _ = messages.parse(self.socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            if verb == "ASSIGN":
                done = [("job", fields.need("job")), ("attempt", fields.need("attempt")), ("status", 0), ("run_ms", 0)]
                self.socket.send_multipart(messages.encode("RESULT", done))
            elif verb == "WELCOME":
                self.token = fields.need("token")
                self.heartbeat()
            elif verb == "REFUSED":
                sys.exit(f"simulated agents: refused: {fields.text('reason')}; stop what else serves this address")

    def heartbeat(self) -> None:
        """Tell that we live, and echo the token."""
        beat = [("token", self.token), ("foreign", 0), ("memory_available_bytes", 1 << 34)]
        self.socket.send_multipart(messages.encode("HEARTBEAT", beat))


def serve(address: str, count: int, slots: int) -> None:
    """Run the agents until this process is ended. Their heartbeats are spread over the second, as those of real ones are."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, count + 16)
    agents = [SimulatedAgent(context, address, f"sim-{number:04}", slots) for number in range(count)]
    by_descriptor = {agent.socket.getsockopt(zmq.FD): agent for agent in agents}
    poller = select.epoll()
    for descriptor in by_descriptor:
        poller.register(descriptor, select.EPOLLIN | select.EPOLLET)
    told, next_beat, beats = False, time.monotonic(), itertools.cycle(agents)
    while True:
        for descriptor, _ in poller.poll(max(0.0, next_beat - time.monotonic())):
            by_descriptor[descriptor].drain()
        if not told and all(agent.token for agent in agents):
            told = True
            print("ready", flush=True)
        while time.monotonic() >= next_beat:
            next_beat += HEARTBEAT_SECONDS / count
            agent = next(beats)
            if agent.token:
                agent.heartbeat()
            agent.drain()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
