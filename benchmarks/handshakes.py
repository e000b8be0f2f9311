"""One connection and one handshake per job, as wrappers make them, beside a bare ROUTER that only echoes, in interleaved runs.

The first row's ROUTER echoes one message per connection; the second's echoes every message of a job, so that the two rows
tell apart what the messages cost and what the scheduling does (and the way to the agent and back, which has no echo).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from figures import cpu_seconds, heading, interleaved, median, row
from loads import Loads
from surroundings import with_farm

COUNT, AT_ONCE, PAIRS = 3000, 64, 5
AGENTS, SLOTS = 10, 16
BUDGET_SHARE = 0.6
BARE_ROUTER = Path(__file__).with_name("bare_router.py")


@contextmanager
def bare_router() -> Iterator[tuple[str, int]]:
    """The address of a ROUTER that echoes, and its process id."""
    with subprocess.Popen([sys.executable, str(BARE_ROUTER)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[1], process.pid
        finally:
            process.terminate()


def main() -> None:
    """Print the rows."""
    with with_farm(agents=0) as farm, bare_router() as (echoes_at, router):
        loads, distributor = Loads(farm.directory), farm.distributor.pid
        with loads.agents(farm.address, AGENTS, SLOTS):
            for what, of in (("echo", "one echo each"), ("talk", "each of a job's messages")):
                used = {pid: -cpu_seconds(pid) for pid in (distributor, router)}
                jobs, echoes = interleaved(
                    PAIRS,
                    lambda: loads.connections("job", farm.address, COUNT, AT_ONCE),
                    partial(loads.connections, what, echoes_at, COUNT, AT_ONCE),
                )
                cost = {pid: (used[pid] + cpu_seconds(pid)) / COUNT / PAIRS * 1000 for pid in used}
                mine, theirs = median(jobs), median(echoes)
                ours = f"{mine:,.0f} jobs/s, its CPU {cost[distributor]:.3f} ms per job"
                beside = f"bare ROUTER, {of}: {theirs:,.0f}/s, its CPU {cost[router]:.3f} ms ({mine / theirs:.0%} of it)"
                strict = what == "echo"
                kept = mine / theirs >= BUDGET_SHARE if strict else None
                label = "a connection and handshake per job" + ("" if strict else ", beside as many messages")
                row(label, ours, beside, "≥ 60 %" if strict else "", kept=kept)


if __name__ == "__main__":
    heading()
    main()
