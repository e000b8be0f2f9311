"""Distributor, agents and wrappers under a virtual clock, with everything that may die, dying.

The scheduler and its ledger and the agents' sessions are the real ones, and the messages between them are real bytes; runners, wrappers and
connections are models (simulation_peers.py). One `World` is one schedule, made from its seed alone. After every step the invariants are
checked; when one fails the error holds the seed and the story of the job that broke it. Run as a program it runs many schedules on all
processors, and prints how often each event met each state of its job:

    python tests/simulation.py [SCHEDULES [FIRST_SEED]]

Faults: connections torn, torn so that one end learns of it late, and stalled in either or both directions; agents killed, frozen, stopped,
drained; machines that lose power, or are suspended (their clocks jump); distributors stopped, and killed and started anew; wrappers killed
and stopped; slow disks. What was under way when a connection was torn is lost from a random moment on; between connections there is no
order at all, and the last words of an old one may come after the first of its successor.
"""

from __future__ import annotations

import functools
import gc
import heapq
import itertools
import multiprocessing
import os
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from simulation_peers import Host, Link, Plan, Runner, Violation, Wrapper

from dwrap.distributor import events as e
from dwrap.distributor import wire
from dwrap.distributor.events import JobState
from dwrap.distributor.jobs import MAX_LOSSES, MAX_REJECTIONS, OFFER_SECONDS
from dwrap.distributor.ledger import Book, Line
from dwrap.distributor.past import Past
from dwrap.distributor.scheduler import Scheduler
from dwrap.protocol import messages

ALL_DRAINED = 700.0
Covered = Counter[tuple[str, str]]


@dataclass
class Story:
    """What the world knows of one command: every attempt of it, whatever id its wrapper gave it."""

    plan: Plan
    lines: list[tuple[float, str, Any]] = field(default_factory=list)  # when, an indentation, what
    endings: list[str] = field(default_factory=list)
    live: set[Runner] = field(default_factory=set)
    changed: int = 0  # how many attempts changed what was there before
    started: int = 0


