"""The runner, driven over its control socket as the agent drives it: what a job gets, what is reported, what is left behind.

DWRAP_TEST_RUNNER names another build of it (the sanitizers'). Runs every case with each kind of tree that works here.
"""

from __future__ import annotations

import functools
import os
import pwd
import select
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from dwrap.agent.accounts import Identity
from dwrap.agent.runner import Runner, Runners
from dwrap.agent.session import Kind, RunnerEnded, RunnerSaid, Start, Tell
from dwrap.protocol import messages
from dwrap.protocol.messages import Fields

PROGRAM = Path(os.environ.get("DWRAP_TEST_RUNNER", Path(__file__).resolve().parent.parent / "build" / "bin" / "dwrap-runner"))
SECONDS = 15.0
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


class Job:
    """One job on a runner of its own. Gives credit freely unless told otherwise."""

    def __init__(self, runner: Runner, *, free_credit: bool = True) -> None:
        self.runner = runner
        self.out = {1: bytearray(), 2: bytearray()}
        self.credit = 0
        self.end: Fields | None = None
        self.rejected = ""
        self.gone = False
        self.stdin = b""
        self.sent = 0
        self._free_credit = free_credit

    def tell(self, kind: Kind, stream: int = 0, number: int = 0, payload: bytes = b"") -> None:
        self.runner.tell(Tell(self.runner.key, kind, stream, number, payload))

    def until(self, done: Callable[[], object], seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            left = deadline - time.monotonic()
            assert left > 0, f"not within {seconds} s; so far {self.out} {self.end and self.end.text('reason')}"
            want_room = [self.runner] if self.runner.congested else []
            if any(select.select([self.runner], want_room, [], left)):
                self.runner.flush()
                for said in self.runner.receive():
                    self._take(said)

    def finish(self, seconds: float = SECONDS) -> Fields:
        self.until(lambda: self.gone, seconds)
        assert not self.rejected, self.rejected
        assert self.end is not None, "the runner ended without a word"
        assert self.end.number("stdout_bytes") == len(self.out[1])
        return self.end

    def status(self) -> int:
        return self.finish().number("status")

    def feed(self, data: bytes, eof: bool = True) -> None:
        """Sends stdin as credit allows, until the job has ended or all is sent."""
        self.stdin = data
        while self.sent < len(data) and not self.gone:
            self.until(lambda: self.credit > self.sent or self.gone)
            piece = data[self.sent : min(self.credit, self.sent + messages.MAX_DATA_BYTES)]
            if piece and not self.gone:
                self.tell(Kind.INPUT, 0, self.sent, piece)
                self.sent += len(piece)
        if eof and not self.gone:
            self.tell(Kind.INPUT, 0, self.sent)

    def _take(self, said: RunnerSaid | RunnerEnded) -> None:
        if isinstance(said, RunnerEnded):
            self.gone = True
        elif said.kind == Kind.OUTPUT:
            assert len(said.payload) <= messages.MAX_DATA_BYTES
            assert said.number == len(self.out[said.stream])
            self.out[said.stream] += said.payload
            if self._free_credit:
                self.tell(Kind.CREDIT, said.stream, len(self.out[said.stream]) + 65_536)
        elif said.kind == Kind.CREDIT:
            assert said.number > self.credit
            self.credit = said.number
        elif said.kind == Kind.REJECTED:
            self.rejected = said.payload.decode()
        else:
            self.end = messages.decode_fields(said.payload)


class Bench:
    """Starts jobs, and cleans up after them."""

    def __init__(self, folder: Path, tree: str) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir(mode=0o711)
        self.cwd = folder / "cwd"
        self.cwd.mkdir()
        self.tree = tree
        self.flush = "auto"
        self.roots: tuple[str, ...] = ("/nonexistent-root",)
        self.runners: Runners | None = None
        self.jobs: list[Job] = []

    def start(
        self,
        argv: Sequence[str | bytes],
        *,
        claims: Sequence[tuple[str, str | int]] = (),
        stdin: str = "null",
        env: Mapping[str, str] = ENV,
        cwd: Path | str | None = None,
        identity: Identity | None = None,
        free_credit: bool = True,
        paths: Sequence[str] = (),
    ) -> Job:
        self.runners = self.runners or Runners(PROGRAM, self.work, self.roots, self.tree, self.flush)
        fields = messages.encode_fields([("cwd", os.fspath(cwd or self.cwd)), *(("path", path) for path in paths)])
        said = dict(claims)
        streams = [(key, value) for key, value in (("stdin", stdin), ("stdout", "stream"), ("stderr", "stream")) if key not in said]
        start = Start(
            (f"job{len(self.jobs)}", 1),
            messages.decode_fields(fields),
            messages.encode_fields([*streams, *claims]),
            messages.encode_strings(os.fsencode(word) for word in argv),
            messages.encode_strings(os.fsencode(f"{key}={value}") for key, value in env.items()),
        )
        job = Job(self.runners.start(start, identity or Identity(0, 0, (), become=False)), free_credit=free_credit)
        self.jobs.append(job)
        return job

    def run(self, *argv: str | bytes, **how: object) -> Job:
        job = self.start(argv, **how)  # type: ignore[arg-type]
        job.finish()
        return job

    def close(self) -> None:
        for job in self.jobs:
            job.runner.close()
        deadline = time.monotonic() + SECONDS
        while self.runners and self.runners.pids and time.monotonic() < deadline:
            self.runners.reap()
            time.sleep(0.005)
        assert not list(self.work.iterdir()), "a temporary directory was left"


@functools.cache
def namespaces_work() -> bool:
    return not subprocess.run([PROGRAM, "--probe-tree"], capture_output=True, check=True).stdout.endswith(b" -1.000\n")


@pytest.fixture(params=["subreaper", "pidns"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "pidns" and not namespaces_work():
        pytest.skip("this kernel or container refuses PID namespaces")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:  # pytest's own folders; other users must pass through
        parent.chmod(0o755)
    made = Bench(tmp_path, request.param)
    yield made
    made.close()


def sh(script: str) -> tuple[str, str, str]:
    return ("/bin/sh", "-c", script)


def process_exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def processes_with(marker: str) -> list[int]:
    """Processes whose command line holds the marker: namespaces hide a job's own numbers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def eventually_no_process(marker: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while processes_with(marker):
        assert time.monotonic() < deadline, f"{marker} still runs"
        time.sleep(0.01)


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
    assert os.WTERMSIG(job.end.number("status")) == signal.SIGKILL
    assert not processes_with(name)


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
    for leftover in bench.work.iterdir():  # a killed runner cannot; its agent removes the whole directory
        leftover.rmdir()


def test_process_ids_are_spread(bench: Bench) -> None:
    ids = {bytes(bench.run(*sh("echo $$")).out[1]) for _ in range(6)}
    assert len(ids) == 6


def test_umask_nice_limits_and_ignored_signals(bench: Bench) -> None:
    claims = [("umask", "027"), ("nice", 7), ("limit", "nofile:99:200"), ("limit", "core:0:unlimited"), ("ignore", 13), ("ignore", 1)]
    script = "umask; nice; ulimit -Sn; ulimit -Hn; grep SigIgn /proc/self/status; touch made; cat /proc/self/status | grep -i nonewprivs"
    job = bench.run(*sh(script), claims=claims)
    words = job.out[1].split()
    assert words[:4] == [b"0027", b"7", b"99", b"200"]
    assert int(words[5], 16) & 0x7FFF_FFFF == 1 << 12 | 1 << 0  # 32 and 33 are the C library's
    assert words[-1] == b"1"
    assert stat.S_IMODE((bench.cwd / "made").stat().st_mode) == 0o640


def test_limits_are_never_raised(bench: Bench) -> None:
    hard = int(subprocess.run(["/bin/sh", "-c", "ulimit -Hn"], capture_output=True, check=True).stdout)
    job = bench.run(*sh("ulimit -Hn"), claims=[("limit", f"nofile:{hard * 2}:{hard * 2}")])
    assert int(job.out[1]) == hard


def test_environment_is_exact(bench: Bench) -> None:
    env = {"PATH": ENV["PATH"], "ODD name": "x=y", "EMPTY": "", "BIG": "b" * 100_000, "TMP": "/old"}
    job = bench.run("env", "-0", env=env)
    seen = dict(item.split(b"=", 1) for item in bytes(job.out[1]).split(b"\0") if item)
    work = seen.pop(b"TMPDIR")
    assert seen.pop(b"DWRAP_JOB") == b"job0"
    assert seen.pop(b"TMP") == work
    assert seen == {key.encode(): value.encode() for key, value in env.items() if key != "TMP"}


def test_private_tmpdir_is_made_and_removed(bench: Bench) -> None:
    victim = bench.folder / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    litter = f"mkdir -p a/b; touch a/b/c d; ln -s {victim} link; mkdir locked; touch locked/x; chmod 0 locked"
    script = f'stat -c "%a %u" "$TMPDIR"; cd "$TMPDIR"; {litter}'
    job = bench.run(*sh(script))
    assert job.out[1] == f"700 {os.geteuid()}\n".encode()
    assert (victim / "file").read_text() == "kept"
    assert not list(bench.work.iterdir())


def test_tmpdir_on_the_shared_tree_is_kept(bench: Bench) -> None:
    bench.roots = (str(bench.folder),)
    env = {**ENV, "TMPDIR": str(bench.cwd)}
    assert bench.run(*sh('echo "$TMPDIR"'), env=env).out[1].decode().strip() == str(bench.cwd)
    gone = {**ENV, "TMPDIR": str(bench.folder / "missing")}
    assert str(bench.work) in bench.run(*sh('echo "$TMPDIR"'), env=gone).out[1].decode()
    beside = {**ENV, "TMPDIR": str(bench.folder) + "-beside"}
    assert str(bench.work) in bench.run(*sh('echo "$TMPDIR"'), env=beside).out[1].decode()


@pytest.mark.parametrize(
    ("argv", "word", "text"),
    [
        (("no-such-command",), "not_found", "no-such-command"),
        (("./plain",), "not_executable", "ermission denied"),
        (("/",), "not_executable", "/"),
    ],
)
def test_commands_that_cannot_run(bench: Bench, argv: tuple[str, ...], word: str, text: str) -> None:
    (bench.cwd / "plain").write_text("text")
    end = bench.run(*argv).finish()
    assert end.text("error") == word
    assert text in end.text("reason")
    assert end.get("status") is None


def test_a_script_without_interpreter_line_runs_in_the_shell(bench: Bench) -> None:
    (bench.cwd / "script").write_text("exit 9\n")
    (bench.cwd / "script").chmod(0o755)
    assert os.WEXITSTATUS(bench.run("./script").status()) == 9


def test_a_missing_directory(bench: Bench) -> None:
    end = bench.run("true", cwd=bench.cwd / "missing").finish()
    assert end.text("error") == "cwd"
    assert "missing" in end.text("reason")


def test_usage_is_reported(bench: Bench) -> None:
    end = bench.run(*sh("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")).finish()
    assert end.number("user_ms") > 10
    assert end.number("run_ms") >= end.number("user_ms") * 0.5
    assert end.number("max_rss_bytes") > 100_000
    assert end.text("tree") == bench.tree


@pytest.mark.parametrize("flush", ["auto", "always"])
def test_outputs_are_flushed(bench: Bench, flush: str) -> None:
    bench.flush = flush
    (bench.folder / "named").mkdir()
    (bench.folder / "other").mkdir()
    old = bench.cwd / "old"
    old.write_text("old")
    os.utime(old, (1, 1))
    os.mkfifo(bench.cwd / "fifo")
    named = bench.folder / "named" / "object.o"
    script = f"echo x > new; mkdir -p sub; echo y > sub/deep; echo z > $0; echo w > {bench.folder}/other/o"
    end = bench.run("/bin/sh", "-c", script, str(named), paths=[str(bench.folder / "other")]).finish()
    assert end.text("outputs") == ("approximate" if flush == "always" else "coherent")
    files, folders = 4, 4  # cwd, sub, named, other
    assert end.number("outputs_count") == (files + folders if flush == "always" else 0)


@ROOT_ONLY
def test_runs_as_the_submitter(bench: Bench) -> None:
    nobody = pwd.getpwnam("nobody")
    bench.cwd.chmod(0o777)
    identity = Identity(nobody.pw_uid, nobody.pw_gid, (nobody.pw_gid, 20), become=True)
    script = 'id -u; id -g; id -G; touch mine; stat -c %u "$TMPDIR"; mkdir -p "$TMPDIR/deep/er"; grep CapEff /proc/self/status'
    job = bench.run(*sh(script), identity=identity)
    uid, gid = str(nobody.pw_uid), str(nobody.pw_gid)
    assert job.out[1].decode().splitlines() == [uid, gid, f"{gid} 20", uid, "CapEff:\t0000000000000000"], job.out
    assert (bench.cwd / "mine").stat().st_uid == nobody.pw_uid


@ROOT_ONLY
def test_the_directory_is_entered_as_the_submitter(bench: Bench) -> None:
    bench.cwd.chmod(0o700)
    end = bench.run("true", identity=Identity(65534, 65534, (), become=True)).finish()
    assert end.text("error") == "cwd"


@ROOT_ONLY
def test_negative_nice_is_not_granted_to_users(bench: Bench) -> None:
    job = bench.run("nice", claims=[("nice", -5)], cwd="/", identity=Identity(65534, 65534, (), become=True))
    assert int(job.out[1]) == os.getpriority(os.PRIO_PROCESS, 0)


def test_a_spec_that_is_cut_wrong_is_rejected() -> None:
    for blob in (b"", b"\0" * 16, struct.pack("=4I", 9, 0, 0, 0) + b"a", struct.pack("=4I", 0, 0, 1, 0) + b"a"):
        spec = os.memfd_create("spec")
        os.write(spec, blob)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        high = [os.dup2(fd, 40 + i) for i, fd in enumerate((theirs.fileno(), spec))]
        actions = [(os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4)]
        pid = os.posix_spawn(PROGRAM, [str(PROGRAM)], {}, file_actions=actions)
        theirs.close()
        for fd in (spec, *high):
            os.close(fd)
        ours.settimeout(SECONDS)
        assert struct.unpack_from("=I", ours.recv(1000))[0] == Kind.REJECTED
        assert os.waitpid(pid, 0)[1] == 0
        ours.close()


def test_started_by_hand_it_says_what_it_is() -> None:
    done = subprocess.run([PROGRAM], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "dwrap-agent" in done.stderr
