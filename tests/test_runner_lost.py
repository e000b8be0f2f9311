"""The runner: an agent whose lease is over or that has died, what is left of its jobs then, and what a lost attempt made."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runner_bench import ROOT_ONLY, Bench, Job, bench, eventually_no_process, holder_of, processes_with, sh
from test_runner_writes import REFUSE

from dwrap.agent import workplace
from dwrap.agent.accounts import Identity
from dwrap.agent.events import Kind
from dwrap.agent.health import boot_clock
from dwrap.agent.runner import RECORD, Runners
from dwrap.protocol import messages
from dwrap.protocol.messages import Fields

__all__ = ["bench"]  # a fixture: importing it is its use

LEASE = "the agent's lease was over: it had not heard from the distributor"


@pytest.fixture
def place(bench: Bench) -> Bench:
    """A shared tree with a file in it."""
    bench.roots = (str(bench.folder),)
    (bench.cwd / "old").write_text("before")
    return bench


def killed(place: Bench, job: Job) -> None:
    """Its runner ended at another's hand, and what it was about to tidy up lies about. Or, since the tree is killed first and the look
    comes back then, it came to its end just before.
    """
    place.until(lambda: place.runners and (place.runners.reap() or job.runner.pid not in place.runners.pids))
    ended = [line for line in place.deaths.said if "ended" in line]
    assert ended in ([], [f"runner {job.runner.pid} ended with wait status 9"])
    assert job.end is None or job.end.text("error") == "lost"
    place.deaths.said.clear()
    for left in place.litter():
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def record(bench: Bench, job: Job) -> tuple[int, Fields, bytes]:
    """What the record of a job says, once its runner has ended: the user, RESULT's fields, entries."""
    assert bench.runners
    runners = bench.runners
    bench.until(lambda: runners.reap() or job.runner.pid not in runners.pids)
    data = (bench.work / "runs" / f"{job.runner.key[0]}.1").read_bytes()
    uid, size, entries = RECORD.unpack_from(data)
    assert len(data) == RECORD.size + size + entries
    return uid, messages.decode_fields(data[RECORD.size : RECORD.size + size]), data[RECORD.size + size :]


# ---- an end that is for everything here

WITH_ALL = "everything there was told to end (SIGTERM)"


def terminated(place: Bench, script: str, whom: str = "command, runner") -> Fields:
    """The end of a job of which these are sent SIGTERM, in that order, once it is ready."""
    mark = f"97{os.getpid()}"
    job = place.start(sh(script.replace("MARK", mark)))
    job.until(lambda: job.out[1])
    for one in whom.split(", "):
        for pid in processes_with(mark) if one == "command" else [job.runner.pid]:
            os.kill(pid, signal.SIGTERM)
    return job.finish()


COPES = "trap 'echo help; exit {}' TERM; echo ready; sleep MARK & wait"


@pytest.mark.parametrize(
    ("rest", "whom"),
    [
        ("echo ready; exec sleep MARK", "command, runner"),
        (COPES.format(143), "command, runner"),
    ],
)
def test_a_command_that_is_ended_with_everything_around_it_is_lost(place: Bench, rest: str, whom: str) -> None:
    end = terminated(place, f"echo x >new; {rest}", whom)
    assert (end.text("error"), end.text("reason"), end.number("repeat")) == ("lost", WITH_ALL, 1)
    assert end.all("made") == [os.fsencode(place.cwd / "new")]


def test_and_is_not_run_again_where_it_may_not_be(place: Bench) -> None:
    end = terminated(place, "echo x >>old; echo ready; exec sleep MARK")
    assert (end.text("error"), end.text("reason"), end.flag("repeat")) == ("lost", WITH_ALL, False)


def test_one_that_ends_well_all_the_same_has_done_so(place: Bench) -> None:
    assert terminated(place, COPES.format(0), "runner, command").number("status") == 0


@pytest.mark.parametrize("whom", ["runner, command", "runner"])
def test_another_status_is_the_commands_own_word(place: Bench, whom: str) -> None:
    """It may have failed by itself, seconds after somebody told the runner to end, another job of the same user for instance."""
    rest = COPES.format(7) if "command" in whom else "echo ready; sleep 0.3; exit 7"
    assert terminated(place, f"echo x >new; {rest}", whom).number("status") == 7 << 8


