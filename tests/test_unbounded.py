"""Peers that would make the distributor grow or stand still: it ends them, and serves the others meanwhile.

A real distributor in a process of its own, whose memory is looked at. Every attack has a control: what it would do if nobody watched,
or the same bytes in a form that is allowed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from curve_peer import GREETING, MORE, Client, Pair, framed, properties
from curve_peer import command as handshake_frame
from farm import Farm, eventually, resident_bytes
from test_private import command, dialled, message, shake_hands

from dwrap.protocol import authorized, keys

MB = 1024 * 1024
MOST_GROWN = 1_000 * MB
UNENDING_SECONDS = 20.0
HALF_OPEN = 500


@pytest.fixture
def farm(short_dir: Path) -> Iterator[Farm]:
    """One agent over a Unix socket; loopback TCP with the kernel's word; and an address that asks for keys."""
    listen = (f"ipc://{short_dir}/d.sock", "tcp://127.0.0.1:0", "tcp://0.0.0.0:0")
    with Farm(short_dir, agents=1, slots=4, listen=listen, more=("--keys", str(short_dir / "keys"))) as running:
        yield running
    print((short_dir / "farm.log").read_text("utf-8", "replace")[-5_000:])


def works(farm: Farm) -> None:
    done = subprocess.run(["dwrap", "true"], env=farm.environment(), timeout=30, check=False)
    assert done.returncode == 0


class Flood(threading.Thread):
    """Sends the same bytes again and again until the connection is ended, or time is over."""

    def __init__(self, raw: socket.socket, piece: bytes, pause: float = 0.0, seconds: float = UNENDING_SECONDS) -> None:
        super().__init__()
        self.raw, self.piece, self.sent, self.was_ended = raw, piece, 0, False
        self.pause, self.seconds = pause, seconds
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + self.seconds
        try:
            while time.monotonic() < deadline:
                self.raw.sendall(self.piece)
                self.sent += len(self.piece)
                time.sleep(self.pause)
        except OSError:
            self.was_ended = True


def grown(farm: Farm, before: int, floods: list[Flood]) -> int:
    """The most bytes that the distributor had grown by while they went on."""
    most = 0
    while any(flood.is_alive() for flood in floods):
        most = max(most, resident_bytes(farm.distributor.pid) - before)
        time.sleep(0.02)
    return most


UNENDING = {
    "tiny frames": b"\1\0" * 32_768,
    "frames of a kilobyte": (b"\3" + (1_024).to_bytes(8, "big") + b"x" * 1_024) * 64,
    "frames of a megabyte": b"\3" + MB.to_bytes(8, "big") + b"x" * MB,
}


@pytest.mark.parametrize("carrier", ["tcp", "ipc"])
@pytest.mark.parametrize("piece", UNENDING.values(), ids=UNENDING.keys())
def test_a_message_of_endless_frames_ends_its_sender_alone(farm: Farm, carrier: str, piece: bytes) -> None:
    works(farm)
    before = resident_bytes(farm.distributor.pid)
    with dialled(farm.over(carrier)) as raw:
        shake_hands(raw)
        raw.sendall(b"\1\4QUIT")
        flood = Flood(raw, piece)
        threading.Thread(target=works, args=[farm]).start()
        most = grown(farm, before, [flood])
    print(f"{flood.sent / MB:.0f} MB sent, grown by {most / MB:.0f} MB at most")
    assert flood.was_ended, "nobody ended it"
    assert most < MOST_GROWN
    works(farm)
    log = (farm.directory / "farm.log").read_text()
    assert "a message without end" in log


def test_one_that_sends_in_bursts_is_ended_too(farm: Farm) -> None:
    """Over a Unix socket, where only who sends just now is seen; 1.2 GB in half a minute went unnoticed so."""
    works(farm)
    before = resident_bytes(farm.distributor.pid)
    with dialled(farm.over("ipc")) as raw:
        shake_hands(raw)
        raw.sendall(b"\1\4QUIT")
        flood = Flood(raw, UNENDING["frames of a megabyte"] * 8, pause=0.2, seconds=2 * UNENDING_SECONDS)
        most = grown(farm, before, [flood])
    print(f"{flood.sent / MB:.0f} MB sent, grown by {most / MB:.0f} MB at most")
    assert flood.was_ended, "nobody ended it"
    assert most < MOST_GROWN
    works(farm)


