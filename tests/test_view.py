"""This host's view of a shared tree: coherence/view.c with a script in place of a network file system, and the parser of entries.

What real NFS clients believe is tested in tests/nfs. DWRAP_FUZZ_SECONDS (5) bounds the fuzz run.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from wrapper_program import SANITIZE, build, clang, coverage, has_sanitizers

from dwrap.protocol import manifest

SECONDS = int(os.environ.get("DWRAP_FUZZ_SECONDS", "5"))
FUZZER = ["tests/c/fuzz_manifest.c"]


@pytest.mark.parametrize("flags", [["-O2"], SANITIZE], ids=["shipped", "sanitized"])
def test_beliefs_are_corrected(tmp_path: Path, flags: list[str]) -> None:
    if flags is SANITIZE and not has_sanitizers(tmp_path):
        pytest.skip("this compiler has no address sanitizer")
    tree = tmp_path / "tree"
    tree.mkdir()
    program = build("cc", tmp_path / "test_view", ["tests/c/test_view.c"], *flags)
    done = subprocess.run([program, tree], capture_output=True, text=True, timeout=60)
    print(done.stdout, done.stderr)
    assert re.fullmatch(r"[0-9]{2,} checks, 0 failures\n", done.stdout)
    assert done.returncode == 0
    assert sorted(path.name for path in tree.iterdir()) == ["file", "old", "sub"]


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    directory = tmp_path / "seeds"
    directory.mkdir()
    entries = [
        manifest.make(b"D", b"/srv/src", 12, 4096, 1700000000123456789, 1700000000123456789),
        manifest.make(b"F", b"/srv/src/a.o", 2**64 - 1, 0, 0, 2**63 - 1),
        manifest.make(b"G", b"/srv/src/gone"),
        manifest.make(b"R", b"/"),
    ]
    for number, entry in enumerate(entries):
        (directory / str(number)).write_bytes(entry.raw)
    (directory / "all").write_bytes(b"".join(entry.raw for entry in entries))
    return directory


def fuzz(program: Path, seeds: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    corpus = seeds.parent / "corpus"
    corpus.mkdir(exist_ok=True)
    bounds = [f"-max_total_time={seconds}", "-max_len=8192", "-len_control=0", "-print_final_stats=1"]
    return subprocess.run([program, *bounds, corpus, seeds], capture_output=True, text=True, cwd=seeds.parent, timeout=seconds + 60)


def test_fuzzing_entries_finds_nothing(tmp_path: Path, seeds: Path) -> None:
    program = build(clang(), tmp_path / "fuzz", FUZZER, "-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
    done = fuzz(program, seeds, SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert runs
    print(f"{runs[1]} executions; lines of the parser covered by what they found:")
    print(coverage(tmp_path, FUZZER, ["protocol/manifest.h"], [seeds, tmp_path / "corpus"]))
    assert int(runs[1]) > 1000


def test_fuzzing_entries_finds_a_planted_overflow(tmp_path: Path, seeds: Path) -> None:
    program = build(clang(), tmp_path / "planted", FUZZER, "-g", "-O1", "-DPLANTED_BUG", "-fsanitize=fuzzer,address,undefined")
    done = fuzz(program, seeds, 60)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
