"""A command run through dwrap on a terminal finds a terminal there: isatty, size, colours (issue 2, point 5)."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from farm import DWRAP, Farm

BAD_C = "int main(void) { return undeclared; }\n"
CASES = {
    "isatty": ["sh", "-c", "for fd in 0 1 2; do test -t $fd; echo $fd $?; done"],
    "size": ["sh", "-c", "stty size <&1"],
    "colours-of-ls": ["ls", "--color=auto", "--format=single-column", "/usr"],
    "colours-of-gcc": ["gcc", "-fdiagnostics-color=auto", "-c", "bad.c"],
    "both-streams": ["sh", "-c", "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done"],
    "carriage-returns": ["printf", r"10%%\r20%%\r\n\033[1mbold\033[0m\n"],
}


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with Farm(tmp_path_factory.mktemp("farm")) as running:
        yield running


def on_terminal(argv: Sequence[str], farm: Farm, directory: Path, only: str = "both") -> tuple[int, bytes, bytes]:
    """Status, what appears on a terminal of 33 by 101, and what comes through a pipe when stderr goes there."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal if only == "both" else subprocess.PIPE,
        cwd=directory, env=farm.environment(TERM="xterm-256color"),
    )  # fmt: skip
    os.close(terminal)
    seen = bytearray()
    while piece := read(controller):
        seen += piece
    os.close(controller)
    errors = process.communicate()[1]
    return process.returncode, bytes(seen), errors or b""


def read(controller: int) -> bytes:
    """A piece from the terminal, empty at its end (which Linux reports as EIO)."""
    try:
        return os.read(controller, 65536)
    except OSError:
        return b""


@pytest.mark.parametrize("case", CASES)
def test_looks_as_when_run_directly(case: str, farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "bad.c").write_text(BAD_C)
    direct = on_terminal(CASES[case], farm, tmp_path)
    assert on_terminal([DWRAP, *CASES[case]], farm, tmp_path) == direct
    assert direct[1]


@pytest.mark.parametrize("case", ["isatty", "colours-of-gcc"])
def test_only_stdout_is_a_terminal(case: str, farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "bad.c").write_text(BAD_C)
    direct = on_terminal(CASES[case], farm, tmp_path, only="stdout")
    assert on_terminal([DWRAP, *CASES[case]], farm, tmp_path, only="stdout") == direct
