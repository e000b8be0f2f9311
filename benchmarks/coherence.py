"""What coherence costs a job on real NFS: questions to the server and time for each output, on three kinds of server, 2 to 8 agents.

    python benchmarks/coherence.py      as root; boots a lab (tests/nfs/lab.py) for each row, about ten minutes

Each lab has one slow processor for all of its hosts: the times are upper bounds, since whoever else has
something to do takes his turn of 10 ms in them; the numbers of questions are exact. Knows the
budgets of the design; coherence_inside.py measures.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

from figures import heading, row

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "nfs"))

import lab

AGENTS = (2, 4, 8)
JOBS = 60
QUESTIONS, MILLISECONDS = 2.0, 1.5


def measured(server: str, agents: int) -> dict[str, object]:
    """The figures from inside a lab of that shape. Raises SystemExit when there are none."""
    printed = io.StringIO()
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    inside = [sys.executable, str(Path(__file__).with_name("coherence_inside.py")), "--jobs", str(JOBS)]
    shape = lab.Shape(server, ("desk", *(f"a{number + 1}" for number in range(agents))))
    if lab.run(inside, shape, environment=environment, output=printed):
        sys.exit(f"coherence: the lab failed:\n{printed.getvalue()[-2000:]}")
    figures: dict[str, object] = json.loads(printed.getvalue().splitlines()[-1])
    return figures


def show(server: str, told: dict[str, object]) -> None:
    """Three rows: questions for an output, questions for a job with one output, time for an output."""
    names = ("output", "output_alone", "through", "alone", "output_ms", "job_ms", "job_least_ms", "bare_ms")
    output, output_alone, through, alone, output_ms, job_ms, least, bare = (float(str(told[name])) for name in names)
    label = f"{server}, {told['agents']} agents"
    row(f"questions an output, {label}", f"{output:.1f}", f"without dwrap {output_alone:.1f}", f"≤ {QUESTIONS:g} more",
        kept=round(output - output_alone, 1) <= QUESTIONS)  # fmt: skip
    counts = told["more"] if isinstance(told["more"], dict) else {}
    more = ", ".join(f"{name} {count:+}" for name, count in counts.items() if abs(count) >= 0.05)
    row(f"questions a job, its directory changed by others, {label}", f"{through:.1f} ({more})", f"without dwrap {alone:.1f}",
        "no more with 8 agents")  # fmt: skip
    row(f"ms an output, {label}", f"{output_ms:.2f} (a job with one: {job_ms:.1f}, at least {least:.0f})", f"open + fsync {bare:.2f}",
        f"≤ {MILLISECONDS:g} more", kept=output_ms - bare <= MILLISECONDS)  # fmt: skip


def main() -> None:
    """A row for each kind of server and number of agents."""
    if why := lab.missing("ganesha"):
        print(f"coherence: not measured: {why}", file=sys.stderr)
        return
    for server in lab.SERVERS:
        for agents in AGENTS:
            show(server, measured(server, agents))


if __name__ == "__main__":
    heading()
    main()
