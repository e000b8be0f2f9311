"""Who gets in, and as whom: attacks on a real broker over real sockets, each with a control that shows that it works where it may."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from farm import eventually
from test_broker import House, Peer

from dwrap.distributor.keyring import Keyring
from dwrap.protocol import authorized, keys
from dwrap.protocol.keys import Pair

OWN = os.getuid()
JOB = {"version": 1, "job": "j1", "cwd": "/srv", "command": "cc", "build": "b"}
AGENT = {"version": 1, "name": "a1", "slots": 2, "root": "/", "serves": "any", "allow_root": 1}
PROPERTIES = b"\x0bSocket-Type\0\0\0\x06DEALER"


class KeyedHouse(House):
    """A broker that asks for keys on one address, and takes the kernel's word on another (the first)."""

    def __init__(self, short_dir: Path, **more: Any) -> None:
        self.folder = short_dir / "keys"
        self.server = keys.new_pair()
        keys.write_pair(self.folder, "server", self.server)
        super().__init__([f"ipc://{short_dir}/d", "tcp://0.0.0.0:0"], keyring=Keyring(self.folder, self.server), **more)
        self.keyed = self.broker.addresses[1].replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        self.names = 0

    def let_in(self, rights: str) -> Pair:
        """A new key with these rights."""
        pair, self.names = keys.new_pair(), self.names + 1
        grant = authorized.parse_line(f"{pair.public} k{self.names} {rights}")
        assert grant is not None
        authorized.edit(self.folder, lambda text: authorized.with_grant(text, grant))
        eventually(lambda: self.broker.ask(lambda: self.keyring.grant(pair.public)))
        return pair

    @property
    def keyring(self) -> Keyring:
        found = self.broker._keyring
        assert found is not None
        return found

    def with_key(self, pair: Pair, server: str = "") -> Peer:
        secrets = {"curve_publickey": pair.public, "curve_secretkey": pair.secret, "curve_serverkey": server or self.server.public}
        return self.peer(self.keyed, **{name: bytes.fromhex(value) for name, value in secrets.items()})

    def held_by_first_key(self) -> int:
        return int(self.broker.ask(lambda: self.broker._links.owned_by("key k1")))

    def peers_known(self) -> set[int]:
        return set(self.broker.ask(lambda: set(self.broker._links.by_peer)))

    def connections(self) -> int:
        return int(self.broker.ask(lambda: len(self.broker._links)))


@pytest.fixture
def house(short_dir: Path) -> Iterator[KeyedHouse]:
    made = KeyedHouse(short_dir)
    yield made
    made.close()


def submits(peer: Peer, **more: Any) -> str:
    """What a submitter is answered first: a verb, and why."""
    peer.say("SUBMIT", **{**JOB, "explain": 1, **more})
    verb, fields = peer.frames()[:2]
    return f"{verb.decode()} {fields.decode(errors='replace')}"


def gets_in(peer: Peer, milliseconds: int = 600) -> bool:
    peer.socket.sndtimeo = milliseconds
    try:
        peer.say("SUBMIT", **{**JOB, "explain": 1})
    except zmq.Again:  # libzmq has given its connection up
        return False
    return bool(peer.socket.poll(milliseconds))


# ---- who gets in ----


def test_a_key_that_was_let_in_gets_in(house: KeyedHouse) -> None:
    assert submits(house.with_key(house.let_in("submit uid=1000"))).startswith("EXPLAINED")


def test_no_key(house: KeyedHouse) -> None:
    assert not gets_in(house.peer(house.keyed))
    assert gets_in(house.peer())  # the control: where the kernel's word counts


def test_a_key_that_nobody_let_in(house: KeyedHouse) -> None:
    stranger = keys.new_pair()
    assert not gets_in(house.with_key(stranger))


def test_a_key_whose_secret_half_is_another(house: KeyedHouse) -> None:
    known = house.let_in("submit uid=1000")
    assert not gets_in(house.with_key(Pair(known.public, keys.new_pair().secret)))
    assert gets_in(house.with_key(known))


