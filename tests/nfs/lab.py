"""Several hosts that share one tree over real NFS, on one machine, without touching its network: boots, runs a command, ends.

A User-Mode Linux guest boots on this machine's own root file system, read-only. In it run a file server and, for each host, an
NFS client of its own that mounts the server's tree at /srv/src (`guest` has the details). The command runs beside the server,
where the served disk itself is /media/export; `on HOST COMMAND...` runs one on a host. Hosts are 10.9.1.2, 10.9.2.2, and so on.

    python tests/nfs/lab.py [--server KIND] [--hosts desk,a1,a2] [--bind DIR]... -- COMMAND [ARG...]

prints what the command prints and exits with its status; 124 when the time is up, 125 when there was no lab.
Knows how a lab is started and ended. Does not know what is tried in it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

SERVERS = ("knfsd-4.2", "knfsd-3", "ganesha")
TREE = Path("/srv/src")
DISK = Path("/media/export")
TIME_IS_UP, NO_LAB = 124, 125
HERE = Path(__file__).resolve().parent
MODULES = Path("/usr/lib/uml/modules")
NEEDED = {
    "linux.uml": "user-mode-linux", "exportfs": "nfs-kernel-server", "mount.nfs": "nfs-common", "rpcbind": "rpcbind", "modprobe": "kmod",
    "ip": "iproute2", "mkfs.ext4": "e2fsprogs", "taskset": "util-linux", "cc": "gcc",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What a lab looks like."""

    server: str = "knfsd-4.2"
    hosts: tuple[str, ...] = ("desk", "a1", "a2")
    squash: bool = False
    """Root on the hosts is nobody on the server."""
    memory: str = "1G"
    disk: str = "2G"


