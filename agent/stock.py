"""What is installed here, at the start and whenever it changes, in the words of the session.

Knows the runner, which can tell (environment/). Does not know what counts. A machine is upgraded while its agent runs: from then on it
may be another environment, and jobs of the old one must not come any more. A look may take as long as rpm needs, so every look after
the first is made in a thread of its own; what that starts is not taken for something that a job left (runner.py).
"""

from __future__ import annotations

import logging
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Final

from dwrap.agent.events import Installed

LOOK_SECONDS: Final = 5.0
MAX_PACKAGES_BYTES: Final = 64 * 1024
_ANSWER_SECONDS: Final = 60.0
log = logging.getLogger("dwrap.agent")


class _Unreadable(OSError):
    """A database has changed, and cannot be read."""


class Stock:
    """What is installed, as the runner `program` tells. `root`: of another system's tree, for tests and images."""

    def __init__(self, program: Path, root: str = "") -> None:
        self._program = program
        self._root = root
        self._stamp = ""
        self._told = Installed("", "", "")
        self._found: Installed | None = None
        self._look_at = 0.0
        self._looking: threading.Thread | None = None

    def first(self) -> Installed:
        """What is installed now. Raises OSError when it cannot be told."""
        self._told = self._look() or self._told
        return self._told

    def news(self, now: float) -> Installed | None:
        """What is installed now, when that is not what was told last. Never waits. `now`: seconds on a clock that never goes back."""
        if self._looking is not None:
            if self._looking.is_alive():
                return None
            self._looking = None
            if self._found is not None and self._found != self._told:
                log.info("what is installed here has changed: %s", self._found.environment)
                self._told = self._found
                return self._told
        elif now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            looking = threading.Thread(target=self._look_again, daemon=True)
            try:
                looking.start()
                self._looking = looking
            except RuntimeError as error:  # jobs have used up the threads: there is a next time
                log.warning("cannot look at what is installed here: %s", error)
        return None

    def _look_again(self) -> None:
        try:
            self._found = self._look() or self._found
        except OSError as error:
            log.warning("%s", error.strerror)
            if isinstance(error, _Unreadable):  # what was told is no more; and the next look counts, also if all is as it was then
                self._found, self._stamp = replace(self._told, environment="", packages=""), ""

    def _look(self) -> Installed | None:
        """None when nothing has changed since the last look. Raises OSError, also when a database could not be read to its end."""
        try:
            done = subprocess.run(  # noqa: S603 # nosec B603 # our own program
                [self._program, "--environment", self._root, self._stamp], capture_output=True, check=True, timeout=_ANSWER_SECONDS
            )
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode("utf-8", "replace").strip() or str(error)
            raise _Unreadable(0, f"cannot find out what is installed here: {said}") from error
        except (subprocess.SubprocessError, OSError) as error:
            raise OSError(0, f"cannot find out what is installed here: {error}") from error
        head, _, packages = done.stdout.decode("utf-8", "replace").partition("\n\n")
        facts = dict(line.split("=", 1) for line in head.splitlines() if "=" in line)
        if "stamp" not in facts:
            raise OSError(0, "cannot find out what is installed here: the runner says nothing")
        if facts["stamp"] == self._stamp:
            return None
        self._stamp = facts["stamp"]
        text = "\n".join(sorted(packages.splitlines())).encode()[:MAX_PACKAGES_BYTES].decode("utf-8", "ignore")
        return Installed(facts.get("environment", ""), facts.get("cpu", ""), text)
