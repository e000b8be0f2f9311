"""A bench for the runner: starts jobs over its control socket as the agent does, feeds and hears them, checks what they leave.

Every test runs with each kind of tree that works here, and with a runner that was built with the address, leak and undefined
behaviour sanitizers: what they find makes the runner's own status bad, which `Bench.close` does not accept.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import select
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from dwrap.agent.accounts import Identity
from dwrap.agent.events import Kind, RunnerEnded, RunnerSaid, Start, Tell
from dwrap.agent.health import boot_clock
from dwrap.agent.runner import Runner, Runners
from dwrap.agent.workplace import is_free
from dwrap.protocol import messages
from dwrap.protocol.messages import Fields

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build" / "bin" / "dwrap-runner"
SANITIZE = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D_GNU_SOURCE", "-std=c11", "-I.")
SECONDS = 15.0
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


class Job:
    """One job on a runner of its own. Gives credit freely, and notes what was made, unless told otherwise."""

    def __init__(self, runner: Runner, *, free_credit: bool = True, notes: bool = True) -> None:
        self.runner = runner
        self.out = {1: bytearray(), 2: bytearray()}
        self.credit = 0
        self.end: Fields | None = None
        self.rejected = ""
        self.fault: int | None = None
        self.facts: list[tuple[str, str]] = []
        self.asked = False
        self.gone = False
        self.applied: int | None = None
        self.manifest = bytearray()
        self.stdin = b""
        self.sent = 0
        self._free_credit = free_credit
        self._notes = notes

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
            self.rejected, self.fault = said.payload.decode(), said.number
        elif said.kind == Kind.MADE:
            assert self.end is None
            key, _, value = os.fsdecode(said.payload[:-1]).partition("=")
            self.facts.append((key, value))
            assert said.number == len(self.facts)
            self.asked = bool(said.stream)
            if self._notes and self.asked:
                self.tell(Kind.NOTED, 0, said.number)
        elif said.kind == Kind.APPLIED:
            self.applied = said.number
        elif said.kind == Kind.MANIFEST:
            assert 0 < len(said.payload) <= messages.MAX_DATA_BYTES
            assert self.end is None
            self.manifest += said.payload
        else:
            assert said.kind == Kind.ENDED
            self.end = messages.decode_fields(said.payload)


class Deaths(logging.Handler):
    """What the agent would log of runners that did not end well."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger("dwrap.agent").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    def stop(self) -> None:
        logging.getLogger("dwrap.agent").removeHandler(self)


