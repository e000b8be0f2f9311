"""What the journal costs the distributor for each job: reading one manifest, adding it, and what an agent lacks since its last job.

Each job writes an object and its depfile in one of 50 directories; agents take turns, so each lacks what all others did since.
"""

from __future__ import annotations

import itertools
import time

from figures import heading, median, row

from dwrap.distributor.journal import NEVER, Journal
from dwrap.protocol import manifest

AGENT_COUNTS, BUDGETED_AGENTS = (10, 200, 1_000), 200
DIRECTORIES = 50
JOBS, ROUNDS = 4_000, 5
BUDGET_US = 60.0
NOW = 1_795_390_000_123_456_789


def piece(job: int) -> bytes:
    """The manifest of one compile."""
    folder = b"/srv/src/build/CMakeFiles/target%d.dir" % (job % DIRECTORIES)
    entries = [(b"D", folder, 4_096), (b"F", folder + b"/file%d.cpp.o" % job, 45_678), (b"F", folder + b"/file%d.cpp.o.d" % job, 4_567)]
    return manifest.join(manifest.make(kind, path, 123_456, size, NOW, NOW) for kind, path, size in entries)


def measure(agents: int) -> tuple[float, float]:
    """Microseconds and KiB of entries for each job."""
    journal, marks = Journal(), [NEVER] * agents
    numbers = itertools.count()
    rounds, told = [], 0
    for _ in range(ROUNDS + 1):  # the first fills the journal
        pieces = [(job % agents, piece(job)) for job in itertools.islice(numbers, max(JOBS, agents))]
        told, started = 0, time.perf_counter()
        for agent, body in pieces:
            marks[agent], entries, _ = journal.since(marks[agent], agent)
            told += len(entries)
            journal.add(agent, manifest.parse(body))
        rounds.append((time.perf_counter() - started) / len(pieces) * 1e6)
    return median(rounds[1:]), told / len(pieces) / 1024


def main() -> None:
    """Print the rows."""
    for agents in AGENT_COUNTS:
        cost, size = measure(agents)
        budgeted = agents == BUDGETED_AGENTS
        kept = cost <= BUDGET_US if budgeted else None
        row(f"journal, {agents:,} agents", f"{cost:.0f} µs per job", f"{size:.0f} KiB an ASSIGN", "≤ 60 µs" if budgeted else "", kept=kept)


if __name__ == "__main__":
    heading()
    main()