def test_a_signal_for_the_command_alone_is_its_own(place: Bench) -> None:
    assert terminated(place, "echo ready; exec sleep MARK", "command").number("status") == signal.SIGTERM


# ---- the lease


def test_when_the_lease_is_over_a_job_that_may_be_run_again_ends(place: Bench) -> None:
    name = f"93{os.getpid()}"
    job = place.start(sh(f"echo x >new; sleep {name}"), lease=0.3)
    start = time.monotonic()
    end = job.finish()
    assert time.monotonic() - start < 1.5
    assert (end.text("error"), end.text("reason"), end.number("repeat")) == ("lost", LEASE, 1)
    assert end.all("made") == [os.fsencode(place.cwd / "new")]
    eventually_no_process(name, 1)


def test_a_lease_that_is_renewed_goes_on(place: Bench) -> None:
    job = place.start(sh("sleep 0.8; exit 7"), lease=0.3)
    assert place.runners
    place.runners.lease(boot_clock() + 100)
    assert os.WEXITSTATUS(job.status()) == 7


def test_a_job_that_may_not_be_run_again_outlives_the_lease(place: Bench) -> None:
    job = place.start(sh("echo x >old; echo up; sleep 1; exit 3"), lease=0.6)
    end = job.finish()
    assert job.out[1] == b"up\n"
    assert os.WEXITSTATUS(end.number("status")) == 3
    assert end.get("repeat") is None


def test_but_not_for_ever(place: Bench) -> None:
    job = place.start(sh("echo x >old; echo up; sleep 600"))
    job.until(lambda: job.out[1] == b"up\n")
    assert place.runners
    place.runners.lease(boot_clock() - 299)
    end = job.finish()
    assert (end.text("error"), end.text("reason"), end.get("repeat")) == ("lost", LEASE, None)


def test_nothing_is_let_go_on_after_the_lease(place: Bench) -> None:
    job = place.start(sh("echo x >new; echo y >newer"), notes=False, lease=0.4)
    job.until(lambda: job.facts)
    with pytest.raises(TimeoutError):
        place.until(lambda: False, 0.5)
    job.tell(Kind.NOTED, 0, 1)
    end = job.finish()
    assert (end.text("error"), end.get("made"), (place.cwd / "new").exists()) == ("lost", None, False)


def waits_for_an_answer(pid: int) -> bool:
    """Whether the process is in a call that the runner has heard, or will."""
    return Path(f"/proc/{pid}/wchan").read_text().startswith("seccomp_do_user_notif")


def test_a_runner_that_was_frozen_answers_no_call_after_the_lease(place: Bench) -> None:
    """As when its machine was suspended. Its holder sleeps until it is to kill: the tree does not end before the call could be made."""
    job = place.start(sh(": >new; echo up; while :; do echo x >>new; done"), lease=100)
    job.until(lambda: job.out[1] == b"up\n")
    holder = holder_of(job)
    assert place.runners
    for pid in (job.runner.pid, holder):
        os.kill(pid, signal.SIGSTOP)
    place.until(lambda: any(map(waits_for_an_answer, processes_with("echo up; while"))))
    place.runners.lease(boot_clock() - 1)
    size = (place.cwd / "new").stat().st_size
    os.kill(job.runner.pid, signal.SIGCONT)
    with pytest.raises(TimeoutError):
        place.until(lambda: (place.cwd / "new").stat().st_size > size, 0.3)
    end = job.finish()
    assert (end.text("error"), end.text("reason")) == ("lost", LEASE)


# ---- the agent's own end of it


@pytest.mark.parametrize("end", ["agent", "runner"])
def test_a_job_that_stops_its_holder_ends_all_the_same(place: Bench, end: str) -> None:
    """It can where the holder is of its user and in its sight."""
    name = f"98{os.getpid()}"
    job = place.start(sh(f"kill -STOP $PPID; echo up; sleep {name}"))
    job.until(lambda: job.out[1] == b"up\n")
    if end == "agent":
        job.tell(Kind.KILL, 0, 1)
        assert job.finish(3).text("reason") == "the agent ended it"
    else:
        os.kill(job.runner.pid, signal.SIGKILL)
        job.until(lambda: job.gone)
        killed(place, job)
    eventually_no_process(name, 3)


