"""The scheduler under a virtual clock, between model agents and model wrappers whose connections delay, break and freeze.

One `World` is one schedule, made from its seed alone. After every event the invariants are checked; when one fails the
error holds the seed and the story of the job that broke it. Run as a program it runs many schedules:

    python tests/simulation.py [SCHEDULES [FIRST_SEED]]

Knows the scheduler's events and actions and what honest and dying peers do. Knows no socket, message or real clock.
Messages on one connection keep their order and arrive after a delay; between connections there is no order at all.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from dwrap.distributor import events as e
from dwrap.distributor.events import JobState
from dwrap.distributor.scheduler import MAX_REJECTIONS, OFFER_SECONDS, Scheduler

Message = e.Event | e.Action
FAULTS_END = 60.0
ALL_DRAINED = 400.0
_ENDS = (e.Answer, e.TellFailed, e.DeliverResult)


class Violation(AssertionError):
    """An invariant that did not hold."""


@dataclass
class Chances:
    """How often things go wrong, per opportunity."""

    reject: float = 0.05
    infrastructure: float = 0.03
    wrapper_dies: float = 0.1
    wrapper_sleeps: float = 0.1
    lose_ack: float = 0.05
    faults: int = 5


@dataclass
class Story:
    """What the world knows of one job."""

    lines: list[str] = field(default_factory=list)
    ends: int = 0
    started: int = 0
    running: int = 0
    wrapper_is_gone: bool = False


class Link:
    """One connection: in each direction messages keep their order. What is under way when it breaks is lost."""

    def __init__(self, world: World, end: Wrapper | Agent) -> None:
        self.world, self.end = world, end
        self.peer = next(world.peers)
        self.is_open = True
        self._arrives = {"up": world.now, "down": world.now}
        world.links[self.peer] = self

    def up(self, event: e.Event) -> None:
        """From the model to the scheduler."""
        self._carry("up", lambda: self.world.tell(event))

    def down(self, action: e.Action) -> None:
        """From the scheduler to the model."""
        self._carry("down", lambda: self.end.hear(self, action))

    def close(self) -> None:
        """Both ends learn of it, each in its own time."""
        if self.is_open:
            self.is_open = False
            self.world.after(self.world.delay(), lambda: self._ended())
            self.world.after(self.world.delay(), lambda: self.end.cut(self))

    def _ended(self) -> None:
        self.world.links.pop(self.peer, None)
        self.world.tell(e.Disconnected(self.peer))

    def _carry(self, way: str, arrive: Callable[[], None]) -> None:
        at = max(self._arrives[way], self.world.now + self.world.delay())
        self._arrives[way] = at
        self.world.at(at, lambda: arrive() if self.is_open else None)


class Wrapper:
    """One honest submitter: answers every offer, acknowledges its result, unless it dies or is stopped for a while."""

    def __init__(self, world: World, job: str) -> None:
        self.world, self.job = world, job
        self.uid = world.random.choice((1000, 1000, 1001))
        self.link = Link(world, self)
        self.stopped_until = 0.0
        self.link.up(e.Submitted(self.link.peer, self.uid, self.spec()))
        if world.chance(world.chances.wrapper_dies):
            world.after(world.random.expovariate(0.3), self.die)
        if world.chance(world.chances.wrapper_sleeps):
            world.after(world.random.expovariate(1.0), self.sleep)

    def spec(self) -> e.JobSpec:
        random = self.world.random
        labels = ("big=1",) if random.random() < 0.1 else ()
        cwd = random.choice(("/srv/a", "/srv/b", "/srv/b", "/tmp/x"))
        agent = random.choice(("agent-0", "agent-1", "agent-9")) if random.random() < 0.1 else ""
        priority = random.choice((0, 0, 0, 1, -2))
        return e.JobSpec(self.job, cwd, "cc", f"build-{self.uid}", labels=labels, priority=priority, agent=agent)

    def die(self) -> None:
        self.world.stories[self.job].wrapper_is_gone = True
        self.link.close()

    def sleep(self) -> None:
        self.stopped_until = self.world.now + self.world.random.uniform(0.5, 20)

    def hear(self, link: Link, action: e.Action) -> None:
        if self.world.now < self.stopped_until:
            return self.world.at(self.stopped_until, lambda: self.hear(link, action) if link.is_open else None)
        if isinstance(action, e.Offer):
            link.up(e.Committed(link.peer, self.job, action.stamp, (b"",)))
        elif isinstance(action, e.DeliverResult) and not self.world.chance(self.world.chances.lose_ack):
            link.up(e.Acknowledged(link.peer, self.job))
        if isinstance(action, _ENDS):
            self.world.after(0.01, self.die)

    def cut(self, link: Link) -> None:
        self.world.stories[self.job].wrapper_is_gone = True


class Agent:
    """One agent: runs what it is assigned, keeps results until they are acknowledged, comes back after crashes and cuts."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.slots = world.random.randint(1, 3)
        self.roots = world.random.choice((("/",), ("/srv",), ("/srv/a",)))
        self.labels = frozenset({"big=1"}) if world.chance(0.4) else frozenset()
        self.serves = world.random.choice((e.ANY_UID, e.ANY_UID, 1000))
        self.link: Link | None = None
        self.token = ""
        self.frozen_until = 0.0
        self.life = 0
        self.running: set[tuple[str, int]] = set()
        self.results: dict[tuple[str, int], e.Outcome] = {}
        self.connect()

    def connect(self) -> None:
        if self.link is None or not self.link.is_open:
            self.link = Link(self.world, self)
            self.token = ""
            self.link.up(e.Registered(self.link.peer, 0, self.spec()))
            for key in list(self.results):
                self.send_result(key)

    def spec(self) -> e.AgentSpec:
        return e.AgentSpec(self.name, self.slots, self.roots, self.serves, self.labels, running=tuple(sorted(self.running)))

    def hear(self, link: Link, action: e.Action) -> None:
        if self.world.now < self.frozen_until:
            return self.world.at(self.frozen_until, lambda: self.hear(link, action) if link.is_open else None)
        if link is not self.link:
            return
        if isinstance(action, e.Welcome):
            self.token = action.token
            self.beat(link)
        elif isinstance(action, e.RefuseAgent):
            link.close()
        elif isinstance(action, e.Assign):
            self.assigned(link, action)
        elif isinstance(action, e.Kill):
            self.end((action.job, action.attempt), e.Outcome(9))
        elif isinstance(action, e.AckResult):
            self.results.pop((action.job, action.attempt), None)

    def beat(self, link: Link) -> None:
        if link is not self.link or not link.is_open:
            return
        if self.world.now >= self.frozen_until:
            low = self.world.chance(0.05)
            load = e.Load(self.world.random.uniform(0, 3), (100 if low else 4_000) * 1024 * 1024)
            link.up(e.Heartbeat(link.peer, self.token, load))
            for key in list(self.results):
                self.send_result(key)
        self.world.after(1.0, lambda: self.beat(link))

    def assigned(self, link: Link, action: e.Assign) -> None:
        key = action.spec.job, action.attempt
        world, story = self.world, self.world.stories[key[0]]
        if world.chance(world.chances.reject):
            return link.up(e.Rejected(link.peer, *key, "the disk is full"))
        story.started += 1
        story.running += 1
        self.running.add(key)
        if len(self.running) > self.slots:
            raise Violation(f"agent {self.name} runs {len(self.running)} jobs in {self.slots} slots")
        outcome = e.Outcome(None, "infrastructure", "I/O error") if world.chance(world.chances.infrastructure) else e.Outcome(0)
        life = self.life
        self.starts(key, action)
        world.after(world.random.expovariate(0.5), lambda: self.end(key, outcome) if life == self.life else None)

    def starts(self, key: tuple[str, int], action: e.Assign) -> None:
        """A job has started here."""

    def ends(self, key: tuple[str, int], outcome: e.Outcome) -> None:
        """A job that ran here has ended; what it has to say is said after this."""

    def end(self, key: tuple[str, int], outcome: e.Outcome) -> None:
        if self.world.now < self.frozen_until:
            return self.world.at(self.frozen_until, lambda: self.end(key, outcome))
        if key in self.running:
            self.running.remove(key)
            self.world.stories[key[0]].running -= 1
            self.results[key] = outcome
            self.ends(key, outcome)
            self.send_result(key)

    def send_result(self, key: tuple[str, int]) -> None:
        if self.link is not None and self.link.is_open:
            self.link.up(e.Finished(self.link.peer, *key, self.results[key], b""))

    def cut(self, link: Link) -> None:
        self.world.after(self.world.random.uniform(0.1, 3), self.connect)

    # ---- faults ----

    def crash(self) -> None:
        self.life += 1
        for job, _ in self.running:
            self.world.stories[job].running -= 1
        self.running.clear()
        self.results.clear()
        if self.link is not None:
            self.link.close()

    def tear(self) -> None:
        if self.link is not None:
            self.link.close()

    def freeze(self) -> None:
        self.frozen_until = self.world.now + self.world.random.uniform(0.5, 25)

    def drain(self) -> None:
        if self.link is not None and self.link.is_open:
            self.link.up(e.Leaving(self.link.peer))
            self.world.after(5.0, self.tear)

    def faults(self) -> list[Callable[[], None]]:
        return [self.crash, self.tear, self.freeze, self.drain, lambda: self.world.tell(e.DrainAsked(self.name))]


