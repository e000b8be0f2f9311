"""dwrapctl's questions: addresses, answers as they are shown, doctor. The distributor is a script in a thread."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from click.testing import CliRunner

from dwrap.control import address, cli, client, doctor, records, show
from dwrap.control.errors import ControlError
from dwrap.protocol import keys, messages

AGENT = {
    "name": "a1", "host": "h1", "serves": "any", "allow_root": True, "slots": 3, "assigned": 1, "jobs_done": 7, "is_serving": True,
    "is_draining": False, "foreign_cpus": 0.25, "memory_available_bytes": 2_000_000_000, "labels": ["arch=x"], "roots": ["/"],
}  # fmt: skip
JOB = {
    "job": "abc123", "build": "b", "uid": os.getuid(), "command": "g++", "cwd": "/src", "host": "desk", "where": "a1", "outcome": "done",
    "status": 256, "reason": "", "queued_ms": 5, "run_ms": 1500, "flush_ms": 2, "submitted_at": 1_000.0, "pid": 42,
}  # fmt: skip


class FakeDistributor:
    """Answers QUERY from `answers` (by kind), or with whatever `script` says."""

    def __init__(self, directory: Path) -> None:
        self.address = f"ipc://{directory}/fake.sock"
        self.asked: list[dict[str, str]] = []
        self.answers: dict[str, Any] = {
            "status": {"version": "1", "addresses": [self.address], "uptime_seconds": 61, "running": 1, "queued": 2,
                       "totals": {"done": 3}, "here_by_reason": {"autoconf probe": 4}, "agents": [AGENT]},
            "agents": {"agents": [AGENT]},
            "jobs": {"jobs": [JOB]},
            "why": {"record": JOB, "lines": ["g++ ran on a1"]},
        }  # fmt: skip
        self.script: Callable[[str, messages.Fields], list[list[bytes]]] = self._reply
        self._socket = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(self.address)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _reply(self, what: str, fields: messages.Fields) -> list[list[bytes]]:
        return [messages.encode("REPLY", [("id", fields.text("id"))], json.dumps(self.answers[what]).encode())]

    def _serve(self) -> None:
        while not self._end.is_set():
            if not self._socket.poll(20):
                continue
            peer, *frames = self._socket.recv_multipart()
            _, fields, _ = messages.parse(frames)
            self.asked.append({key: fields.text(key) for key in ("what", "job", "agent", "token")})
            for answer in self.script(fields.text("what"), fields):
                self._socket.send_multipart([peer, *answer])

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def fake(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDistributor]:
    running = FakeDistributor(short_dir)
    monkeypatch.setenv("DWRAP_HOST", running.address)
    yield running
    running.close()


def run(*arguments: str) -> tuple[int, str, str]:
    """dwrapctl in this process: status, standard output, standard error."""

    def call() -> None:
        cli.main()

    runner = CliRunner()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["dwrapctl", *arguments])
        command = cli.click.command()(call)
        result = runner.invoke(command, [], standalone_mode=False)
    code = result.exception.code if isinstance(result.exception, SystemExit) else result.exit_code
    return int(code or 0), result.stdout, result.stderr


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("tcp://h:1", "tcp://h:1"),
        ("h:7", "tcp://h:7"),
        ("h", "tcp://h:7776"),
        ("localhost", "tcp://localhost:7776"),
        ("10.0.0.1", "tcp://10.0.0.1:7776"),
        ("::1", "tcp://[::1]:7776"),
        ("[::1]:9", "tcp://[::1]:9"),
        ("ipc:///run/x", "ipc:///run/x"),
    ],
)
def test_the_written_forms_of_an_address(written: str, meant: str) -> None:
    assert address.normalise(written) == meant


@pytest.mark.parametrize("written", ["tcp://", "h:0", "h:70000", "h:x", "ipc://relative", "a b", "tcp://h:1/x"])
def test_a_malformed_address_names_the_forms_that_are_right(written: str) -> None:
    with pytest.raises(ControlError, match=r"cannot use the address .*; write .*://"):
        address.normalise(written)


def test_the_order_in_which_addresses_are_looked_up(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.write_text("# mine\nfarm = 10.0.0.7:1  # the rack\ndistributor = farm, other:2\n")
    theirs.write_text("distributor = nobody\nspare = ipc:///s\n")
    files = [mine, theirs, tmp_path / "absent"]
    assert address.addresses(None, {}, files) == ["tcp://10.0.0.7:1", "tcp://other:2"]
    assert address.addresses(None, {"DWRAP_HOST": "spare"}, files) == ["ipc:///s"]
    assert address.addresses("h:3", {"DWRAP_HOST": "spare"}, files) == ["tcp://h:3"]
    with pytest.raises(ControlError, match="no distributor is configured"):
        address.addresses(None, {}, [])


def test_the_next_address_is_asked_when_one_is_silent(fake: FakeDistributor, short_dir: Path) -> None:
    silent = f"ipc://{short_dir}/nobody.sock"
    assert client.ask([silent, fake.address], "jobs", seconds=0.3) == fake.answers["jobs"]
    with pytest.raises(client.Unreachable, match="no distributor answers"):
        client.ask([silent], "jobs", seconds=0.1)


def test_a_refusal_and_an_answer_that_makes_no_sense_are_errors(fake: FakeDistributor) -> None:
    fake.script = lambda what, fields: [messages.encode("REFUSED", [("reason", "not\x1b[31m you")])]
    with pytest.raises(ControlError, match=r"refused: not\?\[31m you"):
        client.ask([fake.address], "status")
    fake.script = lambda what, fields: [[b"REPLY", b"id=" + fields.need("id") + b"\0", b"{"]]
    with pytest.raises(ControlError, match="cannot read the answer"):
        client.ask([fake.address], "status")


def test_answers_to_other_questions_are_skipped(fake: FakeDistributor) -> None:
    fake.script = lambda what, fields: [
        messages.encode("QUEUED", [("job", "x")]),
        messages.encode("REPLY", [("id", "other")], b"1"),
        messages.encode("REPLY", [("id", fields.text("id"))], b"2"),
    ]
    assert client.ask([fake.address], "status") == 2


def test_the_next_address_is_asked_when_one_is_not_to_be_spoken_to(
    fake: FakeDistributor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One on another machine without a key, one that is known by a key and has none, one that closes at once."""
    (tmp_path / "keys").mkdir(0o700)
    monkeypatch.setenv("DWRAP_KEYS", str(tmp_path / "keys"))
    plain = zmq.Context.instance().socket(zmq.ROUTER)
    plain.linger = 0
    locked = f"tcp://127.0.0.1:{plain.bind_to_random_port('tcp://127.0.0.1')}"
    keys.write_pair(tmp_path / "keys", "client", keys.new_pair())
    keys.pin(tmp_path / "keys", locked, "a1" * 32)
    afar = "tcp://192.0.2.1:7776"
    try:
        for first, why in ((afar, "no key of it is known"), (locked, "its key may not be")):
            assert client.ask([first, fake.address], "jobs", seconds=2.0) == fake.answers["jobs"]
            with pytest.raises(ControlError, match=why):
                client.ask([first], "jobs", seconds=2.0)
    finally:
        plain.close()


