"""A ccache that agents share, in both layouts of docs/build-systems.md: what one agent compiled the other finds. On a local disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from farm import DWRAP, Farm

pytestmark = pytest.mark.skipif(not (shutil.which("ccache") and shutil.which("gcc")), reason="ccache or gcc is not installed")
LONG_AGO = 1_000_000_000
HITS = ("direct_cache_hit", "preprocessed_cache_hit")


@dataclass(frozen=True)
class Layout:
    """Where the caches lie. `remote`: each agent has one of its own, in front of one that all share."""

    remote: bool
    tree: Path

    def settings(self, agent: str) -> dict[str, str]:
        if not self.remote:
            return {"CCACHE_DIR": str(self.tree / "cache")}
        return {
            "CCACHE_DIR": str(self.tree / f"cache-of-{agent}"),
            "CCACHE_REMOTE_STORAGE": f"file://{self.tree}/cache|umask=002|update-mtime=true",
        }

    def counts(self, agent: str) -> dict[str, int]:
        """What the cache of an agent has counted."""
        said = subprocess.run(
            ["ccache", "--print-stats"], env={**os.environ, **self.settings(agent)}, capture_output=True, text=True, check=True, timeout=20
        )
        return {key: int(value) for key, value in (line.split("\t") for line in said.stdout.splitlines())}

    def total(self, *names: str) -> int:
        """Sum of these counts over the caches."""
        agents = ("agent-1", "agent-2") if self.remote else ("agent-1",)
        return sum(self.counts(agent)[name] for agent in agents for name in names)


@pytest.fixture(params=[False, True], ids=["shared-directory", "remote-storage"])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    """A tree with two sources and a header, older than any clock's tick."""
    for name in ("one", "two"):
        write(tmp_path / f"{name}.c", f'#include "value.h"\nint {name}(void) {{ return VALUE; }}\n')
    write(tmp_path / "value.h", "#define VALUE 7\n")
    return Layout(request.param, tmp_path)


def write(path: Path, text: str) -> None:
    """A file that ccache does not take for one that may be changing this very moment (its mtime; ctime it compares only if asked)."""
    path.write_text(text)
    os.utime(path, (LONG_AGO, LONG_AGO))


def start(farm: Farm, layout: Layout, agent: str, name: str, output: str) -> subprocess.Popen[bytes]:
    settings = {"DWRAP_LABELS": f"agent={agent}", "CCACHE_SLOPPINESS": "include_file_ctime,include_file_mtime", **layout.settings(agent)}
    return subprocess.Popen(
        [DWRAP, "ccache", "gcc", "-g0", "-c", f"{name}.c", "-o", output], cwd=layout.tree, env=farm.environment(**settings)
    )


def compile_on(farm: Farm, layout: Layout, agent: str, *names: str) -> list[bytes]:
    """The objects that an agent makes of these sources."""
    for name in names:
        output = layout.tree / f"{name}.o"
        output.unlink(missing_ok=True)
        assert start(farm, layout, agent, name, f"{name}.o").wait(timeout=60) == 0
    return [(layout.tree / f"{name}.o").read_bytes() for name in names]


def direct(layout: Layout, name: str) -> bytes:
    subprocess.run(["gcc", "-g0", "-c", f"{name}.c", "-o", "direct.o"], cwd=layout.tree, check=True, timeout=60)
    return (layout.tree / "direct.o").read_bytes()


def places(farm: Farm) -> list[str]:
    return [str(job["where"]) for job in farm.jobs() if job["command"] == "ccache"]


def test_what_one_agent_compiled_the_other_finds(farm: Farm, layout: Layout) -> None:
    first = compile_on(farm, layout, "agent-1", "one", "two")
    assert (layout.total("cache_miss"), layout.total(*HITS)) == (2, 0)
    second = compile_on(farm, layout, "agent-2", "one", "two")
    assert (layout.total("cache_miss"), layout.total(*HITS)) == (2, 2)
    assert places(farm) == ["agent-1", "agent-1", "agent-2", "agent-2"]
    assert first == second == [direct(layout, "one"), direct(layout, "two")]
    if layout.remote:
        assert layout.counts("agent-2")["remote_storage_hit"] == 2
        compile_on(farm, layout, "agent-2", "one", "two")
        assert layout.counts("agent-2")["remote_storage_hit"] == 2, "its own cache has them now"


def test_an_edited_header_is_no_hit_on_either(farm: Farm, layout: Layout) -> None:
    (before,) = compile_on(farm, layout, "agent-1", "one")
    write(layout.tree / "value.h", "#define VALUE 8\n")  # same size, same time
    (after,) = compile_on(farm, layout, "agent-2", "one")
    assert layout.total(*HITS) == 0
    assert after == direct(layout, "one") != before


def test_both_may_fill_it_at_once(farm: Farm, layout: Layout) -> None:
    names = [f"many{number}" for number in range(6)]
    for name in names:
        write(layout.tree / f"{name}.c", f"int {name}(void) {{ return 1; }}\n")
    running = [start(farm, layout, agent, name, f"{name}-{agent}.o") for name in names for agent in ("agent-1", "agent-2")]
    assert [process.wait(timeout=60) for process in running] == [0] * len(running)
    for name in names:
        objects = {(layout.tree / f"{name}-{agent}.o").read_bytes() for agent in ("agent-1", "agent-2")}
        assert objects == {direct(layout, name)}
    assert sorted(places(farm)) == ["agent-1"] * 6 + ["agent-2"] * 6
    assert layout.total("cache_miss") + layout.total(*HITS) == 12
