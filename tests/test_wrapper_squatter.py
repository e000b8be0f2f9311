"""Without keys, on this machine: another user who has taken the distributor's address gets nothing, neither command nor environment."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import shutil
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import wrapper_program
import zmq
from curve_peer import Pair, locked
from fake_distributor import FakeDistributor, offer_then, result
from wrapper_program import Wrapper

program = wrapper_program.program
dwrap = wrapper_program.dwrap
FAIL = {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "1"}
SQUATTER, SYSTEM_USER = 54321, 987
Prepare = Callable[[zmq.Context[Any], zmq.Socket[bytes]], None]
MARK = {"SECRET_TOKEN": "do-not-tell"}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="another user's processes need root")


@dataclass
class Squatter:
    address: str
    seen: int = -1  # messages, once it has ended


@contextmanager
def run_by(uid: int, endpoint: str, prepare: Prepare | None = None) -> Iterator[Squatter]:
    """A distributor that another user runs."""
    read, write = os.pipe()
    stop, stopper = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(stopper)
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            with FakeDistributor(offer_then(result()), endpoint, ipv6="[" in endpoint, prepare=prepare) as d:
                os.write(write, d.address.encode() + b"\n")
                os.read(stop, 1)
                os.write(write, b"%d\n" % len(d.seen))
        finally:
            os._exit(0)
    os.close(write)
    os.close(stop)
    with os.fdopen(read) as said:
        squatter = Squatter(said.readline().strip())
        try:
            assert squatter.address, "the squatter did not start"
            yield squatter
            os.close(stopper)
            squatter.seen = int(said.readline())
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.fixture
def commons() -> Iterator[Path]:
    """A directory in which everybody may make sockets."""
    directory = Path(tempfile.mkdtemp(prefix="dwrap-"))
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory)


ENDPOINTS = ["tcp://127.0.0.1:*", "tcp://[::1]:*", "ipc"]


def endpoint_in(commons: Path, endpoint: str) -> str:
    if "[" in endpoint and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    return f"ipc://{commons}/socket" if endpoint == "ipc" else endpoint


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_another_user_gets_nothing(dwrap: Wrapper, commons: Path, endpoint: str) -> None:
    with run_by(SQUATTER, endpoint_in(commons, endpoint)) as squatter:
        here = dwrap.run(squatter.address, "echo", "ran", env=MARK)
        assert (here.returncode, here.stdout, here.stderr) == (0, b"ran\n", b"")
        assert f"it is run by uid {SQUATTER}" in dwrap.log()[-1][2]
        failed = dwrap.run(squatter.address, "echo", "ran", env=FAIL | MARK)
        assert (failed.returncode, failed.stdout, failed.stderr.count(b"\n")) == (125, b"", 1)
        assert f"add '{squatter.address} uid={SQUATTER}' to ".encode() in failed.stderr
    assert squatter.seen == 0


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_who_was_named_is_spoken_to(dwrap: Wrapper, commons: Path, endpoint: str) -> None:
    keys = dwrap.directory / "keys"
    keys.mkdir()
    with run_by(SQUATTER, endpoint_in(commons, endpoint)) as squatter:
        (keys / "known_distributors").write_text(f"{squatter.address} uid={SQUATTER}\n")
        assert dwrap.run(squatter.address, "cmd", env=FAIL | {"DWRAP_KEYS": str(keys)}).returncode == 0
        (keys / "known_distributors").write_text(f"{squatter.address} uid={SQUATTER + 1}\n")
        assert dwrap.run(squatter.address, "cmd", env=FAIL | {"DWRAP_KEYS": str(keys)}).returncode == 125
    assert squatter.seen > 0


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_system_user_is_another_user(dwrap: Wrapper, commons: Path, endpoint: str) -> None:
    """A daemon that was broken into is no distributor; that of the distributor's own account is named."""
    keys = dwrap.directory / "keys"
    keys.mkdir()
    with run_by(SYSTEM_USER, endpoint_in(commons, endpoint)) as daemon:
        failed = dwrap.run(daemon.address, "cmd", env=FAIL)
        assert failed.returncode == 125
        assert f"it is run by uid {SYSTEM_USER}, who is neither root nor you".encode() in failed.stderr
        (keys / "known_distributors").write_text(f"{daemon.address} uid={SYSTEM_USER}\n")
        assert dwrap.run(daemon.address, "cmd", env=FAIL | {"DWRAP_KEYS": str(keys)}).returncode == 0


