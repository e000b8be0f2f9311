"""endpoint.py: the forms in which people write a distributor's address, and which of them stay on this machine."""

from __future__ import annotations

import pytest

from dwrap.protocol.endpoint import parse_endpoint


@pytest.mark.parametrize(
    ("text", "address", "local"),
    [
        ("ipc:///run/d.sock", "ipc:///run/d.sock", True),
        ("tcp://127.0.0.1:99", "tcp://127.0.0.1:99", True),
        ("localhost", "tcp://localhost:7776", True),
        ("::1", "tcp://[::1]:7776", True),
        ("[fe80::1]:80", "tcp://[fe80::1]:80", False),
        ("farm:80", "tcp://farm:80", False),
        ("127.1.2.3", "tcp://127.1.2.3:7776", True),
    ],
)
def test_addresses(text: str, address: str, local: bool) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.address, endpoint.is_local) == (address, local)


@pytest.mark.parametrize("text", ["", "udp://x:1", "host:0", "host:99999", "host:x", "ipc://", "a b", "tcp://"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"tcp://|ipc://"):
        parse_endpoint(text)