class World:
    """One schedule of `jobs` commands, `hosts` agents and `faults` faults."""

    host_kind: type[Host] = Host
    wrapper_kind: type[Wrapper] = Wrapper
    jobs_end, faults_end = 10.0, 16.0

    def __init__(self, seed: int, jobs: int = 20, hosts: int = 3, faults: int = 5, ledger: bool = True) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.serials = itertools.count(1)
        self.stories: dict[str, Story] = {}
        self.files: dict[str, tuple[str, int]] = {}  # who made it: command, attempt
        self.covered: Covered = Counter()
        self.links: dict[int, Link] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._queue: list[tuple[Link, Callable[[], e.Event | None]]] = []
        self.stopped_until = 0.0
        self.is_up = True
        self.epoch = 1
        self._has_ledger = ledger
        self._lines: list[Line] = []
        self._book = Book()
        self._alive_at = 0.0
        self.scheduler = self.new_scheduler()
        self.hosts = [self.host_kind(self, f"agent-{number}") for number in range(hosts)]
        self.wrappers: list[Wrapper] = []
        self.offered_in: dict[str, int] = {}
        self._pending = jobs
        for number in range(jobs):
            self.at(self.begins(), functools.partial(self._begin, f"job-{number}"))
        for _ in range(faults):
            self.at(self.random.uniform(0, self.faults_end), self._fault)

    # ---- time ----

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self.serials), what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self.serials), what))

    def delay(self) -> float:
        return self.random.choice((0.0001, 0.001, 0.01, 0.1)) * self.random.uniform(0.5, 2)

    def chance(self, probability: float) -> bool:
        """Never when the time for faults is over."""
        return self.now < self.faults_end and self.random.random() < probability

    def run(self) -> World:
        """Runs the schedule to its end. Raises Violation."""
        due = self._due
        while due and not self._is_over():
            deadline = self.scheduler.next_deadline() if self.is_up else None
            if deadline is not None and max(deadline, self.stopped_until) < due[0][0]:
                self.now = max(self.now, deadline, self.stopped_until)
                self._handle(e.Tick())
                continue
            self.now, _, what = heapq.heappop(due)
            if self.now > ALL_DRAINED:
                break
            what()
        self._check_drained()
        return self

    def _is_over(self) -> bool:
        return self.now > self.faults_end and not self._pending and not self.scheduler.jobs and not any(host.is_busy for host in self.hosts)

    # ---- commands ----

    def begins(self) -> float:
        """When a command is submitted."""
        return self.random.uniform(0, self.jobs_end)

    def _begin(self, name: str) -> None:
        self.stories[name] = Story(Plan(self.random, name))
        self.wrappers.append(self.wrapper_kind(self, name))

    def story_of(self, job: str) -> Story:
        return self.stories[job.partition(".")[0]]

    def tell(self, job: str, what: Any, indented: str = "") -> None:
        self.story_of(job).lines.append((self.now, indented, what))

    def ended(self, name: str, how: str) -> None:
        """The wrapper of a command has come to its end."""
        story = self.stories[name]
        story.endings.append(how)
        self.tell(name, f"ENDS: {how}")
        self._pending -= len(story.endings) == 1
        if len(story.endings) > 1:
            self.violated(name, f"has ended {len(story.endings)} times")
        if how == "here":
            if story.changed or any(runner.can_act for runner in story.live):
                self.violated(name, "runs where it was submitted, but attempts of it live, or did what cannot be done again")
            if left := [path for path, (owner, _) in self.files.items() if owner == name]:
                self.violated(name, f"runs where it was submitted, but {left} of earlier attempts are still there")
        elif how == "125" and not (story.changed or story.plan.is_fickle or story.plan.runs_program or story.plan.may_fail):
            self.violated(name, "has failed for no reason")

    def settled_there(self, job: str) -> None:
        """The distributor tells how a job has ended."""

    def starts(self, runner: Runner) -> None:
        """An attempt starts."""
        story = self.story_of(runner.key[0])
        story.started += 1
        if others := [other for other in story.live if other.can_act]:
            other = f"{others[0].key} on {others[0].host.name}"
            self.violated(runner.key[0], f"runs twice at once: {runner.key} on {runner.host.name}, and {other}")
        if story.changed:
            self.violated(runner.key[0], "starts again although an attempt has done what cannot be done again")
        if story.endings:
            self.violated(runner.key[0], "starts after its wrapper has ended") if "gone" not in story.endings[0] else None
        story.live.add(runner)

    # ---- the distributor ----

    def new_scheduler(self) -> Scheduler:
        book = Book()
        blank = Past(self.now, frozenset({self.epoch}), self.now + 13)
        past = book.read(self._lines, "boot", self.now, self.epoch) if self._has_ledger else blank
        self._book = book
        self._lines.append(("E", "boot", self.now, self.epoch, True))
        return Scheduler(lambda: f"s{next(self.serials)}", past=past)

    def arrive(self, link: Link, make: Callable[[], e.Event | None]) -> None:
        """Something from a connection has reached the distributor's socket."""
        if not self.is_up or link.epoch != self.epoch:
            return
        if self.now < self.stopped_until:
            self._queue.append((link, make))
        elif (event := make()) is not None:
            self._handle(event)

    def stop(self) -> None:
        """As by SIGSTOP: what arrives meanwhile is handled, late, when it goes on."""
        self.stopped_until = self.now + self.random.choice((0.5, 3, 12)) * self.random.uniform(0.2, 1.3)
        self.at(self.stopped_until, self._go_on)

    def _go_on(self) -> None:
        if self.now >= self.stopped_until:
            queue, self._queue = self._queue, []
            for link, make in queue:
                self.arrive(link, make)

    def kill(self) -> None:
        """The distributor dies; another starts after a while."""
        if not self.is_up:
            return
        self.is_up = False
        self._queue.clear()
        self.stopped_until = 0.0
        if self.now - self._alive_at < 1.0 and self._lines:
            self._lines.append(("T", self.now))
        for link in list(self.links.values()):
            link.tear(late=False)
        self.links.clear()
        self.after(self.random.choice((0.3, 2, 12)) * self.random.uniform(0.3, 1.5), self._restart)

    def _restart(self) -> None:
        self.is_up = True
        self.epoch += 1
        self.scheduler = self.new_scheduler()

    def _handle(self, event: e.Event) -> None:
        """Hands one event over; its actions go out; the invariants are checked."""
        named = getattr(event, "job", "") or (event.spec.job if isinstance(event, e.Submitted | e.Attached) else "")
        job = self.scheduler.jobs.get(named) if named else None
        self.covered[type(event).__name__, job.state.value if job else "-"] += 1
        if named:
            self.tell(named, event)
        if isinstance(event, e.Made) and event.beyond:
            self.story_of(named).plan.may_fail = True  # whether it still went that far nobody knows when its agent is lost now
        self._alive_at = self.now
        for action in self.scheduler.handle(event, self.now):
            self._carry_out(action)
        self._check()

    def _carry_out(self, action: Any) -> None:
        if isinstance(action, e.Record):
            line = self._book.fold(action) if action.job else None
            if line is not None:
                self._lines.append(line)
            if action.job and action.what == "lost":
                self.tell(action.job, f"LOST {action.facts['reason']}", "    ")
            return
        named = action.spec.job if isinstance(action, e.Assign) else getattr(action, "job", "")
        if named:
            self.tell(named, action, "    ")
        if isinstance(action, e.Answer | e.TellFailed | e.DeliverResult):
            self.settled_there(action.job)
        if isinstance(action, e.Offer):
            self.offered_in[named] = self.epoch
        if isinstance(action, e.Unexpected):
            self.covered["Unexpected", action.what] += 1
            return
        if isinstance(action, e.Assign) and self.now > self.scheduler.jobs[named].offered_at + OFFER_SECONDS:
            self.violated(named, "is assigned on an answer that came too late")
        link = self.links.get(action.peer)
        if link is None:
            return
        if isinstance(action, e.Disconnect):
            link.tear(late=False)
        elif isinstance(link.end, Host):
            frames = wire.MESSAGES[type(action)](action, self.epoch)
            link.down(lambda: messages.parse(frames))
        else:
            link.down(lambda: action)

    def pass_on(self, peer: int, frames: tuple[bytes, ...], fields: messages.Fields) -> None:
        """OUTPUT and CREDIT of an agent, as the broker passes them on."""
        job = self.scheduler.told_by(peer, fields.name("job"), fields.number("attempt"))
        link = self.links.get(job.peer) if job is not None and job.peer is not None else None
        if fields.get("received") is not None:
            self._handle(e.Joined(peer, fields.name("job"), fields.number("attempt")))
        if link is not None:
            link.down(lambda: messages.parse(frames))

    def pass_credit(self, peer: int, job_id: str, frames: list[bytes]) -> None:
        """CREDIT of a submitter, as the broker passes it on."""
        job = self.scheduler.jobs.get(job_id)
        if job is not None and job.peer == peer and job.state is JobState.ASSIGNED and job.agent is not None:
            link = self.links.get(job.agent.peer)
            if link is not None:
                link.down(lambda: messages.parse(frames))

    # ---- faults ----

    def _fault(self) -> None:
        random, host = self.random, self.random.choice(self.hosts)
        links = list(self.links.values())
        faults: list[Callable[[], None]] = [self.stop, self.kill, self.kill, *host.faults()]
        if links:
            link = random.choice(links)
            faults += [lambda: link.tear(late=False), lambda: link.tear(late=True), link.stall]
        random.choice(faults)()

    # ---- invariants ----

    def _check(self) -> None:
        scheduler = self.scheduler
        held: dict[str, int] = {}
        for agent in scheduler.agents.values():
            if len(agent.jobs) > agent.spec.slots:
                raise Violation(f"seed {self.seed}: agent {agent.name} holds {len(agent.jobs)} jobs in {agent.spec.slots} slots")
            for name in agent.jobs:
                held[name] = agent.peer
        for job in scheduler.jobs.values():
            state = job.state
            if state is JobState.OFFERED and (self.now > job.offered_at + OFFER_SECONDS or job.id not in held):
                self.violated(job.id, "is offered for longer than an offer lasts, or without a slot")
            holds = job.id in held
            if holds and (job.agent is None or held[job.id] != job.agent.peer or state not in (JobState.OFFERED, JobState.ASSIGNED)):
                self.violated(job.id, f"is {state.value}, which does not fit the slots that are held")
            if (job.queue is not None) > (state is JobState.QUEUED) or (state is JobState.ASSIGNED and job.agent is None):
                self.violated(job.id, f"is {state.value}, which does not fit where it stands")
            if len(job.avoid) > MAX_REJECTIONS or job.losses > MAX_LOSSES + 1:
                self.violated(job.id, "was tried too often")
        if held and not held.keys() <= scheduler.jobs.keys():
            raise Violation(f"seed {self.seed}: slots are held for unknown jobs: {held.keys() - scheduler.jobs.keys()}")

    def _check_drained(self) -> None:
        for name, story in self.stories.items():
            if not story.endings:
                self.violated(name, "never came to an end")
            if any(runner.can_act for runner in story.live):
                self.violated(name, "still runs when all is over")
        if self.scheduler.jobs or self.scheduler.waiting:
            self.violated(next(iter(self.scheduler.jobs), "job-0"), "is still there when all is over")
        for path, (owner, attempt) in self.files.items():
            ending = self.stories[owner].endings[0]
            if ending.startswith("status") and not ending.endswith(f" {attempt}"):
                self.violated(owner, f"has left {path} of attempt {attempt}, but ended with another")

    def violated(self, job: str, what: str) -> None:
        known = self.story_of(job).lines if job.partition(".")[0] in self.stories else []
        lines = [f"{when:9.3f} {indented}{what}" for when, indented, what in known]
        raise Violation("\n".join([f"seed {self.seed}, at {self.now:.3f}: {job} {what}. Its story:", *lines]))


