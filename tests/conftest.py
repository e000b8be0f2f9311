"""What tests share: a farm of the real programs, and an environment in which nothing of the user's interferes."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from farm import CONTROLLERS, DWRAP, Farm

PROGRAMS = Path(DWRAP).parent


def pytest_configure() -> None:
    """Signals as a terminal's shell hands them down: one that runs us in the background ignores these, and commands inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where NOTHING_SKIPPED is set, as .ci/run does for what it has just installed everything for, a test that skips has failed."""
    report = yield
    if report.skipped and os.environ.get("NOTHING_SKIPPED") and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"it was skipped: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the user's own, no log in the user's home; our programs first on PATH."""
    for name in list(os.environ):
        if name.startswith(("DWRAP_", "FORCE_", "CCACHE_")) or name in ("MAKEFLAGS", "MFLAGS", "XDG_RUNTIME_DIR", "NOTIFY_SOCKET"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config-home"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(PROGRAMS), str(venv_scripts()), os.environ["PATH"]]))


@pytest.fixture
def narrow() -> Iterator[Path]:
    """A control group of little memory, of either version."""
    parent, limit = (CONTROLLERS / "memory", "memory.limit_in_bytes") if (CONTROLLERS / "memory").is_dir() else (CONTROLLERS, "memory.max")
    group = parent / f"dwrap-narrow-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text("30M")
    except OSError as error:
        pytest.skip(f"no memory limits to set here: {error}")
    yield group
    group.rmdir()


def venv_scripts() -> Path:
    """Where this interpreter's installed programs are."""
    import sysconfig

    return Path(sysconfig.get_path("scripts"))


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path leaves room for a Unix socket's name (tmp_path often does not)."""
    directory = Path(tempfile.mkdtemp(prefix="dwrap-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def farm(short_dir: Path) -> Iterator[Farm]:
    """Two agents of two slots, over ipc and loopback TCP; what the daemons logged is printed with a failing test."""
    with Farm(short_dir) as running:
        yield running
    print((short_dir / "farm.log").read_text("utf-8", "replace")[-20_000:])
