"""Bad, slow, silent and absent peers: the wrapper falls back in bounded time, or says in one line why it cannot."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import wrapper_program
from fake_distributor import FakeDistributor, Message, Script, offer_then, output, result
from wrapper_program import Wrapper

program = wrapper_program.program
dwrap = wrapper_program.dwrap
FAIL = {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "0"}
GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01NULL" + bytes(48)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER"


@contextmanager
def peer(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """A listener; `behave` gets each connection, one after the other. Yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                if select.select([listener], [], [], 0.05)[0]:
                    connection = listener.accept()[0]
                    with connection:
                        connection.settimeout(10)
                        try:
                            behave(connection)
                        except OSError:
                            continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join(15)


def until_closed(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def says(*pieces: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)
        until_closed(connection)

    return behave


def byte_by_byte(port: int, direction: str) -> Callable[[socket.socket], None]:
    """A way to that port of this machine on which one direction goes a byte at a time."""

    def relay(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with socket.create_connection(("127.0.0.1", port)) as upstream:
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pairs = {connection: upstream, upstream: connection}
            while True:
                for source in select.select(list(pairs), [], [])[0]:
                    slow = (source is connection) == (direction == "to")
                    data = source.recv(1 if slow else 65536)
                    if not data:
                        return
                    pairs[source].sendall(data)

    return relay


@pytest.mark.parametrize("direction", ["to", "from"])
def test_handshake_with_a_break_between_every_two_bytes(dwrap: Wrapper, direction: str) -> None:
    with FakeDistributor(offer_then(output(b"hi"), result(stdout_bytes=2))) as d:
        port = int(d.address.rpartition(":")[2])
        with peer(byte_by_byte(port, direction)) as address:
            done = dwrap.run(address, "cmd", env=FAIL | {"DWRAP_PATIENCE": "5"})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hi", b"")


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("http", [b"HTTP/1.1 400 Bad Request\r\n\r\n"]),
        ("zmtp 1", [b"\x01\x00"]),
        ("zmtp 2", [GREETING[:10] + b"\x01\x05\x00\x00"]),
        ("another socket", [GREETING, READY.replace(b"ROUTER", b"PULL  ")]),
        ("curve", [GREETING.replace(b"NULL", b"CURV"), READY]),
        ("oversized", [GREETING, READY, b"\x02\x00\x00\x00\x00\x7f\xff\xff\xff"]),
        ("endless frames", [GREETING, READY, b"\x01\x00" * 100]),
        ("malformed", [GREETING, READY, b"\x01\x05OFFER\x00\x03job"]),
        ("lower case", [GREETING, READY, b"\x01\x05offer\x00\x00"]),
        ("one frame", [GREETING, READY, b"\x00\x05OFFER"]),
    ],
)
def test_something_else_answers(dwrap: Wrapper, name: str, pieces: list[bytes]) -> None:
    with peer(says(*pieces)) as address:
        failed = dwrap.run(address, "cmd", env=FAIL)
        here = dwrap.run(address, "echo", "ran")
    assert failed.returncode == 125, name
    assert f"something else answers at {address}".encode() in failed.stderr
    assert failed.stderr.count(b"\n") == 1
    assert (here.returncode, here.stdout, here.stderr) == (0, b"ran\n", b"")


@pytest.mark.parametrize("pieces", [[], [GREETING[:30]], [GREETING], [GREETING, READY]])
def test_silence_is_bounded_remembered_and_forgotten(dwrap: Wrapper, pieces: list[bytes]) -> None:
    with peer(says(*pieces)) as address:
        start = time.monotonic()
        assert dwrap.run(address, "echo", "ran").stdout == b"ran\n"
        first = time.monotonic() - start
        start = time.monotonic()
        assert dwrap.run(address, "echo", "ran").stdout == b"ran\n"
        second = time.monotonic() - start
    assert 1.0 < first < 2.0
    assert second < (0.1 if "build" in str(dwrap.program) else 0.4)
    assert len(list((dwrap.runtime / "dwrap").glob("silent-*"))) == 1
    with FakeDistributor(offer_then(result()), address) as d:
        assert dwrap.run(address, "cmd", env=FAIL).returncode == 0
        assert d.by_verb("GO")
    assert not list((dwrap.runtime / "dwrap").glob("silent-*"))


def test_old_silence_is_tried_at_length_by_one(dwrap: Wrapper) -> None:
    with peer(says()) as address:
        dwrap.run(address, "true")
        (memory,) = (dwrap.runtime / "dwrap").glob("silent-*")
        os.utime(memory, (time.time() - 10, time.time() - 10))
        start = time.monotonic()
        dwrap.run(address, "true")
        long = time.monotonic() - start
    assert long > 1.0
    assert time.time() - memory.stat().st_mtime < 5


def test_memory_of_others_does_not_count(dwrap: Wrapper) -> None:
    (dwrap.runtime / "dwrap").mkdir(mode=0o755)
    (dwrap.runtime / "dwrap").chmod(0o777)
    with peer(says()) as address:
        for _ in range(2):
            start = time.monotonic()
            dwrap.run(address, "true")
            assert time.monotonic() - start > 1.0


def test_the_runtime_directory_of_another_is_left_alone(dwrap: Wrapper) -> None:
    """`sudo` may keep XDG_RUNTIME_DIR: a directory of root's in it would end its owner's memory."""
    if os.geteuid() != 0:
        pytest.skip("a directory of another user needs root")
    os.chown(dwrap.runtime, 65534, 65534)
    with peer(says()) as address:
        dwrap.run(address, "true")
        assert not list(dwrap.runtime.iterdir())
        start = time.monotonic()
        dwrap.run(address, "true")
        assert time.monotonic() - start < 1.0


