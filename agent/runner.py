"""Starts runners (the C program that holds one job each), and speaks with them as runner.h says.

Knows processes, descriptors and the spec's form. Does not know the network, leases, or why a job runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from dwrap.agent.accounts import Identity
from dwrap.agent.events import Key, Kind, RunnerEnded, RunnerSaid, Start, Tell
from dwrap.agent.spares import Spares
from dwrap.agent.workplace import RUNS
from dwrap.protocol import messages
from dwrap.protocol.messages import Value

PROGRAM: Final = "dwrap-runner"
log = logging.getLogger("dwrap.agent")
_HEAD: Final = struct.Struct("=IIQ")
_LENGTHS: Final = struct.Struct("=6I")
_ROOM: Final = _HEAD.size + messages.MAX_DATA_BYTES + 1
_ANSWER: Final = struct.Struct("=ii")
_CONTROL_FD: Final = 3
_LEASE_FD: Final = 5
_RUNS_FD: Final = 6
RECORD: Final = struct.Struct("=III")  # of an attempt: the user, the length of RESULT's fields, the length of the entries (runfile.c)
_MOST_DROPPED: Final = 64  # groups that are told
_COUNT_SECONDS: Final = 1.0
_START_SECONDS: Final = 5.0  # a fork takes a fraction of a millisecond
_KILL_SECONDS: Final = 5.0  # in which a runner says that it ends its job
_MOST_KILLS: Final = 3  # one for each tick; then what it holds is killed without it


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
    try:
        probe = subprocess.run(  # noqa: S603 # nosec B603 # our own program
            [program, "--probe-tree"], capture_output=True, text=True, check=False, timeout=30
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{program} does not find out how to hold a process tree here; choose one with --tree") from error
    word, _, cost = probe.stdout.partition(" ")
    if word == "subreaper":
        why = "are refused here" if cost.strip() == "-1.000" else f"cost {cost.strip()} ms here"
        log.info("PID namespaces %s: job trees are held by reaping, and jobs see other processes", why)
    if probe.returncode != 0 or word not in ("pidns", "subreaper"):
        raise OSError(f"{program} cannot hold a process tree here: {probe.stderr.strip() or 'it says nothing'}")
    return word


class ForkError(OSError):
    """The starter says that it could not fork a runner."""


class Runner:
    """One running runner: its process and its control socket."""

    __slots__ = ("_backlog", "_socket", "_told_to_end", "key", "kills", "pid")

    def __init__(self, key: Key, pid: int, control: socket.socket) -> None:
        self.key = key
        self.pid = pid
        self.kills = 0
        self._socket = control
        self._backlog: deque[bytes] = deque()
        self._told_to_end = math.inf

    def fileno(self) -> int:
        """The control socket's descriptor."""
        return self._socket.fileno()

    @property
    def congested(self) -> bool:
        """Whether packets wait for room in the socket (bounded by the credit given for stdin)."""
        return bool(self._backlog)

    def tell(self, tell: Tell) -> None:
        """Sends a packet, in order, as soon as there is room."""
        if tell.kind == Kind.KILL:
            self._told_to_end = min(self._told_to_end, time.monotonic())
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
            if kind == Kind.ENDING:
                self._told_to_end = math.inf
                continue
            said.append(RunnerSaid(self.key, kind, stream, number, packet[_HEAD.size :]))

    @property
    def hangs(self) -> bool:
        """Whether it was told to end its job and has not said for too long that it does."""
        return time.monotonic() >= self._told_to_end + _KILL_SECONDS

    def close(self) -> None:
        """Closes the socket; a runner that lives kills its job then."""
        self._socket.close()


