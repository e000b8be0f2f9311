"""Fetches the pristine upstream source of a Debian package and unpacks it, without touching the machine's own apt settings.

Knows apt's source lists and `.orig` archives. Does not know what is done with the source. Needs no root: package lists and
downloads live in a cache of our own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dwrap" / "sources"
FETCH_SECONDS = 300
SYSTEM_LISTS = Path("/etc/apt")


class SourceError(Exception):
    """No source could be had; the text is one line and names the remedy."""


def unpack(package: str, directory: Path) -> Path:
    """The upstream source of `package` as a fresh directory `directory/source`. Raises SourceError."""
    archive = cached(package) or fetch(package)
    target = directory / "source"
    shutil.rmtree(target, ignore_errors=True)
    staging = directory / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    with tarfile.open(archive) as packed:
        packed.extractall(staging, filter="tar")
    (inner,) = staging.iterdir()
    inner.rename(target)
    staging.rmdir()
    return target


def cached(package: str) -> Path | None:
    """The archive from an earlier run."""
    found = sorted((CACHE / package).glob("*.orig.tar.*[z2]"))
    return found[-1] if found else None


def fetch(package: str) -> Path:
    """Download the archive with apt-get. Raises SourceError."""
    if not shutil.which("apt-get"):
        raise SourceError("third-party sources come from Debian packages: apt-get is missing; run this on Debian or Ubuntu")
    where = CACHE / package
    where.mkdir(parents=True, exist_ok=True)
    options = apt_options()
    if not any((CACHE / "lists").glob("*Sources*")):
        apt([*options, "update"], where)
    apt([*options, "source", "--download-only", package], where)
    archive = cached(package)
    if archive is None:
        raise SourceError(f"apt-get source {package} gave no upstream archive: see {where}")
    return archive


def apt(arguments: list[str], where: Path) -> None:
    """Run apt-get in `where`. Raises SourceError with its last line."""
    argv = ["apt-get", "-qq", *arguments]
    done = subprocess.run(argv, cwd=where, capture_output=True, text=True, timeout=FETCH_SECONDS)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SourceError(f"apt-get {arguments[-1]} failed: {last}; check the network")


def apt_options() -> list[str]:
    """Options that make apt-get read source lists derived from the machine's own, and keep everything in our cache."""
    parts = CACHE / "apt"
    parts.mkdir(parents=True, exist_ok=True)
    (CACHE / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    lists = (*SYSTEM_LISTS.glob("sources.list.d/*.sources"), *SYSTEM_LISTS.glob("sources.list.d/*.list"), SYSTEM_LISTS / "sources.list")
    for file in lists:
        if file.exists():
            (parts / file.name).with_suffix(file.suffix if file.parent.name == "sources.list.d" else ".list").write_text(as_sources(file))
    settings = {
        "Dir::Etc::sourcelist": "/dev/null", "Dir::Etc::sourceparts": parts, "Dir::State::lists": CACHE / "lists",
        "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": "", "APT::Sandbox::User": "",
    }  # fmt: skip
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def as_sources(file: Path) -> str:
    """The list with its binary archives turned into source archives."""
    text = file.read_text()
    return re.sub(r"(?m)^Types:.*$", "Types: deb-src", text) if file.suffix == ".sources" else re.sub(r"(?m)^deb\s", "deb-src ", text)
