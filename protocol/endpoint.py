"""A distributor's address as people may write it, its one canonical form, and whether it leads off this machine.

The canonical form is what ZeroMQ takes and known_distributors holds. Knows the forms of addresses; opens nothing and resolves no names.
The wrapper's address.c reads the same forms, and makes the same of them: tests/addresses.txt.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final

from dwrap.protocol.messages import DEFAULT_PORT

_MAX_BYTES: Final = 319
_MAX_NAME: Final = 253
_MAX_PATH_BYTES: Final = 107  # of a Unix socket
_PORT: Final = re.compile(r"[0-9]{1,5}\Z")
_NAME: Final = re.compile(r"(?!-)[0-9a-z_-]+(\.[0-9a-z_-]+)*\Z")
_NUMBER: Final = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)\Z")  # resolvers take such names for IPv4 addresses, each for another
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`address` as ZeroMQ takes it. `is_local`: loopback or a Unix socket, where the kernel vouches for the peer."""

    address: str
    is_local: bool


def parse_endpoint(written: str) -> Endpoint:
    """`tcp://H:P`, `ipc://PATH`, `H:P`, an address, or a name, blanks around it. Raises ValueError saying what is wrong."""
    text = written.strip(" \t")
    if len(text.encode("utf-8", "surrogateescape")) > _MAX_BYTES:
        raise ValueError(f"{text[:60]}... is too long; write tcp://HOST:PORT or ipc://PATH")
    if text.startswith("ipc://"):
        return Endpoint(_check_socket(text), is_local=True)
    if "://" in text and not text.startswith("tcp://"):
        raise ValueError(f"{text} is neither tcp:// nor ipc://; write tcp://HOST:PORT or ipc://PATH")
    host, port = _split(text.removeprefix("tcp://"))
    canonical = _canonical_host(host)
    if not canonical:
        raise ValueError(f"{text} names no host; write tcp://HOST:PORT")
    if not _PORT.match(port) or not 1 <= int(port) <= 65_535:
        raise ValueError(f"{text} has no port from 1 to 65535; write tcp://{host}:{DEFAULT_PORT}")
    shown = f"[{canonical}]" if ":" in canonical else canonical
    return Endpoint(f"tcp://{shown}:{int(port)}", is_loopback(canonical))


def _check_socket(text: str) -> str:
    path = text.removeprefix("ipc://")
    if not path.startswith(("/", "@")) or len(path) < 2 or _CONTROL.search(path):
        raise ValueError(f"{text} names no socket: its path starts with /; write ipc:///run/dwrap.sock")
    if len(path.encode("utf-8", "surrogateescape")) > _MAX_PATH_BYTES:
        raise ValueError(f"{text} has a path that is longer than a Unix socket's may be; write ipc:///run/dwrap.sock")
    return text


def _split(text: str) -> tuple[str, str]:
    """A host, an empty one where there is none, and a port. An IPv6 address has no colon after it unless it stands in brackets."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        inside = host if ":" in host and (not rest or rest.startswith(":")) and "]" in text else ""
        return inside, rest.removeprefix(":") if rest else str(DEFAULT_PORT)
    if text.count(":") > 1:  # a bare IPv6 address
        return text, str(DEFAULT_PORT)
    host, colon, port = text.partition(":")
    return host, port if colon else str(DEFAULT_PORT)


def _canonical_host(host: str) -> str:
    """In lower case, IPv6 in its shortest form; empty for what is no host."""
    if not host.isascii() or "\0" in host:
        return ""
    name = host.removesuffix(".").lower()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, host if ":" in host else name))
    except OSError:
        return name if len(name) <= _MAX_NAME and _NAME.match(name) and not _NUMBER.match(name) else ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant by a host. A name other than localhost may lead anywhere."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