class Starter:
    """The process that forks runners (starter.c)."""

    def __init__(self, program: str, passed: Mapping[int, int] = MappingProxyType({})) -> None:
        """`passed`: which of its descriptors are which of this process's, beside the socket."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._socket.settimeout(_START_SECONDS)
            # First out of the way: one that is put in its own place would be closed by exec, or be overwritten by another.
            moved = {to: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for to, fd in {_CONTROL_FD: theirs.fileno(), **passed}.items()}
        try:
            actions = [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in moved.items()]
            self.pid = os.posix_spawn(program, [program], {"LC_ALL": "C"}, file_actions=actions, setsigmask=())
        finally:
            for fd in moved.values():
                os.close(fd)

    def fork(self, control: int, spec: int) -> int:
        """Forks a runner, a child of this process, with these descriptors. Returns its pid. Raises ForkError; after any other OSError or
        EOFError its answer may be still to come, and this starter is of no use any more.
        """
        socket.send_fds(self._socket, [b"+"], [control, spec])
        answer = self._socket.recv(_ANSWER.size)
        if len(answer) != _ANSWER.size:
            raise EOFError
        pid, error = _ANSWER.unpack(answer)
        if pid < 0:
            raise ForkError(error, os.strerror(error))
        return int(pid)

    def close(self) -> None:
        """Ends and reaps it."""
        self._socket.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class _MemoryKills:
    """How often the kernel has killed for want of memory on this machine."""

    def __init__(self) -> None:
        self._count = 0
        self._read_at = -_COUNT_SECONDS

    def count(self) -> int:
        """At most a second old. 0 where the kernel does not tell."""
        now = time.monotonic()
        if now - self._read_at >= _COUNT_SECONDS:
            self._read_at = now
            with open("/proc/vmstat", "rb") as counters:
                self._count = next((int(line.split()[1]) for line in counters if line.startswith(b"oom_kill ")), 0)
        return self._count


class Lease:
    """Until when jobs may run, in memory that runners share (lease.c)."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("dwrap-lease", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, 8)
        self._memory = mmap.mmap(self.fd, 8)
        self._end = memoryview(self._memory).cast("Q")

    def set(self, until_seconds: float) -> None:
        """On the clock that counts suspend; 0 is no end."""
        self._end[0] = int(until_seconds * 1e9)

    def close(self) -> None:
        """Runners that live go on with what they know."""
        self._end.release()
        self._memory.close()
        os.close(self.fd)


