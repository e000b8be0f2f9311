"""Jobs a second through the distributor with 10, 200 and 1,000 simulated agents, its CPU per job, and latency at 70 % of the rate.

The loads run on the same processors; the distributor's own CPU per job is therefore printed beside the rate.
"""

from __future__ import annotations

from figures import cpu_seconds, heading, row
from loads import Loads
from surroundings import with_farm

AGENT_COUNTS = (10, 200, 1000)
SLOTS = 8
JOBS = 20_000
WARM_UP_JOBS = 2_000
UNDER_WAY = 64
PACED_SECONDS = 5.0
BUDGET_RATE, BUDGET_P99_MS, BUDGET_COST_RATIO = 2000, 20.0, 1.5


def measure(agents: int) -> tuple[float, float, float]:
    """Jobs a second, distributor CPU ms per job, p99 in ms at 70 % of that rate."""
    with with_farm(agents=0) as farm:
        loads, distributor = Loads(farm.directory), farm.distributor.pid
        with loads.agents(farm.address, agents, SLOTS):
            loads.flood(farm.address, WARM_UP_JOBS, UNDER_WAY)
            before = cpu_seconds(distributor)
            flood = loads.flood(farm.address, JOBS, UNDER_WAY)
            cost = (cpu_seconds(distributor) - before) / JOBS * 1000
            pace = 0.7 * flood.rate
            paced = loads.paced(farm.address, int(pace * PACED_SECONDS), pace)
    return flood.rate, cost, paced.p99_ms


def main() -> None:
    """Print the rows."""
    costs: dict[int, float] = {}
    for agents in AGENT_COUNTS:
        rate, costs[agents], p99 = measure(agents)
        budgeted = agents == 200
        told = f"{rate:,.0f} jobs/s, p99 at 70 % {p99:.1f} ms"
        kept = rate >= BUDGET_RATE and p99 <= BUDGET_P99_MS if budgeted else None
        budget = "≥ 2,000 jobs/s, p99 ≤ 20 ms" if budgeted else ""
        row(f"distributor, {agents:,} agents", told, f"its CPU {costs[agents]:.3f} ms per job", budget, kept=kept)
    ratio = costs[AGENT_COUNTS[-1]] / costs[AGENT_COUNTS[0]]
    row("cost per job, 1,000 agents", f"{ratio:.2f}x", "10 agents", "≤ 1.5x", kept=ratio <= BUDGET_COST_RATIO)


if __name__ == "__main__":
    heading()
    main()
