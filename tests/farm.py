"""A distributor and its agents as real processes, for tests and benchmarks that need the whole thing.

Knows the programs' command lines, their `ready` lines and the QUERY message. Does not know what is run on the farm.
Everything it starts is ended by `close`, which is what leaving the `with` block does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

from dwrap.protocol import messages

READY_SECONDS = 20.0
ANSWER_SECONDS = 10.0
CONTROLLERS = Path("/sys/fs/cgroup")
HERE = Path(__file__).resolve().parent.parent
DWRAP = str(HERE / "build" / "bin" / "dwrap")


def program(name: str) -> str:
    """The path of one of our programs, installed beside the Python that runs this."""
    return str(Path(sys.executable).parent / name)


def eventually(what: Callable[[], Any], seconds: float = ANSWER_SECONDS, saying: str = "") -> Any:
    """The first true value of `what()`. Raises AssertionError when there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {saying or what}")
        time.sleep(0.01)


def ready_line(process: subprocess.Popen[bytes], seconds: float = READY_SECONDS) -> list[str]:
    """The words after `ready` in the line that a daemon prints. Raises AssertionError when it does not come."""
    assert process.stdout is not None
    line, deadline = b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        left = max(0.0, deadline - time.monotonic())
        if not select.select([process.stdout], [], [], left)[0]:
            raise AssertionError(f"no ready line within {seconds:g} s from {process.args!r}")
        piece = os.read(process.stdout.fileno(), 4096)
        if not piece:
            raise AssertionError(f"{process.args!r} ended ({process.wait()}) without a ready line")
        line += piece
    words = line.decode().split()
    assert words[0] == "ready", line
    return words[1:]


class Farm:
    """One distributor with `agents` agents of `slots` slots each; `with Farm(...) as farm:`."""

    def __init__(
        self, directory: Path, *, agents: int = 2, slots: int = 2, listen: Sequence[str] = (), roots: Sequence[str] = ("/",),
        under: Sequence[str] = (), more: Sequence[str] = (), allow_root: bool = True,
    ) -> None:  # fmt: skip
        """`under` is a command that starts the distributor in surroundings of its own, `more` its further options."""
        self._allow_root = allow_root and os.getuid() == 0
        self.directory = directory
        self._distributor_command = under, more
        self._log = (directory / "farm.log").open("ab")
        self._roots = roots
        self.addresses = list(listen or (f"ipc://{directory}/distributor.sock", "tcp://127.0.0.1:0"))
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[list[str], Sequence[str]]] = {}
        self.distributor = self._start_distributor()
        try:
            ready = ready_line(self.distributor)
            self.addresses = [word for word in ready if not word.startswith("http")]
            self.http = next((word for word in ready if word.startswith("http")), "")
            for number in range(agents):
                self._start_agent(f"agent-{number + 1}", slots)
            for agent in self.agents.values():
                ready_line(agent)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """The first address it listens on."""
        return self.addresses[0]

    def over(self, carrier: str) -> str:
        """The address of that carrier: `tcp` or `ipc`."""
        return next(one for one in self.addresses if one.startswith(f"{carrier}:"))

    def _start_distributor(self) -> subprocess.Popen[bytes]:
        under, more = self._distributor_command
        arguments = [word for address in self.addresses for word in ("--listen", address)]
        argv = ["dwrap-distributor", *arguments, "--http", "127.0.0.1:0", "--state", str(self.directory / "state"), *more]
        return self._start(argv, under)

    def restart_distributor(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends the distributor with this signal, and starts another at the same addresses, which is not waited for."""
        _end(self.distributor, number)
        self.distributor = self._start_distributor()

    def restart_agent(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """The same for an agent."""
        _end(self.agents[name], number)
        argv, under = self._commands[name]
        self.agents[name] = self._start(argv, under)

    def add_agent(self, name: str, slots: int, *more: str, under: Sequence[str] = (), at: str = "") -> subprocess.Popen[bytes]:
        """Start an agent and wait until it is registered. `under` is a command that starts it in surroundings of its own, `at` the address
        that it dials.
        """
        self._start_agent(name, slots, *more, under=under, at=at)
        ready_line(self.agents[name])
        return self.agents[name]

    def _start_agent(self, name: str, slots: int, *more: str, under: Sequence[str] = (), at: str = "") -> None:
        roots = [word for root in self._roots for word in ("--root", root)]
        allow = ["--allow-root"] if self._allow_root else []
        argv = ["dwrap-agent", at or self.address, *roots, "--slots", str(slots), "--name", name, *allow, *more]
        self._commands[name] = argv, under
        self.agents[name] = self._start(argv, under)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment in which a wrapper uses this farm and nothing else."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DWRAP_", "FORCE_"))}
        return {**kept, "DWRAP_HOST": self.address, "DWRAP_FALLBACK": "fail", **more}

    def query(self, what: str, **fields: str) -> Any:
        """The distributor's answer to a QUERY, its JSON decoded."""
        return query(self.address, what, **fields)

    def status(self) -> Any:
        """`dwrapctl status --json`."""
        return self.query("status")

    def jobs(self) -> list[dict[str, Any]]:
        """The records of the jobs it knows, oldest first."""
        answer = self.query("jobs")
        return list(answer["jobs"] if isinstance(answer, Mapping) else answer)

    def per_agent(self) -> dict[str, int]:
        """How many jobs each agent has finished."""
        return {agent["name"]: agent["jobs_done"] for agent in self.status()["agents"]}

    def close(self) -> None:
        """End every daemon: TERM, and KILL for what does not go within a second or two."""
        everyone = [*self.agents.values(), self.distributor]
        for process in everyone:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in everyone:
            try:
                process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()
        self._log.close()

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self, argv: Sequence[str], under: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        return subprocess.Popen(
            [*under, program(argv[0]), *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PATH": path},
        )


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    process.send_signal(number)
    process.wait(timeout=10)
    if process.stdout:
        process.stdout.close()


def query(address: str, what: str, **fields: str) -> Any:
    """Ask the distributor at `address`. Raises AssertionError when it does not answer."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    try:
        socket.connect(address)
        asked = uuid.uuid4().hex
        socket.send_multipart(messages.encode("QUERY", [("what", what), ("id", asked), *fields.items()]))
        if not socket.poll(int(ANSWER_SECONDS * 1000)):
            raise AssertionError(f"{address} does not answer QUERY {what}")
        _, _, bodies = messages.parse(socket.recv_multipart())
        return json.loads(bodies[0])
    finally:
        socket.close()
        context.term()


def resident_bytes(pid: int) -> int:
    """The resident set of a process now, in bytes; 0 when it has gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGESIZE")
