"""What a remote job costs the desktop: CPU and memory of the wrapper beside starting /bin/true (G5), and CPU when it is encrypted.

CPU is the kernel's account of the process, fork and exec included, for both; memory is the peak of a wrapper that waits.
"""

from __future__ import annotations

import signal
import subprocess

from figures import heading, interleaved, median, peak_bytes, row, run
from surroundings import DWRAP, Farm, eventually, keyed_farm, scratch, with_farm

PAIRS = 300
BUDGET_MS, BUDGET_RATIO, BUDGET_MB = 1.5, 2.0, 4.0
BUDGET_ENCRYPTED_MS = 2.5


def waiting_wrapper_bytes(farm: Farm) -> int:
    """The peak resident set of a wrapper whose command is running and has printed a line."""
    script = "echo started; exec sleep 1000"
    with subprocess.Popen([DWRAP, "sh", "-c", script], env=farm.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        peak = peak_bytes(process.pid)
        process.send_signal(signal.SIGTERM)
    return peak


def encrypted() -> None:
    """Print the row of a job over CurveZMQ: four key exchanges, beside none."""
    with scratch() as directory, keyed_farm(directory) as farm:
        farm.dwrapctl("key", "new", "client")
        farm.dwrapctl("key", "trust", farm.address, farm.server)
        farm.allow("desk", farm.key())
        eventually(lambda: farm.dwrap("true").returncode == 0)
        in_clear = f"ipc://{directory}/d"
        ours, other = interleaved(
            PAIRS, lambda: run([DWRAP, farm.address, "true"], farm.env)[1], lambda: run([DWRAP, in_clear, "true"], farm.env)[1]
        )
    mine, theirs = median(ours) * 1000, median(other) * 1000
    kept = mine <= BUDGET_ENCRYPTED_MS
    row("the same, encrypted", f"{mine:.2f} ms", f"in clear, Unix socket {theirs:.2f} ms", f"≤ {BUDGET_ENCRYPTED_MS} ms", kept=kept)


def main() -> None:
    """Print the rows."""
    with with_farm() as farm:
        environment = farm.environment()
        ours, other = interleaved(PAIRS, lambda: run([DWRAP, "true"], environment)[1], lambda: run(["/bin/true"], environment)[1])
        peak = waiting_wrapper_bytes(farm) / 1e6
    mine, theirs = median(ours) * 1000, median(other) * 1000
    kept = mine <= BUDGET_MS and mine <= BUDGET_RATIO * theirs
    row("desktop CPU per remote job", f"{mine:.2f} ms", f"/bin/true {theirs:.2f} ms ({mine / theirs:.2f}x)", "≤ 1.5 ms, ≤ 2x", kept=kept)
    encrypted()
    row("memory of a wrapper", f"{peak:.2f} MB", "", "≤ 4 MB", kept=peak <= BUDGET_MB)


if __name__ == "__main__":
    heading()
    main()
