"""records.py: the history, its bound, and the story it tells."""

from __future__ import annotations

import pytest

from dwrap.distributor.events import Fact, Record
from dwrap.distributor.records import HISTORY_JOBS, MAX_REASONS, OPERATOR, Asker, History, explain, pathless

BEGIN: dict[str, Fact] = {
    "uid": 1000,
    "build": "b",
    "command": "cc",
    "cwd": "/srv",
    "host": "desk",
    "pid": 7,
    "priority": 0,
    "state": "queued",
}


def fold(history: History, job: str, *steps: tuple[str, dict[str, Fact]]) -> None:
    history.fold(Record(10.0, job, "submitted", dict(BEGIN)))
    for what, facts in steps:
        history.fold(Record(11.0, job, what, facts))


def entry_of(*steps: tuple[str, dict[str, Fact]]) -> dict[str, object]:
    history = History(wall_offset=1_000.0)
    fold(history, "j", *steps)
    found = history.find("j")
    assert isinstance(found, dict)
    return found


OFFERED = ("offered", {"agent": "a1", "state": "offered"})
ASSIGNED = ("assigned", {"attempt": 1, "queued_ms": 5, "state": "assigned"})
DONE = ("done", {"status": 256, "run_ms": 7, "error": "", "reason": "", "state": "settled"})


@pytest.mark.parametrize(
    ("steps", "where", "first"),
    [
        ((), "", "cc is queued"),
        ((OFFERED,), "a1", "cc is offered on a1"),
        ((OFFERED, ASSIGNED), "a1", "cc is assigned on a1: queued 5 ms"),
        ((OFFERED, ASSIGNED, DONE), "a1", "cc ran on a1: queued 5 ms, ran 7 ms"),
        ((("here", {"reason": "a rule"}),), "here", "cc ran where it was submitted: a rule"),
        ((("unavailable", {"reason": "nobody"}),), "here", "cc found no agent: nobody"),
        ((("refused", {"reason": "label"}),), "", "cc was refused: label"),
        ((OFFERED, ("unanswered", {"state": "queued"})), "", "cc is queued"),
        ((OFFERED, ASSIGNED, ("failed", {"reason": "lost"})), "a1", "cc failed to run, through no fault of its own: lost: queued 5 ms"),
        ((OFFERED, ("cancelled", {"reason": "gone"})), "a1", "cc was cancelled by its submitter"),
    ],
)
def test_stories(steps: tuple[tuple[str, dict[str, Fact]], ...], where: str, first: str) -> None:
    entry = entry_of(*steps)
    assert entry["where"] == where
    assert explain(entry)[0] == first
    assert entry["submitted_at"] == 1_010.0


def test_groups_that_a_job_did_not_get_are_told() -> None:
    lines = explain(entry_of(OFFERED, ASSIGNED, ("done", {**DONE[1], "groups_dropped": "44,46,…"})))
    assert "groups 44 46 … were dropped: neither the agent's database nor the key gives them" in lines
    assert not [line for line in explain(entry_of(OFFERED, ASSIGNED, DONE)) if "dropped" in line]


def test_what_is_told_of_views_of_the_shared_tree() -> None:
    seen = {"tree": "pidns", "outputs": "exact", "revalidate_ms": 3, "flush_ms": 2}
    plain = explain(entry_of(OFFERED, ASSIGNED, ("done", {**DONE[1], **seen})))
    assert plain[0] == "cc ran on a1: queued 5 ms, made sure of its view 3 ms, ran 7 ms, flushed 2 ms"
    assert plain[-1] == "its processes were held by pidns; its outputs on disk are exact"
    wrong = {**seen, "outputs": "approximate", "outputs_why": "a container wrote files", "stale": 4, "reran": 1, "escaped": 2,
             "escaped_path": "/var/x"}  # fmt: skip
    assert explain(entry_of(OFFERED, ASSIGNED, ("done", {**DONE[1], **wrong})))[-3:] == [
        "its processes were held by pidns; its outputs on disk are approximate (a container wrote files)",
        "a1 had 4 names of the shared tree wrong and corrected them; it failed at first and ran again",
        "it left 2 files on a1 that no other host sees, the first /var/x",
    ]


