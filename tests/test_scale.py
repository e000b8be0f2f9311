"""Agents come and go while jobs flow: from none to many, to none and up again; an agent that crashes leaves nothing running.

PROOF_FULL=1 takes 200 agents instead of 12.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from farm import DWRAP, Farm, eventually

AGENTS = 200 if os.environ.get("PROOF_FULL") else 12
FALLBACK = "fail" if AGENTS == 200 else "local"  # 200 agents that leave one machine at once keep it busy for longer than a job waits
STARTED_AT_ONCE = 4
SECONDS = 10 + AGENTS / 4  # until all of them have come, or gone
WRAPPERS = 6
JOB_SECONDS = 60.0
GONE_SECONDS = 2.0


def environment(farm: Farm, directory: Path, **more: str) -> dict[str, str]:
    """A wrapper that would run its command here when no agent comes for 10 s: if it does, the log says so."""
    return farm.environment(DWRAP_FALLBACK=FALLBACK, DWRAP_PATIENCE="120", XDG_RUNTIME_DIR=str(directory), **more)


def ran_here(directory: Path) -> bool:
    return (directory / "state-home" / "dwrap" / "here.log").exists()


def serving(farm: Farm) -> set[str]:
    return {agent["name"] for agent in farm.status()["agents"] if agent["is_serving"]}


class Load:
    """Jobs one after the other from each of some threads, as long as it lasts."""

    def __init__(self, farm: Farm, directory: Path) -> None:
        self._argv = [DWRAP, "sh", "-c", 'sleep 0.05; echo "$0"; exit 3']
        self._environment = environment(farm, directory)
        self._directory = directory
        self.over = threading.Event()
        self.done = 0
        self.longest_seconds = 0.0
        self.wrong: list[str] = []

    def run(self, name: str) -> None:
        """One job."""
        began = time.monotonic()
        ended = subprocess.run(
            [*self._argv, name],
            env=self._environment,
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=JOB_SECONDS,
        )
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
        self.done += 1
        if (ended.returncode, ended.stdout, ended.stderr) != (3, f"{name}\n".encode(), b""):
            self.wrong.append(f"{ended}")

    def flow(self, thread: int) -> None:
        """Until it is over."""
        count = 0
        while not self.over.is_set():
            self.run(f"{thread}.{count}")
            count += 1


@contextmanager
def flowing(load: Load) -> Iterator[None]:
    with ThreadPoolExecutor(WRAPPERS) as pool:
        threads = [pool.submit(load.flow, number) for number in range(WRAPPERS)]
        try:
            yield
        finally:
            load.over.set()
        for thread in threads:
            thread.result()


def names(wave: int) -> set[str]:
    return {f"agent-{wave}-{number}" for number in range(AGENTS)}


def scale_up(farm: Farm, load: Load, wave: int) -> None:
    """To AGENTS agents of one slot, with directories of their own, as on machines of their own; then some more jobs."""
    with ThreadPoolExecutor(STARTED_AT_ONCE) as pool:
        list(pool.map(lambda name: farm.add_agent(name, 1, "--work", str(farm.directory / name)), names(wave)))
    eventually(lambda: serving(farm) == names(wave), SECONDS)
    begun = load.done
    eventually(lambda: load.done >= begun + 3 * WRAPPERS, SECONDS)


def test_from_none_to_many_to_none_and_up_again(short_dir: Path, tmp_path: Path) -> None:
    with Farm(short_dir, agents=0) as farm:
        load = Load(farm, tmp_path)
        with flowing(load):
            eventually(lambda: farm.status()["queued"] == WRAPPERS, SECONDS)  # with no agent at all they wait
            scale_up(farm, load, 1)
            drained = list(farm.agents.values())
            for agent in drained:
                agent.terminate()
            eventually(lambda: farm.status()["queued"] == WRAPPERS, SECONDS)
            scale_up(farm, load, 2)
            assert [agent.wait(timeout=SECONDS) for agent in drained] == [0] * AGENTS
            eventually(lambda: {agent["name"] for agent in farm.status()["agents"]} == names(2), SECONDS)
    print(f"{AGENTS} agents, {load.done} jobs, the longest took {load.longest_seconds:.1f} s")
    assert load.wrong == []
    assert not ran_here(tmp_path), "nothing ran here"


def test_an_agent_that_drains_finishes_its_job_and_takes_no_other(short_dir: Path, tmp_path: Path) -> None:
    with Farm(short_dir, agents=1, slots=2) as farm:
        argv = [DWRAP, "sh", "-c", "touch up; while [ ! -e end ]; do sleep 0.02; done; exit 7"]
        first = subprocess.Popen(argv, env=environment(farm, tmp_path), cwd=tmp_path)
        eventually((tmp_path / "up").exists)
        farm.agents["agent-1"].terminate()
        eventually(lambda: farm.status()["agents"][0]["is_draining"])
        second = subprocess.Popen([DWRAP, "true"], env=environment(farm, tmp_path), cwd=tmp_path)
        eventually(lambda: farm.status()["queued"] == 1)
        (tmp_path / "end").touch()
        assert first.wait(timeout=JOB_SECONDS) == 7
        assert farm.agents["agent-1"].wait(timeout=5) == 0
        farm.add_agent("agent-2", 1)
        assert second.wait(timeout=JOB_SECONDS) == 0
    assert not ran_here(tmp_path)


# ---- crashes

TREE = """
trap '' TERM HUP
setsid sh -c 'trap "" TERM; sleep 600; true' &
(setsid sh -c 'trap "" TERM HUP; (sleep 600 &) ; sleep 600; true' &)
nohup sleep 600 &
echo up >&2
sleep 600
true
"""


def marked(mark: str) -> list[int]:
    """The processes with this in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("tree", ["pidns", "subreaper"])
@pytest.mark.parametrize("victim", ["agent", "runners", "wrapper"])
def test_nothing_is_left_running(victim: str, tree: str, short_dir: Path, tmp_path: Path) -> None:
    """Of a job whose agent, runner (and what starts runners), or wrapper was killed by SIGKILL; not even what has left its session."""
    mark = f"SCALE_MARK={os.getpid()}-{victim}-{tree}"
    with Farm(short_dir, agents=0) as farm:
        agent = farm.add_agent("agent-1", 1, "--tree", tree)
        argv = [DWRAP, "env", mark, "sh", "-c", TREE]
        job = subprocess.Popen(argv, env=environment(farm, tmp_path), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert job.stderr is not None
        assert job.stderr.readline() == b"up\n"
        eventually(lambda: len(marked(mark)) >= 6)
        runners = [int(pid) for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()]
        for pid in {"agent": [agent.pid], "runners": runners, "wrapper": [job.pid]}[victim]:
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        eventually(lambda: not marked(mark), 10)
        took = time.monotonic() - began
        job.kill()
        job.communicate()
    print(f"{victim}, {tree}: gone after {took:.2f} s")
    assert took <= GONE_SECONDS
