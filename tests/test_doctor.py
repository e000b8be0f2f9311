"""doctor's looks at the tree, with surroundings that tests make up, and at a fleet of real agents."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from farm import Farm, eventually, program

from dwrap.control import doctor, doctor_fleet, doctor_tree
from dwrap.control.doctor_fleet import Answer, Desk, Fleet
from dwrap.control.findings import Finding, Surroundings, output_of
from dwrap.protocol import keys, mounts
from dwrap.protocol.probe import Probe

DISK = "1 0 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"


def mountinfo(options: str = "vers=4.2,hard,sec=sys", kind: str = "nfs4", point: str = "/src") -> str:
    return DISK + f"2 1 0:50 / {point} rw - {kind} box:/src rw,{options}\n"


def here(tmp_path: Path, said: Mapping[str, str] | None = None, **changes: Any) -> Surroundings:
    """A desktop on NFS, with programs that say what `said` tells."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name in said or {}:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)

    def told(arguments: Sequence[str], _environment: Mapping[str, str]) -> str:
        return (said or {})[os.path.basename(arguments[0])]

    settings = {"environment": {"PATH": str(folder)}, "cwd": "/src", "uid": 1000, "groups": frozenset({1, 2}), "version": "1",
                "descriptors": 9999, "mountinfo": mountinfo(), "probe": lambda _directory: Probe(0.0, 1000), "output_of": told}  # fmt: skip
    return Surroundings(**{**settings, **changes})


def complaints(findings: Iterator[Finding]) -> list[tuple[str, str]]:
    """Level and subject of what is not ok; each of these has a remedy."""
    wrong = [finding for finding in findings if finding.level != "ok"]
    assert all(finding.remedy for finding in wrong)
    return [(finding.level, finding.what) for finding in wrong]


# ---- keys ----


@pytest.mark.parametrize(
    ("address", "pinned", "insecure", "found"),
    [
        ("ipc:///run/dwrap.sock", False, False, []),
        ("tcp://127.0.0.1:7776", False, False, []),
        ("tcp://buildhost:7776", False, False, [("fail", "keys")]),
        ("tcp://buildhost:7776", False, True, [("warn", "keys")]),
        ("tcp://buildhost:7776", True, False, [("ok", "keys")]),
        ("tcp://buildhost:7776", True, True, [("ok", "keys")]),
        ("tcp://127.0.0.1:7776", True, False, [("ok", "keys")]),
    ],
)
def test_what_goes_to_another_machine_is_protected(
    tmp_path: Path, address: str, pinned: bool, insecure: bool, found: list[tuple[str, str]]
) -> None:
    (tmp_path / "keys").mkdir(0o700)
    if pinned:
        keys.write_pair(tmp_path / "keys", "client", keys.new_pair())
        keys.pin(tmp_path / "keys", address, "a1" * 32)
    environment = {"DWRAP_HOST": address, "DWRAP_KEYS": str(tmp_path / "keys"), "DWRAP_INSECURE": str(int(insecure))}
    findings = list(doctor.protection(here(tmp_path, environment=environment, conf_files=()), None))
    assert [(finding.level, finding.what) for finding in findings] == found
    complaints(iter(findings))


# ---- the tree ----


def test_a_disk_has_nothing_to_be_asked(tmp_path: Path) -> None:
    def must_not(_directory: str) -> Probe | None:
        raise AssertionError("nothing is made on a disk")

    findings = list(doctor_tree.examine(here(tmp_path, mountinfo=DISK, probe=must_not)))
    assert [(finding.level, finding.what) for finding in findings] == [("ok", "tree")]


def test_a_tree_on_nfs_that_is_as_it_should_be(tmp_path: Path) -> None:
    findings = list(doctor_tree.examine(here(tmp_path, {"ninja": "1.11.1\n", "ccache": "(default) inode_cache = false\n"})))
    assert {finding.what for finding in findings} == {"tree", "server's clock", "ninja"}
    assert complaints(iter(findings)) == []
    assert "version 4.2" in findings[0].text


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"mountinfo": mountinfo("vers=3,hard")}, ("warn", "tree")),
        ({"mountinfo": mountinfo("vers=4.2,nocto")}, ("fail", "tree")),
        ({"mountinfo": mountinfo("vers=4.2,soft")}, ("warn", "tree")),
        ({"mountinfo": mountinfo("cache=loose", "9p")}, ("fail", "tree")),
        ({"probe": lambda _directory: Probe(2.0, 1000)}, ("warn", "server's clock")),
        ({"probe": lambda _directory: Probe(-100.0, 1000)}, ("fail", "server's clock")),
        ({"probe": lambda _directory: None}, ("warn", "server's clock")),
        ({"probe": lambda _directory: Probe(0.0, 65534)}, ("warn", "identity")),
        ({"groups": frozenset(range(17))}, ("warn", "groups")),
    ],
)
def test_what_is_wrong_with_a_tree_is_found(tmp_path: Path, changes: dict[str, Any], found: tuple[str, str]) -> None:
    assert complaints(doctor_tree.examine(here(tmp_path, **changes))) == [found]


