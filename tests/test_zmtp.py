"""The wrapper's ZMTP decoder and the C fields parser: golden vectors, and a bounded fuzz run that can find a bug.

DWRAP_FUZZ_SECONDS (5) bounds the run.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from wrapper_program import ROOT, SANITIZE, SODIUM, build, clang, coverage

VECTORS = ROOT / "protocol" / "vectors.txt"
SECONDS = int(os.environ.get("DWRAP_FUZZ_SECONDS", "5"))
SOURCES = ["wrapper/zmtp.c", "wrapper/curve.c", *SODIUM]
FUZZER = ["tests/c/fuzz_zmtp.c", *SOURCES]


def test_golden_vectors_and_bad_peers(tmp_path: Path) -> None:
    try:
        program = build("cc", tmp_path / "test_zmtp", ["tests/c/test_zmtp.c", *SOURCES], *SANITIZE)
    except subprocess.CalledProcessError:
        program = build("cc", tmp_path / "test_zmtp", ["tests/c/test_zmtp.c", *SOURCES])
    done = subprocess.run([program, VECTORS], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert re.fullmatch(r"[0-9]{3,} checks, 0 failures\n", done.stdout)


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """The golden vectors as inputs: all bits of the first byte set, so a handshake goes before and the rest comes in one piece."""
    directory = tmp_path / "seeds"
    directory.mkdir()
    wires = [line.split()[1] for line in VECTORS.read_text().splitlines() if line.startswith("wire ")]
    for number, wire in enumerate(wires):
        (directory / str(number)).write_bytes(b"\xff" + bytes.fromhex(wire))
    return directory


def fuzz(program: Path, seeds: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (seeds.parent / "corpus").mkdir(exist_ok=True)
    bounds = [f"-max_total_time={SECONDS}", "-max_len=4096", "-len_control=0", "-print_final_stats=1", *options]
    command = [program, *bounds, seeds.parent / "corpus", seeds]
    return subprocess.run(command, capture_output=True, text=True, cwd=seeds.parent, timeout=SECONDS + 60)


def test_fuzzing_finds_nothing(tmp_path: Path, seeds: Path) -> None:
    program = build(clang(), tmp_path / "fuzz", FUZZER, "-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
    done = fuzz(program, seeds)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert runs
    print(f"{runs[1]} executions; lines of the parsers covered by what they found:")
    print(coverage(tmp_path, FUZZER, ["wrapper/zmtp.c", "protocol/fields.h"], [seeds, tmp_path / "corpus"]))
    assert int(runs[1]) > 1000


def test_fuzzing_finds_a_planted_overflow(tmp_path: Path, seeds: Path) -> None:
    program = build(clang(), tmp_path / "planted", FUZZER, "-g", "-O1", "-DPLANTED_BUG", "-fsanitize=fuzzer,address,undefined")
    done = fuzz(program, seeds, "-max_total_time=60")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
