"""What this agent is: processors, how many processes it may have, its roots and labels.

Knows this machine; does not know the protocol or jobs. Everything here is asked once, at the start.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_CPU_QUOTAS: Final = (  # of a container, in both layouts: the files that hold the quota and its period, in microseconds
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
MOST_PROCESSES: Final = 8192
_PROCESS_LIMITS: Final = (
    "/proc/sys/kernel/threads-max",
    "/proc/sys/kernel/pid_max",
    "/sys/fs/cgroup/pids.max",  # of a container; also in the older layout
    "/sys/fs/cgroup/pids/pids.max",
)


def processors(quotas: Sequence[Sequence[str]] = _CPU_QUOTAS) -> int:
    """Processors this process may use: its affinity, less where a control group's quota gives fewer."""
    available = len(os.sched_getaffinity(0))
    for files in quotas:
        try:
            quota, period = " ".join(Path(file).read_text(encoding="ascii") for file in files).split()
            if quota not in ("max", "-1"):  # no quota
                available = min(available, max(1, -(-int(quota) // int(period))))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return available


def most_processes() -> int:
    """How many processes and threads one user's jobs may have: so many that a build never comes near, and no more than leave the agent
    and others room.
    """
    most = MOST_PROCESSES
    for file in _PROCESS_LIMITS:
        try:
            most = min(most, max(1, int(Path(file).read_text(encoding="ascii")) // 4))
        except (OSError, ValueError):  # the kernel was built without it, or there is no limit
            continue
    return most


def check_root(text: str) -> str:
    """A root as it is registered: absolute, without links, a directory. Raises ValueError saying what is wrong."""
    if not os.path.isabs(text):
        raise ValueError(f"root {text} is not absolute; give the path at which every machine mounts the tree")
    plain = os.path.normpath(text)
    if not Path(plain).is_dir():
        raise ValueError(f"root {text} is not a directory here; mount the tree first")
    return plain


def check_label(text: str) -> str:
    """A label `K=V`. Raises ValueError saying what is wrong."""
    key, equals, _ = text.partition("=")
    if not equals or not key or "\0" in text:
        raise ValueError(f"label {text} is not of the form KEY=VALUE")
    if key == "agent":
        raise ValueError(f"label {text} is given by the agent's name; say --name instead")
    return text
