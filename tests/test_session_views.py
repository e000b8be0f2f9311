"""The agent's session where views matter: what runners are given to apply, what they wrote, what is mounted."""

from __future__ import annotations

from collections.abc import Sequence

from test_session import EPOCH, WELCOME, attach, ended, received, sent, verbs, welcomed

from dwrap.agent import events as e
from dwrap.agent import session as s
from dwrap.agent.registration import Registration
from dwrap.protocol.messages import Value


def viewing(job: str = "j1", journal: bytes = b"", seen: bytes = b"", burst: int = 1, **more: Value) -> e.Received:
    fields = {"job": job, "attempt": 1, "epoch": EPOCH, "uid": 1000, "cwd": "/srv", "views": 1, "burst": burst, **more}
    return received("ASSIGN", b"", b"true\0", b"", seen, journal, **fields)


def wrote(piece: bytes, job: str = "j1") -> e.RunnerSaid:
    return e.RunnerSaid((job, 1), e.Kind.MANIFEST, 0, 0, piece)


def start_of(actions: Sequence[e.Action]) -> e.Start:
    [start] = [action for action in actions if isinstance(action, e.Start)]
    return start


APPLIED = e.RunnerSaid(("j1", 1), e.Kind.APPLIED, 0, 0, b"")


def test_a_runner_is_given_what_was_seen_and_what_others_changed() -> None:
    session = welcomed()
    start = start_of(session.handle(viewing(journal=b"J", seen=b"S", behind=1), 0))
    assert (start.seen, start.journal, start.views, start.refresh) == (b"S", b"J", True, True)
    session.handle(APPLIED, 0)
    start = start_of(session.handle(viewing("j2", journal=b"K"), 0))
    assert (start.journal, start.refresh) == (b"K", False)
    session.handle(e.RunnerEnded(("j2", 1)), 0)
    assert start_of(session.handle(viewing("j3", burst=2), 0)).journal == b"K", "j2 never said that it had applied it"


def test_runners_that_have_applied_what_they_were_given_have_not_failed_when_they_end() -> None:
    session = welcomed(4)
    for number in range(4):
        session.handle(viewing(f"j{number}", journal=b"J"), 0)
    for kind in (e.Kind.APPLIED, e.Kind.APPLIED, e.Kind.ENDED):
        for number in range(4):
            session.handle(e.RunnerSaid((f"j{number}", 1), kind, 0, 0, b"status=0\0"), 0)
    assert not start_of(session.handle(viewing("next"), 0)).refresh


def test_runners_that_cannot_apply_what_they_are_given_end_in_asking_the_server() -> None:
    session = welcomed()
    refused = []
    for number in range(6):
        start = start_of(session.handle(viewing(f"j{number}", journal=b"" if number else b"J"), 0))
        refused.append(start.journal)
        session.handle(e.RunnerSaid(start.key, e.Kind.REJECTED, 0, 0, b"/srv/a does not show"), 0)
    assert refused == [b"J"] * 3 + [b""] * 3


def test_entries_that_come_with_a_job_that_is_not_taken_are_not_lost() -> None:
    session = welcomed(1)
    session.handle(viewing(), 0)
    session.handle(APPLIED, 0)
    assert verbs(session.handle(viewing("j2", journal=b"K", behind=1), 0)) == ["REJECT"]
    session.handle(ended(), 0)
    start = start_of(session.handle(viewing("j3"), 0))
    assert (start.journal, start.refresh) == (b"K", True)


def test_entries_of_another_epoch_are_not_taken() -> None:
    session = welcomed()
    session.handle(viewing(journal=b"J", epoch="6"), 0)
    assert session._marks.size == 0


def test_after_a_restart_of_the_distributor_the_server_is_asked_anew() -> None:
    session = welcomed()
    session.handle(viewing(), 0)
    session.handle(APPLIED, 0)
    assert not start_of(session.handle(viewing("j2"), 0)).refresh
    session.handle(ended(), 0)
    session.handle(received("WELCOME", epoch="8", token="t", lease_ms=10_000), 0)
    assert start_of(session.handle(viewing("j3", epoch="8"), 0)).refresh


