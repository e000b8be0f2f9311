"""Runs the benchmarks one after the other and prints one table (`make bench`); the README quotes it.

    python benchmarks/run.py [NAME...]        client_cost latency encrypted distributor_rate handshakes agent_cost whole_build journal peers
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Sequence

from figures import heading

ALL = ("client_cost", "latency", "encrypted", "distributor_rate", "handshakes", "agent_cost", "whole_build", "journal", "peers")


def main(names: Sequence[str]) -> int:
    """Run those named, or all; 2 for a name that is none."""
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"benchmarks: no benchmark {unknown[0]!r}; there are {' '.join(ALL)}", file=sys.stderr)
        return 2
    processors, kernel = len(os.sched_getaffinity(0)), platform.release().split("-")[0]
    print(f"{processors} processors, Linux {kernel}, Python {platform.python_version()}, loopback\n")
    heading()
    for name in names or ALL:
        importlib.import_module(name).main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