def run_seeds(seeds: Iterable[int]) -> Covered:
    """Runs these schedules; returns how often each event met each state of its job. Raises Violation."""
    covered: Covered = Counter()
    gc.disable()  # looks for circles again and again in what lives as long as its world does
    for seed in seeds:
        gc.collect() if seed % 50 == 0 else None
        world = World(seed, ledger=seed % 8 != 0).run()
        covered.update(world.covered)
        covered["ended", "all"] += len(world.stories)
        for story in world.stories.values():
            covered["ended", story.endings[0].split()[0]] += 1
            covered["attempts", str(min(story.started, 4))] += 1
    return covered


def run_many(schedules: int, first_seed: int) -> Covered:
    """The same on all processors, in pieces."""
    size = 200
    pieces = [range(first, min(first + size, first_seed + schedules)) for first in range(first_seed, first_seed + schedules, size)]
    covered: Covered = Counter()
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for piece in pool.imap_unordered(run_seeds, pieces):
            covered.update(piece)
    return covered


def table(covered: Covered) -> str:
    """The coverage as a table: rows are events, columns the states that their job was in."""
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    for (name, state), times in covered.items():
        rows[name][state] = times
    states = ["-", *(state.value for state in JobState)]
    lines = [f"{'event':14}" + "".join(f"{state:>12}" for state in states)]
    for name in sorted(rows):
        if rows[name].keys() <= set(states):
            lines.append(f"{name:14}" + "".join(f"{rows[name].get(state, 0):12}" for state in states))
        else:
            lines.append(f"{name:14} " + ", ".join(f"{what} {times}" for what, times in sorted(rows[name].items())))
    return "\n".join(lines)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    print(table(run_many(count, first)))
    print(f"{count} schedules from seed {first}: every invariant held")
