"""The wrapper while nobody who knows its job is there after GO: how long it tries, and what ends it."""

from __future__ import annotations

import os
import signal
import time

import pytest
import wrapper_program
from fake_distributor import Message
from test_wrapper_torn import DONE, FAIL, OFFER, PIECES, attached, sends, until
from torn_distributor import Cut, Script, TornDistributor
from wrapper_program import Wrapper

program = wrapper_program.program
dwrap = wrapper_program.dwrap


def broken_after_go(_submit: Message) -> Script:
    yield OFFER
    yield from until("GO")
    yield Cut()


@pytest.mark.parametrize("how", ["gone", "frozen", "ignorant"])
def test_a_deadly_signal_and_nobody_there_ends_it(dwrap: Wrapper, how: str) -> None:
    with TornDistributor(broken_after_go) as d:
        process = dwrap.popen(d.address, "cmd", env=FAIL)
        d.wait_for("ATTACH")
        if how == "frozen":
            d.freeze()
        elif how == "gone":
            d.__exit__(None, None, None)
        with process:
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == -signal.SIGTERM
            assert time.monotonic() - start < 4.5


@pytest.mark.parametrize("said", [("MISSING", []), ("QUEUED", [("ahead", 7)])], ids=["missing", "queued"])
def test_a_deadly_signal_ends_it_also_when_no_agent_can_be_asked(dwrap: Wrapper, said: Message) -> None:
    """The distributor answers, but for an agent that is cut off, or another one, it could take minutes."""

    def agentless(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        yield said
        yield from until("nothing")

    with TornDistributor(agentless) as d, dwrap.popen(d.address, "cmd", env=FAIL) as process:
        d.wait_for("GO")
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
        assert 1.8 < time.monotonic() - start < 4.5


def test_the_patience_ends(dwrap: Wrapper) -> None:
    """Nobody listens there any more: 125 and one line, and nothing runs here."""
    marker = dwrap.directory / "ran"
    with TornDistributor(broken_after_go) as d:
        process = dwrap.popen(d.address, "touch", str(marker), env={"DWRAP_PATIENCE": "2"})
        d.wait_for("GO")
    start = time.monotonic()
    with process:
        _, err = process.communicate(timeout=10)
    assert 1.5 < time.monotonic() - start < 4
    assert (process.returncode, err.count(b"\n"), marker.exists()) == (125, 1, False)
    assert b"is lost: Connection refused" in err


def test_a_distributor_that_does_not_know_attach_is_not_waited_for_long(dwrap: Wrapper) -> None:
    """It answers PINGs, and says nothing of the job."""
    with TornDistributor(broken_after_go) as d:
        done = dwrap.run(d.address, "cmd", env={"DWRAP_PATIENCE": "2"})
    assert done.returncode == 125
    assert b"does not know" in done.stderr


def test_one_that_does_not_count_attempts_is_not_asked(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s1")])
        yield from until("GO")
        yield Cut()

    with TornDistributor(script) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL).returncode == 125
        assert d.connections == 1


def test_one_that_breaks_again_and_again_ends_with_the_patience(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield OFFER
        yield from until("GO")
        while True:
            yield Cut()
            yield from attached()

    with TornDistributor(script) as d:
        assert dwrap.run(d.address, "cmd", env={"DWRAP_PATIENCE": "1"}).returncode == 125
        assert d.connections > 3


def test_another_distributor_at_the_same_place(dwrap: Wrapper) -> None:
    """It starts after a while, and has never heard of the job; it goes on there all the same."""

    def script(_attach: Message) -> Script:
        yield ("PROVE", [("stamp", "p")])
        attach = yield from until("ATTACH")
        yield from sends(PIECES, attach)
        yield DONE

    with TornDistributor(broken_after_go) as d, dwrap.popen(d.address, "cmd", env=FAIL) as process:
        d.wait_for("GO")
        d.__exit__(None, None, None)
        with TornDistributor(script, d.port, adopt=True) as second:
            out, err = process.communicate(timeout=20)
            assert (process.returncode, out, err) == (0, b"first second third", b"")
            assert not second.by_verb("SUBMIT")


def one_piece_then_attached(_submit: Message) -> Script:
    yield OFFER
    yield from until("GO")
    yield PIECES[0]
    attach = yield from attached()
    yield from sends(PIECES, attach)
    yield DONE


def test_a_frozen_distributor_costs_a_new_connection(dwrap: Wrapper) -> None:
    """It is not heard for longer than a PING may take: the wrapper connects anew, and goes on once it thaws."""

    with TornDistributor(one_piece_then_attached) as d, dwrap.popen(d.address, "cmd", env=FAIL) as process:
        assert process.stdout
        assert process.stdout.read(6) == b"first "
        d.freeze()
        with pytest.raises(Exception, match="timed out"):
            process.wait(7.5)
        d.thaw()
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, b"second third", b"")


def test_the_wrapper_is_frozen_while_it_breaks(dwrap: Wrapper) -> None:
    """For longer than its patience: time in which it was stopped does not count."""
    with TornDistributor(one_piece_then_attached) as d, dwrap.popen(d.address, "cmd", env={"DWRAP_PATIENCE": "1"}) as process:
        assert process.stdout
        assert process.stdout.read(6) == b"first "
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        d.cut_all()
        with pytest.raises(Exception, match="timed out"):
            process.wait(2.5)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, b"second third", b"")