def test_drain_is_asked_again_with_the_token(fake: FakeDistributor) -> None:
    def script(what: str, fields: messages.Fields) -> list[list[bytes]]:
        answer = {"agent": "a1"} if fields.text("token") == "secret" else {"token": "secret"}
        return [messages.encode("REPLY", [("id", fields.text("id"))], json.dumps(answer).encode())]

    fake.script = script
    assert run("drain", "a1") == (0, "a1 drains\n", "")
    assert [asked["token"] for asked in fake.asked] == ["", "secret"]


def test_status_agents_and_jobs_as_people_and_as_programs_see_them(fake: FakeDistributor) -> None:
    status, out, _ = run("status")
    assert status == 0
    assert "1 running, 2 queued; in all: 3 done" in out
    assert "4 autoconf probe" in out
    assert out.splitlines()[-1].split() == ["a1", "h1", "1/3", "7", "0.25", "2.0", "serving", "/", "-", "arch=x"]
    assert json.loads(run("status", "--json")[1]) == fake.answers["status"]
    assert json.loads(run("agents", "--json")[1]) == fake.answers["agents"]
    assert "status 1" in run("jobs")[1]
    assert json.loads(run("jobs", "--json", "--build", "b")[1]) == [JOB]
    assert json.loads(run("jobs", "--json", "--build", "other")[1]) == []


def test_what_a_job_says_of_itself_cannot_reach_the_terminal_as_it_is(fake: FakeDistributor) -> None:
    fake.answers["jobs"] = {"jobs": [{**JOB, "command": "\x1b]0;owned\x07g++\n\u202e\udcff"}]}
    out = run("jobs")[1]
    assert "\\x1b]0;owned\\x07g++\\n\\u202e\\udcff" in out
    assert out.count("\n") == 2


def here_log(environment: dict[str, str], *lines: str) -> None:
    file = records.here_log_files(environment)[-1]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line + "\n" for line in lines))


