"""What a command looks like from outside: run it, and keep everything its caller could notice.

Knows how to start a command in a given circumstance (stdin, environment, limits, identity) and what to observe.
Does not know dwrap: a test observes a command twice, once with a prefix, and compares.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

SECONDS = 60.0
Word = str | bytes


@dataclass(frozen=True)
class Case:
    """A command and the circumstances in which it is started."""

    name: str
    argv: Sequence[Word]
    stdin: bytes = b""
    """What stands on stdin; it arrives by a pipe, or from a file when `stdin_from` says so."""
    stdin_from: str = "null"
    """`null`, `pipe`, `file` or `closed`."""
    environment: Mapping[Word, Word] = field(default_factory=dict)
    before: Callable[[], object] | None = None
    """Called in the child before the command is started: umask, limits, identity."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files that lie in the working directory at the start; those named *.sh are executable."""
    one_file: bool = False
    """stdout and stderr are one file, as after 2>&1."""
    closed: tuple[int, ...] = ()
    """Descriptors that are closed when the command starts."""
    normalise: Callable[[bytes], bytes] = bytes
    """Takes out of stdout what may differ."""


@dataclass(frozen=True)
class Observation:
    """What the caller of a command could notice."""

    status: int
    """As subprocess has it: negative for a death by signal."""
    stdout: bytes
    stderr: bytes
    left_on_disk: Mapping[str, tuple[str, int, str]]
    """Path to (kind, mode, hash of the content or target)."""
    by_age: Sequence[str]
    """The files, oldest change first."""
    stdin_offset: int
    """Where the command left a file that was its stdin."""


def observe(case: Case, directory: Path, environment: Mapping[str, str], prefix: Sequence[str] = ()) -> Observation:
    """Run the case in `directory`, emptied first, with `prefix` before its command."""
    prepare(case, directory)
    argv = [os.fsencode(word) for word in [*prefix, *case.argv]]
    everything = {os.fsencode(key): os.fsencode(value) for key, value in {**environment, **case.environment}.items()}
    stdin_file = directory.parent / "stdin"
    stdin_file.write_bytes(case.stdin)
    with stdin_file.open("rb", buffering=0) as opened:
        stdin = {"null": subprocess.DEVNULL, "pipe": subprocess.PIPE, "file": opened, "closed": None}[case.stdin_from]
        process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if case.one_file else subprocess.PIPE,
            cwd=directory,
            env=everything,
            preexec_fn=lambda: before_exec(case),
        )
        stdout, stderr = process.communicate(case.stdin if case.stdin_from == "pipe" else None, timeout=SECONDS)
        offset = os.lseek(opened.fileno(), 0, os.SEEK_CUR)
    left, by_age = look(directory)
    return Observation(process.returncode, case.normalise(stdout), stderr or b"", left, by_age, offset)


def before_exec(case: Case) -> None:
    """In the child: what the case asks for, then the descriptors that are to be closed."""
    if case.before:
        case.before()
    for descriptor in (*case.closed, *((0,) if case.stdin_from == "closed" else ())):
        os.close(descriptor)


def prepare(case: Case, directory: Path) -> None:
    """Make `directory` hold just the case's files."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    directory.chmod(0o777)  # a case may run as another user
    for name, content in case.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if name.endswith(".sh"):
            path.chmod(0o755)


def look(directory: Path) -> tuple[dict[str, tuple[str, int, str]], list[str]]:
    """What lies under `directory`, and its files by their time of change."""
    found: dict[str, tuple[str, int, str]] = {}
    changed: list[tuple[int, str]] = []
    for path in sorted(directory.rglob("*")):
        name, status = str(path.relative_to(directory)), path.lstat()
        if stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        elif stat.S_ISREG(status.st_mode):
            content = sha256(path.read_bytes()).hexdigest()
            changed.append((status.st_mtime_ns, name))
        else:
            content = ""
        found[name] = (stat.filemode(status.st_mode)[0], stat.S_IMODE(status.st_mode), content)
    return found, [name for _, name in sorted(changed)]
