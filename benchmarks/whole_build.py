"""A whole build through dwrap beside plain ninja, on one machine with equal slots: the curve over the length of a job.

The commands burn CPU and write a file, so that what differs is dwrap's own cost. Desktop and agents share the processors here,
which no real farm does: this is the worst case.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from figures import heading, interleaved, median, row
from surroundings import DWRAP, Farm, with_farm

PROCESSORS = len(os.sched_getaffinity(0))
SECONDS_OF_WORK = 4.0
LENGTHS_MS = (20, 100, 500)
PAIRS = 5
BUDGET_MS, BUDGET_RATIO = 500, 1.05


def write_build(directory: Path, prefix: str, length_ms: int) -> None:
    """A build.ninja of so many burns that they keep every processor busy for SECONDS_OF_WORK."""
    jobs = int(PROCESSORS * SECONDS_OF_WORK * 1000 / length_ms)
    lines = ["rule burn", f"  command = {prefix}{directory}/burn {length_ms} $out", *(f"build {i}.o: burn" for i in range(jobs))]
    (directory / "build.ninja").write_text("\n".join(lines) + "\n")


def build(farm: Farm, prefix: str, length_ms: int) -> float:
    """Seconds of one build from nothing."""
    place = farm.directory / "build"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    shutil.copy(farm.directory / "burn", place)
    write_build(place, prefix, length_ms)
    started = time.perf_counter()
    subprocess.run(["ninja", "-C", str(place), f"-j{PROCESSORS}"], env=farm.environment(), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print a row for each length."""
    with with_farm(agents=2, slots=max(1, PROCESSORS // 2)) as farm:
        source = Path(__file__).with_name("burn.c")
        subprocess.run(["cc", "-O2", str(source), "-o", str(farm.directory / "burn")], check=True)
        for length in LENGTHS_MS:
            ours, plain = interleaved(PAIRS, lambda: build(farm, f"{DWRAP} ", length), lambda: build(farm, "", length))  # noqa: B023
            ratio = median([a / b for a, b in zip(ours, plain, strict=True)])
            kept = ratio <= BUDGET_RATIO if length >= BUDGET_MS else None
            budget = "≤ 5 % slower" if length >= BUDGET_MS else ""
            told = f"{median(ours):.2f} s ({(ratio - 1) * 100:+.1f} %)"
            row(f"whole build, jobs of {length} ms", told, f"ninja -j{PROCESSORS} {median(plain):.2f} s", budget, kept=kept)


if __name__ == "__main__":
    heading()
    main()
