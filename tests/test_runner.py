"""The runner: statuses, streams, terminals, signals, and the end of a job's process tree."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest
from runner_bench import PROGRAM, SECONDS, Bench, bench, eventually_no_process, holder_of, processes_with, sh

from dwrap.agent.events import Kind
from dwrap.agent.runner import Starter, StartError

__all__ = ["bench"]  # a fixture: importing it is its use


@pytest.mark.parametrize("status", [0, 1, 77, 139, 255])
def test_exit_status(bench: Bench, status: int) -> None:
    assert os.WEXITSTATUS(bench.run(*sh(f"exit {status}")).status()) == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT, signal.SIGPIPE, signal.SIGABRT])
def test_death_by_signal(bench: Bench, number: signal.Signals) -> None:
    status = bench.run(*sh(f"kill -{number.value} $$"), claims=[("limit", "core:0:0")]).status()
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == number


def test_streams_come_apart_and_byte_exact(bench: Bench) -> None:
    job = bench.run(*sh(r"printf 'a\000\377b'; printf 'e\001' >&2"))
    assert job.out == {1: b"a\0\xffb", 2: b"e\1"}


def test_one_file_for_both_streams_keeps_their_order(bench: Bench) -> None:
    job = bench.run(*sh("for i in 1 2 3; do echo o$i; echo e$i >&2; done"), claims=[("stderr", "stdout")])
    assert job.out == {1: b"o1\ne1\no2\ne2\no3\ne3\n", 2: b""}


def test_fifty_megabytes(bench: Bench) -> None:
    job = bench.start(sh("head -c 50000000 /dev/zero"))
    job.finish(60)
    assert len(job.out[1]) == 50_000_000


def test_output_waits_for_credit(bench: Bench) -> None:
    job = bench.start(sh("head -c 300000 /dev/zero; echo done >&2"), free_credit=False)
    job.until(lambda: len(job.out[1]) == 65_536)
    assert job.end is None
    job.tell(Kind.CREDIT, 1, 400_000)
    assert job.status() == 0
    assert len(job.out[1]) == 300_000


def test_a_command_that_ended_still_waits_for_credit(bench: Bench) -> None:
    job = bench.start(sh("head -c 100000 /dev/zero"), free_credit=False)
    job.until(lambda: len(job.out[1]) == 65_536)
    job.tell(Kind.CREDIT, 1, 65_536 + 10)
    job.until(lambda: len(job.out[1]) == 65_546)
    job.tell(Kind.CREDIT, 1, 1_000_000)
    assert job.status() == 0


def test_stdin_whole(bench: Bench) -> None:
    data = os.urandom(1_000_000)
    for seekable in (0, 1):
        job = bench.start(("cat",), stdin="stream", claims=[("seekable", seekable)])
        job.feed(data)
        assert job.finish().number("stdin_taken") == len(data)
        assert job.out[1] == data


def test_stdin_is_taken_no_further_than_the_command_reads(bench: Bench) -> None:
    job = bench.start(("head", "-c", "10000"), stdin="stream")
    job.feed(b"x" * 100_000, eof=False)
    taken = job.finish().number("stdin_taken")
    assert 10_000 <= taken <= job.sent <= taken + 4096


def test_seekable_stdin_tells_how_much_was_read(bench: Bench) -> None:
    job = bench.start(sh("read line; echo $line"), stdin="stream", claims=[("seekable", 1)])
    job.feed(b"one\ntwo\nthree\n", eof=False)
    assert job.finish().number("stdin_taken") == 4
    assert job.out[1] == b"one\n"


def test_unread_stdin_is_not_taken(bench: Bench) -> None:
    job = bench.start(("true",), stdin="stream")
    job.until(lambda: job.credit)
    assert job.credit == 4096
    assert job.finish().number("stdin_taken") == 0


def test_stdin_sent_twice_counts_once(bench: Bench) -> None:
    job = bench.start(("cat",), stdin="stream")
    job.until(lambda: job.credit)
    for offset, data in ((0, b"abc"), (0, b"abcdef"), (99, b"gap")):
        job.tell(Kind.INPUT, 0, offset, data)
    job.tell(Kind.INPUT, 0, 6)
    job.finish()
    assert job.out[1] == b"abcdef"


@pytest.mark.parametrize(("kind", "expected"), [("null", "/dev/null"), ("closed", "no")])
def test_standard_streams_that_are_no_streams(bench: Bench, kind: str, expected: str) -> None:
    job = bench.run(*sh("readlink /proc/$$/fd/0 || echo no"), stdin=kind)
    assert job.out[1].decode().strip() == expected


def test_closed_stdout(bench: Bench) -> None:
    job = bench.run(*sh("echo x 2>/dev/null; echo $? >&2"), claims=[("stdout", "closed")])
    assert job.out == {1: b"", 2: b"1\n"}


def test_nothing_else_is_inherited(bench: Bench) -> None:
    job = bench.run("ls", "/proc/self/fd")
    assert set(bytes(job.out[1]).split()) == {b"0", b"1", b"2", b"3"}  # 3 is ls's own


def test_terminal(bench: Bench) -> None:
    script = "test -t 1 && test -t 2 && stty size <&1; printf 'a\\nb'; echo err >&2"
    job = bench.run(*sh(script), claims=[("stdout", "tty"), ("stderr", "stdout"), ("rows", 33), ("columns", 99)])
    assert job.out == {1: b"33 99\na\nberr\n", 2: b""}


def test_terminal_loses_nothing_at_the_end(bench: Bench) -> None:
    for _ in range(10):
        job = bench.run(*sh("head -c 20000 /dev/zero; printf end"), claims=[("stdout", "tty")])
        assert len(job.out[1]) == 20_003


def test_closed_by_the_reader(bench: Bench) -> None:
    job = bench.start(("yes",))
    job.until(lambda: len(job.out[1]) > 0)
    job.tell(Kind.CLOSE, 1)
    job.until(lambda: job.gone)
    assert job.end is not None
    assert os.WTERMSIG(job.end.number("status")) == signal.SIGPIPE


def test_signals_reach_the_process_group(bench: Bench) -> None:
    job = bench.start(sh("trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.01; done"))
    job.until(lambda: job.out[1] == b"ready\n")
    job.tell(Kind.SIGNAL, 0, signal.SIGUSR1)
    assert os.WEXITSTATUS(job.status()) == 5
    assert job.out[1] == b"ready\ngot\n"


def test_stop_and_continue(bench: Bench) -> None:
    job = bench.start(sh("echo $0; while :; do echo; sleep 0.01; done"))
    job.until(lambda: len(job.out[1]) > 20)
    job.tell(Kind.SIGNAL, 0, signal.SIGTSTP)

    def quiet() -> bool:
        before = len(job.out[1])
        with pytest.raises(AssertionError):
            job.until(lambda: len(job.out[1]) > before, 0.3)
        return len(job.out[1]) == before

    deadline = time.monotonic() + SECONDS
    while not quiet():
        assert time.monotonic() < deadline
    before = len(job.out[1])
    job.tell(Kind.SIGNAL, 0, signal.SIGCONT)
    job.until(lambda: len(job.out[1]) > before)
    job.tell(Kind.SIGNAL, 0, signal.SIGTERM)
    assert os.WTERMSIG(job.status()) == signal.SIGTERM


def test_background_child_that_keeps_stdout_is_ended(bench: Bench) -> None:
    marker = f"sleep 98{os.getpid()}"
    start = time.monotonic()
    job = bench.run(*sh(f"{marker} & echo out"))
    assert job.out[1] == b"out\n"
    assert job.status() == 0
    assert 0.9 < time.monotonic() - start < 4
    eventually_no_process(marker.replace(" ", "\0"))


def test_background_child_that_ends_in_time_is_heard(bench: Bench) -> None:
    job = bench.run(*sh("(sleep 0.2; echo late) & echo out"))
    assert job.out[1] == b"out\nlate\n"


def test_a_daemon_that_escaped_is_killed(bench: Bench) -> None:
    name = f"97{os.getpid()}"
    script = f"setsid sh -c 'trap \"\" TERM; (sh -c \"trap : TERM; sleep {name}; sleep {name}\" &)' </dev/null >/dev/null 2>&1 & exit 3"
    job = bench.run(*sh(script))
    assert os.WEXITSTATUS(job.status()) == 3
    eventually_no_process(name)


def test_kill_ends_the_tree(bench: Bench) -> None:
    name = f"96{os.getpid()}"
    job = bench.start(sh(f"sleep {name} & setsid sleep {name} & echo up; wait"))
    job.until(lambda: job.out[1] == b"up\n")
    start = time.monotonic()
    job.tell(Kind.KILL)
    job.until(lambda: job.gone)
    assert time.monotonic() - start < 2
    assert job.end is not None
    assert (job.end.text("error"), job.end.get("status")) == ("lost", None), "how it ended is not its own doing"
    assert not processes_with(name)


def test_the_runners_own_kill_is_no_status(bench: Bench) -> None:
    """Not even where its holder is lost before all of the tree was seen to end."""
    eat = "import time; x = b'x' * 200_000_000; print('up', flush=True); time.sleep(600)"
    for delay in (0.002, 0.005, 0.01, 0.02):
        job = bench.start(("/bin/sh", "-c", 'python3 -c "$0" & wait', eat))
        job.until(lambda job=job: job.out[1] == b"up\n")  # type: ignore[misc]
        holder = holder_of(job)
        job.tell(Kind.KILL)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder, signal.SIGKILL)
        end = job.finish()
        assert end.text("error") in ("lost", "infrastructure")


def test_the_end_of_the_agent_ends_the_tree(bench: Bench) -> None:
    name = f"95{os.getpid()}"
    job = bench.start(sh(f"setsid sleep {name} & echo up; sleep {name}"))
    job.until(lambda: job.out[1] == b"up\n")
    job.runner.close()
    eventually_no_process(name, 3)


def test_the_end_of_the_runner_ends_the_tree(bench: Bench) -> None:
    name = f"94{os.getpid()}"
    job = bench.start(sh(f"setsid sleep {name} & echo up; sleep {name}"))
    job.until(lambda: job.out[1] == b"up\n")
    os.kill(job.runner.pid, signal.SIGKILL)
    job.until(lambda: job.gone)
    assert job.end is None
    eventually_no_process(name, 3)
    for leftover in bench.work.glob("[0-9]*"):  # a killed runner cannot; its agent removes the whole directory
        leftover.rmdir()
    assert bench.runners
    bench.runners.reap()
    assert len(bench.deaths.said) == 1
    bench.deaths.said.clear()


def test_process_ids_are_spread(bench: Bench) -> None:
    ids = {bytes(bench.run(*sh("echo $$")).out[1]) for _ in range(6)}
    assert len(ids) == 6


def test_a_spec_that_is_cut_wrong_is_rejected() -> None:
    starter = Starter(str(PROGRAM))
    for blob in (b"", b"\0" * 24, struct.pack("=6I", 9, 0, 0, 0, 0, 0) + b"a", struct.pack("=6I", 0, 0, 1, 0, 0, 0) + b"a"):
        spec = os.memfd_create("spec")
        os.write(spec, blob)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = starter.fork(theirs.fileno(), spec)
        theirs.close()
        os.close(spec)
        ours.settimeout(SECONDS)
        assert struct.unpack_from("=IIQ", ours.recv(1000)) == (Kind.REJECTED, 0, 1), "the agent's own trouble"
        assert os.waitpid(pid, 0)[1] == 0
        ours.close()
    starter.close()


def test_started_by_hand_it_says_what_it_is() -> None:
    done = subprocess.run([PROGRAM], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "dwrap-agent" in done.stderr


def test_a_signal_before_the_command_has_begun_is_not_lost(bench: Bench) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) * 5:
        job = bench.start(("sleep", "600"))
        job.tell(Kind.SIGNAL, 0, number)
        assert os.WTERMSIG(job.status()) == number


def test_more_signals_than_the_tree_takes_do_not_hold_up_its_end(bench: Bench) -> None:
    job = bench.start(sh("trap : USR1; echo up; while :; do sleep 0.01; done"))
    job.until(lambda: job.out[1] == b"up\n")
    for _ in range(2_000):
        job.tell(Kind.SIGNAL, 0, signal.SIGUSR1)
    job.tell(Kind.KILL)
    job.until(lambda: job.gone)


def test_the_starter_is_started_again(bench: Bench) -> None:
    assert bench.run("true").status() == 0
    assert bench.runners
    assert bench.runners._starter
    os.kill(bench.runners._starter.pid, signal.SIGKILL)
    with pytest.raises(StartError, match="has died"):
        bench.start(("true",))
    assert bench.run("true").status() == 0


class Deaf:
    """A starter's socket of which nothing can be heard any more."""

    def __init__(self, real: socket.socket) -> None:
        self._real = real

    def recv(self, size: int) -> bytes:
        raise OSError(errno.ENOMEM, "nothing is heard")

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


