"""The forms in which people write a distributor's address, their one canonical form in both languages, and which stay on this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from wrapper_program import ROOT, build

from dwrap.protocol.endpoint import parse_endpoint

LINES = [line.split("|")[1:3] for line in (ROOT / "tests" / "addresses.txt").read_text("utf-8").splitlines() if line.startswith("|")]
LINES += [["x" * 253, f"tcp://{'x' * 253}:7776"], ["x" * 254, "-"], ["0" * 400, "-"], ["h\x01", "-"], ["ipc:///a\x1b", "-"]]


def parsed(written: str) -> str:
    try:
        return parse_endpoint(written).address
    except ValueError:
        return "-"


@pytest.mark.parametrize(("written", "canonical"), LINES)
def test_the_canonical_form(written: str, canonical: str) -> None:
    assert parsed(written) == canonical
    if canonical != "-":
        assert parsed(canonical) == canonical


def test_the_wrapper_makes_the_same_of_them(tmp_path: Path) -> None:
    program = build("cc", tmp_path / "addresses", ["tests/c/addresses.c", "wrapper/address.c", "wrapper/memory.c"])
    words = "".join(f"{written}\n" for written, _ in LINES)
    made = subprocess.run([program], input=words, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    assert list(zip((written for written, _ in LINES), made.split("\n"), strict=False)) == [tuple(line) for line in LINES]
    assert made.count("\n") == len(LINES)


@pytest.mark.parametrize(
    ("text", "address", "local"),
    [
        ("ipc:///run/d.sock", "ipc:///run/d.sock", True),
        ("tcp://127.0.0.1:99", "tcp://127.0.0.1:99", True),
        ("localhost", "tcp://localhost:7776", True),
        ("::1", "tcp://[::1]:7776", True),
        ("[fe80::1]:80", "tcp://[fe80::1]:80", False),
        ("farm:80", "tcp://farm:80", False),
        ("127.1.2.3", "tcp://127.1.2.3:7776", True),
        ("LocalHost.:1", "tcp://localhost:1", True),
        ("::ffff:127.0.0.1", "tcp://[::ffff:127.0.0.1]:7776", True),
        ("::ffff:10.0.0.1", "tcp://[::ffff:10.0.0.1]:7776", False),
    ],
)
def test_addresses(text: str, address: str, local: bool) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.address, endpoint.is_local) == (address, local)


@pytest.mark.parametrize("text", ["", "udp://x:1", "host:0", "host:99999", "host:x", "ipc://", "a b", "tcp://"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"tcp://|ipc://"):
        parse_endpoint(text)
