"""CurveZMQ (RFC 26) once more, with PyNaCl, for the wrapper's tests: both halves, and frames as ZMTP has them.

Written from the RFC and not from wrapper/curve.c, so that golden vectors made here say something about that. Nonces and random bytes
are the caller's. `locked` gives fake_distributor's ROUTER a key, and asks nobody or a script who may come in.
Does not know sockets, save for ZAP's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nacl.bindings as nacl
import zmq

GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01CURVE" + bytes(15) + bytes(32)
MORE, COMMAND = 1, 2


@dataclass(frozen=True)
class Pair:
    public: bytes
    secret: bytes

    @staticmethod
    def of(secret: bytes) -> Pair:
        return Pair(nacl.crypto_scalarmult_base(secret), secret)

    @staticmethod
    def new() -> Pair:
        return Pair.of(nacl.randombytes(32))


def properties(**pairs: bytes) -> bytes:
    """Metadata; `_` in a name stands for `-`."""
    named = ((name.replace("_", "-").encode(), value) for name, value in pairs.items())
    return b"".join(bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value for name, value in named)


def command(body: bytes) -> bytes:
    """A command's frame."""
    return framed(body, 4)


def framed(body: bytes, flags: int = 0) -> bytes:
    """A frame."""
    return bytes([flags, len(body)]) + body if len(body) < 256 else bytes([flags | 2]) + len(body).to_bytes(8, "big") + body


