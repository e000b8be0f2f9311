"""The wrapper's keys as files: which are read, and which are none because others may have read or written them."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wrapper_program
from curve_peer import GREETING, Pair, locked, write_keys
from fake_distributor import FakeDistributor, Message, Script, offer_then, result
from test_wrapper_peers import peer, until_closed
from wrapper_program import ROOT, Wrapper

program = wrapper_program.program
dwrap = wrapper_program.dwrap
FAIL = {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "0"}
SERVER, USER, OTHER = Pair.new(), Pair.new(), Pair.new()
STRANGER = 54321
PAIR = f"public = {USER.public.hex()}\nsecret = {USER.secret.hex()}\n"


@pytest.fixture
def distributor() -> Iterator[FakeDistributor]:
    with FakeDistributor(offer_then(result()), prepare=locked(SERVER)) as d:
        yield d


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("files of another user need root")


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def link_to(path: Path) -> None:
    real = path.with_name("elsewhere")
    real.touch(0o600)
    real.write_text(PAIR)
    path.symlink_to(real)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.chmod(0o640), ["open to others (mode 640)", "chmod 600"]),
        (lambda path: path.chmod(0o602), ["open to others (mode 602)", "chmod 600"]),
        (lambda path: os.chown(path, STRANGER, 0), [f"belongs to uid {STRANGER}"]),
        (lambda path: replace(path, os.mkfifo), ["not a regular file"]),
        (lambda path: replace(path, os.mkdir), ["not a regular file"]),
        (lambda path: replace(path, lambda new: new.symlink_to("/dev/zero")), ["not a regular file"]),
        (lambda path: path.unlink(), ["there is no key of yours", "dwrapctl join"]),
        (lambda path: path.write_text(PAIR + "#" * 5000), ["larger than 4096 bytes"]),
        (lambda path: path.write_text(""), ["holds no key pair"]),
        (lambda path: path.write_text(PAIR.replace("secret", "sacred")), ["holds no key pair"]),
        (lambda path: path.write_text(PAIR.replace(USER.secret.hex(), USER.secret.hex()[:-1])), ["holds no key pair"]),
        (lambda path: path.write_text(PAIR.replace(USER.secret.hex(), OTHER.secret.hex())), ["holds no key pair"]),
        (lambda path: path.write_bytes(PAIR.encode().replace(b"secret", b"\0secret")), ["control characters"]),
        (lambda path: path.write_text(PAIR + "\x7f"), ["control characters"]),
        (lambda path: path.write_text(PAIR + "#\x0b"), ["control characters"]),
        (lambda path: path.write_text(PAIR + PAIR), ["holds no key pair"]),
        (lambda path: path.write_text(PAIR + f"secret = {OTHER.secret.hex()}\n"), ["holds no key pair"]),
        (lambda path: path.write_text(PAIR.rstrip("\n") + " # mine\n"), ["holds no key pair"]),
        (lambda path: path.write_text(PAIR.replace("\nsecret", "\rsecret")), ["holds no key pair"]),
    ],
)
def test_a_key_file_that_is_none(dwrap: Wrapper, distributor: FakeDistributor, spoil: Callable[[Path], object], words: list[str]) -> None:
    needs_root()
    env = write_keys(dwrap.directory / "keys", distributor.address, SERVER.public, USER)
    file = dwrap.directory / "keys" / "client.key"
    spoil(file)
    for setting in (FAIL, {}):  # it is the user's to mend: nothing runs here instead
        done = dwrap.run(distributor.address, "echo", "ran", env=setting | env)
        assert (done.returncode, done.stdout) == (125, b"")
        assert done.stderr.count(b"\n") == 1
        assert all(word.encode() in done.stderr for word in [*words, str(file)])
        assert USER.secret.hex().encode() not in done.stderr
    assert distributor.seen == []


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text(PAIR),
        lambda path: path.write_text(f"# mine\n\nname = desk\n\tpublic={USER.public.hex()}  \r\nsecret = {USER.secret.hex()}\r\n"),
        lambda path: path.write_text(PAIR.rstrip("\n")),
        lambda path: path.write_text(PAIR + "#" * (4096 - len(PAIR))),
        lambda path: path.chmod(0o400),
        lambda path: replace(path, link_to),
    ],
)
def test_a_key_file_that_is_one(dwrap: Wrapper, distributor: FakeDistributor, write: Callable[[Path], object]) -> None:
    env = write_keys(dwrap.directory / "keys", distributor.address, SERVER.public, USER)
    write(dwrap.directory / "keys" / "client.key")
    done = dwrap.run(distributor.address, "cmd", env=FAIL | env)
    assert (done.returncode, done.stderr) == (0, b"")


KNOWN = SERVER.public.hex()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{0}\n", ["line 1", "is not understood"]),
        ("# x\n{0} " + KNOWN[:-1] + "\n", ["line 2", "is not understood"]),
        ("{0} " + KNOWN + "0\n", ["is not understood"]),
        ("{0} " + KNOWN + "#\n", ["is not understood"]),
        ("{0} " + KNOWN + "\r# x\n", ["is not understood"]),
        ("{0} " + KNOWN + "\rtcp://other:1 " + KNOWN + "\n", ["is not understood"]),
        ("{0} " + KNOWN + "\ntcp://other:1 nonsense\n", ["line 2", "is not understood"]),
        ("tcp://other:1 uid=5 uid=6\n{0} " + KNOWN + "\n", ["line 1", "is not understood"]),
        ("{0} " + KNOWN + "\n\0\n", ["control characters"]),
        ("{0} " + KNOWN + "\n# \x1b[2J\n", ["control characters"]),
        ("{0} uid=00000000005\n", ["is not understood"]),
        ("{0} " + KNOWN + " more\n", ["is not understood"]),
        ("{0} uid=\n", ["is not understood"]),
        ("{0} uid=-1\n", ["is not understood"]),
        ("{0} uid=4294967295\n", ["is not understood"]),
        ("{0} uid=5x\n", ["is not understood"]),
        ("{0} broken\n{0} " + KNOWN + "\n", ["line 1"]),
        ("{0} " + "0" * 64 + "\n", ["does not prove who it is"]),
        ("#" * (1024 * 1024 + 1), ["larger than 1048576 bytes"]),
    ],
)
def test_known_distributors_that_are_none(dwrap: Wrapper, distributor: FakeDistributor, text: str, words: list[str]) -> None:
    env = write_keys(dwrap.directory / "keys", distributor.address, SERVER.public, USER)
    (dwrap.directory / "keys" / "known_distributors").write_text(text.replace("{0}", distributor.address))
    done = dwrap.run(distributor.address, "cmd", env=FAIL | env)
    assert (done.returncode, done.stderr.count(b"\n")) == (125, 1)
    assert all(word.encode() in done.stderr for word in [*words, str(dwrap.directory / "keys" / "known_distributors")])
    assert distributor.seen == []


@pytest.mark.parametrize(
    "text",
    [
        "{0} " + KNOWN,
        "\t{0}\t" + KNOWN + "\t# it\r\n",
        "{0} " + KNOWN.upper(),
        "# {0} nonsense\ntcp://other:1 " + "0" * 64 + "\n{0}0 uid=4294967294\n\r\n \t#x\n{0} " + KNOWN + "\t#\n{0} " + "0" * 64 + "\n",
        "#" * 1_000_000 + "\n{0} " + KNOWN + "\n",
    ],
)
def test_known_distributors_that_are_some(dwrap: Wrapper, distributor: FakeDistributor, text: str) -> None:
    env = write_keys(dwrap.directory / "keys", distributor.address, SERVER.public, USER)
    (dwrap.directory / "keys" / "known_distributors").write_text(text.replace("{0}", distributor.address))
    done = dwrap.run(distributor.address, "cmd", env=FAIL | env)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda path: path.chmod(0o646), b"open to others"),
        (lambda path: path.chmod(0o664), b"open to others"),
        (lambda path: path.parent.chmod(0o777), b"others may write to"),
        (lambda path: path.parent.chmod(0o770), b"others may write to"),
        (lambda path: os.chown(path, STRANGER, 0), b"belongs to uid"),
        (lambda path: replace(path, os.mkfifo), b"not a regular file"),
        (lambda path: replace(path, os.mkdir), b"not a regular file"),
    ],
)
def test_known_distributors_that_others_may_have_written(
    dwrap: Wrapper, distributor: FakeDistributor, spoil: Callable[[Path], object], word: bytes
) -> None:
    needs_root()
    env = write_keys(dwrap.directory / "keys", distributor.address, SERVER.public, USER)
    spoil(dwrap.directory / "keys" / "known_distributors")
    done = dwrap.run(distributor.address, "cmd", env=FAIL | env)
    assert done.returncode == 125
    assert word in done.stderr


def test_the_address_is_known_however_it_was_written(dwrap: Wrapper, distributor: FakeDistributor) -> None:
    env = write_keys(dwrap.directory / "keys", distributor.address, SERVER.public, USER)
    assert dwrap.run("-H", distributor.address.removeprefix("tcp://"), "cmd", env=FAIL | env).returncode == 0


@pytest.fixture
def stranger(dwrap: Wrapper) -> Iterator[Wrapper]:
    """The wrapper where another user can run it."""
    needs_root()
    place = Path(tempfile.mkdtemp(prefix="dwrap-"))
    os.chown(place, STRANGER, STRANGER)
    program = place / "dwrap"
    shutil.copy2(dwrap.program, program)
    theirs = Wrapper(program, place)
    os.chown(theirs.runtime, STRANGER, STRANGER)
    yield theirs
    shutil.rmtree(place)


def give(directory: Path, user: int) -> None:
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, user, user)


@pytest.mark.parametrize("config", ["home", "XDG_CONFIG_HOME"])
def test_a_users_keys_lie_in_the_home(stranger: Wrapper, distributor: FakeDistributor, config: str) -> None:
    base = stranger.directory / ("elsewhere" if config == "XDG_CONFIG_HOME" else ".config")
    env = {config: str(base)} if config == "XDG_CONFIG_HOME" else {}
    (base / "dwrap").mkdir(parents=True)
    write_keys(base / "dwrap" / "keys", distributor.address, SERVER.public, USER)
    give(base, STRANGER)
    as_user = {"user": STRANGER, "group": STRANGER, "extra_groups": []}
    done = stranger.run(distributor.address, "cmd", env=FAIL | env, **as_user)
    assert (done.returncode, done.stderr) == (0, b"")
    ((_, submit, _),) = distributor.by_verb("SUBMIT")
    assert submit.need("uid") == str(STRANGER).encode()
    os.chown(base / "dwrap" / "keys" / "client.key", STRANGER + 1, STRANGER)
    (base / "dwrap" / "keys" / "client.key").chmod(0o400)
    refused = stranger.run(distributor.address, "cmd", env=FAIL | env, **as_user)
    assert refused.returncode == 125


def test_a_home_that_is_not_ours_holds_no_keys_of_ours(stranger: Wrapper) -> None:
    """As su -p and containers leave HOME=/root: what may not even be entered is not an error."""
    closed = stranger.directory / "closed"
    closed.mkdir(mode=0o700)
    with FakeDistributor(offer_then(result())) as d:
        as_user = {"user": STRANGER, "group": STRANGER, "extra_groups": []}
        assert stranger.run(d.address, "cmd", env=FAIL | {"HOME": str(closed)}, **as_user).returncode == 0
        done = stranger.run(d.address, "cmd", env=FAIL | {"DWRAP_KEYS": str(closed)}, **as_user)
        assert done.returncode == 125
        assert b"cannot be read" in done.stderr


@pytest.mark.parametrize(
    ("named", "words"),
    [("/no/such/place", b"No such file"), ("keys", b"no absolute path"), ("/dev/null", b"Not a directory"), ("/" + "x" * 4100, b"")],
)
def test_a_directory_that_was_named_is_there(dwrap: Wrapper, distributor: FakeDistributor, named: str, words: bytes) -> None:
    (dwrap.directory / "keys").mkdir()
    for setting in (FAIL, {}):
        done = dwrap.run(distributor.address, "echo", "ran", env=setting | {"DWRAP_KEYS": named})
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (125, b"", 1)
        assert b"DWRAP_KEYS names" in done.stderr
        assert words in done.stderr


@pytest.mark.parametrize("home", [{"HOME": ""}, {"HOME": "here"}, {"HOME": "", "XDG_CONFIG_HOME": "here"}])
def test_without_a_home_no_directory_is_a_users(stranger: Wrapper, home: dict[str, str]) -> None:
    for base in ("here", "here/.config", ".config"):
        (stranger.directory / base / "dwrap" / "keys").mkdir(parents=True)
        (stranger.directory / base / "dwrap" / "keys" / "known_distributors").write_text("nonsense")
    with FakeDistributor(offer_then(result())) as d:
        done = stranger.run(d.address, "cmd", env=FAIL | home, user=STRANGER, group=STRANGER, extra_groups=[])
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_machines_known_distributors_are_read_last(dwrap: Wrapper, distributor: FakeDistributor) -> None:
    env = write_keys(dwrap.directory / "keys", distributor.address, SERVER.public, USER)
    known = dwrap.directory / "keys" / "known_distributors"
    etc = dwrap.directory / "etc"
    (etc / "dwrap").mkdir(parents=True)
    known.rename(etc / "dwrap" / "known_distributors")
    dwrap.prefix = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc && exec "$@"', str(etc)]
    if dwrap.run("--version").returncode != 0:
        pytest.skip("an /etc of our own needs root and mount namespaces")
    assert dwrap.run(distributor.address, "cmd", env=FAIL | env).returncode == 0
    known.write_text(f"{distributor.address} {OTHER.public.hex()}\n")
    assert dwrap.run(distributor.address, "cmd", env=FAIL | env).returncode == 125


def test_root_has_keys_of_its_own(dwrap: Wrapper, distributor: FakeDistributor) -> None:
    needs_root()
    etc = dwrap.directory / "etc"
    (etc / "dwrap").mkdir(parents=True)
    write_keys(etc / "dwrap" / "keys", distributor.address, SERVER.public, USER)
    dwrap.prefix = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc && exec "$@"', str(etc)]
    if dwrap.run("--version").returncode != 0:
        pytest.skip("an /etc of our own needs mount namespaces")
    assert dwrap.run(distributor.address, "cmd", env=FAIL).returncode == 0


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        found: str = probe.getsockname()[0]
    if found.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    return found


def test_the_warning_comes_once_an_hour(dwrap: Wrapper) -> None:
    with FakeDistributor(offer_then(result()), f"tcp://{own_address()}:*") as d:

        def lines() -> int:
            return dwrap.run(d.address, "true", env=FAIL | {"DWRAP_INSECURE": "1"}).stderr.count(b"not encrypted")

        assert (lines(), lines()) == (1, 0)
        (said,) = (dwrap.runtime / "dwrap").glob("said-*")
        os.utime(said, (said.stat().st_atime - 3601, said.stat().st_mtime - 3601))
        assert (lines(), lines()) == (1, 0)


def test_no_warning_comes_when_nothing_was_sent(dwrap: Wrapper) -> None:
    with socket.create_server((own_address(), 0)) as closed:
        address = f"tcp://{closed.getsockname()[0]}:{closed.getsockname()[1]}"
    for nobody in ("tcp://192.0.2.1:7776", address):
        done = dwrap.run(nobody, "echo", "here", env={"DWRAP_INSECURE": "1"})
        assert (done.stdout, done.stderr) == (b"here\n", b"")


# ---- core files ----


def cores(dwrap: Wrapper, address: str, env: dict[str, str], ready: threading.Event, *words: str) -> list[bytes]:
    """The core files of a wrapper that SIGQUIT ends once something is ready."""
    if Path("/proc/sys/kernel/core_pattern").read_text().strip() != "core":
        pytest.skip("core files go elsewhere here")
    if dwrap.program.parent != ROOT / "build" / "bin":
        pytest.skip("the sanitizer switches core files off")
    dwrap.directory.chmod(0o755)
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]

    def allow() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))

    with dwrap.popen(address, *(words or ("cmd",)), env=env, preexec_fn=allow) as running:
        if not words:
            assert ready.wait(10)
            running.send_signal(signal.SIGQUIT)
        assert -running.wait(10) == signal.SIGQUIT
    found = list(dwrap.directory.glob("core*"))
    texts = [path.read_bytes() for path in found]
    for path in found:
        path.unlink()
    return texts


def traces(secret: bytes) -> list[bytes]:
    """What would tell a secret half: it, in hexadecimal, as X25519 uses it, and the digits that libsodium makes of that."""
    clamped = bytes([secret[0] & 248, *secret[1:31], secret[31] & 127 | 64])
    digits = [digit for byte in clamped for digit in (byte & 15, byte >> 4)]
    for at in range(63):
        carry = (digits[at] + 8) >> 4
        digits[at] -= carry << 4
        digits[at + 1] += carry
    return [secret, clamped, secret.hex().encode(), secret[8:24], bytes(digit & 255 for digit in digits)]


@pytest.mark.parametrize("keyed", [True, False])
def test_no_core_file_while_the_secret_is_here(dwrap: Wrapper, keyed: bool) -> None:
    """Without a key to lose there is one, as for any program."""
    ready = threading.Event()

    def stall(connection: socket.socket) -> None:
        if keyed:
            connection.sendall(GREETING)
        heard = b""
        while len(heard) < (264 if keyed else 1):  # HELLO
            heard += connection.recv(4096)
        ready.set()
        until_closed(connection)

    with peer(stall) as address:
        env = write_keys(dwrap.directory / "keys", address, SERVER.public, USER) if keyed else {}
        assert len(cores(dwrap, address, FAIL | env, ready)) == (not keyed)


def test_no_secret_in_a_core_file_later(dwrap: Wrapper) -> None:
    ready = threading.Event()

    def script(_submit: Message) -> Script:
        yield ("QUEUED", [("ahead", 1)])
        ready.set()
        yield None

    with FakeDistributor(script, prepare=locked(SERVER)) as d:
        env = write_keys(dwrap.directory / "keys", d.address, SERVER.public, USER)
        (text,) = cores(dwrap, d.address, FAIL | env, ready)
    assert USER.public.hex().encode() not in text
    assert d.address.encode() in text  # it is the wrapper's
    assert not [trace for trace in traces(USER.secret) if trace in text]


def test_what_runs_here_instead_may_leave_a_core_file(dwrap: Wrapper) -> None:
    with peer(lambda _connection: None) as address:
        env = write_keys(dwrap.directory / "keys", address, SERVER.public, USER)
        assert len(cores(dwrap, address, env, threading.Event(), "sh", "-c", "kill -QUIT $$")) == 1
