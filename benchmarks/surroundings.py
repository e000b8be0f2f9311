"""Where a benchmark runs: a temporary directory with a farm in it, removed and ended afterwards.

Knows tests/farm.py, which starts the real programs. Does not know what is measured.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from farm import DWRAP, Farm, eventually
from keyed_farm import keyed_farm

__all__ = ["DWRAP", "Farm", "eventually", "keyed_farm", "scratch", "with_farm"]


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory of our own, the working directory meanwhile."""
    with tempfile.TemporaryDirectory(prefix="dwrap-bench-") as name:
        before = Path.cwd()
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


@contextmanager
def with_farm(agents: int = 2, slots: int = 1, listen: tuple[str, ...] = ("tcp://127.0.0.1:0",)) -> Iterator[Farm]:
    """A farm on loopback TCP, as between machines."""
    with scratch() as directory, Farm(directory, agents=agents, slots=slots, listen=listen) as farm:
        yield farm
