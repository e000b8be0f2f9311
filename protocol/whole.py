"""Small files that people and programs both keep: replaced whole or not at all, one editor at a time, and given to their directory's owner.

Knows files. Does not know what stands in them: authorized.py, keys.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LOCK_SECONDS: Final = 5.0
_STEP_SECONDS: Final = 0.01


def replace_file(file: Path, text: str) -> None:
    """Writes a file anew, mode 0600, for whom its directory belongs to; whole or not at all. Raises OSError."""
    owner = file.parent.stat()
    fd, fresh = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with open(fd, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            if os.geteuid() == 0:
                os.fchown(fd, owner.st_uid, owner.st_gid)
            os.fsync(fd)
        os.replace(fresh, file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        raise
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def locked(directory: Path, patience: float) -> Iterator[None]:
    """Of a file that nobody else can open: a lock of the directory itself, whoever may read that could hold.

    Raises OSError, TimeoutError when another editor does not end within `patience` seconds.
    """
    owner, deadline = directory.stat(), time.monotonic() + patience
    fd = _open_lock(directory / ".lock", owner)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(0, f"another editor of the files in {directory} does not end") from None
                time.sleep(_STEP_SECONDS)
        yield
    finally:
        os.close(fd)


def _open_lock(file: Path, owner: os.stat_result) -> int:
    """Made where there is none, for whom the directory belongs to; what is there already is taken as it is, and given to nobody."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(file, flags)
    except FileNotFoundError:
        pass
    try:
        fd = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(file, flags)
    if os.geteuid() == 0:
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return fd
