"""The wrapper against a scripted distributor: what it says, how it relays, how it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import resource
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import wrapper_program
from fake_distributor import FakeDistributor, Message, Script, offer_then, output, result
from wrapper_program import Wrapper

program = wrapper_program.program
dwrap = wrapper_program.dwrap
FAIL = {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "2"}
DEADLY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@pytest.mark.parametrize("endpoint", ["tcp", "ipc", "tcp6", "name"])
def test_runs_elsewhere_and_is_silent(dwrap: Wrapper, endpoint: str, short_dir: Path) -> None:
    bind = {"ipc": f"ipc://{short_dir}/d", "tcp6": "tcp://[::1]:*"}.get(endpoint, "tcp://127.0.0.1:*")
    if endpoint == "tcp6" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with FakeDistributor(offer_then(output(b"hello\n"), result(stdout_bytes=6)), bind, ipv6=endpoint == "tcp6") as d:
        address = d.address.replace("127.0.0.1", "localhost") if endpoint == "name" else d.address
        done = dwrap.run(address, "anything", "--at", "all", env=FAIL)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")
        d.wait_for("ACK")
        assert [m[0] for m in d.seen] == ["SUBMIT", "GO", "ACK"]
        assert not d.problems


def test_submit_says_what_the_distributor_must_know(dwrap: Wrapper) -> None:
    with FakeDistributor(offer_then(result())) as d:
        settings = {"DWRAP_LABELS": "arch=arm64,gpu=no", "DWRAP_PRIORITY": "-3", "DWRAP_BUILD": "nightly", "DWRAP_REMOTE": "1"}
        dwrap.run(d.address, "/usr/bin/g++", "-c", env=FAIL | settings)
        fields = d.by_verb("SUBMIT")[0][1]
    assert fields.number("version") == 1
    assert len(fields.name("job")) == 32
    assert fields.text("cwd") == str(dwrap.directory)
    assert fields.text("command") == "g++"
    assert fields.texts("label") == ("arch=arm64", "gpu=no")
    assert (fields.signed("priority"), fields.text("build"), fields.flag("remote")) == (-3, "nightly", True)


def test_build_is_named_after_an_ancestor(dwrap: Wrapper) -> None:
    with FakeDistributor(offer_then(result())) as d:
        subprocess.run(["/bin/sh", "-c", f"{dwrap.program} {d.address} true; :"], env=dwrap.env, check=True)
        name = d.by_verb("SUBMIT")[0][1].text("build")
    assert f".{os.getpid()}." in name
    assert name.endswith("@" + os.uname().nodename)


def test_build_of_a_recursive_make_is_the_outermost(dwrap: Wrapper) -> None:
    make = shutil.which("make")
    if not make:
        pytest.skip("make is not installed")
    with FakeDistributor(offer_then(result())) as d:
        (dwrap.directory / "Makefile").write_text(f"all:\n\t@+$(MAKE) inner; :\ninner:\n\t@{dwrap.program} {d.address} cmd; :\n")
        with subprocess.Popen([make, "-s"], cwd=dwrap.directory, env=dwrap.env | FAIL) as process:
            assert process.wait(20) == 0
        name = d.by_verb("SUBMIT")[0][1].text("build")
    assert name.startswith(f"make.{process.pid}.")


def test_go_carries_argv_and_environment_byte_for_byte(dwrap: Wrapper) -> None:
    words = [b"", b"a b", b"quote\"'", b"new\nline", b"\xff\xfe", b"x" * 100_000]
    with FakeDistributor(offer_then(result())) as d:
        environment = {**os.environ, **dwrap.env, "EMPTY": "", "odd name": "1", "DISPLAY": ":0", "DWRAP_VERBOSE": "0", "LONG": "y" * 10**5}
        environment["MAKEFLAGS"] = " -j8 --jobserver-auth=3,4 -- A=b\\ -j4"
        environment["CARGO_MAKEFLAGS"] = "-j --jobserver-fds=5,6 --jobserver-auth=5,6"
        subprocess.run([dwrap.program, d.address, "cmd", *words], env=environment, check=True)
        *strings, seen = d.by_verb("GO")[0][2]
        argv, env = (body.removesuffix(b"\0").split(b"\0") for body in strings)
    assert (argv, seen) == ([b"cmd", *words], b"")
    sent = dict(entry.split(b"=", 1) for entry in env)
    assert (sent[b"EMPTY"], sent[b"odd name"], len(sent[b"LONG"])) == (b"", b"1", 100_000)
    assert not {b"DISPLAY", b"DWRAP_VERBOSE"} & set(sent)
    assert sent[b"MAKEFLAGS"] == b" -- A=b\\ -j4"
    assert sent[b"CARGO_MAKEFLAGS"].strip() == b""
    assert sent[b"PATH"] == environment["PATH"].encode()


def test_go_carries_the_process(dwrap: Wrapper) -> None:
    def prepare() -> None:
        os.umask(0o027)
        os.nice(5)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with FakeDistributor(offer_then(result())) as d, (dwrap.directory / "in").open("wb+") as file:
        dwrap.run(d.address, "cmd", env=FAIL, preexec_fn=prepare, stdin=file, stderr=subprocess.STDOUT)
        go = d.by_verb("GO")[0][1]
    assert (go.text("umask"), go.signed("nice"), go.number("gid")) == ("027", os.nice(0) + 5, os.getegid())
    assert "nofile:100:200" in go.texts("limit")
    assert "1" in go.texts("ignore")
    assert (go.text("stdin"), go.flag("seekable"), go.text("stdout"), go.text("stderr")) == ("stream", True, "stream", "stdout")


def test_streams_that_are_closed_or_null(dwrap: Wrapper) -> None:
    with FakeDistributor(offer_then(result(256 * 7))) as d:
        line = f"exec {dwrap.program} {d.address} cmd <&- >&- 2>/dev/null"
        done = subprocess.run(["/bin/sh", "-c", line], env=dwrap.env | FAIL)
        go = d.by_verb("GO")[0][1]
    assert done.returncode == 7
    assert (go.text("stdin"), go.text("stdout"), go.text("stderr")) == ("closed", "closed", "null")


def test_a_terminal_is_announced(dwrap: Wrapper) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, 0x5414, b"\x28\x00\x64\x00\0\0\0\0")  # TIOCSWINSZ: 40 rows, 100 columns
    with FakeDistributor(offer_then(output(b"colour"), result(stdout_bytes=6))) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL, stdout=slave).returncode == 0
        go = d.by_verb("GO")[0][1]
    assert (go.text("stdout"), go.text("stderr"), go.number("rows"), go.number("columns")) == ("tty", "stream", 40, 100)
    assert os.read(master, 100) == b"colour"
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("status", [0, 1, 77, 125, 139, 255])
def test_status(dwrap: Wrapper, status: int) -> None:
    with FakeDistributor(offer_then(result(status << 8))) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL).returncode == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGPIPE, signal.SIGABRT, signal.SIGUSR1])
def test_death_by_signal(dwrap: Wrapper, number: int) -> None:
    with FakeDistributor(offer_then(result(number | 0x80))) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL).returncode == -number
    assert not list(dwrap.directory.glob("core*"))


@pytest.mark.parametrize(("error", "status"), [("not_found", 127), ("not_executable", 126), ("infrastructure", 125)])
def test_errors_of_the_agent(dwrap: Wrapper, error: str, status: int) -> None:
    with FakeDistributor(offer_then(result(error=error, reason="No such\nfile"))) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
    assert done.returncode == status
    assert done.stderr.startswith(b"dwrap: cmd failed" if status == 125 else b"dwrap: cmd on a1: No such?file; check its ")
    assert done.stderr.count(b"\n") == 1


def test_verbose_says_one_line(dwrap: Wrapper) -> None:
    with FakeDistributor(offer_then(result(run_ms=512, flush_ms=2))) as d:
        done = dwrap.run(d.address, "g++", env=FAIL | {"DWRAP_VERBOSE": "1"})
    assert done.stderr == b"dwrap: g++ ran on a1: queued 3 ms, ran 512 ms, flushed 2 ms\n"


def credit_script(pieces: int, size: int, problems: list[str]) -> Callable[[Message], Script]:
    """Sends `pieces` of stdout as the credit allows, never beyond it."""

    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s1")])
        yield None
        limit = 65_536
        for number in range(pieces):
            while limit < (number + 1) * size:
                message = yield None
                assert message is not None
                if message[0] == "CREDIT":
                    if message[1].number("limit") <= limit:
                        problems.append("a limit did not grow")
                    limit = message[1].number("limit")
            yield output(bytes([number % 251]) * size, number * size)
        yield result(stdout_bytes=pieces * size)

    return script


def test_much_output_to_a_slow_reader(dwrap: Wrapper) -> None:
    problems: list[str] = []
    size, pieces = 32_768, 300
    with FakeDistributor(credit_script(pieces, size, problems)) as d, dwrap.popen(d.address, "cmd", env=FAIL) as process:
        d.wait_for("GO")
        assert process.stdout is not None
        got = b"".join(iter(lambda: process.stdout.read(5000), b""))  # type: ignore[union-attr]
        assert process.wait(20) == 0
    assert got == b"".join(bytes([n % 251]) * size for n in range(pieces))
    assert not problems


def test_output_to_a_file_and_a_socket(dwrap: Wrapper) -> None:
    data = os.urandom(60_000)
    ours, theirs = socket.socketpair()
    for target in ((dwrap.directory / "out").open("wb"), theirs):
        script = offer_then(output(data[:30_000]), output(data[30_000:], 30_000), result(stdout_bytes=60_000))
        with FakeDistributor(script) as d:
            assert dwrap.run(d.address, "cmd", env=FAIL, stdout=target).returncode == 0
        target.close()
    assert (dwrap.directory / "out").read_bytes() == data
    assert b"".join(iter(lambda: ours.recv(65536), b"")) == data
    ours.close()


def test_the_descriptors_stay_as_they_were(dwrap: Wrapper) -> None:
    read_end, write_end = os.pipe()
    with FakeDistributor(offer_then(output(b"x"), result(stdout_bytes=1))) as d:
        dwrap.run(d.address, "cmd", env=FAIL, stdin=read_end, stdout=write_end)
    assert not (fcntl.fcntl(read_end, fcntl.F_GETFL) | fcntl.fcntl(write_end, fcntl.F_GETFL)) & os.O_NONBLOCK
    os.close(read_end)
    os.close(write_end)


def test_a_reader_that_left_closes_the_stream(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s1")])
        yield None
        yield output(b"x" * 100)
        message = yield None
        while message is not None and message[0] != "CLOSE":
            message = yield None
        assert message is not None
        assert message[1].text("stream") == "stdout"
        yield result(signal.SIGPIPE)

    read_end, write_end = os.pipe()
    os.close(read_end)
    with FakeDistributor(script) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL, stdout=write_end).returncode == -signal.SIGPIPE
    os.close(write_end)


def test_output_that_cannot_be_written_is_no_success(dwrap: Wrapper) -> None:
    with FakeDistributor(offer_then(output(b"x"), result(stdout_bytes=1))) as d, Path("/dev/full").open("wb") as full:
        done = dwrap.run(d.address, "cmd", env=FAIL, stdout=full)
    assert done.returncode == 125
    assert os.strerror(errno.ENOSPC).encode() in done.stderr


def test_missing_output_is_no_success(dwrap: Wrapper) -> None:
    with FakeDistributor(offer_then(output(b"x"), result(stdout_bytes=2))) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL).returncode == 125


@pytest.mark.parametrize("reply", [output(b"x", 5), output(b"x" * 32_768, 65_536), output(b"x", stream="other")])
def test_output_beyond_the_rules_ends_it(dwrap: Wrapper, reply: tuple[object, ...]) -> None:
    with FakeDistributor(offer_then(reply, result())) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL).returncode == 125


def input_script(limits: list[int], taken: int) -> Callable[[Message], Script]:
    """Gives stdin credit in steps, waits until it is used or the input ends, and says how much was taken."""

    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s1")])
        yield None
        have, ended = 0, False
        for limit in limits:
            yield ("CREDIT", [("stream", "stdin"), ("limit", limit)])
            while have < limit and not ended:
                message = yield None
                assert message is not None
                assert message[1].number("offset") == have
                have += len(message[2][0])
                ended = message[1].flag("eof")
        yield result(stdin_taken=taken)

    return script


def test_stdin_never_exceeds_its_credit(dwrap: Wrapper) -> None:
    data = os.urandom(20_000)
    with FakeDistributor(input_script([4096, 10_000, 30_000], 20_000)) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL, data=data).returncode == 0
        assert b"".join(m[2][0] for m in d.by_verb("INPUT")) == data


def test_of_a_pipe_only_the_credit_is_read(dwrap: Wrapper) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"y" * 10_000)
    with FakeDistributor(input_script([4096], 0)) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL, stdin=read_end).returncode == 0
    assert len(os.read(read_end, 65_536)) == 10_000 - 4096
    os.close(read_end)
    os.close(write_end)


def test_a_file_is_left_where_the_command_stopped(dwrap: Wrapper) -> None:
    (dwrap.directory / "in").write_bytes(bytes(range(256)) * 100)
    with (dwrap.directory / "in").open("rb", buffering=0) as file, FakeDistributor(input_script([20_000], 1234)) as d:
        file.seek(100)
        assert dwrap.run(d.address, "cmd", env=FAIL, stdin=file).returncode == 0
        assert file.tell() == 1334
        assert d.by_verb("INPUT")[0][2][0][:3] == bytes([100, 101, 102])


def test_a_void_go_is_answered_again(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield ("QUEUED", [("ahead", 3)])
        yield ("OFFER", [("stamp", "old")])
        yield None
        yield ("OFFER", [("stamp", "new")])
        yield None
        yield result()

    with FakeDistributor(script) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL).returncode == 0
        assert [m[1].text("stamp") for m in d.by_verb("GO")] == ["old", "new"]


def wait_for_signal_script(number: int) -> Callable[[Message], Script]:
    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s1")])
        yield None
        while True:
            message = yield None
            assert message is not None
            if message[0] == "SIGNAL" and message[1].number("signal") == number:
                break
        yield result(number if number in DEADLY else 0)

    return script


@pytest.mark.parametrize("number", [*DEADLY, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH])
def test_signals_are_passed_on(dwrap: Wrapper, number: int) -> None:
    with FakeDistributor(wait_for_signal_script(number)) as d, dwrap.popen(d.address, "cmd", env=FAIL) as process:
        d.wait_for("GO")
        process.send_signal(number)
        assert process.wait(10) == (-number if number in DEADLY else 0)


def test_stop_and_continue(dwrap: Wrapper) -> None:
    group = {"process_group": 0}  # with us as its parent it is no orphaned one, wherever the tests were started
    with FakeDistributor(wait_for_signal_script(signal.SIGCONT)) as d, dwrap.popen(d.address, "cmd", env=FAIL, **group) as process:
        d.wait_for("GO")
        process.send_signal(signal.SIGTSTP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert d.wait_for("SIGNAL")[0][1].number("signal") == signal.SIGTSTP
        process.send_signal(signal.SIGCONT)
        assert process.wait(10) == 0


def test_time_spent_stopped_is_no_silence(dwrap: Wrapper) -> None:
    """A desktop that slept for longer than the patience does not lose its commands."""
    with FakeDistributor(wait_for_signal_script(signal.SIGUSR1)) as d, dwrap.popen(d.address, "cmd", env=FAIL) as process:
        d.wait_for("GO")
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
        process.send_signal(signal.SIGCONT)
        d.wait_for("SIGNAL")
        process.send_signal(signal.SIGUSR1)
        assert process.wait(10) == 0


def test_a_signal_before_go_just_ends_it(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield ("QUEUED", [("ahead", 1)])
        yield None

    marker = dwrap.directory / "ran"
    with FakeDistributor(script) as d, dwrap.popen(d.address, "touch", str(marker)) as process:
        d.wait_for("SUBMIT")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
    assert not marker.exists()


def test_a_signal_and_then_silence_ends_it(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s1")])
        while True:
            yield None

    d = FakeDistributor(script)
    with d, dwrap.popen(d.address, "cmd") as process:
        d.wait_for("GO")
        process.send_signal(signal.SIGTERM)
        d.wait_for("SIGNAL")
        assert process.poll() is None
        threading.Timer(0.1, lambda: d.__exit__(None, None, None)).start()
        assert process.wait(5) == -signal.SIGTERM


def test_a_lost_connection_after_go_is_125(dwrap: Wrapper) -> None:
    marker = dwrap.directory / "ran"
    d = FakeDistributor(offer_then())
    with d:
        process = dwrap.popen(d.address, "touch", str(marker))
        d.wait_for("GO")
    with process:
        _, err = process.communicate(timeout=10)
    assert process.returncode == 125
    assert b"lost" in err
    assert err.count(b"\n") == 1
    assert not marker.exists()


@pytest.mark.parametrize(
    ("replies", "ran"),
    [
        ([("FAILED", [("reason", "agent gone"), ("safe", 1)])], True),
        ([("FAILED", [("reason", "agent gone"), ("safe", 0)])], False),
        ([("FAILED", [("reason", "agent gone")])], False),
        ([output(b"partial"), ("FAILED", [("reason", "agent gone"), ("safe", 1)])], False),
        ([("REFUSED", [("reason", "no")])], False),
        ([result(error="cwd", reason="no such directory")], True),
    ],
)
def test_after_go_only_what_never_ran_runs_here(dwrap: Wrapper, replies: list[tuple[object, ...]], ran: bool) -> None:
    marker = dwrap.directory / "ran"
    with FakeDistributor(offer_then(*replies)) as d:
        done = dwrap.run(d.address, "touch", str(marker))
    assert (done.returncode, marker.exists()) == ((0, True) if ran else (125, False))


def test_explain_asks_and_runs_nothing(dwrap: Wrapper) -> None:
    def script(submit: Message) -> Script:
        assert submit[1].flag("explain")
        yield ("EXPLAINED", [("where", "agent"), ("agent", "a2"), ("reason", "least loaded of 3")])

    with FakeDistributor(script) as d:
        done = dwrap.run("--explain", d.address, "cmd", env=FAIL)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"agent a2: least loaded of 3\n", b"")
