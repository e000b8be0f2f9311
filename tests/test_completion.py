"""What a user gets with Tab: in a real bash with bash-completion, typed at a terminal; zsh and fish at least read their files."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wrapper_program import ROOT

FRAMEWORK = Path("/usr/share/bash-completion/bash_completion")
COMPLETION = ROOT / "deploy/completion"
ALL = "\x1b*"  # readline: insert all completions
SECONDS = 20.0


class Terminal:
    """A bash that somebody types at."""

    def __init__(self, home: Path) -> None:
        pid, self._fd = pty.fork()
        if pid == 0:
            settings = {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "dumb", "XDG_CONFIG_HOME": str(home / ".config")}
            os.chdir(home)
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], settings)  # noqa: S606 # a shell it is
        self._pid, self._count = pid, 0
        self.type(f"PS1=; stty -echo cols 2000; bind 'set completion-query-items 0'; source {FRAMEWORK}")
        for file in ("dwrap", "dwrapctl", "dwrap-agent", "dwrap-distributor"):
            self.type(f"source {COMPLETION}/bash/{file}")

    def type(self, line: str, keys: str = "") -> str:
        """Types a line and these keys; returns what bash then says the line is, or, without keys, what it prints."""
        self._count += 1
        mark, written = f"=={self._count}", f"'='={self._count}"  # what is typed is echoed: it must not look like what is printed
        before = f"{line}{keys}\x01echo \x05 {written}" if keys else f"{line}; echo {written}"
        os.write(self._fd, f"{before}\n".encode())
        said, deadline = "", time.monotonic() + SECONDS
        while not re.search(rf"(?m)^(.*)[ ]?{mark}\r?$", said):
            assert time.monotonic() < deadline, f"bash does not answer: {said[-500:]!r}"
            if select.select([self._fd], [], [], 0.1)[0]:
                said += os.read(self._fd, 65_536).decode("utf-8", "replace")
        return re.findall(rf"(?m)^(.*?) ?{mark}\r?$", said)[-1]

    def words(self, line: str) -> list[str]:
        """The words of the line once everything that may stand at its end does."""
        return self.type(line, ALL).split()

    def close(self) -> None:
        os.close(self._fd)
        os.waitpid(self._pid, 0)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    if not FRAMEWORK.exists():
        pytest.skip("bash-completion is not installed")
    (tmp_path / ".config/dwrap").mkdir(parents=True)
    (tmp_path / ".config/dwrap/client.conf").write_text("distributor = farm1  # ours\nfarm1 = tcp://10.0.0.5:7776\n farm2=10.0.0.6\n")
    (tmp_path / "source.cpp").write_text("")
    (tmp_path / "folder").mkdir()
    bash = Terminal(tmp_path)
    yield bash
    bash.close()


def test_commands_and_options_of_the_three_python_programs(terminal: Terminal) -> None:
    assert terminal.words("dwrapctl s") == ["dwrapctl", "slots", "status"]
    assert {"list", "new", "show", "allow", "revoke", "trust"} <= set(terminal.words("dwrapctl key "))
    assert terminal.words("dwrapctl up --sl") == ["dwrapctl", "up", "--slots"]
    assert terminal.words("dwrap-agent --tree ") == ["dwrap-agent", "--tree", "auto", "pidns", "subreaper"]
    assert terminal.words("dwrap-distributor --insecure") == ["dwrap-distributor", "--insecure", "--insecure-http"]
    assert terminal.words("dwrap-distributor --state f") == ["dwrap-distributor", "--state", "folder"]


def test_options_and_commands_of_the_wrapper(terminal: Terminal) -> None:
    assert terminal.words("dwrap --e") == ["dwrap", "--explain"]
    assert set(terminal.words("dwrap -")) == {"dwrap", "-H", "--explain", "--help", "--version"}
    assert terminal.words("dwrap dwrapc") == ["dwrap", "dwrapctl"]
    assert terminal.words("dwrap dwrapctl stat") == ["dwrap", "dwrapctl", "status"], "the command's own completion"
    assert terminal.words("dwrap --explain cat sour") == ["dwrap", "--explain", "cat", "source.cpp"]
    assert terminal.words("dwrap -- dwrapctl stat") == ["dwrap", "--", "dwrapctl", "status"]


@pytest.mark.parametrize(
    "named", ["tcp://build.host:7776", "ipc:///run/x.sock", "10.0.0.5", "10.0.0.5:7776", "[::1]:7776", "host:7776", "farm2"]
)
def test_behind_a_distributor_comes_the_command(terminal: Terminal, named: str) -> None:
    assert terminal.words(f"dwrap {named} dwrapctl stat")[-2:] == ["dwrapctl", "status"]
    assert terminal.words(f"dwrap -H {named} dwrapctl stat")[-2:] == ["dwrapctl", "status"]


def test_names_of_client_conf_are_offered(terminal: Terminal) -> None:
    assert terminal.words("dwrap -H fa") == ["dwrap", "-H", "farm1", "farm2"]
    assert {"farm1", "farm2"} <= set(terminal.words("dwrap far"))
    assert "distributor" not in terminal.words("dwrap -H ")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_files(shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    for file in (COMPLETION / shell).iterdir():
        subprocess.run([program, "-n", str(file)], check=True, timeout=30)


def test_fish_asks_the_program(tmp_path: Path) -> None:
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("fish is not installed")
    lines = [f"source {COMPLETION}/fish/{name}.fish" for name in ("dwrap", "dwrapctl")]
    asked = "; ".join([*lines, "complete --do-complete 'dwrapctl stat'", "complete --do-complete 'dwrap dwrapctl slo'"])
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([fish, "--no-config", "-c", asked], env=home, capture_output=True, text=True, timeout=60)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["status", "slots"], done.stderr


def test_zsh_asks_the_program(tmp_path: Path) -> None:
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("zsh is not installed")
    script = f"""
fpath=({COMPLETION}/zsh $fpath); autoload -U compinit; compinit -u -d {tmp_path}/dump
[[ $_comps[dwrapctl] == _dwrapctl && $_comps[dwrap-agent] == _dwrapctl && $_comps[dwrap] == _dwrap ]] || exit 1
_describe() {{ print -rl -- "${{(@P)3}}" }}
words=(dwrapctl stat); CURRENT=2; service=dwrapctl; _dwrapctl
"""
    done = subprocess.run([zsh, "-f", "-c", script], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("status:Shows the distributor"), done.stdout + done.stderr