@pytest.mark.parametrize("asks", [False, True], ids=["speaks", "asks for keys"])
def test_a_squatter_of_a_moment_does_not_end_the_build(dwrap: Wrapper, commons: Path, asks: bool) -> None:
    with run_by(SQUATTER, f"ipc://{commons}/socket", locked(Pair.new()) if asks else None) as squatter:
        running = dwrap.popen(squatter.address, "cmd", env=FAIL | MARK | {"DWRAP_PATIENCE": "20"})
        time.sleep(0.6)
        assert running.poll() is None
    (commons / "socket").unlink(missing_ok=True)
    assert squatter.seen == 0
    with running, FakeDistributor(offer_then(result(256 * 7)), f"ipc://{commons}/socket"):
        assert running.wait(20) == 7


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_ones_own_distributor_is_spoken_to(dwrap: Wrapper, commons: Path, endpoint: str) -> None:
    """And root's; but not by yet another user."""
    shutil.copy2(dwrap.program, commons / "dwrap")
    dwrap.program = commons / "dwrap"
    dwrap.env |= {"HOME": str(commons), "XDG_RUNTIME_DIR": str(commons), "XDG_STATE_HOME": str(commons)}

    def status(address: str, uid: int) -> int:
        return dwrap.run(address, "cmd", env=FAIL, user=uid, group=uid, extra_groups=[], cwd=commons).returncode

    with run_by(SQUATTER, endpoint_in(commons, endpoint)) as own:
        if endpoint == "ipc":
            (commons / "socket").chmod(0o777)
        assert status(own.address, SQUATTER) == 0
        assert status(own.address, SQUATTER + 1) == 125
    with FakeDistributor(offer_then(result()), endpoint_in(commons, endpoint).replace("socket", "other"), ipv6="[" in endpoint) as d:
        if endpoint == "ipc":
            (commons / "other").chmod(0o777)
        assert status(d.address, SQUATTER) == 0


def squat_and_hand_over(listener: socket.socket, uid: int, device: bool, handed: int, heard: int) -> None:
    """As another user: takes one connection on an address that is free for a moment, gives the address back, and only then answers."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    if device:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    listener.listen()
    os.write(handed, b"l")
    connection, _ = listener.accept()
    listener.close()
    os.write(handed, b"a")
    time.sleep(0.3)  # for who is trusted to listen
    connection.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16 + 32) + b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER")
    said = b""
    while data := connection.recv(65536):
        said += data
        if b"SUBMIT" in said:
            break
    os.write(heard, said)


@pytest.mark.parametrize("device", [True, False], ids=["bound to lo", "bound to no device"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_who_listens_there_by_now_vouches_for_nobody(dwrap: Wrapper, host: str, device: bool) -> None:
    """The kernel finds no socket that is bound to a device, and tells of a listener instead: root's, here."""
    if ":" in host and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    handed, hand = os.pipe()
    ears, ear = os.pipe()
    with socket.socket(family) as listener, socket.socket(family) as trusted:
        for one in (listener, trusted):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, 0))
        port = listener.getsockname()[1]
        child = os.fork()
        if child == 0:
            try:
                squat_and_hand_over(listener, SQUATTER, device, hand, ear)
            finally:
                os._exit(0)
        os.close(hand)
        os.close(ear)
        listener.close()
        try:
            assert os.read(handed, 1) == b"l"
            shown = f"[{host}]" if ":" in host else host
            with dwrap.popen(f"tcp://{shown}:{port}", "cmd", env=FAIL | MARK | {"DWRAP_PATIENCE": "0"}) as running:
                assert os.read(handed, 1) == b"a"
                trusted.bind((host, port))
                trusted.listen()
                _, words = running.communicate(timeout=20)
            assert running.returncode == 125
            assert words.count(b"\n") == 1
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    with os.fdopen(ears, "rb") as said:
        assert b"SUBMIT" not in said.read()
    os.close(handed)


