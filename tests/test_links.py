"""update-dwrap-symlinks: a directory of links that follows which compilers there are; and builds through it, with ccache too."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from farm import DWRAP, Farm
from wrapper_program import ROOT

PROGRAM = ROOT / "deploy/update-dwrap-symlinks"
COMPILERS = ["cc", "c++", "c89", "c99", "c99-gcc", "gcc", "g++", "gcc-12", "g++-4.9", "clang", "clang++", "clang-14", "clang++-14",
             "x86_64-linux-gnu-gcc", "x86_64-linux-gnu-g++-12", "aarch64-linux-gnu-gcc-13", "i686-w64-mingw32-g++-win32",
             "i686-w64-mingw32-gcc-12-posix"]  # fmt: skip
OTHERS = ["cp", "cpp", "cpp-12", "gcc-ar", "gcc-ar-12", "gcc-nm", "gcov", "gcov-12", "x86_64-linux-gnu-gcc-ranlib-12", "clang-format",
          "clang-format-14", "clang-tidy", "clang-cpp-14", "ccache", "dwrap", "gccgo", "cc1", "c++filt"]  # fmt: skip


class Place:
    """A directory of programs, one of links, and a dwrap."""

    def __init__(self, top: Path) -> None:
        self.programs, self.links, self.dwrap = top / "bin", top / "links", top / "bin/dwrap"
        self.programs.mkdir()
        shutil.copy(DWRAP, self.dwrap)

    def add(self, name: str, mode: int = 0o755) -> Path:
        file = self.programs / name
        file.write_text("#!/bin/sh\n")
        file.chmod(mode)
        return file

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        places = ["--compilers", str(self.programs), "--links", str(self.links), "--program", str(self.dwrap)]
        return subprocess.run([str(PROGRAM), *places, *options], capture_output=True, text=True, timeout=30)

    def names(self) -> list[str]:
        return sorted(file.name for file in self.links.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_each_compiler_and_nothing_else_has_a_link(place: Place) -> None:
    for name in {*COMPILERS, *OTHERS} - {"dwrap"}:
        place.add(name)
    done = place.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert place.names() == sorted(COMPILERS)
    assert {os.readlink(place.links / name) for name in COMPILERS} == {str(place.dwrap)}


def test_links_follow(place: Place) -> None:
    place.add("gcc")
    place.add("gcc-12")
    place.run()
    (place.programs / "gcc-12").unlink()
    place.add("clang")
    assert place.run().returncode == 0
    assert place.names() == ["clang", "gcc"]
    assert place.run("--remove").returncode == 0
    assert place.names() == []


def test_what_is_no_compiler_that_runs_has_none(place: Place) -> None:
    """A file that is not executable, a directory, a link that leads nowhere, and one that leads to dwrap itself."""
    place.add("gcc", 0o644)
    (place.programs / "g++").mkdir()
    (place.programs / "clang").symlink_to("nowhere")
    (place.programs / "cc").symlink_to("dwrap")
    (place.programs / "c++").symlink_to(place.add("g++-12").name)
    assert place.run().returncode == 0
    assert place.names() == ["c++", "g++-12"]


def test_what_is_not_ours_stays(place: Place) -> None:
    place.add("gcc")
    place.links.mkdir()
    (place.links / "gcc").write_text("mine")
    (place.links / "clang").symlink_to("/opt/clang")
    assert place.run().returncode == place.run("--remove").returncode == 0
    assert place.names() == ["clang", "gcc"]
    assert (place.links / "gcc").read_text() == "mine"


def test_wrong_use_and_failure_are_one_line(place: Place) -> None:
    for options, status in ((["--links"], 2), (["--other"], 2), (["--program", "/nonexistent"], 1)):
        done = place.run(*options)
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.startswith("dwrap: ")
        assert done.stderr.count("\n") == 1


def test_it_is_a_posix_script() -> None:
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    scripts = [PROGRAM, *(ROOT / "debian").glob("*.p*inst"), *(ROOT / "debian").glob("*.p*rm")]
    done = subprocess.run([checker, "--shell", "sh", *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def links(place: Place) -> Path:
    """Links for the compilers of this machine."""
    done = subprocess.run([str(PROGRAM), "--links", str(place.links), "--program", DWRAP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place.links


def compile_with(farm: Farm, path: str, directory: Path, **environment: str) -> None:
    (directory / "a.cpp").write_text("int answer() { return 42; }\n")
    (directory / "a.o").unlink(missing_ok=True)
    settings = {"PATH": f"{path}:/usr/bin:/bin", "DWRAP_FALLBACK": "fail", "DWRAP_HOST": farm.address, **environment}
    done = subprocess.run(["g++", "-c", "a.cpp"], cwd=directory, env={**os.environ, **settings}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (directory / "a.o").exists()


def test_a_compiler_through_its_link_runs_on_an_agent(farm: Farm, links: Path, tmp_path: Path) -> None:
    compile_with(farm, str(links), tmp_path)
    (job,) = farm.jobs()
    assert (job["where"] in ("agent-1", "agent-2"), job["command"]) == (True, "g++")


def ccache_hits(cache: Path) -> int:
    settings = {**os.environ, "CCACHE_DIR": str(cache)}
    said = subprocess.run(["ccache", "--print-stats"], env=settings, capture_output=True, text=True, check=True)
    stats = dict(line.split("\t") for line in said.stdout.splitlines())
    return int(stats["direct_cache_hit"]) + int(stats["preprocessed_cache_hit"])


@pytest.mark.parametrize("order", ["dwrap before ccache", "ccache with a prefix"])
def test_both_orders_with_ccache_hit_its_cache(farm: Farm, links: Path, tmp_path: Path, order: str) -> None:
    if not Path("/usr/lib/ccache/g++").exists():
        pytest.skip("ccache is not installed")
    cache = {"CCACHE_DIR": str(tmp_path / "cache"), "CCACHE_NODISABLE": "1"}
    if order == "dwrap before ccache":
        path, more = f"{links}:/usr/lib/ccache", {}
    else:
        path, more = f"{Path(DWRAP).parent}:/usr/lib/ccache", {"CCACHE_PREFIX": "dwrap"}
    compile_with(farm, path, tmp_path, **cache, **more)
    compile_with(farm, path, tmp_path, **cache, **more)
    assert ccache_hits(tmp_path / "cache") == 1
    assert len(farm.jobs()) == (2 if order == "dwrap before ccache" else 1)
