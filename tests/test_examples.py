"""The examples, each built and tested through a farm of two agents as its README says; the records show what ran where.

Nothing may fall back (DWRAP_FALLBACK=fail); what ran here did so by a rule, and only while configuring.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from farm import DWRAP, Farm

from dwrap.control import records

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SECONDS = 240.0


class Workplace:
    """A copy of an example, and the farm it is built on."""

    def __init__(self, name: str, place: Path, farm: Farm) -> None:
        self.directory = place / name
        shutil.copytree(EXAMPLES / name, self.directory)
        self._farm = farm

    def run(self, *command: str, **environment: str) -> str:
        """Its standard output. Fails the test, with all that it said, when it fails."""
        done = subprocess.run(
            list(command), cwd=self.directory, env=self._farm.environment(**environment), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def jobs(self) -> list[dict[str, Any]]:
        return self._farm.jobs()

    def commands(self) -> Counter[str]:
        """How often each command ran on an agent."""
        return Counter(job["command"] for job in self.jobs() if job["outcome"] == "done")

    def ran_here(self) -> list[str]:
        """Why commands ran here, one reason for each of them."""
        return [record["reason"] for record in records.read_here_log(records.here_log_files(os.environ))]

    def expect(self, at_least: int, here: Sequence[str] = ()) -> None:
        """Both agents had work, `at_least` commands ran on them, all settled, and what ran here did so for one of these reasons."""
        outcomes = Counter(job["outcome"] for job in self.jobs())
        assert set(outcomes) <= {"done", "here"}, outcomes
        assert outcomes["done"] >= at_least, outcomes
        where = {job["where"] for job in self.jobs() if job["outcome"] == "done"}
        assert where == {"agent-1", "agent-2"}, f"all ran on {where}"
        unexpected = [reason for reason in self.ran_here() if not any(word in reason for word in here)]
        assert not unexpected, Counter(unexpected)


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def test_cmake_with_launchers(tmp_path: Path, farm: Farm) -> None:
    work = Workplace("cmake", tmp_path, farm)
    launchers = [f"-DCMAKE_{what}_LAUNCHER=dwrap" for what in ("CXX_COMPILER", "CXX_LINKER", "TEST")]
    work.run("cmake", "-G", "Ninja", "-B", "build", *launchers)
    work.run("ninja", "-C", "build", "-j4")
    assert "no work to do" in work.run("ninja", "-C", "build")
    assert "100% tests passed" in work.run("ctest", "--test-dir", "build", "-j4", "--output-on-failure")
    work.expect(at_least=19 + 8 + 7)
    assert {"test_lexer", "reckon"} <= set(work.commands())


def test_cmake_with_the_wrapper_as_its_compiler(tmp_path: Path, farm: Farm) -> None:
    work = Workplace("cmake", tmp_path, farm)
    emulator = "-DCMAKE_CROSSCOMPILING_EMULATOR=dwrap"  # what runs tests before CMake 3.29
    work.run("cmake", "-G", "Ninja", "-B", "build", emulator, CXX=f"dwrap {farm.address} g++")
    work.run("ninja", "-C", "build", "-j4")
    assert "no work to do" in work.run("ninja", "-C", "build")
    assert "100% tests passed" in work.run("ctest", "--test-dir", "build", "-j4", "--output-on-failure")
    work.expect(at_least=19 + 8 + 7, here=("probe", "asks"))


def test_meson(tmp_path: Path, farm: Farm) -> None:
    work = Workplace("meson", tmp_path, farm)
    work.run("meson", "setup", "build", CC="dwrap cc")
    work.run("ninja", "-C", "build", "-j4")
    assert "no work to do" in work.run("ninja", "-C", "build")
    assert re.search(r"Ok:\s+4", work.run("meson", "test", "-C", "build", "--wrapper=dwrap", "--print-errorlogs"))
    work.expect(at_least=8 + 5 + 4, here=("probe", "asks"))


@needs("autoreconf", "libtoolize", "make")
def test_autoconf_and_libtool(tmp_path: Path, farm: Farm) -> None:
    work = Workplace("autoconf-libtool", tmp_path, farm)
    work.run("autoreconf", "-i")
    work.run("./configure", "-q", "CC=dwrap cc")
    probes = len(work.ran_here())
    work.run("make", "-j4")
    assert re.search(r"# PASS:\s+2", work.run("make", "check", "-j4", "LOG_COMPILER=dwrap"))
    work.expect(at_least=4 + 2 + 2 + 2, here=("probe", "asks"))
    assert probes > 0, "configure's own probes should have stayed here"
    assert len(work.ran_here()) == probes, "after configure nothing should run here"


@needs("make")
def test_make(tmp_path: Path, farm: Farm) -> None:
    work = Workplace("make", tmp_path, farm)
    work.run("make", "-j4", "CC=dwrap cc", "RUN=dwrap")
    work.run("make", "check", "CC=dwrap cc", "RUN=dwrap")
    assert "Nothing to be done" in work.run("make", "CC=dwrap cc", "RUN=dwrap")
    work.expect(at_least=6 + 3 + 2)
    assert {"make_table", "test_sums"} <= set(work.commands())


@needs("make")
def test_make_with_every_line_through_the_wrapper(tmp_path: Path, farm: Farm) -> None:
    work = Workplace("make", tmp_path, farm)
    work.run("make", "-j4", f"SHELL={DWRAP}", ".SHELLFLAGS=/bin/sh -c", "all", "check")
    work.expect(at_least=6 + 3 + 2)
    assert {"sh"} == set(work.commands())


@needs("make")
def test_masquerading_as_the_compiler(tmp_path: Path, farm: Farm) -> None:
    work = Workplace("make", tmp_path, farm)
    links = tmp_path / "links"
    links.mkdir()
    (links / "cc").symlink_to(DWRAP)
    work.run("make", "-j4", "all", "check", PATH=f"{links}{os.pathsep}{os.environ['PATH']}")
    work.expect(at_least=6 + 3)
    assert {"cc"} == set(work.commands())


def test_ninja_with_a_generator(tmp_path: Path, farm: Farm) -> None:
    work = Workplace("ninja", tmp_path, farm)
    work.run("ninja", "-j4")
    assert "no work to do" in work.run("ninja")
    work.expect(at_least=12)
    assert work.commands() == Counter({"cc": 8, "python3": 2, "test_lights": 1, "test_door": 1})


@needs("cargo", "rustc")
def test_cargo(tmp_path: Path, farm: Farm) -> None:
    work = Workplace("cargo", tmp_path, farm)
    triple = re.search(r"^host: (\S+)", work.run("rustc", "-vV"), re.MULTILINE)
    assert triple
    runner = {f"CARGO_TARGET_{triple[1].upper().replace('-', '_')}_RUNNER": "dwrap"}
    work.run("cargo", "build", "--offline", "-j4", RUSTC_WRAPPER="dwrap")
    out = work.run("cargo", "test", "--offline", "-j4", RUSTC_WRAPPER="dwrap", **runner)
    assert out.count("... ok") == 4
    work.expect(at_least=2 + 3 + 3, here=("asks",))
    assert work.run("target/debug/huffman", "--version") == "huffman 1.0.0\n"


def test_pytest_xdist_workers(tmp_path: Path, farm: Farm) -> None:
    work = Workplace("pytest-xdist", tmp_path, farm)
    out = work.run("pytest", "-p", "no:cacheprovider", "-d", "--tx", "4*popen//python=dwrap python3")
    assert "41 passed" in out
    work.expect(at_least=4)
    assert work.commands() == Counter({"python3": 4})


@needs("ccache", "make")
def test_ccache_behind_the_wrapper(tmp_path: Path, farm: Farm) -> None:
    work = Workplace("ccache", tmp_path, farm)
    cache = {"CCACHE_DIR": str(tmp_path / "cache")}
    for _ in range(2):
        work.run("make", "check", "-j4", "CC=dwrap ccache cc", f"CCACHE_DIR={cache['CCACHE_DIR']}")
        work.run("make", "clean")
    work.expect(at_least=2 * 4)
    assert set(work.commands()) == {"ccache"}
    assert hits(work, cache) == (3, 3)


@needs("ccache", "make")
def test_ccache_in_front_of_the_wrapper(tmp_path: Path, farm: Farm) -> None:
    work = Workplace("ccache", tmp_path, farm)
    cache = {"CCACHE_DIR": str(tmp_path / "cache")}
    for _ in range(2):
        work.run("make", "check", "-j4", "CC=ccache cc", f"CCACHE_DIR={cache['CCACHE_DIR']}", CCACHE_PREFIX="dwrap")
        work.run("make", "clean")
    assert hits(work, cache) == (3, 3)
    assert work.commands() == Counter({"cc": 3 + 2}), "only the misses, and what ccache does not cache (two links), should have travelled"
    work.expect(at_least=5)


def hits(work: Workplace, cache: dict[str, str]) -> tuple[int, int]:
    """The cache's hits and misses."""
    told = dict(line.split("\t") for line in work.run("ccache", "--print-stats", **cache).splitlines())
    return int(told["direct_cache_hit"]) + int(told["preprocessed_cache_hit"]), int(told["cache_miss"])


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()))
def test_a_readme_of_three_lines(example: str) -> None:
    assert len((EXAMPLES / example / "README.md").read_text().splitlines()) == 3
