"""What both daemons owe whoever started them: log lines, one last line when they cannot start, an end when they are told so, and systemd's
notification and watchdog.

Knows the process it is in. Knows no message and no socket of dwrap's own.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import NoReturn


class _Lines(logging.Formatter):
    """Log lines as one JSON object each, so that no job's text can forge one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"at": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr() -> None:
    """Sends everything from level info on to stderr, a JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def die(text: str) -> NoReturn:
    """Ends the process with status 1 and `dwrap: TEXT` on stderr."""
    print(f"dwrap: {text}", file=sys.stderr)
    raise SystemExit(1)


def end_when_told() -> None:
    """SIGTERM ends the process, until it has a handler of its own. A container's first process would never be told: the kernel gives it
    no signal that has no handler. What came before was held for this moment, where docker/start.c started the daemon.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def notify(state: str) -> None:
    """Tells systemd `READY=1`, `STOPPING=1`, `STATUS=...`, when it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        try:
            manager.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            logging.getLogger("dwrap").warning("the service manager cannot be told %s: %s", state, error.strerror)


class Watchdog:
    """Tells systemd that a daemon's loop still turns, where the unit has WatchdogSec (sd_watchdog_enabled(3)); else does nothing."""

    def __init__(self, environment: Mapping[str, str], pid: int) -> None:
        allowed = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        self._every = int(allowed) / 2_000_000 if is_ours and allowed.isdecimal() else 0.0
        self._due = 0.0

    def beat(self) -> None:
        """For each turn of the loop, which must come round more often than half of what the unit allows."""
        now = time.monotonic()
        if self._every and now >= self._due:
            self._due = now + self._every
            notify("WATCHDOG=1")
