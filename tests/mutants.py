"""Mutation tests of the cores: a small defect planted in them (mutation.py) makes a test fail, or survivors.txt says why it does not.

    python tests/mutants.py [--quick] [CORE...]  (as distributor/fleet.py; without, all of them; quick: without the simulation)

The tests are imported and collected once, and run once to see which of them enter which function. Each mutant is planted in a process of
its own, forked from there: the tests that enter its function are run, the shortest first, then the simulation with fixed seeds. Nothing is
left to chance: two runs say the same. Exits with 1 when a mutant survived that is not explained. Knows the cores, their tests and
survivors.txt, by name.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import Any, Final

import hypothesis
import pytest
from _pytest.runner import runtestprotocol
from mutation import Core, Mutant
from simulation import run_seeds

TESTS: Final = Path(__file__).parent
CORES: Final = tuple(
    [f"distributor/{name}.py" for name in ("fleet", "missing", "submitters", "jobs", "past", "ledger", "standing", "placement", "roster")]
    + [f"agent/{name}.py" for name in ("session", "attempt", "registration")]
)
TEST_FILES: Final = (
    *("scheduler", "fleet", "fleet_results", "jobs", "hostile", "standing", "ledger", "placement"),
    *("session", "attempt", "session_views", "session_edges"),
)
SEEDS: Final = range(150)
os.environ["FIRST_SEED"] = "0"
CPU_SECONDS: Final = 40  # of a mutant's process: one that needs more goes round in circles, which is noticed
MEMORY_BYTES: Final = 4 << 30


def explanations() -> dict[str, str]:
    """survivors.txt: mutants, each a line, and below those that have it in common, indented, why none of them is a defect."""
    explained: dict[str, str] = {}
    keys: list[str] = []
    for line in (TESTS / "survivors.txt").read_text("utf-8").splitlines():
        if line.startswith(" "):
            explained.update(dict.fromkeys(keys, line.strip()))
            keys.clear()
        elif line and not line.startswith("#"):
            keys.append(line)
    return explained


class Mutation:
    """A pytest plugin: instead of running the tests once it runs them for each mutant."""

    def __init__(self, cores: list[Core], seeds: range, explained: Collection[str]) -> None:
        self.cores = cores
        self._seeds = seeds
        self._explained = explained  # these need no simulation, which takes the longest
        self.survivors: list[Mutant] = []
        self.total = 0
        self._entering: defaultdict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
        self._files = {core.file: core.name for core in cores}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """All of it."""
        self._learn(session.items)
        self._judge([mutant for core in self.cores for mutant in core.mutants])
        return True

    def _learn(self, items: list[pytest.Item]) -> None:
        """Which tests enter which function, the shortest first."""
        costs: list[tuple[float, int, set[tuple[str, str]]]] = []
        for at, item in enumerate(items):
            entered: set[tuple[str, str]] = set()
            began = time.process_time()
            if not passes(item):
                raise SystemExit(f"{item.nodeid} fails as it is")
            cost = time.process_time() - began
            sys.setprofile(lambda frame, what, _, entered=entered: self._note(frame, what, entered))
            passes(item)
            sys.setprofile(None)
            costs.append((round(cost, 2), at, entered))
        for _, at, entered in sorted(costs, key=lambda one: one[:2]):
            for function in entered:
                self._entering[function].append(items[at])
            self._entering["", ""].append(items[at])

    def _note(self, frame: FrameType, what: str, entered: set[tuple[str, str]]) -> None:
        core = self._files.get(frame.f_code.co_filename)
        if core is not None and what == "call":
            entered.add((core, frame.f_code.co_qualname))

    def _judge(self, mutants: list[Mutant]) -> None:
        """Plants them all, as many at once as there are processors."""
        self.total = len(mutants)
        running: dict[int, Mutant] = {}
        for mutant in [*mutants, *[None] * (os.cpu_count() or 1)]:
            if running and (mutant is None or len(running) >= (os.cpu_count() or 1)):
                pid, status = os.wait()
                ended = running.pop(pid)
                if status == 0:
                    self.survivors.append(ended)
            if mutant is not None:
                pid = os.fork()
                if pid == 0:
                    os._exit(0 if self._survives(mutant) else 1)
                running[pid] = mutant
        order = {mutant: at for at, mutant in enumerate(mutants)}
        self.survivors.sort(key=order.__getitem__)

    def _survives(self, mutant: Mutant) -> bool:
        """In a process of its own: plants it, and says whether nothing notices."""
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        core = next(core for core in self.cores if core.name == mutant.core)
        try:
            core.plant(mutant)
        except BaseException as error:
            print(f"{mutant.key}: cannot be planted: {error!r}", file=sys.stderr)
            return False
        items = self._entering.get((mutant.core, mutant.where), []) if core.is_in_function(mutant) else self._entering["", ""]
        if not all(passes(item) for item in items):
            return False
        try:
            run_seeds(self._seeds if mutant.key not in self._explained else ())
        except BaseException:
            return False
        return True


def passes(item: pytest.Item) -> bool:
    """Runs a test."""
    with contextlib.redirect_stdout(io.StringIO()):
        return not any(report.failed for report in runtestprotocol(item, nextitem=None, log=False))


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    names = [name for name in arguments if name != "--quick"] or CORES
    seeds = SEEDS if "--quick" not in arguments else SEEDS[:0]
    random.SystemRandom = lambda: random.Random(0)  # type: ignore[assignment,misc,return-value]  # tests that roll dice roll the same
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, deadline=None, phases=phases)
    hypothesis.settings.load_profile("mutants")
    explained = explanations()
    mutation = Mutation([Core(name) for name in names], seeds, explained)
    options = ["-s", "--noconftest", "-o", "addopts=", "-o", "tmp_path_retention_policy=failed"]
    options += [part for plugin in ("terminal", "cacheprovider", "xdist") for part in ("-p", f"no:{plugin}")]
    plugins: list[Any] = [mutation]
    pytest.main([*options, *(str(TESTS / f"test_{name}.py") for name in TEST_FILES)], plugins)
    unexplained = [mutant for mutant in mutation.survivors if mutant.key not in explained]
    for mutant in unexplained:
        print(f"{mutant.core}:{mutant.line}: {mutant.where}: {mutant.what}")
    in_vain = [key for key in explained.keys() - {mutant.key for mutant in mutation.survivors} if key.split(" ")[0] in names]
    for key in sorted(in_vain):
        print(f"survivors.txt explains what is no survivor: {key}")
    survived = len(mutation.survivors)
    print(f"{mutation.total} mutants, {mutation.total - survived} killed, {survived} survived, {len(unexplained)} unexplained")
    return 1 if unexplained or not mutation.total else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
