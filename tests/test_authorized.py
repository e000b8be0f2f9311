"""authorized.py: lines of authorized_keys, and editing the file."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwrap.protocol import authorized, whole
from dwrap.protocol.authorized import Grant, KeyLineError

K, L = "a1" * 32, "b2" * 32


@pytest.mark.parametrize(
    ("line", "grant"),
    [
        ("", None),
        ("   # only a comment", None),
        (f"{K} alice submit uid=1000", Grant(K, "alice", frozenset({"submit"}), ((1000, 1000),))),
        (f"{K.upper()} a submit uid=1000", Grant(K, "a", frozenset({"submit"}), ((1000, 1000),))),
        (f"  {K}\talice@desk submit uid=1000 # of the third floor", Grant(K, "alice@desk", frozenset({"submit"}), ((1000, 1000),))),
        (f"{K} farm serve", Grant(K, "farm", frozenset({"serve"}))),
        (f"{K} mine serve uid=1000", Grant(K, "mine", frozenset({"serve"}), ((1000, 1000),))),
        (f"{K} boss submit operate uid=0", Grant(K, "boss", frozenset({"submit", "operate"}), ((0, 0),))),
        (
            f"{K} ci submit uid=0,2000-2999 group=27,100 expires=2027-01-01T00:00:00Z",
            Grant(K, "ci", frozenset({"submit"}), ((0, 0), (2000, 2999)), (27, 100), 1798761600.0),
        ),
        (f"{K} x submit invite uid=7 expires=2027-01-01", Grant(K, "x", frozenset({"submit", "invite"}), ((7, 7),), (), 1798761600.0)),
    ],
)
def test_lines_that_mean_something(line: str, grant: Grant | None) -> None:
    assert authorized.parse_line(line) == grant
    if grant is not None:
        assert authorized.parse_line(grant.line()) == grant


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f"{K} alice", "a key, a name and a right"),
        (f"{K[1:]} alice submit uid=1", "no key"),
        (f"{K}0 alice submit uid=1", "no key"),
        (f"{'g' * 64} alice submit uid=1", "no key"),
        (f"{K} submit submit uid=1", "no name"),
        (f"{K} al/ice submit uid=1", "no name"),
        (f"{K} -v submit uid=1", "no name"),
        (f"{K} {'a' * 65} submit uid=1", "no name"),
        (f"{K} alice uid=1000", "no right"),
        (f"{K} alice invite uid=1000", "no right"),
        (f"{K} alice submit", "as nobody"),
        (f"{K} alice submit serve uid=1000", "both"),
        (f"{K} farm serve uid=1-2", "several"),
        (f"{K} alice submit uid=0-1000", "no range"),
        (f"{K} alice submit uid=9-8", "no range"),
        (f"{K} alice submit uid=", "no uid"),
        (f"{K} alice submit uid=-1", "no uid"),
        (f"{K} alice submit uid=4294967295", "no uid"),
        (f"{K} alice submit uid=99999999999999", "no uid"),
        (f"{K} alice submit uid=1 uid=2", "each once"),
        (f"{K} alice submit uid=1 root", "not understood"),
        (f"{K} alice submit uid=1 group=x", "no uid or gid"),
        (f"{K} alice submit uid=1 group={','.join(['1'] * 65)}", "more than 64"),
        (f"{K} alice submit uid=1 expires=soon", "no time"),
    ],
)
def test_lines_that_mean_nothing_say_why(line: str, why: str) -> None:
    with pytest.raises(KeyLineError, match=why):
        authorized.parse_line(line)
    grants, problems = authorized.parse(f"{line}\n{L} other serve\n")
    assert list(grants) == [L]
    assert len(problems) == 1
    assert problems[0].startswith("line 1 ")


def test_of_two_lines_with_one_key_or_name_the_first_counts() -> None:
    grants, problems = authorized.parse(f"{K} a serve\n{K} b submit uid=1\n{L} a submit uid=1\n")
    assert [grant.name for grant in grants.values()] == ["a"]
    assert len(problems) == 2


@given(st.text(max_size=300))
def test_no_text_breaks_the_parser(text: str) -> None:
    grants, _ = authorized.parse(text)
    assert not grants or all(len(key) == 64 for key in grants)


def test_an_invitation_may_do_nothing_yet() -> None:
    grant = Grant(K, "x", frozenset({"submit", "invite"}), ((1, 1),))
    assert not grant.may("submit")
    assert grant.may("invite")


def test_comments_and_order_outlive_edits(tmp_path: Path) -> None:
    before = f"# the team\n{K} alice submit uid=1000 # third floor\n\n# machines"
    (tmp_path / authorized.FILE).write_text(before)
    authorized.edit(tmp_path, lambda text: authorized.with_grant(text, Grant(L, "farm", frozenset({"serve"}))))
    assert authorized.read(tmp_path).text == f"{before}\n{L} farm serve\n"
    authorized.edit(tmp_path, lambda text: authorized.without(text, "alice"))
    assert authorized.read(tmp_path).text == f"# the team\n\n# machines\n{L} farm serve\n"
    authorized.edit(tmp_path, lambda text: authorized.without(text, L))
    assert authorized.read(tmp_path).text == "# the team\n\n# machines\n"


def test_a_line_that_only_speaks_of_somebody_is_not_theirs(tmp_path: Path) -> None:
    text = f"# alice left\n{K} bob submit uid=1 # alice's\n"
    with pytest.raises(KeyLineError, match="no key is called alice"):
        authorized.without(text, "alice")


def test_a_name_or_key_is_let_in_once() -> None:
    text = f"{K} alice submit uid=1\n"
    for grant in (Grant(K, "x", frozenset({"serve"})), Grant(L, "alice", frozenset({"serve"}))):
        with pytest.raises(KeyLineError, match="already"):
            authorized.with_grant(text, grant)


def test_editors_take_turns_and_none_is_lost(tmp_path: Path) -> None:
    def add(number: int) -> None:
        grant = Grant(f"{number:064x}", f"n{number}", frozenset({"serve"}))
        authorized.edit(tmp_path, lambda text: authorized.with_grant(text, grant))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(authorized.parse(authorized.read(tmp_path).text)[0]) == 40
    assert set(os.listdir(tmp_path)) == {".lock", authorized.FILE}
    assert stat.S_IMODE((tmp_path / authorized.FILE).stat().st_mode) == 0o600


def test_an_edit_that_fails_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / authorized.FILE).write_text("# as it was\n")
    with pytest.raises(KeyLineError):
        authorized.edit(tmp_path, lambda text: authorized.without(text, "nobody"))
    assert authorized.read(tmp_path).text == "# as it was\n"
    assert set(os.listdir(tmp_path)) == {".lock", authorized.FILE}


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_to_is_not_believed(tmp_path: Path, mode: int) -> None:
    file = tmp_path / authorized.FILE
    file.write_text(f"{K} mallory submit uid=0\n")
    file.chmod(mode)
    with pytest.raises(PermissionError, match="chmod 600"):
        authorized.read(tmp_path)
    file.chmod(0o644)
    assert authorized.read(tmp_path).text


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_roots_edit_leaves_the_file_to_its_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 1234)
    authorized.edit(tmp_path, lambda text: authorized.with_grant(text, Grant(K, "a", frozenset({"serve"}))))
    assert (tmp_path / authorized.FILE).stat().st_uid == 1234
    authorized.edit(tmp_path, lambda text: authorized.without(text, "a"))
    os.chown(tmp_path / authorized.FILE, 1235, 1235)
    with pytest.raises(PermissionError):
        authorized.read(tmp_path)


def test_an_edit_copies_nothing_from_behind_a_link(tmp_path: Path) -> None:
    """Root edits the list of a distributor that has its own user: that user may not have root's files written out for it so."""
    secret, folder = tmp_path / "shadow", tmp_path / "keys"
    secret.write_text("root:secret\n")
    secret.chmod(0o600)
    folder.mkdir(0o700)
    (folder / authorized.FILE).symlink_to(secret)
    with pytest.raises(OSError, match="symbolic link"):
        authorized.edit(folder, lambda text: authorized.with_grant(text, Grant(K, "a", frozenset({"serve"}))))
    assert (folder / authorized.FILE).is_symlink()
    (folder / authorized.FILE).unlink()
    authorized.edit(folder, lambda text: authorized.with_grant(text, Grant(K, "a", frozenset({"serve"}))))
    assert "secret" not in authorized.read(folder).text


