"""The broker over real sockets: what is forwarded, who is believed, who is refused, and what it tells of itself."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from farm import eventually

from dwrap.distributor import identity
from dwrap.distributor.broker import Broker
from dwrap.distributor.keyring import Keyring
from dwrap.distributor.reports import Reports
from dwrap.distributor.scheduler import Scheduler
from dwrap.protocol.messages import Fields, decode_fields, encode
from dwrap.protocol.peer import Identity

DEADLINE_MS = 5_000
JOBS = (f"job{number}" for number in itertools.count())


class Peer:
    """A DEALER that checks what it is told."""

    def __init__(self, address: str, **options: Any) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        for name, value in options.items():
            setattr(self.socket, name, value)
        self.socket.connect(address)

    def say(self, verb: str, *bodies: bytes, **fields: Any) -> None:
        pairs = [(key, one) for key, value in fields.items() for one in (value if isinstance(value, list) else [value])]
        self.socket.send_multipart(encode(verb, pairs, *bodies))

    def frames(self) -> list[bytes]:
        assert self.socket.poll(DEADLINE_MS), "nothing was heard in time"
        return self.socket.recv_multipart()

    def hear(self, verb: str) -> Fields:
        frames = self.frames()
        assert frames[0].decode() == verb, frames
        return decode_fields(frames[1])

    def ask(self, **fields: Any) -> Any:
        self.say("QUERY", id="7", **fields)
        frames = self.frames()
        assert frames[0] == b"REPLY", frames
        return json.loads(frames[2])

    def has_nothing(self, other: Peer) -> bool:
        """Whether nothing has come by the time a question of the other's is answered."""
        other.ask(what="agents")
        return not self.socket.poll(0)

    def close(self) -> None:
        self.socket.close(0)


def _secret() -> str:
    return os.urandom(8).hex()


class House:
    """A broker in a thread, and peers that are closed in the end."""

    def __init__(self, endpoints: list[str], insecure: bool = False, keyring: Keyring | None = None, most_connections: int = 4_096) -> None:
        self.scheduler = Scheduler(_secret)
        self.reports = Reports(self.scheduler, 42)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.broker = Broker(
            self.context, endpoints, self.scheduler, self.reports, _secret, insecure, keyring=keyring, most_connections=most_connections
        )
        self.thread = threading.Thread(target=self.broker.run)
        self.thread.start()
        self.peers: list[Peer] = []

    def peer(self, address: str = "", **options: Any) -> Peer:
        self.peers.append(Peer(address or self.broker.addresses[0], **options))
        return self.peers[-1]

    def agent(self, name: str = "a1", address: str = "", **more: Any) -> Peer:
        peer = self.peer(address)
        serves = "any" if os.getuid() == 0 else os.getuid()
        peer.say("REGISTER", **{"version": 1, "name": name, "slots": 2, "root": "/", "serves": serves, "allow_root": 1, **more})
        token = peer.hear("WELCOME").text("token")
        peer.say("HEARTBEAT", token=token)
        assert peer.hear("LEASE").number("lease_ms") == 10_000
        return peer

    def offered(self, address: str = "", **more: Any) -> tuple[Peer, str, str]:
        peer, job = self.peer(address), next(JOBS)
        peer.say("SUBMIT", **{"version": 1, "job": job, "cwd": "/srv", "command": "cc", "build": "b", **more})
        return peer, job, peer.hear("OFFER").text("stamp")

    def running(self, agent: Peer) -> tuple[Peer, str]:
        peer, job, stamp = self.offered()
        peer.say("GO", b"cc\0", b"", job=job, stamp=stamp)
        assert agent.hear("ASSIGN").text("job") == job
        return peer, job

    def ask_jobs(self, peer: Peer) -> Any:
        return peer.ask(what="jobs")["jobs"]

    def metrics(self) -> str:
        text: bytes = self.broker.ask(self.reports.metrics_text)
        return text.decode()

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.broker.stop()
        self.thread.join(5)
        assert not self.thread.is_alive()
        self.broker.close()
        self.context.destroy(0)


