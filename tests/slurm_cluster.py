"""A Slurm of several virtual nodes on this machine, with a munge and ports of its own, in one directory; and a user of it who is not root.

Knows Debian's Slurm (22.05), which runs here without cgroups and without systemd. Does not know what is run on it. `close` ends all of it.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import cmake
import ninja
from farm import DWRAP, eventually

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "setpriv")
USER = "nobody"
CPUS = 2  #: of each node
START_SECONDS = 30.0
_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MODULES = {"dwrap-agent": "agent", "dwrap-distributor": "distributor", "dwrapctl": "control"}
_CONFIGURATION = """\
ClusterName=dwrap
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
AuthInfo=socket={place}/munge/socket
SlurmUser=root
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/controller.pid
SlurmdPidFile={place}/%n.pid
SlurmctldLogFile={place}/controller.log
SlurmdLogFile={place}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=5
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why there can be no Slurm here; empty when there can be one."""
    if os.getuid() != 0:
        return "only root can run Slurm's daemons"
    path = os.pathsep.join([os.environ.get("PATH", ""), _SYSTEM])
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (packages slurm-wlm and munge)"
    return "" if interpreter() else f"no Python like this one that {USER} may run"


def as_user(*command: str) -> list[str]:
    """A command that does this as the user."""
    known = pwd.getpwnam(USER)
    return ["setpriv", f"--reuid={known.pw_uid}", f"--regid={known.pw_gid}", "--clear-groups", *command]


@functools.cache
def interpreter() -> str:
    """A Python of this version that the user may run: this one may lie where only root can look. Empty when there is none."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        asked = as_user("env", candidate, "-c", "import json, sys; print(*sys.version_info[:2])")  # setpriv itself may still look anywhere
        try:
            said = subprocess.run(asked, capture_output=True, text=True, check=False, cwd="/").stdout.split()
        except OSError:
            continue
        if said == [str(number) for number in sys.version_info[:2]]:
            return candidate
    return ""


