"""Key pairs and known distributors, as files in one directory; and how a ZeroMQ socket is made to use them.

    DIR/client.key, agent.key, server.key   `public = HEX`, `secret = HEX`; mode 0600
    DIR/known_distributors                  `tcp://HOST:PORT HEX` for each distributor whose key is known; /etc/dwrap's is read after it

The wrapper's keys.c reads the same files. Knows files and CurveZMQ's options (RFC 26). Does not know who may do what: authorized.py.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from dwrap.protocol.authorized import MAX_ID, KeyLineError, check_key
from dwrap.protocol.endpoint import parse_endpoint
from dwrap.protocol.whole import LOCK_SECONDS, locked, replace_file

KINDS: Final = ("client", "agent", "server")
KNOWN: Final = "known_distributors"
SYSTEM: Final = Path("/etc/dwrap")
ZAP_DOMAIN: Final = "dwrap"
JOIN_PREFIX: Final = "dwrap_join_"
OLDEST_LIBZMQ: Final = (4, 3, 3)  # CVE-2020-15166, CVE-2019-13132, CVE-2019-6250
_MAX_KEY_FILE_BYTES: Final = 4_096
_MAX_KNOWN_BYTES: Final = 1024 * 1024
_LINE: Final = re.compile(r"[ \t]*(public|secret)[ \t]*=[ \t]*([0-9a-f]{64})[ \t\r]*\Z")
_WORD: Final = re.compile(r"[!-~]{1,300}\Z")  # an address as it may stand in a line
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_COMMENT: Final = re.compile(r"(^|[ \t])#.*")
_UID: Final = "uid="


class KeysError(Exception):
    """Keys that are missing or cannot be used. The text has cause and remedy."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A key pair, in hexadecimal. The secret half is not shown when this is printed."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a join token holds: the distributor's address and key, and the secret half of a key that may be exchanged once."""

    address: str
    server: str
    secret: str = field(repr=False)

    def token(self) -> str:
        """One word."""
        return JOIN_PREFIX + base64.urlsafe_b64encode(f"{self.address} {self.server} {self.secret}".encode()).decode().rstrip("=")


def parse_token(text: str) -> Invitation:
    """A join token. Raises KeysError."""
    word = text.strip()
    try:
        body = base64.urlsafe_b64decode(word.removeprefix(JOIN_PREFIX) + "=" * (-len(word.removeprefix(JOIN_PREFIX)) % 4))
        address, server, secret = body.decode("ascii").split(" ")
        if not word.startswith(JOIN_PREFIX):
            raise ValueError
        return Invitation(check_address(parse_endpoint(address).address), check_key(server), check_key(secret))
    except (ValueError, binascii.Error, KeysError) as error:
        raise KeysError("this is no join token: it is one word that dwrapctl invite printed; copy it whole") from error


def check_library() -> None:
    """Raises KeysError when the installed libzmq has known holes, or cannot encrypt."""
    if zmq.zmq_version_info() < OLDEST_LIBZMQ:
        raise KeysError(f"libzmq {zmq.zmq_version()} has known holes; install pyzmq with libzmq 4.3.3 or newer")
    if not zmq.has("curve"):
        raise KeysError("this libzmq was built without encryption; install pyzmq from PyPI, or a libzmq with libsodium")


def directory(environment: Mapping[str, str], euid: int) -> Path | None:
    """Where keys lie unless somebody says otherwise; None where there is no place for them. Raises KeysError when what DWRAP_KEYS names
    cannot be one.
    """
    named = environment.get("DWRAP_KEYS")
    if named:
        if not named.startswith("/"):
            raise KeysError(f"DWRAP_KEYS names {named!r}, which is not absolute; name a directory from / on, or unset it")
        return Path(named)
    if euid == 0:
        return SYSTEM / "keys"
    base, home = environment.get("XDG_CONFIG_HOME", ""), environment.get("HOME", "")
    if not base.startswith("/"):
        base = f"{home}/.config" if home.startswith("/") else ""
    return Path(base, "dwrap", "keys") if base else None