def test_a_late_answer_is_not_taken_for_that_to_the_next_start(bench: Bench) -> None:
    assert bench.run("true").status() == 0
    assert bench.runners
    assert bench.runners._starter
    bench.runners._starter._socket = Deaf(bench.runners._starter._socket)  # type: ignore[assignment]
    with pytest.raises(StartError):
        bench.start(sh("echo x >new"))
    job = bench.start(sh("echo $PPID; exit 7"))
    assert Path(f"/proc/{job.runner.pid}").exists()
    assert os.WEXITSTATUS(job.status()) == 7
    assert not (bench.cwd / "new").exists()


def test_a_runner_of_which_the_agent_does_not_know_does_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The starter was frozen when it had forked it: its assignment was rejected, and may run elsewhere by now."""

    def late(starter: Starter, control: int, spec: int) -> int:
        pids.append(fork(starter, control, spec))
        time.sleep(0.3)
        raise TimeoutError

    bench.roots = (str(bench.folder),)
    (bench.cwd / "old").touch()
    fork, pids = Starter.fork, list[int]()
    monkeypatch.setattr(Starter, "fork", late)
    with pytest.raises(StartError, match="has died"):
        bench.start(sh("echo x >new"), undo=[bench.cwd / "old"])
    assert os.waitpid(pids[0], 0)[1] == 0
    assert [path.name for path in bench.cwd.iterdir()] == ["old"]
    assert not bench.litter(), "no record of it, either"
