"""`dwrapctl up`: the embedded farm around a command, and how it ends, by whatever end. Real processes."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from farm import eventually, program

from dwrap.control import farm as farm_module
from dwrap.control.errors import ControlError
from dwrap.control.farm import Farm, Plan

SECONDS = 30.0


def up(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("dwrapctl"), "up", *arguments], capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, **more
    )


def started(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [program("dwrapctl"), "up", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], SECONDS)[0], "it said nothing"
    return process.stdout.readline().decode().strip()


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    try:
        direct = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return direct + [deeper for child in direct for deeper in children(child)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def all_gone(pids: Sequence[int]) -> None:
    eventually(lambda: not any(alive(pid) for pid in pids), 10, saying=f"some of {pids} still run")


def test_a_command_runs_on_the_farm_and_nothing_but_its_own_output_is_seen(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    script = "dwrap echo one; dwrap sh -c 'echo two >&2'; exit 7"
    done = up("--agents", "2", "--slots", "1", "--report", str(report), "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (7, "one\n", "two\n")
    told = json.loads(report.read_text())
    assert told["agents"] == ["a1", "a2"]
    assert {job["command"] for job in told["jobs"]} == {"echo", "sh"}
    assert {job["where"] for job in told["jobs"]} <= {"a1", "a2"}


def test_the_summary_tells_what_ran_where() -> None:
    done = up("--summary", "--", "dwrap", "true")
    assert done.returncode == 0
    assert done.stdout == ""
    assert "1 commands in" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_it_dies_by_the_signal_that_its_command_died_by(number: signal.Signals) -> None:
    assert up("--agents", "1", "--", "sh", "-c", f"kill -{int(number)} $$").returncode == -number


@pytest.mark.parametrize(("command", "status", "why"), [("no-such-command", 127, "not found"), ("/etc/passwd", 126, "permission denied")])
def test_a_command_that_cannot_be_started(command: str, status: int, why: str) -> None:
    done = up("--agents", "1", "--", command)
    assert done.returncode == status
    assert done.stderr.startswith(f"dwrap: cannot run {command}: {why}")
    assert done.stderr.count("\n") == 1


def test_a_signal_reaches_the_command_and_the_farm_is_taken_down() -> None:
    process = started("--agents", "1", "--", "sh", "-c", "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done")
    assert first_line(process) == "ready"
    family = children(process.pid)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (3, b"told\n")
    all_gone(family)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_without_a_command_it_stays_until_it_is_told(number: signal.Signals, short_dir: Path) -> None:
    process = started("--agents", "1", "--listen", f"ipc://{short_dir}/s", "--http", "127.0.0.1:0")
    words = first_line(process).split()
    assert words[:2] == ["ready", f"ipc://{short_dir}/s"]
    assert words[3] == "agents=1"
    family = children(process.pid)
    assert len(family) >= 2
    process.send_signal(number)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    all_gone(family)


def test_the_farm_ends_with_dwrapctl_even_by_sigkill(short_dir: Path) -> None:
    process = started("--agents", "2", "--listen", f"ipc://{short_dir}/s", "--http", "127.0.0.1:0")
    first_line(process)
    family = children(process.pid)
    process.kill()
    process.communicate(timeout=SECONDS)
    all_gone(family)


def test_a_running_job_ends_with_dwrapctl_even_by_sigkill() -> None:
    process = started("--agents", "1", "--", "sh", "-c", "dwrap sh -c 'echo $$ running; sleep 987'; echo $?")
    assert first_line(process).endswith("running")
    family = children(process.pid)
    assert any(b"987" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family)
    process.kill()
    process.communicate(timeout=SECONDS)
    all_gone(family)


def test_a_failed_daemon_is_told_once_and_a_drained_one_is_not() -> None:
    script = """
        dwrapctl drain a2; while dwrapctl agents | grep -q ^a2; do :; done
        victim=$(pgrep -P $PPID -f -- '--name a[1]'); kill -KILL $victim
        while kill -0 $victim 2>/dev/null; do :; done  # until dwrapctl has reaped it
    """
    done = up("--agents", "3", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"dwrap: a1 ended early: .*; the farm goes on without it\n", done.stderr)


def test_frozen_daemons_do_not_keep_it_from_ending(short_dir: Path) -> None:
    process = started("--agents", "1", "--listen", f"ipc://{short_dir}/s", "--http", "127.0.0.1:0")
    first_line(process)
    family = children(process.pid)
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    process.terminate()
    process.communicate(timeout=SECONDS)
    all_gone(family)


def test_a_port_that_is_taken_is_one_line_with_the_cause(short_dir: Path) -> None:
    first = started("--agents", "1", "--listen", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0")
    address = first_line(first).split()[1]
    done = up("--agents", "1", "--listen", address, "--", "true")
    first.terminate()
    first.communicate(timeout=SECONDS)
    assert done.returncode == 125
    assert done.stderr.startswith("dwrap: distributor did not start")
    assert done.stderr.count("\n") == 1


def fake_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    script = tmp_path / "daemon"
    script.write_text(f"#!{sys.executable}\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(farm_module, "program", lambda name: script)


def test_a_daemon_that_ends_or_lies_is_an_error_that_quotes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(listen=("ipc:///nowhere",), agents=1)
    fake_daemon(tmp_path, monkeypatch, "import sys; sys.exit('dwrap: the disk is on fire')")
    with pytest.raises(ControlError, match=r"distributor did not start \(status 1\): the disk is on fire"):
        Farm(plan, tmp_path).start()
    fake_daemon(tmp_path, monkeypatch, "print('hello', flush=True)")
    with pytest.raises(ControlError, match="it said 'hello'"):
        Farm(plan, tmp_path).start()


def test_a_daemon_that_says_nothing_is_given_up_and_reaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_daemon(tmp_path, monkeypatch, "import signal; signal.pause()")
    monkeypatch.setattr(farm_module, "READY_SECONDS", 0.3)
    farm = Farm(Plan(listen=("ipc:///nowhere",), agents=1), tmp_path)
    with pytest.raises(ControlError, match="did not get ready in time"):
        farm.start()
    assert farm.distributor is not None
    assert farm.distributor.process.returncode is not None
    with pytest.raises(ControlError, match="interrupted"):
        Farm(Plan(listen=("ipc:///nowhere",), agents=1), tmp_path).start(lambda: True)


def test_slots_are_spread_over_the_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farm_module, "processors", lambda: 8)
    assert Plan(listen=(), agents=3).slots_each() == 3
    assert Plan(listen=(), agents=16).slots_each() == 1
    assert Plan(listen=(), agents=2, slots=9).slots_each() == 9


def test_the_command_finds_this_installation_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    done = up("--agents", "1", "--", "sh", "-c", "command -v dwrap")
    assert done.stdout.strip() == str(Path(program("dwrap")))


def test_interrupting_the_start_leaves_nothing(short_dir: Path) -> None:
    process = started("--agents", "2", "--listen", f"ipc://{short_dir}/s", "--http", "127.0.0.1:0")
    eventually(lambda: children(process.pid), 10)
    family = children(process.pid)
    process.terminate()
    process.communicate(timeout=SECONDS)
    all_gone(family)
