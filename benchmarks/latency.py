"""How much longer `dwrap true` takes than `true`, one after the other on an idle farm on loopback."""

from __future__ import annotations

from figures import heading, interleaved, median, percentile, row, run
from surroundings import DWRAP, with_farm

PAIRS = 300
BUDGET_MS = 5.0


def main() -> None:
    """Print the row."""
    with with_farm() as farm:
        environment = farm.environment()
        ours, other = interleaved(PAIRS, lambda: run([DWRAP, "true"], environment)[0], lambda: run(["/bin/true"], environment)[0])
    mine, theirs = median(ours) * 1000, median(other) * 1000
    more = mine - theirs
    measured = f"{mine:.2f} ms (p90 {percentile(ours, 0.9) * 1000:.2f}), {more:.2f} more"
    row("`dwrap true`, wall", measured, f"`true` {theirs:.2f} ms", "≤ 5 ms more", kept=more <= BUDGET_MS)


if __name__ == "__main__":
    heading()
    main()
