"""The loads in C (connections.c, submitter.c, agents.c): compiled when first needed, run, and their figures read.

In C so that they leave the processors, which they share with it, to what is measured. Knows their command lines only.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

BENCHMARKS = Path(__file__).resolve().parent


class Paced(NamedTuple):
    """What a submitter measured."""

    rate: float
    median_ms: float
    p99_ms: float


class Loads:
    """The programs, in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def connections(self, what: str, address: str, count: int, at_once: int) -> float:
        """Completed exchanges per second, each on a connection of its own. `what`: echo, talk, job."""
        return float(self._run("connections", what, *_host_port(address), str(count), str(at_once)))

    def flood(self, address: str, jobs: int, under_way: int) -> Paced:
        """Jobs over persistent connections, `under_way` at any time."""
        return Paced(*map(float, self._run("submitter", "flood", *_host_port(address), str(jobs), str(under_way)).split()))

    def paced(self, address: str, jobs: int, rate: float) -> Paced:
        """Jobs over persistent connections, `rate` a second."""
        return Paced(*map(float, self._run("submitter", "paced", *_host_port(address), str(jobs), str(rate)).split()))

    @contextmanager
    def agents(self, address: str, count: int, slots: int) -> Iterator[None]:
        """That many agents are connected meanwhile, each of which finishes every job at once."""
        argv = [self._program("agents"), *_host_port(address), str(count), str(slots)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                if process.stdout.readline() != b"ready\n":
                    sys.exit(f"benchmark: {count} simulated agents did not register; see the message above")
                yield
            finally:
                process.terminate()

    def _run(self, name: str, *arguments: str) -> str:
        return subprocess.run([self._program(name), *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout

    def _program(self, name: str) -> str:
        program = self._directory / name
        if not program.exists():
            subprocess.run(["cc", "-std=c11", "-D_GNU_SOURCE", "-O2", str(BENCHMARKS / f"{name}.c"), "-o", str(program)], check=True)
        return str(program)


def _host_port(address: str) -> tuple[str, str]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host, port
