"""What root may do here: in a container it is often less than it takes to run the jobs of others, and then each of them would fail alone.

Knows Linux's capabilities. Does not know who takes them away; docs/docker.md says how a container is given them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

NEEDED: Final = {  # the number of each, and what root needs it for
    "CHOWN": 0,  # a job's private TMPDIR belongs to its user
    "KILL": 5,  # the end of a job that does not end by itself
    "SETGID": 6,  # becoming the user
    "SETUID": 7,
}
SYS_PTRACE: Final = 19  # reading the arguments of a job's system calls
_STATUS: Final = Path("/proc/self/status")


def check(uid: int, records: bool, status: str | None = None) -> str:
    """A warning about what will be worse, or nothing. Raises ValueError when root cannot run the jobs of others at all."""
    held = _held(_STATUS.read_text(encoding="ascii", errors="replace") if status is None else status)
    if uid != 0 or held is None:
        return ""
    missing = [name for name, number in NEEDED.items() if not held >> number & 1]
    if missing:
        raise ValueError(
            f"root may not do here what jobs of others need ({', '.join(missing)}); "
            "give those capabilities (cap_add of a container), or run the agent as the one user whose jobs it is to run"
        )
    if records and not held >> SYS_PTRACE & 1:
        return "root lacks SYS_PTRACE here: what jobs write is told only roughly; give it that capability (cap_add of a container)"
    return ""


def _held(status: str) -> int | None:
    """The set of capabilities in effect; None where the kernel does not tell."""
    found = [line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")]
    return int(found[0], 16) if found else None