def without_netlink() -> None:
    """From now on the kernel answers no question about sockets (a sandbox's filter)."""
    number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
    load, if_equal, answer = 0x20, 0x15, 0x06
    program = [
        (load, 0, 0, 0), (if_equal, 0, 3, number), (load, 0, 0, 16), (if_equal, 0, 1, socket.AF_NETLINK),
        (answer, 0, 0, 0x00050000 | errno.EAFNOSUPPORT), (answer, 0, 0, 0x7FFF0000),
    ]  # fmt: skip
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    filters = ctypes.create_string_buffer(struct.pack("=H6xQ", len(program), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(filters)):
        raise OSError(ctypes.get_errno(), "no filter")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the filter knows two machines")
def test_where_the_kernel_does_not_tell_nobody_is_spoken_to(dwrap: Wrapper, commons: Path) -> None:
    with FakeDistributor(offer_then(result())) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL).returncode == 0
        seen = len(d.seen)
        failed = dwrap.run(d.address, "cmd", env=FAIL, preexec_fn=without_netlink)
        assert failed.returncode == 125
        assert b"the kernel does not tell who runs it" in failed.stderr
        assert len(d.seen) == seen
    with FakeDistributor(offer_then(result()), f"ipc://{commons}/socket") as d:
        assert dwrap.run(d.address, "cmd", env=FAIL, preexec_fn=without_netlink).returncode == 0


def remembered(dwrap: Wrapper, name: str, owner: int) -> bool:
    """Whether the wrapper believes a file of that owner about where a name leads."""
    kept = dwrap.runtime / "dwrap" / f"name-{name}"
    kept.parent.mkdir(mode=0o700, exist_ok=True)
    kept.write_text("127.0.0.1 STREAM x\n")
    os.chown(kept, owner, owner)
    with FakeDistributor(offer_then(result())) as d:
        port = d.address.rpartition(":")[2]
        return dwrap.run(f"tcp://{name}:{port}", "true", env=FAIL | {"DWRAP_PATIENCE": "0"}).returncode == 0


def test_what_others_wrote_about_a_name_is_not_believed(dwrap: Wrapper) -> None:
    assert remembered(dwrap, "farm.invalid", os.geteuid())
    assert not remembered(dwrap, "farm.invalid", SQUATTER)


def test_a_directory_that_takes_the_place_of_another_is_not_read(dwrap: Wrapper) -> None:
    """It is swapped between the look at it and the look into it: what was looked at is read, or nothing."""
    strace = shutil.which("strace")
    if not strace or dwrap.program.parent != wrapper_program.ROOT / "build" / "bin":
        pytest.skip("needs strace, and no sanitizer, whose own files would be as slow")
    good, bad, trace = dwrap.runtime / "dwrap", dwrap.runtime / "bad", dwrap.directory / "trace"
    good.mkdir(mode=0o700)
    bad.mkdir(mode=0o777)
    (bad / "name-farm.invalid").write_text("127.0.0.1 STREAM x\n")
    os.chown(bad, SQUATTER, SQUATTER)
    slow = ["-e", "trace=%file,fstat", "-e", "inject=openat,open:delay_exit=200000"]
    with FakeDistributor(offer_then(result())) as d:
        port = d.address.rpartition(":")[2]
        bad.rename(dwrap.runtime / "away")
        good.rename(bad)
        (dwrap.runtime / "away").rename(good)
        dwrap.prefix = [strace, "-f", "-o", str(trace), *slow]
        env = FAIL | {"DWRAP_PATIENCE": "0", "DWRAP_REMOTE": "1"}
        with dwrap.popen(f"tcp://farm.invalid:{port}", "true", env=env) as running:
            end = time.monotonic() + 10
            while running.poll() is None and time.monotonic() < end and not (trace.exists() and "name-farm" in trace.read_text()):
                time.sleep(0.01)
            good.rename(dwrap.runtime / "away")
            bad.rename(good)
            running.communicate(timeout=30)
        assert running.returncode == 125
    assert not d.seen
