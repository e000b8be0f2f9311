"""The agent's place on this machine: a work directory of its own, and its standing as the nearest parent of orphans.

Knows the local file system and prctl. The directory is locked while its agent lives, so that one that was killed leaves nothing:
the next agent of that user removes directories that nobody holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

log = logging.getLogger("dwrap.agent")
_PREFIX: Final = "dwrap-agent-"
_PR_SET_CHILD_SUBREAPER: Final = 36


@contextmanager
def claim(parent: Path | None) -> Iterator[Path]:
    """A fresh work directory in `parent`, removed at the end. Users may pass through it, not list it. Raises OSError."""
    where = parent or Path(tempfile.gettempdir())
    where.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(where)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=where))
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        folder.chmod(0o711)
        yield folder
    finally:
        _remove(folder)
        os.close(held)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # deeper than any command needs: it stays, and the service goes on
        log.warning("%s is nested too deeply to be removed; remove it with rm -r", folder)


def _remove_abandoned(where: Path) -> None:
    for folder in where.glob(f"{_PREFIX}*-*"):
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # another user's, or gone
            continue
        try:
            # One that is not yet locked may be another agent's that is just starting: it is 0700 until it is locked.
            if os.fstat(fd).st_uid == os.geteuid() and os.fstat(fd).st_mode & 0o777 == 0o711:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(folder)
        finally:
            os.close(fd)


def become_subreaper() -> None:
    """What a dying runner leaves becomes this process's child, where it is found and killed. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become the parent of orphaned processes")
