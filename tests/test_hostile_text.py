"""Text that means ill (line ends, escape sequences, marks of direction, bytes that are no UTF-8) in every place where others see it.

Each log line stays one JSON object, what people are shown has no character that could forge what stands around it, and --json has escapes.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import wrapper_program
from fake_distributor import FakeDistributor, Message, Script, offer_then
from farm import Farm, eventually
from farm import program as installed
from prometheus_client.parser import text_string_to_metric_families
from test_broker import Peer
from wrapper_program import Wrapper

from dwrap.control import show
from dwrap.protocol import messages, service

dwrap = wrapper_program.dwrap
program = wrapper_program.program
# C0, CSI, OSC that sets a title, DEL, C1 in UTF-8 and as a byte, overrides and isolates of direction, separators, a byte alone, an overlong
# NUL, half a character at the end.
TEXT = "A\n\r\t\x1b[31mB\x1b]0;title\x07<script>alert(1)</script>\x7f\u009b31m\u202eC\u2066D\u2028"
HOSTILE = TEXT.encode() + b"\x9b\xff\xc0\x80\xed\xa0\x80E\xe2\x82"
WORD = HOSTILE.replace(b"/", b"|")
TREACHEROUS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffd]")


def treacherous(text: bytes) -> list[str]:
    """What in it could deceive a reader; line ends are looked at by themselves."""
    return TREACHEROUS.findall(text.decode("utf-8", "surrogateescape"))


def test_the_control_is_treacherous() -> None:
    found = treacherous(HOSTILE)
    assert {"\x1b", "\x07", "\r", "\x7f", "\u009b", "\u202e", "\u2066", "\u2028", "\udc9b"} <= {*found}


# ---- the daemons and dwrapctl ----


@pytest.fixture
def farm(short_dir: Path) -> Iterator[Farm]:
    with Farm(short_dir, agents=1) as running:
        yield running


class HostileAgent(Peer):
    """All that an agent says of itself."""

    def __init__(self, farm: Farm) -> None:
        super().__init__(farm.address)
        serves = "any" if os.getuid() == 0 else os.getuid()
        words = {"host": HOSTILE, "root": b"/" + WORD, "label": b"k=" + WORD, "identity": HOSTILE, "tree": HOSTILE, "flaw": HOSTILE}
        self.say("REGISTER", version=1, name="evil", slots=1, serves=serves, allow_root=1, mount=b"/r " + WORD + b" s o", **words)
        self.token = self.hear("WELCOME").text("token")
        self.live()
        self.await_("LEASE")

    def live(self) -> None:
        """To be said every few seconds."""
        self.say("HEARTBEAT", token=self.token)

    def await_(self, verb: str) -> messages.Fields:
        """The next message of this kind."""
        while True:
            found, fields, _ = messages.parse(self.frames())
            if found == verb:
                return fields


def submit(farm: Farm, job: str, **more: Any) -> Peer:
    peer = Peer(farm.address)
    known = {"version": 1, "job": job, "cwd": b"/" + WORD, "command": WORD, "build": WORD, "host": WORD, "remote": 1, "pid": 7}
    peer.say("SUBMIT", **{**known, **more})
    return peer


def say_everything(farm: Farm, agent: HostileAgent) -> Iterator[Peer]:
    """Jobs of each ending, with text in every field, and reasons by an agent."""
    yield submit(farm, "here", remote=0, cwd=b"/" + WORD, path=b"/x")
    yield submit(farm, "refused", label=b"k=" + HOSTILE + b"2")
    yield submit(farm, "no.environment", identity=HOSTILE + b"2")
    for job, verb, fields in (
        ("rejected", "REJECT", {"reason": HOSTILE, "fault": 1}),
        ("not.found", "RESULT", {"error": "not_found", "reason": HOSTILE, "outputs": HOSTILE, "outputs_why": HOSTILE, "tree": HOSTILE}),
        ("failed", "RESULT", {"error": "infrastructure", "reason": HOSTILE, "fault": 1, "escaped": 1, "escaped_path": HOSTILE}),
        *((f"lost.{number}", "RESULT", {"error": "lost", "reason": HOSTILE, "fault": 1}) for number in range(2)),  # which suspends it
    ):
        peer = submit(farm, job, label="agent=evil")
        offer = peer.hear("OFFER")
        peer.say("GO", b"cc\0", b"", job=job, stamp=offer.text("stamp"))
        agent.say(verb, job=job, attempt=agent.await_("ASSIGN").number("attempt"), **fields)
        yield peer


def dwrapctl(farm: Farm, *words: str) -> bytes:
    environment = {**farm.environment(), "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    done = subprocess.run([installed("dwrapctl"), *words], env=environment, capture_output=True, timeout=120)
    assert b"Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_what_daemons_and_dwrapctl_say(farm: Farm) -> None:
    with closing(HostileAgent(farm)) as agent:
        peers = list(say_everything(farm, agent))
        eventually(lambda: sum(1 for job in farm.jobs() if job["outcome"]) >= 4, saying="jobs end")
        raw = os.fsencode("".join(str(value) for job in farm.jobs() for value in job.values()))
        assert {"\x1b", "\n", "\u202e", "\udc9b"} <= {*treacherous(raw), *("\n" if b"\n" in raw else "")}, "the control: it came as it was"
        words = [["status"], ["agents"], ["jobs"], ["doctor"], *(["why", job["job"]] for job in farm.jobs())]
        for one in words:
            agent.live()
            said = dwrapctl(farm, *one)
            assert (treacherous(said), said.count(b"<script>") > 0 or one == ["doctor"]) == ([], True), one
        assert b"\\x1b[31mB" in dwrapctl(farm, "jobs"), "the control: it is shown, as escapes"
        for one in (["status"], ["agents"], ["jobs"], ["why", "failed"]):
            agent.live()
            said = dwrapctl(farm, *one, "--json")
            assert (treacherous(said), said.isascii()) == ([], True)
            assert "\x1b[31mB" in str(json.loads(said)).encode().decode("unicode_escape"), "and nothing of it is lost"
        for page in ("/status.json", "/metrics"):
            with urllib.request.urlopen(farm.http + page, timeout=10) as answer:  # noqa: S310 - our own page
                body = answer.read()
                assert "html" not in answer.headers["Content-Type"]
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert treacherous(body) == []
        metrics = list(text_string_to_metric_families(body.decode()))
        assert {value for family in metrics for sample in family.samples for value in sample.labels.values()} <= set(
            re.findall(r"[\w.+]+", body.decode())
        ), "labels are words of our own"
        agent.say("LEAVING")
        for peer in peers:
            peer.close()
    farm.close()
    lines = (farm.directory / "farm.log").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert any(b"suspended" in line and b"[31mB" in line for line in lines), "the control: the log has it"
    for line in lines:
        assert isinstance(json.loads(line)["message"], str)
        assert line.isascii()


def test_a_log_line_is_one_object_whatever_it_says() -> None:
    text = os.fsdecode(HOSTILE)
    sink = io.StringIO()
    handler = logging.StreamHandler(sink)
    handler.setFormatter(service._Lines())
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", (text,), None)
    try:
        raise ValueError(text)
    except ValueError:
        record.exc_info = sys.exc_info()
    handler.handle(record)
    (line,) = sink.getvalue().splitlines()
    assert json.loads(line)["message"] == text
    assert text in json.loads(line)["exception"]
    assert (line.isascii(), "\n" in text) == (True, True)


def test_what_is_shown_and_what_may_be_a_reason() -> None:
    text = os.fsdecode(HOSTILE)
    assert treacherous(show.safe(text).encode()) == treacherous(messages.one_line(text).encode()) == []


# ---- the wrapper ----


def answer(verb: str, **fields: bytes | str | int) -> Any:
    def script(_: Message) -> Script:
        yield (verb, list(fields.items()))

    return script


def ended(**fields: bytes | str | int) -> Any:
    more = messages.encode_fields([("agent", WORD), ("queued_ms", 3)])
    return offer_then(("RESULT", [("attempt", 1), *fields.items()], more))


ANSWERS = {
    "HERE": (answer("HERE", reason=HOSTILE), {}),
    "UNAVAILABLE": (answer("UNAVAILABLE", reason=HOSTILE), {}),
    "UNAVAILABLE, and it must not run here": (answer("UNAVAILABLE", reason=HOSTILE), {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "0"}),
    "UNAVAILABLE with a label": (answer("UNAVAILABLE", reason=HOSTILE), {"DWRAP_LABELS": "k=v", "DWRAP_PATIENCE": "0"}),
    "REFUSED": (answer("REFUSED", reason=HOSTILE), {}),
    "FAILED": (offer_then(("FAILED", [("reason", HOSTILE), ("safe", 0)])), {}),
    "FAILED, and it runs here": (offer_then(("FAILED", [("reason", HOSTILE), ("safe", 1)])), {}),
    "not found": (ended(error="not_found", reason=HOSTILE), {}),
    "not executable": (ended(error="not_executable", reason=HOSTILE), {}),
    "an error": (ended(error="infrastructure", reason=HOSTILE), {}),
    "an error of no known name": (ended(error=HOSTILE, reason=HOSTILE), {}),
    "it ran": (ended(status=0), {}),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_the_wrapper_says_and_writes(dwrap: Wrapper, case: str) -> None:
    script, more = ANSWERS[case]
    with FakeDistributor(script) as d:
        done = dwrap.run("true", env={"DWRAP_HOST": d.address, "DWRAP_VERBOSE": "1", **more})
    assert done.returncode in (0, 125, 126, 127)
    lines = done.stderr.splitlines(keepends=True)
    assert len(lines) == 1
    assert lines[0].startswith(b"dwrap: ")
    assert (treacherous(done.stderr), done.stdout) == ([], b"")
    assert b"B" in done.stderr.removeprefix(b"dwrap: "), "the control: what can be read of it is there"
    log = dwrap.state / "dwrap" / "here.log"
    if log.exists():
        assert log.read_bytes().count(b"\n") == 1
        assert treacherous(log.read_bytes().replace(b"\t", b"")) == []


@pytest.mark.parametrize("fields", [{"where": "agent", "agent": WORD}, {"where": HOSTILE}, {"where": "here"}])
def test_what_is_explained(dwrap: Wrapper, fields: dict[str, bytes | str]) -> None:
    with FakeDistributor(answer("EXPLAINED", reason=HOSTILE, **fields)) as d:
        done = dwrap.run("--explain", "true", env={"DWRAP_HOST": d.address})
    assert (done.returncode, done.stdout.count(b"\n"), treacherous(done.stdout), done.stderr) == (0, 1, [], b"")


def test_what_it_was_itself_asked_to_do(dwrap: Wrapper) -> None:
    """The user's own words, in a script's log."""
    directory = os.fsencode(dwrap.directory) + b"/" + WORD
    os.mkdir(directory)
    done = dwrap.run(b"no-such-" + WORD, "an argument", env={"DWRAP_LOCAL": "1", "DWRAP_VERBOSE": "1"}, cwd=directory)
    assert done.returncode == 127
    assert (treacherous(done.stderr), done.stderr.count(b"\n")) == ([], 2)
    (line,) = dwrap.log()
    assert len(line) == 5
    assert treacherous("".join(line).encode("utf-8", "surrogateescape")) == []
    assert r"\x1b[31mB" in line[3], "the control"
    assert r"\x9b\xff" in line[4]


@pytest.mark.parametrize("text", ["plain", "Grüße ß € 漢字 🙂 \u00a0", "/a b/ö.c"])
def test_what_can_be_read_stays_as_it_is(dwrap: Wrapper, text: str) -> None:
    with FakeDistributor(answer("REFUSED", reason=text)) as d:
        done = dwrap.run("true", env={"DWRAP_HOST": d.address})
    assert done.stderr.decode() == f"dwrap: cannot run true: {text}\n"
