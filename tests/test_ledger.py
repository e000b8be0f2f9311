"""The ledger: what a restarted distributor knows, from the lines that the one before it wrote."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from dwrap.distributor import ledger as ledgers
from dwrap.distributor.events import Record
from dwrap.distributor.ledger import Book, Ledger
from dwrap.distributor.past import SLACK_SECONDS, Assigned, Past

BOOT = "this boot"


def record(at: float, job: str, what: str, **facts: Any) -> Record:
    return Record(at, job, what, facts)


def assigned(at: float, job: str, attempt: int = 1, made: tuple[str, ...] = ()) -> Record:
    more = {"made": json.dumps(made)} if made else {}
    return record(at, job, "assigned", attempt=attempt, uid=1000, agent="a1", incarnation="i1", **more)


def write(folder: Path, *records: Record, epoch: int = 1, now: float = 100.0) -> None:
    ledger = Ledger(folder, epoch, now, BOOT)
    for one in records:
        ledger.fold(one)
    ledger.close()


def read(folder: Path, epoch: int = 2, now: float = 200.0, boot: str = BOOT) -> Past:
    ledger = Ledger(folder, epoch, now, boot)
    ledger.close()
    return ledger.past


def test_what_was_assigned_is_known_until_it_is_over(tmp_path: Path) -> None:
    over = [record(102, "gone", "cancelled"), record(103, "fetched", "done"), record(104, "fetched", "acknowledged")]
    write(tmp_path, *(assigned(101, job) for job in ("runs", "gone", "fetched", "waits")), *over, record(105, "waits", "done"))
    past = read(tmp_path)
    assert past.assigned == {job: Assigned(1, "a1", "i1", 1000) for job in ("runs", "waits")}
    assert past.epitaph("gone") is not None
    assert past.epitaph("fetched") is not None
    assert past.epitaph("runs") is None


def test_a_job_that_may_be_anyones_stays_so(tmp_path: Path) -> None:
    write(tmp_path, record(101, "runs", "assigned", attempt=1, uid=1000, agent="a1", incarnation="i1", anyones=True))
    assert read(tmp_path).assigned == {"runs": Assigned(1, "a1", "i1", None)}


def test_what_an_epoch_without_a_ledger_assigned_is_written_once_it_is_known(tmp_path: Path) -> None:
    known = record(101, "runs", "known", attempt=2, uid=1000, agent="a1", incarnation="i1", made='["/srv/o"]', beyond="why")
    write(tmp_path, record(100, "runs", "made", made='["/srv/o"]', beyond=""), known)
    assert read(tmp_path).assigned == {"runs": Assigned(2, "a1", "i1", 1000, ("/srv/o",), "why")}


def test_what_has_ended_is_its_owners(tmp_path: Path) -> None:
    write(tmp_path, assigned(101, "over"), record(102, "over", "cancelled", made="[]"))
    past = read(tmp_path)
    assert [past.is_anothers("over", uid) for uid in (1000, 1001, None)] == [False, True, True]
    assert not past.is_anothers("unknown", 1001)


def test_what_attempts_made_is_kept_until_another_may_remove_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        assigned(101, "again"),
        record(102, "again", "made", made=json.dumps(("/srv/o",)), beyond=""),
        record(103, "again", "made", made="[]", beyond="it changed /srv/f"),
        assigned(101, "waits"),
        record(104, "waits", "lost", made=json.dumps(("/srv/p",))),
        record(105, "waits", "offered"),
        record(106, "waits", "unanswered"),
        assigned(101, "left"),
        record(107, "left", "cancelled", made=json.dumps(("/srv/q",))),
    )
    past = read(tmp_path)
    assert past.assigned["again"] == Assigned(1, "a1", "i1", 1000, ("/srv/o",), "it changed /srv/f")
    assert past.assigned["waits"] == Assigned(1, None, "i1", 1000, ("/srv/p",))
    left = past.epitaph("left")
    assert left is not None
    assert (left.safe, left.undo) == (True, ("/srv/q",))


def test_only_jobs_of_known_epochs_can_be_told_to_be_new(tmp_path: Path) -> None:
    write(tmp_path, assigned(101, "known"), record(102, "known", "failed"))
    past = read(tmp_path)
    assert past.was_never_assigned("new", 1, 150)
    assert past.was_never_assigned("new", 2, 150)
    assert not past.was_never_assigned("new", 7, 150)
    assert not past.was_never_assigned("known", 1, 150)


@pytest.mark.parametrize(("now", "lived_at", "until"), [(103.0, 102.0, 115.0), (200.0, 102.0, 204.0)])
def test_leases_run_on_over_a_restart(tmp_path: Path, now: float, lived_at: float, until: float) -> None:
    ledger = Ledger(tmp_path, 1, 100.0, BOOT)
    ledger.lives(lived_at)
    ledger.lives(lived_at + 0.5)
    ledger.close()
    assert read(tmp_path, now=now).recover_until == until


def test_restarts_in_a_row_do_not_put_off_when_a_job_is_lost(tmp_path: Path) -> None:
    write(tmp_path, assigned(101, "lost"), record(102, "lost", "missing", until=115.0), assigned(101, "found"))
    write(tmp_path, record(106, "found", "missing", until=119.0), record(107, "found", "found"), epoch=2, now=105)
    past = read(tmp_path, epoch=3, now=110)
    assert past.assigned["lost"].lost_at == 115.0
    assert past.assigned["found"].lost_at is None


def test_another_boot_ends_everything(tmp_path: Path) -> None:
    write(tmp_path, assigned(101, "runs"))
    past = read(tmp_path, boot="the next boot")
    assert past == Past(200.0, frozenset({2}), 213.0)


@pytest.mark.parametrize("cut", range(1, 44, 4))
def test_a_line_that_was_cut_costs_itself_only(tmp_path: Path, cut: int) -> None:
    write(tmp_path, assigned(101, "first"), assigned(102, "second"))
    file = tmp_path / "assignments"
    file.write_bytes(file.read_bytes()[:-cut])
    past = read(tmp_path)
    assert past.assigned.keys() == {"first"} | ({"second"} if cut == 1 else set())
    assert read(tmp_path, epoch=3).assigned == past.assigned


@pytest.mark.parametrize("line", [b'"A",1', b'"A","x","j",1,1,"a","i",[],""', b"[]", b"\xff\xfe", b'"Z",1', b'{"A":1}', b'"E",1,2,3,true'])
def test_damaged_lines_are_skipped(tmp_path: Path, line: bytes) -> None:
    write(tmp_path, assigned(101, "runs"))
    with (tmp_path / "assignments").open("ab") as file:
        file.write(line + b"\n")
    assert read(tmp_path).assigned.keys() == {"runs"}


def test_a_line_that_cannot_be_written_costs_the_file_until_there_is_room(tmp_path: Path) -> None:
    class Full:
        def write(self, text: bytes) -> int:
            return len(text) - 1

        def close(self) -> None:
            return None

    ledger = Ledger(tmp_path, 1, 100.0, BOOT)
    ledger.fold(assigned(101, "before"))
    ledger._out.close()
    ledger._out = Full()  # type: ignore[assignment]
    ledger.fold(assigned(102, "lost"))
    assert list(tmp_path.iterdir()) == [], "nobody believes what lacks a line"
    ledger.fold(assigned(103, "meanwhile"))
    ledger.lives(104.0)
    ledger.fold(assigned(105, "after"))
    ledger.close()
    past = read(tmp_path)
    assert past.assigned.keys() == {"before", "lost", "meanwhile", "after"}
    assert not past.was_never_assigned("new", 1, 104.0), "its file does not go back to the beginning"


def test_it_is_begun_anew_when_it_is_large_and_forgets_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "MAX_BYTES", 2_000)
    ledger = Ledger(tmp_path, 1, 100.0, BOOT)
    ledger.fold(assigned(101, "long"))
    ledger.fold(record(102, "long", "made", made=json.dumps(("/srv/o",)), beyond=""))
    for number in range(200):
        ledger.fold(assigned(110 + number, f"job{number}"))
        ledger.fold(record(110 + number, f"job{number}", "cancelled"))
    ledger.close()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 6_000
    past = read(tmp_path, now=400.0)
    assert past.assigned == {"long": Assigned(1, "a1", "i1", 1000, ("/srv/o",))}
    assert past.epitaph("job199") is not None
    assert past.epitaph("job0") is None
    assert 110 < past.forgotten_at < 310
    assert not past.was_never_assigned("job0", 1, past.forgotten_at - 1)
    assert past.was_never_assigned("new", 1, past.forgotten_at + SLACK_SECONDS + 1)


# ---- the lines by themselves ----


@pytest.mark.parametrize("what", ["made", "missing", "found", "unanswered", "cancelled", "acknowledged", "done", "submitted"])
def test_what_is_told_of_a_job_that_was_never_assigned_is_no_line(what: str) -> None:
    assert Book().fold(record(101, "unknown", what, made="[]", beyond="", until=110.0)) is None


@pytest.mark.parametrize("line", [("L", 101, "j", 110.0), ("M", 101, "j", ["/srv/o"], ""), ("U", 101, "j", [])])
def test_a_line_whose_assignment_is_not_there_says_nothing(line: tuple[object, ...]) -> None:
    past = Book().read([("E", BOOT, 100, 1, True), line], BOOT, 200.0, 2)
    assert past.assigned == {}


def test_all_that_is_live_is_in_the_lines_that_are_left_of_many() -> None:
    book = Book()
    for job in ("runs", "waits", "missing", "beyond"):
        book.fold(assigned(101, job, made=("/srv/a",)))
        book.fold(record(102, job, "made", made=json.dumps(("/srv/o",)), beyond="it changed /srv/f" if job == "beyond" else ""))
    book.fold(record(103, "waits", "lost", made=json.dumps(("/srv/a", "/srv/o"))))
    book.fold(record(104, "missing", "missing", until=117.0))
    book.fold(record(105, "beyond", "made", made="[]", beyond="and more"))
    lines = [("E", BOOT, 100, 1, True), *book.lines(110)]
    assert len(lines) == 7
    assert {line[1] for line in lines[1:]} == {110}
    assert Book().read(lines, BOOT, 200.0, 2).assigned == book.live
    assert book.live["beyond"].beyond == "it changed /srv/f"
    assert book.live["missing"].lost_at == 117.0


def test_a_file_that_was_begun_anew_forgets_only_what_no_older_file_has() -> None:
    whole, rest = ("E", BOOT, 100, 1, True), ("E", BOOT, 150, 1, False)
    assert Book().read([whole, rest], BOOT, 200.0, 2).forgotten_at == -math.inf
    assert Book().read([rest], BOOT, 200.0, 2).forgotten_at == 150
    assert Book().read([("E", BOOT, 100, 3, True), rest], BOOT, 200.0, 2).forgotten_at == 150


def test_a_distributor_that_wrote_nothing_has_lived_all_the_same(tmp_path: Path) -> None:
    write(tmp_path, now=100.0)
    assert read(tmp_path, now=103.0).recover_until == 113.0


# ---- the file ----


def test_a_damaged_line_is_not_the_one_before_it_again(tmp_path: Path) -> None:
    write(tmp_path, assigned(101, "runs"), record(102, "runs", "made", made=json.dumps(("/srv/o",)), beyond=""))
    with (tmp_path / "assignments").open("ab") as file:
        file.write(b"\xff\n")
    assert read(tmp_path).assigned["runs"].made == ("/srv/o",)


def test_a_distributor_that_is_killed_has_written_all_that_it_knew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path, 1, 100.0, BOOT)
    ledger.fold(assigned(101.5, "runs"))
    assert read(tmp_path).assigned.keys() == {"runs"}
    monkeypatch.setattr(ledgers, "MAX_BYTES", 0)
    ledger.fold(assigned(102, "begun anew"))
    monkeypatch.undo()
    ledger.fold(record(103, "runs", "cancelled"))
    assert read(tmp_path, epoch=3).assigned.keys() == {"begun anew"}
    ledger.close()


def test_what_waits_to_be_run_again_is_known_from_a_file_that_was_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "MAX_BYTES", 0)
    write(tmp_path, assigned(101, "waits"), record(102, "waits", "lost", made="[]"), assigned(103, "other"), assigned(104, "another"))
    (tmp_path / "assignments.before").unlink()
    assert read(tmp_path).assigned["waits"].agent is None


def test_a_file_that_cannot_be_begun_anew_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    ledger = Ledger(folder, 1, 100.0, BOOT)
    monkeypatch.setattr(ledgers, "MAX_BYTES", 0)
    shutil.rmtree(folder)
    ledger.fold(assigned(101, "one"))
    ledger.fold(assigned(102, "two"))
    ledger.lives(110.0)
    folder.mkdir()
    ledger.lives(120.0)
    ledger.close()
    assert read(folder).assigned.keys() == {"one", "two"}


def test_the_file_before_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path, 1, 100.0, BOOT)
    ledger.fold(assigned(101, "over"))
    ledger.fold(record(102, "over", "failed"))
    monkeypatch.setattr(ledgers, "MAX_BYTES", 0)
    ledger.fold(assigned(103, "runs"))
    ledger.close()
    past = read(tmp_path)
    assert past.epitaph("over") is not None
    assert past.assigned.keys() == {"runs"}


def test_a_ledger_that_lacks_a_line_leaves_no_older_file_either(tmp_path: Path) -> None:
    (tmp_path / "assignments.before").write_bytes(b"\n")
    ledger = Ledger(tmp_path, 1, 100.0, BOOT)
    ledger._out.close()
    ledger._out = (tmp_path / "assignments").open("rb", buffering=0)
    ledger.fold(assigned(101, "lost"))
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_lacks_a_line_and_may_not_be_removed_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError

    write(tmp_path, assigned(101, "over"))
    ledger = Ledger(tmp_path, 2, 100.0, BOOT)
    ledger._out.close()
    ledger._out = (tmp_path / "assignments").open("rb", buffering=0)
    monkeypatch.setattr(Path, "unlink", refuse)
    ledger.fold(assigned(102, "lost"))
    assert (tmp_path / "assignments").read_bytes() == b""


@pytest.mark.parametrize(("seconds", "until"), [(0.9, 113.0), (1.0, 114.0)])
def test_that_it_lives_is_written_once_a_second(tmp_path: Path, seconds: float, until: float) -> None:
    ledger = Ledger(tmp_path, 1, 100.0, BOOT)
    ledger.lives(100.0 + seconds)
    ledger.close()
    assert read(tmp_path, now=102.0).recover_until == until