def missing(server: str = "") -> str:
    """Why there can be no lab on this machine, with the remedy; empty when there can."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "User-Mode Linux needs Linux on x86-64"
    if os.geteuid() != 0:
        return "the NFS lab needs root"
    wanted = {**NEEDED, **({"ganesha.nfsd": "nfs-ganesha-vfs"} if server == "ganesha" else {})}
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    packages = [package for program, package in wanted.items() if not shutil.which(program, path=path)]
    return f"the NFS lab needs {' '.join(packages)}: apt-get install" if packages else ""


def run(
    command: Sequence[str],
    shape: Shape = Shape(),
    *,
    binds: Sequence[Path] = (),
    timeout: float = 300.0,
    environment: Mapping[str, str] | None = None,
    output: IO[str] | None = None,
) -> int:
    """Run a command in a fresh lab; its output is passed on as it comes. Returns its status, or TIME_IS_UP, or NO_LAB."""
    work = Path(tempfile.mkdtemp(prefix="dwrap-lab-"))
    try:
        _prepare(work, command, shape, binds, dict(os.environ if environment is None else environment))
        with _guest(work, shape) as guest:
            in_time = _follow(guest, work / "output", time.monotonic() + timeout, output or sys.stdout)
        return _status(work, in_time, timeout)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _prepare(work: Path, command: Sequence[str], shape: Shape, binds: Sequence[Path], environment: dict[str, str]) -> None:
    modules = max(MODULES.iterdir())
    (work / "modules/lib/modules").mkdir(parents=True)
    (work / "modules/lib/modules" / modules.name).symlink_to(modules)
    (work / "disk").touch()
    os.truncate(work / "disk", _bytes(shape.disk))
    subprocess.run([_program("mkfs.ext4"), "-q", "-F", "-m", "0", str(work / "disk")], check=True)
    library = ["-D_GNU_SOURCE", "-shared", "-fPIC", "-o", str(work / "xstate.so")]
    subprocess.run(["cc", "-O2", *library, str(HERE / "xstate.c"), "-ldl"], check=True)
    start = Path.cwd() if any(Path.cwd().is_relative_to(bind) for bind in binds) else Path("/srv")
    settings = {"SERVER": shape.server, "HOSTS": " ".join(shape.hosts), "SQUASH": str(int(shape.squash)), "START": str(start)}
    (work / "settings").write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()))
    reach = dict.fromkeys(str(place) for place in (HERE.parent.parent, Path(sys.prefix), Path(sys.base_prefix)))
    (work / "reach").write_text("".join(f"{place}\n" for place in reach))
    (work / "binds").write_text("".join(f"{bind}\n" for bind in binds))
    (work / "command").write_text(f"set -- {shlex.join(command)}\n")
    kept = {name: value for name, value in environment.items() if name.isidentifier() and name not in ("HOME", "PWD", "OLDPWD", "TMPDIR")}
    (work / "environment").write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in kept.items()))
    (work / "output").touch()


@contextlib.contextmanager
def _guest(work: Path, shape: Shape) -> Iterator[subprocess.Popen[bytes]]:
    """The running guest. Its processes are one group, of which nothing is left afterwards."""
    processor = random.choice(sorted(os.sched_getaffinity(0)))  # one for all of a guest: between two it is five times slower
    argv = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", str(processor), "linux.uml", f"mem={shape.memory}"]
    argv += ["rootfstype=hostfs", "rootflags=/", "ro", f"init={HERE / 'guest'}", f"ubd0={work / 'disk'}", f"umid={work.name}"]
    argv += ["con=null", "con0=null,fd:2", f"LAB={work}"]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(work), "LD_PRELOAD": str(work / "xstate.so")}
    with (work / "console").open("wb") as console:
        guest = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=console, env=environment, start_new_session=True
        )
    try:
        yield guest
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guest.pid, signal.SIGKILL)
        guest.wait()


def _follow(guest: subprocess.Popen[bytes], file: Path, deadline: float, to: IO[str]) -> bool:
    """Pass on what the command prints until the guest has ended; False when the time is up before that."""
    with file.open("r", errors="replace") as output:
        while True:
            ended = guest.poll() is not None
            if piece := output.read():
                to.write(piece)
                to.flush()
            if ended:
                return True
            if time.monotonic() > deadline:
                return False
            with contextlib.suppress(subprocess.TimeoutExpired):
                guest.wait(timeout=0.05)


def _status(work: Path, in_time: bool, timeout: float) -> int:
    if (work / "status").exists():
        return int((work / "status").read_text())
    if not in_time:
        print(f"lab: no end after {timeout:g} s; give --timeout", file=sys.stderr)
        return TIME_IS_UP
    print("lab: the guest did not run the command; this is how its console and its boot end:", file=sys.stderr)
    for name in ("console", "boot"):
        if (work / name).exists():
            print("\n".join((work / name).read_text(errors="replace").splitlines()[-15:]), file=sys.stderr)
    return NO_LAB


def _program(name: str) -> str:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin") or name


def _bytes(size: str) -> int:
    return int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[-1]]


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="lab.py", description="Runs a command in a lab of hosts that share a tree over NFS.")
    parser.add_argument("--server", choices=SERVERS, default=SERVERS[0])
    parser.add_argument("--hosts", default="desk,a1,a2", help="their names, with commas [%(default)s]")
    parser.add_argument("--bind", action="append", default=[], type=Path, metavar="DIR", help="is writable in the lab too; may be repeated")
    parser.add_argument("--squash", action="store_true", help="root on the hosts is nobody on the server")
    parser.add_argument("--memory", default="1G")
    parser.add_argument("--disk", default="2G")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("command", nargs="+")
    chosen = parser.parse_args(arguments)
    if why := missing(chosen.server):
        print(f"lab: {why}", file=sys.stderr)
        return NO_LAB
    shape = Shape(chosen.server, tuple(chosen.hosts.split(",")), chosen.squash, chosen.memory, chosen.disk)
    return run(chosen.command, shape, binds=[bind.resolve() for bind in chosen.bind], timeout=chosen.timeout)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
