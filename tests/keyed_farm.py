"""A real farm that is reached by keys only, for tests and benchmarks of the wrapper; its agent is on this machine, over a Unix socket.

Keys are made and let in by dwrapctl. Does not know what is run on it.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from farm import DWRAP, program, ready_line


@dataclass
class Keyed:
    """The farm, and what a user does about keys."""

    directory: Path
    address: str
    server: str
    env: dict[str, str]

    def dwrapctl(self, *words: str) -> str:
        return subprocess.run([program("dwrapctl"), *words], env=self.env, capture_output=True, text=True, check=True).stdout

    def dwrap(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [DWRAP, self.address, *words]
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=30, cwd=self.directory, stdin=subprocess.DEVNULL
        )

    def key(self) -> str:
        """The public half of the user's key."""
        return self.dwrapctl("key", "show", "client").split()[0]

    def allow(self, name: str, key: str) -> None:
        """Lets a key in. The distributor notices within a second."""
        self.dwrapctl("key", "allow", "--keys", str(self.directory / "server"), name, key, "--submit", "--uid", str(os.getuid()))


@contextmanager
def daemon(*words: str, env: dict[str, str]) -> Iterator[list[str]]:
    with subprocess.Popen([program(words[0]), *words[1:]], env=env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        try:
            yield ready_line(process)
        finally:
            process.terminate()


@contextmanager
def keyed_farm(directory: Path) -> Iterator[Keyed]:
    """Nobody's key is let in yet, and the distributor's is known to nobody."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = dict(os.environ) | {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "3", "DWRAP_KEYS": str(directory / "user")}
    (directory / "user").mkdir(0o700)
    listen = ["--listen", f"ipc://{directory}/d", "--listen", f"tcp://0.0.0.0:{port}", "--http", "off"]
    with (
        daemon("dwrap-distributor", *listen, "--keys", str(directory / "server"), env=env),
        daemon("dwrap-agent", f"ipc://{directory}/d", "--allow-root", "--slots", "2", env=env),
    ):
        made = Keyed(directory, f"tcp://127.0.0.1:{port}", "", env)
        made.server = made.dwrapctl("key", "show", "--keys", str(directory / "server"), "server").split()[0]
        yield made
