"""A distributor that starts anew before GO: commands that wait for it ask again, and those that come meanwhile give it a moment."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
import wrapper_program
from fake_distributor import FakeDistributor, Message, Reply, offer_then, output, result
from test_wrapper_torn import FAIL, OFFER, until
from torn_distributor import Cut, Script, TornDistributor
from wrapper_program import Wrapper

program = wrapper_program.program
dwrap = wrapper_program.dwrap
QUEUED: Reply = ("QUEUED", [("ahead", 3)])


def alive(dwrap: Wrapper) -> list[Path]:
    return list((dwrap.runtime / "dwrap").glob("alive-*"))


def runs(_submit: Message) -> Script:
    yield OFFER
    yield from until("GO")
    yield output(b"there")
    yield result(stdout_bytes=5)


@pytest.mark.parametrize(("last", "size"), [(QUEUED, 0), (QUEUED, 20), (QUEUED, None), (OFFER, 0), (OFFER, 20)])
def test_one_that_waits_asks_again(dwrap: Wrapper, last: Reply, size: int | None) -> None:
    """As a new job, twice: the distributor may not have noticed that the last one left."""
    broken: list[Message] = []

    def script(submit: Message) -> Script:
        if len(broken) < 2:
            broken.append(submit)
            yield QUEUED
            yield Cut(last, size)
        else:
            yield QUEUED
            yield from runs(submit)

    with TornDistributor(script) as d:
        done = dwrap.run(d.address, "echo", "here")
        names = [m[1].text("job") for m in d.by_verb("SUBMIT")]
        assert (done.returncode, done.stdout, done.stderr) == (0, b"there", b"")
        assert len(set(names)) == len(names) == 3
        assert [m[1].text("job") for m in d.by_verb("GO")] == [names[2]]


def test_one_that_waits_gives_it_time_to_start(dwrap: Wrapper) -> None:
    """It is away for longer than a first word may take."""

    def script(_submit: Message) -> Script:
        yield QUEUED
        yield None

    with TornDistributor(script) as first, dwrap.popen(first.address, "echo", "here") as process:
        first.wait_for("SUBMIT")
        first.__exit__(None, None, None)
        with pytest.raises(Exception, match="timed out"):
            process.wait(2.5)
        with TornDistributor(runs, first.port):
            assert process.communicate(timeout=20)[0] == b"there"


def test_one_that_waits_in_vain_runs_here(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield QUEUED
        yield Cut()

    start = time.monotonic()
    with TornDistributor(script) as d:
        done = dwrap.run(d.address, "echo", "here")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"here\n", b"")
    assert 9.0 < time.monotonic() - start < 13.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("carrier", ["tcp", "ipc"])
def test_one_that_was_alive_is_given_a_moment(dwrap: Wrapper, carrier: str, short_dir: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}" if carrier == "tcp" else f"ipc://{short_dir}/d"
    with FakeDistributor(offer_then(result()), address):
        assert dwrap.run(address, "cmd", env=FAIL).returncode == 0
    (mark,) = alive(dwrap)
    with dwrap.popen(address, "echo", "here") as process:
        with pytest.raises(Exception, match="timed out"):
            process.wait(0.3)
        with FakeDistributor(offer_then(output(b"there"), result(stdout_bytes=5)), address):
            assert process.communicate(timeout=20)[0] == b"there"
    assert mark.exists()


def test_and_once_that_was_in_vain_no_more(dwrap: Wrapper) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with FakeDistributor(offer_then(result()), address):
        dwrap.run(address, "cmd", env=FAIL)
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        assert dwrap.run(address, "echo", "here").stdout == b"here\n"
        seconds.append(time.monotonic() - start)
    assert 1.0 < seconds[0] < 2.0
    assert seconds[1] < (0.1 if "build" in str(dwrap.program) else 0.5)
    assert not alive(dwrap)


def test_that_it_was_alive_is_forgotten_in_time(dwrap: Wrapper) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with FakeDistributor(offer_then(result()), address):
        dwrap.run(address, "cmd", env=FAIL)
    (mark,) = alive(dwrap)
    os.utime(mark, (time.time() - 61, time.time() - 61))
    start = time.monotonic()
    assert dwrap.run(address, "echo", "here").stdout == b"here\n"
    assert time.monotonic() - start < 0.8


def test_the_mark_is_renewed_now_and_then_only(dwrap: Wrapper) -> None:
    with FakeDistributor(offer_then(result())) as d:
        dwrap.run(d.address, "cmd", env=FAIL)
        (mark,) = alive(dwrap)
        for age, renewed in ((10, False), (30, True)):
            then = time.time() - age
            os.utime(mark, (then, then))
            dwrap.run(d.address, "cmd", env=FAIL)
            assert (mark.stat().st_mtime > then + 1) == renewed


def test_a_first_word_that_breaks_is_asked_for_again(dwrap: Wrapper) -> None:
    """SUBMIT had arrived, and nothing came back: within the bound for the first word it is said again."""
    broken = threading.Event()

    def script(submit: Message) -> Script:
        if not broken.is_set():
            broken.set()
            yield Cut()
            return
        yield from runs(submit)

    with TornDistributor(runs) as d:
        dwrap.run(d.address, "cmd", env=FAIL)
    with TornDistributor(script, d.port) as again:
        assert dwrap.run(again.address, "echo", "here").stdout == b"there"
        assert len({m[1].text("job") for m in again.by_verb("SUBMIT")}) == 2
