"""The wrapper whose connection breaks after GO: it comes back, and output, input and signals go on at the right byte."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import wrapper_program
from fake_distributor import Message, Reply, output, result
from torn_distributor import Cut, Script, TornDistributor, encoded
from wrapper_program import Wrapper

program = wrapper_program.program
dwrap = wrapper_program.dwrap
FAIL = {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "20"}
JOB = b"0" * 32
OFFER: Reply = ("OFFER", [("stamp", "s1"), ("attempt", 1)])


def credit(limit: int, received: int | None = None) -> Reply:
    return ("CREDIT", [("stream", "stdin"), ("limit", limit), *([] if received is None else [("received", received)])])


def until(verb: str) -> Any:
    """The job's next message of this verb."""
    while True:
        message = yield None
        assert message is not None
        if message[0] == verb:
            return message


def attached(stamp: str = "p1") -> Any:
    """Both rounds of an ATTACH; the second."""
    yield from until("ATTACH")
    yield ("PROVE", [("stamp", stamp)])
    return (yield from until("ATTACH"))


def sends(pieces: list[Reply], attach: Message) -> Script:
    """What an agent says again of `pieces`, all of them stdout, in answer to an ATTACH."""
    start = attach[1].number("stdout")
    whole = b"".join(piece[2] for piece in pieces)
    if start < len(whole):
        yield output(whole[start:], start)
    yield credit(0, 0)


PIECES = [output(b"first "), output(b"second ", 6), output(b"third", 13)]
DONE = result(stdout_bytes=18)
STORY: list[Reply] = [*PIECES, DONE]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("after", range(len(STORY)))
def test_torn_between_any_two_messages(dwrap: Wrapper, after: int, reset: bool) -> None:
    def script(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        yield from STORY[:after]
        yield Cut(reset=reset)
        attach = yield from attached()
        yield from sends(PIECES, attach)
        yield DONE

    with TornDistributor(script) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"first second third", b"")
        assert len(d.by_verb("GO")) == 1
        d.wait_for("ACK")


LARGE = [output(bytes([65 + n]) * 5000, 5000 * n) for n in range(4)]
LENGTH = len(encoded(JOB, LARGE[2]))


