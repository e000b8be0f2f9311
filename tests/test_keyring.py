"""keyring.py and identity.py: ZAP's answers, changes of the file, invitations; what each right opens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwrap.distributor.identity import Who
from dwrap.distributor.keyring import Keyring
from dwrap.protocol import authorized, keys
from dwrap.protocol.authorized import FILE, Grant, KeyLineError
from dwrap.protocol.messages import ProtocolError
from dwrap.protocol.peer import Identity

K, L, M = "a1" * 32, "b2" * 32, "c3" * 32
PAIR = keys.Pair("d4" * 32, "e5" * 32)


def ring(folder: Path, text: str) -> Keyring:
    write(folder, text)
    return Keyring(folder, PAIR)


def write(folder: Path, text: str) -> None:
    (folder / "fresh").write_text(text)
    (folder / "fresh").chmod(0o600)
    (folder / "fresh").rename(folder / FILE)


def question(key: str = K, version: bytes = b"1.0", domain: bytes = b"dwrap", mechanism: bytes = b"CURVE") -> list[bytes]:
    return [version, b"7", domain, b"192.0.2.1", b"", mechanism, bytes.fromhex(key)]


def test_a_key_that_is_let_in_is_vouched_for(tmp_path: Path) -> None:
    keyring = ring(tmp_path, f"{K} alice submit uid=1000\n")
    version, request, status, _, user_id, metadata = keyring.answer(question())
    assert (version, request, status, metadata) == (b"1.0", b"7", b"200", b"")
    assert keyring.of_user_id(user_id.decode()) == K


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (question(L), b"400"),
        (question(version=b"2.0"), b"500"),
        (question(domain=b"*"), b"500"),
        (question(mechanism=b"NULL"), b"500"),
        (question(mechanism=b"PLAIN"), b"500"),
        ([*question(), b"more"], b"500"),
        (question()[:6], b"500"),
        ([], b"500"),
    ],
)
def test_nobody_else_is(tmp_path: Path, asked: list[bytes], status: bytes) -> None:
    assert ring(tmp_path, f"{K} alice submit uid=1000\n").answer(asked)[2] == status


@given(st.lists(st.binary(max_size=70), max_size=9))
def test_no_question_breaks_it(tmp_path_factory: pytest.TempPathFactory, asked: list[bytes]) -> None:
    answer = ring(tmp_path_factory.mktemp("keys"), "").answer(asked)
    assert len(answer) == 6
    assert answer[2] != b"200"


def test_a_user_id_that_a_peer_makes_up_is_nobody(tmp_path: Path) -> None:
    """A peer of the plain mechanism may put a property of this name into its handshake."""
    keyring = ring(tmp_path, f"{K} alice submit uid=1000\n")
    other = ring(tmp_path, f"{K} alice submit uid=1000\n")
    for made_up in (K, f":{K}", "", f"{'0' * 32}:{K}", other.answer(question())[4].decode()):
        assert keyring.of_user_id(made_up) is None


def test_a_change_of_the_file_counts_when_it_is_looked_at_again(tmp_path: Path) -> None:
    keyring = ring(tmp_path, f"{K} alice submit uid=1000\n")
    assert not keyring.refresh(0.0)
    write(tmp_path, f"{L} bob submit uid=1001\n")
    assert keyring.refresh(0.0)
    assert keyring.grant(K) is None
    assert keyring.grant(L) is not None
    (tmp_path / FILE).unlink()
    assert keyring.refresh(0.0)
    assert keyring.grant(L) is None
    assert not keyring.refresh(0.0)


def test_a_key_that_was_let_in_a_moment_ago_gets_in_and_one_that_was_withdrawn_is_still_noticed(tmp_path: Path) -> None:
    keyring = ring(tmp_path, f"{K} alice submit uid=1000\n")
    write(tmp_path, f"{L} bob submit uid=1001\n")
    assert keyring.answer(question(L))[2] == b"200"
    assert keyring.refresh(0.0)
    assert not keyring.refresh(0.0)


def test_a_line_that_was_spoilt_lets_nobody_in_and_the_others_stay(tmp_path: Path) -> None:
    keyring = ring(tmp_path, f"{K} alice submit uid=1000\n{L} farm serve\n")
    write(tmp_path, f"{K} alice submit uid=1000 urgent\n{L} farm serve\n")
    assert keyring.refresh(0.0)
    assert keyring.grant(K) is None
    assert keyring.grant(L) is not None


def _make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("spoil", [lambda file: file.chmod(0o666), _make_folder, lambda file: file.write_bytes(b"#" * 5_000_000)])
def test_a_file_that_cannot_be_believed_lets_nobody_in_until_it_can(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    keyring = ring(tmp_path, f"{K} alice submit uid=1000\n")
    spoil(tmp_path / FILE)
    assert keyring.refresh(0.0)
    assert keyring.grant(K) is None
    assert not keyring.refresh(0.0)
    if (tmp_path / FILE).is_dir():
        (tmp_path / FILE).rmdir()
    write(tmp_path, f"{K} alice submit uid=1000\n")
    assert keyring.refresh(0.0)
    assert keyring.grant(K) is not None


def test_what_was_replaced_while_it_was_read_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = ring(tmp_path, f"{K} alice submit uid=1000\n")
    write(tmp_path, f"{K} alice submit uid=1000\n{L} bob serve\n")
    real = authorized.read

    def overtaken(folder: Path) -> authorized.Reading:
        found = real(folder)
        write(tmp_path, "")  # just after it was read
        return found

    monkeypatch.setattr(authorized, "read", overtaken)
    keyring.refresh(0.0)
    monkeypatch.setattr(authorized, "read", real)
    assert keyring.refresh(0.0)
    assert keyring.grant(K) is None


def test_permissions_that_are_mended_let_everybody_in_again(tmp_path: Path) -> None:
    keyring = ring(tmp_path, f"{K} alice submit uid=1000\n")
    tmp_path.chmod(0o777)
    assert keyring.refresh(0.0)
    assert keyring.grant(K) is None
    tmp_path.chmod(0o700)
    assert keyring.refresh(0.0)
    assert keyring.grant(K) is not None


def test_a_key_ends_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = ring(tmp_path, f"{K} a submit uid=1 expires=2030-01-01\n{L} b submit uid=1 expires=2031-01-01\n{M} c serve\n")
    first, second = authorized.parse_time("2030-01-01"), authorized.parse_time("2031-01-01")
    assert not keyring.refresh(first - 1)
    assert keyring.refresh(first)
    assert not keyring.refresh(first + 1)
    assert keyring.refresh(second + 1)
    assert not keyring.refresh(second + 2)
    monkeypatch.setattr("time.time", lambda: first)
    assert keyring.grant(K) is None
    assert keyring.answer(question())[2] == b"400"
    assert keyring.grant(L) is not None


def test_refused_keys_do_not_flood_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keyring = ring(tmp_path, "")
    for number in range(1_000):
        keyring.answer(question(f"{number:064x}"))
    assert sum("not let in:" in record.message for record in caplog.records) == 8


# ---- invitations ----


def test_an_invitation_is_exchanged_once(tmp_path: Path) -> None:
    keyring = ring(tmp_path, f"# team\n{K} alice submit invite uid=1000 group=27 expires=2090-01-01\n")
    invitation = keyring.grant(K)
    assert invitation is not None
    joined = keyring.exchange(invitation, L)
    assert joined == Grant(L, "alice", frozenset({"submit"}), ((1000, 1000),), (27,))
    assert (keyring.grant(K), keyring.grant(L)) == (None, joined)
    assert (tmp_path / FILE).read_text() == f"# team\n{L} alice submit uid=1000 group=27\n"
    with pytest.raises(KeyLineError, match="used or withdrawn"):
        keyring.exchange(invitation, M)


@pytest.mark.parametrize("key", ["", "x", L[:-1], "../" + L])
def test_an_invitation_is_not_used_up_by_what_is_no_key(tmp_path: Path, key: str) -> None:
    keyring = ring(tmp_path, f"{K} alice submit invite uid=1000\n")
    invitation = keyring.grant(K)
    assert invitation is not None
    with pytest.raises(KeyLineError):
        keyring.exchange(invitation, key)
    assert keyring.grant(K) == invitation


def test_an_invitation_that_was_withdrawn_a_moment_ago_is_worth_nothing(tmp_path: Path) -> None:
    keyring = ring(tmp_path, f"{K} alice submit invite uid=0\n")
    invitation = keyring.grant(K)
    assert invitation is not None
    write(tmp_path, "")
    with pytest.raises(KeyLineError, match="used or withdrawn"):
        keyring.exchange(invitation, L)
    assert (tmp_path / FILE).read_text() == ""


def test_a_key_that_is_let_in_already_does_not_get_more(tmp_path: Path) -> None:
    text = f"{K} alice submit invite uid=1000\n{L} bob submit uid=1001\n"
    keyring = ring(tmp_path, text)
    invitation = keyring.grant(K)
    assert invitation is not None
    with pytest.raises(KeyLineError, match="already"):
        keyring.exchange(invitation, L)
    assert (tmp_path / FILE).read_text() == text


# ---- what rights open ----


def who(line: str) -> Who:
    grant = authorized.parse_line(f"{K} x {line}")
    assert grant is not None
    return Who(Identity(None), grant)


@pytest.mark.parametrize(
    ("line", "claim", "uid"),
    [
        ("submit uid=1000", None, 1000),
        ("submit uid=1000", 0, 1000),  # a claim counts only where there is a choice
        ("submit uid=2000-2999", 2500, 2500),
        ("submit uid=2000-2999", 2999, 2999),
        ("submit uid=0,2000-2999", 0, 0),
        ("submit operate uid=0", None, 0),
    ],
)
def test_as_whom_a_key_submits(line: str, claim: int | None, uid: int) -> None:
    assert who(line).submits_as(claim) == uid


@pytest.mark.parametrize(
    ("line", "claim", "why"),
    [
        ("submit uid=2000-2999", None, "names none"),
        ("submit uid=2000-2999", 0, "is 0"),
        ("submit uid=2000-2999", 1999, "is 1999"),
        ("submit uid=2000-2999", 3000, "is 3000"),
        ("serve", None, "may not submit"),
        ("serve uid=1000", 1000, "may not submit"),
        ("operate", None, "may not submit"),
        ("submit invite uid=1000", None, "lets it only join"),
    ],
)
def test_as_whom_a_key_does_not(line: str, claim: int | None, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        who(line).submits_as(claim)


@pytest.mark.parametrize(("line", "uid"), [("serve", 0), ("serve uid=1000", 1000), ("serve operate", 0)])
def test_as_whom_a_key_serves(line: str, uid: int) -> None:
    assert who(line).serves_as() == uid


@pytest.mark.parametrize("line", ["submit uid=0", "submit operate uid=0", "serve invite", "operate"])
def test_a_key_without_the_right_does_not_serve(line: str) -> None:
    with pytest.raises(ProtocolError, match="may not serve"):
        who(line).serves_as()


def test_operators_are_those_with_the_right_and_on_this_machine_root_and_we() -> None:
    assert who("operate").is_operator
    assert not who("submit uid=0").is_operator
    assert not who("operate invite").is_operator
    assert Who(Identity(os.geteuid())).is_operator
    assert Who(Identity(0)).is_operator
    assert not Who(Identity(os.geteuid() + 1)).is_operator
    assert not Who(Identity(None)).is_operator


def test_the_kernels_word_counts_whatever_is_claimed() -> None:
    assert Who(Identity(1000)).submits_as(0) == 1000
    assert Who(Identity(1000)).serves_as() == 1000
    assert Who(Identity(None)).submits_as(0) is None
