"""Imports point one way: protocol ← core ← edges ← cli, and the rooms do not know each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
ROOMS = ("protocol", "distributor", "agent", "control")
FILES = [file for room in ROOMS for file in sorted((TOP / room).glob("*.py"))]
# What a core, which takes events and gives actions, may not touch: sockets, processes, clocks, files, other libraries' loops.
OUTSIDE = {"zmq", "socket", "subprocess", "time", "os", "select", "selectors", "signal", "threading", "asyncio", "psutil", "click", "http"}
CORES = ("distributor/scheduler.py", "distributor/queue.py", "distributor/placement.py", "distributor/policy.py",
         "distributor/events.py", "distributor/job.py", "distributor/journal.py", "distributor/bursts.py", "distributor/views.py",
         "agent/session.py", "agent/attempt.py", "agent/registration.py", "agent/marks.py",
         "protocol/messages.py", "protocol/manifest.py", "protocol/likeness.py")  # fmt: skip


def imports(file: Path) -> set[str]:
    """Every module that a file imports, also inside functions; names imported from a dwrap package count as modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module.startswith("dwrap"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_room_imports_only_itself_and_the_protocol(file: Path) -> None:
    own = {"protocol", file.parent.name}
    rooms = {name.split(".")[1] for name in imports(file) if name.startswith("dwrap.")}
    assert rooms <= own, f"{file} reaches into {rooms - own}"


@pytest.mark.parametrize("name", CORES)
def test_a_core_touches_nothing_outside(name: str) -> None:
    touched = {module.split(".")[0] for module in imports(TOP / name)} & OUTSIDE
    assert not touched, f"{name} imports {touched}"


@pytest.mark.parametrize("room", ROOMS)
def test_imports_within_a_room_make_no_circle(room: str) -> None:
    within = {
        file.stem: {name.split(".")[2] for name in imports(file) if name.startswith(f"dwrap.{room}.")}
        for file in FILES
        if file.parent.name == room
    }
    while within:
        free = {name for name, needs in within.items() if not (needs & within.keys()) - {name}}
        assert free, f"these import each other in a circle: {sorted(within)}"
        within = {name: needs for name, needs in within.items() if name not in free}


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "protocol"])
def test_nothing_imports_the_command_line(room: str) -> None:
    for file in (TOP / room).glob("*.py"):
        if file.name not in ("cli.py", "__main__.py"):
            assert f"dwrap.{room}.cli" not in imports(file), file


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_file_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text("utf-8"))), f"{file} has no header"
