"""One connection and one handshake per job, as wrappers make them, beside a bare ROUTER that only echoes, in interleaved runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from figures import heading, interleaved, median, row
from surroundings import Farm, with_farm

COUNT, AT_ONCE, PAIRS = 3000, 64, 5
AGENTS, SLOTS = 10, 16
BUDGET_SHARE = 0.6
BENCHMARKS = Path(__file__).resolve().parent


def compile_load(directory: Path) -> str:
    """The load generator, built here."""
    program = directory / "connections"
    subprocess.run(["cc", "-std=c11", "-D_GNU_SOURCE", "-O2", str(BENCHMARKS / "connections.c"), "-o", str(program)], check=True)
    return str(program)


def load(program: str, what: str, address: str) -> float:
    """Completed exchanges per second."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    argv = [program, what, host, port, str(COUNT), str(AT_ONCE)]
    return float(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(farm: Farm) -> tuple[list[float], list[float]]:
    """Jobs and echoes per second."""
    simulated = [sys.executable, str(BENCHMARKS / "simulated_agents.py"), farm.address, str(AGENTS), str(SLOTS)]
    bare = [sys.executable, str(BENCHMARKS / "bare_router.py")]
    program = compile_load(farm.directory)
    with subprocess.Popen(simulated, stdout=subprocess.PIPE) as agents, subprocess.Popen(bare, stdout=subprocess.PIPE, text=True) as router:
        assert agents.stdout is not None
        assert router.stdout is not None
        agents.stdout.readline()
        address = router.stdout.readline().split()[1]
        try:
            return interleaved(PAIRS, lambda: load(program, "job", farm.address), lambda: load(program, "echo", address))
        finally:
            agents.terminate()
            router.terminate()


def main() -> None:
    """Print the row."""
    with with_farm(agents=0) as farm:
        jobs, echoes = measure(farm)
    mine, theirs = median(jobs), median(echoes)
    share = mine / theirs
    beside = f"bare ROUTER echo {theirs:,.0f}/s ({share:.0%} of it)"
    row("a connection and handshake per job", f"{mine:,.0f} jobs/s", beside, "≥ 60 %", kept=share >= BUDGET_SHARE)


if __name__ == "__main__":
    heading()
    main()
