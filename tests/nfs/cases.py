"""Single cases that a mixture of operations would meet too seldom, on real NFS, each with its own proof that it was met.

    python cases.py CASE...      inside the lab (lab.py); --list says which there are, and what lab each needs

Each case is a function that raises AssertionError. Prints a line for each; exits 1 when one failed.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from hosts import DISK, ROOT, TREE, USER, Farm, Hand, compiled, every_host, hand, hands, server, with_tree

INFRASTRUCTURE = 125


def place(name: str) -> Path:
    """A fresh directory on the tree, writable for all; the path is the disk's."""
    directory = DISK / name
    directory.mkdir()
    directory.chmod(0o777)
    return directory


def record(farm: Farm) -> dict[str, Any]:
    """What is known of the job that ended last."""
    return farm.jobs()[-1]


def succeed(farm: Farm, agent: str, *command: str, **environment: str) -> str:
    """A job that must end with 0; its output."""
    done = farm.job(agent, *command, cwd=None, **environment)
    told = f"{done.stdout}{done.stderr}{record(farm)}" if done.returncode else ""
    assert done.returncode == 0, f"{command} on {agent} ended with {done.returncode}: {told}"
    return done.stdout


# ---- linkers ----


def linkers() -> None:
    """lld and mold store through mmap after closing; so does `hand map`. The bytes are right on every other host at once."""
    os.environ["MIMALLOC_SHOW_ERRORS"] = "0"  # mold's allocator complains of this kernel's address space
    disk = place("linkers")
    with Farm(cwd=TREE / "linkers") as farm, hands(TREE / "linkers") as plain:
        for linker in ("lld", "mold"):
            program = f"with-{linker}"
            for number in range(6):
                size = 1000 * (number + 1)
                (disk / "part.c").write_text(f"const char filler[{size}] = {{{number + 1}}};\nint value(void) {{ return filler[0]; }}\n")
                (disk / "main.c").write_text("int value(void);\nint main(void) { return value(); }\n")
                for host in every_host():
                    plain[host]("look", program)
                succeed(farm, "a1", "gcc", "-c", "main.c", "part.c")
                succeed(farm, "a2", "gcc", f"-fuse-ld={linker}", "-o", program, "main.o", "part.o")
                reference = f"/run/{program}"
                with_tree(f"cd {TREE}/linkers && gcc -fuse-ld={linker} -o {reference} main.o part.o")
                right = sha256(Path(reference).read_bytes()).hexdigest()
                assert sha256((disk / program).read_bytes()).hexdigest() == right, f"{linker}: the server has other bytes"
                assert farm.plain("desk", "sha256sum", program).stdout.split()[0] == right, f"{linker}: the desktop sees other bytes"
                assert succeed(farm, "a1", "sha256sum", program).split()[0] == right, f"{linker}: another agent sees other bytes"
                assert farm.job("a1", f"./{program}").returncode == number + 1
        for number in range(6):
            succeed(farm, "a1", hand(), "map", "mapped", f"{number + 1}:900000")
            assert plain["desk"]("look", "mapped") == succeed(farm, "a2", hand(), "look", "mapped").splitlines()
            assert len(set((disk / "mapped").read_bytes())) <= 2, "what was stored after the close has not arrived"


# ---- failures of the view ----


def reruns() -> None:
    """A compilation that fails for a header which this agent still believes to be missing is run again; a genuine failure is not."""
    disk = place("reruns")
    (disk / "deep").mkdir()
    (disk / "deep").chmod(0o777)
    reran = 0
    with Farm(uid=USER, cwd=TREE / "reruns") as farm, hands(TREE / "reruns", USER) as plain:
        for number in range(8):
            header = f"deep/header{number}.h"
            plain["desk"]("create", f"source{number}.c", "1:0")
            (disk / f"source{number}.c").write_text(f'#include "{header}"\n')
            succeed(farm, "a1", "true")
            assert plain["a1"]("look", header) == [f"gone {header}"]
            plain["desk"]("create", header, "1:0")
            succeed(farm, "a1", "gcc", "-c", f"source{number}.c")
            reran += int(record(farm).get("reran", 0))
        (disk / "wrong.c").write_text('#include "deep/nowhere.h"\n')
        done = farm.job("a1", "gcc", "-c", "wrong.c")
        assert done.returncode == 1
        assert "nowhere.h" in done.stderr
        assert not record(farm).get("reran"), "a genuine failure was run again"
    print(f"    {reran} of 8 were run again, the others saw the header at once", flush=True)
    met = reran or server() != "knfsd-4.2"  # others may ask again by themselves: then nothing fails in the first place
    assert met, "no compilation had to be run again: the case was not met"


def listeners() -> None:
    """A job that installs a seccomp listener of its own works, and its record says that its outputs were found another way."""
    place("listeners")
    with Farm(cwd=TREE / "listeners") as farm, hands(TREE / "listeners") as plain:
        program = compiled("listener")
        plain["desk"]("look", "heard")
        plain["a2"]("look", "heard")
        assert succeed(farm, "a1", program, "heard") == "1 call was answered\n"
        assert record(farm)["outputs"] == "approximate", record(farm)
        assert plain["desk"]("look", "heard")[0].startswith("file heard ")
        assert succeed(farm, "a2", hand(), "look", "heard").startswith("file heard ")


