"""How much memory there is here: the machine's, or a container's where that may have less.

Knows both layouts of control groups, as they are seen from inside of a container: its own group is the root. Page cache that has not been
used lately counts as free, as it does for the machine (the kernel's Documentation/admin-guide/cgroup-v2.rst, memory.stat).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import psutil

_GROUPS: Final = "/sys/fs/cgroup"
_LAYOUTS: Final = (  # the limit, what is used, where the statistics are, and the line of unused cache in them
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


class Memory(NamedTuple):
    """In bytes."""

    total: int
    available: int


def memory(groups: str = _GROUPS) -> Memory:
    """What jobs here may use together, and what is left of it."""
    machine = psutil.virtual_memory()
    found = Memory(int(machine.total), int(machine.available))
    for files in _LAYOUTS:
        try:
            limit, used, cache = _read(Path(groups), *files)
        except (OSError, ValueError):  # another layout, or no limit ("max")
            continue
        if limit < found.total:
            found = Memory(limit, min(found.available, max(0, limit - used + cache)))
    return found


def _read(groups: Path, limit: str, used: str, statistics: str, cache: str) -> tuple[int, int, int]:
    lines = (groups / statistics).read_text(encoding="ascii").splitlines()
    unused = next((int(line.split()[1]) for line in lines if line.split()[:1] == [cache]), 0)
    return int((groups / limit).read_text(encoding="ascii")), int((groups / used).read_text(encoding="ascii")), unused
