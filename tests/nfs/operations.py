"""Thousands of mixed operations across the desktop and the agents of a lab, every look compared with the truth.

    python operations.py [--operations N] [--seed N] [--views auto|never] [--uid N]      inside the lab (lab.py)

In each round one host changes a few names, as a dwrap job or, on the desktop, as a user would; then every other host looks: agents
in a dwrap job, the desktop plainly. What the others had cached before is stirred first. The truth is the served disk itself
for inode, size, time and mode, and a model of what was done for contents and existence. Prints the seed, so that a failure can be
had again, and one line of figures at the end; exits 1 when a look was wrong.
Does not know how coherence is reached, only that it must be.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hosts import DISK, TREE, Farm, Hand, hand, hands, server

WORK = Path("operations")
DIRECTORIES = ("d0", "d1", "d1/sub", "d2", "d3/deep/er")
NAMES_PER_DIRECTORY = 12
SHOWN = 12
HASH_START, HASH_FACTOR, HASH_MASK = 14695981039346656037, 1099511628211, 2**64 - 1


def content_hash(content: str) -> str:
    """The hash that `hand` prints of a file with this content."""
    serial, size = content.split(":")
    line, value = f"{serial}.".encode(), HASH_START
    for i in range(int(size)):
        value = (value ^ line[i % len(line)]) * HASH_FACTOR & HASH_MASK
    return f"{value:016x}"


@dataclass
class Tally:
    """What was counted."""

    operations: int = 0
    looks: int = 0
    wrong: int = 0
    failed: int = 0
    remainder: int = 0
    by_act: collections.Counter[str] = field(default_factory=collections.Counter)
    by_way: collections.Counter[str] = field(default_factory=collections.Counter)
    stories: list[str] = field(default_factory=list)

    def note(self, story: str) -> None:
        if len(self.stories) < SHOWN:
            self.stories.append(story)


@dataclass
class Model:
    """What is known to be there: the content of each file, and which names are directories."""

    files: dict[str, str] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)


Act = tuple[str, str, str]
"""What `hand` is told: act, path, argument or nothing."""


class Proof:
    """One run: the farm, the hands, the model and the tally."""

    def __init__(self, farm: Farm, plain: dict[str, Hand], seed: int) -> None:
        self.farm, self.plain = farm, plain
        self.random = random.Random(seed)
        self.model, self.tally = Model(), Tally()
        self.hosts = [farm.desk, *farm.names]
        self.serial = 0
        self.last_act: dict[str, str] = {}

    # ---- rounds ----

    def start(self) -> None:
        """Lay the directories, from the desktop."""
        for directory in ("d0", "d1", "d1/sub", "d2", "d3", "d3/deep", "d3/deep/er"):
            self.plain[self.farm.desk]("mkdir", directory)
            self.model.directories.add(directory)

    def round(self) -> None:
        """One host acts, the others look."""
        writer = self.random.choice(self.hosts)
        acts = self.plan(self.random.choice((1, 1, 2, 5, 12, 20)), by_user=writer == self.farm.desk)
        paths = list(dict.fromkeys(path for act in acts for path in self.touched(act)))
        self.stir([host for host in self.hosts if host != writer], paths)
        before = {path: self.on_disk(path) for path in paths}
        self.act(writer, acts)
        truth = {path: self.truth(path) for path in paths}
        for host in self.random.sample(self.hosts, len(self.hosts)):
            if host != writer:
                self.compare(writer, host, paths, truth, before)

    def plan(self, count: int, by_user: bool) -> list[Act]:
        """So many acts on different names, each possible as things stand."""
        acts: list[Act] = []
        names = [f"{directory}/n{i}" for directory in DIRECTORIES for i in range(NAMES_PER_DIRECTORY)]
        if self.random.random() < 0.5:  # all in one directory, as compilers do
            names = [name for name in names if name.startswith(self.random.choice(DIRECTORIES) + "/n")]
        for path in self.random.sample(names, min(count, len(names))):
            act = self.random.choice(self.possible(path, by_user))
            acts.append((act, path, self.argument(act, path)))
        return acts

    def possible(self, path: str, by_user: bool) -> Sequence[str]:
        if path in self.model.links:
            return ("remove", "point")
        if path in self.model.files:
            common = ("rewrite", "patch", "patch", "same", "replace", "replace", "recreate", "save", "chmod", "touch", "remove", "remove")
            return (*common, "save", "save") if by_user else (*common, "map", "map")
        if path in self.model.directories:
            return ("swap", "swap", "rmdir")
        return ("create", "create", "create", "rewrite", "mkdir", "point") if by_user else ("create", "create", "map", "mkdir", "point")

    def argument(self, act: str, path: str) -> str:
        self.serial += 1
        if act in ("chmod",):
            return self.random.choice(("755", "700", "644"))
        if act == "point":
            return f"target-{self.serial}"
        if act in ("touch", "remove", "mkdir", "rmdir"):
            return ""
        if act == "same":
            return f"{self.serial}:{self.model.files[path].split(':')[1]}"
        old = int(self.model.files.get(path, "0:0").split(":")[1])
        return f"{self.serial}:{self.random.choice([size for size in (7, 100, 4096, 9001, 70_000) if size != old])}"

    def touched(self, act: Act) -> list[str]:
        """The names that an act changes, as far as they are looked at."""
        what, path, _ = act
        extra = {"replace": [f"{path}.old"], "save": [f"{path}~"], "swap": [f"{path}/in"], "rmdir": [f"{path}/in"], "mkdir": [f"{path}/in"]}
        return [path, *extra.get(what, [])]

    def stir(self, hosts: Sequence[str], paths: Sequence[str]) -> None:
        """Have others cache what is there now: names that are, names that are not, listings."""
        for host in hosts:
            if self.random.random() < 0.85:
                words = [word for path in paths for word in ("look", path)]
                listed = {str(Path(path).parent) for path in paths}
                self.plain[host](*words, *(word for directory in sorted(listed) for word in ("list", directory)))

    # ---- acting ----

    def act(self, writer: str, acts: Sequence[Act]) -> None:
        """Do it, as a job or plainly on the desktop, and bring the model up to date."""
        words = [word for what, path, argument in acts for word in (("patch" if what == "same" else what), path, argument) if word]
        answers = self.plain[writer](*words) if writer == self.farm.desk else self.do_job(writer, words)
        self.tally.operations += len(acts)
        for act, answer in zip(acts, answers, strict=True):
            self.last_act[act[1]] = act[0]
            if answer.startswith("ok "):
                self.effect(act)
            else:
                self.tally.failed += 1
                self.tally.wrong += 1
                self.tally.by_act[act[0]] += 1
                self.tally.note(f"{writer} could not {act[0]} {act[1]}: {answer}")
                self.resynchronise(act)

    def do_job(self, agent: str, words: Sequence[str]) -> list[str]:
        done = self.farm.job(agent, hand(), *words)
        if done.returncode not in (0, 1) or done.stderr:
            raise SystemExit(f"operations: the job on {agent} ended with {done.returncode}: {done.stderr}")
        return done.stdout.splitlines()

    def effect(self, act: Act) -> None:
        """What an act that succeeded did to the model."""
        what, path, argument = act
        model = self.model
        if what in ("create", "rewrite", "patch", "same", "replace", "recreate", "save", "map"):
            if what == "replace" and path in model.files:
                model.files[f"{path}.old"] = model.files[path]
            if what == "save":
                model.files[f"{path}~"] = model.files[path]
            model.files[path] = argument
        elif what == "remove":
            model.files.pop(path, None)
            model.links.pop(path, None)
        elif what == "point":
            model.links[path] = argument
        elif what in ("mkdir", "rmdir", "swap"):
            self.effect_on_directory(what, path, argument)

    def effect_on_directory(self, what: str, path: str, argument: str) -> None:
        self.model.files.pop(f"{path}/in", None)
        self.model.directories.add(path)
        if what == "rmdir":
            self.model.directories.remove(path)
        if what == "swap":
            self.model.files[f"{path}/in"] = argument

    def resynchronise(self, act: Act) -> None:
        """After an act that failed half-way: the model of its names is what the disk says."""
        for path in self.touched(act):
            place = DISK / WORK / path
            for known in (self.model.files, self.model.links):
                known.pop(path, None)
            self.model.directories.discard(path)
            if place.is_symlink():
                self.model.links[path] = str(place.readlink())
            elif place.is_dir():
                self.model.directories.add(path)
            elif place.exists():
                data = place.read_bytes()
                self.model.files[path] = f"{data.split(b'.')[0].decode() or 0}:{len(data)}"

    # ---- looking ----

    def on_disk(self, path: str) -> tuple[int, ...]:
        """Inode, size, times and mode on the served disk; nothing when it is not there."""
        try:
            seen = (DISK / WORK / path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_mode & 0o7777, seen.st_ctime_ns

    def truth(self, path: str) -> str:
        """The line that a look must give."""
        place = DISK / WORK / path
        if path in self.model.links:
            return f"link {path} {self.model.links[path]}"
        if path in self.model.directories:
            return f"directory {path} {place.stat().st_ino}"
        content = self.model.files.get(path)
        disk = self.on_disk(path)
        if content is None:
            return f"gone {path}" if not disk else f"the model lacks {path}"
        if not disk:
            return f"the disk lacks {path}"
        inode, size, mtime, mode, _ = disk
        if size != int(content.split(":")[1]):
            return f"the disk has {size} bytes of {path}"
        return f"file {path} {inode} {size} {mtime} {mode:o} {content_hash(content)} {inode}"

    def compare(self, writer: str, host: str, paths: Sequence[str], truth: dict[str, str], before: dict[str, tuple[int, ...]]) -> None:
        """Let a host look at names and at listings, and count what it had wrong."""
        parents = sorted({str(Path(path).parent) for path in paths if Path(path).name != "in"})
        words = [word for path in paths for word in ("look", path)] + [word for parent in parents for word in ("list", parent)]
        answers = self.plain[host](*words) if host == self.farm.desk else self.do_job(host, words)
        wanted = [truth[path] for path in paths] + [self.listing(parent) for parent in parents]
        self.tally.looks += len(wanted)
        for name, answer, want in zip([*paths, *parents], answers, wanted, strict=True):
            if answer == want:
                continue
            act = self.last_act.get(name.removesuffix("/in").removesuffix(".old").removesuffix("~"), "list")
            if act == "same" and before[name] == self.on_disk(name):
                self.tally.remainder += 1
                continue
            self.tally.wrong += 1
            self.tally.by_act[act] += 1
            self.tally.by_way[f"{writer}→{host}"] += 1
            self.tally.note(f"{act} by {writer}, seen on {host}:\n    saw  {answer}\n    truth {want}")

    def listing(self, directory: str) -> str:
        names = sorted(entry.name for entry in (DISK / WORK / directory).iterdir())
        return " ".join(["names", directory, *names])


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="operations.py")
    parser.add_argument("--operations", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after that many")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--views", choices=("auto", "never"), default="auto")
    parser.add_argument("--uid", type=int, default=0)
    chosen = parser.parse_args(arguments)
    print(f"operations: server {server()}, views {chosen.views}, seed {chosen.seed}", flush=True)
    work = TREE / WORK
    (DISK / WORK).mkdir(mode=0o777)
    (DISK / WORK).chmod(0o777)
    started = time.monotonic()
    with Farm(uid=chosen.uid, views=chosen.views == "auto", cwd=work) as farm, hands(work, chosen.uid) as plain:
        proof = Proof(farm, plain, chosen.seed)
        proof.start()
        while proof.tally.operations < chosen.operations and time.monotonic() - started < chosen.seconds:
            proof.round()
        jobs = farm.done()
        assert sum(jobs.values()) == farm.submitted, f"{farm.submitted} jobs were submitted, agents ran {jobs}"
    report(proof.tally, jobs, time.monotonic() - started)
    return 1 if proof.tally.wrong else 0


def report(tally: Tally, jobs: dict[str, int], seconds: float, say: Callable[[str], None] = print) -> None:
    """The stories of the first wrong looks, and the line of figures."""
    for story in tally.stories:
        say(story)
    where = ", ".join(f"{name} {count}" for name, count in sorted(jobs.items()))
    acts = ", ".join(f"{act} {count}" for act, count in tally.by_act.most_common())
    ways = ", ".join(f"{way} {count}" for way, count in sorted(tally.by_way.items()))
    say(f"operations={tally.operations} looks={tally.looks} wrong={tally.wrong} failed_acts={tally.failed} remainder={tally.remainder} "
        f"seconds={seconds:.0f} jobs: {where}" + (f"; wrong by act: {acts}; by way: {ways}" if acts else ""))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