def test_a_refused_connection_falls_back_at_once(dwrap: Wrapper) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    assert dwrap.run(address, "echo", "here").stdout == b"here\n"
    assert time.monotonic() - start < 1.0
    done = dwrap.run(address, "echo", "here", env=FAIL)
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"no distributor answers at tcp://" in done.stderr


def test_a_list_is_tried_in_order(dwrap: Wrapper, short_dir: Path) -> None:
    with FakeDistributor(offer_then(result(256 * 9))) as d:
        hosts = f"ipc://{short_dir}/nobody,{d.address}"
        assert dwrap.run("cmd", env=FAIL | {"DWRAP_HOST": hosts}).returncode == 9


def test_fail_retries_for_its_patience(dwrap: Wrapper, short_dir: Path) -> None:
    address = f"ipc://{short_dir}/late"
    process = dwrap.popen(address, "cmd", env={"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "20"})
    with FakeDistributor(offer_then(result(256 * 4)), address), process:
        assert process.wait(20) == 4


def test_a_frozen_distributor_before_go(dwrap: Wrapper) -> None:
    """It has said QUEUED and is then not heard again: the command runs here within 2 s of the last word."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(GREETING + READY)
        data = b""
        while len(data.partition(b"job=")[2]) < 32:
            data += connection.recv(65536)
        job = data.partition(b"job=")[2][:32]
        fields = b"job=" + job + b"\0ahead=1\0"
        connection.sendall(b"\x01\x06QUEUED\x00" + bytes([len(fields)]) + fields)
        until_closed(connection)

    with peer(behave) as address:
        start = time.monotonic()
        assert dwrap.run(address, "echo", "here").stdout == b"here\n"
        assert 1.5 < time.monotonic() - start < 2.6


def test_a_waiting_wrapper_stays_while_pings_are_answered(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield ("QUEUED", [("ahead", 1)])
        yield None

    with FakeDistributor(script) as d, dwrap.popen(d.address, "cmd", env=FAIL) as process:
        d.wait_for("SUBMIT")
        with pytest.raises(Exception, match="timed out"):
            process.wait(2.8)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("verb", "env", "status", "ran"),
    [
        ("HERE", {}, 0, True),
        ("HERE", FAIL, 0, True),
        ("UNAVAILABLE", {}, 0, True),
        ("UNAVAILABLE", FAIL, 125, False),
        ("UNAVAILABLE", {"DWRAP_LABELS": "arch=arm64"}, 125, False),
        ("REFUSED", {}, 125, False),
    ],
)
def test_words_that_end_it(dwrap: Wrapper, verb: str, env: dict[str, str], status: int, ran: bool) -> None:
    def script(_submit: Message) -> Script:
        yield (verb, [("reason", "because")])

    with FakeDistributor(script) as d:
        done = dwrap.run(d.address, "touch", "ran", env=env)
    assert (done.returncode, (dwrap.directory / "ran").exists()) == (status, ran)
    assert done.stderr == b"" if ran else b"because" in done.stderr
    assert [line[2] for line in dwrap.log()] == (["because"] if ran else [])


def test_off_loopback_needs_a_word(dwrap: Wrapper) -> None:
    done = dwrap.run("tcp://192.0.2.1:7776", "true")
    assert done.returncode == 125
    assert b"DWRAP_INSECURE=1" in done.stderr


def test_the_word_is_enough(dwrap: Wrapper) -> None:
    """A warning comes with the first command that goes there (test_wrapper_keys.py)."""
    done = dwrap.run("tcp://192.0.2.1:7776", "echo", "here", env={"DWRAP_INSECURE": "1"})
    assert (done.stdout, done.stderr) == (b"here\n", b"")


@pytest.mark.parametrize(
    "address", ["tcp://:1", "tcp://h:0", "tcp://h:70000", "ipc://", "udp://h:1", "tcp://[::1:5", "tcp://a b:1", "ipc://" + "x" * 200]
)
def test_addresses_that_are_none(dwrap: Wrapper, address: str) -> None:
    done = dwrap.run("-H", address, "true")
    assert done.returncode == 125
    assert b"cannot understand the distributor's address" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_unknown_names_fall_back(dwrap: Wrapper) -> None:
    done = dwrap.run("-H", "no-such-host.invalid", "echo", "here")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"here\n", b"")


def test_a_name_service_that_hangs_is_asked_once(dwrap: Wrapper) -> None:
    """With the warning for an open network in the way, too."""
    hanging = dwrap.directory / "getent"
    hanging.write_text("#!/bin/sh\nexec sleep 20\n")
    hanging.chmod(0o755)
    dwrap.prefix = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /usr/bin/getent && exec "$@"', str(hanging)]
    if dwrap.run("--version").returncode != 0:
        pytest.skip("a getent of our own needs root and mount namespaces")
    start = time.monotonic()
    assert dwrap.run("-H", "no-such-host.invalid", "echo", "x", env={"DWRAP_INSECURE": "1"}).stdout == b"x\n"
    first = time.monotonic() - start
    assert 1.0 < first < 2.0
    start = time.monotonic()
    dwrap.run("-H", "no-such-host.invalid", "true", env={"DWRAP_INSECURE": "1"})
    assert time.monotonic() - start < 0.8


def test_names_are_resolved_and_remembered(dwrap: Wrapper) -> None:
    name = socket.gethostname()
    try:
        loopback = all(info[4][0].startswith("127.") or info[4][0] == "::1" for info in socket.getaddrinfo(name, 1))  # type: ignore[union-attr]
    except OSError:
        loopback = False
    if not loopback:
        pytest.skip("this machine's own name does not lead to loopback")
    dwrap.run("-H", f"{name}:1", "true")
    assert list((dwrap.runtime / "dwrap").glob("name-*"))
