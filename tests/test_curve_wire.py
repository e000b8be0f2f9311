"""The wrapper's half of CurveZMQ as bytes: golden vectors of an independent implementation, and bounded fuzz runs that can find a bug.

DWRAP_FUZZ_SECONDS (5) bounds each run.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import curve_peer
import pytest
from curve_peer import COMMAND, GREETING, MORE, Pair, command, framed, properties, short
from wrapper_program import ROOT, SANITIZE, SODIUM, build, clang, coverage

VECTORS = ROOT / "protocol" / "curve_vectors.txt"
SECONDS = int(os.environ.get("DWRAP_FUZZ_SECONDS", "5"))
SOURCES = ["wrapper/zmtp.c", "wrapper/curve.c", *SODIUM]
FUZZER = ["tests/c/fuzz_curve.c", *SOURCES]
STUBS = ["-DSTUBBED", *(f"-Dcrypto_box_{name}=stub_{name}" for name in ("open_detached_afternm", "beforenm", "easy"))]
FUZZ = ["-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]


def vector(name: str) -> bytes:
    (found,) = re.findall(rf"^{name} ([0-9a-f]+)$", VECTORS.read_text(), re.MULTILINE)
    return bytes.fromhex(found)


def from_server() -> list[tuple[int, bytes, bytes]]:
    """Flags, contents and bytes of what the server says in the vectors."""
    found = re.findall(r"^- (\d) ([0-9a-f]+) ([0-9a-f]+)$", VECTORS.read_text(), re.MULTILINE)
    return [(int(flags), bytes.fromhex(data), bytes.fromhex(message)) for flags, data, message in found]


def test_the_vectors_are_those_of_an_independent_implementation() -> None:
    assert VECTORS.read_text() == curve_peer.vectors()


def test_the_wrapper_agrees_on_every_byte_and_notices_every_bit(tmp_path: Path) -> None:
    try:
        program = build("cc", tmp_path / "test_curve", ["tests/c/test_curve.c", *SOURCES], *SANITIZE)
    except subprocess.CalledProcessError:
        program = build("cc", tmp_path / "test_curve", ["tests/c/test_curve.c", *SOURCES])
    done = subprocess.run([program, VECTORS], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert re.fullmatch(r"[0-9]{4,} checks, 0 failures\n", done.stdout)


def clear_message(number: int, flags: int, data: bytes) -> bytes:
    """A MESSAGE as it is for a client that opens every box."""
    return framed(b"\x07MESSAGE" + short(number) + bytes(16) + bytes([flags]) + data)


def clear_handshake() -> list[bytes]:
    welcome = b"\x07WELCOME" + bytes(16 + 16) + Pair.of(b"\x44" * 32).public + bytes(96)
    return [command(welcome), command(b"\x05READY" + short(1) + bytes(16) + properties(Socket_Type=b"ROUTER", Identity=b""))]


def real_handshake() -> list[bytes]:
    return [command(vector("welcome")), command(vector("ready"))]


def conversations(stubbed: bool) -> list[list[bytes]]:
    """What a good server may say after its greeting."""
    handshake = clear_handshake() if stubbed else real_handshake()
    said = from_server()[: 3 if stubbed else None]  # none has a first frame that the planted bug would meet
    messages = [clear_message(n, flags, data) if stubbed else framed(message) for n, (flags, data, message) in enumerate(said, 2)]
    found = [[*handshake, *messages], [*handshake], [command(b"\x05ERROR\x03400")]]
    if stubbed:
        found += [[*handshake, clear_message(2, COMMAND, b"\x04PING\x00\x00" + b"c" * size)] for size in (0, 16)]
        found += [[*handshake, *(clear_message(2 + n, MORE if n < 7 else 0, b"x" * 40 * n) for n in range(8))]]
    return found


def flags(stubbed: bool) -> list[str]:
    """The handshake as numbers for the compiler, and what is stubbed."""
    numbers = [",".join(map(str, data)) for data in (vector("server"), b"".join(clear_handshake() if stubbed else real_handshake()))]
    return [f"-DSERVER_KEY={numbers[0]}", f"-DHANDSHAKE={numbers[1]}", *(STUBS if stubbed else [])]


def write_seeds(directory: Path, stubbed: bool) -> Path:
    """Whole conversations, and what comes after each of the three beginnings."""
    seeds = directory / "seeds"
    seeds.mkdir()
    for number, said in enumerate(conversations(stubbed)):
        for name, first, rest in (("whole", 0xFC, [GREETING, *said]), ("greeted", 0xFD, said), ("opened", 0xFF, said[2:])):
            (seeds / f"{name}{number}").write_bytes(bytes([first]) + b"".join(rest))
    return seeds


def fuzz(program: Path, seeds: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (seeds.parent / "corpus").mkdir(exist_ok=True)
    bounds = [f"-max_total_time={SECONDS}", "-max_len=4096", "-len_control=0", "-print_final_stats=1", *options]
    command_line = [program, *bounds, seeds.parent / "corpus", seeds]
    return subprocess.run(command_line, capture_output=True, text=True, cwd=seeds.parent, timeout=SECONDS + 120)


@pytest.mark.parametrize("stubbed", [True, False], ids=["every box opens", "real boxes"])
def test_fuzzing_finds_nothing(tmp_path: Path, stubbed: bool) -> None:
    seeds = write_seeds(tmp_path, stubbed)
    done = fuzz(build(clang(), tmp_path / "fuzz", FUZZER, *FUZZ, *flags(stubbed)), seeds)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert runs
    print(f"{runs[1]} executions; lines covered by what they found:")
    print(coverage(tmp_path, [*FUZZER, *flags(stubbed)], ["wrapper/zmtp.c", "wrapper/curve.c"], [seeds, tmp_path / "corpus"]))
    assert int(runs[1]) > 500


def test_fuzzing_finds_a_planted_overflow(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path, stubbed=True)
    done = fuzz(build(clang(), tmp_path / "planted", FUZZER, *FUZZ, *flags(stubbed=True), "-DPLANTED_BUG"), seeds, "-max_total_time=60")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
