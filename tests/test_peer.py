"""peer.py and descriptors.py: what the kernel says of real sockets; identity.py: what libzmq notes of Unix ones."""

from __future__ import annotations

import os
import socket
import struct
import subprocess

import pytest

from dwrap.distributor import descriptors, identity, listen
from dwrap.protocol import peer

NOBODY = 65534


def connected(family: socket.AddressFamily, host: str) -> tuple[socket.socket, socket.socket]:
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError as error:
        pytest.skip(f"no {family.name} here: {error.strerror}")
    with listener:
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
    return client, server


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2"), (socket.AF_INET6, "::1")])
def test_the_owner_of_a_loopback_peer_is_known(family: socket.AddressFamily, host: str) -> None:
    client, server = connected(family, host)
    with client, server:
        who = peer.of_tcp_peer(server.fileno())
        assert (who.uid, who.why) == (os.getuid(), "")
        assert who.cookie == peer.cookie_of(server.fileno()) != b""


def test_a_v4_peer_of_a_v6_socket_is_known() -> None:
    try:
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except (OSError, ValueError) as error:
        pytest.skip(f"no dual-stack sockets here: {error}")
    with listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
        server, _ = listener.accept()
        with server:
            assert peer.of_tcp_peer(server.fileno()).uid == os.getuid()


VICTIM, THIEF = 21_001, 21_002
SO_BINDTODEVICE = 25


def socket_of(uid: int, family: socket.AddressFamily) -> socket.socket:
    """A socket that another user has made."""
    os.seteuid(uid)
    try:
        made = socket.socket(family)
    finally:
        os.seteuid(0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as other users")
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
@pytest.mark.parametrize("device", [b"lo\0", b""])
def test_nobody_is_taken_for_who_listens_where_their_connection_comes_from(family: socket.AddressFamily, host: str, device: bytes) -> None:
    """A connection that is bound to a device is not found, and the kernel then tells of a listener. Without a device: the control."""
    with (
        socket.create_server((host, 0), family=family) as reached,
        socket_of(THIEF, family) as thief,
        socket_of(VICTIM, family) as victim,
    ):
        if device:
            thief.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device)
        thief.bind((host, 0))
        victim.bind(thief.getsockname()[:2])
        victim.listen()
        thief.connect(reached.getsockname()[:2])
        server, _ = reached.accept()
        with server:
            assert peer.of_tcp_peer(server.fileno()).uid == (None if device else THIEF)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
def test_another_users_connection_is_that_users() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if child == 0:
            os.setuid(NOBODY)
            with socket.create_connection(listener.getsockname()) as link:
                link.recv(1)  # until the other end has looked
            os._exit(0)
        server, _ = listener.accept()
        with server:
            assert peer.of_tcp_peer(server.fileno()).uid == NOBODY
        assert os.waitpid(child, 0)[1] == 0


def test_a_peer_that_has_gone_has_no_identity() -> None:
    client, server = connected(socket.AF_INET, "127.0.0.1")
    client.close()
    with server:
        assert server.recv(1) == b""
        who = peer.of_tcp_peer(server.fileno())
        assert who.uid is None
        assert who.why


def test_what_is_no_tcp_socket_has_no_identity() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer.of_tcp_peer(one.fileno()).uid is None
    assert peer.of_tcp_peer(1 << 20).uid is None
    assert peer.cookie_of(1 << 20) == b""


def test_a_reused_descriptor_has_another_cookie() -> None:
    client, server = connected(socket.AF_INET, "127.0.0.1")
    with client:
        fd, cookie = server.fileno(), peer.cookie_of(server.fileno())
        server.close()
        with socket.socket() as other:
            os.dup2(other.fileno(), fd)
            assert peer.cookie_of(fd) not in (b"", cookie)
            os.close(fd)


def test_evict_ends_a_connection_and_leaves_its_descriptor() -> None:
    client, server = connected(socket.AF_INET, "127.0.0.1")
    with client, server:
        descriptors.evict(server.fileno())
        assert client.recv(1) == b""
        assert server.recv(1) == b""
    descriptors.evict(1 << 20)