def test_the_users_own_log_is_part_of_jobs_and_why(fake: FakeDistributor) -> None:
    now = time.time()
    here_log(dict(os.environ), f"{now:.3f}\t77\tno distributor answers\t/src\tcc -c a.c", "nonsense", f"{now}\tx\ty\tz\tw")
    found = json.loads(run("jobs", "--json")[1])
    assert [(record["where"], record["command"]) for record in found] == [("a1", "g++"), ("here", "cc")]
    assert "cc ran here: no distributor answers" in run("why")[1]
    assert run("why", "abc")[1] == "g++ ran on a1\n"
    status, out, err = run("why", "zzz")
    assert (status, out) == (1, "")
    assert "no job has an id that begins with zzz" in err


def test_a_command_that_both_know_of_is_told_once(tmp_path: Path) -> None:
    log = tmp_path / "here.log"
    log.write_text("1000.5\t42\tautoconf probe\t/src\tg++ conftest.c\n5000.0\t42\tautoconf probe\t/src\tg++ conftest.c\n")
    both = records.merge([{**JOB, "where": "here"}], records.read_here_log([log]))
    assert [record["submitted_at"] for record in both] == [1000.0, 5000.0]
    assert len(records.read_here_log([log], since=2000.0)) == 1


def test_without_a_distributor_the_log_alone_is_shown(monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.1)
    monkeypatch.setenv("DWRAP_HOST", f"ipc://{short_dir}/nobody.sock")
    here_log(dict(os.environ), "1000.0\t77\tno distributor answers\t/src\tcc -c a.c")
    status, out, err = run("why")
    assert status == 0
    assert "cc ran here" in out
    assert "no distributor answers at" in err
    status, out, err = run("slots")
    assert (status, out) == (0, f"{len(os.sched_getaffinity(0))}\n")
    assert run("status")[0] == 1


def test_slots_counts_the_agents_that_would_take_my_jobs(fake: FakeDistributor) -> None:
    stranger = {**AGENT, "serves": os.getuid() + 1}
    fake.answers["agents"] = {"agents": [AGENT, {**AGENT, "is_draining": True}, stranger, {**AGENT, "serves": os.getuid()}]}
    assert run("slots")[1] == "6\n"


def test_root_counts_only_agents_that_allow_it() -> None:
    assert doctor.serves(AGENT, 0)
    assert not doctor.serves({**AGENT, "allow_root": False}, 0)
    assert doctor.serves({**AGENT, "allow_root": False}, 1000)


def levels(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.what: finding.level for finding in findings}


def surroundings(tmp_path: Path, **changes: Any) -> doctor.Surroundings:
    program = tmp_path / "bin" / "dwrap"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho dwrap 9.9\n")
    program.chmod(0o755)
    ours = {"PATH": str(program.parent), "DWRAP_HOST": "localhost", "XDG_RUNTIME_DIR": str(tmp_path)}
    environment = {**ours, **changes.pop("environment", {})}
    return doctor.Surroundings(**{"environment": environment, "version": "9.9", "descriptors": 4096, "cwd": "/src", "uid": 1, **changes})


def status_of(*agents: dict[str, Any]) -> Callable[[str], Any]:
    return lambda what: {"version": "9.9", "agents": list(agents)}


def test_doctor_finds_nothing_wrong_where_nothing_is(tmp_path: Path) -> None:
    findings = doctor.examine(surroundings(tmp_path), status_of(AGENT))
    assert set(levels(findings).values()) == {"ok"}, "\n".join(map(str, findings))


@pytest.mark.parametrize(
    ("changes", "agents", "what", "level"),
    [
        ({"environment": {"PATH": "/nowhere"}}, [AGENT], "wrapper", "fail"),
        ({"version": "9.8"}, [AGENT], "wrapper", "warn"),
        ({"environment": {"DWRAP_LOCAL": "1"}}, [AGENT], "settings", "warn"),
        ({"environment": {"DWRAP_VIEWS": "never"}}, [AGENT], "settings", "warn"),
        ({"environment": {"DWRAP_LOCAL_SLOTS": "many"}}, [AGENT], "local slots", "fail"),
        ({"environment": {"DWRAP_LOCAL_SLOTS": "99999"}}, [AGENT], "local slots", "warn"),
        ({"environment": {"XDG_RUNTIME_DIR": "/proc/nowhere"}}, [AGENT], "runtime directory", "warn"),
        ({"environment": {"DWRAP_HOST": "h:0"}}, [AGENT], "distributor", "fail"),
        ({"descriptors": 100}, [AGENT], "open files", "warn"),
        ({"version": "9.8"}, [AGENT], "version", "warn"),
        ({}, [], "agents", "fail"),
        ({}, [{**AGENT, "serves": 2}], "agents", "fail"),
        ({"uid": 0}, [{**AGENT, "allow_root": False}], "agents", "fail"),
        ({}, [{**AGENT, "roots": ["/sr", "/srcs"]}], "directory", "fail"),
        ({"environment": {"CCACHE_DIR": "/cache"}}, [{**AGENT, "roots": ["/src"]}], "ccache", "warn"),
    ],
)
def test_doctor_finds(tmp_path: Path, changes: dict[str, Any], agents: list[dict[str, Any]], what: str, level: str) -> None:
    findings = [finding for finding in doctor.examine(surroundings(tmp_path, **changes), status_of(*agents)) if finding.what == what]
    assert [finding.level for finding in findings] == [level]
    assert findings[0].remedy


