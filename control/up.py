"""`dwrapctl up`: the embedded farm around a command, or until it is told to end.

Knows processes and signals. Does not know the command line's syntax, nor what records look like.
Signals are held back throughout and fetched one by one, so that none is lost between two steps.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dwrap.control.errors import ControlError
from dwrap.control.farm import Farm, program

ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
PASSED_ON = ENDING | {signal.SIGUSR1, signal.SIGUSR2}
HELD = PASSED_ON | {signal.SIGCHLD}
_SI_KERNEL = 0x80


@contextmanager
def signals_held() -> Iterator[Callable[[], bool]]:
    """Holds back HELD; gives a function that says whether an ending signal waits. What still waits at the end takes effect then."""
    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield lambda: bool(ENDING & signal.sigpending())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def endings_raised() -> Iterator[None]:
    """Within it a signal that asks us to end is KeyboardInterrupt, as SIGINT is: what has been made is removed."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def runtime_directory() -> Iterator[Path]:
    """A directory of our own, mode 0700, with a path short enough for a Unix socket; removed at the end."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isdir(base) or not os.access(base, os.W_OK) or len(base) > 60:
        base = "/tmp"  # noqa: S108 # nosec B108 # mkdtemp makes it private
    try:
        directory = Path(tempfile.mkdtemp(prefix="dwrap-up-", dir=base))
    except OSError as error:
        raise ControlError(f"cannot make a directory in {base}: {str(error.strerror).lower()}; make it writable") from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run_command(farm: Farm, command: Sequence[str]) -> int:
    """Runs `command` on the farm, signals that reach us passed on to it. Its exit status, or minus the signal it died by."""
    try:
        child = subprocess.Popen(  # noqa: S603 # nosec B603 # the user's own command
            list(command), env=environment(farm), preexec_fn=_release_signals
        )
    except FileNotFoundError as error:
        raise CommandError(127, f"cannot run {command[0]}: not found; check its name and PATH") from error
    except OSError as error:
        raise CommandError(126, f"cannot run {command[0]}: {str(error.strerror).lower()}; is it an executable file?") from error
    watch = Watch(farm)
    while child.poll() is None:
        _pass_on(child)
        watch.look()
    return child.returncode


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _pass_on(child: subprocess.Popen[bytes]) -> None:
    """Waits for one signal (a second at most) and hands it to the command, unless the terminal gave it to both of us."""
    info = signal.sigtimedwait(HELD, 1.0)
    if info is None or info.si_signo == signal.SIGCHLD or info.si_code == _SI_KERNEL:
        return
    if child.poll() is None:
        child.send_signal(info.si_signo)
PATIENCE_SECONDS = 5


class Watch:
    """Says on standard error, once for each, which daemons of a farm have failed."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._said: set[str] = set()

    def look(self) -> None:
        for daemon in self._farm.daemons():
            if daemon.failed() and daemon.name not in self._said:
                self._said.add(daemon.name)
                print(f"dwrap: {daemon.name} ended early: {daemon.last_words()}; the farm goes on without it", file=sys.stderr)


class CommandError(ControlError):
    """The command could not be started. `status` is what a shell would exit with."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def environment(farm: Farm) -> dict[str, str]:
    """The environment of a command on `farm`: its address, and this installation's programs first on PATH.

    A farm that is gone does not come back: a command that it had is not waited for as long as elsewhere.
    """
    wanted = {"DWRAP_PATIENCE": str(PATIENCE_SECONDS), **os.environ, "DWRAP_HOST": farm.address}
    beside = str(program("dwrap").parent)
    path = wanted.get("PATH", os.defpath)
    if shutil.which("dwrap", path=path) != os.path.join(beside, "dwrap"):
        wanted["PATH"] = beside + os.pathsep + path
    return wanted


def stay(farm: Farm) -> None:
    """Returns when an ending signal has come. Raises ControlError when the distributor, or the last agent, has ended."""
    watch = Watch(farm)
    while True:
        info = signal.sigtimedwait(HELD, 1.0)
        if info is not None and info.si_signo in ENDING:
            return
        watch.look()
        if farm.distributor is None or not farm.distributor.running():
            raise ControlError("the farm ended: its distributor has ended; see its log lines")
        if not any(agent.running() for agent in farm.agents):
            raise ControlError("the farm ended: all of its agents have ended; see their log lines")


def leave_as(status: int) -> None:
    """Ends this process as the command ended: with its status, or by its signal (without a core file of our own)."""
    sys.stdout.flush()
    sys.stderr.flush()
    if status >= 0:
        raise SystemExit(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if -status not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-status, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.Signals(-status)})
    os.kill(os.getpid(), -status)
    raise SystemExit(128 - status)