class Runners:
    """All runners of this agent. `work`/runs holds a record of each attempt, and is locked while anything of one lives."""

    def __init__(self, program: Path, work: Path, roots: tuple[str, ...], tree: str, processes: int = 0, spares: int = 0) -> None:
        """`processes`: how many one user may have, all of its jobs together; 0: as many as this process may. `spares`: how many jobs
        at once are to be had even when others have filled the disk.
        """
        self._program = os.fspath(program)
        self._fixed: list[tuple[str, Value]] = [("work", os.fspath(work)), ("tree", tree), ("processes", processes), ("spares", spares)]
        self._fixed += [("root", root) for root in roots]
        self._unreaped: set[int] = set()
        self._starter: Starter | None = None
        self._lease = Lease()
        self._memory_kills = _MemoryKills()
        self._folder = work / RUNS
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._runs = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._runs, fcntl.LOCK_SH)  # shared with every process that inherits the descriptor
        self._spares = Spares(work, spares)
        self.ended_cpu_seconds = 0.0

    def start(self, start: Start, identity: Identity) -> Runner:
        """Starts a runner for an assignment. Raises StartError; then nothing was started."""
        try:
            pid, mine = self._start(start, identity)
        except OSError as error:
            raise StartError(f"the agent could not start a runner: {error.strerror or error}") from error
        self._unreaped.add(pid)
        return Runner(start.key, pid, mine)

    def _start(self, start: Start, identity: Identity) -> tuple[int, socket.socket]:
        with open(self._write_spec(start, identity), "rb", buffering=0) as spec:
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            mine.setblocking(False)
            try:
                with theirs:
                    pid = self._fork(theirs.fileno(), spec.fileno())
                with contextlib.suppress(OSError):  # one that has ended already is heard to have
                    mine.send(_HEAD.pack(Kind.NOTED, 0, 0))  # a runner whose start came to nothing here does not go on
                return pid, mine
            except OSError:
                mine.close()
                raise

    def _path(self, key: Key) -> Path:
        return self._folder / f"{key[0]}.{key[1]}"

    def forget(self, key: Key) -> None:
        """Removes the record of an attempt: it was acknowledged, or never started."""
        path = self._path(key)
        if not self._spares.take_back(path):
            path.unlink(missing_ok=True)

    def lease(self, until_seconds: float) -> None:
        """Until when jobs may run, on the clock that counts suspend; 0 is no end. Runners keep to it by themselves."""
        self._lease.set(until_seconds)

    def _fork(self, control: int, spec: int) -> int:
        """Has the starter fork a runner, a starter of its own first where there is none or it has died. Returns its pid."""
        if self._starter is None:
            self._starter = Starter(self._program, {_LEASE_FD: self._lease.fd, _RUNS_FD: self._runs})
        try:
            return self._starter.fork(control, spec)
        except ForkError:
            raise
        except (OSError, EOFError) as error:
            self._starter.close()
            self._starter = None
            raise OSError("the program that starts runners has died") from error

    def close(self) -> None:
        """Ends the starter. Runners that live go on."""
        if self._starter is not None:
            self._starter.close()
            self._starter = None
        self._lease.close()
        self._spares.close()
        os.close(self._runs)

    def _write_spec(self, start: Start, identity: Identity) -> int:
        job = start.key[0]
        own: list[tuple[str, Value]] = [("job", job), ("env", f"DWRAP_JOB={job}"), ("cwd", start.fields.need("cwd")), *self._fixed]
        own += [("run", os.fspath(self._path(start.key))), ("oom", self._memory_kills.count())]
        own += [(word, path) for word in ("path", "undo") for path in start.fields.all(word)]
        wanted = (("views", start.views), ("refresh", start.refresh), ("memory_retry", start.fields.flag("memory_retry")))
        own += [(word, 1) for word, is_wanted in wanted if is_wanted]
        if identity.dropped:
            own.append(("groups_dropped", _shortened(identity.dropped)))
        if identity.become:
            own += [("uid", identity.uid), ("gid", identity.gid), *(("group", group) for group in identity.groups)]
        sections = [messages.encode_fields(own), start.claims, start.argv, start.env, start.seen, start.journal]
        spec = os.memfd_create("dwrap-spec", os.MFD_CLOEXEC)
        try:
            blob = b"".join([_LENGTHS.pack(*map(len, sections)), *sections])
            written = 0
            while written < len(blob):
                written += os.write(spec, blob[written:])
        except OSError:
            os.close(spec)
            raise
        return spec

    def refill(self) -> None:
        """Sets aside again what jobs have used, as far as there is room."""
        self._spares.refill()

    def reap(self) -> None:
        """Collects runners that have ended."""
        for pid in tuple(self._unreaped):
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if found:
                self._unreaped.discard(pid)
                self.ended_cpu_seconds += usage.ru_utime + usage.ru_stime
                if status:
                    log.warning("runner %d ended with wait status %d", pid, status)

    def kill_hanging(self, runners: Iterable[Runner]) -> None:
        """Kills runners that hang in a look at something that does not answer, and then their holders end what they hold. One that holds
        nothing is about to report, or has not begun: it may take its time.
        """
        for runner in runners:
            held = [*_children(runner.pid)] if runner.hangs and runner.pid in self._unreaped else []
            if not held:
                continue
            if not runner.kills:
                log.warning("runner %d does not answer and is killed", runner.pid)
            runner.kills += 1
            for pid in (runner.pid, *(held if runner.kills > _MOST_KILLS else ())):  # where a server must answer first not even it dies
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def kill_orphans(self) -> None:
        """Kills what dead runners left to this process as the nearest subreaper: every child of its main thread that is none of ours.
        The kernel gives such to the first thread that lives (find_alive_thread in its exit.c); what other threads started is theirs.
        """
        ours = self._unreaped | {self._starter.pid if self._starter else 0}
        for orphan in set(_children("self", str(os.getpid()))) - ours:
            log.warning("process %d was left by a runner and is killed", orphan)
            os.kill(orphan, signal.SIGKILL)
            os.waitpid(orphan, os.WNOHANG)

    @property
    def pids(self) -> frozenset[int]:
        """The processes that lead the sessions of running jobs."""
        return frozenset(self._unreaped)


def _shortened(groups: Sequence[int]) -> str:
    rest = ["…"] if len(groups) > _MOST_DROPPED else []
    return ",".join([*map(str, groups[:_MOST_DROPPED]), *rest])


def _children(pid: int | str, *tasks: str) -> Iterable[int]:
    """Of all its threads, or of these."""
    for task in tasks or os.listdir(f"/proc/{pid}/task"):
        try:
            text = Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii")
        except OSError:  # the thread has ended, or the kernel was built without this file
            continue
        yield from map(int, text.split())
