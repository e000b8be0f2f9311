"""Keys in use, with the real programs: invitations, withdrawal, agents, what a wire shows, other people's clients, and squatters."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from farm import DWRAP, eventually, program
from keyed_farm import Keyed, daemon, keyed_farm

from dwrap.protocol import keys

HERE = Path(__file__).parent
OWN = os.getuid()
STRANGER = 4_242
needs_root = pytest.mark.skipif(OWN != 0, reason="only root can act as other users, or listen to a wire")


@pytest.fixture
def keyed(short_dir: Path) -> Iterator[Keyed]:
    with keyed_farm(short_dir) as farm:
        yield farm


def invite(keyed: Keyed, name: str, *options: str) -> str:
    return keyed.dwrapctl("invite", "--keys", str(keyed.directory / "server"), name, "--address", keyed.address, *options).strip()


def join(keyed: Keyed, token: str, folder: str = "user", *options: str) -> subprocess.CompletedProcess[str]:
    argv = [program("dwrapctl"), "join", "--keys", str(keyed.directory / folder), *options]
    return subprocess.run(argv, input=f"{token}\n", env=keyed.env, capture_output=True, text=True, timeout=30, check=False)


# ---- invitations ----


def test_one_line_lets_a_user_in_once(keyed: Keyed) -> None:
    token = invite(keyed, "alice", "--submit", "--uid", str(OWN))
    assert join(keyed, token).stdout == f"joined {keyed.address} as alice\n"
    assert keyed.dwrap("echo", "hi").stdout == "hi\n"
    again = join(keyed, token, "thief")
    assert again.returncode == 1
    assert "was used" in again.stderr
    assert [line.split()[1:] for line in keyed.dwrapctl("key", "list", "--keys", str(keyed.directory / "server")).splitlines()] == [
        ["alice", "submit", f"uid={OWN}"]
    ]


def test_a_token_that_was_withdrawn_lets_nobody_in(keyed: Keyed) -> None:
    token = invite(keyed, "alice", "--submit", "--uid", str(OWN))
    keyed.dwrapctl("key", "revoke", "--keys", str(keyed.directory / "server"), "alice")
    assert join(keyed, token).returncode == 1


@pytest.mark.parametrize("token", ["", "nonsense", "dwrap_join_", "dwrap_join_AAAA"])
def test_what_is_no_token_says_so(keyed: Keyed, token: str) -> None:
    done = join(keyed, token)
    assert (done.returncode, "no join token" in done.stderr) == (1, True)
    assert not [*(keyed.directory / "user").iterdir()]


def test_one_line_lets_an_agent_in(keyed: Keyed) -> None:
    keyed.allow("desk", keyed.dwrapctl("key", "new", "client").strip())
    keyed.dwrapctl("key", "trust", keyed.address, keyed.server)
    join(keyed, invite(keyed, "farm", "--serve"), "farm", "--agent")
    argv = ["dwrap-agent", keyed.address, "--keys", str(keyed.directory / "farm"), "--root", "/", "--name", "far", "--label", "by=key"]
    with daemon(*argv, *(["--allow-root"] if OWN == 0 else []), env=keyed.env):
        keyed.env["DWRAP_LABELS"] = "by=key"
        eventually(lambda: keyed.dwrap("echo", "hi").stdout == "hi\n")
        assert {job["agent"] for job in json.loads(keyed.dwrapctl("-H", keyed.address, "jobs", "--json"))} == {"far"}


# ---- rights, with the real programs ----


def agent_said(keyed: Keyed, folder: Path, *words: str) -> str:
    """What an agent with the keys in a folder says until one of the words has been said."""
    argv = [program("dwrap-agent"), keyed.address, "--keys", str(folder), "--root", "/", "--name", "x"]
    with subprocess.Popen(argv, env=keyed.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = ""
            assert process.stderr is not None
            for line in process.stderr:
                said += line
                if any(word in line for word in words):
                    break
            return said
        finally:
            process.kill()


def test_an_agent_with_a_users_key_does_not_serve(keyed: Keyed) -> None:
    folder = keyed.directory / "user"
    keyed.allow("desk", keyed.dwrapctl("key", "new", "agent").strip())
    keyed.dwrapctl("key", "trust", keyed.address, keyed.server)
    eventually(lambda: "may not serve" in agent_said(keyed, folder, "may not serve", "does not let"))


def test_an_agent_that_nobody_let_in_says_what_to_do_and_waits(keyed: Keyed) -> None:
    public = keyed.dwrapctl("key", "new", "agent").strip()
    keyed.dwrapctl("key", "trust", keyed.address, keyed.server)
    said = agent_said(keyed, keyed.directory / "user", "key allow")
    assert f"dwrapctl key allow NAME {public} --serve" in said


def test_an_agent_does_not_speak_to_one_with_another_key(keyed: Keyed) -> None:
    keyed.dwrapctl("key", "new", "agent")
    keyed.dwrapctl("key", "trust", keyed.address, "12" * 32)
    assert f"its key may not be {'12' * 32} any more" in agent_said(keyed, keyed.directory / "user", "may not be")


def test_a_wrapper_with_an_agents_key_does_not_submit(keyed: Keyed) -> None:
    public = keyed.dwrapctl("key", "new", "client").strip()
    keyed.dwrapctl("key", "trust", keyed.address, keyed.server)
    keyed.dwrapctl("key", "allow", "--keys", str(keyed.directory / "server"), "farm", public, "--serve")
    eventually(lambda: "may not submit" in keyed.dwrap("true").stderr)


def test_a_key_that_is_withdrawn_ends_its_jobs_and_the_others_go_on(keyed: Keyed) -> None:
    keyed.allow("desk", keyed.dwrapctl("key", "new", "client").strip())
    keyed.dwrapctl("key", "trust", keyed.address, keyed.server)
    eventually(lambda: keyed.dwrap("true").returncode == 0)
    marks = keyed.directory / "mine", keyed.directory / "theirs"
    running = "echo $$ > {}; exec sleep 60"
    mine = subprocess.Popen([DWRAP, keyed.address, "sh", "-c", running.format(marks[0])], env=keyed.env, stderr=subprocess.PIPE)
    local = {**keyed.env, "DWRAP_KEYS": str(keyed.directory / "none")}
    (keyed.directory / "none").mkdir(0o700)
    theirs = subprocess.Popen([DWRAP, f"ipc://{keyed.directory}/d", "sh", "-c", running.format(marks[1])], env=local)
    eventually(lambda: all(mark.exists() and mark.read_text() for mark in marks))
    began = time.monotonic()
    keyed.dwrapctl("key", "revoke", "--keys", str(keyed.directory / "server"), "desk")
    assert mine.wait(20) != 0
    eventually(lambda: not list_of("sleep 60", mine_only=str(marks[0])))
    print(f"ended {time.monotonic() - began:.1f} s after it was withdrawn")
    assert theirs.poll() is None
    theirs.send_signal(signal.SIGTERM)
    theirs.wait(10)
    assert keyed.dwrap("true").returncode == 125


def list_of(command: str, mine_only: str) -> list[str]:
    """The pids of live processes that were started with these words and descend from the job that wrote the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if line.strip() == command and mine_only.rsplit("/", 1)[0] in environment and "/none" not in environment:
                found.append(entry.name)
    return found


