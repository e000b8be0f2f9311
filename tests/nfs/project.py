"""A real C++ project built over and over in the lab, its desktop's edits between the builds: nothing fails, nothing is stale.

    python project.py SOURCE [--rebuilds N] [--seed N] [--form wrapped|mixed|both]      inside the lab (lab.py)

SOURCE is double-conversion's (Debian's package). `wrapped`: its own CMake, every compilation, link and test through dwrap, from
clean each time, after edits of headers and sources; each object must hold the mark of the last edit. `mixed`: a
build.ninja of ours in which half of the compilations, the archives (with response files) and the generated headers run plainly
on the desktop; after each edit every object must have the bytes that a compilation on the server itself gives.
Jobs run as an ordinary user, over TCP between the hosts. Does not know how coherence is reached.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from hosts import DISK, TREE, USER, Farm, on, server, with_tree

WORK = Path("project")
JOBS = "-j6"
NO_WORK = "ninja: no work to do."
HEADERS = ("utils.h", "bignum.h", "ieee.h", "diy-fp.h", "strtod.h")


class Failed(Exception):
    """Something that must not happen did; the text says what."""


class Build:
    """What both forms share: a source on the tree, edits, builds, and the records of what ran where."""

    name = ""

    def __init__(self, farm: Farm, source: Path, seed: int) -> None:
        self.farm, self.random = farm, random.Random(seed)
        self.place = TREE / WORK / self.name
        self.disk = DISK / WORK / self.name
        self.marks = 0
        self.wrong = self.failures = 0
        self.places: collections.Counter[str] = collections.Counter()
        self.split_links = self.links = 0
        self.seen: set[str] = set()
        subprocess.run(["cp", "-r", str(source), str(self.disk)], check=True)
        subprocess.run(["chmod", "-R", "u+rwX,go+rX", str(self.disk)], check=True)
        subprocess.run(["chown", "-R", f"{USER}:{USER}", str(self.disk)], check=True)

    # ---- the desktop ----

    def desk(self, *command: str, cwd: Path | None = None) -> str:
        """Run a command on the desktop as its user does; its output. Raises Failed."""
        done = self.farm.plain(self.farm.desk, *command, cwd=cwd or self.place, environment=self.environment())
        if done.returncode:
            raise Failed(f"{shlex.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    def environment(self) -> dict[str, str]:
        return self.farm.environment("", DWRAP_BUILD="", CCACHE_DISABLE="1", XDG_STATE_HOME="/tmp/state")

    def edit(self, file: str, text: str) -> None:
        """Save a file as one editor or another does: in place, or beside a backup that keeps the old inode."""
        where, how = self.place / file, self.random.choice(("in place", "backup", "renamed over"))
        if not (self.disk / file).exists():
            how = "in place"
        script = {
            "in place": 'cat > "$1"',
            "backup": 'mv "$1" "$1~" && cat > "$1"',
            "renamed over": 'ln -f "$1" "$1.kept" && cat > "$1.new" && mv "$1.new" "$1"',
        }[how]
        argv = on(self.farm.desk, ["sh", "-c", script, "sh", str(where)], cwd=self.place, uid=USER)
        subprocess.run(argv, input=text, text=True, check=True)

    def mark(self, file: str) -> str:
        """Edit a file so that every object made of it holds a new text, which is returned."""
        self.marks += 1
        name = re.sub(r"\W", "_", file)
        text = re.sub(r"\n// mark\n.*", "", (self.disk / file).read_text(), flags=re.DOTALL)
        mark = f"mark {name} {self.marks}."
        line = f'static const char dwrap_{name}[] __attribute__((used)) = "{mark}{"+" * (self.marks % 7)}";'
        self.edit(file, f"{text}\n// mark\n#ifndef DWRAP_{name}\n#define DWRAP_{name}\n{line}\n#endif\n")
        return mark

    def ninja(self, *more: str) -> str:
        return self.desk("ninja", *more)

    # ---- what ran where ----

    def account(self) -> None:
        """Take the records of this build: where each command ran, and links on an agent that had not made all objects."""
        makers, linkers = collections.Counter[str](), []
        for job in self.farm.jobs():
            if job["job"] in self.seen:
                continue
            self.seen.add(job["job"])
            agent, outputs = str(job.get("agent")), job.get("outputs_count", 0)
            self.places[agent] += 1
            if job["command"] in ("c++", "g++") and outputs == 1:  # a compilation leaves an object and a depfile
                linkers.append(agent)
            elif outputs:
                makers[agent] += 1
        self.links += len(linkers)
        self.split_links += sum(1 for agent in linkers if any(other != agent for other in makers))

    def expect(self, condition: bool, story: str) -> None:
        if not condition:
            self.wrong += 1
            print(f"{self.name}: {story}", flush=True)

    def rebuild(self, number: int) -> None:
        raise NotImplementedError

    def run(self, rebuilds: int) -> None:
        """So many rebuilds, and a line of figures."""
        started = time.monotonic()
        for number in range(rebuilds):
            try:
                self.rebuild(number)
            except Failed as failure:
                self.failures += 1
                print(f"{self.name}: rebuild {number}: {failure}", flush=True)
            self.account()
        where = ", ".join(f"{agent} {count}" for agent, count in sorted(self.places.items()))
        print(f"{self.name}: rebuilds={rebuilds} failures={self.failures} wrong={self.wrong} seconds={time.monotonic() - started:.0f} "
              f"links={self.links} split_links={self.split_links} jobs: {where}", flush=True)  # fmt: skip

    def objects(self) -> Iterable[Path]:
        return sorted(self.disk.rglob("*.o"))


class Wrapped(Build):
    """The project's own build, all of it through dwrap."""

    name = "wrapped"

    def __init__(self, farm: Farm, source: Path, seed: int) -> None:
        super().__init__(farm, source, seed)
        launchers = [f"-DCMAKE_CXX_{kind}_LAUNCHER=dwrap" for kind in ("COMPILER", "LINKER")]
        options = ["-DBUILD_TESTING=ON", "-DCMAKE_TEST_LAUNCHER=dwrap", *launchers]
        self.desk("cmake", "-Wno-dev", "-G", "Ninja", "-S", ".", "-B", "build", *options)

    def rebuild(self, number: int) -> None:
        mark = self.mark(f"double-conversion/{self.random.choice(HEADERS[:2])}")
        self.ninja("-C", "build", "-t", "clean")
        self.ninja("-C", "build", JOBS)
        again = self.ninja("-C", "build")
        self.expect(NO_WORK in again, f"a second ninja found work: {again[-300:]}")
        self.desk("ctest", "--test-dir", "build", "-j6")
        self.held(mark)
        self.after_an_edit()

    def after_an_edit(self) -> None:
        """One header and one source, and only what depends on them is built again."""
        marks = [self.mark("double-conversion/strtod.cc"), self.mark("double-conversion/fixed-dtoa.h")]
        self.ninja("-C", "build", JOBS)
        again = self.ninja("-C", "build")
        self.expect(NO_WORK in again, f"a second ninja found work after an edit: {again[-300:]}")
        for mark in marks:
            self.held(mark)

    def held(self, mark: str) -> None:
        """Every object whose dependencies name the edited file holds its mark, and the program does."""
        file = mark.split()[1]
        listed = self.desk("ninja", "-C", "build", "-t", "deps")
        for block in listed.split("\n\n"):
            lines = block.strip().splitlines()
            if len(lines) > 1 and any(re.sub(r"\W", "_", line.strip()).endswith(file) for line in lines[1:]):
                target = lines[0].split(":")[0]
                self.expect(mark.encode() in (self.disk / "build" / target).read_bytes(), f"{target} was compiled from a stale {file}")
        program = self.disk / "build/test/cctest/cctest"
        self.expect(mark.encode() in program.read_bytes(), f"the program was linked from a stale {file}")


