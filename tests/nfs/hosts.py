"""Inside the lab: commands on its hosts, a farm spread over them, and hands that look at the tree on each.

Knows the lab's layout (lab.py, guest) and the programs' command lines. Does not know what is proved with them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from farm import DWRAP, eventually, program, query, ready_line
from lab import DISK, TREE

__all__ = ["DISK", "DWRAP", "TREE", "Farm", "Hand", "compiled", "eventually", "on", "server"]
HERE = Path(__file__).resolve().parent
SOCKET = "ipc:///run/farm/distributor.sock"
PORT = 7776
ROOT, USER = 0, 1000


def server() -> str:
    """The kind of file server that this lab has."""
    return os.environ["LAB_SERVER"]


def every_host() -> list[str]:
    """The lab's hosts; the first is the desktop."""
    return os.environ["LAB_HOSTS"].split()


@cache
def _holder(host: str) -> str:
    return Path("/run/hosts", host).read_text().strip()


def on(host: str, argv: Sequence[str], *, cwd: Path = TREE, uid: int = ROOT) -> list[str]:
    """The command line that runs this one on a host."""
    enter = ["nsenter", "--target", _holder(host), "--net", "--mount", "--uts"]
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid else []
    if os.environ.get("LAB_SQUASH") == "1":  # the directory may be closed to root
        return [*enter, "--wdns=/", *become, "env", "-C", str(cwd), *argv]
    return [*enter, f"--wdns={cwd}", *become, *argv]


def compiled(name: str, *flags: str) -> str:
    """A C program of this directory, compiled inside the lab onto the shared tree."""
    target = DISK / "bin" / name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        warnings = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"]
        source = str(HERE / f"{name}.c")
        subprocess.run(["cc", *warnings, "-static", "-I", str(HERE.parent.parent), source, *flags, "-o", str(target)], check=True)
    return str(TREE / "bin" / name)


def hand() -> str:
    """The path of the program `hand`."""
    return compiled("hand", *map(str, (HERE.parent.parent / "coherence").glob("*.c")))


def with_tree(script: str) -> None:
    """Run a script beside the server where the tree's path leads to the served disk itself: the reference without any NFS."""
    lines = f"mount --bind {DISK} {TREE}\n{script}"
    subprocess.run(["unshare", "--mount", "sh", "-ec", lines], check=True)


