"""Lays the Python rooms and the programs of pyproject.toml into the packages' directories, as the wheel would: install-python.py PACKAGE...

The first package gets the rooms and every program that no other package is named after. Knows pyproject.toml; builds nothing.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

ROOMS = ("protocol", "distributor", "agent", "control")
SITE = Path("usr/lib/python3/dist-packages")
PROGRAM = """#!/usr/bin/python3
import sys

from {module} import {function}

if __name__ == "__main__":
    sys.exit({function}())
"""


def main(packages: list[str]) -> None:
    """Runs in the top directory."""
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    first = Path("debian", packages[0])
    for room in ROOMS:
        unwanted = shutil.ignore_patterns("*.c", "*.h", "*.md", "*.txt", "__pycache__")
        shutil.copytree(room, first / SITE / "dwrap" / room, ignore=unwanted, dirs_exist_ok=True)
    about = first / SITE / f"dwrap-{project['version']}.dist-info"
    about.mkdir(exist_ok=True)
    facts = [("Metadata-Version", "2.1"), ("Name", "dwrap"), ("Version", project["version"]), ("Summary", project["description"])]
    facts += [("Requires-Python", project["requires-python"]), *(("Requires-Dist", one) for one in project["dependencies"])]
    (about / "METADATA").write_text("".join(f"{key}: {value}\n" for key, value in facts), "utf-8")
    for name, place in project["scripts"].items():
        module, _, function = place.partition(":")
        program = Path("debian", name if name in packages else packages[0], "usr/bin", name)
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(PROGRAM.format(module=module, function=function), "utf-8")
        program.chmod(0o755)


if __name__ == "__main__":
    main(sys.argv[1:])