def frames_in(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The whole frames in a stream, each with its flags, and what is left."""
    found = []
    while len(data) >= 2:
        header = 9 if data[0] & 2 else 2
        size = int.from_bytes(data[1:header], "big")
        if len(data) < header + size:
            break
        found.append((data[0], data[header : header + size]))
        data = data[header + size :]
    return found, data


def short(number: int) -> bytes:
    return number.to_bytes(8, "big")


@dataclass
class Client:
    """The client's half: bytes of its commands, given everything that is random."""

    own: Pair
    transient: Pair
    server: bytes

    def hello(self) -> bytes:
        box = nacl.crypto_box(bytes(64), b"CurveZMQHELLO---" + short(1), self.server, self.transient.secret)
        return b"\x05HELLO\x01\x00" + bytes(72) + self.transient.public + short(1) + box

    def take_welcome(self, welcome: bytes) -> None:
        plain = nacl.crypto_box_open(welcome[24:], b"WELCOME-" + welcome[8:24], self.server, self.transient.secret)
        self.server_transient, self.cookie = plain[:32], plain[32:]
        self.shared = nacl.crypto_box_beforenm(self.server_transient, self.transient.secret)

    def initiate(self, vouch_nonce: bytes, metadata: bytes) -> bytes:
        vouch = nacl.crypto_box(self.transient.public + self.server, b"VOUCH---" + vouch_nonce, self.server_transient, self.own.secret)
        inside = self.own.public + vouch_nonce + vouch + metadata
        return b"\x08INITIATE" + self.cookie + short(2) + nacl.crypto_box_afternm(inside, b"CurveZMQINITIATE" + short(2), self.shared)

    def message(self, number: int, flags: int, data: bytes) -> bytes:
        box = nacl.crypto_box_afternm(bytes([flags]) + data, b"CurveZMQMESSAGEC" + short(number), self.shared)
        return b"\x07MESSAGE" + short(number) + box


@dataclass
class Server:
    """The server's half."""

    own: Pair
    transient: Pair
    cookie: bytes
    number: int = 0

    def welcome(self, hello: bytes, nonce: bytes) -> bytes:
        assert (len(hello), hello[:8], hello[8:80]) == (200, b"\x05HELLO\x01\x00", bytes(72))
        self.client_transient = hello[80:112]
        opened = nacl.crypto_box_open(hello[120:], b"CurveZMQHELLO---" + hello[112:120], self.client_transient, self.own.secret)
        assert opened == bytes(64)
        self.heard = int.from_bytes(hello[112:120], "big")
        plain = self.transient.public + self.cookie
        return b"\x07WELCOME" + nonce + nacl.crypto_box(plain, b"WELCOME-" + nonce, self.client_transient, self.own.secret)

    def take_initiate(self, initiate: bytes) -> tuple[bytes, bytes]:
        """The client's key, proved, and its metadata."""
        assert initiate[:9] == b"\x08INITIATE"
        assert initiate[9:105] == self.cookie
        self.shared = nacl.crypto_box_beforenm(self.client_transient, self.transient.secret)
        self._count(initiate[105:113])
        inside = nacl.crypto_box_open_afternm(initiate[113:], b"CurveZMQINITIATE" + initiate[105:113], self.shared)
        client, nonce, vouch, metadata = inside[:32], inside[32:48], inside[48:128], inside[128:]
        opened = nacl.crypto_box_open(vouch, b"VOUCH---" + nonce, client, self.transient.secret)
        assert opened == self.client_transient + self.own.public
        return client, metadata

    def _count(self, number: bytes) -> None:
        assert int.from_bytes(number, "big") > self.heard
        self.heard = int.from_bytes(number, "big")

    def ready(self, metadata: bytes) -> bytes:
        self.number += 1
        return b"\x05READY" + short(self.number) + nacl.crypto_box_afternm(metadata, b"CurveZMQREADY---" + short(self.number), self.shared)

    def message(self, flags: int, data: bytes) -> bytes:
        self.number += 1
        box = nacl.crypto_box_afternm(bytes([flags]) + data, b"CurveZMQMESSAGES" + short(self.number), self.shared)
        return b"\x07MESSAGE" + short(self.number) + box

    def take(self, message: bytes) -> tuple[int, bytes]:
        """The flags and the data of a client's MESSAGE."""
        assert message[:8] == b"\x07MESSAGE"
        self._count(message[8:16])
        opened = nacl.crypto_box_open_afternm(message[16:], b"CurveZMQMESSAGEC" + message[8:16], self.shared)
        return opened[0], opened[1:]


# ---- keys as files ----


def write_keys(folder: Path, address: str, server: bytes, own: Pair) -> dict[str, str]:
    """A user's keys directory in which this distributor is known; the variable that names it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "client.key").touch(0o600)
    (folder / "client.key").write_text(f"# a comment\npublic = {own.public.hex()}\nsecret = {own.secret.hex()}\n")
    (folder / "known_distributors").write_text(f"# a comment\n{address} {server.hex()}\n")
    return {"DWRAP_KEYS": str(folder)}


# ---- a ROUTER with a key ----

Judge = Callable[[bytes], tuple[bytes, bytes]]  # a client's key to ZAP's status code and user id


def admit(_key: bytes) -> tuple[bytes, bytes]:
    return b"200", b"somebody"


def locked(pair: Pair, judge: Judge = admit) -> Callable[[zmq.Context[Any], zmq.Socket[bytes]], None]:
    """What fake_distributor needs as `prepare`, so that it speaks CURVE only, and lets in whom `judge` does."""

    def prepare(context: zmq.Context[Any], router: zmq.Socket[bytes]) -> None:
        door = context.socket(zmq.REP)
        door.bind("inproc://zeromq.zap.01")
        threading.Thread(target=watch, args=(door,), daemon=True).start()
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
        router.setsockopt(zmq.ZAP_DOMAIN, b"tests")

    def watch(door: zmq.Socket[bytes]) -> None:
        try:
            while True:
                frames = door.recv_multipart()
                code, user = judge(frames[6])
                door.send_multipart([b"1.0", frames[1], code, b"", user, b""])
        except zmq.ContextTerminated:
            door.close(0)

    return prepare


# ---- golden vectors ----

VECTORS_HEAD = """\
# Golden vectors of a CurveZMQ handshake (RFC 26) between a DEALER and a ROUTER, in hexadecimal; made by tests/curve_peer.py with PyNaCl,
# read by the tests of both languages. `random` is what the client draws: its transient secret key, then the nonce of its vouch.
# Commands are bodies of frames. A message is flags, what it carries, and the whole MESSAGE; `+` goes to the server, `-` to the client.
"""


def vectors() -> str:
    """The file's text."""
    own, server, client_transient, server_transient = (Pair.of(bytes([digit] * 32)) for digit in (0x11, 0x22, 0x33, 0x44))
    vouch_nonce, welcome_nonce, cookie = bytes(range(0x50, 0x60)), bytes(range(0x60, 0x70)), bytes(range(96))
    client = Client(own, client_transient, server.public)
    peer = Server(server, server_transient, cookie)
    hello = client.hello()
    welcome = peer.welcome(hello, welcome_nonce)
    client.take_welcome(welcome)
    initiate = client.initiate(vouch_nonce, properties(Socket_Type=b"DEALER"))
    assert peer.take_initiate(initiate) == (own.public, properties(Socket_Type=b"DEALER"))
    ready = peer.ready(properties(Socket_Type=b"ROUTER", Identity=b""))
    lines = {
        "client": own.public + own.secret, "server": server.public, "random": client_transient.secret + vouch_nonce,
        "hello": hello, "welcome": welcome, "initiate": initiate, "ready": ready,
    }  # fmt: skip
    text = "".join(f"{name} {value.hex()}\n" for name, value in lines.items())
    carried = [(MORE, b"SUBMIT"), (MORE, b"job=1\0"), (0, b""), (COMMAND, b"\x04PING\0\0"), (0, bytes(range(256)))]
    for number, (flags, data) in enumerate(carried, 3):
        text += f"+ {flags} {data.hex() or '-'} {client.message(number, flags, data).hex()}\n"
    for flags, data in [(MORE, b"OFFER"), (0, b"stamp=1\0"), (COMMAND, b"\x04PONG"), (0, bytes(300))]:
        text += f"- {flags} {data.hex() or '-'} {peer.message(flags, data).hex()}\n"
    return VECTORS_HEAD + text
