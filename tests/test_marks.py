"""marks.py: what each user of a host is given to apply, and what is asked anew."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from dwrap.agent.marks import MAX_FAILURES, MAX_USERS, Due, Marks

USER, OTHER = 1000, 1001
HERE, THERE = b"/srv", b"/srv/sub"


def made_sure(marks: Marks, uid: int = USER, cwd: bytes = HERE, burst: int = 1) -> Due:
    due = marks.due(uid, cwd, burst)
    marks.applied(due)
    return due


def test_the_first_job_in_a_directory_asks_the_server_the_next_does_not() -> None:
    marks = Marks()
    assert made_sure(marks).refresh
    assert not made_sure(marks).refresh
    assert made_sure(marks, cwd=THERE).refresh
    assert made_sure(marks, uid=OTHER).refresh


def test_a_new_burst_and_being_behind_ask_the_server_in_each_directory_once() -> None:
    marks = Marks()
    for cwd in (HERE, THERE):
        made_sure(marks, cwd=cwd)
    marks.take(b"", behind=True)
    assert [made_sure(marks, cwd=cwd).refresh for cwd in (HERE, THERE, HERE)] == [True, True, False]
    assert [made_sure(marks, cwd=cwd, burst=2).refresh for cwd in (HERE, THERE, HERE)] == [True, True, False]
    assert not made_sure(marks, burst=1).refresh, "an older burst than one that was made sure for"


def test_only_a_runner_that_says_so_moves_the_mark() -> None:
    marks = Marks()
    made_sure(marks)
    marks.take(b"a", behind=False)
    first, second = marks.due(USER, HERE, 1), marks.due(USER, HERE, 1)
    assert first.journal == second.journal == b"a"
    marks.take(b"b", behind=False)
    marks.applied(first)
    assert marks.due(USER, HERE, 1).journal == b"b"
    marks.applied(second)
    assert made_sure(marks).journal == b"b"
    assert made_sure(marks).journal == b""
    assert marks.size == 0


def test_each_user_is_given_each_batch() -> None:
    marks = Marks()
    made_sure(marks)
    made_sure(marks, OTHER)
    for batch in (b"a", b"b"):
        marks.take(batch, behind=False)
        assert made_sure(marks).journal == batch
    assert made_sure(marks, OTHER).journal == b"ab"
    assert marks.size == 0


def test_what_there_is_no_room_for_is_asked_by_those_who_lack_it() -> None:
    marks = Marks(max_bytes=10)
    made_sure(marks)
    made_sure(marks, OTHER)
    marks.take(b"x" * 8, behind=False)
    assert made_sure(marks).journal == b"x" * 8
    marks.take(b"y" * 8, behind=False)
    assert marks.size == 8
    due = made_sure(marks, OTHER)
    assert (due.journal, due.refresh) == (b"y" * 8, True)
    due = made_sure(marks)
    assert (due.journal, due.refresh) == (b"y" * 8, False)


def test_entries_that_no_runner_can_apply_keep_nobody_away_for_ever() -> None:
    marks = Marks()
    made_sure(marks)
    marks.take(b"a lie", behind=False)
    for _ in range(MAX_FAILURES):
        due = marks.due(USER, HERE, 1)
        assert due.journal == b"a lie"
        marks.failed(due)
    due = made_sure(marks)
    assert (due.journal, due.refresh) == (b"", True)
    marks.take(b"true", behind=False)
    marks.failed(marks.due(USER, HERE, 1))
    assert made_sure(marks).journal == b"true"


def test_another_distributor_makes_nothing_fresh() -> None:
    marks = Marks()
    made_sure(marks, burst=9)
    marks.restart()
    assert made_sure(marks, burst=1).refresh


def test_users_that_are_forgotten_begin_anew() -> None:
    marks = Marks()
    made_sure(marks)
    for uid in range(2_000, 2_000 + MAX_USERS):
        made_sure(marks, uid)
    assert made_sure(marks).refresh


@given(some.lists(some.one_of(some.binary(min_size=1, max_size=6), some.tuples(some.sampled_from([USER, OTHER]), some.booleans()))))
def test_no_batch_is_withheld_from_anyone(steps: list[bytes | tuple[int, bool]]) -> None:
    marks = Marks()
    lacks: dict[int, list[bytes]] = {USER: [], OTHER: []}
    for uid in lacks:
        made_sure(marks, uid)
    for step in steps:
        if isinstance(step, bytes):
            marks.take(step, behind=False)
            for batches in lacks.values():
                batches.append(step)
            continue
        uid, says_so = step
        due = marks.due(uid, HERE, 1)
        assert due.journal == b"".join(lacks[uid])
        if says_so:
            marks.applied(due)
            lacks[uid].clear()
    assert marks.size == max(sum(map(len, batches)) for batches in lacks.values())
