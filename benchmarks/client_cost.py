"""What a remote job costs the desktop: CPU and memory of the wrapper beside starting /bin/true (G5).

CPU is the kernel's account of the process, fork and exec included, for both; memory is the peak of a wrapper that waits.
"""

from __future__ import annotations

import signal
import subprocess

from figures import heading, interleaved, median, peak_bytes, row, run
from surroundings import DWRAP, Farm, with_farm

PAIRS = 300
BUDGET_MS, BUDGET_RATIO, BUDGET_MB = 1.5, 2.0, 4.0


def waiting_wrapper_bytes(farm: Farm) -> int:
    """The peak resident set of a wrapper whose command is running and has printed a line."""
    script = "echo started; exec sleep 1000"
    with subprocess.Popen([DWRAP, "sh", "-c", script], env=farm.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        peak = peak_bytes(process.pid)
        process.send_signal(signal.SIGTERM)
    return peak


def main() -> None:
    """Print the rows."""
    with with_farm() as farm:
        environment = farm.environment()
        ours, other = interleaved(PAIRS, lambda: run([DWRAP, "true"], environment)[1], lambda: run(["/bin/true"], environment)[1])
        peak = waiting_wrapper_bytes(farm) / 1e6
    mine, theirs = median(ours) * 1000, median(other) * 1000
    kept = mine <= BUDGET_MS and mine <= BUDGET_RATIO * theirs
    row("desktop CPU per remote job", f"{mine:.2f} ms", f"/bin/true {theirs:.2f} ms ({mine / theirs:.2f}x)", "≤ 1.5 ms, ≤ 2x", kept=kept)
    row("memory of a wrapper", f"{peak:.2f} MB", "", "≤ 4 MB", kept=peak <= BUDGET_MB)


if __name__ == "__main__":
    heading()
    main()