@pytest.mark.parametrize("size", [0, 1, 2, 8, 9, 10, 40, LENGTH // 2, LENGTH - 1, LENGTH])
def test_torn_within_a_message(dwrap: Wrapper, size: int) -> None:
    """Twice in a row, the second time in the middle of what is said again."""

    def script(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        yield from LARGE[:2]
        yield Cut(LARGE[2], size)
        yield from attached()
        yield LARGE[1]
        yield Cut(LARGE[2], size)
        attach = yield from attached("p2")
        yield from sends(LARGE, attach)
        yield result(stdout_bytes=20_000)

    with TornDistributor(script) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
        offsets = [m[1].number("stdout") for m in d.by_verb("ATTACH")]
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(piece[2] for piece in LARGE)
    assert set(offsets) == {15_000 if size == LENGTH else 10_000}


def test_a_result_that_is_torn_comes_again(dwrap: Wrapper) -> None:
    final = result(256 * 7, stdout_bytes=18)

    def script(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        yield from PIECES
        yield Cut(final, 30)
        yield from attached()
        yield final

    with TornDistributor(script) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
    assert (done.returncode, done.stdout) == (7, b"first second third")


def test_attach_says_what_submit_said_and_how_far_it_is(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s1"), ("attempt", 7_000_000_001), ("epoch", 17)])
        yield from until("GO")
        limit = 65_536
        for number in range(20):
            while limit < (number + 1) * 5000:
                limit = (yield from until("CREDIT"))[1].number("limit")
            yield ("OUTPUT", [("attempt", 7_000_000_001), ("stream", "stdout"), ("offset", number * 5000)], b"x" * 5000)
        yield ("OUTPUT", [("attempt", 7_000_000_001), ("stream", "stderr"), ("offset", 0)], b"oh")
        yield Cut()
        yield from attached("proof")
        yield ("RESULT", [("attempt", 7_000_000_001), ("status", 0), ("stdout_bytes", 100_000), ("stderr_bytes", 2)])

    with TornDistributor(script) as d:
        settings = {"DWRAP_LABELS": "arch=arm64", "DWRAP_BUILD": "nightly", "DWRAP_PRIORITY": "-3"}
        done = dwrap.run(d.address, "g++", "-c", str(dwrap.directory / "a" / "x.c"), env=FAIL | settings)
        (submit,), attaches = d.by_verb("SUBMIT"), d.by_verb("ATTACH")
        before = d.seen[: [m[0] for m in d.seen].index("ATTACH")]
        limits = [m[1].number("limit") for m in before if m[0] == "CREDIT"]
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 100_000, b"oh")
    for _verb, fields, _bodies in attaches:
        for key in ("version", "job", "cwd", "command", "build", "host", "pid", "path", "label", "priority"):
            assert fields.texts(key) == submit[1].texts(key), key
        assert (fields.number("attempt"), fields.number("epoch")) == (7_000_000_001, 17)
        assert (fields.number("stdout"), fields.number("stderr"), fields.number("stderr_limit")) == (100_000, 2, 65_536)
        assert limits[-1] <= fields.number("stdout_limit") <= 165_536  # the last CREDIT may have been lost
        assert 0 <= fields.number("go_ms") < 20_000
    assert [m[1].text("stamp", "") for m in attaches] == ["", "proof"]


def test_resume_is_answered_with_the_known_stamp(dwrap: Wrapper) -> None:
    """And bytes that overtake what was lost are taken only in their turn."""

    def script(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        yield Cut()
        yield from attached("proof")
        yield credit(0, 0)
        yield PIECES[0]
        yield ("RESUME", [])
        yield from until("ATTACH")
        yield PIECES[2]
        yield from PIECES[1:]
        yield credit(0, 0)
        yield DONE

    with TornDistributor(script) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
        attaches = [(m[1].text("stamp", ""), m[1].number("stdout")) for m in d.by_verb("ATTACH")]
    assert (done.returncode, done.stdout) == (0, b"first second third")
    assert attaches == [("", 0), ("proof", 0), ("proof", 6)]
    assert d.connections == 2


def test_a_gap_without_a_torn_connection_is_an_error(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        yield PIECES[1]

    with TornDistributor(script) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL).returncode == 125


def test_credit_goes_on_after_a_torn_connection(dwrap: Wrapper) -> None:
    """1 MB, a break every 60 kB, and never more sent than there is credit for."""
    size, total = 10_000, 100

    def script(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        limit, at = 65_536, 0
        while at < total:
            while limit < (at + 1) * size:
                limit = (yield from until("CREDIT"))[1].number("limit")
            yield output(bytes([at]) * size, at * size)
            at += 1
            if at % 6 == 0:
                yield Cut(output(bytes([at]) * size, at * size), 5000)
                fields = (yield from attached())[1]
                limit = fields.number("stdout_limit")
                at = fields.number("stdout") // size
                yield credit(0, 0)
        yield result(stdout_bytes=size * total)

    with TornDistributor(script) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(bytes([n]) * size for n in range(total))


def input_script(first: int, received: int, length: int) -> Callable[[Message], Script]:
    """Takes `first` bytes, breaks, says that `received` have arrived, and takes the rest and the end."""

    def script(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        yield credit(first)
        have = 0
        while have < first:
            have += len((yield from until("INPUT"))[2][0])
        yield Cut()
        yield from attached()
        yield credit(first + 4096, received)
        have, ended = received, False
        while not ended:
            message = yield from until("INPUT")
            assert message[1].number("offset") == have
            have += len(message[2][0])
            ended = message[1].flag("eof")
            yield credit(min(have + 4096, length + 1))
        yield result(stdin_taken=have)

    return script


def inputs_after_the_break(d: TornDistributor) -> bytes:
    last = max(number for number, m in enumerate(d.seen) if m[0] == "ATTACH")
    return b"".join(m[2][0] for m in d.seen[last:] if m[0] == "INPUT")


@pytest.mark.parametrize("received", [0, 1234, 20_000])
def test_input_from_a_file_is_read_again(dwrap: Wrapper, received: int) -> None:
    data = os.urandom(30_000)
    (dwrap.directory / "in").write_bytes(b"skipped" + data)
    with TornDistributor(input_script(20_000, received, 30_000)) as d, (dwrap.directory / "in").open("rb", buffering=0) as file:
        file.seek(7)
        done = dwrap.run(d.address, "cmd", env=FAIL, stdin=file)
        assert (done.returncode, done.stderr) == (0, b"")
        assert inputs_after_the_break(d) == data[received:]
        assert file.tell() == 30_007


@pytest.mark.parametrize(("first", "received"), [(4096, 0), (4096, 1234), (4096, 4096), (10_000, 5904), (10_000, 9000)])
def test_input_from_a_pipe_is_sent_again(dwrap: Wrapper, first: int, received: int) -> None:
    data = os.urandom(30_000)
    with TornDistributor(input_script(first, received, 30_000)) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL, data=data)
        assert (done.returncode, done.stderr) == (0, b"")
        assert inputs_after_the_break(d) == data[received:]


@pytest.mark.parametrize("received", [0, 5903, 10_001])
def test_input_that_is_not_known_any_more(dwrap: Wrapper, received: int) -> None:
    with TornDistributor(input_script(10_000, received, 30_000)) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL, data=os.urandom(30_000))
    assert done.returncode == 125
    assert b"a part of its input was lost" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("received", [0, 3, 6])
def test_the_end_of_the_input_is_said_again(dwrap: Wrapper, received: int) -> None:
    def script(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        yield credit(4096)
        while not (yield from until("INPUT"))[1].flag("eof"):
            pass
        yield Cut()
        yield from attached()
        yield credit(4096, received)
        while not (yield from until("INPUT"))[1].flag("eof"):
            pass
        yield result(stdin_taken=6)

    with TornDistributor(script) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL, data=b"abcdef").returncode == 0
        assert inputs_after_the_break(d) == b"abcdef"[received:]


def test_no_input_before_it_is_known_how_much_has_arrived(dwrap: Wrapper) -> None:
    read_end, write_end = os.pipe()

    def script(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        yield credit(4096)
        yield Cut()
        yield from attached()
        os.write(write_end, b"later")
        yield credit(4096)  # said before the agent knew of the break
        yield output(b"x")
        yield credit(4096, 0)
        yield from until("INPUT")
        yield result(stdin_taken=5, stdout_bytes=1)

    with TornDistributor(script) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL, stdin=read_end).returncode == 0
        assert inputs_after_the_break(d) == b"later"
    os.close(read_end)
    os.close(write_end)


def test_signals_are_numbered_and_sent_again(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        for _ in range(2):
            yield from until("SIGNAL")
        yield Cut()
        yield from attached()
        yield credit(0, 0)
        seen: set[int] = set()
        while 3 not in seen:
            seen.add((yield from until("SIGNAL"))[1].number("seq"))
        yield result(signal.SIGUSR1)

    with TornDistributor(script) as d, dwrap.popen(d.address, "cmd", env=FAIL) as process:
        d.wait_for("GO")
        for number, what in enumerate((signal.SIGWINCH, signal.SIGUSR2), 1):
            process.send_signal(what)
            d.wait_for("SIGNAL", number)
        d.wait_for("ATTACH", 2)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(10) == -signal.SIGUSR1
        last = max(number for number, m in enumerate(d.seen) if m[0] == "ATTACH")
        before, after = (
            [(m[1].number("seq"), m[1].number("signal")) for m in part if m[0] == "SIGNAL"] for part in (d.seen[:last], d.seen[last:])
        )
    assert before[:2] == after[:2] == [(1, signal.SIGWINCH), (2, signal.SIGUSR2)]
    assert after[2:] == [(3, signal.SIGUSR1)]


def test_a_signal_while_nobody_is_there_is_kept(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        yield Cut()

    with TornDistributor(script) as d, dwrap.popen(d.address, "cmd", env=FAIL) as process:
        d.wait_for("ATTACH")
        d.freeze()
        process.send_signal(signal.SIGTERM)
        d.thaw()
        assert d.wait_for("SIGNAL")[0][1].number("signal") == signal.SIGTERM
        process.kill()


def test_a_closed_stream_is_closed_again(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        yield PIECES[0]
        yield from until("CLOSE")
        yield Cut()
        yield from attached()
        yield from until("CLOSE")
        yield result(signal.SIGPIPE)

    read_end, write_end = os.pipe()
    os.close(read_end)
    with TornDistributor(script) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL, stdout=write_end).returncode == -signal.SIGPIPE
    os.close(write_end)
