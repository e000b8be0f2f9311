"""dwrap-agent as a process, with a scripted ROUTER in the distributor's place: registration, a job, reconnection, drain, ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from dwrap.protocol import messages
from dwrap.protocol.messages import Fields, Value

AGENT = (sys.executable, "-c", "from dwrap.agent.cli import main; main()")
SECONDS = 15.0
NAME = f"j1:1:{os.geteuid()}"  # of the attempt that `assign` makes


class Distributor:
    """Says what a test tells it to, and answers heartbeats and questions."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"ipc://{folder}/d.sock"
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.agent = b""
        self.manifest = b""
        self.lease_ms = 10_000
        self.renews = self.notes = True
        self.open()

    def open(self) -> None:
        self.router = self.context.socket(zmq.ROUTER)
        self.router.linger = 0
        self.router.bind(self.endpoint)

    def close(self) -> None:
        self.router.close(linger=0)

    def say(self, verb: str, *bodies: bytes, **fields: Value) -> None:
        self.router.send_multipart([self.agent, *messages.encode(verb, fields.items(), *bodies)])

    def hear(self, wanted: str) -> tuple[Fields, tuple[bytes, ...]]:
        """The next message of that verb; others are passed over."""
        deadline = time.monotonic() + SECONDS
        while self.router.poll(int(max(0, deadline - time.monotonic()) * 1000)):
            self.agent, *frames = self.router.recv_multipart()
            verb, fields, bodies = messages.parse(frames)
            if verb == "HEARTBEAT" and self.renews:
                self.say("LEASE", epoch=1, lease_ms=self.lease_ms)
            if verb == "MADE" and fields.flag("ask") and self.notes:
                self.say("NOTED", job=fields.name("job"), attempt=fields.number("attempt"), seq=fields.number("seq"))
            if verb == "MANIFEST":
                self.manifest += bodies[0]
            if verb == wanted:
                return fields, tuple(bodies)
        raise AssertionError(f"no {wanted} within {SECONDS} s")

    def welcome(self) -> Fields:
        fields, _ = self.hear("REGISTER")
        self.say("WELCOME", epoch=1, token="secret", lease_ms=self.lease_ms)
        return fields

    def attach(self, job: str = "j1", stdout: int = 0, stderr: int = 0) -> None:
        self.say("ATTACH", job=job, attempt=1, stdout=stdout, stderr=stderr, stdout_limit=65_536 + stdout, stderr_limit=65_536 + stderr)

    def assign(self, script: str, job: str = "j1", claims: bytes = b"stdin=null\0", uid: int | None = None, **more: int) -> None:
        who = os.geteuid() if uid is None else uid
        argv = messages.encode_strings([b"/bin/sh", b"-c", script.encode()])
        self.say("ASSIGN", claims, argv, b"PATH=/usr/bin:/bin\0", job=job, attempt=1, epoch=1, uid=who, cwd="/", build="b", **more)


def start(*words: str, work: Path) -> subprocess.Popen[str]:
    allow = ["--allow-root"] if os.geteuid() == 0 else []
    argv = [*AGENT, *words, "--name", "a", "--slots", "2", "--work", str(work), *allow]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)


@pytest.fixture
def distributor(short_dir: Path) -> Iterator[Distributor]:
    made = Distributor(short_dir)
    yield made
    made.close()
    made.context.destroy(linger=0)