def test_an_agent_that_ends_a_job_says_so(place: Bench) -> None:
    job = place.start(sh("echo x >new; echo up; sleep 600"))
    job.until(lambda: job.out[1] == b"up\n")
    job.tell(Kind.KILL, 0, 1)
    end = job.finish()
    assert (end.text("error"), end.text("reason"), end.number("repeat")) == ("lost", "the agent ended it", 1)


def test_an_agent_that_has_died_leaves_no_job_that_may_be_run_again(place: Bench) -> None:
    name = f"92{os.getpid()}"
    job = place.start(sh(f"echo x >new; setsid sleep {name} & echo up; sleep {name}"), views=True)
    job.until(lambda: job.facts and job.out[1] == b"up\n")
    job.runner.close()
    eventually_no_process(name, 1)
    _, fields, entries = record(place, job)
    assert (fields.text("error"), fields.number("repeat")) == ("lost", 1)
    assert fields.all("made") == [os.fsencode(place.cwd / "new")]
    assert b"/new\0" in entries


def test_a_compiler_dies_with_its_agent(place: Bench) -> None:
    source = place.cwd / f"slow{os.getpid()}.c"
    bomb = "".join(f"#define A{i} A{i - 1} A{i - 1} A{i - 1} A{i - 1}\n" for i in range(1, 15))
    source.write_text(f"#define A0 x+\n{bomb}int f(int x) {{ return A14 0; }}\n")
    job = place.start(("gcc", "-c", source.name))
    place.until(lambda: len(processes_with(source.name)) > 1)  # the driver, and the compiler proper
    job.runner.close()
    eventually_no_process(source.name, 1)
    assert record(place, job)[1].text("error") == "lost"


@pytest.mark.parametrize("views", [False, True])
def test_a_job_that_may_not_be_run_again_is_let_finish(place: Bench, views: bool) -> None:
    script = "printf half >old; echo up; cat >copy; printf whole >old; head -c 300000 /dev/zero; exit 5"
    job = place.start(sh(script), stdin="stream", views=views)
    job.until(lambda: job.credit and job.out[1] == b"up\n")
    job.feed(b"abc", eof=False)
    job.runner.close()
    uid, fields, entries = record(place, job)
    assert (place.cwd / "copy").read_text() == "abc"
    assert (place.cwd / "old").read_text() == "whole"
    assert os.WEXITSTATUS(fields.number("status")) == 5
    assert (uid, fields.get("repeat"), fields.number("stdout_bytes")) == (0, None, 300_003)
    assert (b"/copy\0" in entries) == views


def test_a_record_is_there_from_the_start_to_the_end(place: Bench) -> None:
    job = place.start(("cat",), stdin="stream", identity=Identity(os.geteuid(), 0, (), become=False))
    job.until(lambda: job.credit)
    path = place.work / "runs" / "job0.1"
    assert RECORD.unpack(path.read_bytes()) == (os.geteuid(), 0, 0)
    assert path.stat().st_mode & 0o777 == 0o600
    job.feed(b"x")
    end = job.finish()
    _, fields, _ = record(place, job)
    assert fields.number("status") == end.number("status") == 0
    assert place.runners
    place.runners.forget(("job0", 1))
    assert not path.exists()


# ---- undo


def test_what_a_lost_attempt_made_is_removed_first(place: Bench) -> None:
    for folder in ("made/deep", "kept"):
        (place.cwd / folder).mkdir(parents=True)
    for name in ("made/deep/a", "made/b", "kept/others", "file"):
        (place.cwd / name).write_text("x")
    (place.cwd / "link").symlink_to("old")
    names = ("made", "made/deep", "made/deep/a", "kept", "kept/mine", "made/b", "file", "file/below", "link")
    job = place.run(*sh("ls -R"), undo=[place.cwd / name for name in names], views=True)
    assert job.out[1] == b".:\nkept\nold\n\n./kept:\nothers\n"
    assert b"G 0 0 0 0 " + os.fsencode(place.cwd / "file") + b"\0" in job.manifest
    job = place.run(*sh("echo x >file"), undo=[place.cwd / "file"])
    assert job.finish().number("repeat") == 1


