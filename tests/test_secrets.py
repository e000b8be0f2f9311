"""What a job was given and what it said is nowhere but in the job: not in logs, answers, pages, files or other processes' command lines.

A real farm runs jobs that carry canaries in their environment, on stdin, in what they print and in argv, and that end in every way that
there is. Then all that dwrap has said or written is searched, and while a job runs the whole of /proc.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from farm import DWRAP, Farm, eventually, program, ready_line
from test_broker import Peer

NAMES = ("environment", "stdin", "output", "argument", "command")
CANARIES = {name: f"c4nary{hashlib.sha256(f'{name} {os.getpid()}'.encode()).hexdigest()[:24]}" for name in NAMES}
SECRET = ("environment", "stdin", "output")
FORMS = {name: (value.encode(), value[::-1].encode(), value.encode().hex().encode()) for name, value in CANARIES.items()}
# Prints what it saw as digests, and the output's canary from two halves: the whole is in no argument.
SCRIPT = """
import hashlib, os, sys, time
digest = lambda text: hashlib.sha256(text.encode()).hexdigest()
half, rest, flag, status = sys.argv[2:6]
print(digest(os.environ['CANARY']), digest(sys.stdin.read()), digest(sys.argv[1]), half + rest, flush=True)
print(half + rest, file=sys.stderr, flush=True)
while flag and not os.path.exists(flag):
    time.sleep(0.02)