def test_groups_count_only_where_they_are_cut(tmp_path: Path) -> None:
    many = frozenset(range(40))
    assert complaints(doctor_tree.examine(here(tmp_path, groups=many, mountinfo=mountinfo("vers=4.2,sec=krb5p")))) == []
    assert complaints(doctor_tree.examine(here(tmp_path, groups=many, mountinfo=DISK))) == []
    assert complaints(doctor_tree.examine(here(tmp_path, groups=frozenset(range(16))))) == []


def test_root_that_is_nobody_is_as_it_should_be(tmp_path: Path) -> None:
    findings = list(doctor_tree.examine(here(tmp_path, uid=0, probe=lambda _directory: Probe(0.0, 65534))))
    assert complaints(iter(findings)) == []
    assert any("root_squash" in finding.text for finding in findings)


@pytest.mark.parametrize(
    ("version", "options", "level"),
    [
        ("1.11.1", "vers=4.2", "ok"), ("1.11.1.git.kitware.jobserver-1", "vers=4.2", "ok"), ("1.12.1", "vers=4.2", "warn"),
        ("1.13.2", "vers=4.1", "warn"), ("1.12.1", "vers=3,hard", "ok"), ("1.14.0", "vers=4.2", "ok"), ("", "vers=4.2", "ok"),
    ],
)  # fmt: skip
def test_a_ninja_that_never_finds_an_end_on_nfs_4_is_named(tmp_path: Path, version: str, options: str, level: str) -> None:
    findings = doctor_tree.examine(here(tmp_path, {"ninja": version}, mountinfo=mountinfo(options)))
    assert [finding.level for finding in findings if finding.what == "ninja"] == [level]


@pytest.mark.parametrize(
    ("settings", "point", "found"),
    [
        ("inode_cache = true", "/src", [("fail", "ccache")]),
        ("inode_cache = true", "/cache", [("fail", "ccache")]),
        ("inode_cache = true", "/other", []),
        ("hard_link = true", "/cache", [("warn", "ccache")]),
        ("file_clone = true", "/cache", [("warn", "ccache")]),
        ("hard_link = true", "/src", []),
        ("temporary_dir = /cache/tmp", "/cache", [("warn", "ccache")]),
        ("temporary_dir = /tmp", "/cache", []),
    ],
)
def test_ccache_settings_are_judged_by_where_the_cache_and_the_tree_lie(
    tmp_path: Path, settings: str, point: str, found: list[tuple[str, str]]
) -> None:
    said = f"(default) cache_dir = /cache\n(/etc/ccache.conf) {settings}\n"
    findings = list(doctor_tree.examine(here(tmp_path, {"ccache": said}, mountinfo=mountinfo(point=point))))
    assert complaints(iter(findings)) == found


def test_the_settings_of_the_installed_ccache_are_understood(tmp_path: Path) -> None:
    if not shutil.which("ccache"):
        pytest.skip("ccache is not installed")
    environment = {**os.environ, "CCACHE_DIR": str(tmp_path / "cache"), "CCACHE_NOINODECACHE": "1", "CCACHE_HARDLINK": "1"}
    settings = doctor_tree.ccache_settings(here(tmp_path, environment=environment, output_of=output_of))
    assert settings["cache_dir"] == str(tmp_path / "cache")
    assert (settings["inode_cache"], settings["hard_link"]) == ("false", "true")


# ---- judging an agent's answers ----

DESK = Desk("/src", 7, 0o022, frozenset({5, 6}), mounts.covering(mounts.parse(mountinfo()), "/src"))