class Mixed(Build):
    """Half of the edges plainly on the desktop."""

    name = "mixed"
    flags = "-O0 -Igen -I. -include gen/config.h"

    def __init__(self, farm: Farm, source: Path, seed: int) -> None:
        super().__init__(farm, source, seed)
        self.edit_settings()
        (self.disk / "main.cc").write_text(
            '#include "double-conversion/double-conversion.h"\n#include <cstdio>\nint main() {\n  char buffer[64];\n'
            "  double_conversion::StringBuilder builder(buffer, 64);\n"
            "  double_conversion::DoubleToStringConverter::EcmaScriptConverter().ToShortest(CONFIG_VALUE, &builder);\n"
            '  std::printf("%s\\n", builder.Finalize());\n}\n'
        )
        (self.disk / "build.ninja").write_text(self.rules())
        self.desk("mkdir", "-p", "gen", "o")

    def sources(self) -> list[str]:
        return sorted(str(path.relative_to(self.disk)) for path in (self.disk / "double-conversion").glob("*.cc"))

    def edit_settings(self) -> None:
        self.marks += 1
        self.edit("settings", f"{self.marks}.5{'0' * (self.marks % 5)}\n")

    def rules(self) -> str:
        """The build.ninja: compilations alternate between dwrap and the desktop, the rest of a library's making is plain."""
        fresh = 'printf "#define CONFIG_VALUE %s\\n" $$(cat $in) > $out.new'
        generate = f"{fresh}; if [ -e $out ]; then ln -f $out $out.kept; fi; mv $out.new $out"
        compiler = f"g++ {self.flags} -MMD -MF $out.d -c $in -o $out"
        lines = [
            "rule generate", f"  command = {generate}",
            "rule plain", f"  command = {compiler}", "  depfile = $out.d", "  deps = gcc",
            "rule wrapped", f"  command = dwrap {compiler}", "  depfile = $out.d", "  deps = gcc",
            "rule archive", "  command = rm -f $out && ar crsD $out @$out.rsp", "  rspfile = $out.rsp", "  rspfile_content = $in",
            "rule link", "  command = dwrap g++ -o $out @$out.rsp", "  rspfile = $out.rsp", "  rspfile_content = $in",
            "rule test", "  command = dwrap ./program > $out",
            "build gen/config.h: generate settings",
        ]  # fmt: skip
        library = []
        for number, source in enumerate([*self.sources(), "main.cc"]):
            target = f"o/{Path(source).stem}.o"
            lines.append(f"build {target}: {'plain' if number % 2 else 'wrapped'} {source} || gen/config.h")
            library.append(target)
        lines += [f"build libdc.a: archive {' '.join(library[:-1])}", f"build program: link {library[-1]} libdc.a"]
        lines += ["build answer: test program", "default answer"]
        return "\n".join(lines) + "\n"

    def rebuild(self, number: int) -> None:
        edited = self.random.sample(["settings", "double-conversion/utils.h", "double-conversion/ieee.h", "double-conversion/bignum.cc"], 2)
        for file in edited:
            if file == "settings":
                self.edit_settings()
            else:
                self.mark(file)
        self.ninja(JOBS)
        again = self.ninja()
        self.expect(NO_WORK in again, f"a second ninja found work: {again[-300:]}")
        self.compare()

    def compare(self) -> None:
        """Every object against one that the server makes of the same tree, at the same path; and the program's answer."""
        reference = Path("/run/reference")
        reference.mkdir(exist_ok=True)
        commands = [f"cd {self.place}"]
        commands += [f"g++ {self.flags} -c {source} -o {reference}/{Path(source).stem}.o" for source in [*self.sources(), "main.cc"]]
        with_tree("\n".join(commands))
        for mine in sorted((self.disk / "o").glob("*.o")):
            self.expect(mine.read_bytes() == (reference / mine.name).read_bytes(), f"{mine.name} is not what the server compiles")
        wanted = f"{float((self.disk / 'settings').read_text()):g}"
        answer = (self.disk / "answer").read_text().strip()
        self.expect(answer == wanted, f"the program says {answer!r} where {wanted!r} is right")


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="project.py")
    parser.add_argument("source", type=Path)
    parser.add_argument("--rebuilds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--form", choices=("wrapped", "mixed", "both"), default="both")
    parser.add_argument("--views", choices=("auto", "never"), default="auto")
    chosen = parser.parse_args(arguments)
    print(f"project: server {server()}, views {chosen.views}, seed {chosen.seed}", flush=True)
    (DISK / WORK).mkdir()
    (DISK / WORK).chmod(0o777)
    wrong = 0
    for form in (Wrapped, Mixed):
        if chosen.form in (form.name, "both"):
            with Farm(uid=USER, slots=3, views=chosen.views == "auto", cwd=TREE / WORK) as farm:
                build = form(farm, chosen.source, chosen.seed)
                build.run(chosen.rebuilds)
                wrong += build.wrong + build.failures
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
