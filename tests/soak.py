"""Hours in minutes: a mixed load with faults, and afterwards nothing may have grown and nothing may be left (`make soak`).

Compilations, much output, input, signals, wrappers that are killed, files changed in place, scripts; meanwhile agents are killed and
frozen, and the distributor too. One agent and the distributor live long: what they hold in memory and in descriptors must be flat.

    python tests/soak.py [MINUTES]      30 by default; prints a table, exits 1 when something grew, was left, or ended wrong
"""

from __future__ import annotations

import os
import random
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from farm import DWRAP, Farm, eventually, query, resident_bytes
from troubles import Trouble, chaos

from dwrap.distributor import past, records

MINUTES = 30.0
THREADS = 5
SAMPLE_SECONDS = 10.0
WARM_SECONDS = 80.0
JUDGED_SAMPLES = 6  # of a life, after it is warm
REMEMBERED_JOBS = 2_500  # that have ended, instead of 100,000: as many end while the distributor gets warm
GROWTH = 1.1
DESCRIPTORS = 4  # that come and go with jobs
LEDGER_BYTES = 2 * 4 * 1024 * 1024 + 4096
JOB_SECONDS = 120.0
UNIT = "".join(f"int f{number}(int x) {{ return x * {number} + f{max(0, number - 1)}(x); }}\n" for number in range(60))
REMEMBERED = ("alive-", "said-", "silent-", "name-", "slot-", "reads-")  # what wrappers keep for each other
MAY_BE_UNKNOWN = ("pipe_input", "in_place")
MARK = f"SOAK_MARK={os.getpid()}"


class Wrong(Exception):
    """A job did not end as it should; the text says how."""


class Unknown(Exception):
    """dwrap could not tell how it ended, and says so in one line: as it may of input from a pipe, and of a change in place."""