def answer(status: int | None = 0, error: str = "", text: str | None = None, **facts: str) -> Answer:
    told = {"nonce": "n", "clock": "100.5", "umask": "0022", "groups": "5 6", "inode": "7 .", **facts}
    lines = "".join(f"{key}={value}\n" for key, value in told.items())
    return Answer(status, lines + "mountinfo=\n" + (mountinfo() if text is None else text), error, 100.0, 101.0)


def test_an_answer_that_is_right_gives_no_finding() -> None:
    assert list(doctor_fleet.judge_first("agent a", DESK, answer(), "n")) == []
    assert list(doctor_fleet.judge_surroundings("agent a", DESK, answer())) == []
    assert list(doctor_fleet.judge_second("agent a", DESK, answer(again="n"), "n")) == []


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (answer(None), "no end in time"), (answer(125, "x\ndwrap: no agent: it left; start it\n"), "no agent: it left"),
        (answer(3), "status 3"), (answer(nonce="", inode="8 ."), "another directory is at /src"),
        (answer(nonce=""), "does not see a file"), (answer(nonce="old"), "does not see a file"),
    ],
)  # fmt: skip
def test_a_first_answer_that_is_wrong_fails(given: Answer, text: str) -> None:
    (found,) = doctor_fleet.judge_first("agent a", DESK, given, "n")
    assert found.level == "fail"
    assert text in found.text
    assert found.remedy


def test_a_name_that_stays_missing_or_stays_as_it_was_fails() -> None:
    for wrong in (answer(nonce=""), answer(nonce="n", again="old"), answer(nonce="n", again=""), answer(None)):
        assert complaints(doctor_fleet.judge_second("agent a", DESK, wrong, "n")) == [("fail", "agent a")]


def test_a_reply_that_is_not_seen_fails(tmp_path: Path) -> None:
    path = tmp_path / "reply"
    assert complaints(doctor_fleet.judge_reply("agent a", str(path), "w")) == [("fail", "agent a")]
    path.write_text("")
    assert complaints(doctor_fleet.judge_reply("agent a", str(path), "w")) == [("fail", "agent a")]
    path.write_text("w\n")
    assert complaints(doctor_fleet.judge_reply("agent a", str(path), "w")) == []


@pytest.mark.parametrize(
    ("given", "level", "text"),
    [
        (answer(clock="104.5"), "warn", "3.5 s ahead"), (answer(clock="20.0"), "fail", "80.0 s behind"),
        (answer(groups="5"), "warn", "6 missing"), (answer(groups="5 6 9"), "warn", "9 more"), (answer(umask="0077"), "warn", "umask"),
        (answer(text=mountinfo("vers=3", "nfs")), "warn", "nfs 3"),
    ],
)  # fmt: skip
def test_surroundings_that_differ_are_told(given: Answer, level: str, text: str) -> None:
    (found,) = doctor_fleet.judge_surroundings("agent a", DESK, given)
    assert (found.level, text in found.text) == (level, True), found
    assert found.remedy


@pytest.mark.parametrize("clock", ["100.N", "100.%N", "", "soon"])
def test_a_clock_without_fractions_is_no_wrong_clock(clock: str) -> None:
    assert list(doctor_fleet.judge_surroundings("agent a", DESK, answer(clock=clock))) == []


def test_a_file_server_that_builds_itself_is_no_difference() -> None:
    """The tree is a disk on the server and NFS on its clients."""
    at_server = replace(DESK, mount=mounts.covering(mounts.parse(DISK), "/src"))
    assert list(doctor_fleet.judge_surroundings("agent a", at_server, answer())) == []


# ---- real agents ----


def fleet_of(farm: Farm, tree: Path, agents: Sequence[str] | None = None, seconds: float = 10.0, **more: Any) -> Iterator[Finding]:
    known = [agent for agent in farm.status()["agents"] if agents is None or agent["name"] in agents]
    surroundings = Surroundings(environment=farm.environment(), cwd=str(tree), version="1")
    return Fleet(None, seconds).examine(surroundings, [{**agent, **more} for agent in known])


def test_each_agent_is_tried_by_jobs_of_its_own_and_nothing_is_left(farm: Farm, tmp_path: Path) -> None:
    findings = list(fleet_of(farm, tmp_path))
    assert [(finding.level, finding.what) for finding in findings] == [("ok", "agent agent-1"), ("ok", "agent agent-2")], findings
    assert list(tmp_path.iterdir()) == []
    where = [job["where"] for job in farm.jobs()]
    assert sorted(where) == ["agent-1", "agent-1", "agent-2", "agent-2"]


