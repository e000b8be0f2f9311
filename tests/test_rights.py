"""What root may not do in a container: an agent that cannot run jobs of others says so at the start, not at each job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dwrap.agent import rights

ALL = sum(1 << number for number in (*rights.NEEDED.values(), rights.SYS_PTRACE))


def held(number: int) -> str:
    return f"Name:\tdwrap-agent\nCapPrm:\t0000000000000000\nCapEff:\t{number:016x}\nCapBnd:\t000001ffffffffff\n"


def test_with_all_of_them_nothing_is_said() -> None:
    assert rights.check(0, True, held(ALL)) == ""


@pytest.mark.parametrize(("name", "number"), rights.NEEDED.items())
def test_each_that_is_missing_is_named(name: str, number: int) -> None:
    with pytest.raises(ValueError, match=rf"\({name}\)"):
        rights.check(0, True, held(ALL & ~(1 << number)))


def test_without_tracing_records_are_worse_and_that_is_said() -> None:
    less = held(ALL & ~(1 << rights.SYS_PTRACE))
    assert "SYS_PTRACE" in rights.check(0, True, less)
    assert rights.check(0, False, less) == ""


@pytest.mark.parametrize("status", [held(0), "Name:\tx\n"])
def test_one_users_agent_needs_none(status: str) -> None:
    assert rights.check(1000, True, status) == ""


def test_a_kernel_that_does_not_tell_is_given_the_benefit_of_doubt() -> None:
    assert rights.check(0, True, "Name:\tx\n") == ""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can lay rights down")
def test_an_agent_of_root_without_rights_does_not_start(tmp_path: Path) -> None:
    line = "from dwrap.agent.cli import main; main()"
    bare = ["setpriv", "--bounding-set", "-kill", "--inh-caps", "-kill", sys.executable, "-c", line, f"ipc://{tmp_path}/d", "--root", "/"]
    done = subprocess.run(bare, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("dwrap: cannot start: root may not do here what jobs of others need (KILL); ")
