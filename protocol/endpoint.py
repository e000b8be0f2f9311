"""A distributor's address as people may write it, as ZeroMQ takes it, and whether it leads off this machine.

Knows the forms of addresses; opens nothing and resolves no names. The wrapper's address.c reads the same forms.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from dwrap.protocol.messages import DEFAULT_PORT


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`address` as ZeroMQ takes it. `is_local`: loopback or a Unix socket, where the kernel vouches for the peer."""

    address: str
    is_local: bool


def parse_endpoint(text: str) -> Endpoint:
    """`tcp://H:P`, `ipc://PATH`, `H:P`, an address, or a name. Raises ValueError saying what is wrong."""
    if text.startswith("ipc://"):
        if not text.removeprefix("ipc://").startswith(("/", "@")):
            raise ValueError(f"{text} names no socket: its path starts with /; write ipc:///run/dwrap.sock")
        return Endpoint(text, is_local=True)
    if "://" in text and not text.startswith("tcp://"):
        raise ValueError(f"{text} is neither tcp:// nor ipc://; write tcp://HOST:PORT or ipc://PATH")
    host, port = _split(text.removeprefix("tcp://"))
    if not host or any(c.isspace() or c == "/" for c in host):
        raise ValueError(f"{text} names no host; write tcp://HOST:PORT")
    if not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise ValueError(f"{text} has no port from 1 to 65535; write tcp://{host}:{DEFAULT_PORT}")
    shown = f"[{host}]" if ":" in host else host
    return Endpoint(f"tcp://{shown}:{port}", is_loopback(host))


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":") or str(DEFAULT_PORT)
    if text.count(":") > 1:  # a bare IPv6 address
        return text, str(DEFAULT_PORT)
    host, colon, port = text.partition(":")
    return host, port if colon else str(DEFAULT_PORT)


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant by a host. A name other than localhost may lead anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
