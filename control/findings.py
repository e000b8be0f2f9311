"""What doctor's checks look at, and what they give. Knows no check."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from dwrap.protocol import mounts
from dwrap.protocol.mounts import Mount
from dwrap.protocol.probe import Probe, probe

PROGRAM_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """One line of the report: `level` is ok, warn or fail."""

    level: str
    what: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.what}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


def output_of(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """What a program prints; nothing when it cannot be run, or takes too long."""
    try:
        done = subprocess.run(  # noqa: S603 # nosec B603 # programs of the user's own PATH
            list(arguments), capture_output=True, text=True, errors="replace", timeout=PROGRAM_SECONDS, check=False, env=dict(environment),
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


@dataclass(frozen=True)
class Surroundings:
    """What the checks look at on this machine."""

    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    cwd: str = field(default_factory=os.getcwd)
    uid: int = field(default_factory=os.getuid)
    groups: frozenset[int] = field(default_factory=lambda: frozenset(os.getgroups()))
    version: str = field(default_factory=lambda: metadata.version("dwrap"))
    descriptors: int = field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    conf_files: Sequence[Path] | None = None
    mountinfo: str = field(default_factory=mounts.read)
    probe: Callable[[str], Probe | None] = probe
    output_of: Callable[[Sequence[str], Mapping[str, str]], str] = output_of

    def mount(self, path: str) -> Mount | None:
        """The mount on which a path lies."""
        return mounts.covering(mounts.parse(self.mountinfo), os.path.realpath(path))
