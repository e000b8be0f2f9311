"""pip-audit over what dwrap needs to run: ends with 1 when a hole is known in what is installed, and says so when nobody could be asked.

Knows pip-audit's command line and its JSON. Does not know advisories: tests/test_dependencies.py has those that were looked up by hand.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

SECONDS = 60


def installed(root: str = "dwrap") -> dict[str, str]:
    """What is installed of what this package needs to run, and of what that needs: name to version."""
    found: dict[str, str] = {}
    wanted = [root]
    while wanted:
        for line in importlib.metadata.requires(wanted.pop()) or ():
            needed = Requirement(line)
            if needed.name not in found and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
                found[needed.name] = importlib.metadata.version(needed.name)
                wanted.append(needed.name)
    return found


def asked(packages: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """pip-audit's word on each of them. Raises RuntimeError when it cannot tell."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "requirements.txt")
        file.write_text("".join(f"{name}=={version}\n" for name, version in packages.items()))
        how = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json"]
        command = [sys.executable, "-m", "pip_audit", "-r", str(file), *how]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"pip-audit had no answer within {SECONDS} s") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(next(iter(done.stderr.strip().splitlines()[-1:]), "pip-audit said nothing")) from None
    return list(answer["dependencies"])


def judge(told: Iterable[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """The status to end with, and what to say, of each hole and of what nobody knows."""
    known = list(told)
    holes = [f"{one['name']} {one['version']}: {hole['id']}; fixed in {', '.join(hole['fix_versions']) or 'no release yet'}"
             for one in known for hole in one.get("vulns", ())]  # fmt: skip
    unknown = [str(one["name"]) for one in known if "skip_reason" in one]
    lines = [f"dwrap: a hole is known in {hole}" for hole in holes]
    if unknown:
        lines.append(f"dwrap: NOT audited: the package index here knows no vulnerabilities of {', '.join(sorted(unknown))}")
    if not lines:
        lines.append(f"dwrap: no hole is known in {', '.join(sorted(str(one['name']) for one in known))}")
    return (1 if holes else 0), lines


def main() -> int:
    """Asks and says."""
    try:
        status, lines = judge(asked(installed()))
    except RuntimeError as error:
        status, lines = 0, [f"dwrap: NOT audited: {error}"]
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
