"""Commands that change a file in place, while their agents die: each file is whole, and as before or as one run of its command leaves it.

`strip`, `ar` and `sed -i` are the real ones, `clang-format -i` too where it is installed. ROUNDS multiplies the moments, SEED repeats
them.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from farm import DWRAP, Farm, eventually, ready_line
from troubles import kill_an_agent

ROUNDS = int(os.environ.get("ROUNDS", "0")) or (10 if os.environ.get("PROOF_FULL") else 1)
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
AT_ONCE = 4
VOLLEYS = 8 * ROUNDS
END_SECONDS = 90.0

# As shells do it: emptied, then written, with time in between for whatever may happen.
OVERWRITE = 'text=$(cat "$1"); exec 3>"$1"; sleep 0.1; echo "x$text" >&3'
# The system calls of `clang-format -i`: a temporary file beside the file, then a rename over it.
REPLACE = 'sed "s/^/x/" <"$1" >"$1.tmp"; sleep 0.05; mv "$1.tmp" "$1"'


@dataclass(frozen=True)
class Tool:
    """A command that changes the file whose name follows, and the file as it is before."""

    name: str
    argv: tuple[str, ...]
    before: Callable[[Path], bytes]
    after: tuple[str, ...] = ()  # words behind the file's name


def text(_: Path) -> bytes:
    return b"".join(b"int f%d(void) {return %d;}\n" % (number, number) for number in range(2_000))


def compiled(parts: Path) -> bytes:
    return (parts / "member.o").read_bytes()


def archive(parts: Path) -> bytes:
    return (parts / "old.a").read_bytes()


TOOLS = [
    Tool("sed", ("sed", "-i", "s/^/x/"), text),
    Tool("overwrite", ("sh", "-c", OVERWRITE, "sh"), text),
    Tool("replace", ("sh", "-c", REPLACE, "sh"), text),
    Tool("strip", ("strip", "-g"), compiled),
    Tool("ar-r", ("ar", "rD"), archive, ("parts/member.o",)),
    Tool("ar-q", ("ar", "qD"), archive, ("parts/member.o",)),  # appends: twice is seen
]
if shutil.which("clang-format"):
    TOOLS.append(Tool("clang-format", ("clang-format", "-i"), text))


@dataclass
class Ended:
    """How a wrapper ended, and what it left."""

    name: str
    status: int
    stderr: bytes
    left: bytes | None


def make_parts(place: Path) -> None:
    """`parts/member.o` with debugging information, and an archive that has an old one of that name and another."""
    parts = place / "parts"
    parts.mkdir()
    (parts / "member.c").write_bytes(text(place))
    (parts / "other.c").write_text("int g(void) { return 1; }\n")
    for name in ("other", "member"):
        subprocess.run(["gcc", "-g", "-c", f"{name}.c"], cwd=parts, check=True)
    shutil.copy(parts / "member.o", parts / "new.o")
    shutil.copy(parts / "other.o", parts / "member.o")
    subprocess.run(["ar", "rcD", "old.a", "other.o", "member.o"], cwd=parts, check=True)
    (parts / "new.o").replace(parts / "member.o")


def run(place: Path, argv: Sequence[str], name: str, environment: dict[str, str]) -> Ended:
    done = subprocess.run(argv, env=environment, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, timeout=END_SECONDS)
    file = place / name
    return Ended(name, done.returncode, done.stdout + done.stderr, file.read_bytes() if file.exists() else None)


def wrong(ended: Ended, before: bytes, after: bytes) -> str:
    """What is not as it should be; empty when all is."""
    size = "absent" if ended.left is None else f"{len(ended.left)} bytes"
    told = f"{ended.name}: status {ended.status}, {size} (before {len(before)}, after {len(after)}), said {ended.stderr[:300]!r}"
    if ended.status == 0:
        return "" if ended.left == after and ended.stderr == b"" else told
    one_line = ended.stderr.startswith(b"dwrap: ") and ended.stderr.count(b"\n") == 1
    return "" if ended.status == 125 and one_line and ended.left in (before, after) else told


@pytest.fixture(params=TOOLS, ids=lambda tool: tool.name)
def tool(request: pytest.FixtureRequest) -> Tool:
    """Each of them."""
    chosen: Tool = request.param
    return chosen


def volley(farm: Farm, changes: Sequence[Callable[[], Ended]], after_seconds: float, kills: Sequence[Callable[[], None]]) -> list[Ended]:
    """All at once; after so many seconds what is killed is killed. How they ended, once all are there that have been killed."""
    with ThreadPoolExecutor(len(changes)) as pool:
        running = [pool.submit(change) for change in changes]
        time.sleep(after_seconds)
        for kill in kills:
            kill()
        ended = [one.result() for one in running]
    eventually(lambda: len([agent for agent in farm.status()["agents"] if agent["is_serving"]]) == len(farm.agents))
    return ended


def kills(farm: Farm, chance: random.Random) -> list[Callable[[], None]]:
    """An agent, and every third time the distributor as well, before it or after it."""
    both = [partial(kill_an_agent, farm, chance), farm.restart_distributor]
    return chance.sample(both, 2) if chance.randrange(3) == 0 else both[:1]


def test_a_file_is_as_before_or_as_its_command_leaves_it(farm: Farm, tool: Tool, tmp_path: Path) -> None:
    """Agents are killed by SIGKILL at random moments of a run of the tool, the distributor too."""
    make_parts(tmp_path)
    (tmp_path / "runtime").mkdir(mode=0o700)
    before = tool.before(tmp_path / "parts")
    names = [f"file{number}.c" for number in range(VOLLEYS * AT_ONCE)]
    for name in ("model", "first", *names):
        (tmp_path / name).write_bytes(before)
    subprocess.run([*tool.argv, "model", *tool.after], cwd=tmp_path, check=True)
    after = (tmp_path / "model").read_bytes()
    assert after != before
    there, environment = set(os.listdir(tmp_path)), farm.environment(XDG_RUNTIME_DIR=str(tmp_path / "runtime"))

    def change(name: str) -> Ended:
        return run(tmp_path, [DWRAP, *tool.argv, name, *tool.after], name, environment)

    began = time.monotonic()
    assert wrong(change("first"), before, after) == ""
    took, chance, ended = time.monotonic() - began, random.Random(SEED), []
    for at in range(0, len(names), AT_ONCE):
        changes = [partial(change, name) for name in names[at : at + AT_ONCE]]
        ended += volley(farm, changes, chance.uniform(0, 1.5 * took), kills(farm, chance))
    print(f"seed {SEED}, {tool.name} ({took * 1e3:.0f} ms): {len(names)} files, {VOLLEYS} times killed")
    assert [problem for one in ended if (problem := wrong(one, before, after))] == []
    assert set(os.listdir(tmp_path)) - {"state-home"} == there, "no temporary file is left"


def test_what_an_agent_left_is_not_taken_by_its_namesake_of_another_farm(farm: Farm, tmp_path: Path) -> None:
    """Two farms on one machine may well call their agents the same (`dwrapctl up` does)."""
    file = tmp_path / "file"
    file.write_bytes(b"text\n")
    argv = [DWRAP, "sh", "-c", 'text=$(cat "$1"); exec 3>"$1"; sleep 0.5; echo "x$text" >&3', "sh", "file"]
    with tempfile.TemporaryDirectory(prefix="dwrap-") as directory, Farm(Path(directory)) as other:
        job = subprocess.Popen(argv, env=farm.environment(XDG_RUNTIME_DIR=str(tmp_path)), cwd=tmp_path, stderr=subprocess.PIPE)
        eventually(lambda: file.stat().st_size == 0)
        name = next(agent["name"] for agent in farm.status()["agents"] if agent["assigned"])
        farm.agents[name].kill()
        farm.agents[name].wait()
        eventually(lambda: file.read_bytes() == b"xtext\n")
        other.restart_agent(name)
        ready_line(other.agents[name])  # it has looked
        farm.restart_agent(name)
        _, said = job.communicate(timeout=END_SECONDS)
    assert (job.returncode, said) == (0, b"")
