"""The embedded farm: one distributor and some agents as children of this process, started, watched and ended.

Knows the daemons' command lines and their `ready` lines. Does not know what is run on the farm, the protocol, or the terminal.
The daemons outlive nothing: they end with `stop`, or by the kernel's parent-death signal when this process is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dwrap.control.errors import ControlError

READY_SECONDS = 15.0
DRAIN_SECONDS = 2.0
KILL_SECONDS = 3.0
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def program(name: str) -> Path:
    """Where the installed program `name` is: beside this one, else on PATH. Raises ControlError."""
    beside = [sysconfig.get_path("scripts"), os.path.dirname(os.path.abspath(sys.argv[0]))]
    found = shutil.which(name, path=os.pathsep.join(beside)) or shutil.which(name)
    if found is None:
        raise ControlError(f"cannot start {name}: it is not installed beside dwrapctl nor on PATH; install dwrap again (pip install dwrap)")
    return Path(os.path.abspath(found))


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Plan:
    """What to start. `listen` are distributor addresses, `http` is HOST:PORT; port 0 means any free one."""

    listen: tuple[str, ...]
    http: str = "127.0.0.1:0"
    agents: int = 2
    slots: int = 0
    """Slots of each agent; 0 spreads the machine's processors over them."""
    roots: tuple[str, ...] = ("/",)
    allow_root: bool = False
    options: tuple[str, ...] = ()
    """Further options for the distributor."""

    def slots_each(self) -> int:
        return self.slots or max(1, -(-processors() // max(1, self.agents)))


class Daemon:
    """One child that prints a `ready` line on its standard output and logs on its standard error."""

    def __init__(self, name: str, argv: Sequence[str], log: Path | None, parting: signal.Signals) -> None:
        """Starts it. `log` None leaves its standard error ours; `parting` is what it gets when this process dies."""
        self.name = name
        self.log = log
        self._buffer = b""
        sink = open(log, "ab") if log else None  # noqa: SIM115 - closed below, the child keeps its own
        try:
            self.process = subprocess.Popen(  # noqa: S603 # nosec B603 # the farm's own programs
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=sink,
                start_new_session=True,  # the terminal's Ctrl-C is for the command, not for the farm
                preexec_fn=_bound_to_parent(parting),
                env=_daemon_environment(),
            )
        except OSError as error:
            raise ControlError(f"cannot start {argv[0]}: {str(error.strerror).lower()}; install dwrap again") from error
        finally:
            if sink:
                sink.close()
        self._stdout = self.process.stdout.fileno() if self.process.stdout else -1

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self, deadline: float, cancelled: Callable[[], bool]) -> list[str]:
        """The words after `ready`. Raises ControlError when it ends, stays silent past `deadline` (monotonic), or is cancelled."""
        fd = self._stdout
        while b"\n" not in self._buffer:
            if cancelled():
                raise ControlError("not started: interrupted; nothing is left behind")
            if time.monotonic() > deadline:
                raise ControlError(f"{self.name} did not get ready in time: {self.last_words()}; see its log lines")
            if select.select([fd], [], [], _POLL_SECONDS)[0]:
                piece = os.read(fd, 4096)
                if not piece:
                    status = self.process.wait()
                    raise ControlError(f"{self.name} did not start (status {status}): {self.last_words()}")
                self._buffer += piece
        words = self._buffer.split(b"\n", 1)[0].decode("utf-8", "replace").split()
        if not words or words[0] != "ready":
            raise ControlError(f"{self.name} did not get ready: it said {' '.join(words)!r}; is another program of this name installed?")
        return words[1:]

    def last_words(self) -> str:
        """What it logged last, in its own words."""
        if self.log is None or not self.log.exists():
            return "its log lines are above"
        lines = self.log.read_text("utf-8", "replace").split("\n")
        line = next((line.strip() for line in reversed(lines) if line.strip()), "it logged nothing")
        try:
            return str(json.loads(line)["message"])
        except (ValueError, KeyError, TypeError):  # an error before its log was set up is plain text
            return line.removeprefix("dwrap: ")

    def failed(self) -> bool:
        """Whether it has ended by itself other than well; an agent that was drained ends well."""
        return bool(self.process.poll())

    def running(self) -> bool:
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; nothing happens when it has ended."""
        if self.running():
            self.process.send_signal(number)

    def wait(self, deadline: float) -> bool:
        """Whether it has ended, and was reaped, by `deadline` (monotonic)."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()


class Farm:
    """A distributor and its agents. `start` returns when all of them are ready; `stop` when all of them are gone."""

    def __init__(self, plan: Plan, directory: Path, log: bool = True) -> None:
        """`directory` is private to this farm; with `log` the daemons log to files in it, else to our standard error."""
        self.plan = plan
        self.directory = directory
        self.address = ""
        self.http = ""
        self.distributor: Daemon | None = None
        self.agents: list[Daemon] = []
        self._log = log

    def start(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Raises ControlError, with nothing left running, when a daemon does not get ready."""
        try:
            self.start_distributor(cancelled)
            for number in range(1, self.plan.agents + 1):
                self.agents.append(self.launch_agent(f"a{number}"))
            deadline = time.monotonic() + READY_SECONDS
            for agent in self.agents:
                agent.wait_ready(deadline, cancelled)
        except BaseException:
            self.stop(patience=0.0)
            raise

    def start_distributor(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Starts the distributor alone, and learns its addresses."""
        argv = [str(program("dwrap-distributor")), "--http", self.plan.http, *self.plan.options]
        for address in self.plan.listen:
            argv += ["--listen", address]
        self.distributor = self._launch("distributor", argv, signal.SIGTERM)
        words = self.distributor.wait_ready(time.monotonic() + READY_SECONDS, cancelled)
        self.address = next((word for word in words if word.startswith(("tcp://", "ipc://"))), "")
        self.http = next((word for word in words if word.startswith("http://")), "")

    def launch_agent(self, name: str, slots: int | None = None, options: Sequence[str] = ()) -> Daemon:
        """Starts one agent, and does not wait for it."""
        argv = [str(program("dwrap-agent")), self.address, "--name", name, "--slots", str(slots or self.plan.slots_each())]
        argv.append("--accept-flaws")  # what is wrong between hosts is not wrong within one
        for root in self.plan.roots:
            argv += ["--root", root]
        if self.plan.allow_root:
            argv.append("--allow-root")
        return self._launch(name, [*argv, *options], signal.SIGINT)

    def daemons(self) -> list[Daemon]:
        """Every daemon, agents first: the order in which they are ended."""
        return [*self.agents, *([self.distributor] if self.distributor else [])]

    def stop(self, patience: float = DRAIN_SECONDS) -> None:
        """Ends and reaps all of them. Agents may finish their jobs for `patience` seconds, then they kill them."""
        if patience > 0:
            self._end(self.agents, signal.SIGTERM, patience)
        self._end(self.agents, signal.SIGINT, KILL_SECONDS)
        if self.distributor:
            self._end([self.distributor], signal.SIGTERM, KILL_SECONDS)
        for daemon in self.daemons():
            daemon.send(signal.SIGKILL)
            daemon.process.wait()
            daemon.close()

    def _launch(self, name: str, argv: Sequence[str], parting: signal.Signals) -> Daemon:
        return Daemon(name, argv, self.directory / f"{name}.log" if self._log else None, parting)

    @staticmethod
    def _end(daemons: Sequence[Daemon], number: signal.Signals, seconds: float) -> None:
        for daemon in daemons:
            daemon.send(number)
            daemon.send(signal.SIGCONT)  # a stopped one could not act on it
        deadline = time.monotonic() + seconds
        for daemon in daemons:
            daemon.wait(deadline)


def _bound_to_parent(parting: signal.Signals) -> Callable[[], None]:
    """What the child does before exec: take `parting` when its parent dies, and take up the signals this process holds back."""
    parent = os.getpid()

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(parting), 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel was told
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    return prepare


def _daemon_environment() -> dict[str, str]:
    """Ours, without what would make the farm part of the build that is run on it."""
    return {key: value for key, value in os.environ.items() if not key.startswith("DWRAP_") and key != "NOTIFY_SOCKET"}
