"""A load over libzmq, in clear or with keys: one process that is a submitter and an agent, both over persistent connections.

    python keyed_load.py ADDRESS JOBS UNDER_WAY [SERVER_KEY SUBMITTER_DIR AGENT_DIR]

Prints jobs per second. Slower than the loads in C, and the same for both mechanisms: what is compared is the distributor's CPU.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import zmq

from dwrap.protocol import keys
from dwrap.protocol.messages import Fields, decode_fields, encode

SLOTS = 512
ENVIRONMENT = b"".join(b"VARIABLE_%d=%s\0" % (number, b"x" * 40) for number in range(50))


def dealer(address: str, server: str, folder: str, kind: str) -> zmq.Socket[bytes]:
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger, socket.sndhwm, socket.rcvhwm = 0, 0, 0
    if server:
        keys.dial_with(socket, keys.read_pair(Path(folder), kind), server)
    socket.connect(address)
    return socket


def register(agent: zmq.Socket[bytes]) -> None:
    about = [("version", 1), ("name", "load"), ("slots", SLOTS), ("root", "/"), ("serves", "any"), ("allow_root", 1)]
    agent.send_multipart(encode("REGISTER", about))
    token = decode_fields(agent.recv_multipart()[1]).text("token")
    agent.send_multipart(encode("HEARTBEAT", [("token", token)]))
    agent.recv_multipart()


def run(agent: zmq.Socket[bytes], desk: zmq.Socket[bytes], jobs: int, under_way: int) -> float:
    """Jobs per second."""
    started = done = 0

    def submit() -> None:
        nonlocal started
        about = [("version", 1), ("job", f"load-{time.time_ns():x}-{started}"), ("cwd", "/"), ("command", "g++"), ("build", "bench")]
        about.append(("label", "agent=load"))
        desk.send_multipart(encode("SUBMIT", about))
        started += 1

    def hear(verb: bytes, fields: Fields) -> None:
        nonlocal done
        if verb == b"OFFER":
            answer = [("job", fields.text("job")), ("stamp", fields.text("stamp"))]
            desk.send_multipart(encode("GO", answer, b"g++\0-c\0a.cpp\0", ENVIRONMENT))
        elif verb == b"RESULT":
            desk.send_multipart(encode("ACK", [("job", fields.text("job"))]))
            done += 1
            if started < jobs:
                submit()

    poller = zmq.Poller()
    poller.register(agent, zmq.POLLIN)
    poller.register(desk, zmq.POLLIN)
    began = time.monotonic()
    for _ in range(under_way):
        submit()
    while done < jobs:
        for socket, _ in poller.poll():
            while socket.poll(0):
                verb, fields = socket.recv_multipart()[:2]
                if socket is desk:
                    hear(verb, decode_fields(fields))
                elif verb == b"ASSIGN":
                    own = decode_fields(fields)
                    agent.send_multipart(encode("RESULT", [("job", own.text("job")), ("attempt", own.text("attempt")), ("status", 0)]))
    return jobs / (time.monotonic() - began)


def main(address: str, jobs: str, under_way: str, server: str = "", submitter: str = "", agent: str = "") -> None:
    serving = dealer(address, server, agent, "agent")
    register(serving)
    print(run(serving, dealer(address, server, submitter, "client"), int(jobs), int(under_way)))


if __name__ == "__main__":
    main(*sys.argv[1:])
