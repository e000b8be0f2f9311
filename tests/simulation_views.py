"""The simulation with a shared tree: every host looks at its own cache, and no job may see what is older than it has a right to.

One more model on top of simulation.py. A `Tree` holds the truth, with the server's clock; each agent's `Cache` believes what it
once saw, for ever, unless it is told: that is the worst that a network file system does. Jobs read and write names; agents do
with an assignment what session and runner do (the session's own marks.py is used), lose their connection, die, lose manifests,
and the distributor starts anew with an empty journal while the agents live on.

The invariant: a job never sees a name as it was before the newest change that a job made which had settled before this one was
submitted, nor as it was before its own submitter's edits. Knows nothing of how the journal finds out what to tell.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from simulation_plain import Agent, Chances, Link, World, Wrapper

from dwrap.agent.marks import Marks
from dwrap.distributor import events as e
from dwrap.distributor.bursts import PAUSE_SECONDS
from dwrap.distributor.journal import Journal
from dwrap.distributor.scheduler import Scheduler
from dwrap.protocol import manifest
from dwrap.protocol.manifest import Entry

PLACES = ("/srv/a", "/srv/b")
NAMES = tuple(f"{place}/{folder}/{name}" for place in PLACES for folder in ("x", "y") for name in ("1", "2", "3"))
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


class Host(Agent):
    """An agent with a network file system."""

    world: ViewsWorld

    def __init__(self, world: ViewsWorld, name: str) -> None:
        self.cache = Cache(world.tree)
        self.marks = Marks(max_bytes=world.random.choice((200, 4_096, 1 << 20)))
        self.wrote: dict[tuple[str, int], dict[str, bool]] = {}
        self.manifests: dict[tuple[str, int], list[Entry]] = {}
        self.recent: list[Entry] = []
        self.epoch = world.epoch
        super().__init__(world, name)

    def spec(self) -> e.AgentSpec:
        spec = super().spec()
        spec.views = True
        return spec

    def hear(self, link: Link, action: e.Action) -> None:
        super().hear(link, action)
        if isinstance(action, e.Welcome) and link is self.link and self.token == action.token and self.epoch != self.world.epoch:
            self.epoch = self.world.epoch
            self.marks.restart()
            link.up(e.ManifestTold(link.peer, "", 0, self.recent, []))

    def assigned(self, link: Link, action: e.Assign) -> None:
        self.marks.take(action.journal, action.behind)
        super().assigned(link, action)

    def starts(self, key: tuple[str, int], action: e.Assign) -> None:
        world, cwd = self.world, action.spec.cwd
        due = self.marks.due(action.uid, cwd.encode(), action.burst)
        self.cache.apply(manifest.parse(due.journal))
        if due.refresh:
            self.cache.refresh(cwd)
        if not world.chance(0.1):  # else two start at once, and the other's word is late
            self.marks.applied(due)
        world.reads(self, key[0], cwd)
        self.wrote[key] = {}
        for _ in range(world.random.randint(0, 3)):
            world.after(world.random.expovariate(1.0), lambda life=self.life: self.writes(key, life))  # type: ignore[misc]

    def writes(self, key: tuple[str, int], life: int) -> None:
        if life != self.life or key not in self.running:
            return
        world, name = self.world, self.world.random.choice(NAMES)
        came_or_went = world.tree.change(name, is_there=world.random.random() < 0.7)
        self.cache.names[name] = world.tree.names[name]
        self.wrote[key][name] = self.wrote[key].get(name, False) or came_or_went
        world.changed_by[key[0]][name] = world.tree.clock

    def ends(self, key: tuple[str, int], outcome: e.Outcome) -> None:
        was_lost = outcome.error and self.world.chance(0.5)  # its runner died, and nobody says what it wrote
        self.manifests[key] = [] if was_lost else self.world.tree.entries(self.wrote[key])
        outcome.facts = {} if was_lost else {"outputs": "exact"}
        self.recent += self.manifests[key]

    def send_result(self, key: tuple[str, int]) -> None:
        if self.token and self.link is not None and self.link.is_open:  # the session waits for WELCOME, and sends its HEARTBEAT first
            self.link.up(e.ManifestTold(self.link.peer, *key, self.manifests[key], []))
            super().send_result(key)

    def crash(self) -> None:
        """The daemon dies; the host and its cache live on."""
        super().crash()
        self.marks, self.recent, self.epoch = Marks(), [], self.world.epoch


class Desk(Wrapper):
    """A submitter whose user edits files; its wrapper says so, or does not know when that was in a pause of the build."""

    world: ViewsWorld

    def __init__(self, world: ViewsWorld, job: str) -> None:
        self.edited: dict[str, bool] = {}
        super().__init__(world, job)
        self.link.up(e.ManifestTold(self.link.peer, job, 0, world.tree.entries(self.edited), []))

    def spec(self) -> e.JobSpec:
        spec = super().spec()
        spec.cwd, spec.views = self.world.random.choice(PLACES), True
        self.edits(is_told=not self.world.has_paused(self.uid, spec.build) or self.world.random.random() < 0.5)
        return spec

    def edits(self, is_told: bool) -> None:
        world = self.world
        relied = world.may_rely_on[self.job] = dict(world.settled)
        for _ in range(world.random.choice((0, 0, 1, 2))):
            name = world.random.choice(NAMES)
            came_or_went = world.tree.change(name, is_there=True)
            relied[name] = world.tree.clock
            if is_told:
                self.edited[name] = self.edited.get(name, False) or came_or_went


class ViewsWorld(World):
    """One schedule."""

    agent_kind = Host
    wrapper_kind = Desk

    def __init__(self, seed: int, jobs: int = 40, agents: int = 3, chances: Chances | None = None) -> None:
        self.tree = Tree()
        self.epoch = 1
        self.settled: dict[str, int] = {}  # the newest change of each name by a job that has settled
        self.changed_by: dict[str, dict[str, int]] = defaultdict(dict)
        self.may_rely_on: dict[str, dict[str, int]] = {}
        self.looks = 0
        super().__init__(seed, jobs, agents, chances)

    def new_scheduler(self) -> Scheduler:
        scheduler = super().new_scheduler()
        if self.random.random() < 0.3:
            scheduler.views.journal = Journal(max_directories=2)
        return scheduler

    def reads(self, host: Host, job: str, cwd: str) -> None:
        """A job looks at some names. Those near it have to be as new as it may rely on."""
        for name in self.random.sample(NAMES, 6):
            since, _ = host.cache.look(name)
            if name.startswith(cwd + "/"):
                self.looks += 1
                if since < self.may_rely_on[job].get(name, 0):
                    self._violated(job, f"sees {name} on {host.name} as it was at {since}, not {self.may_rely_on[job][name]}")

    def has_paused(self, uid: int, build: str) -> bool:
        """Whether a job that is submitted now begins a burst."""
        bursts, key = self.scheduler.views._bursts, (uid, build)
        return key not in bursts._live and (key not in bursts._idle or self.now - bursts._idle[key][1] >= PAUSE_SECONDS)

    def restart(self) -> None:
        """The distributor dies and comes back with nothing but a new epoch."""
        self.epoch += 1
        self.scheduler = self.new_scheduler()
        self._backlog.clear()
        for link in list(self.links.values()):
            link.close()

    def _fault(self) -> None:
        if self.random.random() < 0.2:
            return self.restart()
        super()._fault()

    def _check_end(self, action: Any) -> None:
        super()._check_end(action)
        for name, clock in self.changed_by[action.job].items():
            self.settled[name] = max(self.settled.get(name, 0), clock)