@pytest.fixture
def house(short_dir: Path) -> Iterator[House]:
    made = House([f"ipc://{short_dir}/d", "tcp://127.0.0.1:0"])
    yield made
    made.close()


@pytest.mark.parametrize("carrier", [0, 1])
def test_a_job_goes_all_the_way(house: House, carrier: int) -> None:
    address = house.broker.addresses[carrier]
    agent = house.agent(address=address)
    peer, job, stamp = house.offered(address, path=["/usr/include", b"/odd/\xff\xfe"])
    peer.say("GO", b"cc\0-c\0\xff\0", b"A=\xfe\0", job=job, stamp=stamp, umask="022", unknown="kept")
    verb, ours, theirs, argv, env, seen, journal = agent.frames()
    own = decode_fields(ours)
    assert (verb, own.text("job"), own.number("attempt"), own.number("uid"), own.number("epoch")) == (b"ASSIGN", job, 1, os.getuid(), 42)
    assert own.all("path") == [b"/usr/include", b"/odd/\xff\xfe"]
    assert decode_fields(theirs).text("unknown") == "kept"
    assert (argv, env, seen, journal) == (b"cc\0-c\0\xff\0", b"A=\xfe\0", b"", b"")
    assert not own.flag("views"), "nobody has a network file system"
    agent.say("RESULT", job=job, attempt=1, status=256, run_ms=5)
    result = peer.frames()
    assert result[0] == b"RESULT"
    assert decode_fields(result[1]).number("status") == 256
    assert decode_fields(result[2]).text("agent") == "a1"
    assert agent.has_nothing(peer), "the agent is to keep the result until its submitter has it"
    peer.say("ACK", job=job)
    assert agent.hear("ACK").number("attempt") == 1


WRITTEN = b"D 1 4096 5 5 /srv\0F 7 12 6 6 /srv/a.o\0"


def test_what_one_agent_wrote_its_submitter_and_the_other_agents_are_told(house: House) -> None:
    one = house.agent("a1", views=1, slots=1, mount="/srv nfs4 s:/x rw", flaw="s: slow")
    desk, job, stamp = house.offered()
    desk.say("GO", b"cc\0", b"", b"D 9 0 1 1 /srv\0", job=job, stamp=stamp)
    frames = one.frames()
    own = decode_fields(frames[1])
    assert (own.flag("views"), own.flag("behind"), own.number("burst")) == (True, True, 1)
    assert frames[5:] == [b"D 9 0 1 1 /srv\0", b""]
    one.say("MANIFEST", WRITTEN, job=job, attempt=1)
    assert desk.frames()[2] == WRITTEN
    one.say("RESULT", job=job, attempt=1, status=0, outputs="exact", stale=2, reran=1, escaped=3, escaped_path="/var/x", revalidate_ms=4)
    desk.hear("RESULT")
    desk.say("ACK", job=job)
    one.hear("ACK")
    other = house.agent("a2", slots=1)
    desk, job, stamp = house.offered(label=["agent=a2"])
    desk.say("GO", b"cc\0", b"", job=job, stamp=stamp)
    assert other.frames()[6] == WRITTEN
    other.say("MANIFEST", b"F 8 1 1 1 /srv/b.o\0", offer=1)
    [record] = [record for record in house.ask_jobs(desk) if record["agent"] == "a1"]
    assert (record["stale"], record["reran"], record["escaped_path"], record["outputs"]) == (2, 1, "/var/x", "exact")
    [agent, _] = desk.ask(what="agents")["agents"]
    assert (agent["views"], agent["mounts"], agent["flaws"]) == (True, ["/srv nfs4 s:/x rw"], ["s: slow"])
    assert "dwrap_stale_total 2.0" in house.metrics()
    assert "dwrap_journal_directories 1.0" in house.metrics()


@pytest.mark.parametrize(
    "body",
    [b"F 1 1 1 1 relative\0", b"F 1 1 1 1 /srv/a", b"X 1 1 1 1 /srv\0", b"F 1 1 1 9999999999999999999 /a\0", b"D 0 0 0 0 /a\0" * 3000],
)
def test_malformed_manifests_are_refused(house: House, body: bytes) -> None:
    agent = house.agent(views=1)
    agent.say("MANIFEST", body, job="j", attempt=1)
    agent.hear("REFUSED")


