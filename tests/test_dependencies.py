"""What dwrap runs beside has none of the holes that are known in it, neither as it is installed here nor as pyproject.toml allows it.

The table was looked up by hand, for places where no service for vulnerabilities can be reached; `make audit` asks one where it can be.
"""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from typing import Any

import audit
import pytest
import zmq
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from wrapper_program import ROOT

# What each hole is called, and the first release without it. A dependency that is not here has not been looked up.
ADVISORIES: dict[str, dict[str, str]] = {
    "click": {},
    "prometheus-client": {},
    "psutil": {"CVE-2019-18874": "5.6.6"},
    "pyzmq": {"CVE-2020-15166": "20.0"},  # the first with libzmq 4.3.3 in its wheels
    "libzmq": {"CVE-2019-6250": "4.3.1", "CVE-2019-13132": "4.3.2", "CVE-2020-15166": "4.3.3"},
    "libsodium": {"older than any that is still looked after": "1.0.18"},
}


def holes(package: str, version: str) -> list[str]:
    """What is known against this version."""
    return [name for name, fixed in ADVISORIES[package].items() if Version(version) < Version(fixed)]


def lowest(requirement: Requirement) -> str:
    """The oldest version that a requirement allows; 0 when it does not say."""
    bounds = [one.version for one in requirement.specifier if one.operator in (">=", "==", "~=")]
    return max(bounds, key=Version, default="0")


def declared() -> list[Requirement]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [Requirement(line) for line in project["dependencies"]]


@pytest.mark.parametrize("requirement", declared(), ids=lambda requirement: str(requirement.name))
def test_no_release_with_a_known_hole_may_be_installed(requirement: Requirement) -> None:
    assert holes(canonicalize_name(requirement.name), lowest(requirement)) == []


@pytest.mark.parametrize(("name", "version"), audit.installed().items())
def test_none_is_installed(name: str, version: str) -> None:
    assert holes(canonicalize_name(name), version) == []


def test_the_libzmq_that_is_loaded_has_none() -> None:
    assert holes("libzmq", zmq.zmq_version()) == []


def test_the_libsodium_that_the_wrapper_is_built_with_has_none() -> None:
    source = "#include <sodium.h>\nVERSION SODIUM_VERSION_STRING\n"
    found = subprocess.run(["cc", "-E", "-P", "-"], input=source, capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip("libsodium's headers are not installed")
    assert holes("libsodium", found.stdout.split("VERSION ")[1].strip().strip('"')) == []


@pytest.mark.parametrize(
    ("package", "version", "known"),
    [
        ("psutil", "5.6.5", ["CVE-2019-18874"]),
        ("psutil", "5.6.6", []),
        ("libzmq", "4.3.2", ["CVE-2020-15166"]),
        ("libzmq", "4.2.5", ["CVE-2019-6250", "CVE-2019-13132", "CVE-2020-15166"]),
        ("pyzmq", "19.0.2", ["CVE-2020-15166"]),
        ("psutil", lowest(Requirement("psutil")), ["CVE-2019-18874"]),
        ("psutil", lowest(Requirement("psutil>=5,<6")), ["CVE-2019-18874"]),
        ("pyzmq", lowest(Requirement("pyzmq!=27,>=19")), ["CVE-2020-15166"]),
    ],
)
def test_an_older_one_is_refused(package: str, version: str, known: list[str]) -> None:
    assert holes(package, version) == known


def test_what_needs_to_be_audited() -> None:
    assert {requirement.name for requirement in declared()} <= audit.installed().keys()
    assert "pytest" not in audit.installed(), "what only developers need is not run by users"


def dependency(name: str, *vulnerable: str, skipped: str = "") -> dict[str, Any]:
    told: dict[str, Any] = {"name": name, "version": "1", "vulns": [{"id": hole, "fix_versions": ["2"]} for hole in vulnerable]}
    return {"name": name, "skip_reason": skipped} if skipped else told


def test_what_the_audit_says() -> None:
    assert audit.judge([dependency("a"), dependency("b")]) == (0, ["dwrap: no hole is known in a, b"])
    assert audit.judge([dependency("a", "X-1"), dependency("b")]) == (1, ["dwrap: a hole is known in a 1: X-1; fixed in 2"])
    status, lines = audit.judge([dependency("a", "X-1"), dependency("b", skipped="no such")])
    assert (status, lines[1]) == (1, "dwrap: NOT audited: the package index here knows no vulnerabilities of b")
    assert audit.judge([dependency("b", skipped="no such")])[0] == 0


def test_an_audit_that_cannot_be_made_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(audit.sys, "executable", shutil.which("false"))
    assert audit.main() == 0
    assert capsys.readouterr().out.startswith("dwrap: NOT audited: ")
