"""A runner that hangs in a look at what its job names: its guard ends it with its lease, its agent when it does not answer KILL."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from runner_bench import ROOT_ONLY, Bench, Job, bench, compiled, eventually_no_process, holder_of, sh
from test_runner_lost import killed, place

from dwrap.agent.events import Kind
from dwrap.agent.health import boot_clock
from dwrap.agent.runner import Runners

__all__ = ["bench", "place"]  # fixtures: importing them is their use


def hangs(job: Job) -> bool:
    for said in job.runner.receive():
        job._take(said)
    return Path(f"/proc/{job.runner.pid}/wchan").read_text() == "handle_userfault"


def hang(place: Bench, script: str) -> tuple[Job, Runners]:
    """A job whose runner hangs in a look at its memory: it is no use to end that with a packet, a timer or a signal that it handles.
    Its lease has no end yet, so that the guard looks each second.
    """
    job = place.start(sh(f"{script}\nexec {compiled('unserved')}"), views=True)
    assert place.runners
    place.until(lambda: hangs(job))
    return job, place.runners


@ROOT_ONLY
def test_a_runner_that_hangs_ends_with_the_lease_and_its_tree_with_it(place: Bench) -> None:
    name = f"96{os.getpid()}"
    job, runners = hang(place, f"echo x >new; sleep {name} & setsid sleep {name} &")
    runners.lease(boot_clock())
    start = time.monotonic()
    job.until(lambda: job.gone, 9)
    assert time.monotonic() - start > 4, "one that does not hang needs a moment"
    eventually_no_process(name, 1)
    killed(place, job)


@ROOT_ONLY
def test_also_when_its_agent_has_died(place: Bench) -> None:
    name = f"97{os.getpid()}"
    job, runners = hang(place, f"sleep {name} &")
    job.runner.close()
    runners.lease(boot_clock())
    eventually_no_process(name, 9)
    killed(place, job)


@ROOT_ONLY
@pytest.mark.parametrize("bench", ["subreaper"], indirect=True)
def test_a_runner_that_hangs_while_its_lease_is_renewed_is_left_alone(place: Bench) -> None:
    job, runners = hang(place, "true")
    runners.lease(boot_clock())
    with pytest.raises(TimeoutError):
        place.until(lambda: not hangs(job), 2)
    runners.lease(boot_clock() + 100)
    with pytest.raises(TimeoutError):
        place.until(lambda: not hangs(job), 7)
    os.kill(job.runner.pid, signal.SIGKILL)
    job.until(lambda: job.gone)
    killed(place, job)


@ROOT_ONLY
@pytest.mark.parametrize("bench", ["subreaper"], indirect=True)
def test_a_runner_that_hangs_with_a_job_that_may_not_be_run_again_does_so_longer(place: Bench) -> None:
    job, runners = hang(place, "echo x >old")
    runners.lease(boot_clock() - 295)
    start = time.monotonic()
    job.until(lambda: job.gone, 14)
    assert time.monotonic() - start > 9.5
    killed(place, job)


# ---- the agent's own end of it


@ROOT_ONLY
def test_a_runner_that_hangs_is_killed_by_its_agent(place: Bench) -> None:
    name = f"99{os.getpid()}"
    job, runners = hang(place, f"sleep {name} &")
    job.tell(Kind.KILL, 0, 1)
    start = time.monotonic()
    place.until(lambda: runners.kill_hanging([job.runner]) or job.runner.kills)
    assert time.monotonic() - start > 4
    job.until(lambda: job.gone)
    assert job.end is None
    eventually_no_process(name, 1)
    assert place.deaths.said[0] == f"runner {job.runner.pid} does not answer and is killed"
    killed(place, job)


def test_what_a_runner_holds_that_does_not_even_die_is_killed_without_it(place: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that waits for a server; this one is merely spared."""
    job = place.start(sh("echo up; sleep 600"))
    job.until(lambda: job.out[1] == b"up\n")
    runners, holder, victims = place.runners, holder_of(job), []
    assert runners
    os.kill(job.runner.pid, signal.SIGSTOP)
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    job.tell(Kind.KILL, 0, 1)
    monkeypatch.setattr(time, "monotonic", lambda: 4.9)
    monkeypatch.setattr(os, "kill", lambda pid, _: victims.append(pid))
    runners.kill_hanging([job.runner])
    assert not victims
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    for _ in range(4):
        assert holder not in victims
        runners.kill_hanging([job.runner])
    monkeypatch.undo()
    assert victims[:4] == [job.runner.pid] * 4
    assert holder in victims[4:]
    place.deaths.said.clear()
    os.kill(job.runner.pid, signal.SIGCONT)
    job.finish()


def test_a_runner_that_ends_its_job_is_not_killed(place: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = place.start(sh("echo up; sleep 600"))
    job.until(lambda: job.out[1] == b"up\n")
    job.tell(Kind.KILL, 0, 1)
    assert job.finish().text("reason") == "the agent ended it"
    monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    assert not job.runner.hangs