@pytest.mark.parametrize("seen", [b"D 1 1 1 1 /a", b"D 1 1 1 1 /a\0" * 100_000])
def test_what_a_submitter_saw_is_refused_when_it_is_cut_or_too_much(house: House, seen: bytes) -> None:
    house.agent(views=1)
    desk, job, stamp = house.offered()
    desk.say("GO", b"cc\0", b"", seen, job=job, stamp=stamp)
    assert "entries" in desk.hear("REFUSED").text("reason")


def test_the_label_of_an_agents_name_cannot_be_claimed(house: House) -> None:
    peer = house.peer()
    peer.say("REGISTER", version=1, name="a1", slots=1, root="/", serves=os.getuid(), label="agent=a2")
    assert "agent=" in peer.hear("REFUSED").text("reason")
    peer.say("SUBMIT", version=1, job="j", cwd="/srv", command="cc", build="b", label=["agent=a1", "agent=a2"])
    assert "one agent" in peer.hear("REFUSED").text("reason")


def test_an_offer_says_that_somebody_needs_views(house: House) -> None:
    house.agent()
    peer = house.peer()
    for views in (1, 0):
        peer.say("SUBMIT", version=1, job=f"v{views}", cwd="/srv", command="cc", build="b", views=views)
        assert peer.hear("OFFER").flag("views") == bool(views)


def test_streams_pass_verbatim_both_ways(house: House) -> None:
    agent = house.agent()
    peer, job = house.running(agent)
    agent.say("OUTPUT", bytes(range(256)), job=job, attempt=1, stream="stdout", offset=0)
    assert peer.frames() == encode("OUTPUT", [("job", job), ("attempt", 1), ("stream", "stdout"), ("offset", 0)], bytes(range(256)))
    agent.say("CREDIT", job=job, attempt=1, stream="stdin", limit=4096)
    assert peer.hear("CREDIT").number("limit") == 4096
    for verb, bodies in (("INPUT", [b"\0\xff"]), ("CREDIT", []), ("CLOSE", []), ("SIGNAL", [])):
        peer.say(verb, *bodies, job=job, any="thing")
        assert agent.frames() == encode(verb, [("job", job), ("any", "thing")], *bodies)


def test_only_the_holder_may_speak_of_an_attempt(house: House) -> None:
    agent, thief = house.agent("a1", slots=1), house.agent("a2", slots=1)
    peer, job, stamp = house.offered()
    peer.say("GO", b"cc\0", b"", job=job, stamp=stamp)
    poller = zmq.Poller()
    for one in (agent, thief):
        poller.register(one.socket, zmq.POLLIN)
    if poller.poll(DEADLINE_MS)[0][0] is thief.socket:
        agent, thief = thief, agent
    agent.hear("ASSIGN")
    thief.say("OUTPUT", b"forged", job=job, attempt=1, stream="stdout", offset=0)
    thief.say("RESULT", job=job, attempt=1, status=0)
    thief.hear("ACK")
    agent.say("OUTPUT", b"stale", job=job, attempt=2, stream="stdout", offset=0)
    other = house.peer()
    for verb in ("SIGNAL", "CLOSE", "INPUT"):
        other.say(verb, job=job)
    other.say("ACK", job=job)
    assert agent.has_nothing(other)
    assert peer.has_nothing(other)
    assert 'dwrap_unexpected_messages_total{what="stream"} 5.0' in house.metrics()


def test_a_stamp_counts_only_on_its_own_connection(house: House) -> None:
    agent = house.agent()
    peer, job, stamp = house.offered()
    thief = house.peer()
    thief.say("GO", b"evil\0", b"", job=job, stamp=stamp)
    assert agent.has_nothing(thief)
    peer.say("GO", b"cc\0", b"", job=job, stamp="guessed")
    assert agent.has_nothing(thief)
    peer.say("GO", b"cc\0", b"", job=job, stamp=stamp)
    assert agent.frames()[3] == b"cc\0"