def test_a_server_of_another_key_learns_nothing(house: KeyedHouse) -> None:
    known = house.let_in("submit uid=1000")
    assert not gets_in(house.with_key(known, keys.new_pair().public))


def test_a_plain_handshake_does_not_pass_where_keys_are_asked_for(house: KeyedHouse) -> None:
    before = house.connections()
    for mechanism in (b"NULL", b"PLAIN", b"GSSAPI"):
        assert raw_greeting(house.keyed, mechanism) == b"", mechanism
    eventually(lambda: house.connections() == before)


def raw_greeting(address: str, mechanism: bytes) -> bytes:
    """What a peer that asks for a mechanism is told after the greetings, until the connection is closed."""
    with dialled(address) as raw:
        raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32))
        raw.sendall(command(b"\x05READY" + PROPERTIES))
        said = b""
        try:
            while piece := raw.recv(4_096):
                said += piece
        except ConnectionResetError:
            pass
    return said[64:]


def dialled(address: str) -> socket.socket:
    if address.startswith("ipc://"):
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(address.removeprefix("ipc://"))
    else:
        host, port = address.removeprefix("tcp://").split(":")
        raw = socket.create_connection((host, int(port)))
    raw.settimeout(10)
    return raw


def shake_hands(raw: socket.socket, more: bytes = b"") -> None:
    """The plain handshake of a DEALER, with further properties; over when the other side's READY has come."""
    raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32) + command(b"\x05READY" + PROPERTIES + more))
    said = b""
    while b"READY" not in said[64:] or len(said) < 66 + said[65]:
        said += (piece := raw.recv(4_096))
        assert piece, "it closed the connection"


def command(body: bytes) -> bytes:
    return bytes([4, len(body)]) + body


def message(*frames: bytes) -> bytes:
    return b"".join(bytes([int(number < len(frames)), len(frame)]) + frame for number, frame in enumerate(frames, 1))


def test_a_property_that_a_plain_peer_makes_up_is_nobodys_key(house: KeyedHouse) -> None:
    """libzmq hands out properties of the plain handshake under the same names as what ZAP said."""
    boss = house.let_in("operate")
    answers = {}
    for name, value in {"User-Id": boss.public, "Peer-Address": "localhost:0:0:1", "X-Harmless": "y"}.items():
        with dialled(house.broker.addresses[0]) as raw:
            made_up = bytes([len(name)]) + name.encode() + struct.pack(">I", len(value)) + value.encode()
            shake_hands(raw, made_up)
            raw.sendall(message(b"QUERY", b"what=status\0id=7\0"))
            assert b"REPLY" in raw.recv(65_536), name
            who = house.broker.ask(lambda: [link.who for link in house.broker._links.by_peer.values()][-1])
            answers[name] = (who.uid, who.grant)
    assert set(answers.values()) == {(OWN, None)}


# ---- rights ----


def test_a_users_key_does_not_serve(house: KeyedHouse) -> None:
    peer = house.with_key(house.let_in(f"submit uid={OWN}"))
    peer.say("REGISTER", **AGENT)
    assert "may not serve" in peer.hear("REFUSED").text("reason")
    agent = house.with_key(house.let_in("serve"))
    agent.say("REGISTER", **AGENT)
    agent.hear("WELCOME")


def test_an_agents_key_does_not_submit_ask_or_claim(house: KeyedHouse) -> None:
    agent = house.with_key(house.let_in("serve"))
    assert "may not submit" in submits(agent)
    agent.say("QUERY", what="jobs", id="7")
    assert "may not submit" in agent.hear("REFUSED").text("reason")
    agent.say("ATTACH", **JOB, attempt=1, epoch=42, go_ms=5, stdout=0, stderr=0, stdout_limit=0, stderr_limit=0)
    assert "may not submit" in agent.hear("REFUSED").text("reason")


def test_an_agent_for_one_uid_serves_that_one(house: KeyedHouse) -> None:
    pair = house.let_in("serve uid=1000")
    for serves, verb in (("any", "REFUSED"), (0, "REFUSED"), (1001, "REFUSED"), (1000, "WELCOME")):
        peer = house.with_key(pair)
        peer.say("REGISTER", **{**AGENT, "serves": serves})
        peer.hear(verb)