def test_an_agent_that_never_records_gives_its_runners_nothing() -> None:
    session = welcomed()
    session.registration = Registration("a", 2, ("/srv",), "any", records=False)
    start = start_of(session.handle(viewing(journal=b"J"), 0))
    assert (start.views, start.refresh, start.journal) == (False, False, b"")
    assert session._marks.size == 0


def test_manifests_go_out_at_once_and_again_before_the_result_on_a_new_connection() -> None:
    session = welcomed()
    session.handle(viewing(), 0)
    [(verb, fields)] = sent(session.handle(wrote(b"one"), 1))
    assert (verb, fields.text("job"), fields.number("attempt")) == ("MANIFEST", "j1", 1)
    session.handle(e.Disconnected(), 1)
    assert not sent(session.handle(wrote(b"two"), 2))
    session.handle(e.Connected(), 3)
    session.handle(WELCOME, 3)
    assert not sent(session.handle(wrote(b"three"), 3))
    assert not sent(session.handle(ended(), 3))
    for now in (4, 5):  # a submitter may come back twice
        actions = session.handle(attach(), now)
        assert verbs(actions) == ["CREDIT", "MANIFEST", "MANIFEST", "MANIFEST", "RESULT"]
        assert [a.frames[2] for a in actions if isinstance(a, e.Send) and a.frames[0] == b"MANIFEST"] == [b"one", b"two", b"three"]
    assert verbs(session.handle(e.Tick(), 11)) == ["HEARTBEAT", "RESULT"], "this connection has carried the manifest"


def test_a_distributor_of_a_new_epoch_is_offered_what_was_written_lately() -> None:
    session = welcomed()
    session.handle(viewing(), 0)
    session.handle(wrote(b"one"), 0)
    session.handle(ended(), 0)
    session.handle(received("ACK", job="j1", attempt=1), 0)
    for epoch, offered in ((EPOCH, []), ("8", [b"one"])):
        session.handle(e.Disconnected(), 1)
        session.handle(e.Connected(), 1)
        actions = session.handle(received("WELCOME", epoch=epoch, token="t", lease_ms=10_000), 1)
        offers = [a.frames for a in actions if isinstance(a, e.Send) and a.frames[0] == b"MANIFEST"]
        assert offers == [(b"MANIFEST", b"offer=1\0", piece) for piece in offered]
    assert verbs(actions)[0] == "HEARTBEAT", "its uid counts only once the token is back"


def test_what_is_offered_is_bounded() -> None:
    session = welcomed()
    session.handle(viewing(), 0)
    for number in range(s.MAX_RECENT_BYTES // 32_768 + 10):
        session.handle(wrote(bytes([number % 256]) * 32_768), 0)
    session.handle(e.Disconnected(), 1)
    session.handle(ended(), 1)
    session.handle(e.Connected(), 1)
    actions = session.handle(received("WELCOME", epoch="8", token="t", lease_ms=10_000), 1)
    offers = [a for a in actions if isinstance(a, e.Send) and a.frames[1] == b"offer=1\0"]
    assert len(offers) == s.MAX_RECENT_BYTES // 32_768


def test_it_registers_again_when_the_mounts_have_changed() -> None:
    session = welcomed()
    [(verb, fields)] = sent(session.handle(e.Mounted(True, ("/srv nfs4 s:/x rw",), ("s:/x: soft",)), 1))
    assert (verb, fields.flag("views"), fields.texts("mount"), fields.texts("flaw")) == (
        "REGISTER", True, ("/srv nfs4 s:/x rw",), ("s:/x: soft",),
    )  # fmt: skip
    session.handle(e.Disconnected(), 2)
    assert not sent(session.handle(e.Mounted(False), 3))
    [(_, fields)] = sent(session.handle(e.Connected(), 4))
    assert not fields.flag("views")


def test_what_is_installed_is_told_and_told_again_when_it_changes() -> None:
    session = welcomed()
    [(verb, fields)] = sent(session.handle(e.Installed("x86 d/12 #1", "Toy #1", "g++ 12\ngcc 12"), 1))
    assert (verb, fields.text("identity"), fields.text("cpu")) == ("REGISTER", "x86 d/12 #1", "Toy #1")
    assert fields.text("packages") == "g++ 12\ngcc 12"