def test_the_end_of_a_submitter_kills_its_job(house: House) -> None:
    agent = house.agent()
    peer, job = house.running(agent)
    peer.close()
    assert agent.hear("KILL").text("job") == job
    agent.say("RESULT", job=job, attempt=1, status=9)
    agent.hear("ACK")
    assert house.peer().ask(what="why", job=job)["record"]["outcome"] == "cancelled"


def test_the_end_of_an_agent_is_noticed_at_once_and_its_return_too(house: House) -> None:
    agent = house.agent("a1", incarnation="i1")
    peer, job = house.running(agent)
    agent.close()
    assert peer.hear("MISSING").text("job") == job
    back = house.agent("a1", incarnation="i2", former="i1", kept=f"{job}:1:{os.getuid()}")
    assert peer.hear("RESUME").text("job") == job
    say = {"job": job, "version": 1, "cwd": "/srv", "command": "cc", "build": "b", "attempt": 1, "epoch": 42, "go_ms": 5}
    say |= {"stdout": 0, "stderr": 0, "stdout_limit": 65_536, "stderr_limit": 65_536}
    peer.say("ATTACH", **say)
    peer.say("ATTACH", stamp=peer.hear("PROVE").text("stamp"), **say)
    assert back.hear("ATTACH").number("stdout_limit") == 65_536
    back.say("CREDIT", job=job, attempt=1, stream="stdin", limit=0, received=0)
    assert peer.hear("CREDIT").number("received") == 0
    back.say("RESULT", job=job, attempt=1, error="lost", reason="its agent died", repeat=1, made="/srv/o")
    assert back.hear("ACK").text("job") == job
    assert peer.hear("QUEUED").text("job") == job
    peer.say("GO", b"cc\0", b"", job=job, stamp=peer.hear("OFFER").text("stamp"))
    assign = back.hear("ASSIGN")
    assert (assign.number("attempt"), assign.text("undo")) == (2, "/srv/o")
    back.say("MADE", job=job, attempt=2, seq=1, path="/srv/o", ask=1)
    assert back.hear("NOTED").number("seq") == 1
    back.say("RESULT", job=job, attempt=2, status=0)
    assert peer.hear("RESULT").number("status") == 0


@pytest.mark.parametrize("say", [{"verb": "CREDIT", "stream": "stdout", "limit": 70_000}, {"verb": "SIGNAL", "signal": 10, "seq": 1}])
def test_what_a_submitter_says_while_its_agent_is_away_is_dropped(house: House, say: dict[str, Any]) -> None:
    """It says it again after RESUME; to refuse it would end the job with 125."""
    agent = house.agent()
    peer, job = house.running(agent)
    agent.close()
    assert peer.hear("MISSING").text("job") == job
    peer.say(job=job, **say)
    assert peer.has_nothing(house.peer())


