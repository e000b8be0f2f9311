"""Changes inside one tick of the server's clock, by the thousand, against coherence/view.c alone: no farm, no jobs.

    python collisions.py [--trials N] [--seed N]      inside the lab (lab.py)

A trial: a name is changed; another host looks at it at once; it is changed again at once, so that both changes may bear the same
time; the writer's entries are applied where it was looked at, and it is looked at again. On NFS v3 and ganesha a
host cannot tell such changes by asking. Prints how many looks were stale without the entries, how many had to be healed by
more than a question, and how many were wrong with them; exits 1 when any was. Prints its seed.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hosts import DISK, TREE, Hand, every_host, hands, server

WORK = Path("collisions")
SHOWN = 8
NAMES = 40
CHANGES = {
    "create": ("gone", ["create"]),
    "replace": ("file", ["replace"]),
    "save": ("file", ["save"]),
    "recreate": ("file", ["recreate"]),
    "remove": ("file", ["remove"]),
    "rewrite": ("file", ["rewrite"]),
    "patch": ("file", ["patch"]),
    "same size": ("file", ["same"]),
    "swap directory": ("directory", ["swap"]),
    "remove, create": ("file", ["remove", "create"]),
    "file to directory": ("file", ["remove", "mkdir"]),
}
"""What a second change does, and what has to be there before it."""


class Trials:
    """The writer's and the looker's hands, and what was counted."""

    def __init__(self, plain: dict[str, Hand], seed: int) -> None:
        self.plain = plain
        self.random = random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.stale: collections.Counter[str] = collections.Counter()
        self.stories: list[str] = []
        self.serial = 0

    def content(self, size: int) -> str:
        self.serial += 1
        return f"{self.serial}:{size}"

    def trial(self) -> None:
        """One collision."""
        desk, looker, other = every_host()[:3]
        writer, kind = self.random.choice((desk, other)), self.random.choice(list(CHANGES))
        before, acts = CHANGES[kind]
        name, path = f"n{self.serial}", f"d{self.random.randrange(6)}/n{self.serial}"
        directory = path.removesuffix(f"/{name}")
        first = {"gone": ("create", f"{directory}/z{name}"), "file": ("create", path), "directory": ("swap_in", path)}[before]
        write, look = self.plain[writer], self.plain[looker]
        if first[0] == "swap_in":
            write("mkdir", path, "create", f"{path}/in", self.content(50))
        else:
            write(first[0], first[1], self.content(100))
        touched = [path, *([f"{path}/in"] if before == "directory" else [])]
        looks = [word for one in touched for word in ("look", one)] + ["list", directory]
        look(*looks)
        failures = [answer for answer in write(*self.words(acts, path)) if answer.startswith("failed")]
        assert not failures, failures
        truth = self.truth(touched, directory)
        if self.random.random() < 0.5:
            was_stale = look(*looks) != truth
            self.counts["looked between"] += 1
            self.counts["stale without"] += was_stale
            self.stale[kind] += was_stale
        told = look("agree", self.entries(writer, [directory, *touched]))[0]
        self.counts["healed"] += int(told.split("healed=")[1].split()[0])
        self.counts["asked"] += int(told.split("synced=")[1].split()[0])
        self.counts["unseen"] += int(told.split("unseen=")[1].split()[0])
        self.judge(kind, writer, look(*looks), truth, told)
        write("rmdir" if (DISK / WORK / path).is_dir() else "remove", path) if (DISK / WORK / path).exists() else None

    def words(self, acts: Sequence[str], path: str) -> list[str]:
        told: list[str] = []
        for act in acts:
            size = 100 if act == "same" else self.random.choice((7, 5000, 70_000))
            argument = [] if act in ("remove", "mkdir") else [self.content(size)]
            told += ["patch" if act == "same" else act, path, *argument]
        return told

    def entries(self, writer: str, paths: Sequence[str]) -> str:
        """The manifest's piece as the writer's runner would write it: directories first."""
        answers = self.plain[writer](*(word for path in paths for word in ("entry", str(TREE / WORK / path))))
        told = sorted((answer.removeprefix("entry ") for answer in answers), key=lambda entry: entry[0] != "D")
        return "".join(f"{entry}|" for entry in told)

    def truth(self, paths: Sequence[str], directory: str) -> list[str]:
        """What the looker must see: as `hand` would see it on the served disk itself."""
        return self.plain["server"](*(word for path in paths for word in ("look", path)), "list", directory)

    def judge(self, kind: str, writer: str, seen: list[str], truth: list[str], told: str) -> None:
        self.counts["trials"] += 1
        if seen == truth:
            return
        if kind == "same size" and [line.split()[:6] for line in seen[:1]] == [line.split()[:6] for line in truth[:1]]:
            self.counts["remainder"] += 1  # inode, size and time are equal: nobody can know
            return
        self.counts["wrong"] += 1
        if len(self.stories) < SHOWN:
            pairs = [f"saw {a}\n    not {b}" for a, b in zip(seen, truth, strict=True) if a != b]
            self.stories.append(f"{kind} by {writer}: {told}\n    " + "\n    ".join(pairs))


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="collisions.py")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    chosen = parser.parse_args(arguments)
    print(f"collisions: server {server()}, seed {chosen.seed}", flush=True)
    (DISK / WORK).mkdir()
    for number in range(6):
        (DISK / WORK / f"d{number}").mkdir()
    started = time.monotonic()
    with hands(TREE / WORK) as plain:
        plain["server"] = Hand("", DISK / WORK)
        trials = Trials(plain, chosen.seed)
        for _ in range(chosen.trials):
            trials.trial()
    for story in trials.stories:
        print(story)
    counts, kinds = trials.counts, ", ".join(f"{kind} {count}" for kind, count in trials.stale.most_common())
    print(f"collisions={counts['trials']} wrong={counts['wrong']} unseen={counts['unseen']} remainder={counts['remainder']} "
          f"stale_without={counts['stale without']}/{counts['looked between']} healed={counts['healed']} asked={counts['asked']} "
          f"seconds={time.monotonic() - started:.0f}; stale by change: {kinds}")  # fmt: skip
    return 1 if counts["wrong"] or counts["unseen"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
