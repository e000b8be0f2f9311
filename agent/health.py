"""Whether an agent is in its distributor's service, told in a file, and asked by `python3 -m dwrap.agent.health FILE`.

The agent writes the time into it each second in which a distributor counts on it, and removes it when none does: a probe needs no network,
no key, and sees a frozen agent too. The clock is the machine's since its start, so that nobody who sets the time makes agents ill.
Knows one file. Does not know who reads it, nor what the session does. Imports little: probes start often.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import sys
import time
from pathlib import Path
from typing import Final

FILE: Final = "/run/dwrap/agent/health"
MOST_SECONDS: Final = 10.0
log = logging.getLogger("dwrap.agent")


def boot_clock() -> float:
    """Seconds since the machine started, those it was suspended included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Health:
    """The agent's side. What cannot be written is logged once, and stops nothing: a probe then finds no file."""

    def __init__(self, file: Path) -> None:
        """Raises OSError when the file could not be kept there."""
        self._file = file
        self._fresh = file.with_name(f".{file.name}.new")
        self._has_complained = False
        file.parent.mkdir(0o755, parents=True, exist_ok=True)
        _check_is_ours(file.parent)
        file.unlink(missing_ok=True)  # of one before
        self._fresh.touch()
        self._fresh.unlink()

    def tell(self, is_serving: bool) -> None:
        """Says so in the file."""
        try:
            if is_serving:
                self._fresh.write_text(f"{boot_clock():.3f}\n", encoding="ascii")
                self._fresh.replace(self._file)
            else:
                self._file.unlink(missing_ok=True)
            self._has_complained = False
        except OSError as error:
            if not self._has_complained:
                log.warning("cannot write %s: %s; probes will say that this agent serves nobody", self._file, error.strerror)
            self._has_complained = True

    def close(self) -> None:
        """The agent has ended."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)


def _check_is_ours(folder: Path) -> None:
    """Raises OSError: who may write there, as a job may in a /run of everybody's, could put a link in the file's way, or make a healthy
    agent look ill.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise OSError(errno.EPERM, f"others may write in {folder}")


def age(file: Path) -> float | None:
    """For how many seconds nothing has been said; None when there is no file. Raises OSError, ValueError."""
    try:
        return boot_clock() - float(file.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


def main() -> int:
    """0: a distributor counts on this agent. 1: it does not, and a line says why."""
    file = Path(sys.argv[1] if len(sys.argv) > 1 else FILE)
    try:
        seconds = age(file)
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it holds no time"
        return _say(f"cannot read {file}: {cause}; give the FILE of dwrap-agent --health")
    if seconds is None:
        return _say(f"no distributor counts on this agent: there is no {file}; its log says why")
    if seconds > MOST_SECONDS:
        return _say(f"the agent has said nothing in {file} for {seconds:.0f} s: it hangs, or was killed; start it anew")
    return 0


def _say(text: str) -> int:
    print(f"dwrap: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
