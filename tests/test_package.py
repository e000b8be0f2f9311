"""What is shipped: the sdist holds all that the wheel is made from, the wheel both C programs. (The build itself is CI's.)"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]


def build(what: str, source: Path, out: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", what, "--outdir", str(out), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build("--sdist", TOP, out)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the sdist, as an installer would."""
    out = tmp_path_factory.mktemp("from-sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    source = next(path for path in out.iterdir() if path.is_dir())
    build("--wheel", source, out)
    return next(out.glob("*.whl"))


def test_the_sdist_holds_every_file_that_is_kept(sdist: Path) -> None:
    listed = subprocess.run(["git", "-C", str(TOP), "ls-files"], capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is not a git checkout: what is kept is not known")
    with tarfile.open(sdist) as archive:
        names = {member.name.split("/", 1)[1] for member in archive if "/" in member.name}
    kept = {name for name in listed.stdout.splitlines() if not name.startswith((".ci/", ".docker")) and (TOP / name).exists()}
    assert kept <= names, f"missing from the sdist: {sorted(kept - names)}"


def test_the_wheel_from_the_sdist_holds_programs_and_rooms_and_no_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        infos = {info.filename: info for info in archive.infolist()}
    scripts = {Path(name).name: info for name, info in infos.items() if ".data/scripts/" in name}
    assert set(scripts) == {"dwrap", "dwrap-runner"}
    assert all(info.external_attr >> 16 & 0o111 for info in scripts.values()), "a program is not executable"
    assert {name.split("/")[1] for name in infos if name.startswith("dwrap/")} == {"protocol", "distributor", "agent", "control"}
    assert "dwrap/protocol/rules.def" in infos, "policy reads the rule table"
    assert not [name for name in infos if name.endswith((".c", ".h"))]
    assert re.search(r"-py3-none-(linux|manylinux)", wheel.name), wheel.name


def test_the_wheel_has_manual_pages_completion_and_units(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shared = {name.split(".data/data/share/")[1] for name in archive.namelist() if ".data/data/share/" in name}
    programs = ("dwrap", "dwrapctl", "dwrap-agent", "dwrap-distributor")
    assert {Path(name).stem for name in shared if name.startswith("man/")} == set(programs)
    assert {Path(name).name for name in shared if name.startswith("bash-completion/completions/")} == set(programs)
    assert {Path(name).stem for name in shared if name.startswith("fish/vendor_completions.d/")} == set(programs)
    assert {Path(name).name for name in shared if name.startswith("zsh/site-functions/")} == {"_dwrap", "_dwrapctl"}
    units = {"dwrap-agent.service", "dwrap-distributor.service", "agent.conf", "distributor.toml"}
    assert {Path(name).name for name in shared if name.startswith("dwrap/systemd/")} == units


def test_all_programs_tell_the_version_of_the_package() -> None:
    scripts = Path(sys.executable).parent
    for name in ("dwrap", "dwrapctl", "dwrap-distributor", "dwrap-agent"):
        said = subprocess.run([str(scripts / name), "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
        assert said.split()[-1] == PROJECT["version"] == metadata.version("dwrap"), f"{name} said {said!r}"


def test_the_editable_installs_programs_are_links_that_never_go_stale() -> None:
    scripts = Path(sys.executable).parent
    if not (TOP / "build" / "dev").exists() or TOP not in scripts.parents:
        pytest.skip("this is not an editable install in the source tree")
    for name in ("dwrap", "dwrap-runner"):
        assert os.path.realpath(scripts / name) == str(TOP / "build" / "bin" / name)


def test_what_make_clean_removes_of_the_editable_install_comes_back(tmp_path: Path) -> None:
    """With a stand-in for what sets up, which counts how often it was asked to."""
    for name in ("Makefile", "pyproject.toml", "hatch_build.py"):
        shutil.copy(TOP / name, tmp_path)
    setup = tmp_path / "bootstrap.sh"
    setup.write_text('#!/bin/sh\necho set up >>calls; mkdir -p "$2" build/dev/dwrap; touch "$2/ready"\n')
    setup.chmod(0o755)
    counts = []
    for target in ("setup", "setup", "clean", "setup"):
        subprocess.run(["make", "-C", str(tmp_path), target, "CC=true"], check=True, capture_output=True, timeout=60)
        counts.append((tmp_path / "calls").read_text().count("set up"))
    assert counts == [1, 1, 1, 2]
