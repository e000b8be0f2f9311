"""The agent's place on this machine: a work directory of its own, and its standing as the nearest parent of orphans.

Knows the local file system and prctl. The directory is locked while its agent lives, and its `runs` while anything of a job of that
agent does: the next agent of that name looks at those that nobody holds (former.py). Its name is the incarnation's.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

log = logging.getLogger("dwrap.agent")
PREFIX: Final = "dwrap-agent-"
RUNS: Final = "runs"
NAME: Final = "name"
IN_USE: Final = 0o711  # of a directory that is locked; before that it is 0700
_LAST_SECONDS: Final = 2.0  # for what a runner still does once its agent is done with it
_PR_SET_CHILD_SUBREAPER: Final = 36


@contextmanager
def claim(parent: Path | None, name: str) -> Iterator[Path]:
    """A fresh work directory in `parent` for the agent of that name, removed at the end unless something of a job lives or waits in it.
    Users may pass through it, not list it. Raises OSError.
    """
    where = parent or Path(tempfile.gettempdir())
    where.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=where))
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        (folder / NAME).write_text(owner(name), encoding="utf-8")
        folder.chmod(IN_USE)
        yield folder
    finally:
        if _becomes_free(folder) and not _has_records(folder):
            remove(folder)
        os.close(held)


def owner(name: str) -> str:
    """What a work directory holds of whose it is: the agent, and the boot of the machine. Records of another boot may have been lost."""
    return f"{name}\n{Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii')}"


def incarnation(folder: Path) -> str:
    """What the agent with this work directory is called among those before and after it: at most 64 bytes of a job id's."""
    return re.sub(r"[^0-9A-Za-z._-]", "_", folder.name)[:64]


def is_free(folder: Path) -> bool:
    """Does nothing live any more of any job that was started in this work directory? Raises OSError."""
    try:
        fd = os.open(folder / RUNS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # its agent never came to start one
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _becomes_free(folder: Path) -> bool:
    deadline = time.monotonic() + _LAST_SECONDS
    while not is_free(folder):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def _has_records(folder: Path) -> bool:
    """Of results that nobody has acknowledged: the next incarnation tells them."""
    return any((folder / RUNS).iterdir()) if (folder / RUNS).exists() else False


def remove(folder: Path) -> None:
    """Removes a directory, whatever is in it."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # deeper than any command needs: it stays, and the service goes on
        log.warning("%s is nested too deeply to be removed; remove it with rm -r", folder)


def become_subreaper() -> None:
    """What a dying runner leaves becomes this process's child, where it is found and killed. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become the parent of orphaned processes")