@pytest.mark.parametrize(("rights", "may"), [("operate", True), ("serve operate", True), ("submit uid=0", False), ("serve", False)])
def test_who_may_drain(house: KeyedHouse, rights: str, may: bool) -> None:
    house.agent()
    peer = house.with_key(house.let_in(rights))
    peer.say("QUERY", what="drain", agent="a1", id="7")
    assert peer.frames()[0] == (b"REPLY" if may else b"REFUSED")


# ---- as whom ----


def assigned(house: KeyedHouse, pair: Pair, **more: Any) -> Any:
    """The fields of ASSIGN for a job of this key."""
    agent = house.agent()
    peer = house.with_key(pair)
    peer.say("SUBMIT", **{**JOB, **more})
    peer.say("GO", b"cc\0", b"", job="j1", stamp=peer.hear("OFFER").text("stamp"), **more)
    return agent.hear("ASSIGN")


@pytest.mark.skipif(OWN != 0, reason="an agent that serves anybody runs as root")
def test_a_job_runs_as_the_keys_uid_whatever_is_claimed(house: KeyedHouse) -> None:
    fields = assigned(house, house.let_in("submit uid=1000 group=27,44"), uid=0, gid=0, group=["0", "4"])
    assert (fields.number("uid"), fields.texts("group")) == (1000, ("27", "44"))


@pytest.mark.skipif(OWN != 0, reason="an agent that serves anybody runs as root")
def test_of_several_uids_the_claim_chooses_one(house: KeyedHouse) -> None:
    assert assigned(house, house.let_in("submit uid=2000-2999"), uid=2500).number("uid") == 2500


@pytest.mark.parametrize("claim", [{}, {"uid": 0}, {"uid": 1999}, {"uid": 3000}, {"uid": "2500x"}, {"uid": -1}])
def test_and_no_other(house: KeyedHouse, claim: dict[str, Any]) -> None:
    assert submits(house.with_key(house.let_in("submit uid=2000-2999")), **claim).startswith("REFUSED")


def test_nobody_claims_the_job_of_another_key(house: KeyedHouse) -> None:
    house.agent()
    mine, other = house.let_in("submit uid=1000"), house.let_in("submit uid=1001")
    peer = house.with_key(mine)
    peer.say("SUBMIT", **JOB)
    house.agent("a2", serves="any")
    peer.socket.poll(2_000)
    for pair, verbs in ((other, {"REFUSED"}), (mine, {"OFFER", "QUEUED"})):
        thief = house.with_key(pair)
        attach = {**JOB, "attempt": 0, "epoch": 42, "go_ms": 5, "stdout": 0, "stderr": 0, "stdout_limit": 0, "stderr_limit": 0}
        thief.say("ATTACH", **attach)
        thief.say("ATTACH", **attach, stamp=thief.hear("PROVE").text("stamp"))
        assert thief.frames()[0].decode() in verbs


# ---- changes ----


def test_a_key_that_is_withdrawn_is_out_within_moments_and_its_job_ends(house: KeyedHouse) -> None:
    pair, stays = house.let_in(f"submit uid={OWN}"), house.let_in(f"submit uid={OWN}")
    agent = house.agent()
    other = house.with_key(stays)
    assert gets_in(other)
    peer = house.with_key(pair)
    peer.say("SUBMIT", **JOB)
    peer.say("GO", b"cc\0", b"", job="j1", stamp=peer.hear("OFFER").text("stamp"))
    agent.hear("ASSIGN")
    authorized.edit(house.folder, lambda text: authorized.without(text, pair.public))
    agent.hear("KILL")
    assert not gets_in(peer)
    assert not gets_in(house.with_key(pair))
    assert gets_in(other)