NEWCOMER, TEAM, FOREIGN = 21_777, 21_778, 21_779  # a user and groups that no database here knows


@needs_root
def test_a_user_that_the_agents_database_does_not_know_runs_by_what_the_key_says(keyed: Keyed) -> None:
    keyed.directory.chmod(0o755)
    public = keyed.dwrapctl("key", "new", "client").strip()
    keyed.dwrapctl("key", "trust", keyed.address, keyed.server)
    server, folder = keyed.directory / "server", Path(keyed.env["DWRAP_KEYS"])
    for path in (folder, *folder.iterdir()):
        os.chown(path, NEWCOMER, NEWCOMER)

    def runs(*command: str) -> subprocess.CompletedProcess[str]:
        who = {"user": NEWCOMER, "group": NEWCOMER, "extra_groups": [TEAM, FOREIGN, 0]}
        return subprocess.run([DWRAP, keyed.address, *command], env=keyed.env, cwd="/", capture_output=True, text=True, timeout=60, **who)  # type: ignore[call-overload]

    keyed.dwrapctl("key", "allow", "--keys", str(server), "new", public, "--submit", "--uid", str(NEWCOMER))
    refused = runs("true")
    assert refused.returncode == 125
    assert "group=" in refused.stderr, "it says what the operator can do"
    keyed.dwrapctl("key", "revoke", "--keys", str(server), "new")
    groups = f"{NEWCOMER},{TEAM}"
    keyed.dwrapctl("key", "allow", "--keys", str(server), "new", public, "--submit", "--uid", str(NEWCOMER), "--group", groups)
    done = runs("sh", "-c", "id -u; id -g; id -G")
    assert done.stdout.split() == [str(NEWCOMER), str(NEWCOMER), str(NEWCOMER), str(TEAM)]
    local = ("-H", f"ipc://{keyed.directory}/d")
    last = json.loads(keyed.dwrapctl(*local, "jobs", "--json"))[-1]
    assert f"groups 0 {FOREIGN} were dropped" in keyed.dwrapctl(*local, "why", last["job"])


