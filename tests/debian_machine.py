"""A fresh Debian that boots systemd, in a container: packages are installed, upgraded and purged there, never on this machine.

Knows debootstrap, overlayfs and systemd-nspawn. The base is made once, with this machine's own mirror and keyring, and kept in /var/tmp;
a machine is a copy of it that is gone afterwards. It has loopback only: what apt needs is in the base's cache. Does not know dwrap.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

RELEASE = "bookworm"
BASE = Path(f"/var/tmp/dwrap-debian-{RELEASE}")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PRESENT = ["systemd", "systemd-sysv", "dbus", "g++", "man-db", "ca-certificates"]
BOOT_SECONDS = 60.0
STEP_SECONDS = 0.05
_SERIAL = itertools.count()


class MachineError(Exception):
    """There can be no such machine here; the text is one line and says why."""


def prerequisites() -> str:
    """What is missing for one; empty when nothing is."""
    if os.geteuid() != 0:
        return "a Debian of its own needs root"
    missing = [program for program in ("debootstrap", "systemd-nspawn", "nsenter", "mount") if not shutil.which(program)]
    if missing:
        return f"a Debian of its own needs {', '.join(missing)}: apt-get install debootstrap systemd-container"
    return "" if KEYRING.exists() else f"a Debian of its own needs {KEYRING}: apt-get install debian-archive-keyring"


def mirror() -> str:
    """Where this machine's apt gets Debian from. Raises MachineError."""
    for file in sorted(Path("/etc/apt").glob("sources.list.d/*.sources")) + sorted(Path("/etc/apt").glob("sources.list.d/*.list")):
        found = re.search(r"(?m)^URIs:\s*(\S+/debian)/?$|^deb\s+(?:\[.*?\]\s*)?(\S+/debian)/?\s", file.read_text())
        if found:
            return str(found[1] or found[2])
    file = Path("/etc/apt/sources.list")
    found = re.search(r"(?m)^deb\s+(?:\[.*?\]\s*)?(\S+/debian)/?\s", file.read_text()) if file.exists() else None
    if not found:
        raise MachineError("this machine's apt names no mirror of Debian")
    return found[1]


def base(downloaded: list[str]) -> Path:
    """The kept base, with these packages and what they need in apt's cache. Raises MachineError."""
    stamp = BASE / "var/cache/dwrap-base"
    wanted = " ".join([*PRESENT, "/", *downloaded])
    if stamp.exists() and stamp.read_text() == wanted:
        return BASE
    shutil.rmtree(BASE, ignore_errors=True)
    run(["debootstrap", "--variant=minbase", f"--keyring={KEYRING}", RELEASE, str(BASE), mirror()])
    shutil.copy("/etc/resolv.conf", BASE / "etc/resolv.conf")
    (BASE / "etc/apt/apt.conf.d/docker-clean").unlink(missing_ok=True)
    in_base = ["chroot", str(BASE), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "--no-install-recommends"]
    run([*in_base, "install", *PRESENT])
    run([*in_base, "install", "--download-only", *downloaded])
    stamp.write_text(wanted)
    return BASE