@ROOT_ONLY
def test_it_is_removed_as_the_user(place: Bench) -> None:
    nobody = Identity(65534, 65534, (), become=True)
    job = place.start(sh("echo x >new"), identity=nobody, undo=[place.cwd / "old"])
    job.until(lambda: job.gone)
    assert job.rejected == f"what a lost attempt made could not be removed: {place.cwd}/old: Permission denied"
    assert (job.fault, job.end, (place.cwd / "old").read_text()) == (0, None, "before")
    assert not place.litter(), "its record, too, is gone"


def test_nothing_outside_of_the_roots_is_removed(place: Bench) -> None:
    place.roots = (str(place.cwd),)
    victim = place.folder / "victim"
    victim.write_text("x")
    job = place.start(("true",), undo=[victim])
    job.until(lambda: job.gone)
    assert job.rejected.startswith("what a lost attempt made could not be removed")
    assert victim.exists()


def deep(place: Bench) -> Path:
    """A directory that takes long to come to."""
    folder = place.cwd.joinpath(*["d"] * 150)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def stop_in_the_middle(place: Bench, names: list[Path], how: str) -> Job:
    """A job that has removed some of them when its lease, or its agent, is over."""
    for name in names:
        name.touch()
    job = place.start(("true",), lease=100, undo=names)
    runners = place.runners
    assert runners
    while names[-1].exists():
        assert not job.gone
    if how == "lease":
        runners.lease(boot_clock() - 1)
        job.until(lambda: job.gone)
    else:
        job.runner.close()
        place.until(lambda: runners.reap() or job.runner.pid not in runners.pids)
    return job


@pytest.mark.parametrize("how", ["lease", "agent"])
def test_nothing_is_removed_any_more_once_its_time_is_over(place: Bench, how: str) -> None:
    """In the middle, too: what is there by then may be another attempt's."""
    names = [deep(place) / str(number) for number in range(500)]
    for _ in range(20):
        job = stop_in_the_middle(place, names, how)
        if names[0].exists():
            break
    assert names[0].exists()
    assert how == "agent" or job.rejected == "the agent's lease was over before it could begin"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dir/../old", "that is no plain path"),
        ("./old", "that is no plain path"),
        ("dir//old", "that is no plain path"),
        ("old/", "that is no plain path"),
        ("link/in", "a link has taken the place of a directory"),
        ("dir/up/old", "a link has taken the place of a directory"),
    ],
)
def test_only_what_lies_where_it_was_made_is_removed(place: Bench, name: str, why: str) -> None:
    (place.cwd / "dir").mkdir()
    (place.cwd / "dir" / "in").write_text("before")
    (place.cwd / "dir" / "up").symlink_to(place.cwd)
    (place.cwd / "link").symlink_to("dir")
    job = place.start(("true",), undo=[f"{place.cwd}/{name}"])
    job.until(lambda: job.gone)
    assert job.rejected == f"what a lost attempt made could not be removed: {place.cwd}/{name}: {why}"
    assert (place.cwd / "old").exists()
    assert (place.cwd / "dir" / "in").exists()


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_a_link_is_not_followed_where_the_kernel_does_not_tell_who_can_have_put_it_there(place: Bench, error: int) -> None:
    """faccessat2() is refused by old kernels, and by filters that do not know it."""
    wrapped = place.folder / "refused"
    refuse = "import ctypes, os, struct, sys\n" + REFUSE.format(number=439).replace("0x50001", hex(0x50000 + error))
    wrapped.write_text(f"#!{sys.executable}\n{refuse}\nos.execv({str(place.program)!r}, sys.argv)\n")
    wrapped.chmod(0o755)
    place.program = wrapped
    (place.cwd / "link").symlink_to(".")
    job = place.start(("true",), undo=[place.cwd / "link" / "old"])
    job.until(lambda: job.gone)
    assert job.rejected.endswith("/link/old: a link has taken the place of a directory")
    assert (place.cwd / "old").exists()