# ---- the wire ----


@contextmanager
def captured() -> Iterator[list[bytes]]:
    """Everything that crosses the loopback interface meanwhile."""
    packets: list[bytes] = []
    stop = threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
        wire.setsockopt(socket.SOL_SOCKET, 33, 64 * 1024 * 1024)  # SO_RCVBUFFORCE
        wire.bind(("lo", 0))
        wire.settimeout(0.2)

        def listen() -> None:
            while not stop.is_set():
                try:
                    packets.append(wire.recv(65_536))
                except TimeoutError:
                    continue

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield packets
        finally:
            time.sleep(0.3)  # what is on its way still
            stop.set()
            thread.join()


CANARIES = {"argv": "canary-of-argv", "env": "canary-of-env", "stdin": "canary-of-stdin", "output": "canary-of-output"}
SPEAKS = "read line; echo canary-of-$1 $line"


def canary_job(address: str, env: dict[str, str], cwd: Path) -> None:
    argv = [DWRAP, address, "sh", "-c", SPEAKS, CANARIES["argv"], "output"]
    given, secret = f"{CANARIES['stdin']}\n", {**env, "SECRET": CANARIES["env"]}
    done = subprocess.run(argv, env=secret, cwd=cwd, input=given, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == f"{CANARIES['output']} {CANARIES['stdin']}\n"


@needs_root
def test_a_capture_of_the_wire_shows_nothing(keyed: Keyed, short_dir: Path) -> None:
    keyed.allow("desk", keyed.dwrapctl("key", "new", "client").strip())
    keyed.dwrapctl("key", "trust", keyed.address, keyed.server)
    join(keyed, invite(keyed, "farm", "--serve"), "farm", "--agent")
    eventually(lambda: keyed.dwrap("true").returncode == 0)
    argv = ["dwrap-agent", keyed.address, "--keys", str(keyed.directory / "farm"), "--root", "/", "--name", "far", "--allow-root"]
    with captured() as packets, daemon(*argv, env=keyed.env):
        canary_job(keyed.address, {**keyed.env, "DWRAP_LABELS": "agent=far"}, keyed.directory)
    wire = b"".join(packets)
    assert b"CURVE" in wire, "nothing was captured"
    assert {name for name, canary in CANARIES.items() if canary.encode() in wire} == set()
    assert str(keyed.directory).encode() not in wire, "the working directory shows"


@needs_root
def test_the_control_an_insecure_wire_shows_it_all(short_dir: Path) -> None:
    env = {**os.environ, "DWRAP_FALLBACK": "fail", "DWRAP_INSECURE": "1", "DWRAP_KEYS": str(short_dir / "none")}
    listen = ["--listen", "tcp://0.0.0.0:0", "--http", "off", "--insecure"]
    (short_dir / "none").mkdir(0o700)
    with captured() as packets, daemon("dwrap-distributor", *listen, env=env) as words:
        address = words[0].replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        with daemon("dwrap-agent", address, "--root", "/", "--name", "far", "--allow-root", "--insecure", env=env):
            canary_job(address, env, short_dir)
    wire = b"".join(packets)
    assert {name for name, canary in CANARIES.items() if canary.encode() in wire} == set(CANARIES)


# ---- other people's clients ----


def test_libzmqs_c_library_is_served(keyed: Keyed, tmp_path: Path) -> None:
    compile_it = ["cc", "-o", str(tmp_path / "client"), str(HERE / "c" / "libzmq_client.c"), "-lzmq"]
    built = subprocess.run(compile_it, capture_output=True, check=False)
    if built.returncode != 0:
        pytest.skip("libzmq's headers are not installed (libzmq3-dev)")
    pair, stranger = keys.new_pair(), keys.new_pair()
    keyed.allow("desk", pair.public)

    def ask(own: keys.Pair, server: str) -> subprocess.CompletedProcess[bytes]:
        env = {"SERVER": server, "PUBLIC": own.public, "SECRET": own.secret}
        return subprocess.run([str(tmp_path / "client"), keyed.address], env=env, capture_output=True, timeout=30, check=False)

    eventually(lambda: ask(pair, keyed.server).returncode == 0)
    assert json.loads(ask(pair, keyed.server).stdout)["protocol"] == 1
    assert ask(stranger, keyed.server).returncode == 1
    assert ask(pair, stranger.public).returncode == 1


# ---- whoever listens on this machine ----


@contextmanager
def squatter(uid: int, carrier: str, directory: Path) -> Iterator[tuple[str, Path]]:
    """Another user's program that listens as a distributor would, and writes down what it hears."""
    heard = directory / f"heard-{uid}"
    heard.touch()
    os.chown(heard, uid, uid)
    directory.chmod(0o777)
    address, told = f"ipc://{directory}/squat-{uid}", directory / f"told-{uid}"
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            router = zmq.Context().socket(zmq.ROUTER)
            router.bind(address if carrier == "ipc" else "tcp://127.0.0.1:0")
            told.with_suffix(".new").write_text(router.getsockopt_string(zmq.LAST_ENDPOINT))
            told.with_suffix(".new").rename(told)
            while True:
                heard.write_bytes(heard.read_bytes() + b" ".join(router.recv_multipart()[1:]))
        finally:
            os._exit(1)
    try:
        eventually(told.exists)
        yield told.read_text(), heard
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@needs_root
@pytest.mark.parametrize("carrier", ["tcp", "ipc"])
def test_an_agent_of_roots_does_not_take_orders_from_a_squatter(short_dir: Path, carrier: str) -> None:
    env = {**os.environ, "DWRAP_KEYS": str(short_dir / "keys")}
    (short_dir / "keys").mkdir(0o700)
    with squatter(STRANGER, carrier, short_dir) as (address, heard):
        argv = [program("dwrap-agent"), address, "--root", "/", "--name", "x"]
        with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as agent:
            try:
                assert agent.stderr is not None
                assert next(line for line in agent.stderr if "uid 4242, who is neither root nor we" in line)
                time.sleep(2.5)  # in which it would have tried again twice
                assert heard.read_bytes() == b""
            finally:
                agent.kill()
        subprocess.run([program("dwrapctl"), "key", "trust", address, f"uid={STRANGER}"], env=env, check=True, capture_output=True)
        with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as agent:
            try:
                eventually(lambda: b"REGISTER" in heard.read_bytes(), saying="the control: one that is trusted is told")
            finally:
                agent.kill()
