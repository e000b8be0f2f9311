"""Wires cut between desktop, distributor and agents, and each of them frozen: every job ends as its own, its output exactly once.

The wires are real ones between network namespaces (namespaces.py), so these tests need root. All of what is cut is cut side by side.
How soon a death is noticed is measured, printed as `noticed: WHAT SECONDS`, and bounded. PROOF_FULL=1 freezes everyone for 30 s, not one.
"""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import namespaces
import pytest
from farm import DWRAP, eventually
from namespaces import DESK, Cut, Spread
from test_chaos import END_SECONDS, Ended, script, wrong

LEASE_SECONDS = 10.0
SILENCE_SECONDS = LEASE_SECONDS + 3.0
TOLERANCE_SECONDS = 1.0
TREE_SECONDS = 2.0
BACK_SECONDS = 8.0
AT_ONCE = 3
LINES = 50
FULL = bool(os.environ.get("PROOF_FULL"))
UNTIL_KILLED = "sleep 1000"
MUCH = "seq 200000"  # more than all buffers hold

pytestmark = pytest.mark.skipif(bool(namespaces.missing()), reason=namespaces.missing() or "none")


@contextmanager
def spread(*agents: str) -> Iterator[Spread]:
    """A farm with these agents, in a directory of its own, where jobs run too; its log is printed when something is wrong."""
    with tempfile.TemporaryDirectory(prefix="dwrap-") as directory:
        try:
            with Spread(Path(directory), agents) as farm:
                (farm.directory / "runtime").mkdir(mode=0o700)
                end(start(farm, "true"))  # it warns that nothing is encrypted, once
                yield farm
        except BaseException:
            print((Path(directory) / "farm.log").read_text("utf-8", "replace")[-20_000:])
            raise


def end(*wrappers: subprocess.Popen[bytes]) -> None:
    for wrapper in wrappers:
        wrapper.communicate(timeout=END_SECONDS)


