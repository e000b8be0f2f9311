"""The simulation with a shared tree: every host looks at its own cache, and no job may see what is older than it has a right to.

One more model on top of simulation.py. A `Tree` holds the truth, with the server's clock; each agent's `Cache` believes what it
once saw, for ever, unless it is told: that is the worst that a network file system does. Jobs read and write names; all that happens
to agents and the distributor in simulation.py happens here too.

The invariant: a job never sees a name as it was before the newest change that a job made which had settled before this one was
submitted, nor as it was before its own submitter's edits. Knows nothing of how the journal finds out what to tell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from simulation import World
from simulation_peers import UID, Host, Link, Runner, Wrapper

from dwrap.agent import events as a
from dwrap.distributor import events as e
from dwrap.distributor.bursts import PAUSE_SECONDS
from dwrap.distributor.journal import Journal
from dwrap.distributor.scheduler import Scheduler
from dwrap.protocol import manifest
from dwrap.protocol.manifest import Entry

PLACES = ("/srv/a", "/srv/b")
BURST_SECONDS = 12.0
NAMES = tuple(f"{place}/{folder}/{name}" for place in PLACES for folder in "xy" for name in "123")
Stand = tuple[int, bool]
"""Since when (the server's clock) a name is as it is, and whether it is there."""


def folder_of(name: str) -> str:
    return name.rpartition("/")[0]


class Tree:
    """The truth."""

    def __init__(self) -> None:
        self.clock = 0
        self.names: dict[str, Stand] = dict.fromkeys(NAMES, (0, False))
        self.folders: dict[str, int] = defaultdict(int)

    def change(self, name: str, is_there: bool) -> bool:
        """Makes, rewrites in place, or removes. Returns whether the name came or went."""
        self.clock += 1
        came_or_went = self.names[name][1] != is_there
        self.names[name] = self.clock, is_there
        if came_or_went:
            self.folders[folder_of(name)] = self.clock
        return came_or_went

    def entries(self, written: dict[str, bool]) -> list[Entry]:
        """A manifest of names, each with whether it came or went: directories first, then files."""
        told = [
            manifest.make(b"D", folder.encode(), 1, 0, self.folders[folder], self.folders[folder])
            for folder in sorted({folder_of(name) for name, came_or_went in written.items() if came_or_went})
        ]
        for name in sorted(written):
            since, is_there = self.names[name]
            told.append(manifest.make(b"F", name.encode(), 1, 0, since, since) if is_there else manifest.make(b"G", name.encode()))
        return told


class Cache:
    """What one host believes."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.names: dict[str, Stand] = {}
        self.folders: dict[str, int] = {}

    def look(self, name: str) -> Stand:
        return self.names.setdefault(name, self.tree.names[name])

    def ask(self, folder: str) -> None:
        """The folder has changed: nothing is believed of what is in it any more."""
        self.folders[folder] = self.tree.folders[folder]
        self.names = {name: stand for name, stand in self.names.items() if folder_of(name) != folder}

    def refresh(self, place: str) -> None:
        for folder in {folder_of(name) for name in self.names if name.startswith(place + "/")}:
            self.ask(folder)

    def apply(self, entries: list[Entry]) -> None:
        """As view.c does: what is believed and newer than the entry stays."""
        for entry in entries:
            path = entry.path.decode()
            if entry.kind == b"D":
                if self.folders.get(path, 0) < entry.ctime:
                    self.ask(path)
            elif path in self.names:
                since, is_there = self.names[path]
                if entry.kind == b"G" or (not is_there and self.folders.get(folder_of(path), 0) <= entry.ctime):
                    self.ask(folder_of(path))
                elif since < entry.ctime:
                    del self.names[path]


class Reader(Runner):
    """An attempt that looks at names as its host's cache has them, and writes some."""

    host: Server

    def __init__(self, host: Server, start: a.Start) -> None:
        self.wrote: dict[str, bool] = {}
        world, cwd, cache = host.world, start.fields.text("cwd"), host.cache
        cache.apply(manifest.parse(start.journal))
        if start.refresh:
            cache.refresh(cwd)
        world.reads(host, start.key[0], cwd)
        super().__init__(host, start)
        if not world.chance(0.1):  # else two start at once, and the other's word is late
            self._later(0.0, lambda: self._say(a.Kind.APPLIED, 0, 0, b""))
        for _ in range(world.random.randint(0, 3)):
            self._later(world.random.expovariate(1.0), self._write)

    def _write(self) -> None:
        if self.is_dying:
            return
        world, name = self.host.world, self.host.world.random.choice(NAMES)
        is_there = world.random.random() < 0.7
        if not is_there and not world.tree.names[name][1]:
            return  # there is nothing to remove
        came_or_went = world.tree.change(name, is_there)
        self.host.cache.names[name] = world.tree.names[name]
        self.wrote[name] = self.wrote.get(name, False) or came_or_went
        world.changed_by[self.key[0]][name] = world.tree.clock

    def written(self) -> bytes:
        told = manifest.join(self.host.world.tree.entries(self.wrote))
        if told:
            self._say(a.Kind.MANIFEST, 0, 0, told)
        return told


class Server(Host):
    """A machine with a network file system. Its cache outlives its agent, not a loss of power."""

    world: ViewsWorld
    runner_kind = Reader  # type: ignore[assignment]
    mounted = a.Mounted(views=True)

    def __init__(self, world: ViewsWorld, name: str) -> None:
        self.cache = Cache(world.tree)
        super().__init__(world, name)

    def lose_power(self) -> None:
        self.cache = Cache(self.world.tree)
        super().lose_power()

    def faults(self) -> list[Callable[[], None]]:
        """More often than in simulation.py what a job wrote is told by nobody."""
        return [*super().faults(), *[self.lose_power] * 4]


class Desk(Wrapper):
    """A submitter whose user edits files; its wrapper says so, or does not know when that was in a pause of the build."""

    world: ViewsWorld

    def __init__(self, world: ViewsWorld, name: str) -> None:
        self.cwd = world.random.choice(PLACES)
        self.edited: dict[str, bool] = {}
        super().__init__(world, name)

    def spec(self) -> e.JobSpec:
        return e.JobSpec(self.job, self.cwd, "cc", "build", views=True)

    def submitted(self, link: Link) -> None:
        world = self.world
        is_told = not world.has_paused() or world.random.random() < 0.1
        relied = world.may_rely_on[self.job] = dict(world.settled)
        for _ in range(world.random.choice((0, 0, 1, 2))):
            name = world.random.choice([name for name in NAMES if name.startswith(self.cwd)])
            came_or_went = world.tree.change(name, is_there=True)
            relied[name] = world.tree.clock
            if is_told:
                self.edited[name] = self.edited.get(name, False) or came_or_went

    def _offered(self, link: Link, offer: e.Offer) -> None:
        """Each GO has it before it: the connection that brought the last one may have been torn in between."""
        event = e.ManifestTold(link.peer, self.job, 0, self.world.tree.entries(self.edited), [])
        link.up(lambda: event)
        super()._offered(link, offer)


class ViewsWorld(World):
    """One schedule."""

    host_kind = Server  # type: ignore[assignment]
    wrapper_kind = Desk  # type: ignore[assignment]

    def __init__(self, seed: int) -> None:
        self.tree = Tree()
        self.settled: dict[str, int] = {}  # the newest change of each name by a job that has settled
        self.changed_by: dict[str, dict[str, int]] = defaultdict(dict)
        self.may_rely_on: dict[str, dict[str, int]] = {}
        self.looks = 0
        self.is_bursty = seed % 2 == 0
        self.jobs_end = 6 * BURST_SECONDS if self.is_bursty else 60.0
        self.faults_end = self.jobs_end + 8.0
        super().__init__(seed, jobs=40, faults=12)
        if self.is_bursty:
            self.at(self.jobs_end / 2, self.kill)  # one that knew of some bursts, and one that sees others

    def new_scheduler(self) -> Scheduler:
        scheduler = super().new_scheduler()
        if self.random.random() < 0.3:
            scheduler.views.journal = Journal(max_directories=2)
        return scheduler

    def begins(self) -> float:
        """In bursts with pauses between them, or at any time."""
        if not self.is_bursty:
            return super().begins()
        return self.random.randrange(int(self.jobs_end / BURST_SECONDS)) * BURST_SECONDS + 2 * self.random.random()

    def _begin(self, name: str) -> None:
        """Quick ones: between bursts there are pauses."""
        super()._begin(name)
        if not self.is_bursty:
            return
        plan = self.stories[name].plan
        plan.steps = [(seconds / 5, what, value) for seconds, what, value in plan.steps]

    def reads(self, host: Server, job: str, cwd: str) -> None:
        """A job looks at some names, or all. Those near it have to be as new as it may rely on."""
        for name in self.random.sample(NAMES, self.random.choice((4, len(NAMES)))):
            since, _ = host.cache.look(name)
            if name.startswith(cwd + "/"):
                self.looks += 1
                if since < self.may_rely_on[job].get(name, 0):
                    self.violated(job, f"sees {name} on {host.name} as it was at {since}, not {self.may_rely_on[job][name]}")

    def has_paused(self) -> bool:
        """Whether a job that is submitted now begins a burst."""
        bursts, key = self.scheduler.views._bursts, (UID, "build")
        return key not in bursts._live and (key not in bursts._idle or self.now - bursts._idle[key][1] >= PAUSE_SECONDS)

    def settled_there(self, job: str) -> None:
        for name, clock in self.changed_by[job].items():
            self.settled[name] = max(self.settled.get(name, 0), clock)
