"""Build hook: compiles the two C programs (with the Makefile's own rules) and puts them among the wheel's scripts.

For an editable install it also lays build/dev/dwrap/, links that make the top-level rooms one package.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAMS = ("dwrap", "dwrap-runner")
ROOMS = ("protocol", "distributor", "agent", "control")


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if platform.system() != "Linux":
            raise SystemExit("dwrap: cannot build: this is not Linux; build it on Linux")
        root, make = Path(self.root), shutil.which("make")
        if make is None:
            raise SystemExit("dwrap: cannot build: make is not on PATH; install it")
        command = [make, "--no-print-directory", "-C", str(root), "programs"]
        subprocess.run(command, check=True)  # noqa: S603 # nosec B603 # our own Makefile
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"
        build_data["pure_python"] = False
        for program in PROGRAMS:
            build_data["shared_scripts"][f"build/bin/{program}"] = program
        if version == "editable":
            self._link_rooms(root)

    @staticmethod
    def _link_rooms(root: Path) -> None:
        package = root / "build" / "dev" / "dwrap"
        package.mkdir(parents=True, exist_ok=True)
        for room in ROOMS:
            link = package / room
            if not link.is_symlink():
                os.symlink(os.path.relpath(root / room, package), link)