def full_disk() -> None:
    """What does not fit the server's disk makes the job fail, not succeed. Needs --disk 64M."""
    disk = place("full")
    with Farm(cwd=TREE / "full") as farm:
        succeed(farm, "a1", hand(), "map", "fits", "1:100000")
        room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        assert room < 1 << 30, "the disk of this lab is too large: give --disk 64M"
        with (disk / "ballast").open("wb") as ballast:
            ballast.write(bytes(room - 400_000))
        for act in ("map", "create"):
            done = farm.job("a1", hand(), act, f"too-large-{act}", "1:1000000")
            assert done.returncode != 0, f"{act}: a job whose output was lost succeeded"
            if act == "map":
                assert done.returncode == INFRASTRUCTURE, (done.returncode, done.stdout, done.stderr)
                assert "too-large-map" in done.stderr
        (disk / "ballast").unlink()
        succeed(farm, "a1", hand(), "map", "fits-again", "1:1000000")


def squash() -> None:
    """With root squashed agents that are root still look, write back and heal as the user, and all that is made is his. Needs --squash."""
    disk = place("squash")
    os.chown(disk, USER, USER)
    disk.chmod(0o700)
    assert Hand("a1", TREE)("list", str(TREE / "squash"))[0].endswith("!13"), "root may look: this lab does not squash"
    with Farm(uid=ROOT, submitter=USER, cwd=TREE / "squash") as farm, hands(TREE / "squash", USER) as plain:
        for number in range(20):
            name, writer, other = f"n{number % 5}", *(("a1", "a2") if number % 2 else ("a2", "a1"))
            for host in every_host():
                plain[host]("look", name, "list", ".")
            act = "create" if number < 5 else ("map", "rewrite", "replace")[number % 3]
            succeed(farm, writer, hand(), act, name, f"{number + 1}:5000")
            seen = plain["desk"]("look", name, "list", ".")
            assert seen == succeed(farm, other, hand(), "look", name, "list", ".").splitlines()
            assert f" {(disk / name).stat().st_mtime_ns} " in seen[0]
            assert record(farm)["outputs"] == "exact", record(farm)
        script = "mkdir -p made/below && cp /bin/true made/below/program && ln -s program made/below/link && touch made/new"
        succeed(farm, "a1", "sh", "-c", script)
        made = [disk / "made", *(disk / "made").rglob("*"), *(disk / f"n{number}" for number in range(5))]
        assert len(made) == 10
        owners = {str(path.relative_to(disk)): (path.lstat().st_uid, path.lstat().st_gid) for path in made}
        print(f"squash: {len(owners)} names that jobs made belong to uid {USER}, gid {USER}: {set(owners.values())}")
        assert set(owners.values()) == {(USER, USER)}, owners


# ---- ccache ----


def ccache() -> None:
    """Both layouts of a shared ccache: one agent's results are the other's hits, and an edited header is no hit."""
    for layout in ("shared", "remote"):
        disk = place(f"ccache-{layout}")
        cwd = TREE / f"ccache-{layout}"
        settings = {"CCACHE_DIR": str(cwd / "cache"), "CCACHE_UMASK": "002"}
        if layout == "remote":
            settings = {"CCACHE_DIR": "/tmp/ccache", "CCACHE_REMOTE_STORAGE": f"file://{cwd}/cache|umask=002|update-mtime=true"}
        with Farm(uid=USER, cwd=cwd) as farm, hands(cwd, USER) as plain:
            plain["desk"]("create", "value.h", "1:0")
            (disk / "value.h").write_text("#define VALUE 0\n")
            (disk / "one.c").write_text('#include "value.h"\nint value(void) { return VALUE; }\n')
            for number in range(6):
                first, second = ("a1", "a2") if number % 2 else ("a2", "a1")
                farm.plain("desk", "sh", "-c", f'echo "#define VALUE {number}" > value.h')
                with_tree(f"cd {cwd} && gcc -c one.c -o /run/one.o")
                for agent in (first, second):
                    plain["desk"]("remove", "one.o")
                    succeed(farm, agent, "ccache", "gcc", "-c", "one.c", "-o", "one.o", **settings)
                    assert (disk / "one.o").read_bytes() == Path("/run/one.o").read_bytes(), f"{layout}: a wrong object on {agent}"
            hits = 0
            for host in ("a1", "a2")[: 1 if layout == "shared" else 2]:
                told = farm.plain(host, "env", *pairs(settings), "ccache", "--print-stats").stdout
                counts = dict(line.split("\t") for line in told.splitlines())
                hits += int(counts["direct_cache_hit"]) + int(counts["preprocessed_cache_hit"])
        print(f"    {layout}: {hits} hits", flush=True)
        assert hits >= 5, f"{layout}: one agent does not find what the other made"


def pairs(settings: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


Case = Callable[[], None]


def run_cases(names: Sequence[str], cases: Sequence[Case]) -> int:
    """The command line of a file of cases."""
    known = {case.__name__: case for case in cases}
    if not names or list(names) == ["--list"]:
        print("\n".join(f"{name}: {case.__doc__}" for name, case in known.items()))
        return 0
    failed = 0
    for name in names:
        began = time.monotonic()
        try:
            known[name]()
            print(f"case {name} on {server()}: ok, {time.monotonic() - began:.0f} s", flush=True)
        except Exception:  # the other cases are still of interest
            failed += 1
            print(f"case {name} on {server()}: FAILED\n{traceback.format_exc(limit=-3)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_cases(sys.argv[1:], (linkers, reruns, listeners, ccache, full_disk, squash)))
