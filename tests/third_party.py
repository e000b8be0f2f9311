"""Real projects, unmodified, through dwrap: configure, build, link and test on two agents (`make third-party`).

Each project is built twice at the same path, plainly and through dwrap. The objects must be byte-identical, the tests must
pass, a second build must find nothing to do, and after configure at most 5 % of the commands may have run here.

    python tests/third_party.py [NAME...]        all of them by default; prints one block per project, exits 1 on a failure
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import debian_source
from farm import DWRAP, Farm

JOBS = "-j4"
HERE_SHARE = 0.05
STEP_SECONDS = 1200
PROBES_ONLY = "--disable-shared --without-openssl --without-nettle --without-xml2 --without-expat"


@dataclass(frozen=True)
class Project:
    """One source package and the lines of shell that build it: {dwrap} is `dwrap ` or nothing."""

    package: str
    system: str
    configure: str
    configure_with_dwrap: str
    """The same, told about dwrap in the build system's own way."""
    build: str
    test: str
    again: str
    """Prints `nothing` (see there) when there is no work left."""
    nothing: str


PROJECTS = [
    Project(
        "libjsoncpp", "CMake",
        "cmake -G Ninja -B build -DCMAKE_BUILD_TYPE=Release -DCCACHE_EXECUTABLE=",
        "cmake -G Ninja -B build -DCMAKE_BUILD_TYPE=Release -DCCACHE_EXECUTABLE="
        " -DCMAKE_CXX_COMPILER_LAUNCHER=dwrap -DCMAKE_CXX_LINKER_LAUNCHER=dwrap -DCMAKE_TEST_LAUNCHER=dwrap",
        f"ninja {JOBS} -C build", "ctest --test-dir build --output-on-failure", "ninja -C build -n", "no work to do",
    ),
    Project(
        "fribidi", "Meson",
        "meson setup build -Ddocs=false",
        "CC='dwrap cc' meson setup build -Ddocs=false",
        f"ninja {JOBS} -C build", "meson test -C build --wrapper=dwrap", "ninja -C build -n", "no work to do",
    ),
    Project(
        "libarchive", "Autoconf",
        f"./configure {PROBES_ONLY}",
        f"CC='dwrap gcc' ./configure {PROBES_ONLY}",
        f"make {JOBS} bsdtar bsdcpio bsdcat bsdtar_test bsdcpio_test bsdcat_test",
        "make check LOG_COMPILER=dwrap TESTS='bsdtar_test bsdcpio_test bsdcat_test' check_PROGRAMS='bsdtar_test bsdcpio_test bsdcat_test'",
        "make libarchive.la bsdtar bsdcpio bsdcat | grep '^  CC' || echo up to date", "up to date",
    ),
    Project(
        "bzip2", "make",
        "true", "true",
        f"make {JOBS} CC=\"${{DWRAP:+dwrap }}gcc\" bzip2 bzip2recover libbz2.a",
        "make CC='dwrap gcc' SHELL=\"$(command -v dwrap)\" .SHELLFLAGS='/bin/sh -c' test",
        "make -q CC='dwrap gcc' bzip2 bzip2recover libbz2.a && echo up to date", "up to date",
    ),
]  # fmt: skip


class StepFailed(Exception):
    """A line of shell failed, or did not show what it must; the text says which, and what it printed last."""


def step(line: str, source: Path, environment: dict[str, str]) -> str:
    """Run a line of shell in the source; its output. Raises StepFailed."""
    done = subprocess.run(
        ["/bin/bash", "-c", line], cwd=source, env=environment, capture_output=True, text=True, errors="replace", timeout=STEP_SECONDS,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise StepFailed(f"status {done.returncode} from: {line}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def objects(source: Path) -> dict[str, str]:
    """Path to hash of every object file."""
    return {str(path.relative_to(source)): sha256(path.read_bytes()).hexdigest() for path in source.rglob("*.o")}


def ran_here(state: Path) -> list[str]:
    """The wrapper's own log of commands that ran on the desktop, a line each."""
    log = state / "dwrap" / "here.log"
    return log.read_text(errors="replace").splitlines() if log.exists() else []


def build_plainly(project: Project, place: Path) -> tuple[dict[str, str], float]:
    """The objects of a build without dwrap, and the seconds that the build took."""
    source, plain = debian_source.unpack(project.package, place), tools()
    step(project.configure, source, plain)
    started = time.monotonic()
    step(project.build, source, plain)
    return objects(source), time.monotonic() - started


def tools() -> dict[str, str]:
    """An environment with our programs and the venv's build tools first on PATH, no cache, and no setting of the user's own."""
    path = [str(Path(DWRAP).parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DWRAP", "CCACHE", "FORCE_", "MAKE", "MFLAGS"))}
    return {**kept, "PATH": os.pathsep.join(path), "LC_ALL": "C.UTF-8", "CCACHE_DISABLE": "1"}


def build_through_dwrap(project: Project, place: Path, farm: Farm) -> tuple[dict[str, str], str]:
    """The objects, and lines that say what ran where. Raises StepFailed."""
    source, state = debian_source.unpack(project.package, place), place / "state"
    shutil.rmtree(state, ignore_errors=True)
    environment = {**tools(), "DWRAP": "1", "DWRAP_HOST": farm.address, "DWRAP_FALLBACK": "fail", "XDG_STATE_HOME": str(state)}
    step(project.configure_with_dwrap, source, environment)
    probes, configured = len(ran_here(state)), farm.per_agent()
    started = time.monotonic()
    step(project.build, source, environment)
    took = time.monotonic() - started
    built = objects(source)
    step(project.test, source, environment)
    done = {name: count - configured[name] for name, count in farm.per_agent().items()}
    here = ran_here(state)[probes:]
    share = len(here) / max(1, len(here) + sum(done.values()))
    told = ", ".join(f"{name} {count}" for name, count in done.items())
    report = (
        f"  ran during configure: {probes} here, {sum(configured.values())} on agents\n"
        f"  after it: {told}, here {len(here)} ({share:.1%}); build {took:.1f} s\n"
    )
    if project.nothing not in step(project.again, source, environment):
        raise StepFailed(f"a second build finds work to do: {project.again}")
    if share > HERE_SHARE or min(done.values()) == 0:
        raise StepFailed(f"too many commands ran here, or an agent had none:\n{report}" + "\n".join(here[:20]))
    return built, report


def prove(project: Project, place: Path) -> str:
    """Build it both ways; the lines to print. Raises StepFailed or SourceError."""
    plain, plain_seconds = build_plainly(project, place)
    (place / "farm").mkdir(exist_ok=True)
    with Farm(place / "farm") as farm:
        through, report = build_through_dwrap(project, place, farm)
    different = sorted(name for name in plain.keys() | through.keys() if plain.get(name) != through.get(name))
    if different:
        raise StepFailed(f"{len(different)} of {len(plain)} objects differ from a local build: {', '.join(different[:10])}")
    same = f"  {len(plain)} objects, all byte-identical to a local build at the same path ({plain_seconds:.1f} s)"
    return f"{same}; tests pass; no work left\n{report}"


def main(names: Sequence[str]) -> int:
    """Prove the projects named, or all; 1 when one failed."""
    failures = 0
    for project in PROJECTS:
        if names and project.package not in names:
            continue
        print(f"{project.package} ({project.system})", flush=True)
        place = Path(tempfile.mkdtemp(prefix="dwrap-third-party-"))
        try:
            print(prove(project, place), end="", flush=True)
        except (StepFailed, debian_source.SourceError, AssertionError) as error:
            failures += 1
            print(f"  FAILED: {error}", flush=True)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