@pytest.fixture
def agent(distributor: Distributor, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(distributor.endpoint, work=tmp_path / "work")
    yield process
    process.kill()
    process.communicate()


def test_registers_and_says_ready(distributor: Distributor, agent: subprocess.Popen[str]) -> None:
    fields = distributor.welcome()
    assert fields.text("serves") == ("any" if os.geteuid() == 0 else str(os.geteuid()))
    assert (fields.text("name"), fields.number("slots"), fields.texts("root")) == ("a", 2, ("/",))
    assert fields.text("tree") in ("pidns", "subreaper")
    assert agent.stdout is not None
    assert agent.stdout.readline() == "ready a slots=2\n"
    beat, _ = distributor.hear("HEARTBEAT")
    assert beat.text("token") == "secret"


def test_a_job_whole(distributor: Distributor, agent: subprocess.Popen[str]) -> None:
    distributor.welcome()
    distributor.assign("read line; echo got $line; echo $DWRAP_JOB >&2; exit 3", claims=b"stdin=stream\0")
    credit, _ = distributor.hear("CREDIT")
    assert (credit.text("stream"), credit.number("limit")) == ("stdin", 4096)
    distributor.say("INPUT", b"hello\n", job="j1", offset=0, eof=1)
    fields, bodies = distributor.hear("OUTPUT")
    assert (fields.text("stream"), fields.number("attempt"), bodies) == ("stdout", 1, (b"got hello\n",))
    result, _ = distributor.hear("RESULT")
    assert (os.WEXITSTATUS(result.number("status")), result.number("stdin_taken")) == (3, 6)
    again, _ = distributor.hear("RESULT")
    assert again.number("status") == result.number("status"), "kept until it is acknowledged"


def test_jobs_of_others_are_rejected(distributor: Distributor, agent: subprocess.Popen[str]) -> None:
    distributor.welcome()
    distributor.assign("true", uid=54_321)
    fields, _ = distributor.hear("REJECT")
    assert "54321" in fields.text("reason")
    assert not fields.flag("fault")


def test_a_job_lives_through_a_torn_connection(distributor: Distributor, agent: subprocess.Popen[str], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    distributor.welcome()
    distributor.assign(f"read line; echo up $line; cat {gate}; echo down", claims=b"stdin=stream\0")
    distributor.hear("CREDIT")
    distributor.say("INPUT", b"in\n", job="j1", offset=0, eof=1)
    distributor.hear("OUTPUT")
    distributor.close()
    gate.write_bytes(b"")
    distributor.open()
    assert NAME in [*(fields := distributor.welcome()).texts("running"), *fields.texts("kept")]
    distributor.hear("HEARTBEAT")
    distributor.attach(stdout=3)
    credit, _ = distributor.hear("CREDIT")
    assert (credit.number("limit") >= 4_096, credit.number("received")) == (True, 3)
    heard = b""
    while heard != b"in\ndown\n":
        fields, bodies = distributor.hear("OUTPUT")
        assert fields.number("offset") == 3 + len(heard)
        heard += bodies[0]
    assert distributor.hear("RESULT")[0].number("status") == 0


def test_a_job_ends_with_the_lease_though_nobody_says_so(distributor: Distributor, tmp_path: Path) -> None:
    distributor.lease_ms, distributor.renews = 1_500, False
    process = start(distributor.endpoint, "--root", str(tmp_path), work=tmp_path / "work")
    try:
        distributor.welcome()
        distributor.assign("echo up; exec sleep 1000")
        result, _ = distributor.hear("RESULT")
        assert (result.text("error"), result.flag("repeat"), result.number("stdout_bytes")) == ("lost", True, 3)
    finally:
        process.kill()
        process.communicate()


def test_an_agent_tells_how_the_jobs_of_one_that_was_killed_ended(distributor: Distributor, tmp_path: Path) -> None:
    words, work = (distributor.endpoint, "--root", str(tmp_path)), tmp_path / "work"
    process = start(*words, work=work)
    try:
        first = distributor.welcome().text("incarnation")
        distributor.assign("echo up; exec sleep 1000")
        distributor.hear("OUTPUT")
        process.kill()
        process.communicate()
        process = start(*words, work=work)
        fields = distributor.welcome()
        assert fields.text("incarnation") not in ("", first)
        while not fields.texts("former"):
            fields = distributor.welcome()
        assert (fields.texts("former"), fields.texts("running"), fields.texts("kept")) == ((first,), (), (NAME,))
        assert fields.number("leftover") == 0
        distributor.hear("HEARTBEAT")
        distributor.attach(stdout=3)
        result, _ = distributor.hear("RESULT")
        assert (result.text("error"), result.flag("repeat")) == ("lost", True)
        distributor.say("ACK", job="j1", attempt=1)
        distributor.close()
        distributor.open()
        assert distributor.welcome().texts("kept") == ()
    finally:
        process.kill()
        process.communicate()


def test_an_agent_that_cannot_start_runners_says_that_it_is_its_own_fault(
    distributor: Distributor, agent: subprocess.Popen[str], tmp_path: Path
) -> None:
    incarnation = distributor.welcome().text("incarnation")
    shutil.rmtree(tmp_path / "work" / incarnation)
    distributor.assign("true")
    assert distributor.hear("REJECT")[0].flag("fault")


def test_term_drains_and_int_kills(distributor: Distributor, agent: subprocess.Popen[str], tmp_path: Path) -> None:
    distributor.welcome()
    distributor.assign("echo up; sleep 1000")
    distributor.hear("OUTPUT")
    agent.send_signal(signal.SIGTERM)
    distributor.hear("LEAVING")
    distributor.assign("true", job="j2")
    assert "leaving" in distributor.hear("REJECT")[0].text("reason")
    agent.send_signal(signal.SIGINT)
    result, _ = distributor.hear("RESULT")
    assert result.text("error") == "lost"
    distributor.say("ACK", job="j1", attempt=1)
    assert agent.wait(SECONDS) == 0
    assert not list((tmp_path / "work").iterdir())


def test_refused_is_one_line_and_the_end(distributor: Distributor, agent: subprocess.Popen[str]) -> None:
    distributor.hear("REGISTER")
    distributor.say("REFUSED", reason="the name a is taken; choose another with --name")
    _, errors = agent.communicate(timeout=SECONDS)
    assert agent.returncode == 1
    assert [line for line in errors.splitlines() if line.startswith("dwrap: ") and "is taken" in line]


@pytest.mark.parametrize(("views", "told"), [("always", True), ("never", False)])
def test_whether_it_records_is_what_the_operator_says(distributor: Distributor, tmp_path: Path, views: str, told: bool) -> None:
    process = start(distributor.endpoint, "--views", views, work=tmp_path / "work")
    try:
        assert distributor.welcome().flag("views") == told
        file = tmp_path / "made"
        distributor.assign(f"echo made > {file}", views=1, burst=1)
        result, _ = distributor.hear("RESULT")
        assert result.number("status") == 0
        assert (result.text("outputs") == "coherent") != told
        assert (b" %b\0" % os.fsencode(file) in distributor.manifest) == told, "entries of what it wrote come before the result"
    finally:
        process.kill()
        process.communicate()


def test_a_name_is_made_once_the_distributor_knows_of_it(distributor: Distributor, tmp_path: Path) -> None:
    distributor.notes = False
    process = start(distributor.endpoint, "--views", "always", "--root", str(tmp_path), work=tmp_path / "work")
    try:
        distributor.welcome()
        file = tmp_path / "made"
        distributor.assign(f"echo made > {file}", views=1, burst=1)
        fields, _ = distributor.hear("MADE")
        assert (fields.texts("path"), fields.flag("ask")) == ((str(file),), True)
        distributor.close()
        distributor.open()
        distributor.welcome()
        assert distributor.hear("MADE")[0].number("seq") == fields.number("seq")
        assert not file.exists()
        distributor.say("NOTED", job="j1", attempt=1, seq=fields.number("seq"))
        distributor.attach()
        result, _ = distributor.hear("RESULT")
        assert (result.number("status"), file.read_text()) == (0, "made\n")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("tcp://192.0.2.1:7776",), "another machine"),
        (("udp://x",), "neither"),
        (("ipc:///d.sock", "--root", "relative"), "not absolute"),
        (("ipc:///d.sock", "--label", "nonsense"), "KEY=VALUE"),
        (("ipc:///d.sock", "--label", "agent=b"), "say --name"),
    ],
)
def test_what_it_does_not_start_with(words: tuple[str, ...], text: str, tmp_path: Path) -> None:
    process = start(*words, work=tmp_path / "work")
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert errors.startswith("dwrap: cannot start: ")
    assert text in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("changed", "bodies"),
    [
        ({}, (b"group=" + b"9" * 5_000 + b"\0", b"true\0", b"")),
        ({"uid": 10**17}, (b"", b"true\0", b"")),
        ({"uid": "x"}, (b"", b"true\0", b"")),
        ({"cwd": "relative"}, (b"", b"true\0", b"")),
        ({"cwd": None}, (b"", b"true\0", b"")),
        ({}, (b"no field", b"true\0", b"")),
        ({}, (b"gid=99999999999\0", b"true\0", b"")),
        ({}, (b"", b"true", b"")),
        ({}, (b"", b"", b"")),
        ({}, (b"", b"\0" * 300_000, b"")),
        ({}, (b"", b"true\0", b"cut")),
    ],
)
def test_malformed_assignments_do_not_end_it(
    distributor: Distributor, agent: subprocess.Popen[str], changed: dict[str, Value | None], bodies: tuple[bytes, ...]
) -> None:
    distributor.welcome()
    fields = {"job": "bad", "attempt": 1, "epoch": 1, "uid": os.geteuid(), "cwd": "/", "build": "b", **changed}
    distributor.say("ASSIGN", *bodies, **{key: value for key, value in fields.items() if value is not None})
    if b"group=" in bodies[0]:  # a group that cannot be is one that the user is not in
        assert distributor.hear("RESULT")[0].number("status") == 0
    else:
        distributor.hear("REJECT")
    distributor.assign("echo fine")
    assert distributor.hear("OUTPUT")[1] == (b"fine\n",)
