"""The wrapper with keys against libzmq: everything arrives, and a peer that is not the one that is known gets nothing."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wrapper_program
import zmq
from curve_peer import GREETING, Judge, Pair, admit, command, locked, write_keys
from fake_distributor import FakeDistributor, Message, Script, offer_then, output, result
from test_wrapper_peers import byte_by_byte, peer
from wrapper_program import Wrapper

program = wrapper_program.program
dwrap = wrapper_program.dwrap
FAIL = {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "0"}
SERVER, USER, OTHER = Pair.new(), Pair.new(), Pair.new()
SIZES = (0, 1, 255, 256, 32 * 1024)
MIB = 1024 * 1024


def locked_distributor(script: Callable[[Message], Script], judge: Judge = admit, endpoint: str = "tcp://127.0.0.1:*") -> FakeDistributor:
    return FakeDistributor(script, endpoint, prepare=locked(SERVER, judge))


def knows(dwrap: Wrapper, address: str, server: Pair = SERVER) -> dict[str, str]:
    """Settings with which the wrapper knows that address by that key."""
    return write_keys(dwrap.directory / "keys", address, server.public, USER)


@pytest.mark.parametrize("endpoint", ["tcp", "ipc"])
def test_a_command_runs_elsewhere_in_silence(dwrap: Wrapper, endpoint: str, short_dir: Path) -> None:
    seen: list[bytes] = []

    def judge(key: bytes) -> tuple[bytes, bytes]:
        seen.append(key)
        return admit(key)

    bind = f"ipc://{short_dir}/d" if endpoint == "ipc" else "tcp://127.0.0.1:*"
    with locked_distributor(offer_then(output(b"hello\n"), result(stdout_bytes=6)), judge, bind) as d:
        done = dwrap.run(d.address, "anything", "--at", "all", env=FAIL | knows(dwrap, d.address) | {"MARK": "yes"})
        assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")
        d.wait_for("ACK")
    ((_, _, (argv, env, _)),) = d.by_verb("GO")
    assert argv == b"anything\0--at\0all\0"
    assert b"MARK=yes\0" in env
    assert b"DWRAP_KEYS" not in env
    assert seen == [USER.public]


def test_frames_of_every_size_arrive_both_ways(dwrap: Wrapper) -> None:
    pieces = [bytes([65 + n]) * size for n, size in enumerate(SIZES)]
    offsets = [sum(SIZES[:n]) for n in range(len(SIZES))]
    outputs = [output(piece, offset, "stdout") for piece, offset in zip(pieces, offsets, strict=True) if piece]
    data = b"".join(pieces)

    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s")])
        yield None
        yield from outputs
        limit, received = 0, b""
        for size in (*SIZES[1:], MIB):
            limit += size
            yield ("CREDIT", [("stream", "stdin"), ("limit", limit)])
            while len(received) < min(limit, len(data)):
                message = yield None
                received += message[2][0] if message and message[0] == "INPUT" else b""
        yield output(received, len(data))
        yield result(stdout_bytes=2 * len(data), stdin_taken=len(data))

    with locked_distributor(script) as d:
        done = dwrap.run(d.address, "cat", env=FAIL | knows(dwrap, d.address), data=data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == 2 * data


@pytest.mark.parametrize("size", [2, 255, 256, 32 * 1024, 4 * MIB])
def test_arguments_of_every_size_arrive(dwrap: Wrapper, size: int) -> None:
    most = 100_000
    words = ["x", *("y" * (min(most, size - 2 - at) - 1) for at in range(0, size - 2, most))]

    def more_stack() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (64 * MIB, resource.getrlimit(resource.RLIMIT_STACK)[1]))

    with locked_distributor(offer_then(result())) as d:
        done = dwrap.run(d.address, *words, env=FAIL | knows(dwrap, d.address), preexec_fn=more_stack)
        assert (done.returncode, done.stderr) == (0, b"")
    ((_, _, (argv, _, _)),) = d.by_verb("GO")
    assert argv == b"".join(word.encode() + b"\0" for word in words)
    assert len(argv) == size


def test_an_empty_environment_arrives(dwrap: Wrapper) -> None:
    with locked_distributor(offer_then(result())) as d:
        dwrap.env = {}
        assert dwrap.run(d.address, "cmd", env=FAIL | knows(dwrap, d.address)).returncode == 0
    ((_, _, (_, env, seen)),) = d.by_verb("GO")
    assert (env, seen) == (b"", b"")


@pytest.mark.parametrize("direction", ["to", "from"])
def test_a_break_between_every_two_bytes_is_no_matter(dwrap: Wrapper, direction: str) -> None:
    with locked_distributor(offer_then(output(b"hi"), output(b"ho", stream="stderr"), result(stdout_bytes=2, stderr_bytes=2))) as d:
        port = int(d.address.rpartition(":")[2])
        with peer(byte_by_byte(port, direction)) as address:
            done = dwrap.run(address, "cmd", env=FAIL | {"DWRAP_PATIENCE": "5"} | knows(dwrap, address))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hi", b"ho")


def test_its_pings_are_answered(dwrap: Wrapper) -> None:
    """libzmq would end a connection that does not answer for 0.4 s; there would be no second GO."""

    def impatient(context: zmq.Context[Any], router: zmq.Socket[bytes]) -> None:
        locked(SERVER)(context, router)
        router.setsockopt(zmq.HEARTBEAT_IVL, 50)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 400)

    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s")])
        yield None
        time.sleep(1.5)
        yield result()

    with FakeDistributor(script, prepare=impatient) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL | knows(dwrap, d.address)).returncode == 0
        assert [message[0] for message in d.seen].count("SUBMIT") == 1
        assert not d.by_verb("ATTACH")


def test_our_pings_are_answered(dwrap: Wrapper) -> None:
    """After two seconds without an answer it would take the distributor for gone."""

    def script(_submit: Message) -> Script:
        yield ("QUEUED", [("ahead", 1)])
        time.sleep(4)
        yield ("OFFER", [("stamp", "s")])
        yield None
        yield result()

    with locked_distributor(script) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL | knows(dwrap, d.address)).returncode == 0
        assert len(d.by_verb("SUBMIT")) == 1


def fails_and_falls_back(dwrap: Wrapper, address: str, env: dict[str, str], *words: str) -> None:
    """With DWRAP_FALLBACK=fail one line that has these words; else the command runs here, in silence, and the log has them."""
    failed = dwrap.run(address, "cmd", env=FAIL | env)
    assert (failed.returncode, failed.stdout) == (125, b"")
    assert failed.stderr.count(b"\n") == 1
    for word in words:
        assert word.encode() in failed.stderr
    here = dwrap.run(address, "echo", "ran", env=env)
    assert (here.returncode, here.stdout, here.stderr) == (0, b"ran\n", b"")
    assert all(word in dwrap.log()[-1][2] for word in words)


def test_another_key_than_the_known_one(dwrap: Wrapper) -> None:
    with locked_distributor(offer_then(result())) as d:
        env = knows(dwrap, d.address, OTHER)
        fails_and_falls_back(dwrap, d.address, env, "its key is probably not the one", d.address, "known_distributors")
        assert d.seen == []
        assert dwrap.run(d.address, "cmd", env=FAIL | knows(dwrap, d.address)).returncode == 0


def test_a_key_that_is_not_let_in_is_not_tried_again(dwrap: Wrapper) -> None:
    asked: list[bytes] = []

    def judge(key: bytes) -> tuple[bytes, bytes]:
        asked.append(key)
        return b"400", b""

    with locked_distributor(offer_then(result()), judge) as d:
        env = knows(dwrap, d.address)
        start = time.monotonic()
        done = dwrap.run(d.address, "cmd", env=env | {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "20"})
        assert time.monotonic() - start < 5
        assert len(asked) == 1
        assert done.returncode == 125
        fails_and_falls_back(dwrap, d.address, env, "does not let this key in", f"dwrapctl key allow NAME {USER.public.hex()}")
        assert d.seen == []


def test_who_has_proved_nothing_cannot_refuse_a_key(dwrap: Wrapper) -> None:
    """Nobody knows whose word an ERROR before WELCOME is: it ends a connection, and the distributor is asked again."""
    refused: list[bytes] = []

    def refuse(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        heard = b""
        while len(heard) < 64 + 2 + 200:
            heard += connection.recv(4096)
        refused.append(heard)
        connection.sendall(command(b"\x05ERROR\x03400"))
        connection.recv(1)

    with peer(refuse) as address:
        fails_and_falls_back(dwrap, address, knows(dwrap, address), "it closed the connection")
        before = len(refused)
        done = dwrap.run(address, "cmd", env=knows(dwrap, address) | {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "1"})
        assert (done.returncode, b"let this key in" in done.stderr) == (125, False)
        assert len(refused) > before + 2


def test_one_that_proves_nothing_is_not_the_end(dwrap: Wrapper) -> None:
    """Somebody without the key stands there for a moment."""
    with FakeDistributor(offer_then(result())) as stranger:
        env = knows(dwrap, stranger.address) | {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "20"}
        running = dwrap.popen(stranger.address, "cmd", env=env)
        time.sleep(0.6)
        assert running.poll() is None
        assert stranger.seen == []
    with running, locked_distributor(offer_then(result(256 * 7)), endpoint=stranger.address):
        assert running.wait(20) == 7


def test_the_next_distributor_is_asked_when_one_does_not_let_us_in(dwrap: Wrapper) -> None:
    with (
        locked_distributor(offer_then(result()), lambda _key: (b"400", b"")) as closed,
        FakeDistributor(offer_then(result(256 * 7))) as open_to_all,
    ):
        env = knows(dwrap, closed.address) | {"DWRAP_HOST": f"{closed.address},{open_to_all.address}"}
        assert dwrap.run("cmd", env=FAIL | env).returncode == 7


def test_a_distributor_that_cannot_check_keys_is_asked_again(dwrap: Wrapper) -> None:
    answers = [(b"500", b""), (b"500", b""), (b"500", b""), (b"200", b"somebody")]
    with locked_distributor(offer_then(result()), lambda _key: answers.pop(0)) as d:
        env = knows(dwrap, d.address)
        fails_and_falls_back(dwrap, d.address, env, "cannot check keys now")
        assert dwrap.run(d.address, "cmd", env=env | {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "20"}).returncode == 0


@pytest.mark.parametrize("insecure", ["0", "1"])
def test_a_known_one_without_keys_is_not_spoken_to(dwrap: Wrapper, insecure: str) -> None:
    with FakeDistributor(offer_then(result())) as d:
        env = knows(dwrap, d.address) | {"DWRAP_INSECURE": insecure}
        fails_and_falls_back(dwrap, d.address, env, "it does not prove who it is", "known_distributors")
        assert d.seen == []
        assert dwrap.run(d.address, "cmd", env=FAIL).returncode == 0


def test_one_with_keys_that_is_not_known_says_what_to_do(dwrap: Wrapper) -> None:
    with locked_distributor(offer_then(result())) as d:
        fails_and_falls_back(dwrap, d.address, {}, "it asks for keys", "dwrapctl join", f"dwrapctl key trust {d.address} KEY")
        assert d.seen == []


def test_keys_come_before_the_word_that_allows_none(dwrap: Wrapper) -> None:
    """An address off this machine whose key is known needs no DWRAP_INSECURE, and no warning is due."""
    env = knows(dwrap, "tcp://192.0.2.1:7776")
    for insecure in ("0", "1"):
        done = dwrap.run("tcp://192.0.2.1:7776", "echo", "here", env=env | {"DWRAP_INSECURE": insecure})
        assert (done.returncode, done.stdout, done.stderr) == (0, b"here\n", b"")