def run(command: list[str], seconds: float = 600) -> str:
    """Runs it, and returns what it said. Raises MachineError with its last lines."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    if done.returncode != 0:
        raise MachineError(f"{' '.join(command[:2])} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


class Machine:
    """One that has booted. Commands run in it as root, with a short environment."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._leader = leader
        self.started: list[subprocess.Popen[str]] = []

    def command(self, *words: str, user: str = "root", **environment: str) -> list[str]:
        """The words that run these in the machine."""
        settings = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **environment}
        enter = ["nsenter", "--target", str(self._leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]
        home = "/root" if user == "root" else f"/home/{user}"
        become = [] if user == "root" else ["runuser", "--user", user, "--"]
        settings.setdefault("HOME", home)
        return [*enter, *become, "env", "-i", "-C", home, *(f"{name}={value}" for name, value in settings.items()), *words]

    def enter_network(self, *words: str) -> list[str]:
        """The words that run a program of this machine in that one's network."""
        return ["nsenter", "--target", str(self._leader), "--net", *words]

    def run(self, *words: str, status: int | None = 0, seconds: float = 120, user: str = "root", **environment: str) -> str:
        """Runs them, and returns what they said on both streams. Any other status than this one is a failure; None: all are well."""
        done = subprocess.run(
            self.command(*words, user=user, **environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
        )
        assert status is None or done.returncode == status, f"{' '.join(words)} ended with {done.returncode}: {done.stdout}"
        return done.stdout.strip()

    def start(self, *words: str, user: str = "root", **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.command(*words, user=user, **environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.started.append(process)
        return process

    @property
    def is_up(self) -> bool:
        self.let_go()
        return Path(f"/proc/{self._leader}").exists()

    def let_go(self) -> None:
        """Its init ends only once what we started there has been reaped. A shutdown stops all processes for a moment, and nsenter, which
        waits for one of them, then stops itself.
        """
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)

    def until(self, *words: str, says: str, seconds: float = 30) -> None:
        """Runs them again and again until they say that: systemctl waits for a boot, but for no property of a unit."""
        deadline = time.monotonic() + seconds
        while (said := self.run(*words, status=None)) != says:
            assert time.monotonic() < deadline, f"{' '.join(words)} still says {said!r}, not {says!r}"
            time.sleep(STEP_SECONDS)


@contextlib.contextmanager
def booted(downloaded: list[str]) -> Iterator[Machine]:
    """A machine for as long as the context lasts. Raises MachineError."""
    lower = base(downloaded)
    place = Path("/var/tmp", f"dwrap-debian-{os.getpid()}-{next(_SERIAL)}")  # a machine's name may not have all that mkdtemp's have
    place.mkdir()
    root = place / "root"
    for folder in ("root", "upper", "work"):
        (place / folder).mkdir()
    try:
        run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work", str(root)])
        try:
            with _container(root) as machine:
                yield machine
        finally:
            run(["umount", "--lazy", str(root)])
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _container(root: Path) -> Iterator[Machine]:
    """Boots it, and ends it."""
    words = ["systemd-nspawn", "--quiet", "--directory", str(root), "--private-network", "--register=no", "--keep-unit", "--boot",
             f"--machine={root.parent.name}", "--console=pipe", "--notify-ready=yes", "systemd.show_status=no"]  # fmt: skip
    with _groups(root.parent.name) as groups, open(root.parent / "boot.log", "wb") as log, _told(root.parent / "told") as told:
        enter = " ".join(f"echo $$ > {group}/cgroup.procs;" for group in groups)
        container = subprocess.Popen(
            ["sh", "-c", f'{enter} exec "$@"', "sh", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, "NOTIFY_SOCKET": str(root.parent / "told")},
        )  # fmt: skip
        try:
            leader = int(_hear(told, container, "X_NSPAWN_LEADER_PID"))
        except MachineError as error:
            container.kill()
            container.wait()
            said = (root.parent / "boot.log").read_text("utf-8", "replace").strip()[-400:]
            raise MachineError(f"systemd-nspawn does not boot here: {said or error}") from error
        machine, init = Machine(root, leader), os.pidfd_open(leader)
        try:
            _hear(told, container, "READY")
            machine.until("systemctl", "is-system-running", says="running")
            yield machine
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has shut down
                signal.pidfd_send_signal(init, signal.SIGKILL)  # with it ends everything in its PID namespace; nothing there is to be kept
            os.close(init)
            deadline = time.monotonic() + BOOT_SECONDS
            while container.poll() is None and time.monotonic() < deadline:
                machine.let_go()
                time.sleep(STEP_SECONDS)
            container.wait(0)


@contextlib.contextmanager
def _groups(name: str) -> Iterator[list[Path]]:
    """Control groups of its own, of either version: else all such machines, and what is left of one, would share theirs."""
    tops = [top for top in (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified")) if top.is_dir()] or [Path("/sys/fs/cgroup")]
    groups = [top / name for top in tops]
    try:
        for group in groups:
            group.mkdir()
    except OSError as error:
        raise MachineError(f"control groups cannot be made here: {error.strerror or error}") from error
    try:
        yield groups
    finally:
        for group in groups:
            for folder, _, _ in os.walk(group, topdown=False):
                _remove_group(Path(folder))


def _remove_group(group: Path) -> None:
    """Once the last of its processes has been reaped."""
    deadline = time.monotonic() + BOOT_SECONDS
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(STEP_SECONDS)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[socket.socket]:
    """Where systemd-nspawn says what becomes of its machine (sd_notify(3))."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        yield told


def _hear(told: socket.socket, container: subprocess.Popen[bytes], word: str) -> str:
    """What it says of that word. Raises MachineError when it ends before, or does not say so in time."""
    ended = os.pidfd_open(container.pid)
    try:
        deadline = time.monotonic() + BOOT_SECONDS
        while ready := select.select([told, ended], [], [], max(0.0, deadline - time.monotonic()))[0]:
            lines = told.recv(4_096).decode().splitlines() if told in ready else []
            for line in lines:
                if line.startswith(f"{word}="):
                    return line.partition("=")[2]
            if not lines:
                raise MachineError("it ended")
        raise MachineError(f"nothing was heard of {word} for {BOOT_SECONDS:.0f} s")
    finally:
        os.close(ended)