@pytest.mark.parametrize("mode", [0o770, 0o703])
def test_a_directory_that_others_may_write_to_is_not_believed(tmp_path: Path, mode: int) -> None:
    authorized.edit(tmp_path, lambda text: authorized.with_grant(text, Grant(K, "a", frozenset({"serve"}))))
    tmp_path.chmod(mode)
    with pytest.raises(PermissionError, match="chmod 700"):
        authorized.read(tmp_path)


def test_nobody_who_may_only_read_keeps_editors_waiting(tmp_path: Path) -> None:
    """A lock of the directory itself could be held by whoever may read it."""
    (tmp_path / authorized.FILE).write_text("")
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    authorized.edit(tmp_path, lambda _: "# done\n", patience=0.0)
    os.close(held)
    assert stat.S_IMODE((tmp_path / ".lock").stat().st_mode) == 0o600


def test_an_editor_that_does_not_end_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with whole.locked(tmp_path, 1.0), pytest.raises(TimeoutError, match="another editor"):
        authorized.edit(tmp_path, lambda text: text, patience=0.05)


def test_a_file_that_is_written_to_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / authorized.FILE
    file.write_text("# one\n")
    assert authorized.read(tmp_path).stamp == authorized.look(tmp_path) != ()
    real, calls = os.fstat, []

    def changing(fd: int) -> os.stat_result:
        calls.append(fd)
        if len(calls) == 2:
            file.write_text("# another\n")
        return real(fd)

    monkeypatch.setattr(os, "fstat", changing)
    assert authorized.read(tmp_path).stamp == ()
