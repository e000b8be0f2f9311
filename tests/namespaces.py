"""A farm whose desktop, distributor and agents are on networks of their own, and what can happen to the wires between them.

Each is a network namespace that lives as long as a process which does nothing; all of it, wires included, is gone with those. This
machine's own network is not touched. Files are common to all. The wires lead to the distributor's namespace, which has one address for
everyone. Knows unshare, nsenter, ip and iptables. Does not know what is run meanwhile.
"""

from __future__ import annotations

import enum
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from farm import Farm, query

ADDRESS = "10.77.0.1"
PORT = 7776
DESK = "desk"
NEEDED = ("unshare", "nsenter", "setpriv", "ip", "iptables")
SOME_UID = 1000  # nobody vouches for a peer on another host, and then no agent runs anything as root


class Cut(enum.Enum):
    """What happens to what is sent: `up` is towards the distributor."""

    DROPPED = "dropped"
    DROPPED_UP = "dropped up"
    DROPPED_DOWN = "dropped down"
    RESET = "reset"


def missing() -> str:
    """Why there can be no namespaces here; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [program for program in NEEDED if not shutil.which(program)]
    if lacking:
        return f"needs {' '.join(lacking)}: apt-get install iproute2 iptables util-linux"
    probe = ["unshare", "--net", "sh", "-c", "ip link set lo up && iptables -A INPUT -p tcp -j REJECT --reject-with tcp-reset"]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        return "no network namespaces with iptables here"
    if subprocess.run(as_some_user(["true"]), capture_output=True).returncode != 0:
        return "no user namespaces here"
    return ""


def as_some_user(argv: Sequence[str]) -> list[str]:
    """The command line as that of a user who is not root, and may still reach whatever root's programs lie in."""
    return ["unshare", "--user", f"--map-user={SOME_UID}", f"--map-group={SOME_UID}", *argv]


class Spread(Farm):
    """A farm on `1 + agents` wires: `with Spread(directory, ["a1", "a2"]) as farm:`. Its directory must leave room for a socket's name."""

    def __init__(self, directory: Path, agents: Sequence[str], slots: int = 2) -> None:
        self._held = ExitStack()
        self._centre = self._held.enter_context(_namespace())
        _inside(self._centre, f"ip addr add {ADDRESS}/32 dev lo")
        self._hosts: dict[str, int] = {}
        try:
            for number, host in enumerate([DESK, *agents], 1):
                self._hosts[host] = self._held.enter_context(_namespace())
                self._lay_wire(number, host)
            listen = [f"tcp://{ADDRESS}:{PORT}", f"ipc://{directory}/d"]
            super().__init__(directory, agents=0, listen=listen, roots=[str(directory)], under=_enter(self._centre), more=["--insecure"])
            for host in agents:
                work = str(directory / f"work-{host}")  # on machines of their own agents would not find each other's
                self.add_agent(host, slots, "--insecure", "--work", work, under=[*self.on(host), *as_some_user([])])
        except BaseException:
            self._held.close()
            raise

    def _lay_wire(self, number: int, host: str) -> None:
        pid, near = self._hosts[host], f"10.77.{number}"
        _inside(self._centre, f"ip link add to-{host} type veth peer name eth0 netns {pid}")
        _inside(self._centre, f"ip addr add {near}.1/24 dev to-{host} && ip link set to-{host} up")
        _inside(pid, f"ip addr add {near}.2/24 dev eth0 && ip link set eth0 up && ip route add default via {near}.1")

    def on(self, host: str) -> list[str]:
        """What a command line begins with that runs on that host. The process is the command's own."""
        return _enter(self._hosts[host])

    def query(self, what: str, **fields: str) -> Any:
        """Asked past the wires."""
        return query(self.over("ipc"), what, **fields)

    def names(self) -> set[str]:
        """The agents that the distributor believes to be there."""
        return {agent["name"] for agent in self.status()["agents"]}

    def cut(self, host: str, how: Cut) -> None:
        """From now on this happens to all that is sent on the host's wire."""
        verdict = "-p tcp -j REJECT --reject-with tcp-reset" if how is Cut.RESET else "-j DROP"
        if how is not Cut.DROPPED_DOWN:
            _inside(self._centre, f"iptables -w -A INPUT -i to-{host} {verdict}")
        if how is not Cut.DROPPED_UP:
            _inside(self._hosts[host], f"iptables -w -A INPUT -i eth0 {verdict}")

    def heal(self, host: str) -> None:
        """All arrives again."""
        for pid in (self._centre, self._hosts[host]):
            _inside(pid, "iptables -w -F")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        self._held.close()


def _enter(pid: int) -> list[str]:
    return ["nsenter", f"--net=/proc/{pid}/ns/net"]


def _inside(pid: int, script: str) -> None:
    subprocess.run([*_enter(pid), "sh", "-ec", script], check=True, timeout=30)


@contextmanager
def _namespace() -> Iterator[int]:
    """The process that holds a network namespace with a loopback interface."""
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-ec", "ip link set lo up; echo; exec sleep infinity"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline(), "there is no network namespace"
            yield holder.pid
        finally:
            holder.kill()