def test_a_key_whose_rights_have_changed_has_the_new_ones(house: KeyedHouse) -> None:
    pair = house.let_in("submit uid=2000-2999")
    peer = house.with_key(pair)
    assert submits(peer, uid=2500).startswith("EXPLAINED")
    before = house.peers_known()
    authorized.edit(house.folder, lambda text: text.replace("2000-2999", "2000-2400"))
    eventually(lambda: not before & house.peers_known())
    assert submits(house.with_key(pair), uid=2500).startswith("REFUSED")
    assert submits(house.with_key(pair), uid=2400).startswith("EXPLAINED")


def test_an_invitation_may_do_nothing_but_join_and_that_once(house: KeyedHouse) -> None:
    invitation = house.let_in("submit invite uid=1000 expires=2090-01-01")
    peer = house.with_key(invitation)
    assert "may not submit" in submits(peer)
    peer.say("REGISTER", **AGENT)
    assert "may not serve" in peer.hear("REFUSED").text("reason")
    new, second = keys.new_pair(), keys.new_pair()
    peer.say("QUERY", what="join", key="no key", id="7")
    assert "no key" in peer.hear("REFUSED").text("reason")
    assert peer.ask(what="join", key=new.public) == {"joined": "k1"}
    peer.say("QUERY", what="join", key=second.public, id="7")
    assert "used or withdrawn" in peer.hear("REFUSED").text("reason")
    assert gets_in(house.with_key(new))
    assert not gets_in(house.with_key(invitation))


def test_an_invitation_that_is_too_old_does_not_get_in(house: KeyedHouse) -> None:
    pair = keys.new_pair()
    authorized.edit(house.folder, lambda text: f"{text}{pair.public} late submit invite uid=1000 expires=2020-01-01\n")
    house.let_in("serve")
    assert not gets_in(house.with_key(pair))


def test_a_key_of_no_invitation_does_not_join_another(house: KeyedHouse) -> None:
    peer = house.with_key(house.let_in("submit operate uid=0"))
    peer.say("QUERY", what="join", key=keys.new_pair().public, id="7")
    assert "no invitation" in peer.hear("REFUSED").text("reason")
    local = house.peer()
    local.say("QUERY", what="join", key=keys.new_pair().public, id="7")
    assert "no invitation" in local.hear("REFUSED").text("reason")


# ---- how many ----


def test_connections_of_one_key_are_bounded_and_others_still_get_in(short_dir: Path) -> None:
    house = KeyedHouse(short_dir, most_connections=40)
    try:
        greedy, modest = house.let_in("submit uid=1000"), house.let_in("submit uid=1001")
        peers = [house.with_key(greedy) for _ in range(21)]
        answers = [submits(peer).split()[0] for peer in peers]
        assert (answers.count("EXPLAINED"), answers.count("REFUSED")) == (20, 1)
        assert submits(house.with_key(modest)).startswith("EXPLAINED")
        peers[0].close()
        peers[20].close()
        eventually(lambda: house.held_by_first_key() == 19)
        assert submits(house.with_key(greedy)).startswith("EXPLAINED")
        refused = house.with_key(greedy)
        assert submits(refused).startswith("REFUSED")
        eventually(lambda: house.held_by_first_key() == 20, saying="one that is refused does not stay")
    finally:
        house.close()


def test_those_who_say_nothing_make_room(short_dir: Path) -> None:
    house = KeyedHouse(short_dir, most_connections=80)
    silent = [dialled(house.keyed) for _ in range(60)]
    try:
        pair = house.let_in("submit uid=1000")
        assert gets_in(house.with_key(pair))
        eventually(lambda: house.connections() <= 21)
        eventually(lambda: sum(is_closed(raw) for raw in silent) >= 39)
    finally:
        for raw in silent:
            raw.close()
        house.close()


def is_closed(raw: socket.socket) -> bool:
    try:
        return raw.recv(64, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_libzmq_itself_limits_what_is_not_ours(house: KeyedHouse) -> None:
    """What the bounds rest on: if a new libzmq means something else by an option, this says so."""
    options = house.broker._router
    assert options.getsockopt(zmq.MAXMSGSIZE) == 8 * 1024 * 1024
    assert options.getsockopt(zmq.HANDSHAKE_IVL) == 5_000