def test_doctor_says_when_nobody_answers(tmp_path: Path) -> None:
    def silent(what: str) -> Any:
        raise ControlError("no distributor answers at h: nothing was heard; start one")

    findings = doctor.examine(surroundings(tmp_path), silent)
    assert str(findings[-1]) == "fail  answer: no distributor answers at h: nothing was heard; start one"


def test_a_summary_says_what_ran_where_and_why_here() -> None:
    here = {"where": "here", "reason": "autoconf probe", "command": "cc"}
    text = show.summary([JOB, {**JOB, "where": "a2", "run_ms": 500}, here], wall_seconds=1.0)
    assert "3 commands in 1.0 s, 2.0 at once on average" in text
    assert "here, because: autoconf probe (1)" in text
    assert [line.split()[:2] for line in text.splitlines()[2:5]] == [["a1", "1"], ["a2", "1"], ["here", "1"]]
    assert "longest: g++ 1.50 s on a1" in text
    assert "no command ran" in show.summary([], 1.0)


def test_a_summary_says_what_the_shared_tree_needed() -> None:
    told = {**JOB, "stale": 3, "reran": 1, "escaped": 2, "outputs": "approximate"}
    text = show.summary([JOB, told], wall_seconds=1.0)
    assert "the shared tree: 3 names were stale and corrected; 1 commands failed on a stale view and ran again; 1 commands could" in text
    assert "2 files were left outside the shared roots" in text
    assert "the shared tree" not in show.summary([JOB], wall_seconds=1.0)


def test_agents_show_what_they_share_and_what_is_wrong_with_it() -> None:
    mounted = ["/src nfs4 box:/src rw,vers=4.2,hard", "/home nfs box:/home rw,vers=3", "/x nfs4 b:/x vers=4.2"]
    wrong = ["/home (nfs box:/home): vers=3: \x1b[2Jslow; mount it with vers=4.2"]
    shares = {**AGENT, "views": True, "mounts": mounted, "flaws": wrong}
    head, line, flaw = show.agents_table([shares]).splitlines()
    assert "nfs4 4.2, nfs 3" in line
    assert line.index("nfs4") == head.index("SHARED")
    assert flaw == "a1: /home (nfs box:/home): vers=3: \\x1b[2Jslow; mount it with vers=4.2"
    assert "recorded" in show.agents_table([{**AGENT, "views": True}])


@pytest.mark.parametrize(
    ("environment", "level", "text"),
    [
        ({"CCACHE_DIR": "/src/cache"}, "ok", "/src/cache is shared"),
        ({"CCACHE_DIR": "/var/cache", "CCACHE_REMOTE_STORAGE": "file:///src/cache|umask=002"}, "ok", "/src/cache is shared"),
        ({"CCACHE_REMOTE_STORAGE": "file:/elsewhere"}, "warn", "/elsewhere is under none"),
        ({"CCACHE_REMOTE_STORAGE": "redis://box|x=y"}, "ok", "agents share redis://box"),
    ],
)
def test_doctor_asks_where_what_ccaches_share_lies(tmp_path: Path, environment: dict[str, str], level: str, text: str) -> None:
    findings = doctor.examine(surroundings(tmp_path, environment=environment), status_of({**AGENT, "roots": ["/src"]}))
    assert [(finding.level, text in finding.text) for finding in findings if finding.what == "ccache"] == [(level, True)], findings


def test_doctor_tries_only_agents_that_take_jobs_from_here(tmp_path: Path) -> None:
    asked: list[object] = []

    def fleet(_here: object, agents: Any) -> Iterator[doctor.Finding]:
        asked.extend(agent["name"] for agent in agents)
        yield doctor.Finding("fail", "agent b", "x", "y")

    stranger, drained = {**AGENT, "name": "c", "serves": 7}, {**AGENT, "name": "d", "is_draining": True}
    known = [{**AGENT, "name": "a", "roots": ["/elsewhere"]}, {**AGENT, "name": "b", "roots": ["/src"]}, stranger, drained]
    findings = doctor.examine(surroundings(tmp_path), status_of(*known), None, fleet)
    assert asked == ["b"]
    assert findings[-1].what == "agent b"


def test_usage_errors_and_help() -> None:
    assert run("nonsense")[0] == 2
    status, out, _ = run("--help")
    assert status == 0
    assert "doctor" in out
