"""Foreign load: what is busy less the jobs' own; and the agent's small facts about its machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dwrap.agent import environment
from dwrap.agent.accounts import Account, Accounts, Identity, Refusal
from dwrap.agent.load import Load, busy_seconds, pressure, session_seconds
from dwrap.agent.memory import Memory, memory


@pytest.mark.parametrize(
    ("busy", "own", "foreign"),
    [((0, 4), (0, 0), 2000), ((0, 4), (0, 3), 500), ((0, 4), (0, 5), 0), ((10, 10), (3, 3), 0), ((0, 1), (5, 5.5), 250)],
)
def test_foreign_is_busy_less_own(busy: tuple[float, float], own: tuple[float, float], foreign: int) -> None:
    mine, all_of_it = iter(own), iter(busy)
    load = Load(lambda: next(mine), lambda: next(all_of_it))
    assert dict(load.sample(100))["foreign"] == 0, "one sample says nothing yet"
    fields = dict(load.sample(102))
    assert fields["foreign"] == foreign
    assert fields["memory_available_bytes"] > 0


def test_the_kernels_counters_grow_with_work() -> None:
    before = busy_seconds()
    script = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; read x"
    burner = subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)
    try:
        while session_seconds(frozenset([burner.pid])) < 0.02:
            assert burner.poll() is None
        assert session_seconds(frozenset([1 << 30])) == 0
    finally:
        burner.communicate(b"\n")
    assert busy_seconds() > before


def test_pressure_is_a_share_or_nothing() -> None:
    value = pressure("cpu")
    assert value is None or 0 <= value <= 10_000
    assert pressure("no-such-resource") is None


def test_roots_and_labels_are_checked(tmp_path: Path) -> None:
    assert environment.check_root(f"{tmp_path}/../{tmp_path.name}/") == str(tmp_path)
    for wrong in ("relative", str(tmp_path / "missing")):
        with pytest.raises(ValueError, match="root"):
            environment.check_root(wrong)
    assert environment.check_label("arch=arm64") == "arch=arm64"
    for wrong in ("arch", "=x", ""):
        with pytest.raises(ValueError, match="KEY=VALUE"):
            environment.check_label(wrong)
    assert environment.processors() >= 1


DATABASE = {1000: Account(1000, frozenset([1000, 20, 44]))}


ROOT_GROUP = {**DATABASE, 1001: Account(0, frozenset([0, 20])), 0: Account(0, frozenset([0, 1]))}
GIVEN = [70, 71]


@pytest.mark.parametrize(
    ("uid", "claimed_gid", "claimed", "given", "allow_root", "gid", "groups", "dropped"),
    [
        (1000, None, [0, 20, 27], [], False, 1000, [20], [0, 27]),
        (1000, 44, [], [], False, 44, [], []),
        (1000, 1000, [44, 1000, 44, 20], [], False, 1000, [20, 44, 1000], []),
        (1000, 70, [71, 72, 20], GIVEN, False, 70, [20, 71], [72]),
        (1000, None, [70], GIVEN, False, 1000, [70], []),
        (1234, 71, [70, 71, 20], GIVEN, False, 71, [70, 71], [20]),
        (1234, None, [], GIVEN, False, 70, [], []),
        (1000, None, [0], [0], False, 1000, [], [0]),
        (1000, None, [0], [0], True, 1000, [0], []),
        (1000, 0, [], [0], True, 0, [], []),
        (1001, 20, [0, 20], [], False, 20, [20], [0]),
        (1001, None, [0, 20], [], True, 0, [0, 20], []),
        (0, 0, [0, 1, 9], [], True, 0, [0, 1], [9]),
        (1000, None, [2**32 - 1, 2**40], [2**32 - 1, 2**40], True, 1000, [], [2**32 - 1, 2**40]),
    ],
)
def test_groups_are_those_claimed_that_the_database_or_the_key_gives_too(
    uid: int, claimed_gid: int | None, claimed: list[int], given: list[int], allow_root: bool, gid: int, groups: list[int],
    dropped: list[int],
) -> None:  # fmt: skip
    identity = Accounts(0, allow_root, ROOT_GROUP.get).identity(uid, claimed_gid, claimed, 0, given)
    assert identity == Identity(uid, gid, tuple(groups), True, tuple(dropped))


@pytest.mark.parametrize(
    ("own", "allow_root", "uid", "gid", "given", "reason"),
    [
        (0, False, 0, None, [], "--allow-root"),
        (0, False, 0, 70, [0, 70], "root's jobs do not run here"),
        (0, True, 1234, None, [], "1234 is unknown .* its database, or give the key group=GID in the distributor's authorized_keys"),
        (0, True, 1234, 20, GIVEN, "1234 is unknown .* give the key group=20 in"),
        (0, False, 1000, 0, [], "group 0"),
        (0, True, 1000, 0, [], "group 0"),
        (0, False, 1000, 0, [0], "group 0 here; the agent was started without --allow-root"),
        (0, False, 1234, None, [0], "group 0 here"),
        (0, False, 1001, None, [], "group 0 here"),
        (0, False, 1000, 72, GIVEN, "does not belong to group 72 on this agent, and its key does not"),
        (0, True, 1000, 2**32 - 1, [2**32 - 1], "may not have group 4294967295"),
        (0, True, 2**32 - 1, None, [70], "no user's id"),
        (0, True, 2**32, None, [70], "no user's id"),
        (0, True, 10**17, None, [70], "no user's id"),
        (500, False, 1000, None, [], "uid 500"),
        (500, True, 0, None, [], "uid 500"),
    ],
)
def test_jobs_that_may_not_run(own: int, allow_root: bool, uid: int, gid: int | None, given: list[int], reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        Accounts(own, allow_root, ROOT_GROUP.get).identity(uid, gid, [], 0, given)


def test_an_agent_without_rights_keeps_its_own_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getegid", lambda: 500)
    monkeypatch.setattr(os, "getgroups", lambda: [500, 20])
    accounts = Accounts(500, allow_root=False, database=DATABASE.get)
    assert accounts.identity(500, 0, [0, 20, 44], 0, [44]) == Identity(500, 500, (500, 20), become=False, dropped=(0, 44))
    assert accounts.identity(500, 20, [], 0).dropped == ()


def test_the_most_processes_leave_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, none, absent = tmp_path / "small", tmp_path / "none", tmp_path / "absent"
    small.write_text("401\n")
    none.write_text("max\n")
    for files, most in (((none, absent), 8192), ((none, small), 100)):
        monkeypatch.setattr(environment, "_PROCESS_LIMITS", tuple(map(str, files)))
        assert environment.most_processes() == most


def test_the_database_is_asked_again_after_a_while() -> None:
    asked: list[int] = []

    def database(uid: int) -> Account | None:
        asked.append(uid)
        return DATABASE[1000]

    accounts = Accounts(0, allow_root=False, database=database)
    for now in (0, 9, 11):
        accounts.identity(1000, None, [], now)
    assert len(asked) == 2


MANY = 8


@pytest.mark.parametrize(("unified", "older", "count"), [
    (None, None, MANY),
    ("max 100000\n", None, MANY),
    ("150000 100000\n", None, 2),
    ("10000 100000\n", None, 1),
    ("1600000 100000\n", None, MANY),
    (None, ("-1\n", "100000\n"), MANY),
    (None, ("300000\n", "100000\n"), 3),
    (None, ("250000\n", "100000\n"), 3),
    ("nonsense\n", ("200000\n", "0\n"), MANY),
])  # fmt: skip
def test_a_quota_of_a_container_gives_fewer_processors(
    unified: str | None, older: tuple[str, str] | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MANY)))
    files = [tmp_path / name for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")]
    for file, text in zip(files, (unified, *(older or (None, None))), strict=True):
        if text is not None:
            file.write_text(text)
    assert environment.processors(((str(files[0]),), (str(files[1]), str(files[2])))) == count


@pytest.mark.parametrize(
    ("limit", "used", "cache", "told"),
    [
        ("1000000", "600000", "100000", Memory(1_000_000, 500_000)),
        ("1000000", "1200000", "0", Memory(1_000_000, 0)),
        ("max", "600000", "0", None),
        ("9223372036854771712", "600000", "0", None),
        ("", "", "", None),
    ],
)
@pytest.mark.parametrize("layout", [0, 1])
def test_a_containers_memory_is_what_counts(tmp_path: Path, layout: int, limit: str, used: str, cache: str, told: Memory | None) -> None:
    folder = tmp_path / "memory" if layout else tmp_path
    folder.mkdir(exist_ok=True)
    names = (("memory.limit_in_bytes", "memory.usage_in_bytes") if layout else ("memory.max", "memory.current"))
    for name, text in zip(names, (limit, used), strict=True):
        (folder / name).write_text(text + "\n")
    (folder / "memory.stat").write_text(f"cache 5\n{'total_' if layout else ''}inactive_file {cache or 0}\n")
    machine = memory(str(tmp_path / "none"))
    found = memory(str(tmp_path))
    assert found == told if told else found.total == machine.total > 10**9


def test_the_machines_memory() -> None:
    assert 0 < memory().available <= memory().total