def test_the_last_word_of_a_submitter_counts_however_late_it_is_read(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes, and the end of its connection, after the messages were received and before the events are."""
    agent = house.agent()
    peer, job = house.running(agent)
    agent.say("RESULT", job=job, attempt=1, status=0)
    peer.hear("RESULT")
    original, began, may_go_on = house.broker._receive_events, threading.Event(), threading.Event()

    def late() -> list[tuple[int, int]]:
        began.set()
        assert may_go_on.wait(DEADLINE_MS / 1000)
        return original()

    monkeypatch.setattr(house.broker, "_receive_events", late)
    other = house.peer()
    other.say("QUERY", what="agents")
    assert began.wait(DEADLINE_MS / 1000)
    held = len(os.listdir("/proc/self/fd"))
    peer.say("ACK", job=job)
    peer.socket.close(linger=DEADLINE_MS)
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= held - 2, saying="both ends are closed")
    may_go_on.set()
    assert other.frames()[0] == b"REPLY"
    assert agent.hear("ACK").text("job") == job


def test_the_last_words_of_those_who_never_stop_talking_are_not_waited_for() -> None:
    class Chatter:
        """There is always more."""

        def __init__(self) -> None:
            self._early: list[object] = []
            self.began = time.monotonic()

        def _receive(self) -> tuple[list[object], bool]:
            return [self], time.monotonic() - self.began < 5

        def _dispatch_known(self, batch: list[object]) -> list[object]:
            return batch

    chatter = Chatter()
    Broker._take_last_words(chatter)  # type: ignore[arg-type]
    assert time.monotonic() - chatter.began < 2
    assert chatter._early, "strangers' words wait"


def test_a_job_is_not_claimed_without_its_stamp(house: House) -> None:
    agent = house.agent()
    peer, job = house.running(agent)
    thief = house.peer()
    say = {"job": job, "version": 1, "cwd": "/srv", "command": "cc", "build": "b", "attempt": 1, "epoch": 42, "go_ms": 5}
    say |= {"stdout": 0, "stderr": 0, "stdout_limit": 65_536, "stderr_limit": 65_536}
    thief.say("ATTACH", stamp="guessed", **say)
    assert thief.hear("PROVE").text("job") == job
    agent.say("RESULT", job=job, attempt=1, status=0)
    assert peer.hear("RESULT").number("status") == 0


def test_a_rejected_job_is_offered_again(house: House) -> None:
    first = house.agent("a1")
    peer, job = house.running(first)
    second = house.agent("a2")
    first.say("REJECT", job=job, attempt=1, reason="no such user")
    assert peer.hear("QUEUED").text("job") == job
    peer.say("GO", b"cc\0", b"", job=job, stamp=peer.hear("OFFER").text("stamp"))
    assert second.hear("ASSIGN").number("attempt") == 2


def test_a_rule_answers_here(house: House) -> None:
    house.agent(root="/srv/shared")
    peer = house.peer()
    peer.say("SUBMIT", version=1, job="j-here", cwd="/tmp/x", command="cc", build="b")
    assert "/tmp/x" in peer.hear("HERE").text("reason")
    assert peer.ask(what="why", job="j-here")["record"]["where"] == "here"
    peer.say("SUBMIT", version=1, job="j2", cwd="/srv/shared/x", command="cc", build="b", explain=1)
    assert peer.hear("EXPLAINED").text("where") == "agent"


SUBMIT = {"version": 1, "job": "x", "cwd": "/", "command": "c", "build": "b"}
OFFSETS = {"stdout": 0, "stderr": 0, "stdout_limit": 65_536, "stderr_limit": 65_536}


@pytest.mark.parametrize(
    ("verb", "fields", "why"),
    [
        ("SUBMIT", {"version": 1, "job": "x", "cwd": "relative", "command": "c", "build": "b"}, "cwd"),
        ("SUBMIT", {"job": "x", "cwd": "/", "command": "c", "build": "b"}, "version"),
        ("SUBMIT", {"version": 1, "job": "a/b", "cwd": "/", "command": "c", "build": "b"}, "job"),
        ("SUBMIT", {"version": 1, "job": "x", "cwd": "/", "command": "c", "build": "b", "priority": 9}, "priority"),
        ("REGISTER", {"version": 1, "name": "n", "slots": 0, "root": "/", "serves": "any"}, "slots"),
        ("REGISTER", {"version": 1, "name": "n", "slots": 1, "root": "srv", "serves": "any"}, "root"),
        ("SUBMIT", {**SUBMIT, "path": "/" + 98_304 * "a"}, "path"),
        ("ATTACH", {**SUBMIT, "attempt": 10**17, "epoch": 42, "go_ms": 5, **OFFSETS}, "attempt"),
        ("SUBMIT", {**SUBMIT, "path": "/" + 33_000 * "\u8a9e"}, "path"),
        ("SUBMIT", {**SUBMIT, "cwd": "/" + 4_095 * "c"}, "cwd"),
        ("REGISTER", {"version": 1, "name": "n", "slots": 1, "root": "/", "serves": "any", "kept": b"\xff:1:0"}, "kept"),
        ("REGISTER", {"version": 1, "name": "n", "slots": 1, "root": "/", "serves": "any", "kept": "x:1"}, "kept"),
        ("REGISTER", {"version": 1, "name": "n", "slots": 1, "root": "/", "serves": "any", "running": "x:1000001:0"}, "running"),
        ("REGISTER", {"version": 1, "name": "n", "slots": 1, "root": "/", "serves": "any", "running": "x:\u0661:0"}, "running"),
        ("QUERY", {"what": "everything"}, "what"),
        ("QUERY", {"what": "agents", "id": 65 * "x"}, "id"),
        ("GO", {"job": "x", "stamp": "y"}, "argv"),
    ],
)
def test_malformed_messages_are_refused_with_a_reason(house: House, verb: str, fields: dict[str, Any], why: str) -> None:
    peer = house.peer()
    peer.say(verb, **fields)
    assert why in peer.hear("REFUSED").text("reason")


@pytest.mark.parametrize(("bodies", "is_whole"), [((b"cc\0", b"A=1\0", b""), True), ((b"A=1\0", b""), False), ((b"cc\0", b""), False)])
def test_a_command_that_lost_a_frame_on_its_way_is_refused(house: House, bodies: tuple[bytes, ...], is_whole: bool) -> None:
    agent = house.agent()
    peer, job, stamp = house.offered()
    peer.say("GO", *bodies, job=job, stamp=stamp, argv_bytes=3, env_bytes=4)
    if is_whole:
        assert agent.hear("ASSIGN").text("job") == job
    else:
        assert "lost a frame" in peer.hear("REFUSED").text("reason")


def test_unknown_verbs_and_fields_are_ignored(house: House) -> None:
    peer = house.peer()
    peer.say("NOVELTY", anything=1)
    assert peer.ask(what="agents", novel="field") == {"agents": [], "environment": "strict"}
    assert 'what="unknown_verb"} 1.0' in house.metrics()


def test_a_second_agent_of_a_live_name_is_refused(house: House) -> None:
    house.agent("twin")
    second = house.peer()
    second.say("REGISTER", version=1, name="twin", slots=1, root="/", serves=os.getuid())
    refused = second.hear("REFUSED")
    assert ("--name" in refused.text("reason"), refused.flag("again")) == (True, True)


def test_a_chosen_routing_id_is_refused(house: House) -> None:
    peer = house.peer(routing_id=b"me")
    peer.say("QUERY", what="status")
    assert "routing id" in peer.hear("REFUSED").text("reason")


@pytest.mark.parametrize(
    "prefix",
    [
        b"\x01\x00" + b"\x0b\x00REGISTER\x0a" * 4,  # ZMTP 1.0: an anonymous greeting, then frames
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n" + b"\x01\x00" * 20,
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x01\x05\x00\x00" + b"\x00\x05QUERY" * 2,  # ZMTP 2.0, DEALER, no identity
        os.urandom(64),
    ],
)
def test_strangers_get_nowhere(house: House, prefix: bytes) -> None:
    before = house.peer().ask(what="status")["totals"]
    host, port = house.broker.addresses[1].removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(prefix)
        assert house.peer().ask(what="status")["totals"] == before
    assert house.peer().ask(what="agents") == {"agents": [], "environment": "strict"}


@pytest.mark.parametrize("insecure", [False, True])
def test_peers_without_an_identity(short_dir: Path, monkeypatch: pytest.MonkeyPatch, insecure: bool) -> None:
    house = House(["tcp://127.0.0.1:0", f"ipc://{short_dir}/d"], insecure)
    try:
        own = os.getuid() or 1000
        house.agent("own", house.broker.addresses[1], serves=own)
        monkeypatch.setattr(identity, "of_tcp_peer", lambda fd: Identity(None, why="it comes from afar"))
        peer = house.peer()
        peer.say("SUBMIT", version=1, job="far", cwd="/", command="cc", build="b")
        if insecure:
            peer.hear("OFFER")
        else:
            assert "from afar" in peer.hear("REFUSED").text("reason")
            peer.say("SUBMIT", version=1, job="far", cwd="/", command="cc", build="b")
            wait_until(lambda: house.broker.ask(lambda: len(house.broker._links.by_peer)) == 1)
    finally:
        house.close()


def test_drain_needs_the_token_that_was_told(house: House) -> None:
    agent, peer = house.agent(), house.peer()
    first = peer.ask(what="drain", agent="a1")
    assert list(first) == ["token"]
    assert list(peer.ask(what="drain", agent="a1", token="wrong")) == ["token"]
    assert peer.ask(what="drain", agent="a1", token=first["token"]) == {"draining": "a1"}
    agent.hear("DRAIN")
    assert house.peer().ask(what="agents")["agents"][0]["is_draining"] is True


def test_status_jobs_and_why_tell_the_same_story(house: House) -> None:
    agent = house.agent()
    peer, job = house.running(agent)
    asker = house.peer()
    status = asker.ask(what="status")
    assert (status["running"], status["slots"], status["agents"][0]["assigned"], status["epoch"]) == (1, 2, 1, 42)
    agent.say("RESULT", job=job, attempt=1, status=0, run_ms=12, flush_ms=3, tree="pidns", outputs="coherent")
    peer.hear("RESULT")
    (entry,) = asker.ask(what="jobs", build="b")["jobs"]
    assert {key: entry[key] for key in ("job", "where", "status", "run_ms", "flush_ms", "tree", "outcome", "uid", "attempt")} == {
        "job": job, "where": "a1", "status": 0, "run_ms": 12, "flush_ms": 3, "tree": "pidns", "outcome": "done",
        "uid": os.getuid(), "attempt": 1,
    }  # fmt: skip
    assert asker.ask(what="jobs", build="other") == {"jobs": []}
    why = asker.ask(what="why", job="last")
    assert why["record"] == entry
    assert why["lines"][0].startswith("cc ran on a1: queued ")
    assert 'dwrap_jobs_total{outcome="done"} 1.0' in house.metrics()


def test_a_thousand_short_connections_leave_nothing_behind(house: House) -> None:
    for _ in range(1_000):
        peer = Peer(house.broker.addresses[0])
        peer.say("QUERY", what="agents")
        peer.frames()
        peer.close()
    wait_until(lambda: house.broker.ask(lambda: len(house.broker._links)) == 0)


def wait_until(holds: Callable[[], bool]) -> None:
    """Asks again and again, for there is nobody who could tell; each question is a round trip, not a sleep."""
    for _ in range(10_000):
        if holds():
            return
    raise AssertionError("it never came to hold")


VERBS = [
    "SUBMIT",
    "GO",
    "ACK",
    "OUTPUT",
    "CREDIT",
    "INPUT",
    "CLOSE",
    "SIGNAL",
    "QUERY",
    "REGISTER",
    "HEARTBEAT",
    "LEAVING",
    "REJECT",
    "RESULT",
    "OFFER",
    "X",
]
KEYS = [
    "version",
    "job",
    "stamp",
    "cwd",
    "command",
    "build",
    "attempt",
    "name",
    "slots",
    "root",
    "serves",
    "token",
    "what",
    "agent",
    "stream",
    "status",
    "error",
    "running",
    "priority",
    "label",
]
WORDS = [
    b"1",
    b"0",
    b"j",
    b"/",
    b"/srv",
    b"any",
    b"-3",
    b"9" * 18,
    b"9" * 30,
    b"\xff\xfe",
    b"",
    b"j:1",
    b"cwd",
    b"jobs",
    b"why",
    b"a1",
    b"stdin",
]


def test_nothing_that_is_said_ends_the_service(house: House) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    dice = random.Random(seed)
    peers = [house.peer() for _ in range(4)]
    for _ in range(4_000):
        fields = b"".join(key.encode() + b"=" + dice.choice(WORDS) + b"\0" for key in dice.sample(KEYS, dice.randint(0, len(KEYS))))
        bodies = [dice.choice((b"", b"a\0", b"\xff"))] * dice.randint(0, 3)
        raw = dice.random() < 0.05
        dice.choice(peers).socket.send_multipart([dice.choice(VERBS).encode(), dice.randbytes(9) if raw else fields, *bodies])
    for peer in peers:
        peer.close()
    wait_until(lambda: house.broker.ask(lambda: len(house.broker._links)) == 0)
    assert house.peer().ask(what="status")["agents"] == []
    assert not house.broker.ask(lambda: [job for job in house.scheduler.jobs.values() if job.peer is not None])