sys.exit(int(status))
"""


def found_in(text: bytes) -> set[str]:
    """The canaries in it, by name."""
    return {name for name, forms in FORMS.items() if any(form in text for form in forms)}


def found_under(*directories: Path) -> dict[str, set[str]]:
    """What the files in these directories, their names included, hold."""
    found: dict[str, set[str]] = {}
    for directory in directories:
        for path in [directory, *directory.rglob("*")]:
            text = os.fsencode(path) + (path.read_bytes() if path.is_file() else b"")
            if names := found_in(text):
                found[str(path)] = names
    return found


class Place:
    """A farm of which every directory is known, and wrappers in it."""

    def __init__(self, farm: Farm, directory: Path) -> None:
        self.farm = farm
        self.directory = directory
        self.work, self.tree, self.home, self.runtime = (directory / name for name in ("work", "tree", "home", "runtime"))
        for made in (self.work, self.tree, self.home, self.runtime):
            made.mkdir(mode=0o711)
        self.runtime.chmod(0o700)
        self.command = self.tree / CANARIES["command"]
        self.command.symlink_to(sys.executable)

    def environment(self, **more: str) -> dict[str, str]:
        directories = {"HOME": str(self.home), "XDG_STATE_HOME": str(self.home / "state"), "XDG_RUNTIME_DIR": str(self.runtime)}
        return self.farm.environment(**{"CANARY": CANARIES["environment"], "DWRAP_VERBOSE": "1", **directories, **more})

    @contextmanager
    def started(self, flag: Path | None = None, status: int = 0, command: str = "", **more: str) -> Iterator[subprocess.Popen[bytes]]:
        output = CANARIES["output"]
        words = [CANARIES["argument"], output[:9], output[9:], str(flag or ""), str(status)]
        argv = [DWRAP, command or str(self.command), "-c", SCRIPT, *words]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(argv, env=self.environment(**more), cwd=self.tree, **pipes) as process:  # type: ignore[call-overload]
            try:
                yield process
            finally:
                process.kill()

    def run(self, status: int = 0, **more: str) -> tuple[int, bytes, bytes]:
        with self.started(None, status, **more) as process:
            out, err = process.communicate(CANARIES["stdin"].encode(), timeout=60)
        return process.returncode, out, err

    @contextmanager
    def waiting(self, flag: Path) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
        """A job that has said what it saw, and ends once the flag is there."""
        with self.started(flag) as process:
            assert process.stdin
            assert process.stdout
            process.stdin.write(CANARIES["stdin"].encode())
            process.stdin.close()
            process.stdin = None
            yield process, process.stdout.readline()

    def dwrapctl(self, *words: str) -> bytes:
        done = subprocess.run([program("dwrapctl"), *words], env=self.environment(), cwd=self.tree, capture_output=True, timeout=120)
        return done.stdout + done.stderr

    def own_words(self, stderr: bytes) -> bytes:
        """What the wrapper itself said."""
        return b"".join(line for line in stderr.splitlines() if line.startswith(b"dwrap: "))


def saw_all(stdout: bytes) -> bool:
    """Whether the job had its canaries, and its output has come."""
    wanted = [hashlib.sha256(CANARIES[name].encode()).hexdigest() for name in ("environment", "stdin", "argument")]
    return stdout.decode().split() == [*wanted, CANARIES["output"]]


@pytest.fixture
def place(short_dir: Path) -> Iterator[Place]:
    with Farm(short_dir, agents=0) as farm:
        there = Place(farm, short_dir)
        farm.add_agent("a1", 2, "--work", str(there.work))
        yield there
    print((short_dir / "farm.log").read_text("utf-8", "replace")[-20_000:])


def said_by(place: Place) -> dict[str, bytes]:
    """Everything that the daemons tell, and dwrapctl shows."""
    words = (["status"], ["status", "--json"], ["agents"], ["agents", "--json"], ["jobs"], ["jobs", "--json"], ["why", "last"],
             ["why", "--json"], ["doctor"])  # fmt: skip
    told = {f"dwrapctl {' '.join(one)}": place.dwrapctl(*one) for one in words}
    for job in place.farm.jobs():
        told[f"why {job['command']} {job['outcome']}"] = place.dwrapctl("why", job["job"])
    for page in ("/status.json", "/metrics", "/healthz", "/nothing"):
        told[page] = read_page(place.farm, page)
    return told


def read_page(farm: Farm, page: str) -> bytes:
    try:
        with urllib.request.urlopen(farm.http + page, timeout=10) as answer:  # noqa: S310 - our own page
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        return error.read()


def test_nothing_of_a_job_is_anywhere_else(place: Place) -> None:
    farm = place.farm
    status, out, err = place.run()
    assert (status, saw_all(out)) == (0, True)
    heard = {"ran": place.own_words(err)}
    status, out, err = place.run(status=3)
    assert (status, saw_all(out)) == (3, True)
    heard["failed"] = place.own_words(err)
    for what, more, wanted in (
        ("refused", {"DWRAP_LABELS": "kind=none", "DWRAP_PATIENCE": "0"}, 125),
        ("not found", {"command": "/no/such/program"}, 127),
        ("here", {"DWRAP_LOCAL": "1"}, 0),
    ):
        status, out, err = place.run(**more)
        assert status == wanted, (what, err)
        assert saw_all(out) is (what == "here")
        heard[what] = place.own_words(err)
    flag = place.tree / "flag"
    with place.waiting(flag) as (process, first):
        farm.restart_agent("a1", signal.SIGKILL)
        ready_line(farm.agents["a1"])
        flag.touch()
        _, err = process.communicate(timeout=60)
    heard["its agent was killed"] = place.own_words(err)
    assert saw_all(first)
    assert process.returncode in (0, 125), "its runner ended it, or kept its result for the next agent"
    say_what_is_malformed(farm)

    told = said_by(place)
    outcomes = {(job["outcome"], job["status"]) for job in farm.jobs()}
    assert {("done", 0), ("done", 3 << 8)} <= outcomes
    farm.close()
    own = {"here.log": place.home / "state", "state": place.directory / "state", "work": place.work, "runtime": place.runtime}
    log = (place.directory / "farm.log").read_bytes()
    written = found_under(*(path for path in own.values() if path.exists()))
    leaks = {name: found_in(text) & {*SECRET} for name, text in {**heard, **told, "log": log}.items()}
    assert {name: what for name, what in leaks.items() if what} == {}
    assert {name: what & {*SECRET} for name, what in written.items() if what & {*SECRET}} == {}
    # argv: its first word's last part is in records, and the user's own log has the whole of what ran here.
    shown = {name for name, text in {**heard, **told, "log": log}.items() if "argument" in found_in(text)}
    assert shown == {"dwrapctl jobs --json"}, "which tells the user's own log"
    assert {os.path.basename(name) for name, what in written.items() if "argument" in what} == {"here.log"}
    # The control: the same search finds what is there.
    assert {"dwrapctl jobs", "dwrapctl jobs --json", "dwrapctl why last"} <= {name for name, text in told.items() if found_in(text)}
    # What is everybody's tells nothing of a job, its id neither.
    open_to_all = told["/status.json"] + told["/metrics"] + told["dwrapctl status"] + told["dwrapctl agents"] + log
    ids = [job["job"] for job in json.loads(told["dwrapctl jobs --json"]) if job["job"]]
    assert any(job.encode() in told["dwrapctl why last"] for job in ids), "the control"
    assert not found_in(open_to_all)
    assert not [job for job in ids if job.encode() in open_to_all]


def say_what_is_malformed(farm: Farm) -> None:
    """Refusals quote nothing of what they refuse."""
    canary = CANARIES["environment"]
    for verb, fields, bodies in (
        ("SUBMIT", {"version": 1, "job": "j1", "cwd": canary, "command": "cc", "build": "b"}, ()),
        ("SUBMIT", {"version": canary, "job": "j2", "cwd": "/", "command": "cc", "build": "b"}, ()),
        ("SUBMIT", {"version": 1, "job": f"/{canary}", "cwd": "/", "command": "cc", "build": "b"}, ()),
        ("GO", {"job": "j3", "stamp": "s", "limit": canary}, (b"", f"CANARY={canary}\0".encode())),
        ("GO", {"job": "j3", "stamp": "s"}, (b"cc\0", f"CANARY={canary}".encode())),
        ("QUERY", {"what": canary}, ()),
        ("REGISTER", {"version": 1, "name": "x", "slots": canary, "root": "/", "serves": "any"}, ()),
    ):
        peer = Peer(farm.address)
        peer.say(verb, *bodies, **fields)
        if verb != "GO":
            assert canary.encode() not in b"".join(peer.frames())
        peer.close()
    farm.status()


def processes_with(canary: bytes, what: str) -> dict[int, bytes]:
    """Which processes have it in their environ or cmdline: process id to command line."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if canary in (directory / what).read_bytes():
                found[int(directory.name)] = (directory / "cmdline").read_bytes()
        except OSError:
            continue  # it has gone, or is another user's
    return found


def test_while_a_job_runs_only_it_and_its_wrapper_have_its_environment(place: Place) -> None:
    flag = place.tree / "flag"
    with place.waiting(flag) as (process, first):
        daemons = {place.farm.distributor.pid, *(agent.pid for agent in place.farm.agents.values())}
        for what, canary in (("environ", CANARIES["environment"]), ("cmdline", CANARIES["argument"])):
            holders = processes_with(canary.encode(), what)
            assert process.pid in holders, "the control: the wrapper has it"
            jobs = {pid: line for pid, line in holders.items() if pid != process.pid}
            assert jobs, "the control: the job has it"
            assert not daemons & holders.keys()
            assert all(line.startswith(os.fsencode(place.command)) for line in jobs.values()), jobs
        for name in ("stdin", "output"):
            for what in ("environ", "cmdline"):
                assert processes_with(CANARIES[name].encode(), what) == {}
        files = found_under(place.work, place.directory / "state", place.runtime)
        assert {name for names in files.values() for name in names} <= {"command"}, "the ledger says why it is not run again"
        flag.touch()
        rest, _ = process.communicate(timeout=60)
    assert saw_all(first + rest)
    eventually(lambda: not list(place.work.rglob("runs/*")), saying="the record of the job is removed")
