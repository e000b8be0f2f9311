"""The listening socket: its limits, the addresses it is bound to, and which of them ask for keys.

Addresses that only this machine reaches speak the plain mechanism, for the kernel says there who somebody is; all others CURVE, unless
the operator said --insecure. Knows ZeroMQ's options. Does not know messages.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import zmq

from dwrap.distributor.keyring import Keyring
from dwrap.protocol import keys
from dwrap.protocol.endpoint import is_loopback
from dwrap.protocol.messages import MAX_FRAME_BYTES

_ALL_USERS: Final = 0o111
_ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
_OPTIONS: Final = {
    zmq.ROUTER_MANDATORY: 1,
    zmq.MAXMSGSIZE: MAX_FRAME_BYTES,
    zmq.HANDSHAKE_IVL: 5_000,  # for all of it: a peer that sends a byte at a time gains nothing
    zmq.BACKLOG: 8_192,
    zmq.SNDHWM: 0,  # what bounds the send side is credit, and watch.py
    zmq.RCVHWM: 256,
    zmq.LINGER: 200,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 4,
    zmq.TCP_KEEPALIVE_INTVL: 2,
    zmq.TCP_KEEPALIVE_CNT: 3,
}


class Listener:
    """A ROUTER and, where there are keys, the socket on which libzmq asks about them."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keyring: Keyring | None) -> None:
        """Raises KeysError when the installed libzmq will not do."""
        keys.check_library()
        self._keyring = keyring
        self.zap = context.socket(zmq.REP)
        if keyring is not None:
            self.zap.bind(_ZAP_ENDPOINT)
        self.router = context.socket(zmq.ROUTER)
        for option, value in _OPTIONS.items():
            self.router.setsockopt(option, value)

    def bind(self, endpoints: Sequence[str]) -> list[str]:
        """Binds them (`tcp://HOST:0` takes any free port). Returns them with what was taken. Raises ZMQError."""
        taken = list(endpoints)
        has_keys = False
        for index in sorted(range(len(endpoints)), key=lambda index: not is_local(endpoints[index])):
            if self._keyring is not None and not is_local(endpoints[index]) and not has_keys:
                keys.serve_with(self.router, self._keyring.pair)  # for all that follow: a domain for ZAP cannot be taken back
                has_keys = True
            taken[index] = self._bind(endpoints[index])
        return taken

    def _bind(self, endpoint: str) -> str:
        router = self.router
        host = endpoint.removeprefix("tcp://").rpartition(":")[0]
        router.setsockopt(zmq.IPV6, int(host.startswith("[") or host == "*"))  # with it 127.0.0.1 would be shown as ::ffff:127.0.0.1
        before = os.umask(_ALL_USERS)  # a Unix socket is for all users here, as a loopback address is; its directory keeps off others
        try:
            router.bind(endpoint.replace("tcp://localhost:", "tcp://127.0.0.1:"))
        finally:
            os.umask(before)
        return router.getsockopt_string(zmq.LAST_ENDPOINT)

    def answer_zap(self) -> None:
        """Answers what libzmq asks about keys; it lets nobody in without an answer."""
        while self._keyring is not None and self.zap.poll(0):
            self.zap.send_multipart(self._keyring.answer(self.zap.recv_multipart()))

    def close(self) -> None:
        self.router.close(0)
        self.zap.close(0)


def is_local(endpoint: str) -> bool:
    """Whether only this machine can reach a zmq endpoint."""
    return endpoint.startswith("ipc://") or is_loopback(endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]"))