# ---- key pairs ----


def new_pair() -> Pair:
    """A fresh pair."""
    public, secret = zmq.curve_keypair()
    return Pair(z85.decode(public).hex(), z85.decode(secret).hex())


def public_of(secret: str) -> str:
    """The public half of a secret one."""
    return z85.decode(zmq.curve_public(z85.encode(bytes.fromhex(secret)))).hex()


def write_pair(folder: Path, kind: str, pair: Pair) -> Path:
    """Writes a pair to a new file, mode 0600 from its first moment on. Raises KeysError when there is one, OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / f"{kind}.key"
    text = f"# dwrap: the {kind}'s key pair. Whoever has the secret half is taken for you: keep it here, mode 0600.\n"
    text += f"public = {pair.public}\nsecret = {pair.secret}\n"
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise KeysError(f"{file} is there already; dwrapctl key show prints its public half, and a new one needs it removed") from error
    try:
        with open(fd, "w", encoding="ascii") as out:
            os.fchmod(fd, 0o600)
            if os.geteuid() == 0:
                owner = folder.stat()
                os.fchown(fd, owner.st_uid, owner.st_gid)
            out.write(text)
            out.flush()
            os.fsync(fd)
    except OSError:
        file.unlink()  # half a key would stand in the way of a whole one
        raise
    return file


def read_pair(folder: Path, kind: str) -> Pair:
    """The pair in a file that nobody else can read. Raises KeysError."""
    file = folder / f"{kind}.key"
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hold us up
        with open(fd, "rb") as source:
            _check_private(file, os.fstat(fd), folder.stat().st_uid if os.geteuid() == 0 else 0)
            text = source.read(_MAX_KEY_FILE_BYTES + 1).decode("ascii", "replace")
    except FileNotFoundError as error:
        raise KeysError(f"there is no key {file}; make one with dwrapctl key new {kind}, or join by an invitation") from error
    except OSError as error:
        raise KeysError(f"cannot read the key {file}: {error.strerror or error}; make it readable to its owner") from error
    halves = [(match[1], match[2]) for line in text.split("\n") if (match := _LINE.match(line))]
    found = dict(halves)
    is_pair = len(halves) == 2 and found.keys() == {"public", "secret"} and not _CONTROL.search(text)
    if len(text) > _MAX_KEY_FILE_BYTES or not is_pair or public_of(found["secret"]) != found["public"]:
        raise KeysError(f"{file} holds no key pair; restore it, or remove it and make one with dwrapctl key new {kind}")
    return Pair(found["public"], found["secret"])


def _check_private(file: Path, found: os.stat_result, also: int) -> None:
    """`also`: whose file it may be beside root's and ours; root may look at the keys of a distributor that has its own user."""
    if not stat.S_ISREG(found.st_mode):
        raise KeysError(f"cannot use the key {file}: it is no file; remove it and make one with dwrapctl key new")
    if found.st_uid not in (0, os.geteuid(), also):
        raise KeysError(f"cannot use the key {file}: it belongs to uid {found.st_uid}; chown it to whom it serves")
    if found.st_mode & 0o077:
        raise KeysError(f"cannot use the key {file}: others may read it (mode {found.st_mode & 0o777:03o}); chmod 600 {file}")


# ---- known distributors ----


def known_distributor(folder: Path | None, address: str) -> str:
    """What is pinned for an address: its key, `uid=N` for who may run it on this machine, or an empty string. Raises KeysError."""
    for file in (*([folder / KNOWN] if folder is not None else []), SYSTEM / KNOWN):
        for pinned, value in _pins(file):
            if pinned == address:
                return value
    return ""