@pytest.mark.parametrize(
    ("address", "uid"),
    [("localhost:1000:100:7", 1000), ("localhost:0:0:1", 0), ("localhost", None), ("localhost:", None), ("localhost:x:0:1", None)],
)
def test_unix_peers(address: str, uid: int | None) -> None:
    who = identity.of_unix_peer(address)
    assert (who.uid if who else None) == uid


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "2001:db8::1000:100:7", ""])
def test_a_tcp_peers_address_is_never_taken_for_credentials(address: str) -> None:
    assert identity.of_unix_peer(address) is None


@pytest.mark.parametrize(
    ("endpoint", "answer"),
    [
        ("ipc:///run/d", True),
        ("tcp://127.0.0.1:7776", True),
        ("tcp://127.8.8.8:1", True),
        ("tcp://localhost:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://0.0.0.0:1", False),
        ("tcp://[::]:1", False),
        ("tcp://*:1", False),
        ("tcp://10.0.0.1:1", False),
        ("tcp://buildhost:1", False),
    ],
)
def test_which_endpoints_stay_on_this_machine(endpoint: str, answer: bool) -> None:
    assert listen.is_local(endpoint) is answer


def tcp_info(unacknowledged: int, retransmits: int, last_acknowledged_ms: int) -> bytes:
    """struct tcp_info of <linux/tcp.h> as far as tcpi_last_ack_recv."""
    info = bytearray(104)
    info[2] = retransmits
    struct.pack_into("=I", info, 24, unacknowledged)
    struct.pack_into("=I", info, 56, last_acknowledged_ms)
    return bytes(info)


@pytest.mark.parametrize(
    ("unacknowledged", "retransmits", "acknowledged_ms", "silent"),
    [
        (1, descriptors._SILENT_RETRANSMITS, descriptors._SILENT_MS, True),
        (0, 9, 60_000, False),  # idle: keepalive asks
        (9, descriptors._SILENT_RETRANSMITS - 1, 60_000, False),
        (9, 9, descriptors._SILENT_MS - 1, False),  # it says that it has no room
    ],
)
def test_whose_host_is_silent(unacknowledged: int, retransmits: int, acknowledged_ms: int, silent: bool) -> None:
    assert descriptors.tells_of_silence(tcp_info(unacknowledged, retransmits, acknowledged_ms)) is silent


def test_who_answers_or_is_gone_is_not_called_silent() -> None:
    client, server = connected(socket.AF_INET, "127.0.0.1")
    fd = server.fileno()
    server.sendall(b"x")
    assert not descriptors.is_silent(fd), "its host takes what there is room for"
    client.close()
    server.close()
    assert not descriptors.is_silent(fd)


def test_of_counted_connections_the_bytes_are_told() -> None:
    client, server = connected(socket.AF_INET, "127.0.0.1")
    with client, server:
        client.sendall(b"x" * 70_000)
        server.recv(70_000, socket.MSG_WAITALL)
        sample = descriptors.samples([server.fileno()])[server.fileno()]
        assert (sample.received, sample.is_writable) == (70_000, True)
    assert descriptors.samples([server.fileno() if server.fileno() >= 0 else 999_999]) == {}


def test_of_unix_sockets_who_sends_is_seen_though_all_is_read_at_once() -> None:
    """As by libzmq's thread: at any one instant there is as often nothing left to be seen."""
    (sender, reader), (idle, idle_reader) = socket.socketpair(), socket.socketpair()
    with sender, reader, idle, idle_reader:
        flood = subprocess.Popen(["dd", "if=/dev/zero", "bs=64K"], stdout=sender, stderr=subprocess.DEVNULL)
        taking = subprocess.Popen(["cat"], stdin=reader, stdout=subprocess.DEVNULL)
        try:
            looks = [descriptors.samples([reader.fileno(), idle_reader.fileno()]) for _ in range(100)]
        finally:
            for process in (flood, taking):
                process.kill()
                process.wait()
        told = [look[reader.fileno()].is_sending for look in looks]
        assert sum(told) > 75, "a flood is seen by chance only"
        assert not any(look[idle_reader.fileno()].is_sending for look in looks)


def test_of_unix_sockets_who_waits_and_pings_is_not_one_who_sends() -> None:
    (sender, reader), (greedy, greedy_reader) = socket.socketpair(), socket.socketpair()
    with sender, reader, greedy, greedy_reader:
        sender.sendall(b"\4\7\4PING\0\0")
        greedy.sendall(bytes(100))
        found = descriptors.samples([reader.fileno(), greedy_reader.fileno()])
        assert [found[one.fileno()].is_sending for one in (reader, greedy_reader)] == [False, True]
