"""The runner: which commands it runs a second time when they failed near something stale. The staleness itself is played."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import pytest
from runner_bench import ROOT, Bench, bench, sh

__all__ = ["bench"]  # a fixture: importing it is its use
pytestmark = pytest.mark.parametrize("bench", ["subreaper"], indirect=True)

WRONG = "it failed while this agent's view of {} was stale; run it again"


@functools.cache
def stale_runner() -> Path:
    """One whose view always turns out to have been stale."""
    program = ROOT / "build" / "tests" / "stale-runner"
    program.parent.mkdir(parents=True, exist_ok=True)
    part = program.with_suffix(f".{os.getpid()}")
    sources = [one for room in ("agent", "coherence", "environment") for one in ROOT.glob(f"{room}/*.c")]
    sources.append(ROOT / "tests" / "c" / "stale.c")
    wrap = "-Wl,--wrap=revalidate_after_failure"
    subprocess.run(["cc", "-D_GNU_SOURCE", "-std=c11", "-O1", "-I.", *sources, wrap, "-o", part], cwd=ROOT, check=True)
    part.rename(program)
    return program


@pytest.fixture
def place(bench: Bench) -> Bench:
    """A shared tree with a file and a program in it; each start of a command adds a line to `runs`, which lies outside."""
    bench.program = stale_runner()
    bench.roots = (str(bench.cwd),)
    (bench.cwd / "old").write_text("before")
    (bench.cwd / "tool").write_text("#!/bin/sh\nexit 1\n")
    (bench.cwd / "tool").chmod(0o755)
    return bench


def runs(place: Bench, script: str) -> int:
    """How often it runs. What is not run again fails, and says why."""
    end = place.run(*sh(f"echo run >>../runs; {script}"), views=True).finish()
    count = len((place.folder / "runs").read_text().splitlines())
    assert end.number("reran", 0) == count - 1
    if count == 1:
        assert (end.text("error"), end.text("reason")) == ("infrastructure", WRONG.format(place.cwd))
    return count


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "cat nothing 2>/dev/null",
        "echo x >new; exit 1",
        "mkdir -p sub/deep; echo x >sub/deep/new; exit 1",
        "echo x >new; rm new; exit 1",
    ],
)
def test_a_command_that_only_made_new_files_runs_again(place: Bench, script: str) -> None:
    assert runs(place, script) == 2


@pytest.mark.parametrize(
    "script",
    [
        "./tool",
        "echo x >new; ./tool",
        'cp tool "$TMPDIR"; "$TMPDIR/tool"',
        "echo x >>old; exit 1",
        "echo x >old; exit 1",
        "rm old; exit 1",
        "rm old; echo x >old; exit 1",
        "echo x >new; mv new old; exit 1",
        "chmod 600 old; exit 1",
        "rm -f old; ./tool",
    ],
)
def test_one_that_did_anything_else_does_not(place: Bench, script: str) -> None:
    assert runs(place, script) == 1


def test_nor_one_that_has_been_heard(place: Bench) -> None:
    end = place.run(*sh("echo up; sleep 0.4; exit 1"), views=True).finish()
    assert end.text("error") == "infrastructure"