def start(farm: Spread, command: str, **more: str) -> subprocess.Popen[bytes]:
    """A wrapper on the desktop."""
    ours = {"DWRAP_INSECURE": "1", "DWRAP_PATIENCE": "60", "XDG_RUNTIME_DIR": str(farm.directory / "runtime")}
    return subprocess.Popen(
        [*farm.on(DESK), DWRAP, "sh", "-c", command],
        env=farm.environment(**ours, **more), cwd=farm.directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


class Load:
    """Jobs one after the other on `AT_ONCE` lanes, as test_chaos.py has them; and one lane of jobs that print for 5 s, so that something
    is always being said when a wire is cut."""

    def __init__(self, farm: Spread) -> None:
        self._farm = farm
        self._numbers = itertools.count()
        self._over = threading.Event()
        self.wrappers: set[subprocess.Popen[bytes]] = set()
        self.ended = 0
        self.problems: list[str] = []

    def _run(self, command: str, number: int) -> Ended:
        with start(self._farm, command) as wrapper:
            self.wrappers.add(wrapper)
            try:
                stdout, stderr = wrapper.communicate(timeout=END_SECONDS)
            except subprocess.TimeoutExpired:
                wrapper.kill()
                raise
            finally:
                self.wrappers.discard(wrapper)
        return Ended(number, wrapper.returncode, stdout, stderr)

    def _short(self) -> str:
        number = next(self._numbers)
        return wrong(self._farm.directory, self._run(script(number), number))

    def _long(self) -> str:
        ended = self._run(f"for i in $(seq {LINES}); do echo $i; sleep 0.1; done; exit 7", -1)
        right = "".join(f"{number}\n" for number in range(1, LINES + 1)).encode()
        return "" if (ended.status, ended.stdout, ended.stderr) == (7, right, b"") else f"{ended}"

    def _lane(self, job: Callable[[], str]) -> None:
        while not self._over.is_set():
            if problem := job():
                self.problems.append(problem)
            self.ended += 1

    def go_on(self) -> None:
        """Returns once jobs that began after this end. Raises AssertionError when none do."""
        wanted = self.ended + 2 * (AT_ONCE + 1)
        eventually(lambda: self.ended >= wanted, END_SECONDS, "jobs end again")

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Meanwhile jobs come and go; afterwards all of them have ended."""
        with ThreadPoolExecutor(AT_ONCE + 1) as pool:
            lanes = [pool.submit(self._lane, job) for job in (*[self._short] * AT_ONCE, self._long)]
            try:
                self.go_on()
                yield self
            finally:
                self._over.set()
            for lane in lanes:
                lane.result()


def survive(host: str, how: Cut) -> list[str]:
    """What goes wrong when this host's wire is cut for less than a lease, and for longer than one."""
    with spread("a1", "a2") as farm, Load(farm).running() as load:
        for seconds in (3, 20):
            farm.cut(host, how)
            time.sleep(seconds)
            farm.heal(host)
            healed = time.monotonic()
            load.go_on()
            eventually(lambda: farm.names() == {"a1", "a2"}, BACK_SECONDS, f"both agents are there again, {host} {how.value}")
            print(f"{host} {how.value} for {seconds} s: all is well {time.monotonic() - healed:.1f} s after that, {load.ended} jobs")
    return [f"{host} {how.value}: {problem}" for problem in load.problems]


def test_each_job_ends_as_its_own_while_wires_are_cut() -> None:
    cases = [(host, how) for host in (DESK, "a1") for how in Cut]
    with ThreadPoolExecutor(len(cases)) as pool:
        problems = list(itertools.chain.from_iterable(pool.map(survive, *zip(*cases, strict=True))))
    assert not problems, "\n".join(problems)


def frozen(farm: Spread, load: Load, who: str) -> list[subprocess.Popen[bytes]]:
    """The processes that are meant."""
    if who == "wrappers":
        return list(load.wrappers)
    return [farm.distributor if who == "distributor" else farm.agents["a1"]]


@pytest.mark.parametrize("who", ["wrappers", "distributor", "agent"] if FULL else ["wrappers"])
def test_half_a_minute_frozen_costs_time_only(who: str) -> None:
    with spread("a1", "a2") as farm, Load(farm).running() as load:
        much = start(farm, MUCH)
        assert much.stdout is not None
        assert os.read(much.stdout.fileno(), 2) == b"1\n"
        processes = [*frozen(farm, load, who), *([much] if who == "wrappers" else [])]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        time.sleep(30)
        for process in processes:
            process.send_signal(signal.SIGCONT)
        load.go_on()
        rest, _ = much.communicate(timeout=END_SECONDS)
        assert (much.returncode, rest) == (0, subprocess.check_output(["sh", "-c", MUCH])[2:])
        attempts = [job["attempt"] for job in farm.jobs() if job["pid"] == much.pid]
    assert load.problems == []
    assert attempts == [1] or who != "wrappers", "it went on where it was"


# ---- how soon a death is noticed ----


def noticed(what: str, begun: float, is_over: Callable[[], bool], most: float) -> None:
    """Waits until it is over, prints after how many seconds that was, and fails beyond the bound."""
    eventually(is_over, most + 10, f"noticed: {what}")
    seconds = time.monotonic() - begun
    print(f"noticed: {what} {seconds:.2f}")
    assert seconds <= most, f"{what} was noticed after {seconds:.2f} s, not within {most:g}"


def living(mark: str) -> int:
    """How many processes have this word among their arguments."""
    return sum(mark.encode() in words(file) for file in Path("/proc").glob("[0-9]*/cmdline"))


def words(file: Path) -> list[bytes]:
    """None of a process that has gone meanwhile."""
    try:
        return file.read_bytes().split(b"\0")
    except OSError:
        return []


def tree(mark: str, says: str = "true") -> str:
    """A command with a child, and one in a session of its own that no polite signal ends; says something all the time."""
    marked = f"exec -a {mark} {UNTIL_KILLED}"
    deaf = shlex.quote(f"trap '' TERM INT HUP; {marked}")
    return f"bash -c {shlex.quote(marked)} & setsid bash -c {deaf} & echo up; while sleep 0.1; do {says}; done"


def start_tree(farm: Spread, mark: str, says: str = "true", **more: str) -> subprocess.Popen[bytes]:
    wrapper = start(farm, tree(mark, says), **more)
    eventually(lambda: living(mark) == 2, saying="the tree is up")
    assert wrapper.stdout is not None
    assert wrapper.stdout.readline() == b"up\n"
    return wrapper


@pytest.fixture(scope="module")
def farm() -> Iterator[Spread]:
    with spread("a1", "a2") as running:
        yield running


def test_silence_is_noticed_once_the_lease_is_over(farm: Spread) -> None:
    """One desktop and one agent at a time; what the agent had is ended by itself before anybody else may have it."""
    marks = {what: f"tree-{what}-{os.getpid()}" for what in ("quiet", "loud", "far")}
    on_a1 = {"DWRAP_LABELS": "agent=a1"}
    wrappers = [start_tree(farm, marks["quiet"], **on_a1), start_tree(farm, marks["loud"], "echo loud", **on_a1)]
    far = start_tree(farm, marks["far"], DWRAP_LABELS="agent=a2")
    try:
        cut = time.monotonic()
        farm.cut(DESK, Cut.DROPPED)
        farm.cut("a2", Cut.DROPPED)
        bounds = [
            ("an agent that is silent has ended what it had", lambda: not living(marks["far"]), SILENCE_SECONDS),
            ("agent silent", lambda: farm.names() == {"a1"}, SILENCE_SECONDS + TOLERANCE_SECONDS),
            ("desktop silent, its tree is gone", lambda: not living(marks["quiet"]), SILENCE_SECONDS + TOLERANCE_SECONDS),
            ("desktop silent, its printing tree is gone", lambda: not living(marks["loud"]), SILENCE_SECONDS + TOLERANCE_SECONDS),
        ]
        with ThreadPoolExecutor(len(bounds)) as pool:
            for one in [pool.submit(noticed, what, cut, is_over, most) for what, is_over, most in bounds]:
                one.result()
    finally:
        farm.heal(DESK)
        farm.heal("a2")
        for wrapper in (far, *wrappers):
            wrapper.kill()
        end(far, *wrappers)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_of_a_wrapper_that_is_ended_nothing_is_left(number: signal.Signals, farm: Spread) -> None:
    """Once the distributor has been up for so long that nobody comes back from before its start."""
    eventually(lambda: farm.status()["uptime_seconds"] > SILENCE_SECONDS, 2 * SILENCE_SECONDS)
    mark = f"tree-{number.name}-{os.getpid()}"
    wrapper = start_tree(farm, mark)
    wrapper.send_signal(number)
    noticed(f"wrapper ended by {number.name}, its tree is gone", time.monotonic(), lambda: not living(mark), TREE_SECONDS)
    wrapper.communicate()
    assert wrapper.returncode == -number


def test_an_agent_that_is_killed_is_noticed_at_once(farm: Spread) -> None:
    farm.agents["a2"].kill()
    noticed("agent killed", time.monotonic(), lambda: farm.names() == {"a1"}, 1.0)
    farm.restart_agent("a2")
    eventually(lambda: farm.names() == {"a1", "a2"}, 20, "the next one is there")
