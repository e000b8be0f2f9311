"""Manifests through real programs on one machine, whose agents are told to record all the same: what each part tells the next."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from farm import DWRAP, Farm, eventually


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with Farm(tmp_path_factory.mktemp("farm"), agents=0) as made:
        for name in ("a1", "a2"):
            made.add_agent(name, 2, "--views", "always")
        yield made


def run_on(farm: Farm, agent: str, cwd: Path, script: str, **more: str) -> dict[str, Any]:
    """The record of a command that was run there."""
    environment = farm.environment(DWRAP_LABELS=f"agent={agent}", DWRAP_REMOTE="1", **more)
    done = subprocess.run([DWRAP, "sh", "-c", script], cwd=cwd, env=environment, capture_output=True, check=False, timeout=30)
    record = farm.jobs()[-1]
    assert (done.returncode, record["where"]) == (0, agent), (done.stderr, record)
    return record


def test_a_label_that_every_agent_has_picks_one(farm: Farm, tmp_path: Path) -> None:
    for agent in ("a2", "a1", "a2"):
        run_on(farm, agent, tmp_path, "true")


def test_what_was_written_is_recorded_journaled_and_applied(farm: Farm, tmp_path: Path) -> None:
    before = farm.status()["journal"]["directories"]
    record = run_on(farm, "a1", tmp_path, "mkdir sub; echo made > sub/file; echo gone > out; rm out")
    assert (record["outputs"], record["outputs_why"]) == ("exact", "")
    assert farm.status()["journal"]["directories"] >= before + 2, "the directory and the new one in it"
    record = run_on(farm, "a2", tmp_path, "cat sub/file")
    assert record["revalidate_ms"] is not None
    assert record["stale"] == 0, "one machine has one view"


def test_what_a_command_leaves_outside_is_said(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    away = tmp_path_factory.mktemp("away")
    with Farm(tmp_path, agents=0, roots=(str(tmp_path),)) as farm:
        farm.add_agent("a1", 2, "--views", "always")
        record = run_on(farm, "a1", tmp_path, f"echo lost > {away}/file")
        assert (record["escaped"], record["escaped_path"]) == (1, f"{away}/file")
        assert any(f"{away}/file" in line for line in farm.query("why", job=record["job"])["lines"])


def test_what_the_agents_have_written_a_new_distributor_is_offered(tmp_path: Path) -> None:
    with Farm(tmp_path, agents=0, listen=(f"ipc://{tmp_path}/d.sock",)) as farm:
        farm.add_agent("a1", 2, "--views", "always")
        run_on(farm, "a1", tmp_path, "echo made > file")
        farm.distributor.kill()
        farm.distributor.wait()
        assert farm.distributor.stdout is not None
        farm.distributor.stdout.close()
        again = ["dwrap-distributor", "--listen", farm.address, "--http", "off", "--state", str(tmp_path / "state")]
        farm.distributor = farm._start(again)
        assert farm.distributor.stdout is not None
        farm.distributor.stdout.readline()
        eventually(lambda: farm.status()["journal"]["directories"] > 0, saying="the agent offers what it had told before")
        assert run_on(farm, "a1", tmp_path, "cat file")["status"] == 0
