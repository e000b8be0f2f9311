"""One question to a distributor: QUERY out, REPLY in, each bounded in time.

Knows the two verbs and ZeroMQ. Does not know what an answer means, nor how it is shown.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Sequence
from typing import Any

import zmq

from dwrap.control.errors import ControlError
from dwrap.protocol import messages
from dwrap.protocol.dial import Dial, by_environment
from dwrap.protocol.endpoint import parse_endpoint
from dwrap.protocol.keys import KeysError

ANSWER_SECONDS = 3.0


class Unreachable(ControlError):
    """No distributor answered in time."""


def ask(addresses: Sequence[str], what: str, fields: messages.FieldsIn = (), seconds: float = ANSWER_SECONDS) -> Any:
    """The JSON value that the first answering address gives. Raises Unreachable, or ControlError when it refuses."""
    pairs = list(fields)
    for address in addresses:
        try:
            return ask_one(_dial(address), what, pairs, seconds)
        except Unreachable:
            if address == addresses[-1]:
                raise
    raise Unreachable("no distributor to ask: the list of addresses is empty; set DWRAP_HOST")


def _dial(address: str) -> Dial:
    try:
        return by_environment(parse_endpoint(address), os.environ)
    except KeysError as error:
        raise ControlError(f"cannot ask {address}: {error}") from error


def ask_one(dial: Dial, what: str, fields: list[tuple[str, messages.Value]], seconds: float = ANSWER_SECONDS) -> Any:
    """The answer of one distributor, reached just so. Raises as `ask`."""
    address = dial.address
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.ipv6 = True
    socket.maxmsgsize = messages.MAX_FRAME_BYTES
    try:
        dial.configure(socket)
        socket.connect(address)
        deadline = time.monotonic() + seconds
        answer = _exchange(socket, address, what, fields, deadline)
        if isinstance(answer, dict) and list(answer) == ["token"]:  # a question that changes something is asked twice
            answer = _exchange(socket, address, what, [*fields, ("token", str(answer["token"]))], deadline)
        return answer
    except zmq.ZMQError as error:
        raise ControlError(f"cannot connect to {address}: {str(error).lower()}; check the address") from error
    finally:
        socket.close()
        context.term()


def _exchange(socket: zmq.Socket[bytes], address: str, what: str, fields: list[tuple[str, messages.Value]], deadline: float) -> Any:
    """Asks, and waits for the REPLY with our id. Other messages are skipped, REFUSED ends it."""
    number = secrets.token_hex(8)
    socket.send_multipart(messages.encode("QUERY", [("id", number), ("what", what), *fields]))
    while (left := deadline - time.monotonic()) > 0:
        if not socket.poll(int(left * 1000) + 1):
            continue
        try:
            verb, said, bodies = messages.parse(socket.recv_multipart())
            if verb == "REFUSED":
                raise ControlError(messages.one_line(f"the distributor at {address} refused: {said.text('reason')}"))
            if verb == "REPLY" and said.text("id") == number and bodies:
                return json.loads(bodies[0])
        except (messages.ProtocolError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ControlError(f"cannot read the answer of {address}: {error}; is it a dwrap distributor of about this version?") from error
    raise Unreachable(f"no distributor answers at {address}: nothing was heard in time; start one with dwrapctl up, or check DWRAP_HOST")
