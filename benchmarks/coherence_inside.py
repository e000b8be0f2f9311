"""Inside the lab: what coherence costs a job, in questions to the file server and in time; started by coherence.py.

Jobs that write one file, and jobs that write five into the same directory, are spread over the agents; their difference is what an
output costs, the rest is the job's and the changed directory's. Beside them the same commands are run on the same hosts directly,
which is close-to-open alone. Questions are counted by the kernel (/proc/self/mountstats), on the agents' mounts only. Time is what
the agents report of looking before (revalidate_ms) and writing back after (flush_ms), beside a bare open and fsync.
Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "nfs"))

from hosts import DISK, DWRAP, TREE, Farm, every_host, on

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


SCRIPT = 'number=$1; shift; for output; do echo text > "$number-$output"; done'
OUTPUTS = {"one": ("1",), "many": ("1", "2", "3", "4", "5")}


@contextlib.contextmanager
def held(farm: Farm) -> Iterator[None]:
    """A live job of the same build: no agent takes the build for one that goes on after a pause, and looks at everything again."""
    argv = on(farm.desk, [DWRAP, "cat"])
    job = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=farm.environment(every_host()[1]))
    assert job.stdin is not None
    assert job.stdout is not None
    job.stdin.write(b"here\n")
    job.stdin.flush()
    job.stdout.readline()
    yield
    job.stdin.close()
    assert job.wait() == 0


def through(farm: Farm, jobs: int, outputs: tuple[str, ...]) -> tuple[collections.Counter[str], list[dict[str, object]], float]:
    """Questions, records and seconds of jobs spread over the agents, each of which writes these outputs into one directory."""
    agents = every_host()[1:]

    def run(names: Sequence[str]) -> None:
        for number, name in enumerate(names):
            done = farm.job(agents[number % len(agents)], "sh", "-c", SCRIPT, "sh", f"out/{len(outputs)}-{name}", *outputs)
            assert done.returncode == 0, done.stderr

    with held(farm):
        run([f"warm{number}" for number in range(2 * len(agents))])
        seen = {job["job"] for job in farm.jobs()}
        before = {host: questions(host) for host in agents}
        started = time.monotonic()
        run([str(number) for number in range(jobs)])
        seconds = time.monotonic() - started
        asked = asked_meanwhile(before)
        records = [job for job in farm.jobs() if job["job"] not in seen]
    assert len(records) == jobs
    return asked, records, seconds


def alone(jobs: int, outputs: tuple[str, ...]) -> collections.Counter[str]:
    """The questions of the same commands without dwrap: close-to-open."""
    agents = every_host()[1:]
    for host in agents:
        subprocess.run(on(host, ["sh", "-c", SCRIPT, "sh", f"plain/warm-{len(outputs)}-{host}", *outputs]), check=True)
    before = {host: questions(host) for host in agents}
    for number in range(jobs):
        script = ["sh", "-c", SCRIPT, "sh", f"plain/{len(outputs)}-{number}", *outputs]
        subprocess.run(on(agents[number % len(agents)], script), check=True)
    return asked_meanwhile(before)


def milliseconds(records: list[dict[str, object]]) -> list[float]:
    """Before and after the command together, for each job."""
    return [sum(float(str(job[name])) for name in ("revalidate_ms", "flush_ms")) for job in records]


def measure(jobs: int) -> dict[str, object]:
    """The figures of one lab."""
    agents = every_host()[1:]
    for directory in ("out", "plain"):
        (DISK / directory).mkdir(exist_ok=True)
    with Farm(slots=2) as farm:
        ours = {name: through(farm, jobs, outputs) for name, outputs in OUTPUTS.items()}
        plain = {name: alone(jobs, outputs) for name, outputs in OUTPUTS.items()}
    argv = on(agents[0], [sys.executable, "-c", BARE, str(TREE / "plain"), str(jobs)])
    bare = subprocess.run(argv, capture_output=True, text=True, check=True)
    more_outputs = len(OUTPUTS["many"]) - len(OUTPUTS["one"])
    asked = {name: sum(count.values()) / jobs for name, (count, _, _) in ours.items()}
    close_to_open = {name: sum(count.values()) / jobs for name, count in plain.items()}
    spent = {name: milliseconds(records) for name, (_, records, _) in ours.items()}
    more = {name: {op: (ours[name][0][op] - plain[name][op]) / jobs for op in sorted(ours[name][0] | plain[name])} for name in OUTPUTS}
    return {
        "agents": len(agents), "through": asked["one"], "alone": close_to_open["one"],
        "more": {op: round(count, 2) for op, count in more["one"].items()},
        "output_more": {op: round((more["many"][op] - more["one"].get(op, 0)) / more_outputs, 2) for op in more["many"]},
        "output": (asked["many"] - asked["one"]) / more_outputs,
        "output_alone": (close_to_open["many"] - close_to_open["one"]) / more_outputs,
        "job_ms": median(spent["one"]), "job_least_ms": min(spent["one"]),
        "output_ms": (median(spent["many"]) - median(spent["one"])) / more_outputs,
        "bare_ms": float(bare.stdout), "wall_ms": ours["one"][2] / jobs * 1000,
        "outputs": sorted({str(job["outputs"]) for _, records, _ in ours.values() for job in records}),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=120)
    print(json.dumps(measure(parser.parse_args().jobs)))


if __name__ == "__main__":
    main()
