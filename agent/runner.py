"""Starts runners (the C program that holds one job each), and speaks with them as runner.h says.

Knows processes, descriptors and the spec's form. Does not know the network, leases, or why a job runs.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dwrap.agent.accounts import Identity
from dwrap.agent.events import Key, RunnerEnded, RunnerSaid, Start, Tell
from dwrap.protocol import messages
from dwrap.protocol.messages import Value

PROGRAM: Final = "dwrap-runner"
log = logging.getLogger("dwrap.agent")
_HEAD: Final = struct.Struct("=IIQ")
_LENGTHS: Final = struct.Struct("=4I")
_ROOM: Final = _HEAD.size + messages.MAX_DATA_BYTES + 1
_FREE_FD: Final = 10  # above the runner's fixed descriptors, so that moving one cannot overwrite the other
_CONTROL_FD: Final = 3
_SPEC_FD: Final = 4


class StartError(Exception):
    """A runner could not be started. The text is fit for REJECT's `reason`."""


def find_program() -> Path:
    """The runner's program: beside this interpreter, among the installed scripts, or on PATH. Raises FileNotFoundError."""
    folders = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    for candidate in (folder / PROGRAM for folder in folders):
        if os.access(candidate, os.X_OK):
            return candidate
    found = shutil.which(PROGRAM)
    if found is None:
        raise FileNotFoundError(f"{PROGRAM} is not installed beside {sys.executable} nor on PATH; install dwrap again")
    return Path(found)


def choose_tree(program: Path) -> str:
    """How job trees are held here: `pidns` where the kernel allows it cheaply, else `subreaper`. Raises OSError."""
    probe = subprocess.run([program, "--probe-tree"], capture_output=True, text=True, check=False, timeout=30)  # noqa: S603 (our own program)
    word = probe.stdout.split(" ")[0]
    if probe.returncode != 0 or word not in ("pidns", "subreaper"):
        raise OSError(f"{program} cannot hold a process tree here: {probe.stderr.strip() or 'it says nothing'}")
    return word


class Runner:
    """One running runner: its process and its control socket."""

    __slots__ = ("_backlog", "_socket", "key", "pid")

    def __init__(self, key: Key, pid: int, control: socket.socket) -> None:
        self.key = key
        self.pid = pid
        self._socket = control
        self._backlog: deque[bytes] = deque()

    def fileno(self) -> int:
        """The control socket's descriptor."""
        return self._socket.fileno()

    @property
    def congested(self) -> bool:
        """Whether packets wait for room in the socket (bounded by the credit given for stdin)."""
        return bool(self._backlog)

    def tell(self, tell: Tell) -> None:
        """Sends a packet, in order, as soon as there is room."""
        self._backlog.append(_HEAD.pack(tell.kind, tell.stream, tell.number) + tell.payload)
        self.flush()

    def flush(self) -> None:
        """Sends what waits, as far as there is room."""
        try:
            while self._backlog:
                self._socket.send(self._backlog[0])
                self._backlog.popleft()
        except BlockingIOError:
            return
        except OSError:  # it has ended; receive() says so
            self._backlog.clear()

    def receive(self) -> list[RunnerSaid | RunnerEnded]:
        """What the runner has said so far. RunnerEnded is the last."""
        said: list[RunnerSaid | RunnerEnded] = []
        while True:
            try:
                packet = self._socket.recv(_ROOM)
            except BlockingIOError:
                return said
            except ConnectionResetError:  # it ended with packets of ours unread; what it had said is still to come
                continue
            if len(packet) < _HEAD.size:
                said.append(RunnerEnded(self.key))
                return said
            kind, stream, number = _HEAD.unpack_from(packet)
            said.append(RunnerSaid(self.key, kind, stream, number, packet[_HEAD.size :]))

    def close(self) -> None:
        """Closes the socket; a runner that lives kills its job then."""
        self._socket.close()


class Runners:
    """All runners of this agent."""

    def __init__(self, program: Path, work: Path, roots: tuple[str, ...], tree: str, flush: str = "auto") -> None:
        self._program = os.fspath(program)
        self._fixed: list[tuple[str, Value]] = [("work", os.fspath(work)), ("tree", tree), ("flush", flush)]
        self._fixed += [("root", root) for root in roots]
        self._unreaped: set[int] = set()
        self.ended_cpu_seconds = 0.0

    def start(self, start: Start, identity: Identity) -> Runner:
        """Starts a runner for an assignment. Raises StartError; then nothing was started."""
        ours = theirs = spec = -1
        try:
            spec = self._write_spec(start, identity)
            control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours, theirs = control.detach(), _out_of_the_way(other.detach())
            pid = self._spawn(theirs, spec)
        except OSError as error:
            if ours >= 0:
                os.close(ours)
            raise StartError(f"the agent could not start a runner: {error.strerror}") from error
        finally:
            for fd in (theirs, spec):
                if fd >= 0:
                    os.close(fd)
        self._unreaped.add(pid)
        mine = socket.socket(fileno=ours)
        mine.setblocking(False)
        return Runner(start.key, pid, mine)

    def _spawn(self, control: int, spec: int) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, control, _CONTROL_FD), (os.POSIX_SPAWN_DUP2, spec, _SPEC_FD)]
        return os.posix_spawn(self._program, [self._program], {"LC_ALL": "C"}, file_actions=actions, setsigmask=())

    def _write_spec(self, start: Start, identity: Identity) -> int:
        own: list[tuple[str, Value]] = [("job", start.key[0]), ("cwd", start.fields.need("cwd")), *self._fixed]
        own += [("path", path) for path in start.fields.all("path")]
        if identity.become:
            own += [("uid", identity.uid), ("gid", identity.gid), *(("group", group) for group in identity.groups)]
        env = start.env + b"DWRAP_JOB=" + start.key[0].encode() + b"\0"
        sections = [messages.encode_fields(own), start.claims, start.argv, env]
        spec = os.memfd_create("dwrap-spec", os.MFD_CLOEXEC)
        try:
            blob = b"".join([_LENGTHS.pack(*map(len, sections)), *sections])
            written = 0
            while written < len(blob):
                written += os.write(spec, blob[written:])
        except OSError:
            os.close(spec)
            raise
        return _out_of_the_way(spec)

    def reap(self) -> None:
        """Collects runners that have ended."""
        for pid in tuple(self._unreaped):
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if found:
                self._unreaped.discard(pid)
                self.ended_cpu_seconds += usage.ru_utime + usage.ru_stime
                if status:
                    log.warning("runner %d ended with wait status %d", pid, status)

    def kill_orphans(self) -> None:
        """Kills what dead runners left to this process as the nearest subreaper: every child of it that is no runner."""
        for orphan in set(_children()) - self._unreaped:
            log.warning("process %d was left by a runner and is killed", orphan)
            os.kill(orphan, signal.SIGKILL)
            os.waitpid(orphan, os.WNOHANG)

    @property
    def pids(self) -> frozenset[int]:
        """The processes that lead the sessions of running jobs."""
        return frozenset(self._unreaped)


def _out_of_the_way(fd: int) -> int:
    if fd >= _FREE_FD:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FREE_FD)
    os.close(fd)
    return moved


def _children() -> Iterable[int]:
    for task in os.listdir("/proc/self/task"):
        try:
            text = Path(f"/proc/self/task/{task}/children").read_text(encoding="ascii")
        except OSError:  # the thread has ended, or the kernel was built without this file
            continue
        yield from map(int, text.split())
