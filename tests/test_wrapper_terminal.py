"""The wrapper beside a terminal: stopping and continuing as a shell expects it, and reading from one that is not ours."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import wrapper_program
from fake_distributor import FakeDistributor, Message, Script, offer_then, result
from wrapper_program import Wrapper

program = wrapper_program.program
dwrap = wrapper_program.dwrap
FAIL = {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "0"}


@contextmanager
def started(dwrap: Wrapper, d: FakeDistributor, **rest: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command elsewhere, killed in the end, even when it is stopped."""
    if not rest.get("start_new_session"):
        rest.setdefault("process_group", 0)  # with us as its parent it is no orphaned one, wherever the tests were started
    with dwrap.popen(d.address, "cmd", env=FAIL, **rest) as process:
        try:
            yield process
        finally:
            process.kill()


def until(verb: str, **fields: int) -> Script:
    """Takes messages until one of this verb has these fields."""
    while True:
        message = yield None
        assert message is not None
        if message[0] == verb and all(message[1].number(key) == value for key, value in fields.items()):
            return


def test_a_terminal_that_is_not_our_own_is_read(dwrap: Wrapper) -> None:
    """Another session's terminal cannot stop its readers, so there is no background in it."""

    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s1")])
        yield ("CREDIT", [("stream", "stdin"), ("limit", 4096)])
        yield from until("INPUT", offset=0)
        yield result(stdin_taken=6)

    ours, theirs = os.openpty()
    with FakeDistributor(script) as d, started(dwrap, d, stdin=theirs, start_new_session=True) as process:
        os.write(ours, b"hello\n")
        assert process.wait(10) == 0
        assert d.by_verb("INPUT")[0][2] == [b"hello\n"]
    os.close(ours)
    os.close(theirs)


def stopped(process: int) -> int:
    """Waits until it has stopped; returns the signal that did it."""
    _, status = os.waitpid(process, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    return os.WSTOPSIG(status)


@pytest.mark.parametrize("ignored", [False, True])
def test_it_stops_by_the_signal_that_came(dwrap: Wrapper, ignored: bool) -> None:
    """Shells tell the two apart. A command whose wrapper ignores SIGCONT continues none the less."""

    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s1")])
        yield from until("SIGNAL", signal=signal.SIGTSTP)
        yield from until("SIGNAL", signal=signal.SIGCONT)
        yield result()

    def ignore() -> None:
        signal.signal(signal.SIGCONT, signal.SIG_IGN)

    before = ignore if ignored else None
    with FakeDistributor(script) as d, started(dwrap, d, preexec_fn=before) as process:
        d.wait_for("GO")
        process.send_signal(signal.SIGTSTP)
        assert stopped(process.pid) == signal.SIGTSTP
        process.send_signal(signal.SIGCONT)
        assert process.wait(10) == 0
        assert [m[1].number("signal") for m in d.by_verb("SIGNAL")].count(signal.SIGCONT) == 1


def test_in_an_orphaned_group_nothing_stays_stopped(dwrap: Wrapper) -> None:
    """There the kernel drops SIGTSTP, because nobody could continue us: the command goes on as well."""

    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s1")])
        yield from until("SIGNAL", signal=signal.SIGCONT)
        yield result()

    with FakeDistributor(script) as d, started(dwrap, d, start_new_session=True) as process:
        d.wait_for("GO")
        process.send_signal(signal.SIGTSTP)
        deadline = time.monotonic() + 10
        while (done := os.waitpid(process.pid, os.WNOHANG | os.WUNTRACED)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if done[0] and not os.WIFSTOPPED(done[1]):
            process.returncode = 0  # it is gone, and was waited for
        assert done == (process.pid, 0)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["--explain", "true"]])
def test_words_that_nobody_can_read_are_no_success(dwrap: Wrapper, words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = dwrap.run(*words, stdout=full)
    assert done.returncode == 125
    assert b"No space left" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_input_of_a_command_that_never_ran_is_given_back(dwrap: Wrapper) -> None:
    (dwrap.directory / "in").write_bytes(b"all of it\n")

    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s1")])
        yield ("CREDIT", [("stream", "stdin"), ("limit", 4096)])
        yield from until("INPUT")
        yield result(error="cwd", reason="it is not there")

    with (dwrap.directory / "in").open("rb") as file, FakeDistributor(script) as d:
        assert dwrap.run(d.address, "cat", stdin=file).stdout == b"all of it\n"
    with FakeDistributor(script) as d:
        assert dwrap.run(d.address, "cat", data=b"all of it\n").returncode == 125


def test_each_attempt_to_get_a_place_is_a_job_of_its_own(dwrap: Wrapper) -> None:
    """A distributor that has not noticed yet that the last one left would refuse the same name."""
    with FakeDistributor(offer_then(("FAILED", [("reason", "lost"), ("safe", 1)]))) as d:
        done = dwrap.run(d.address, "cmd", env={"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "1"})
        names = [m[1].text("job") for m in d.by_verb("SUBMIT")]
        assert [m[1].text("job") for m in d.by_verb("GO")] == names
    assert done.returncode == 125
    assert len(set(names)) == len(names) > 1