class Cluster:
    """`with Cluster(directory, nodes=4) as slurm:`; its nodes are n1, n2, … of CPUS processors each."""

    def __init__(self, place: Path, nodes: int) -> None:
        self.place = place
        self.user_uid = pwd.getpwnam(USER).pw_uid
        self.home = place / "home"
        self._daemons: list[subprocess.Popen[bytes]] = []
        place.chmod(0o755)
        for name in ("munge", "state", "bin", "home", "tmp"):
            (place / name).mkdir(0o755)
        for folder in (self.home, place / "tmp"):
            shutil.chown(folder, USER, pwd.getpwnam(USER).pw_gid)
        self._install()
        self.env = {
            "HOME": str(self.home), "USER": USER, "LOGNAME": USER, "TMPDIR": str(place / "tmp"), "LC_ALL": "C.UTF-8",
            "PATH": os.pathsep.join([str(place / "bin"), cmake.CMAKE_BIN_DIR, ninja.BIN_DIR, _SYSTEM]),
            "SLURM_CONF": str(place / "slurm.conf"), "DWRAP_FALLBACK": "fail",
        }  # fmt: skip
        ports = free_ports(nodes + 1)
        host = socket.gethostname().partition(".")[0]
        lines = [f"NodeName=n{1 + i} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[i]} CPUs={CPUS}" for i in range(nodes)]
        (place / "slurm.conf").write_text(_CONFIGURATION.format(place=place, controller=ports[-1], nodes="\n".join(lines)))
        try:
            self._start(nodes)
        except BaseException:
            self.close()
            raise

    def _install(self) -> None:
        """dwrap's programs, as the user can run them."""
        for name, room in _MODULES.items():
            script = self.place / "bin" / name
            first = "import site, sys\nbefore = set(sys.path)\n"
            ours = f"site.addsitedir({sysconfig.get_path('purelib')!r})\nsys.path.sort(key=before.__contains__)\n"
            script.write_text(f"#!{interpreter()} -I\n{first}{ours}from dwrap.{room}.cli import main\nsys.exit(main())\n")
            script.chmod(0o755)
        for program in Path(DWRAP).parent.iterdir():
            shutil.copy(program, self.place / "bin")

    def _start(self, nodes: int) -> None:
        munge = self.place / "munge"
        (munge / "key").write_bytes(os.urandom(64))
        (munge / "key").chmod(0o400)
        files = [f"--{what}={munge / name}" for what, name in
                 (("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))]  # fmt: skip
        self._daemon("munged", "--foreground", "--force", *files)
        eventually((munge / "socket").exists, START_SECONDS, "munge is up")
        self._daemon("slurmctld", "-D")
        for number in range(nodes):
            self._daemon("slurmd", "-D", "-N", f"n{1 + number}")
        eventually(lambda: self._idle() == nodes, START_SECONDS, f"{nodes} nodes are idle")

    def _daemon(self, *command: str) -> None:
        with (self.place / "daemons.log").open("ab") as log:
            process = subprocess.Popen(command, env={**self.env, "HOME": "/root"}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._daemons.append(process)

    def _idle(self) -> int:
        said = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], env=self.env, capture_output=True, text=True, check=False)
        return said.stdout.split().count("idle")

    # ---- what the user does

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """The user's command, in their home."""
        return subprocess.Popen(
            as_user(*command), env={**self.env, **environment}, cwd=self.home, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *command: str, seconds: float = 60.0, **environment: str) -> str:
        """What the user's command says. Raises AssertionError, with that, when it fails."""
        with self.start(*command, **environment) as process:
            try:
                said, _ = process.communicate(timeout=seconds)
            finally:
                process.kill()
        assert process.returncode == 0, f"{' '.join(command)} ended with {process.returncode}:\n{said}"
        return said

    def sbatch(self, *words: str, **environment: str) -> str:
        """The number of a new job."""
        return self.run("sbatch", "--parsable", *words, **environment).strip()

    def states(self, job: str) -> Mapping[str, tuple[str, str]]:
        """State and exit status of a job, or of each task of an array, by what `scancel` would call it."""
        found = {}
        for line in self.run("scontrol", "show", "job", "--oneliner", job).splitlines():
            said = dict(re.findall(r"(\w+)=(\S+)", line))
            array = said.get("ArrayJobId")
            found[f"{array}_{said['ArrayTaskId']}" if array else said["JobId"]] = (said["JobState"], said["ExitCode"])
        return found

    def log(self, name: str) -> str:
        """What a job has written so far."""
        file = self.home / name
        return file.read_text("utf-8", "replace") if file.exists() else ""

    # ---- the end

    def left(self) -> list[str]:
        """Processes that belong to the cluster's jobs: what they were started with names the cluster's directory."""
        ours = {str(process.pid) for process in self._daemons} | {str(os.getpid())}
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or entry.name in ours:
                continue
            try:
                command, names = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                is_user = entry.stat().st_uid == self.user_uid
            except OSError:
                continue
            if str(self.place).encode() in command + names and (is_user or b"slurmstepd" in command):
                found.append(f"{entry.name} {command.replace(bytes(1), b' ').decode(errors='replace')}")
        return found

    def close(self) -> None:
        """Ends every job, and every daemon, the ones that others need last."""
        if self._daemons:
            subprocess.run(["scancel", "--user", USER], env=self.env, check=False, capture_output=True, timeout=30)
        try:
            if self._daemons:
                eventually(lambda: not self.left(), 30, "the jobs have ended")
        finally:
            for process in reversed(self._daemons):
                _end(process)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def logs(self) -> str:
        """The end of everything that daemons and jobs have logged."""
        files = sorted([*self.place.glob("*.log"), *self.home.glob("*.log")])
        return "\n".join(f"--- {file.name}\n{file.read_text('utf-8', 'replace')[-4_000:]}" for file in files)


def free_ports(count: int) -> Sequence[int]:
    """Ports of this machine that nobody listens at."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
