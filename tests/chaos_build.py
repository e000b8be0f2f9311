"""A real project built while everything is killed: its tree must be byte for byte that of a local build (`make chaos`).

The source is configured once, plainly; each build starts from a copy of that, at the same path. Through dwrap the compiler and the
archiver are links to it, first on PATH, so nothing in the tree differs but by a fault. Meanwhile the distributor is killed by SIGKILL
every 5 s and an agent every 2 s. Whatever the farm cannot take runs here, as for any user: at most 5 % of the commands may.

    python tests/chaos_build.py [BUILDS] [PACKAGE]      10 builds of libarchive by default; exits 1 unless all are identical
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import debian_source
from farm import DWRAP, Farm
from third_party import HERE_SHARE, PROJECTS, Project, StepFailed, ran_here, step, tools
from troubles import chaos, kill_an_agent

BUILDS = 10
PACKAGE = "libarchive"
DISTRIBUTOR_SECONDS = 5.0
AGENT_SECONDS = 2.0
MASKED = ("gcc", "cc", "ar", "ranlib")


@dataclass(frozen=True)
class Built:
    """One build through dwrap, and what was done to the farm meanwhile."""

    tree: dict[str, str]
    commands: int
    here: list[str]
    again: int
    distributors_killed: int
    agents_killed: int
    seconds: float

    @property
    def share(self) -> float:
        """How much of it ran here."""
        return len(self.here) / max(1, self.commands)


def tree_of(source: Path) -> dict[str, str]:
    """Each name below the source, and what it is: a hash of the file, where the link leads, a directory."""

    def what(path: Path) -> str:
        if path.is_symlink():
            return f"link to {path.readlink()}"
        return sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"

    return {str(path.relative_to(source)): what(path) for path in source.rglob("*")}


def assignments(state: Path) -> Counter[str]:
    """How many attempts there were of each job: the ledger knows it over all epochs."""

    def lines() -> Iterator[list[object]]:
        for file in (state / "assignments.before", state / "assignments"):
            for text in file.read_bytes().split(b"\n") if file.exists() else ():
                try:
                    yield json.loads(b"[" + text + b"]")
                except ValueError:  # cut short by a kill
                    continue

    attempts = {(str(line[2]), str(line[3])) for line in lines() if line and line[0] == "A"}
    return Counter(job for job, _ in attempts)


def masks(place: Path) -> Path:
    """A directory of links to dwrap."""
    folder = place / "masks"
    folder.mkdir()
    for name in MASKED:
        (folder / name).symlink_to(DWRAP)
    return folder


class Proof:
    """A configured source in `place`, built plainly, and what to compare with."""

    def __init__(self, project: Project, place: Path, seed: int) -> None:
        self._project = project
        self._place = place
        self._seed = seed
        self._masks = masks(place)
        source = debian_source.unpack(project.package, place)
        step(project.configure, source, tools())
        shutil.copytree(source, place / "configured", symlinks=True)
        started = time.monotonic()
        step(project.build, source, tools())
        self.seconds = time.monotonic() - started
        self.tree = tree_of(source)

    def build(self, number: int) -> Built:
        """Builds it once more, under chaos. Raises StepFailed."""
        place = self._place / f"build{number}"
        source = self._place / "source"
        shutil.rmtree(source)
        shutil.copytree(self._place / "configured", source, symlinks=True)
        (place / "runtime").mkdir(parents=True, mode=0o700)
        chance, plain = random.Random(self._seed + number), tools()
        with Farm(place) as farm:
            environment = {
                **plain, "PATH": f"{self._masks}:{plain['PATH']}", "DWRAP_HOST": farm.address, "DWRAP_FALLBACK": "local",
                "XDG_STATE_HOME": str(place), "XDG_RUNTIME_DIR": str(place / "runtime"),
            }  # fmt: skip
            started = time.monotonic()
            with chaos((DISTRIBUTOR_SECONDS, farm.restart_distributor), (AGENT_SECONDS, lambda: kill_an_agent(farm, chance))) as counts:
                step(self._project.build, source, environment)
            seconds = time.monotonic() - started
        jobs, here = assignments(place / "state"), ran_here(place)
        return Built(tree_of(source), len(jobs) + len(here), here, jobs.total() - len(jobs), *counts, seconds)

    def wrong(self, built: Built) -> str:
        """What is not as it should be; empty when all is."""
        names = self.tree.keys() | built.tree.keys()
        different = sorted(name for name in names if self.tree.get(name) != built.tree.get(name))
        if different:
            return f"{len(different)} of {len(names)} names differ from the local build: {', '.join(different[:10])}"
        if built.share > HERE_SHARE:
            return "too many commands ran here:\n" + "\n".join(f"    {line}" for line in built.here[:20])
        return ""


def main(builds: int, package: str) -> int:
    """Builds so many times; 0 when all are identical."""
    project = next(one for one in PROJECTS if one.package == package)
    place, seed, good = Path(tempfile.mkdtemp(prefix="dwrap-chaos-")), random.SystemRandom().randrange(1, 1 << 32), 0
    try:
        proof = Proof(project, place, seed)
        print(f"{package} ({project.system}), built here in {proof.seconds:.1f} s: {len(proof.tree)} names; seed {seed}", flush=True)
        for number in range(1, builds + 1):
            try:
                built = proof.build(number)
                problem = proof.wrong(built)
                print(
                    f"  {number}: {built.commands} commands in {built.seconds:.1f} s, {len(built.here)} here ({built.share:.1%}), "
                    f"{built.again} attempts run again; killed: {built.distributors_killed} distributors, {built.agents_killed} agents"
                )
            except StepFailed as error:
                problem = str(error)
            good += not problem
            print(f"     {'identical' if not problem else f'FAILED: {problem}'}", flush=True)
    except debian_source.SourceError as error:
        print(f"  FAILED: {error}")
        return 1
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(f"{good} of {builds} identical")
    return 0 if good == builds else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else BUILDS, sys.argv[2] if len(sys.argv) > 2 else PACKAGE))
