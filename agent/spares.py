"""What an agent sets aside of its disk while there is room: jobs that fill it keep nobody else's from being started and recorded.

Knows files and directories; does not know which of them a runner needs (spare.c takes them). A file that comes back is used again
without ever giving up its blocks: whoever fills the disk waits for nothing else. A directory was a user's, and does not come back.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

FOLDER: Final = "spare"
FILE_BYTES: Final = 64 * 1024  # RUNFILE_BYTES in run.h


class Spares:
    """`most` files and as many directories in `work`/spare, for as many jobs at once."""

    def __init__(self, work: Path, most: int) -> None:
        self._folder = work / FOLDER
        self._most = most
        if most:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self.refill()

    def _missing(self, kind: str) -> list[Path]:
        there = {entry.name for entry in self._folder.iterdir()} if self._most else set()
        return [self._folder / f"{kind}-{number}" for number in range(self._most) if f"{kind}-{number}" not in there]

    def refill(self) -> None:
        """Makes what is missing, as far as there is room now."""
        try:
            for path in self._missing("directory"):
                path.mkdir(mode=0o700)
            for path in self._missing("file"):
                _set_aside(path)
        except OSError:  # as long as that lasts, it is what the others are for
            return

    def take_back(self, record: Path) -> bool:
        """Keeps the file for another job, if one is missing. False when it is still where it was, or there is none."""
        try:
            missing = self._missing("file")
            if not missing or record.stat().st_size < FILE_BYTES:
                return False
            with record.open("r+b") as file:
                file.write(bytes(16))  # what it says is over
            record.rename(missing[0])
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Gives it all up."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _set_aside(path: Path) -> None:
    fresh = path.with_name("new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, FILE_BYTES)
        fresh.rename(path)
    except OSError:
        fresh.unlink()  # it holds what it could get
        raise
    finally:
        os.close(fd)
