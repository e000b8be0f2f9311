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
from zmq.utils.monitor import recv_monitor_message

from dwrap.control.errors import ControlError
from dwrap.protocol import messages
from dwrap.protocol.dial import FAILURES, Dial, by_environment, why_refused
from dwrap.protocol.endpoint import parse_endpoint
from dwrap.protocol.keys import KeysError

ANSWER_SECONDS = 3.0
_SILENT = "no distributor answers at {}: nothing was heard in time; start one with dwrapctl up, or check DWRAP_HOST"


class NotMet(ControlError):
    """There is no distributor here that we may speak to; perhaps at the next address."""


class NotLetIn(NotMet):
    """The distributor does not let our key in."""


class Unreachable(NotMet):
    """No distributor answered in time."""


def ask(addresses: Sequence[str], what: str, fields: messages.FieldsIn = (), seconds: float = ANSWER_SECONDS) -> Any:
    """The JSON value that the first answering address gives. Raises Unreachable or ControlError (of the first, when none answers), or
    ControlError when one that answers refuses.
    """
    pairs = list(fields)
    trouble: ControlError = Unreachable("no distributor to ask: the list of addresses is empty; set DWRAP_HOST")
    for number, address in enumerate(addresses):
        try:
            return ask_one(_dial(address), what, pairs, seconds)
        except NotMet as error:
            trouble = trouble if number else error
    raise trouble


def _dial(address: str) -> Dial:
    try:
        return by_environment(parse_endpoint(address), os.environ)
    except KeysError as error:
        raise NotMet(f"cannot ask {address}: {error}") from error


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
        monitor = socket.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | FAILURES)
        deadline = time.monotonic() + seconds
        socket.connect(address)
        _meet(monitor, dial, deadline)
        answer = _exchange(socket, address, what, fields, deadline)
        if isinstance(answer, dict) and list(answer) == ["token"]:  # a question that changes something is asked twice
            answer = _exchange(socket, address, what, [*fields, ("token", str(answer["token"]))], deadline)
        return answer
    except zmq.ZMQError as error:
        raise ControlError(f"cannot connect to {address}: {str(error).lower()}; check the address") from error
    finally:
        socket.disable_monitor()
        context.destroy(linger=0)


def _meet(monitor: zmq.Socket[bytes], dial: Dial, deadline: float) -> None:
    """Waits for the handshake, and looks who is at the other end. Raises Unreachable, ControlError."""
    fd, why = -1, ""
    while (left := deadline - time.monotonic()) > 0:
        if not monitor.poll(int(left * 1000) + 1):
            continue
        said = recv_monitor_message(monitor)
        if said["event"] == zmq.EVENT_CONNECTED:
            fd = said["value"]
        elif said["event"] == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and dial.pair is None:
            why = why_refused(dial, said["event"], "client")  # or it is just starting anew: libzmq tries again
        elif said["event"] & FAILURES:
            kind = NotLetIn if said["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH else NotMet
            raise kind(f"cannot ask {dial.address}: {why_refused(dial, said['event'], 'client')}")
        else:
            if why := dial.why_not(fd):
                raise NotMet(f"cannot ask {dial.address}: {why}")
            return
    raise Unreachable(f"cannot ask {dial.address}: {why}" if why else _SILENT.format(dial.address))


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
    raise Unreachable(_SILENT.format(address))
