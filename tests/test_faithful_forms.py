"""Every form in which a distributor can be named, stdin beside a loop, and the statuses of dwrap's own failures.

All of it on a farm of real processes; the wrapper's own tests do the same against a scripted distributor.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from farm import DWRAP, Farm, eventually

SHOW_JOB = ["sh", "-c", 'echo "job=$DWRAP_JOB"']


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with Farm(tmp_path_factory.mktemp("farm")) as running:
        yield running


@pytest.fixture
def named(farm: Farm, tmp_path: Path) -> dict[str, str]:
    """An environment without DWRAP_HOST, whose client.conf calls the farm `theirs`."""
    configuration = tmp_path / "config" / "dwrap"
    configuration.mkdir(parents=True)
    (configuration / "client.conf").write_text(f"theirs = {farm.over('ipc')}\n")
    environment = farm.environment(XDG_CONFIG_HOME=str(configuration.parent))
    del environment["DWRAP_HOST"]
    return environment


def run(argv: list[str], environment: dict[str, str], directory: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(argv, env=environment, cwd=directory, capture_output=True, timeout=20, stdin=subprocess.DEVNULL)


def forms(farm: Farm) -> dict[str, list[str]]:
    """Name of the form to the words before the command."""
    tcp = farm.over("tcp")
    port = tcp.rpartition(":")[2]
    return {
        "tcp": [tcp],
        "ipc": [farm.over("ipc")],
        "address-and-port": [f"127.0.0.1:{port}"],
        "localhost-and-port": [f"localhost:{port}"],
        "forced": ["-H", tcp],
        "forced-name": ["-H", "theirs"],
        "name-in-client.conf": ["theirs"],
    }


@pytest.mark.parametrize("form", ["tcp", "ipc", "address-and-port", "localhost-and-port", "forced", "forced-name", "name-in-client.conf"])
def test_distributor_on_the_command_line(form: str, farm: Farm, named: dict[str, str], tmp_path: Path) -> None:
    done = run([DWRAP, *forms(farm)[form], *SHOW_JOB], named, tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.strip()) > len("job=")


def test_a_list_is_tried_in_order(farm: Farm, tmp_path: Path) -> None:
    environment = farm.environment(DWRAP_HOST=f"ipc://{tmp_path}/nobody,{farm.over('tcp')}", XDG_RUNTIME_DIR=str(tmp_path))
    done = run([DWRAP, *SHOW_JOB], environment, tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.strip()) > len("job=")


def test_masquerade(farm: Farm, tmp_path: Path) -> None:
    """A link named gcc, first on PATH, is `dwrap gcc`."""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "gcc").symlink_to(DWRAP)
    (tmp_path / "a.c").write_text("int x;\n")
    before = sum(farm.per_agent().values())
    done = run(["gcc", "-c", "a.c"], farm.environment(PATH=f"{tmp_path}/links:{os.environ['PATH']}"), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "a.o").exists()
    assert sum(farm.per_agent().values()) == before + 1


def one_line(stderr: bytes) -> bool:
    """Whether it is one line of dwrap's own."""
    return stderr.startswith(b"dwrap: ") and stderr.count(b"\n") == 1 and stderr.endswith(b"\n")


def test_no_such_command(farm: Farm, tmp_path: Path) -> None:
    done = run([DWRAP, "no-such-command-anywhere", "x"], farm.environment(), tmp_path)
    assert (done.returncode, done.stdout) == (127, b"")
    assert one_line(done.stderr), done.stderr


def test_not_executable(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x\n")
    done = run([DWRAP, "./plain", "x"], farm.environment(), tmp_path)
    assert (done.returncode, done.stdout) == (126, b"")
    assert one_line(done.stderr), done.stderr


def test_script_without_interpreter_line(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "bare").write_text("echo bare $1\n")
    (tmp_path / "bare").chmod(0o755)
    done = run([DWRAP, "./bare", "x"], farm.environment(), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"bare x\n", b"")


@pytest.mark.skipif(os.getuid() != 0, reason="a mount of the agent's own needs root")
def test_working_directory_is_not_on_the_agent(short_dir: Path, tmp_path: Path) -> None:
    """The agent sees an empty directory where the desktop sees the tree: 125, never the command's failure."""
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    hide = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tmp_path}/tree && exec "$@"', "sh"]
    with Farm(short_dir, agents=0) as farm:
        farm.add_agent("elsewhere", 1, under=hide)
        done = run([DWRAP, "true"], farm.environment(DWRAP_PATIENCE="1"), tmp_path / "tree" / "sub")
    assert (done.returncode, done.stdout) == (125, b"")
    assert one_line(done.stderr), done.stderr


def test_loop_over_a_file(farm: Farm, tmp_path: Path) -> None:
    """`while read` keeps its place although each command has the same file as its stdin."""
    (tmp_path / "list").write_text("".join(f"line {i}\n" for i in range(20)))
    loop = f'while read -r line; do {DWRAP} sh -c "echo got $line"; done <list'
    done = run(["sh", "-c", loop], farm.environment(), tmp_path)
    assert done.stdout == b"".join(b"got line %d\n" % i for i in range(20))
    assert done.stderr == b""


@pytest.mark.parametrize("taken", [0, 10, 5000])
def test_little_of_a_pipe_is_lost(taken: int, farm: Farm, tmp_path: Path) -> None:
    """At most 4 KiB more than the command took is read from a pipe."""
    read_end, write_end = os.pipe()
    os.write(write_end, b"x" * 60_000)
    command = ["dd", f"bs={taken}", "count=1", "status=none", "iflag=fullblock"] if taken else ["true"]
    done = subprocess.run([DWRAP, *command], stdin=read_end, env=farm.environment(), cwd=tmp_path, capture_output=True, timeout=20)
    left = struct.unpack("i", fcntl.ioctl(read_end, termios.FIONREAD, b"\0\0\0\0"))[0]
    os.close(read_end)
    os.close(write_end)
    assert done.stdout == b"x" * taken
    assert 60_000 - taken - 4096 <= left <= 60_000 - taken


def test_local_switch_runs_in_place(farm: Farm, tmp_path: Path) -> None:
    """DWRAP_LOCAL=1: no job."""
    before = sum(farm.per_agent().values())
    done = run([DWRAP, *SHOW_JOB], farm.environment(DWRAP_LOCAL="1"), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"job=\n", b"")
    assert sum(farm.per_agent().values()) == before


def test_nothing_is_left_of_the_battery(farm: Farm) -> None:
    """No job is left on the distributor, no private TMPDIR on disk."""
    eventually(lambda: all(job["state"] not in ("queued", "offered", "running") for job in farm.jobs()))
