"""agent/reaper.c by itself: nothing that is being killed runs again meanwhile, nothing is passed over, nothing looked at in haste."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from wrapper_program import build


@pytest.fixture(scope="module")
def reaper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("reaper") / "reaper"
    return build("cc", program, ["tests/c/reaper.c", "agent/reaper.c"], "-O1", "-g", "-Wl,--wrap=opendir", "-pthread")


def number(reaper: Path, *words: str) -> int:
    return int(subprocess.run([reaper, *words], capture_output=True, text=True, check=True, timeout=40).stdout)


def test_what_was_stopped_does_not_run_again_before_it_is_killed(reaper: Path) -> None:
    """The kernel continues a stopped group whose last parent dies: children go before their parents."""
    assert number(reaper, "orphans", "1000") == 0


def test_a_process_whose_first_thread_has_ended_is_stopped_too(reaper: Path) -> None:
    assert number(reaper, "threads") <= 1


def test_what_cannot_stop_is_not_waited_for_in_haste(reaper: Path) -> None:
    assert number(reaper, "vfork") <= 8


def test_nothing_of_a_tree_is_left(reaper: Path) -> None:
    assert number(reaper, "tree") == 0