class Load:
    """Jobs of all kinds, each in a directory of its thread."""

    def __init__(self, place: Path, environment: dict[str, str]) -> None:
        self._place = place
        self._environment = environment
        self.done: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()  # ended with 125
        self.wrong: list[str] = []
        self.over = threading.Event()
        subprocess.run(["gcc", "-c", "-x", "c", "-", "-o", place / "model.o"], input=UNIT.encode(), check=True)
        self._object = (place / "model.o").read_bytes()

    def flow(self, number: int, seed: int) -> None:
        """One thread's jobs, until it is over."""
        chance, cwd = random.Random(seed + number), self._place / f"thread{number}"
        cwd.mkdir()
        kinds = [self._compile, self._output, self._file_input, self._pipe_input]
        kinds += [self._signal, self._cancelled, self._in_place, self._script]
        while not self.over.is_set():
            kind = chance.choice(kinds)
            name = kind.__name__.strip("_")
            try:
                kind(cwd, chance)
            except Unknown as error:
                self.unknown[name] += 1
                if name not in MAY_BE_UNKNOWN:
                    self.wrong.append(f"{name}: {error}")
            except (Wrong, subprocess.TimeoutExpired) as error:
                self.wrong.append(f"{name}: {error}")
            self.done[name] += 1

    def _run(self, cwd: Path, *argv: str, status: int = 0, **more: object) -> subprocess.CompletedProcess[bytes]:
        """The result. Raises Unknown, Wrong."""
        streams = {"stdin": subprocess.DEVNULL, **more} if "input" not in more else more
        ended: subprocess.CompletedProcess[bytes] = subprocess.run(  # type: ignore[call-overload]
            [DWRAP, *argv], env=self._environment, cwd=cwd, capture_output=True, timeout=JOB_SECONDS, **streams
        )
        if ended.returncode == 125 and ended.stderr.startswith(b"dwrap: ") and ended.stderr.count(b"\n") == 1:
            raise Unknown(ended.stderr.decode(errors="replace").strip())
        if ended.returncode != status:
            raise Wrong(f"status {ended.returncode}, not {status}, from {argv}: {ended.stderr[-300:]!r}")
        return ended

    def _compile(self, cwd: Path, chance: random.Random) -> None:
        (cwd / "unit.o").unlink(missing_ok=True)
        self._run(cwd, "gcc", "-c", "-x", "c", "-", "-o", "unit.o", stdin=self._unit(cwd))
        if (cwd / "unit.o").read_bytes() != self._object:
            raise Wrong("the object differs")

    def _unit(self, cwd: Path) -> object:
        (cwd / "unit.c").write_text(UNIT)
        return (cwd / "unit.c").open("rb")

    def _output(self, cwd: Path, chance: random.Random) -> None:
        size = chance.randrange(1, 4_000_000)
        ended = self._run(cwd, "sh", "-c", f"head -c {size} /dev/zero; head -c 1000 /dev/zero >&2")
        if (len(ended.stdout), len(ended.stderr)) != (size, 1000):
            raise Wrong(f"{len(ended.stdout)} bytes, not {size}")

    def _file_input(self, cwd: Path, chance: random.Random) -> None:
        with self._unit(cwd) as unit:  # type: ignore[attr-defined]
            ended = self._run(cwd, "cat", stdin=unit)
        if ended.stdout != UNIT.encode():
            raise Wrong(f"{len(ended.stdout)} bytes, not {len(UNIT)}, or others")

    def _pipe_input(self, cwd: Path, chance: random.Random) -> None:
        given = chance.randbytes(chance.randrange(300_000))
        ended = self._run(cwd, "cat", input=given)
        if ended.stdout != given:
            raise Wrong(f"{len(ended.stdout)} bytes, not {len(given)}, or others")

    def _signal(self, cwd: Path, chance: random.Random) -> None:
        number = chance.choice([signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
        self._run(cwd, "sh", "-c", f"kill -{int(number)} $$", status=-number)

    def _cancelled(self, cwd: Path, chance: random.Random) -> None:
        wrapper = subprocess.Popen([DWRAP, "sh", "-c", "sleep 300; true"], env=self._environment, cwd=cwd, stdin=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, 0.5))
        number = chance.choice([signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
        wrapper.send_signal(number)
        try:
            wrapper.wait(timeout=JOB_SECONDS)
        except subprocess.TimeoutExpired:
            wrapper.kill()
            known = query(self._environment["DWRAP_HOST"], "jobs")["jobs"]
            raise Wrong(f"signal {number} did not end it: {[job for job in known if job['pid'] == wrapper.pid]}") from None
        if wrapper.returncode != -number:
            raise Wrong(f"it ended with {wrapper.returncode}, not by signal {number}")

    def _in_place(self, cwd: Path, chance: random.Random) -> None:
        (cwd / "text").write_text(UNIT)
        changed = "".join(f"x{line}\n" for line in UNIT.splitlines())
        may_be = {changed}
        try:
            self._run(cwd, "sed", "-i", "s/^/x/", "text")
        except Unknown:
            may_be.add(UNIT)
            raise
        finally:
            if (cwd / "text").read_text() not in may_be:
                raise Wrong("the file is neither as before nor as its command leaves it")

    def _script(self, cwd: Path, chance: random.Random) -> None:
        script = "echo a >part; sleep 0.1; mv part whole; cat whole; (sleep 0.05; echo late) & wait; rm whole; exit 9"
        ended = self._run(cwd, "sh", "-c", script, status=9)
        if ended.stdout != b"a\nlate\n":
            raise Wrong(f"{ended}")


# ---- what daemons hold


@dataclass
class Life:
    """What one daemon held, as long as it lived."""

    name: str
    pid: int
    samples: list[tuple[float, int, int]] = field(default_factory=list)  # seconds, resident bytes, descriptors

    def column(self, index: int) -> tuple[float, float] | None:
        """The medians of the first and of the last third of its life, warm; None when it was too short."""
        warm = [sample[index] for sample in self.samples if sample[0] - self.samples[0][0] >= WARM_SECONDS]
        third = len(warm) // 3
        return (statistics.median(warm[:third]), statistics.median(warm[-third:])) if len(warm) >= JUDGED_SAMPLES else None

    def grew(self) -> bool:
        """Whether it did."""
        memory, descriptors = self.column(1), self.column(2)
        if memory is None or descriptors is None:
            return False
        return memory[1] > GROWTH * memory[0] or descriptors[1] > GROWTH * descriptors[0] + DESCRIPTORS

    def line(self) -> str:
        """A row of the table."""
        memory, descriptors = self.column(1), self.column(2)
        lived = self.samples[-1][0] - self.samples[0][0]
        if memory is None or descriptors is None:
            return f"  {self.name:14} {lived:6.0f} s  too short to judge"
        told = f"{memory[0] / 1e6:6.1f} -> {memory[1] / 1e6:6.1f} MB ({memory[1] / memory[0]:.2f}), "
        told += f"{descriptors[0]:.0f} -> {descriptors[1]:.0f} descriptors"
        return f"  {self.name:14} {lived:6.0f} s  {told}{'  GREW' if self.grew() else ''}"


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def sample(farm: Farm, lives: dict[int, Life], began: float) -> None:
    """What each daemon holds now, and each agent's starter: the oldest of its children."""
    daemons = {"distributor": farm.distributor.pid, **{name: agent.pid for name, agent in farm.agents.items()}}
    daemons |= {f"{name} starter": min(children(pid)) for name, pid in daemons.items() if name != "distributor" and children(pid)}
    for name, pid in daemons.items():
        try:
            held = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
        lives.setdefault(pid, Life(name, pid)).samples.append((time.monotonic() - began, resident_bytes(pid), held))


# ---- faults


def freeze(farm: Farm, chance: random.Random) -> None:
    """A daemon stands still for a while."""
    process = chance.choice([farm.distributor, *farm.agents.values()])
    process.send_signal(signal.SIGSTOP)
    time.sleep(chance.uniform(0.2, 4))
    process.send_signal(signal.SIGCONT)


def faults(farm: Farm, chance: random.Random, seconds: float) -> list[Trouble]:
    """agent-1 is never killed, the distributor seldom."""
    return [
        (lambda: chance.uniform(5, 15), lambda: farm.restart_agent("agent-2")),
        (40.0, lambda: farm.restart_agent("agent-3")),
        (lambda: chance.uniform(10, 20), lambda: freeze(farm, chance)),
        (max(30.0, seconds / 2 - 5), farm.restart_distributor),
    ]


# ---- what is left


def left_running(place: Path) -> Iterator[str]:
    """Processes of the farm's, or of its jobs."""
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            links = [str(link.readlink()) for link in (folder / "fd").iterdir()]
            if MARK.encode() in (folder / "environ").read_bytes() or any(link.startswith(str(place)) for link in links):
                yield f"process {folder.name}: {(folder / 'cmdline').read_bytes().decode(errors='replace')}"
        except OSError:
            continue


def left(place: Path) -> Iterator[str]:
    """What should not be there once the farm has ended."""
    yield from left_running(place)
    yield from (f"in the work directory: {path}" for path in (place / "work").iterdir())
    remembered = list((place / "runtime").glob("dwrap/*"))  # under a name with a process's number while it is written
    strays = [path for path in remembered if not path.name.startswith(REMEMBERED) or path.suffix[1:].isdigit()]
    yield from (f"in the runtime directory: {path}" for path in strays)
    ours = {"unit.o", "unit.c", "text"}
    yield from (f"in a job's directory: {path}" for path in place.glob("thread*/*") if path.name not in ours)
    sizes = {path: path.stat().st_size for path in (place / "state").glob("assign*")}
    yield from (f"the ledger: {path} has {size} bytes" for path, size in sizes.items() if size > LEDGER_BYTES)


def run_distributor(program: str, *arguments: str) -> None:
    """The distributor with bounds that it reaches while it gets warm: what grows after that has none."""
    past.MAX_ENDED, records.HISTORY_JOBS = REMEMBERED_JOBS, REMEMBERED_JOBS  # type: ignore[misc]
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


def soak(place: Path, minutes: float, seed: int) -> list[str]:
    """What is wrong afterwards."""
    os.environ["TMPDIR"] = str(place / "work")  # the daemons' own
    for name in ("work", "runtime"):
        (place / name).mkdir(mode=0o700)
    lives: dict[int, Life] = {}
    began, chance = time.monotonic(), random.Random(seed)
    key, _, value = MARK.partition("=")
    os.environ[key] = value
    with Farm(place, agents=3, under=(sys.executable, __file__, "distributor")) as farm:
        runtime = str(place / "runtime")
        load = Load(place, farm.environment(DWRAP_FALLBACK="fail", DWRAP_PATIENCE="60", XDG_RUNTIME_DIR=runtime, TMPDIR="/tmp"))
        with ThreadPoolExecutor(THREADS) as pool:
            threads = [pool.submit(load.flow, number, seed) for number in range(THREADS)]
            with chaos((SAMPLE_SECONDS, lambda: sample(farm, lives, began)), *faults(farm, chance, minutes * 60)) as counts:
                threading.Event().wait(minutes * 60)
            load.over.set()
        problems = [f"a thread ended early: {thread.exception()!r}" for thread in threads if thread.exception()]
        idle: Callable[[], bool] = lambda: not any(agent["assigned"] for agent in farm.status()["agents"])  # noqa: E731
        eventually(idle, 30, "all slots are free in the end")
    print(f"{load.done.total()} jobs in {minutes:g} minutes: " + ", ".join(f"{name} {count}" for name, count in sorted(load.done.items())))
    print(f"ended with 125: {dict(load.unknown)}; killed: agents {counts[1] + counts[2]}, distributors {counts[4]}; frozen: {counts[3]}")
    print("\n".join(life.line() for life in lives.values() if life.column(1)))
    problems += [f"{life.name} grew" for life in lives.values() if life.grew()]
    return [*problems, *load.wrong, *left(place)]


def main(minutes: float) -> int:
    """0 when nothing is wrong."""
    place, seed = Path(tempfile.mkdtemp(prefix="dwrap-soak-")), random.SystemRandom().randrange(1, 1 << 32)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs us in the background has it ignored
    print(f"soak: {minutes:g} minutes, seed {seed}", flush=True)
    try:
        problems = soak(place, minutes, seed)
        print("\n".join(f"  WRONG: {problem}" for problem in problems[:40]) or "nothing grew, nothing is left, every job ended as its own")
        if problems:
            print((place / "farm.log").read_text("utf-8", "replace")[-5_000:])
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 1 if problems else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["distributor"]:
        run_distributor(*sys.argv[2:])
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES))
