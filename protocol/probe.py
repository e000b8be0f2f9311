"""What a file system's server does with a directory that is made now: its clock against ours, and whose it becomes.

Leaves nothing behind. Knows nothing of mounts and of what follows from the answer.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

PREFIX: Final = ".dwrap-probe-"


@dataclass(frozen=True)
class Probe:
    """`skew_seconds`: how far the server's clock is ahead of ours, at least; negative when it is behind."""

    skew_seconds: float
    owner: int


def probe(directory: str, clock: Callable[[], float] = time.time) -> Probe | None:
    """Makes a directory in `directory` and removes it. None where that cannot be done, for want of rights or anything else.

    A directory, not a file: making one is a single request on every file system, exclusive by nature, with the server's time.
    """
    path = os.path.join(directory, PREFIX + secrets.token_hex(8))
    before = clock()
    try:
        os.mkdir(path, 0o700)
    except OSError:
        return None
    try:
        found = os.stat(path)
        return Probe(skew(before, found.st_mtime, clock()), found.st_uid)
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(path)


def skew(before: float, stamp: float, after: float) -> float:
    """How far `stamp` lies outside of the time in which it was made. A kernel's tick of 10 ms counts as no difference."""
    if stamp > after:
        return stamp - after
    return min(0.0, stamp + 0.01 - before)