class Bench:
    """Starts jobs, and cleans up after them."""

    def __init__(self, folder: Path, tree: str, program: Path = PROGRAM) -> None:
        self.program = program
        self.deaths = Deaths()
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir(mode=0o711)
        self.cwd = folder / "cwd"
        self.cwd.mkdir()
        self.tree = tree
        self.roots: tuple[str, ...] = ("/nonexistent-root",)
        self.processes = 0
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
        notes: bool = True,
        lease: float | None = None,
        undo: Sequence[str | Path] = (),
        memory_retry: bool = False,
        paths: Sequence[str] = (),
        views: bool = False,
        refresh: bool = False,
        seen: bytes = b"",
        journal: bytes = b"",
    ) -> Job:
        self.runners = self.runners or Runners(self.program, self.work, self.roots, self.tree, self.processes)
        if lease is not None:
            self.runners.lease(boot_clock() + lease)
        lists = [*(("path", path) for path in paths), *(("undo", os.fspath(path)) for path in undo), ("memory_retry", int(memory_retry))]
        fields = messages.encode_fields([("cwd", os.fspath(cwd or self.cwd)), *lists])
        said = dict(claims)
        streams = [(key, value) for key, value in (("stdin", stdin), ("stdout", "stream"), ("stderr", "stream")) if key not in said]
        start = Start(
            (f"job{len(self.jobs)}", 1),
            messages.decode_fields(fields),
            messages.encode_fields([*streams, *claims]),
            messages.encode_strings(os.fsencode(word) for word in argv),
            messages.encode_strings(os.fsencode(f"{key}={value}") for key, value in env.items()),
            seen,
            journal,
            views,
            refresh,
        )
        job = Job(self.runners.start(start, identity or Identity(0, 0, (), become=False)), free_credit=free_credit, notes=notes)
        self.jobs.append(job)
        return job

    def run(self, *argv: str | bytes, **how: object) -> Job:
        job = self.start(argv, **how)  # type: ignore[arg-type]
        job.finish()
        return job

    def until(self, done: Callable[[], object], seconds: float = SECONDS) -> None:
        """Looks again and again. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() >= deadline:
                raise TimeoutError
            time.sleep(0.005)

    def close(self) -> None:
        for job in self.jobs:
            job.runner.close()
        deadline = time.monotonic() + SECONDS
        while self.runners and self.runners.pids and time.monotonic() < deadline:
            self.runners.reap()
            time.sleep(0.005)
        if self.runners:
            for job in self.jobs:
                self.runners.forget(job.runner.key)
            self.runners.close()
        self.deaths.stop()
        assert not self.deaths.said, self.deaths.said
        assert not self.litter(), f"left: {self.litter()}"
        while not is_free(self.work):
            assert time.monotonic() < deadline, "something lives still"
            time.sleep(0.005)

    def litter(self) -> list[Path]:
        """What is in the work directory and is not the place for records, or is in that."""
        return [path for path in (*self.work.iterdir(), *self.work.glob("runs/*")) if path.name != "runs"]


def holder_of(job: Job) -> int:
    """The process that holds its tree: the first that its runner has forked."""
    return int(Path(f"/proc/{job.runner.pid}/task/{job.runner.pid}/children").read_text().split()[0])


@functools.cache
def compiled(name: str) -> Path:
    """A program of tests/c, in the tests' own build directory."""
    program = ROOT / "build" / "tests" / name
    program.parent.mkdir(parents=True, exist_ok=True)
    part = program.with_suffix(f".{os.getpid()}")
    subprocess.run(["cc", "-D_GNU_SOURCE", "-O1", "-static", "-no-pie", ROOT / "tests" / "c" / f"{name}.c", "-o", part], check=True)
    part.rename(program)
    return program


@functools.cache
def namespaces_work() -> bool:
    return not subprocess.run([PROGRAM, "--probe-tree"], capture_output=True, check=True).stdout.endswith(b" -1.000\n")


@functools.cache
def sanitized() -> Path | None:
    """The runner built with the sanitizers, once for each test process; None where the compiler has none."""
    folder = Path(tempfile.mkdtemp(prefix="dwrap-sanitized-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    sources = sorted(str(path.relative_to(ROOT)) for room in ("agent", "coherence", "environment") for path in (ROOT / room).glob("*.c"))
    (folder / "empty.c").write_text("int main(void) { return 0; }")
    if subprocess.run(["cc", *SANITIZE, folder / "empty.c", "-o", folder / "empty"], capture_output=True, check=False).returncode:
        return None
    subprocess.run(["cc", *SANITIZE, *sources, "-o", folder / "dwrap-runner"], cwd=ROOT, check=True)
    return folder / "dwrap-runner"


@pytest.fixture(params=["subreaper", "pidns", "sanitized"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "pidns" and not namespaces_work():
        pytest.skip("this kernel or container refuses PID namespaces")
    program = sanitized() if request.param == "sanitized" else PROGRAM
    if program is None:
        pytest.skip("this compiler has no address sanitizer")
    tree = "subreaper" if request.param == "subreaper" or not namespaces_work() else "pidns"
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:  # pytest's own folders; other users must pass through
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & stat.S_ISVTX:
            parent.chmod(0o755)
    made = Bench(tmp_path, tree, program)
    yield made
    made.close()


def sh(script: str) -> tuple[str, str, str]:
    return ("/bin/sh", "-c", script)


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
