"""journal.py against a model that forgets nothing; bursts.py."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from dwrap.distributor.bursts import FORGET_SECONDS, Bursts
from dwrap.distributor.journal import MAX_FILES, NEVER, Journal
from dwrap.protocol import manifest as m
from dwrap.protocol.manifest import Entry

ME, OTHER, THIRD = 1, 2, 3


def entry(text: str, ino: int = 0) -> Entry:
    """`F /a/b` as an entry."""
    return m.make(text[:1].encode(), text[2:].encode(), ino)


def told(journal: Journal, mark: int, reader: int = ME) -> list[str]:
    return [f"{one.kind.decode()} {one.path.decode()}" for one in m.parse(journal.since(mark, reader)[1])]


def begun(journal: Journal, reader: int = ME) -> int:
    return journal.since(NEVER, reader)[0]


def test_who_was_told_nothing_yet_is_behind_once() -> None:
    journal = Journal()
    mark, entries, behind = journal.since(NEVER, ME)
    assert (entries, behind) == (b"", True)
    assert journal.since(mark, ME) == (mark, b"", False)


def test_a_change_is_told_to_everyone_but_its_origin_and_once() -> None:
    journal = Journal()
    mine, others = begun(journal), begun(journal, OTHER)
    journal.add(ME, [entry("D /s"), entry("F /s/a.o")])
    assert told(journal, mine) == []
    assert told(journal, others, OTHER) == ["D /s", "F /s/a.o"]
    assert told(journal, journal.since(others, OTHER)[0], OTHER) == []


def test_what_a_submitter_tells_everyone_is_told() -> None:
    journal = Journal()
    mark = begun(journal)
    journal.add(None, [entry("D /s")])
    assert told(journal, mark) == ["D /s"]


def test_the_newest_of_a_name_takes_the_place_of_the_others() -> None:
    journal = Journal()
    mark = begun(journal)
    for text in ("F /s/a", "G /s/a", "F /s/b", "G /s/a", "D /s/b", "D /s/b"):
        journal.add(OTHER, [entry(text)])
    assert told(journal, mark) == ["G /s/a", "D /s/b"]


@pytest.mark.parametrize("order", [(OTHER, ME), (ME, OTHER), (OTHER, ME, ME)])
def test_what_two_changed_both_are_told(order: tuple[int, ...]) -> None:
    journal = Journal()
    mark = begun(journal)
    for origin in order:
        journal.add(origin, [entry("D /s"), entry("F /s/a")])
    assert told(journal, mark, ME) == told(journal, mark, OTHER) == ["D /s", "F /s/a"]


@pytest.mark.parametrize("kind", [b"F", b"D"])
def test_of_two_that_were_told_in_the_other_order_the_later_is_kept(kind: bytes) -> None:
    journal = Journal()
    mark, third = begun(journal), begun(journal, THIRD)
    late, early = (m.make(kind, b"/s/a", ino, ctime=ctime) for ino, ctime in ((8, 200), (7, 100)))
    journal.add(OTHER, [late])
    journal.add(ME, [early])
    assert journal.since(mark, ME)[1] == journal.since(third, THIRD)[1] == late.raw
    size = journal.size
    journal.add(ME, [entry("G /s/a")] if kind == b"F" else [m.make(kind, b"/s/a", 9, ctime=200)])
    assert journal.since(third, THIRD)[1] != late.raw, "what is as new and came later; what is gone has no time"
    journal.add(OTHER, [late])
    assert journal.size == size


@pytest.mark.parametrize("late_word", [100, 2**62])
def test_what_was_merely_seen_and_what_was_written_do_not_hide_each_other(late_word: int) -> None:
    journal = Journal()
    mark = begun(journal)
    written, seen = m.make(b"F", b"/s/a", 7, ctime=100), m.make(b"F", b"/s/a", 8, ctime=late_word).as_seen()
    assert (seen.kind, seen.raw[:2], m.parse(seen.raw)) == (b"F", b"f ", [seen])
    journal.add(None, [seen])
    journal.add(OTHER, [written])
    assert sorted(m.parse(journal.since(mark, ME)[1])) == sorted([seen, written])
    journal.add(OTHER, [entry("D /s/a")])
    assert told(journal, mark) == ["D /s/a"], "a directory took the name"


def test_what_was_read_is_no_change() -> None:
    journal = Journal()
    mark = begun(journal)
    journal.add(OTHER, [entry("R /usr/include")])
    assert (told(journal, mark), len(journal)) == ([], 0)


def test_directories_come_before_what_is_in_them() -> None:
    journal = Journal()
    mark = begun(journal)
    journal.add(OTHER, [entry("F /s/a/b/x"), entry("D /s/a/b"), entry("D /s/a"), entry("F /s/y"), entry("D /s"), entry("D /")])
    assert told(journal, mark) == ["D /", "D /s", "F /s/y", "D /s/a", "D /s/a/b", "F /s/a/b/x"]


def test_of_very_many_names_the_directory_tells() -> None:
    journal = Journal()
    mark = begun(journal)
    journal.add(OTHER, [entry("D /s")])
    for number in range(MAX_FILES + 50):
        journal.add(OTHER, [entry(f"F /s/{number}")])
    _, entries, behind = journal.since(mark, ME)
    names = [one.path.decode() for one in m.parse(entries)]
    assert (names[0], len(names), behind) == ("/s", MAX_FILES + 1, False)
    assert set(names[1:]) == {f"/s/{number}" for number in range(50, MAX_FILES + 50)}


def test_very_many_names_that_change_in_place_cannot_be_told() -> None:
    journal = Journal()
    mark, theirs = begun(journal), begun(journal, OTHER)
    for number in range(MAX_FILES + 1):
        journal.add(OTHER, [entry(f"F /s/{number}")])
    assert journal.since(mark, ME)[2]
    assert not journal.since(theirs, OTHER)[2], "who changed them itself lacks nothing"


def test_too_many_directories_and_bytes() -> None:
    for journal in (Journal(max_directories=10), Journal(max_bytes=10_000)):
        first = begun(journal)
        for number in range(99):
            journal.add(OTHER, [entry(f"D /s/{number}")])
        late = begun(journal)
        journal.add(OTHER, [entry("D /s/99")])
        assert len(journal) < 40
        assert journal.size < 10_000
        assert journal.since(first, ME)[2]
        assert journal.since(late, ME)[1:] == (entry("D /s/99").raw, False)


def test_more_than_a_body_holds_is_cut_and_said() -> None:
    journal = Journal()
    mark = begun(journal)
    for number in range(700):
        journal.add(OTHER, [entry(f"D /{'x' * 2_000}/{number}")])
    _, entries, behind = journal.since(mark, ME)
    assert len(entries) <= m.MAX_SEEN_BYTES
    assert behind
    assert entry(f"D /{'x' * 2_000}/699") in m.parse(entries), "the newest are told"


def test_when_a_host_is_lost_everyone_is_behind_once() -> None:
    journal = Journal()
    mark = begun(journal)
    journal.forget_all_marks()
    mark, _, behind = journal.since(mark, ME)
    assert behind
    assert not journal.since(mark, ME)[2]


PATHS = some.sampled_from(["/s", "/s/a", "/s/b", "/s/a/x", "/s/a/y", "/t", "/t/z"])
STEPS = some.one_of(
    some.tuples(some.just("add"), some.sampled_from([ME, OTHER, THIRD, None]), some.sampled_from("DFG"), PATHS),
    some.tuples(some.just("ask"), some.sampled_from([ME, OTHER, THIRD])),
)


@settings(max_examples=300)
@given(some.lists(STEPS, max_size=80), some.sampled_from([2, 1_000]))
def test_nothing_is_missed_and_nothing_is_told_twice(steps: list[tuple[str, ...]], most: int) -> None:
    journal = Journal(max_directories=most)
    marks = {ME: begun(journal), OTHER: begun(journal), THIRD: begun(journal)}
    news: dict[int, dict[tuple[str, str], Entry]] = {ME: {}, OTHER: {}, THIRD: {}}  # what each is to be told, by directory and name
    for number, (what, who, *rest) in enumerate(steps):
        if what == "add":
            kind, path = rest
            one = entry(f"{kind} {path}", number)
            journal.add(who, [one])  # type: ignore[arg-type]
            for reader, due in news.items():
                key = (one.directory.decode(), path)
                if kind == "D":
                    due.pop((m.parent(path.encode()).decode(), path), None)
                if reader != who or key in due:
                    due[key] = one
            continue
        reader = int(who)
        marks[reader], piece, behind = journal.since(marks[reader], reader)
        got = m.parse(piece)
        if not behind:
            assert sorted(got) == sorted(news[reader].values())
        places = [one.directory for one in got]
        assert places == sorted(places)
        assert all(one.kind != m.DIRECTORY or one.path not in places[:at] for at, one in enumerate(got))
        news[reader].clear()


def test_a_burst_begins_after_a_pause_and_is_newer_than_all_before() -> None:
    bursts = Bursts()
    assert (bursts.begin("a", 0), bursts.begin("a", 0), bursts.begin("b", 0)) == (1, 1, 2)
    bursts.end("a", 1)
    assert bursts.begin("a", 9) == 1, "a job of it is live"
    bursts.end("a", 10)
    bursts.end("a", 10)
    assert bursts.begin("a", 10.9) == 1
    bursts.end("a", 11)
    assert bursts.begin("a", 12) == 3
    bursts.end("a", 12)
    bursts.end("b", 12)
    assert bursts.begin("c", 13 + FORGET_SECONDS) == 4
    assert len(bursts) == 1