def test_links_on_the_way_to_a_root_are_followed(place: Bench) -> None:
    (place.folder / "link").symlink_to(place.cwd)
    place.roots = (f"{place.folder}/link/",)
    place.run("true", undo=[f"{place.folder}/link/old"])
    assert not (place.cwd / "old").exists()


@ROOT_ONLY
def test_what_belongs_to_others_is_not_removed(place: Bench) -> None:
    os.chown(place.cwd / "old", 65534, 65534)
    job = place.start(("true",), undo=[place.cwd / "old"])
    job.until(lambda: job.gone)
    assert job.rejected.endswith("/old: it belongs to another user")
    assert [path.name for path in place.cwd.iterdir()] == ["old"]


# ---- memory


@ROOT_ONLY
def test_a_command_that_was_killed_for_want_of_memory(place: Bench, narrow: Path) -> None:
    eat = f"import os; open('{narrow}/cgroup.procs', 'w').write('0'); b'x' * 10**8"
    end = place.run("python3", "-c", eat).finish()
    assert os.WTERMSIG(end.number("status")) == signal.SIGKILL
    assert end.number("memory") == 1
    assert place.run("/bin/sh", "-c", 'python3 -c "$0" || :', eat).finish().get("memory") is None, "it coped"
    place.until(lambda: place.run("false").finish().get("memory") is None)


def starving(place: Bench, narrow: Path, script: str, **how: object) -> Job:
    """A job whose own child `eat` is killed for want of memory, and which may be tried where there is more."""
    eat = f"import os; open('{narrow}/cgroup.procs', 'w').write('0'); b'x' * 10**8"
    place.until(lambda: place.run("false", memory_retry=True).finish().get("error") is None)  # no kill that was counted too late
    return place.run("/bin/sh", "-c", f"eat() {{ python3 -c \"$0\"; }}; {script}", eat, memory_retry=True, **how)


@ROOT_ONLY
@pytest.mark.parametrize("views", [False, True])
def test_it_is_no_result_where_it_may_be_run_again_and_what_it_says_of_it_is_not_told(place: Bench, narrow: Path, views: bool) -> None:
    job = starving(place, narrow, "echo before; sleep 0.4; echo x >new; eat || { echo killed; echo so >&2; exit 1; }", views=views)
    end = job.finish()
    assert (end.text("error"), end.number("memory"), end.number("repeat")) == ("lost", 1, 1)
    assert job.out == {1: b"before\n", 2: b""}
    assert (end.number("stdout_bytes"), end.number("stderr_bytes")) == (7, 0)


@ROOT_ONLY
def test_who_copes_with_it_is_heard(place: Bench, narrow: Path) -> None:
    job = starving(place, narrow, "echo before; eat; echo after; echo so >&2")
    assert job.status() == 0
    assert job.out[1] == b"before\nafter\n"
    assert job.out[2].endswith(b"so\n")


@ROOT_ONLY
@pytest.mark.parametrize("script", ["eat; head -c 100000 /dev/zero; exit 4", "echo x >old; eat; exit 4"])
def test_who_has_been_heard_or_is_beyond_has_a_status(place: Bench, narrow: Path, script: str) -> None:
    end = starving(place, narrow, script).finish()
    assert os.WEXITSTATUS(end.number("status")) == 4
    assert end.number("memory") == 1


