"""Jobs a second through the distributor with 10, 200 and 1,000 simulated agents, its CPU per job, and latency at 70 % of the rate.

The loads run on the same processors; the distributor's own CPU per job is therefore printed beside the rate. Two latencies
are told: at 70 % of what was just measured, which the budget is about, and at 70 % of the 2,000 jobs/s that are promised.
"""

from __future__ import annotations

from typing import NamedTuple

from figures import cpu_seconds, heading, row
from loads import Loads
from surroundings import with_farm

AGENT_COUNTS, BUDGETED_AGENTS = (10, 200, 1000), 200
SLOTS = 8
JOBS = 20_000
WARM_UP_JOBS = 2_000
UNDER_WAY = 64
PACED_SECONDS = 5.0
BUDGET_RATE, BUDGET_P99_MS, BUDGET_COST_RATIO = 2000, 20.0, 1.5


class Measured(NamedTuple):
    """What one number of agents gave."""

    rate: float
    cost_ms: float
    p99_ms: float
    p99_as_promised_ms: float


def measure(agents: int) -> Measured:
    """Flood, then the two paces."""
    with with_farm(agents=0) as farm:
        loads, distributor = Loads(farm.directory), farm.distributor.pid
        with loads.agents(farm.address, agents, SLOTS):
            loads.flood(farm.address, WARM_UP_JOBS, UNDER_WAY)
            before = cpu_seconds(distributor)
            flood = loads.flood(farm.address, JOBS, UNDER_WAY)
            cost = (cpu_seconds(distributor) - before) / JOBS * 1000
            p99s = [loads.paced(farm.address, int(pace * PACED_SECONDS), pace).p99_ms for pace in (0.7 * flood.rate, 0.7 * BUDGET_RATE)]
    return Measured(flood.rate, cost, *p99s)


def main() -> None:
    """Print the rows."""
    costs: dict[int, float] = {}
    for agents in AGENT_COUNTS:
        found = measure(agents)
        costs[agents] = found.cost_ms
        budgeted = agents == BUDGETED_AGENTS
        kept = found.rate >= BUDGET_RATE if budgeted else None
        told, cost = f"{found.rate:,.0f} jobs/s", f"its CPU {found.cost_ms:.3f} ms per job"
        row(f"distributor, {agents:,} agents", told, cost, "≥ 2,000 jobs/s" if budgeted else "", kept=kept)
        kept = found.p99_ms <= BUDGET_P99_MS if budgeted else None
        promised = f"at {0.7 * BUDGET_RATE:,.0f} jobs/s {found.p99_as_promised_ms:.1f} ms"
        row(f"p99 at 70 % of that rate, {agents:,} agents", f"{found.p99_ms:.1f} ms", promised, "≤ 20 ms" if budgeted else "", kept=kept)
    ratio = costs[AGENT_COUNTS[-1]] / costs[AGENT_COUNTS[0]]
    row("cost per job, 1,000 agents", f"{ratio:.2f}x", "10 agents", "≤ 1.5x", kept=ratio <= BUDGET_COST_RATIO)


if __name__ == "__main__":
    heading()
    main()