def whole(verb: bytes, fields: bytes, *sizes: int) -> bytes:
    """A message that does end, with bodies of these sizes."""
    bodies = [b"\3" + size.to_bytes(8, "big") + b"x" * size for size in sizes]
    bodies[-1] = b"\2" + bodies[-1][1:]
    return b"\1" + bytes([len(verb)]) + verb + b"\1" + bytes([len(fields)]) + fields + b"".join(bodies)


@pytest.mark.parametrize("carrier", ["tcp", "ipc"])
@pytest.mark.parametrize(
    "piece",
    [whole(b"XYZZY", b"", *[8 * MB] * 6), whole(b"INPUT", b"job=j\0offset=0\0", 8 * MB), whole(b"GO", b"job=j\0stamp=s\0", 8 * MB, 8 * MB)],
    ids=["unknown", "input", "go"],
)
def test_messages_that_are_whole_and_large_hold_nobody_up(farm: Farm, carrier: str, piece: bytes) -> None:
    """They were taken 256 at a time: 3 GB of them had the distributor stand still until its agents were given up."""
    works(farm)
    before = resident_bytes(farm.distributor.pid)
    with dialled(farm.over(carrier)) as raw:
        shake_hands(raw)
        flood = Flood(raw, piece, seconds=5.0)
        began = time.monotonic()
        works(farm)
        took = time.monotonic() - began
        most = grown(farm, before, [flood])
    print(f"{flood.sent / MB:.0f} MB sent, grown by {most / MB:.0f} MB at most; a job took {took:.1f} s")
    assert flood.was_ended, "nobody ended it"
    assert most < MOST_GROWN
    assert took < 3
    assert "silent" not in (farm.directory / "farm.log").read_text()


def test_those_who_never_stop_talking_do_not_hold_up_the_ends_of_others(farm: Farm) -> None:
    """What was said before the end of a connection is read first; with these there was always more, and nothing else was done."""
    works(farm)
    raws = [dialled(farm.over("ipc")) for _ in range(6)]
    floods = []
    for raw in raws:
        shake_hands(raw)
        floods.append(Flood(raw, message(b"XYZZY", b"") * 4_096, seconds=8.0))
    began = time.monotonic()
    for _ in range(3):
        works(farm)
    took = time.monotonic() - began
    assert all(flood.is_alive() for flood in floods), "the attack is not on any more"
    for raw in raws:
        raw.close()
    for flood in floods:
        flood.join()
    print(f"three jobs took {took:.1f} s")
    assert took < 2