@pytest.fixture
def counted(place: Bench) -> Path:
    """The control group of the agent has counters of its own: a file that is in place of the kernel's, for the runner and its jobs."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("only root can mount here")
    line = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::/")), None)
    if line is None:
        pytest.skip("this kernel has no unified control groups")
    counters = Path("/sys/fs/cgroup") / line.removeprefix("0::/") / "memory.events"
    wrapped = place.folder / "counted"
    fake = f"mount -t tmpfs none /sys/fs/cgroup && mkdir -p {counters.parent} && echo 'oom 0\noom_kill 7' >{counters}"
    wrapped.write_text(f"#!/bin/sh\nexec unshare -m sh -c \"{fake} && exec {place.program}\"\n")
    wrapped.chmod(0o755)
    place.program = wrapped
    return counters


def test_kills_in_its_own_control_group_count(place: Bench, counted: Path) -> None:
    end = place.run(*sh(f"echo x >new; echo 'oom_kill 8' >{counted}; exit 1"), memory_retry=True).finish()
    assert (end.text("error"), end.number("memory")) == ("lost", 1)
    assert end.text("reason") == "the kernel killed for want of memory while it ran"
    assert place.run("false", memory_retry=True).status() >> 8 == 1, "that was before"
    assert place.run(*sh(f"echo 'oom_kill 9' >{counted}; echo x >old; exit 1"), memory_retry=True).status() >> 8 == 1


def test_kills_elsewhere_do_not_count_where_the_own_group_does(place: Bench, counted: Path, narrow: Path) -> None:
    assert counted
    eat = f"echo 0 >{narrow}/cgroup.procs && exec python3 -c \"b'x' * 10**8\""
    kills = int(Path("/proc/vmstat").read_text().split("oom_kill ")[1].split()[0])
    job = place.start(sh("echo up; read line; exit 1"), stdin="stream", memory_retry=True)
    job.until(lambda: job.out[1] == b"up\n")
    assert subprocess.run(["/bin/sh", "-c", eat], check=False).returncode == -signal.SIGKILL
    assert int(Path("/proc/vmstat").read_text().split("oom_kill ")[1].split()[0]) > kills
    job.feed(b"go\n")
    end = job.finish()
    assert (end.number("status") >> 8, end.get("memory")) == (1, None)


# ---- records of attempts


def test_what_an_agent_died_over_before_there_was_a_runner_was_never_started(place: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runners, "_fork", die)
    with pytest.raises(KeyboardInterrupt):
        place.start(("true",))
    assert [path for path in (place.work / "runs").iterdir() if path.stat().st_size] == []


def test_an_agent_that_cannot_record_an_attempt_does_not_start_it(place: Bench) -> None:
    place.start(("true",)).finish()
    (place.work / "runs").chmod(0o700)
    (place.work / "runs" / "job1.1").mkdir()
    job = place.start(sh("echo x >new"))
    job.until(lambda: job.rejected)
    assert job.rejected == "the agent could not start the command: recording it: File exists"
    assert job.fault == 1
    assert not (place.cwd / "new").exists()
    (place.work / "runs" / "job1.1").rmdir()


def test_the_place_is_in_use_as_long_as_a_job_lives(place: Bench) -> None:
    job = place.start(sh("echo x >old; echo up; read line; sleep 0.2"), stdin="stream")
    job.until(lambda: job.out[1] == b"up\n")
    assert place.runners
    place.runners.close()
    assert not workplace.is_free(place.work)
    job.tell(Kind.INPUT, 0, 0)
    job.runner.close()
    place.until(lambda: workplace.is_free(place.work))
    os.waitpid(job.runner.pid, 0)
    place.runners, place.jobs = None, []
    (place.work / "runs" / "job0.1").unlink()


def test_the_place_is_in_use_until_the_last_process_of_a_killed_job_is_gone(place: Bench) -> None:
    """Also while the kernel is still taking it down, which needs a while for much memory: what it has open may be written to until then."""
    name = f"94{os.getpid()}"
    eat = f"import time; x = b'x' * 200_000_000; print('up', flush=True); time.sleep({name})"
    job = place.start(("/bin/sh", "-c", 'python3 -c "$0" & setsid python3 -c "$0" & wait', eat))
    job.until(lambda: job.out[1] == b"up\nup\n")
    tree = [Path(f"/proc/{pid}") for pid in processes_with(name)]
    assert len(tree) == 3
    assert place.runners
    place.runners.close()
    os.kill(job.runner.pid, signal.SIGKILL)
    while not workplace.is_free(place.work):
        pass
    assert not [process for process in tree if process.exists()]
    os.waitpid(job.runner.pid, 0)
    place.runners, place.jobs = None, []
    for left in place.litter():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
