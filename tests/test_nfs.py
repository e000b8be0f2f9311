"""Coherence on real NFS: the proofs of tests/nfs, each in a lab of its own (lab.py). Needs root and some packages.

Short forms, so that all of them fit into ten minutes; `make nfs` runs them alone, PROOF_FULL=1 (`make proof`) in full length. Knows
which proof needs which lab, and what its line of figures must say. Does not know what the proofs do.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import debian_source
import pytest
from farm import eventually

sys.path.insert(0, str(Path(__file__).resolve().parent / "nfs"))

import lab

PROOFS = Path(lab.__file__).parent
FULL = bool(os.environ.get("PROOF_FULL"))
OPERATIONS, TRIALS, REBUILDS = (2000, 5000, int(os.environ.get("REBUILDS", "20"))) if FULL else (300, 1000, 1)
SECONDS = 7200 if FULL else 300
COMPILER_PACKAGES = {"ld.lld": "lld", "ld.mold": "mold", "ccache": "ccache", "g++": "g++"}

pytestmark = pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "none")


def prove(proof: str, *arguments: str, shape: lab.Shape, binds: Sequence[Path] = ()) -> tuple[int, str]:
    """Run a proof in a lab of that shape; its status and what it printed."""
    if why := lab.missing(shape.server):
        pytest.skip(why)
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    printed = io.StringIO()
    command = [sys.executable, str(PROOFS / f"{proof}.py"), *arguments]
    status = lab.run(command, shape, timeout=SECONDS, environment=environment, output=printed, binds=binds)
    print(printed.getvalue())
    assert status not in (lab.TIME_IS_UP, lab.NO_LAB), f"{proof} on {shape.server}: no end, or no lab"
    return status, printed.getvalue()


def figure(text: str, name: str) -> int:
    """The number after NAME= in the last line that has it."""
    return int(re.findall(rf"\b{name}=(\d+)", text)[-1])


@pytest.mark.parametrize("server", lab.SERVERS)
def test_whatever_was_done_every_host_sees_it(server: str) -> None:
    status, text = prove("operations", "--operations", str(OPERATIONS), shape=lab.Shape(server))
    assert status == 0, text
    assert figure(text, "operations") >= OPERATIONS
    assert figure(text, "wrong") == 0


@pytest.mark.parametrize("server", lab.SERVERS if FULL else lab.SERVERS[:1])
def test_without_coherence_the_same_proof_finds_hundreds(server: str) -> None:
    status, text = prove("operations", "--operations", str(OPERATIONS), "--views", "never", shape=lab.Shape(server))
    assert status == 1, text
    assert figure(text, "wrong") > 100


@pytest.mark.parametrize("server", lab.SERVERS)
def test_changes_within_one_tick_are_seen(server: str) -> None:
    status, text = prove("collisions", "--trials", str(TRIALS), shape=lab.Shape(server))
    assert status == 0, text
    assert figure(text, "wrong") == 0
    assert figure(text, "stale_without") > TRIALS // 10, "hardly anything was stale: nothing was proved"


@pytest.mark.parametrize("server", lab.SERVERS if FULL else lab.SERVERS[:1])
@pytest.mark.parametrize("form", ["wrapped", "mixed"])
def test_a_real_project_is_rebuilt_after_edits(server: str, form: str, tmp_path: Path) -> None:
    try:
        source = debian_source.unpack("double-conversion", tmp_path)
    except debian_source.SourceError as error:
        pytest.skip(str(error))
    status, text = prove("project", str(source), "--form", form, "--rebuilds", str(REBUILDS), shape=lab.Shape(server), binds=[tmp_path])
    assert status == 0, text
    assert (figure(text, "failures"), figure(text, "wrong")) == (0, 0)
    assert figure(text, "split_links") > 0, "no link ran on another agent than some of its compilations"
    assert all(count > 0 for count in map(int, re.findall(r"\ba\d (\d+)", text))), "an agent had nothing to do"


@pytest.mark.parametrize(("cases", "shape"), [
    ("linkers listeners ccache", lab.Shape()), ("reruns", lab.Shape()), ("reruns", lab.Shape("knfsd-3")),
    ("full_disk", lab.Shape(disk="64M")), ("squash", lab.Shape(squash=True)),
], ids=lambda value: value if isinstance(value, str) else value.server)  # fmt: skip
def test_single_cases(cases: str, shape: lab.Shape) -> None:
    wanting = [package for program, package in COMPILER_PACKAGES.items() if not shutil.which(program)]
    if wanting and "linkers" in cases:
        pytest.skip(f"needs {' '.join(wanting)}: apt-get install")
    status, text = prove("cases", *cases.split(), shape=shape)
    assert status == 0, text


@pytest.mark.parametrize("server", ("knfsd-4.2", "ganesha") if FULL else lab.SERVERS[:1])
def test_nothing_of_an_agent_that_was_cut_off_replaces_what_is_newer(server: str) -> None:
    status, text = prove("loss", "control", "belated", "in_place", shape=lab.Shape(server))
    assert status == 0, text


def test_an_output_costs_what_its_write_back_costs() -> None:
    status, text = prove("../../benchmarks/coherence_inside", "--jobs", "20", shape=lab.Shape())
    assert status == 0, text
    told = json.loads(text.splitlines()[-1])
    assert told["outputs"] == ["exact"]
    assert 0 < told["output"] - told["output_alone"] <= 4.2, "the write-back's open and close; two to be sure that a name is new"
    assert told["through"] - told["alone"] < 7, "the same, and two about the directory that others have changed"


def test_a_lab_ends_with_the_status_of_its_command_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    printed = io.StringIO()
    assert lab.run(["sh", "-c", "on a1 sh -c 'echo $(hostname) > /srv/src/name'; on desk cat /srv/src/name; exit 7"], output=printed) == 7
    assert printed.getvalue() == "a1\n"
    assert lab.run(["sleep", "1000"], timeout=3, output=printed) == lab.TIME_IS_UP
    assert list(tmp_path.iterdir()) == []
    left = str(tmp_path).encode()  # in the guest's processes, which are killed, and on a busy machine take a moment to go
    eventually(lambda: not [one for one in Path("/proc").glob("[0-9]*/cmdline") if left in contents(one)], 5, "the guest is gone")


def contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
