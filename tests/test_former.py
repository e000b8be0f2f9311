"""former.py and workplace.py: what an agent finds of those before it, tells, hands down and leaves alone."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runner_bench import ROOT

from dwrap.agent import former, workplace
from dwrap.agent.events import News
from dwrap.agent.former import FOREIGN_SECONDS, Former
from dwrap.agent.registration import MAX_FORMER, Ancestry
from dwrap.agent.runner import RECORD
from dwrap.protocol import messages


def folder_of(parent: Path, name: str, agent: str = "a", seconds_ago: float = 0) -> Path:
    folder = parent / f"{workplace.PREFIX}{name}"
    (folder / workplace.RUNS).mkdir(parents=True)
    (folder / workplace.NAME).write_text(workplace.owner(agent))
    (folder / "12-job").mkdir()
    folder.chmod(workplace.IN_USE)
    os.utime(folder, (time.time() - seconds_ago,) * 2)
    return folder


def test_what_a_machine_left_when_it_went_down_vouches_for_nothing(tmp_path: Path) -> None:
    with workplace.claim(tmp_path, "a") as own:
        folder = folder_of(tmp_path, "1-x")
        (folder / workplace.NAME).write_text("a\nanother boot\n")
        (folder / "runs" / "j.1").write_bytes(RECORD.pack(7, 9, 0) + b"status=0\0")
        assert Former(tmp_path, "a", own).look() == News((), (), 0)
        assert not folder.exists()


def test_who_is_gone_is_handed_down(tmp_path: Path) -> None:
    folder_of(tmp_path, "1-x")
    second = folder_of(tmp_path, "2-y")
    (second / "former").write_text("dwrap-agent-0-w")
    with workplace.claim(tmp_path, "a") as own:
        names = ("dwrap-agent-0-w", "dwrap-agent-1-x", "dwrap-agent-2-y")
        assert Former(tmp_path, "a", own).look().former == names
        assert (own / "former").read_text().split("\n") == list(names)


def test_who_has_just_gone_is_told_before_those_that_were_handed_down(tmp_path: Path) -> None:
    """What is told is bounded, and several directories hand down the same names."""
    handed = [f"dwrap-agent-{number}-old" for number in range(MAX_FORMER)]
    gone = ["dwrap-agent-1-x", "dwrap-agent-2-y", "dwrap-agent-3-z"]
    for name in gone:
        (folder_of(tmp_path, name.removeprefix(workplace.PREFIX)) / "former").write_text("\n".join([*handed, *gone[: gone.index(name)]]))
    with workplace.claim(tmp_path, "a") as own:
        news = Former(tmp_path, "a", own).look()
        assert news.former == (*handed, *gone)
        assert (own / "former").read_text().split("\n") == [*handed[len(gone) :], *gone]
    ancestry = Ancestry()
    ancestry.learn(news)
    ancestry.learn(News(("dwrap-agent-4-w", *gone), (), 0))
    assert list(ancestry.former) == [*handed, *gone, "dwrap-agent-4-w"]


def test_who_is_gone_is_handed_down_before_its_directory_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, "1-x")
    with workplace.claim(tmp_path, "a") as own:
        monkeypatch.setattr(workplace, "remove", lambda folder: seen.append((own / "former").exists()))
        seen: list[bool] = []
        Former(tmp_path, "a", own).look()
        assert seen
        assert all(seen)


def test_what_could_not_be_looked_at_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Path) -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    folder_of(tmp_path, "1-x")
    with workplace.claim(tmp_path, "a") as own:
        looks = Former(tmp_path, "a", own)
        descriptors = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(workplace, "is_free", fails)
            with pytest.raises(OSError, match="Too many open files"):
                looks.look()
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert looks.look().former == ("dwrap-agent-1-x",)


@pytest.mark.parametrize("broken", ["_records", "_lines"])
def test_what_could_not_be_told_is_told_whole_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def fails(_: Path) -> list[Any]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    folder = folder_of(tmp_path, "1-x")
    (folder / "runs" / "j.1").write_bytes(RECORD.pack(7, 9, 0) + b"status=0\0")
    with workplace.claim(tmp_path, "a") as own:
        looks = Former(tmp_path, "a", own)
        descriptors = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(former, broken, fails)
            with pytest.raises(OSError, match="Too many open files"):
                looks.look()
        assert len(os.listdir("/proc/self/fd")) == descriptors
        news = looks.look()
        assert (news.former, len(news.results)) == (("dwrap-agent-1-x",), 1)


def test_an_agent_that_leaves_results_behind_leaves_its_directory(tmp_path: Path) -> None:
    with workplace.claim(tmp_path, "a") as own:
        (own / "runs").mkdir()
        (own / "runs" / "j.1").write_bytes(RECORD.pack(7, 9, 0) + b"status=0\0")
    with workplace.claim(tmp_path, "a") as own:
        former = Former(tmp_path, "a", own)
        [(key, uid, fields, _)] = former.look().results
        assert (key, uid, fields) == (("j", 1), 7, b"status=0\0")
        former.forget(key)
    assert list(tmp_path.iterdir()) == []


def test_former_incarnations_and_their_results(tmp_path: Path) -> None:
    with workplace.claim(tmp_path, "a") as own:
        plain, full = folder_of(tmp_path, "1-x"), folder_of(tmp_path, "2-y")
        (full / "runs" / "j.1").write_bytes(RECORD.pack(7, 9, 3) + b"status=0\0D x")
        (full / "runs" / "j.k.2").write_bytes(RECORD.pack(8, 0, 0))
        (full / "runs" / "never.3").touch()
        news = Former(tmp_path, "a", own).look()
        assert news.former == ("dwrap-agent-1-x", "dwrap-agent-2-y")
        unknown = b"error=lost\0reason=the agent that ran it has died, and so has its runner\0"
        assert news.results == ((("j", 1), 7, b"status=0\0", b"D x"), (("j.k", 2), 8, unknown, b""))
        assert news.leftover == 0
        assert not plain.exists()
        assert sorted(path.name for path in full.iterdir()) == ["name", "runs"]


def test_a_result_outlives_two_crashes_and_goes_when_it_is_forgotten(tmp_path: Path) -> None:
    full = folder_of(tmp_path, "2-y")
    (full / "runs" / "j.1").write_bytes(RECORD.pack(7, 9, 0) + b"status=0\0")
    with workplace.claim(tmp_path, "a") as own:
        former = Former(None, "a", own)
        assert len(former.look().results) == 1
        assert former.look() == type(former.look())((), (), 0), "told once"
        assert Former(None, "a", own).look().results == (), "it is taken"
        for fd in former._taken.values():  # the crash
            os.close(fd)
        former = Former(None, "a", own)
        assert len(former.look().results) == 1
        former.forget(("j", 2))
        former.forget(("j", 1))
        assert not full.exists()
        former.forget(("j", 1))


def test_whose_directories_are_left_alone(tmp_path: Path) -> None:
    with workplace.claim(tmp_path, "other") as living, workplace.claim(tmp_path, "a") as own:
        young, old = folder_of(tmp_path, "3-z", "other"), folder_of(tmp_path, "4-z", "other", FOREIGN_SECONDS + 9)
        starting = folder_of(tmp_path, "5-z")
        starting.chmod(0o700)
        news = Former(tmp_path, "a", own).look()
        assert (news.former, news.results, news.leftover) == ((), (), 0)
        assert [path.exists() for path in (living, own, young, old, starting)] == [True, True, True, False, True]


def test_a_work_directory_is_removed_at_the_end(tmp_path: Path) -> None:
    with workplace.claim(tmp_path, "a") as folder:
        assert workplace.incarnation(folder) == folder.name
    assert not list(tmp_path.iterdir())


CRASH = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from runner_bench import Bench, sh
from dwrap.agent import former, workplace
parent = Path(sys.argv[2])
with workplace.claim(parent / "works", "a") as folder:
    (parent / "bench").mkdir()
    bench = Bench(parent / "bench", "subreaper")
    bench.work, bench.roots = folder, (str(parent),)
    (bench.cwd / "old").touch()
    job = bench.start(sh("echo x >old; echo up; read line; exit 6"), stdin="stream")
    job.until(lambda: job.out[1] == b"up\\n")
    killed = bench.start(sh("echo up; sleep 600"))
    killed.until(lambda: killed.out[1] == b"up\\n")
    os.kill(job.runner.pid, 19)
    print(job.runner.pid, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_what_an_agent_left_when_it_died(tmp_path: Path) -> None:
    """One job goes on (its runner is stopped, so that it lives for sure), the other is killed at once."""
    works = tmp_path / "works"
    works.mkdir()
    said = tmp_path / "said"
    with said.open("w") as out:  # not a pipe: what lives on would keep it open
        done = subprocess.run([sys.executable, "-c", CRASH, str(ROOT / "tests"), str(tmp_path)], stdout=out, stderr=out, check=False)
    assert done.returncode == -9, said.read_text()
    runner = int(said.read_text())
    with workplace.claim(works, "a") as own:
        former = Former(works, "a", own)
        assert former.look().leftover >= 1
        os.kill(runner, 9)
        deadline = time.monotonic() + 10
        while not (news := former.look()).former:
            assert time.monotonic() < deadline
            assert news.leftover >= 1
        ends = {key: messages.decode_fields(fields) for key, _, fields, _ in news.results}
        assert ends["job0", 1].text("error") == ends["job1", 1].text("error") == "lost"
        assert (ends["job0", 1].get("repeat"), ends["job1", 1].get("repeat")) == (None, b"1")
        for key in ends:
            former.forget(key)
        assert list(works.iterdir()) == [own]