def test_the_history_is_bounded_and_keeps_the_newest() -> None:
    history = History(0.0)
    for number in range(HISTORY_JOBS + 100):
        fold(history, f"job-{number}")
    assert len(history.entries()) == HISTORY_JOBS
    assert history.fold(Record(12.0, "job-0", "done", {})) is None
    assert [entry["job"] for entry in history.entries(limit=2)] == [f"job-{HISTORY_JOBS + number}" for number in (98, 99)]
    assert history.entries(limit=0) == []


def test_reasons_are_bounded() -> None:
    history = History(0.0)
    for number in range(MAX_REASONS + 50):
        fold(history, f"j{number}", ("here", {"reason": f"rule {number}"}))
    assert len(history.here_reasons) == MAX_REASONS
    assert history.totals["here"] == MAX_REASONS + 50


def test_finding_by_id_prefix_and_last() -> None:
    history = History(0.0)
    assert history.find("last") == "no job has been seen yet"
    for job in ("abc1", "abd2"):
        fold(history, job)
    assert history.find("abc")["job"] == "abc1"  # type: ignore[index, call-overload]
    assert history.find("last")["job"] == "abd2"  # type: ignore[index, call-overload]
    assert str(history.find("ab")).startswith("2 jobs begin with ab")
    assert str(history.find("zz")).startswith("no job zz")


OWN, OTHER, NOBODY = Asker(1000), Asker(1001), Asker(None)
CLAIM = "0123456789abcdef"


def private() -> History:
    history = History(0.0)
    history.fold(Record(10.0, CLAIM, "submitted", {**BEGIN, "cwd": "/home/me/new product"}))
    history.fold(Record(10.0, CLAIM, "failed", {"reason": "agent a1: an output could not be stored: /home/me/new product/a.o: no space"}))
    return history


@pytest.mark.parametrize("asker", [OWN, OPERATOR, Asker(None, True), Asker(1001, True)])
def test_its_user_and_operators_see_all_of_a_job(asker: Asker) -> None:
    (entry,) = private().entries(asker=asker)
    found = private().find(CLAIM[:12], asker)
    assert entry == found
    assert (entry["job"], entry["cwd"]) == (CLAIM, "/home/me/new product")
    assert CLAIM in "".join(explain(entry))


@pytest.mark.parametrize("asker", [OTHER, NOBODY])
@pytest.mark.parametrize("name", ["last", CLAIM[:8], "0", CLAIM])
def test_others_see_neither_its_id_nor_a_path(asker: Asker, name: str) -> None:
    found = private().find(name, asker)
    assert isinstance(found, dict)
    for said in (str(private().entries(asker=asker)), str(found), "".join(explain(found))):
        assert CLAIM[:8] in said
        assert CLAIM[:9] not in said
        assert "product" not in said
        assert "agent a1: an output could not be stored: …: no space" in said


@pytest.mark.parametrize("asker", [OTHER, NOBODY])
def test_an_id_cannot_be_guessed_a_character_at_a_time(asker: Asker) -> None:
    answers = [private().find(CLAIM[:8] + more, asker) for more in "0123456789abcdef"]
    assert {str(answer).replace(CLAIM[:8] + more, "ID") for answer, more in zip(answers, "0123456789abcdef", strict=True)} == {
        f"no job ID is among the last {HISTORY_JOBS}"
    }
    assert isinstance(private().find(CLAIM[:9], OWN), dict), "the control"


def test_a_job_that_nobody_vouches_for_is_not_everybodys() -> None:
    history = History(0.0)
    history.fold(Record(10.0, CLAIM, "submitted", {**BEGIN, "uid": None}))
    assert history.entries(asker=NOBODY)[0]["job"] == CLAIM[:8]


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("the working directory /home/me/a: b is under no shared root", "the working directory … is under no shared root"),
        ("/home/me/secret is under no shared root", "… is under no shared root"),
        ("an output could not be stored: /a/b: c: no space", "an output could not be stored: …: no space"),
        ("cannot enter /a\n/b", "cannot enter …"),
        ("no agent serves uid 7; start one as that user", "no agent serves uid 7; start one as that user"),
    ],
)
def test_reasons_that_everybody_may_read_have_no_paths(reason: str, shown: str) -> None:
    assert pathless(reason) == shown
    history = History(0.0)
    fold(history, CLAIM, ("here", {"reason": reason}))
    assert dict(history.here_reasons) == {shown: 1}