class Hand:
    """`hand serve` on one host, or with no host beside the server: plain acts and looks there, without a new process for each."""

    def __init__(self, host: str, cwd: Path, uid: int = ROOT) -> None:
        argv = on(host, [hand(), "serve"], cwd=cwd, uid=uid) if host else [str(DISK / "bin" / "hand"), "serve"]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=None if host else cwd)

    def __call__(self, *words: str) -> list[str]:
        """The answers to these acts and looks, one line for each."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write("\t".join(words) + "\n")
        stdin.flush()
        answers = []
        while (line := stdout.readline()) != ".\n":
            assert line, "a hand has died"
            answers.append(line.rstrip("\n"))
        return answers

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Farm:
    """A distributor on the desktop and an agent on each other host; `with Farm(...) as farm:`.

    As root over a Unix socket (agents then run anybody's jobs, the `submitter`'s), or with `uid` as that user, over TCP between hosts.
    """

    def __init__(self, *, uid: int = ROOT, submitter: int = ROOT, slots: int = 2, views: bool = True, cwd: Path = TREE) -> None:
        self.uid, self.submitter, self.views, self.cwd = uid, submitter or uid, views, cwd
        self.submitted = 0
        self.desk, *self.names = every_host()
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.log = Path("/run/farm/log")
        self.log.parent.mkdir(exist_ok=True)
        self.log.parent.chmod(0o1777)
        Path(SOCKET.removeprefix("ipc://")).unlink(missing_ok=True)
        self.log.touch()
        self.log.chmod(0o666)
        self._tcp = f"tcp://10.9.1.2:{PORT}"
        try:
            self._start(self.desk, ["dwrap-distributor", "--listen", SOCKET, "--listen", self._tcp, "--http", "off", "--insecure"])
            Path(SOCKET.removeprefix("ipc://")).chmod(0o777)
            for name in self.names:
                self.start_agent(name, slots)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """What wrappers and agents dial."""
        return self._tcp if self.uid else SOCKET

    def start_agent(self, name: str, slots: int) -> None:
        """An agent on the host of that name, which is `agents[name]` then; its jobs can be asked for with the label who=NAME."""
        more = ["--slots", str(slots), "--label", f"who={name}", "--insecure" if self.uid else "--allow-root"]
        if not self.views and knows_views():
            more += ["--views", "never"]
        self.agents[name] = self._start(name, ["dwrap-agent", self.address, "--root", str(TREE), "--name", name, *more])

    def environment(self, agent: str = "", **more: str) -> dict[str, str]:
        """That of a wrapper; with `agent` its jobs run there and nowhere else."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DWRAP_", "FORCE_", "LAB_"))}
        path = os.pathsep.join([str(Path(DWRAP).parent), str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
        ours = {"DWRAP_HOST": self.address, "DWRAP_FALLBACK": "fail", "DWRAP_BUILD": "proof", "DWRAP_INSECURE": "1"}
        if agent:
            ours["DWRAP_LABELS"] = f"who={agent}"
        if not self.views:
            ours["DWRAP_VIEWS"] = "never"
        return {**kept, "PATH": path, "HOME": "/tmp", **ours, **more}

    def job(self, agent: str, *command: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command through dwrap, from the desktop, on that agent (or any)."""
        self.submitted += 1
        return self.plain(self.desk, DWRAP, *command, cwd=cwd, environment=self.environment(agent, **more))

    def plain(
        self, host: str, *command: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, without dwrap."""
        argv = on(host, command, cwd=cwd or self.cwd, uid=self.submitter)
        nothing = subprocess.DEVNULL
        return subprocess.run(argv, capture_output=True, text=True, errors="replace", stdin=nothing, env=environment, check=False)

    def jobs(self) -> list[dict[str, Any]]:
        """The records of the jobs that the distributor remembers, oldest first."""
        answer = query(SOCKET, "jobs")
        return list(answer["jobs"] if isinstance(answer, Mapping) else answer)

    def why(self, job: str = "last") -> dict[str, Any]:
        """All that is known of one job."""
        return dict(query(SOCKET, "why", job=job))

    def done(self) -> dict[str, int]:
        """How many jobs each agent has finished."""
        return {agent["name"]: agent["jobs_done"] for agent in query(SOCKET, "status")["agents"]}

    def close(self) -> None:
        """End every daemon, the agents first."""
        for process in reversed(self._daemons):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            if process.poll() is None:
                process.kill()
                process.wait()
        self._daemons.clear()

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is not None:
            print(self.log.read_text(errors="replace")[-4000:], file=sys.stderr)

    def _start(self, host: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            command = on(host, [program(argv[0]), *argv[1:]], cwd=Path("/"), uid=self.uid)
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=self.environment())
        self._daemons.append(process)
        ready_line(process)
        return process


@contextlib.contextmanager
def cut_off(host: str) -> Iterator[None]:
    """Meanwhile nothing that is sent to this host or by it arrives: neither the file server's nor the distributor's."""
    subprocess.run(["ip", "link", "set", f"to-{host}", "down"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "link", "set", f"to-{host}", "up"], check=True)


@cache
def knows_views() -> bool:
    """Whether the agent at hand has the switch that turns coherence off."""
    return "--views" in subprocess.run([program("dwrap-agent"), "--help"], capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def hands(cwd: Path, uid: int = ROOT) -> Iterator[dict[str, Hand]]:
    """A hand on each host."""
    every = {host: Hand(host, cwd, uid) for host in every_host()}
    try:
        yield every
    finally:
        for hand in every.values():
            hand.close()