def _pins(file: Path) -> list[tuple[str, str]]:
    """Addresses and what is pinned for them. Raises KeysError for a file with anything in it that is not understood."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as source:
            found, around = os.fstat(fd), file.parent.stat()
            content = source.read(_MAX_KNOWN_BYTES + 1) if stat.S_ISREG(found.st_mode) else b""
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        if not os.access(file.parent, os.X_OK):  # it is not ours, as HOME is not after su: nothing of ours is in it
            return []
        raise KeysError(f"cannot read {file}: {error.strerror or error}; make it readable") from error
    except OSError as error:
        raise KeysError(f"cannot read {file}: {error.strerror or error}; make it readable") from error
    ours = (0, os.geteuid(), *([around.st_uid] if os.geteuid() == 0 else []))
    if not stat.S_ISREG(found.st_mode) or (found.st_mode | around.st_mode) & 0o022 or found.st_uid not in ours:
        raise KeysError(f"cannot believe {file}: others may have written it; chown it to you and chmod go-w it")
    text = content.decode("utf-8", "replace")
    if len(content) > _MAX_KNOWN_BYTES or _CONTROL.search(text):
        raise KeysError(f"cannot read {file}: it is too large, or holds what is no text; write it anew")
    lines = (_COMMENT.sub("", line).replace("\r", " ").replace("\t", " ") for line in text.split("\n"))
    return [_pin_in(file, line) for line in lines if line.strip(" ")]


def _pin_in(file: Path, line: str) -> tuple[str, str]:
    words = [word for word in line.split(" ") if word]
    try:
        if len(words) != 2:
            raise KeyLineError(f"{line[:80].strip()!r} is not understood")
        return words[0], check_pinned(words[1])
    except KeyLineError as error:
        raise KeysError(f"{file}: {error}; write ADDRESS KEY") from error


def check_pinned(value: str) -> str:
    """A key, or `uid=N`, as it may stand behind an address. Raises KeyLineError."""
    if not value.startswith(_UID):
        return check_key(value)
    number = value.removeprefix(_UID)
    if not number.isascii() or not number.isdecimal() or len(number) > 10 or int(number) > MAX_ID:
        raise KeyLineError(f"{value[:20]!r} is no uid")
    return f"{_UID}{int(number)}"


def check_address(address: str) -> str:
    """An address that can stand in a line. Raises KeysError."""
    if not _WORD.match(address) or "#" in address:
        raise KeysError(f"{address[:80]!r} cannot stand in {KNOWN}: it has blanks, # or more than 300 characters; use another name for it")
    return address


def check_pin(folder: Path, address: str, value: str) -> bool:
    """Whether that is pinned there already. Raises KeysError when something else is, or nothing can be."""
    before = known_distributor(folder, check_address(address))
    if before not in ("", value):
        raise KeysError(f"{address} is known by another key, {before}; remove that line from {folder / KNOWN} if it has really changed")
    return bool(before)


def pin(folder: Path, address: str, value: str) -> None:
    """Adds a line to known_distributors. Raises KeysError when another key is pinned there, OSError."""
    if check_pin(folder, address, value):
        return
    file = folder / KNOWN
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(folder, LOCK_SECONDS):
        text = file.read_text("utf-8") if file.exists() else ""
        replace_file(file, f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{address} {value}\n")


# ---- sockets ----


def serve_with(socket: zmq.Socket[bytes], pair: Pair) -> None:
    """What is bound from now on speaks CURVE, as the server, and asks ZAP about each key."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, bytes.fromhex(pair.secret))
    socket.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)


def dial_with(socket: zmq.Socket[bytes], pair: Pair, server: str) -> None:
    """What is connected from now on speaks CURVE, to the server of this public key only."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, bytes.fromhex(server))
    socket.setsockopt(zmq.CURVE_PUBLICKEY, bytes.fromhex(pair.public))
    socket.setsockopt(zmq.CURVE_SECRETKEY, bytes.fromhex(pair.secret))
