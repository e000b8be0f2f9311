"""Foreign load: what is busy less the jobs' own; and the agent's small facts about its machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dwrap.agent import environment
from dwrap.agent.accounts import Account, Accounts, Refusal
from dwrap.agent.load import Load, busy_seconds, pressure, session_seconds


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


def test_identity_line() -> None:
    line = environment.identity_line('ID=debian\nVERSION_ID="12"\nNAME="x y"\n')
    assert f"{os.uname().machine} debian/12 " in line
    assert "\n" not in environment.identity_line()
    assert "unknown" in environment.identity_line("")


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


def test_groups_are_those_claimed_that_the_database_gives_too() -> None:
    accounts = Accounts(0, allow_root=False, database=DATABASE.get)
    assert accounts.identity(1000, None, [0, 20, 27], 0).groups == (20,)
    assert accounts.identity(1000, 44, [], 0).gid == 44
    assert accounts.identity(1000, None, [], 0).become


@pytest.mark.parametrize(
    ("own", "allow_root", "uid", "gid", "reason"),
    [
        (0, False, 0, None, "--allow-root"),
        (0, True, 1234, None, "unknown"),
        (0, False, 1000, 0, "group 0"),
        (500, False, 1000, None, "uid 500"),
        (500, True, 0, None, "uid 500"),
    ],
)
def test_jobs_that_may_not_run(own: int, allow_root: bool, uid: int, gid: int | None, reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        Accounts(own, allow_root, DATABASE.get).identity(uid, gid, [], 0)


def test_an_agent_without_rights_keeps_its_own_identity() -> None:
    identity = Accounts(500, allow_root=False, database=DATABASE.get).identity(500, 0, [0], 0)
    assert not identity.become
    assert 0 not in identity.groups or os.getuid() == 0


def test_the_database_is_asked_again_after_a_while() -> None:
    asked: list[int] = []

    def database(uid: int) -> Account | None:
        asked.append(uid)
        return DATABASE[1000]

    accounts = Accounts(0, allow_root=False, database=database)
    for now in (0, 9, 11):
        accounts.identity(1000, None, [], now)
    assert len(asked) == 2