def test_the_control_without_a_watch_it_would_grow_and_grow(short_dir: Path) -> None:
    """The same flood against a ROUTER with the same limits, that nobody watches."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger, router.maxmsgsize, router.rcvhwm = 0, 8 * MB, 256
    port = router.bind_to_random_port("tcp://127.0.0.1")
    before = resident_bytes(os.getpid())
    with dialled(f"tcp://127.0.0.1:{port}") as raw:
        shake_hands(raw)
        sent = 0
        while sent < 8 * MB:
            sent += raw.send(UNENDING["tiny frames"])
        eventually(lambda: resident_bytes(os.getpid()) - before > 4 * sent, saying="it did not grow: is the watch still needed?")
    router.close()
    context.term()


def test_many_who_do_so_together_are_ended_too(farm: Farm) -> None:
    works(farm)
    before = resident_bytes(farm.distributor.pid)
    raws = [dialled(farm.over("tcp")) for _ in range(20)]
    floods = []
    for raw in raws:
        shake_hands(raw)
        raw.settimeout(UNENDING_SECONDS)
        floods.append(Flood(raw, b"\1\0" * 4_096))
    most = grown(farm, before, floods)
    print(f"{sum(flood.sent for flood in floods) / MB:.0f} MB sent, grown by {most / MB:.0f} MB at most")
    assert all(flood.was_ended for flood in floods)
    assert most < 2 * MOST_GROWN
    works(farm)


def test_a_message_as_large_as_any_may_be_is_taken(farm: Farm) -> None:
    """The control: a command line and an environment of megabytes while the distributor grows for them."""
    environment = farm.environment(**{f"BIG_{number}": "x" * 120_000 for number in range(12)})
    for _ in range(3):
        argv = ["dwrap", "sh", "-c", "echo ${#BIG_3}", "y" * 120_000]
        done = subprocess.run(argv, env=environment, capture_output=True, timeout=30, check=True)
        assert done.stdout == b"120000\n"


@pytest.mark.parametrize("carrier", ["tcp", "ipc"])
def test_one_that_asks_and_never_reads_is_ended(farm: Farm, carrier: str) -> None:
    for _ in range(20):
        works(farm)
    before = resident_bytes(farm.distributor.pid)
    with dialled(farm.over(carrier)) as raw:
        shake_hands(raw)
        flood = Flood(raw, message(b"QUERY", b"what=jobs\0") * 50)
        most = grown(farm, before, [flood])
    print(f"{flood.sent / MB:.2f} MB asked, grown by {most / MB:.0f} MB at most")
    assert flood.was_ended, "nobody ended it"
    assert most < MOST_GROWN
    works(farm)
    assert "reads the answers" in (farm.directory / "farm.log").read_text()


@pytest.mark.parametrize("carrier", ["tcp", "ipc"])
def test_a_frame_larger_than_any_may_be_ends_its_sender(farm: Farm, carrier: str) -> None:
    before = resident_bytes(farm.distributor.pid)
    for size, ends in ((8 * MB + 1, True), (2**62, True), (2**64 - 1, True), (MB, False)):
        with dialled(farm.over(carrier)) as raw:
            shake_hands(raw)
            raw.sendall(b"\2" + size.to_bytes(8, "big"))
            raw.settimeout(1 if not ends else 10)
            try:
                assert raw.recv(1) == b""
                was_ended = True
            except ConnectionResetError:
                was_ended = True
            except TimeoutError:
                was_ended = False
        assert was_ended is ends, size
    assert resident_bytes(farm.distributor.pid) - before < 20 * MB, "room is made before the size was looked at"
    works(farm)


# ---- handshakes ----


@pytest.mark.parametrize(
    "prefix",
    [
        b"\x01\x00" + b"\x0b\x00REGISTER\x0a" * 4,  # ZMTP 1.0
        b"\xff" + bytes(8) + b"\x7f\x01\x05\x00\x00" + b"\x00\x05QUERY" * 2,  # ZMTP 2.0
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n" + message(b"QUERY", b"what=status\0") * 3,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # a TLS hello
        b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32) + command(b"\x05HELLO" + bytes(194)),
    ],
    ids=["zmtp 1", "zmtp 2", "http", "tls", "a hello of zeros"],
)
@pytest.mark.parametrize("which", [1, 2])
def test_other_protocols_get_nowhere(farm: Farm, prefix: bytes, which: int) -> None:
    """On the address that trusts the kernel, and on the one that asks for keys."""
    address = farm.addresses[which].replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    before = farm.status()["totals"]
    with dialled(address) as raw:
        raw.sendall(prefix)
        raw.settimeout(0.3)
        said = b""
        try:
            while piece := raw.recv(4_096):
                said += piece
        except (TimeoutError, ConnectionResetError):
            pass
    assert b"REPLY" not in said
    assert b"WELCOME" not in said
    assert farm.status()["totals"] == before
    works(farm)


@pytest.mark.parametrize("which", [1, 2])
def test_a_handshake_of_a_byte_at_a_time_has_five_seconds(farm: Farm, which: int) -> None:
    address = farm.addresses[which].replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    began = time.monotonic()
    with dialled(address) as raw:
        try:
            for byte in b"\xff" + bytes(8) + b"\x7f\x03\x01" + bytes(52):
                raw.sendall(bytes([byte]))
                if time.monotonic() - began > 12:
                    break
                time.sleep(0.25)
        except OSError:
            pass
    assert 4 < time.monotonic() - began < 9


def rate(farm: Farm, seconds: float = 4.0) -> float:
    """Jobs a second through the farm, four at a time."""
    stop, done = time.monotonic() + seconds, [0, 0, 0, 0]

    def run(worker: int) -> None:
        while time.monotonic() < stop:
            subprocess.run(["dwrap", "true"], env=farm.environment(), timeout=30, check=True)
            done[worker] += 1

    workers = [threading.Thread(target=run, args=[worker]) for worker in range(len(done))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / seconds


def test_jobs_flow_while_five_hundred_connections_stay_half_open(farm: Farm) -> None:
    """What is compared ran just before and just after. A machine that is busy otherwise for seconds is no attack: up to three tries."""
    rate(farm, 1.0)
    shares = []
    while len(shares) < 3 and max(shares, default=0.0) < 0.8:
        quiet = rate(farm)
        disturbed = rate_beside_half_open(farm)
        quiet = (quiet + rate(farm)) / 2
        shares.append(disturbed / quiet)
        print(f"{quiet:.0f} jobs/s undisturbed, {disturbed:.0f} with {HALF_OPEN} half-open connections: {shares[-1]:.0%}")
    assert max(shares) >= 0.8


def rate_beside_half_open(farm: Farm) -> float:
    """They are made anew as the distributor ends them."""
    address = farm.addresses[2].replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    raws = [dialled(address) for _ in range(HALF_OPEN)]
    stop = threading.Event()

    def keep_open() -> None:
        while not stop.wait(0.2):
            for index, raw in enumerate(raws):
                if is_ended(raw):
                    raw.close()
                    raws[index] = dialled(address)

    keeper = threading.Thread(target=keep_open)
    keeper.start()
    try:
        disturbed = rate(farm, 8.0)
        assert sum(not is_ended(raw) for raw in raws) > HALF_OPEN // 2, "the attack is not on any more"
    finally:
        stop.set()
        keeper.join()
        for raw in raws:
            raw.close()
    return disturbed


def is_ended(raw: socket.socket) -> bool:
    try:
        raw.setblocking(False)
        return raw.recv(64, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        raw.settimeout(10)


def test_an_unending_message_behind_a_key_is_ended_as_well(farm: Farm) -> None:
    folder, pair = farm.directory / "keys", keys.new_pair()
    grant = authorized.parse_line(f"{pair.public} mallory submit uid=1000")
    assert grant is not None
    authorized.edit(folder, lambda text: authorized.with_grant(text, grant))
    eventually(lambda: "1 keys are let in" in (farm.directory / "farm.log").read_text())
    server = keys.read_pair(folder, "server").public
    before = resident_bytes(farm.distributor.pid)
    with dialled(farm.addresses[2].replace("0.0.0.0", "127.0.0.1")) as raw:  # noqa: S104
        client = Client(Pair(bytes.fromhex(pair.public), bytes.fromhex(pair.secret)), Pair.new(), bytes.fromhex(server))
        raw.sendall(GREETING)
        received(raw, 64)
        raw.sendall(handshake_frame(client.hello()))
        client.take_welcome(received(raw, 170)[2:])
        raw.sendall(handshake_frame(client.initiate(os.urandom(16), properties(Socket_Type=b"DEALER"))))
        assert b"READY" in raw.recv(4_096)
        pieces = b"".join(framed(client.message(number, MORE, b"x" * 4_096)) for number in range(3, 30_000))
        threading.Thread(target=works, args=[farm]).start()
        flood = Flood(raw, pieces)
        most = grown(farm, before, [flood])
    print(f"grown by {most / MB:.0f} MB at most")
    assert flood.was_ended
    assert "sends a message without end" in (farm.directory / "farm.log").read_text()
    assert most < MOST_GROWN
    works(farm)


def received(raw: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = raw.recv(size - len(data))
        assert piece, "it closed the connection"
        data += piece
    return data
