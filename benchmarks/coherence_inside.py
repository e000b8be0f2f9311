"""Inside the lab: what coherence costs a job, in questions to the file server and in time; started by coherence.py.

Jobs that copy one file each are spread over the agents; beside them the same commands are run on the same hosts directly, which
is close-to-open alone. Questions are counted by the kernel (/proc/self/mountstats), on the agents' mounts only. Time is what the
agents report of looking before (revalidate_ms) and writing back after (flush_ms), beside a bare open and fsync.
Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "nfs"))

from hosts import DISK, TREE, Farm, every_host, on

BARE = """import os, sys, time
total = 0
for number in range(int(sys.argv[2])):
    with open(f"{sys.argv[1]}/bare{number}", "wb") as file: file.write(bytes(1000))
    started = time.perf_counter()
    fd = os.open(f"{sys.argv[1]}/bare{number}", os.O_RDONLY); os.fsync(fd); os.close(fd)
    total += time.perf_counter() - started
print(total / int(sys.argv[2]) * 1000)
"""


def questions(host: str) -> collections.Counter[str]:
    """How often this host's mount has asked what."""
    told = subprocess.run(on(host, ["cat", "/proc/self/mountstats"], cwd=Path("/")), capture_output=True, text=True, check=True).stdout
    ours = next(part for part in told.split("device ") if f"mounted on {TREE} with fstype nfs" in part)
    return collections.Counter({name: int(count) for name, count in re.findall(r"^\s+([A-Z_]+): (\d+) ", ours.split("per-op")[1], re.M)})


def asked_meanwhile(before: dict[str, collections.Counter[str]]) -> collections.Counter[str]:
    total: collections.Counter[str] = collections.Counter()
    for host, count in before.items():
        total += questions(host) - count
    return total


def measure(jobs: int) -> dict[str, object]:
    """The figures of one lab."""
    agents = every_host()[1:]
    for directory in ("out", "plain"):
        (DISK / directory).mkdir(exist_ok=True)
    (DISK / "source").write_bytes(bytes(1000))
    os.utime(DISK / "source", (time.time() - 3600,) * 2)  # as sources mostly are: one that is new is read anew
    with Farm(slots=1) as farm:
        for host in agents:  # neither the first look at anything, nor what starting costs, is counted
            farm.job(host, "cp", "source", f"out/warm-{host}")
            subprocess.run(on(host, ["cp", "source", f"plain/warm-{host}"]), check=True)
        seen = {job["job"] for job in farm.jobs()}
        before = {host: questions(host) for host in agents}
        started = time.monotonic()
        for number in range(jobs):
            done = farm.job(agents[number % len(agents)], "cp", "source", f"out/{number}")
            assert done.returncode == 0, done.stderr
        seconds = time.monotonic() - started
        through = asked_meanwhile(before)
        records = [job for job in farm.jobs() if job["job"] not in seen]
        before = {host: questions(host) for host in agents}
        for number in range(jobs):
            subprocess.run(on(agents[number % len(agents)], ["cp", "source", f"plain/{number}"]), check=True)
        alone = asked_meanwhile(before)
        assert len(records) == jobs
    argv = on(agents[0], [sys.executable, "-c", BARE, str(TREE / "plain"), str(jobs)])
    bare = subprocess.run(argv, capture_output=True, text=True, check=True)
    return {
        "agents": len(agents), "through": sum(through.values()) / jobs, "alone": sum(alone.values()) / jobs,
        "more": {name: round((through[name] - alone[name]) / jobs, 2) for name in sorted(through | alone) if through[name] != alone[name]},
        "revalidate_ms": sum(job["revalidate_ms"] for job in records) / jobs, "flush_ms": sum(job["flush_ms"] for job in records) / jobs,
        "bare_ms": float(bare.stdout), "job_ms": seconds / jobs * 1000, "outputs": sorted({job["outputs"] for job in records}),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=120)
    print(json.dumps(measure(parser.parse_args().jobs)))


if __name__ == "__main__":
    main()