class World:
    """One schedule."""

    agent_kind: type[Agent] = Agent
    wrapper_kind: type[Wrapper] = Wrapper

    def __init__(self, seed: int, jobs: int = 20, agents: int = 3, chances: Chances | None = None) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.chances = chances or Chances()
        self.now = 0.0
        self.peers = itertools.count(1)
        self.links: dict[int, Link] = {}
        self.stories: dict[str, Story] = defaultdict(Story)
        self.covered: Counter[tuple[str, str]] = Counter()
        self._serials = itertools.count()
        self._stopped_until = 0.0
        self._backlog: list[e.Event] = []
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._secrets = itertools.count(1)
        self.scheduler = self.new_scheduler()
        self.agents = [self.agent_kind(self, f"agent-{number}") for number in range(agents)]
        self.wrappers: list[Wrapper] = []
        for number in range(jobs):
            self.at(self.random.uniform(0, 30), lambda number=number: self.wrappers.append(self.wrapper_kind(self, f"job-{number}")))  # type: ignore[misc]
        for _ in range(self.chances.faults):
            self.at(self.random.uniform(0, FAULTS_END), self._fault)

    def new_scheduler(self) -> Scheduler:
        return Scheduler(lambda: f"secret-{next(self._secrets)}")

    # ---- time ----

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._serials), what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.at(self.now + seconds, what)

    def delay(self) -> float:
        return self.random.choice((0.0001, 0.001, 0.01, 0.1)) * self.random.uniform(0.5, 2)

    def chance(self, probability: float) -> bool:
        """Never when the time for faults is over."""
        return self.now < FAULTS_END and self.random.random() < probability

    def run(self) -> World:
        """Runs the schedule to its end. Raises Violation."""
        while self._due and self.now < ALL_DRAINED:
            deadline = self.scheduler.next_deadline()
            if deadline is not None and max(deadline, self._stopped_until) < self._due[0][0]:
                self.now = max(self.now, deadline, self._stopped_until)
                self.tell(e.Tick())
                continue
            self.now, _, what = heapq.heappop(self._due)
            try:
                what()
            except Violation as violation:
                raise Violation(f"seed {self.seed}, at {self.now:.3f}: {violation}") from None
        self._check_drained()
        return self

    # ---- the scheduler's surroundings ----

    def tell(self, event: e.Event) -> None:
        """One event into the scheduler, or into its socket's queue while it is stopped."""
        if self.now >= self._stopped_until:
            self._handle(event)
        elif not isinstance(event, e.Tick):
            self._backlog.append(event)

    def stop_distributor(self) -> None:
        """As by SIGSTOP: what arrives meanwhile is handled, late, when it goes on."""
        self._stopped_until = self.now + self.random.uniform(0.1, 10)
        self.at(self._stopped_until, self._go_on)

    def _go_on(self) -> None:
        backlog, self._backlog = self._backlog, []
        for event in backlog:
            self.tell(event)

    def _handle(self, event: e.Event) -> None:
        """Hands one event over; its actions go out; the invariants are checked."""
        job = self.scheduler.jobs.get(getattr(event, "job", ""))
        self.covered[type(event).__name__, job.state.value if job else "-"] += 1
        actions = self.scheduler.handle(event, self.now)
        if isinstance(named := getattr(event, "job", None), str):
            self.stories[named].lines.append(f"{self.now:9.3f} {event}")
        for action in actions:
            self._carry_out(action)
        self._check()

    def _carry_out(self, action: e.Action) -> None:
        named = action.spec.job if isinstance(action, e.Assign) else getattr(action, "job", "")
        if named:
            self.stories[named].lines.append(f"{self.now:9.3f}     {action}")
        if isinstance(action, e.Record | e.Unexpected):
            return
        if isinstance(action, _ENDS):
            self._check_end(action)
        if isinstance(action, e.Assign) and self.now > self.scheduler.jobs[named].offered_at + OFFER_SECONDS:
            self._violated(named, "is assigned on an answer that came too late")
        link = self.links.get(action.peer)
        if isinstance(action, e.Disconnect):
            if link is not None:
                link.close()
        elif link is not None and link.is_open:
            link.down(action)

    def _fault(self) -> None:
        self.random.choice([*self.random.choice(self.agents).faults(), self.stop_distributor])()

    # ---- invariants ----

    def _check_end(self, action: e.Answer | e.TellFailed | e.DeliverResult) -> None:
        story = self.stories[action.job]
        story.ends += 1
        if story.ends > 1:
            self._violated(action.job, "is settled twice")
        never_started = isinstance(action, e.Answer) or (isinstance(action, e.TellFailed) and action.safe)
        if never_started and story.started:
            self._violated(action.job, "may be run again by its submitter, but it was started")

    def _check(self) -> None:
        scheduler = self.scheduler
        held: dict[str, int] = {}
        for agent in scheduler.agents.values():
            if len(agent.jobs) > agent.spec.slots:
                raise Violation(f"agent {agent.name} holds {len(agent.jobs)} jobs in {agent.spec.slots} slots")
            held.update(dict.fromkeys(agent.jobs, agent.peer))
        for job in scheduler.jobs.values():
            holds_slot = job.state in (JobState.OFFERED, JobState.ASSIGNED)
            if holds_slot != (job.id in held) or (holds_slot and job.agent is not None and held[job.id] != job.agent.peer):
                self._violated(job.id, f"is {job.state.value}, which does not fit the slots that are held")
            if job.state is JobState.OFFERED and self.now > job.offered_at + OFFER_SECONDS:
                self._violated(job.id, "is offered for longer than an offer lasts")
            if job.queue is not None and job.state is not JobState.QUEUED:
                self._violated(job.id, f"is {job.state.value} and stands in a queue")
            if len(job.avoid) > MAX_REJECTIONS:
                self._violated(job.id, "was rejected too often")
        if not held.keys() <= scheduler.jobs.keys():
            raise Violation(f"slots are held for unknown jobs: {held.keys() - scheduler.jobs.keys()}")
        for name, story in self.stories.items():
            if story.running > 1:
                self._violated(name, "runs twice at once")

    def _check_drained(self) -> None:
        for wrapper in self.wrappers:
            story = self.stories[wrapper.job]
            if not story.ends and not story.wrapper_is_gone:
                self._violated(wrapper.job, "never came to an end")
        if self.scheduler.jobs or self.scheduler.waiting:
            self._violated(next(iter(self.scheduler.jobs), "?"), "is still there when all is over")
        if any(agent.running or agent.results for agent in self.agents):
            raise Violation(f"seed {self.seed}: an agent still holds {[(a.running, a.results) for a in self.agents]}")

    def _violated(self, job: str, what: str) -> None:
        raise Violation("\n".join([f"seed {self.seed}: job {job} {what}. Its story:", *self.stories[job].lines]))


def run_many(schedules: int, first_seed: int) -> Counter[tuple[str, str]]:
    """Runs schedules of consecutive seeds; returns how often each event met each state of its job."""
    covered: Counter[tuple[str, str]] = Counter()
    for seed in range(first_seed, first_seed + schedules):
        covered.update(World(seed).run().covered)
    return covered


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for (name, state), times in sorted(run_many(count, first).items()):
        print(f"{name:14} {state:9} {times}")
    print(f"{count} schedules from seed {first}: every invariant held")