def test_settings_that_keep_commands_here_do_not_keep_these(farm: Farm, tmp_path: Path) -> None:
    keeping = {"DWRAP_LOCAL": "1", "FORCE_LOCAL": "1", "DWRAP_JOB": "x", "DWRAP_LABELS": "arch=none"}
    surroundings = Surroundings(environment=farm.environment(**keeping), cwd=str(tmp_path), version="1")
    findings = list(Fleet().examine(surroundings, [{"name": "agent-1"}]))
    assert [finding.level for finding in findings] == ["ok"], findings
    assert farm.per_agent()["agent-1"] == 2


def test_what_agents_say_is_wrong_with_their_mounts_is_told(farm: Farm, tmp_path: Path) -> None:
    findings = list(fleet_of(farm, tmp_path, ["agent-1"], flaws=["/srv (nfs4 box:/srv): soft: bad; mount it with hard"]))
    assert [finding.level for finding in findings] == ["ok", "warn"]
    assert [str(finding) for finding in findings[1:]] == ["warn  agent agent-1: /srv (nfs4 box:/srv): soft: bad; mount it with hard"]


def test_an_agent_that_has_left_meanwhile_fails(farm: Farm, tmp_path: Path) -> None:
    surroundings = Surroundings(environment=farm.environment(), cwd=str(tmp_path), version="1")
    (found,) = Fleet(agent_seconds=0.5).examine(surroundings, [{"name": "nobody"}])
    assert (found.level, "no end in time" in found.text) == ("fail", True)


def test_a_directory_that_cannot_be_written_is_said(farm: Farm) -> None:
    (found,) = fleet_of(farm, Path("/proc"))
    assert (found.level, "nothing can be made" in found.text) == ("warn", True)


def test_another_tree_under_the_same_path_is_found(farm: Farm, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    hidden = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tree} && exec "$@"', "sh"]
    if os.getuid() != 0 or subprocess.run([*hidden, "true"], capture_output=True).returncode != 0:
        pytest.skip("a mount namespace, for an agent with another tree, needs root")
    farm.add_agent("elsewhere", 1, under=hidden)
    found = {finding.what: finding for finding in fleet_of(farm, tree)}
    assert found["agent agent-1"].level == "ok"
    assert found["agent elsewhere"].level == "fail"
    assert f"another directory is at {tree}" in found["agent elsewhere"].text


def test_an_agent_that_is_frozen_costs_its_time_and_no_more(farm: Farm, tmp_path: Path) -> None:
    farm.agents["agent-1"].send_signal(signal.SIGSTOP)
    started = time.monotonic()
    findings = list(fleet_of(farm, tmp_path, seconds=1.0))
    assert time.monotonic() - started < 8.0
    assert [(finding.level, finding.what) for finding in findings] == [("fail", "agent agent-1"), ("ok", "agent agent-2")], findings
    assert list(tmp_path.iterdir()) == []


def test_whoever_stops_listening_leaves_nothing(farm: Farm, tmp_path: Path) -> None:
    findings = fleet_of(farm, tmp_path)
    next(findings)
    assert list(tmp_path.iterdir()) != []
    assert hasattr(findings, "close")
    findings.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_doctor_that_is_ended_by_a_signal_leaves_nothing(farm: Farm, tmp_path: Path, number: signal.Signals) -> None:
    farm.agents["agent-1"].send_signal(signal.SIGSTOP)
    tree = tmp_path / "tree"
    tree.mkdir()
    process = subprocess.Popen([program("dwrapctl"), "doctor"], cwd=tree, env=farm.environment(), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        eventually(lambda: list(tree.glob(".dwrap-doctor-*/0/question")), saying="the jobs' files")
        process.send_signal(number)
        assert process.wait(timeout=10) == 130
        assert list(tree.iterdir()) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def test_doctor_as_a_program(farm: Farm, tmp_path: Path) -> None:
    done = subprocess.run([program("dwrapctl"), "doctor"], cwd=tmp_path, env=farm.environment(), capture_output=True, text=True, timeout=60)
    assert "ok    agent agent-2: the same tree" in done.stdout
    assert done.returncode == (1 if "fail  " in done.stdout else 0)
    assert done.stderr == ""
