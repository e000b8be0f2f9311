"""keys.py and dial.py: key files, known distributors, join tokens, and what each address asks for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from dwrap.protocol import dial, keys
from dwrap.protocol.endpoint import parse_endpoint
from dwrap.protocol.keys import KeysError

HERE, AFAR = "tcp://127.0.0.1:7776", "tcp://build.example:7776"


@pytest.fixture(autouse=True)
def _no_keys_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(keys, "SYSTEM", tmp_path / "etc")


def test_a_pair_is_written_privately_and_read_back(tmp_path: Path) -> None:
    pair = keys.new_pair()
    old = os.umask(0)
    try:
        file = keys.write_pair(tmp_path / "new" / "keys", "client", pair)
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert keys.read_pair(file.parent, "client") == pair
    assert pair.secret not in repr(pair)


def test_no_key_is_overwritten_nor_written_through_a_link(tmp_path: Path) -> None:
    pair = keys.new_pair()
    keys.write_pair(tmp_path, "client", pair)
    with pytest.raises(KeysError, match="there already"):
        keys.write_pair(tmp_path, "client", keys.new_pair())
    (tmp_path / "agent.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeysError, match="there already"):
        keys.write_pair(tmp_path, "agent", pair)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602])
def test_a_key_that_others_may_read_is_not_used(tmp_path: Path, mode: int) -> None:
    keys.write_pair(tmp_path, "client", keys.new_pair()).chmod(mode)
    with pytest.raises(KeysError, match="chmod 600"):
        keys.read_pair(tmp_path, "client")


def test_what_is_no_key_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="there is no key"):
        keys.read_pair(tmp_path, "client")
    file = tmp_path / "client.key"
    os.mkfifo(file, 0o600)
    with pytest.raises(KeysError, match="is no file"):
        keys.read_pair(tmp_path, "client")
    file.unlink()
    pair = keys.new_pair()
    for text in ("", f"secret = {pair.secret}\n", f"public = {'0' * 64}\nsecret = {pair.secret}\n", "x" * 5_000):
        file.write_text(text)
        file.chmod(0o600)
        with pytest.raises(KeysError, match="holds no key pair"):
            keys.read_pair(tmp_path, "client")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_another_users_key_is_not_used(tmp_path: Path) -> None:
    os.chown(keys.write_pair(tmp_path, "client", keys.new_pair()), 1234, -1)
    with pytest.raises(KeysError, match="belongs to uid 1234"):
        keys.read_pair(tmp_path, "client")


def test_the_first_line_for_an_address_decides(tmp_path: Path) -> None:
    (tmp_path / keys.KNOWN).write_text(f"# ours\n{AFAR} {'A1' * 32} # pinned\n{AFAR} {'b2' * 32}\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / keys.KNOWN).write_text(f"{AFAR} {'c3' * 32}\n{HERE} uid=1000\n")
    assert keys.known_distributor(tmp_path, AFAR) == "a1" * 32
    assert keys.known_distributor(tmp_path, HERE) == "uid=1000"
    assert keys.known_distributor(tmp_path, "tcp://build.example:7777") == ""


def test_a_pinned_key_never_changes_by_itself(tmp_path: Path) -> None:
    keys.pin(tmp_path, AFAR, "a1" * 32)
    keys.pin(tmp_path, AFAR, "a1" * 32)
    assert (tmp_path / keys.KNOWN).read_text() == f"{AFAR} {'a1' * 32}\n"
    with pytest.raises(KeysError, match="known by another key"):
        keys.pin(tmp_path, AFAR, "b2" * 32)


@pytest.mark.parametrize("line", [AFAR, f"{AFAR} short", f"{AFAR} {'a1' * 32} more"])
def test_a_line_that_is_not_understood_is_no_licence(tmp_path: Path, line: str) -> None:
    (tmp_path / keys.KNOWN).write_text(f"{line}\n")
    with pytest.raises(KeysError, match="write ADDRESS KEY"):
        dial.dial(parse_endpoint(AFAR), tmp_path, "client", insecure=True)


@pytest.mark.parametrize(("address", "is_insecure", "works"), [(HERE, False, True), (AFAR, False, False), (AFAR, True, True)])
def test_without_keys_only_this_machine_is_dialled(tmp_path: Path, address: str, is_insecure: bool, works: bool) -> None:
    if not works:
        with pytest.raises(KeysError, match="no key of it is known"):
            dial.dial(parse_endpoint(address), tmp_path, "client", is_insecure)
        return
    assert dial.dial(parse_endpoint(address), tmp_path, "client", is_insecure).pair is None


@pytest.mark.parametrize("address", [HERE, AFAR, "ipc:///run/dwrap.sock"])
@pytest.mark.parametrize("is_insecure", [False, True])
def test_where_a_key_is_pinned_nothing_else_will_do(tmp_path: Path, address: str, is_insecure: bool) -> None:
    keys.pin(tmp_path, address, "a1" * 32)
    with pytest.raises(KeysError, match="there is no key"):
        dial.dial(parse_endpoint(address), tmp_path, "agent", is_insecure)
    pair = keys.new_pair()
    keys.write_pair(tmp_path, "agent", pair)
    assert dial.dial(parse_endpoint(address), tmp_path, "agent", is_insecure) == dial.Dial(address, "a1" * 32, pair)


def test_tokens_are_one_word_and_come_back(tmp_path: Path) -> None:
    pair = keys.new_pair()
    invitation = keys.Invitation(AFAR, pair.public, pair.secret)
    assert keys.parse_token(f"  {invitation.token()}\n") == invitation
    assert len(invitation.token().split()) == 1
    assert pair.secret not in repr(invitation)


@given(st.text(max_size=400))
def test_no_text_breaks_the_reader_of_tokens(text: str) -> None:
    for word in (text, keys.JOIN_PREFIX + text):
        with pytest.raises(KeysError, match="no join token"):
            keys.parse_token(word)


@pytest.mark.parametrize(("version", "has_curve", "why"), [((4, 3, 2), True, "known holes"), ((4, 3, 5), False, "without encryption")])
def test_a_library_with_holes_is_not_used(monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], has_curve: bool, why: str) -> None:
    keys.check_library()
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: version)
    monkeypatch.setattr(zmq, "has", lambda _: has_curve)
    with pytest.raises(KeysError, match=why):
        keys.check_library()


@pytest.mark.parametrize(
    ("environment", "euid", "found"),
    [
        ({"DWRAP_KEYS": "/k", "HOME": "/h"}, 0, "/k"),
        ({"HOME": "/root"}, 0, "/etc/dwrap/keys"),
        ({"HOME": "/h"}, 1, "/h/.config/dwrap/keys"),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "/x", "DWRAP_KEYS": ""}, 1, "/x/dwrap/keys"),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "x"}, 1, "/h/.config/dwrap/keys"),
        ({"HOME": "", "XDG_CONFIG_HOME": ""}, 1, None),
        ({"HOME": "h"}, 1, None),
        ({}, 1, None),
    ],
)
def test_where_keys_lie(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], euid: int, found: str | None) -> None:
    monkeypatch.setattr(keys, "SYSTEM", Path("/etc/dwrap"))
    assert keys.directory(environment, euid) == (Path(found) if found else None)


def test_a_directory_that_somebody_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="not absolute"):
        keys.directory({"DWRAP_KEYS": "keys"}, 1)
    for folder, works in ((tmp_path, True), (tmp_path / "none", False)):
        if works:
            dial.by_environment(parse_endpoint(HERE), {"DWRAP_KEYS": str(folder)})
        else:
            with pytest.raises(KeysError, match="is no directory"):
                dial.by_environment(parse_endpoint(HERE), {"DWRAP_KEYS": str(folder)})


GOOD = f"{AFAR} {'a1' * 32}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{GOOD}\r\n", "a1" * 32),
        (f"\t{AFAR}\t {'A1' * 32}\t# ours", "a1" * 32),
        (f"{AFAR} uid=0", "uid=0"),
        (f"{AFAR} uid=4294967294", "uid=4294967294"),
        (f"\0{GOOD}", None),
        (f"{GOOD}\0", None),
        (f"#\x0c\n{GOOD}", None),
        (f"{GOOD}#ours", None),
        (f"{AFAR} uid=", None),
        (f"{AFAR} uid=x", None),
        (f"{AFAR} uid=4294967295", None),
        (f"{GOOD}\nanother line that is none\n", None),
        ("#" * 1_100_000, None),
    ],
)
def test_what_stands_in_known_distributors(tmp_path: Path, text: str, found: str | None) -> None:
    (tmp_path / keys.KNOWN).write_text(text)
    if found is None:
        with pytest.raises(KeysError):
            keys.known_distributor(tmp_path, AFAR)
    else:
        assert keys.known_distributor(tmp_path, AFAR) == found


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_pins_that_others_may_have_written_are_not_believed(tmp_path: Path, mode: int) -> None:
    file = tmp_path / keys.KNOWN
    file.write_text(f"{GOOD}\n")
    file.chmod(mode)
    with pytest.raises(KeysError, match="others may have written"):
        keys.known_distributor(tmp_path, AFAR)
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(KeysError, match="others may have written"):
        keys.known_distributor(tmp_path, AFAR)


def test_a_pin_is_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / keys.KNOWN).write_text(f"{HERE} uid=1")  # without an end
    keys.pin(tmp_path, AFAR, "a1" * 32)
    assert keys.known_distributor(tmp_path, AFAR) == "a1" * 32
    assert keys.known_distributor(tmp_path, HERE) == "uid=1"
    for address in ("ipc:///tmp/a b", "ipc:///tmp/a#b", f"ipc:///tmp/x\n{AFAR}", "ipc:///tmp/\u00e4"):
        with pytest.raises(KeysError, match="cannot stand"):
            keys.pin(tmp_path, address, "b2" * 32)


def test_a_token_does_not_bring_a_line_of_its_own(tmp_path: Path) -> None:
    pair = keys.new_pair()
    for address in (f"ipc:///x\n{AFAR}", "ipc:///x\ty"):
        with pytest.raises(KeysError, match="no join token"):
            keys.parse_token(keys.Invitation(address, pair.public, pair.secret).token())


def test_half_a_key_does_not_stand_in_the_way_of_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        keys.write_pair(tmp_path, "client", keys.new_pair())
    monkeypatch.undo()
    keys.write_pair(tmp_path, "client", keys.new_pair())


@pytest.mark.skipif(os.getuid() != 0, reason="only root has others' keys in hand")
def test_root_reads_and_writes_the_keys_of_a_distributor_of_another_user(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 1234)
    file = keys.write_pair(tmp_path, "server", keys.new_pair())
    keys.pin(tmp_path, AFAR, "a1" * 32)
    keys.pin(tmp_path, HERE, "a1" * 32)
    assert {file.stat().st_uid, (tmp_path / keys.KNOWN).stat().st_uid} == {1234}
    keys.read_pair(tmp_path, "server")
