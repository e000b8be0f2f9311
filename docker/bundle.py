"""Makes the self-contained tree that the images carry: `python3 docker/bundle.py SOURCE TARGET`, on Debian or Ubuntu.

TARGET holds the C programs, the rooms as the package dwrap, an interpreter with what they import, and every shared library of these down
to the C library and its loader. So it runs on any Linux of the same architecture and uses nothing of its files but /etc; and it adds
nothing to its package database, which is what says whether two images are the same.

    bin/      dwrap, dwrap-runner; dwrap-agent, dwrap-distributor, dwrapctl: scripts for the interpreter below
    libexec/  python3, which looks for libraries in lib/ first, by itself: no variable says so, so jobs inherit none; start, which starts it
              for the daemons, so that they miss no SIGTERM
    lib/      the loader, the libraries, pythonX.Y/: the standard library, the packages, dwrap

The tree works only where it was made for, at TARGET. Knows Debian's layout of Python. Does not know Docker.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

ROOMS: Final = ("protocol", "distributor", "agent", "control")
PACKAGES: Final = ("click", "decorator", "prometheus_client", "psutil", "zmq")
PROGRAMS: Final = ("dwrap", "dwrap-runner")
DAEMONS: Final = {"dwrap-agent": "agent", "dwrap-distributor": "distributor"}
SCRIPTS: Final = {**DAEMONS, "dwrapctl": "control"}
# What nothing here imports, and what would bring large libraries along.
WITHOUT: Final = (
    "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data", "distutils", "sqlite3", "curses", "dbm",
    "venv", "xmlrpc", "config-*", "_sqlite3.*", "_curses*", "_dbm.*", "_gdbm.*", "readline.*", "_test*", "_xxtest*", "_ctypes_test*",
    "__pycache__", "*.c", "*.h", "*.pyx", "*.pxd", "*.pyi", "*.a", "EXTERNALLY-MANAGED",
)  # fmt: skip
_LIBRARY: Final = re.compile(r"^\s+(\S+) => (/\S+) \(", re.M)


def make(source: Path, target: Path) -> None:
    """The whole tree."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    modules = target / "lib" / version
    shutil.copytree(sysconfig.get_path("stdlib"), modules, ignore=shutil.ignore_patterns(*WITHOUT))
    for package in PACKAGES:
        copy_package(package, modules)
    for room in ROOMS:
        shutil.copytree(source / room, modules / "dwrap" / room, ignore=shutil.ignore_patterns(*WITHOUT))
    write_metadata(source, modules)
    python = copy_interpreter(target)
    copy_libraries([python, *modules.rglob("*.so")], target / "lib")
    (target / "bin").mkdir()
    for program in PROGRAMS:
        shutil.copy2(source / "build" / "bin" / program, target / "bin")
        os.symlink(f"../bin/{program}", target / "libexec" / program)  # the agent looks for its runner beside its interpreter
    start = make_start(source / "docker" / "start.c", python)
    for script, room in SCRIPTS.items():
        write_script(target / "bin" / script, start if script in DAEMONS else python, f"dwrap.{room}.cli")
    if not compileall.compile_dir(modules, quiet=1, workers=0, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH):
        raise SystemExit(f"dwrap: cannot make {target}: not all of it compiles")
    for program in (*PROGRAMS[:1], *SCRIPTS):
        print(run(str(target / "bin" / program), "--version"), end="")


def copy_package(package: str, modules: Path) -> None:
    """An installed package, a folder or a file."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"dwrap: cannot make the bundle: there is no Python package {package} here; install it")
    if found.submodule_search_locations is None:
        shutil.copy2(found.origin, modules)
    else:
        shutil.copytree(Path(found.origin).parent, modules / package, ignore=shutil.ignore_patterns(*WITHOUT))


def write_metadata(source: Path, modules: Path) -> None:
    """What `--version` reads."""
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = modules / f"dwrap-{project['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dwrap\nVersion: {project['version']}\n", encoding="utf-8")


def copy_interpreter(target: Path) -> Path:
    """The interpreter, with a loader and a place for libraries of its own. Its place tells it where its modules are."""
    python = target / "libexec" / "python3"
    python.parent.mkdir()
    shutil.copy2(os.path.realpath(sys.executable), python)
    loader = Path(run("patchelf", "--print-interpreter", str(python)).strip())
    shutil.copy2(os.path.realpath(loader), target / "lib" / loader.name)
    # RPATH, not RUNPATH: it comes before LD_LIBRARY_PATH, and counts for the libraries of libraries too.
    places = ["--set-interpreter", str(target / "lib" / loader.name), "--force-rpath", "--set-rpath", str(target / "lib")]
    run("patchelf", *places, str(python))
    return python


def make_start(source: Path, python: Path) -> Path:
    """What starts the interpreter for a daemon."""
    start = python.with_name("start")
    run("cc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", f'-DPYTHON="{python}"', str(source), "-o", str(start))
    return start


def copy_libraries(files: Iterable[Path], folder: Path) -> None:
    """Every library that one of these files needs, under the name by which it is asked for."""
    for file in files:
        for name, path in _LIBRARY.findall(run("ldd", str(file))):
            if Path(path).parent != folder and not (folder / name).exists():
                shutil.copy2(os.path.realpath(path), folder / name)


def write_script(file: Path, interpreter: Path, module: str) -> None:
    """-I: nothing of the environment or the user's counts. -S: nor any package of the image."""
    file.write_text(f"#!{interpreter} -IS\nfrom {module} import main\n\nmain()\n", encoding="utf-8")
    file.chmod(0o755)


def run(*command: str) -> str:
    """Output of a command. Raises CalledProcessError."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 # nosec B603 # tools of the build


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).absolute())
