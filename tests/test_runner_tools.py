"""The runner: tools that look at processes (sanitizers, debuggers, ps, nested namespaces) work in a job as they do outside one,
and one user's job neither sees nor touches another's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runner_bench import ENV, PROGRAM, ROOT, ROOT_ONLY, Bench, bench, holder_of, namespaces_work, sh

from dwrap.agent.accounts import Identity
from dwrap.agent.events import Kind

__all__ = ["bench"]  # a fixture: importing it is its use

LEAKY = """#include <stdlib.h>
int main(int argc, char **argv) { void *volatile p = malloc(10 + argc); if (argc > 1) p = 0; free(p); return !argv; }
"""
SELF = Identity(os.geteuid(), os.getegid(), (), become=False)
USERS = [SELF, pytest.param(Identity(65534, 65534, (65534,), become=True), marks=ROOT_ONLY)]
TOOLS = {
    "strace": ("strace", "-f", "-o", "/dev/null", "sh", "-c", "true; exit 3"),
    "gdb": ("gdb", "-nx", "-batch", "-ex", "run", "-ex", "quit $_exitcode", "--args", "sh", "-c", "exit 3"),
    "ps": ("sh", "-c", 'test "$(ps -o pid= -p $$ | tr -d " ")" = $$ && exit 3'),
    "unshare": ("unshare", "-Urpf", "--mount-proc", "sh", "-c", 'test "$(readlink /proc/self)" -gt 1 && exit 3'),
    "bwrap": ("bwrap", "--unshare-all", "--bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "sh", "-c", "exit 3"),
    "timeout": ("timeout", "5", "sh", "-c", "exit 3"),
}


@pytest.mark.parametrize("identity", USERS, ids=["self", "nobody"])
def test_leaks_are_found_as_outside(bench: Bench, identity: Identity) -> None:
    program = bench.folder / "leaky"
    compile_it = ["cc", "-fsanitize=address", "-x", "c", "-", "-o", program]
    built = subprocess.run(compile_it, input=LEAKY, text=True, capture_output=True, check=False)
    if built.returncode:
        pytest.skip("this compiler has no address sanitizer")
    plain = subprocess.run([program, "leak"], capture_output=True, check=False, env=ENV)
    assert os.WEXITSTATUS(bench.run(str(program), identity=identity).status()) == 0
    job = bench.run(str(program), "leak", identity=identity)
    assert os.WEXITSTATUS(job.status()) == plain.returncode
    assert (b"detected memory leaks" in job.out[2]) == (b"detected memory leaks" in plain.stderr)


@pytest.mark.parametrize("identity", USERS, ids=["self", "nobody"])
@pytest.mark.parametrize("tool", TOOLS)
def test_tools_that_look_at_processes(bench: Bench, tool: str, identity: Identity) -> None:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    become = {"user": 65534, "group": 65534, "extra_groups": []} if identity.become else {}
    plain = subprocess.run(TOOLS[tool], capture_output=True, check=False, env=ENV, cwd="/", **become)  # type: ignore[call-overload]
    if plain.returncode != 3:
        pytest.skip(f"{tool} does not work here outside of a job either: {plain.stderr[-200:]!r}")
    job = bench.run(*TOOLS[tool], identity=identity, cwd="/")
    assert os.WEXITSTATUS(job.status()) == 3, job.out


def test_proc_is_the_jobs_own(bench: Bench) -> None:
    job = bench.run(*sh('test "$(readlink /proc/self/ns/pid)" = "$(readlink /proc/$$/ns/pid)" && tr "\\0" " " </proc/$$/cmdline; ls /proc'))
    assert job.out[1].startswith(b"/bin/sh -c ")
    shown = [name for name in job.out[1].split() if name.isdigit()]
    assert (len(shown) <= 4) == (bench.tree == "pidns"), "in a namespace it sees itself only"


@ROOT_ONLY
def test_another_users_job_is_out_of_reach(bench: Bench) -> None:
    victim = bench.start(sh('echo "$TMPDIR"; exec sleep 600'), identity=Identity(65534, 65534, (), become=True), cwd="/")
    victim.until(lambda: victim.out[1].endswith(b"\n"))
    folder = Path(victim.out[1].decode().strip())
    holder = holder_of(victim)
    command = int(Path(f"/proc/{holder}/task/{holder}/children").read_text())
    peeks = f"ls {folder} {folder.parent}; cat /proc/{command}/environ /proc/{holder}/maps"
    script = f"kill -9 {victim.runner.pid} {holder} {command}; {peeks}; exit 4"
    job = bench.run(*sh(script), identity=Identity(1, 1, (), become=True), cwd="/")
    assert (os.WEXITSTATUS(job.status()), job.out[1]) == (4, b"")
    victim.tell(Kind.SIGNAL, 0, 15)
    assert os.WTERMSIG(victim.status()) == 15


@ROOT_ONLY
def test_a_job_cannot_reach_what_holds_it(bench: Bench) -> None:
    script = "kill -9 $PPID; cat /proc/$PPID/maps /proc/$PPID/environ; ls /proc/$PPID/fd; exit 4"
    job = bench.run(*sh(script), identity=Identity(65534, 65534, (), become=True), cwd="/")
    assert (os.WEXITSTATUS(job.status()), job.out[1]) == (4, b"")


def test_nothing_is_inherited_but_the_streams(bench: Bench) -> None:
    assert bench.run(*sh("ls /proc/self/fd")).out[1].split() == [b"0", b"1", b"2", b"3"], "3 is ls's own"


HIDDEN = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from dwrap.agent.workplace import RUNS
from runner_bench import Bench, PROGRAM
folder = Path(sys.argv[2])
program = folder / "as-nobody"
program.write_text(f"#!/bin/sh\\nexec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all {PROGRAM}\\n")
program.chmod(0o755)
bench = Bench(folder, "subreaper", program)
runs = bench.work / RUNS
runs.mkdir()
for own in (bench.work, runs):
    os.chown(own, 65534, 65534)
hide = "import ctypes, time; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); print('up', flush=True); time.sleep(600)"
job = bench.run("/bin/sh", "-c", '(setsid python3 -c "$0" &); exit 5', hide, cwd="/")
assert (os.WEXITSTATUS(job.status()), bytes(job.out[1])) == (5, b"up\\n"), job.out
bench.close()
print("ended")
"""


@ROOT_ONLY
@pytest.mark.skipif(not os.access("/usr/bin/python3", os.X_OK), reason="needs a Python that every user can run")
def test_what_proc_hides_is_killed_too(tmp_path: Path) -> None:
    """A /proc of its own with hidepid, a runner without root, and a job that leaves a process which may not be traced."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o1000:
            parent.chmod(0o755)
    hidden = ["sh", "-ec", 'mount -o remount,hidepid=2 /proc; exec "$@"', "sh", sys.executable, "-c", HIDDEN]
    argv = ["unshare", "-pfm", "--kill-child", "--mount-proc", *hidden, str(ROOT / "tests"), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    if done.stderr.startswith(("unshare: ", "mount: ")):
        pytest.skip(f"no namespaces of its own here: {done.stderr}")
    assert done.stdout.endswith("ended\n"), done.stderr


AUTOFS = """mkfifo "$0/pipe"; exec 7<>"$0/pipe"; mkdir "$0/auto"
mount -i -t autofs -o fd=7,pgrp=$$,minproto=5,maxproto=5,indirect none "$0/auto"
"$1" --probe-tree; mount --make-shared "$0/auto"; "$1" --probe-tree; umount -l "$0/auto"
"""


@ROOT_ONLY
def test_an_automounter_that_namespaces_would_cut_off_is_not(tmp_path: Path) -> None:
    if subprocess.run([PROGRAM, "--probe-tree"], capture_output=True, check=True).stdout.startswith(b"subreaper"):
        pytest.skip("PID namespaces are not used here")
    argv = ["unshare", "-m", "--propagation", "private", "sh", "-ec", AUTOFS, str(tmp_path), str(PROGRAM)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        pytest.skip(f"no autofs here: {done.stderr}")
    assert done.stdout.startswith("subreaper -1.000\n")


MOUNTS = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from runner_bench import Bench
import subprocess
bench = Bench(Path(sys.argv[2]), "pidns")
place = str(bench.cwd / "place")
os.mkdir(place)
job = bench.start(("/bin/sh", "-c", 'echo up; read line; ls "$0"; mount -t tmpfs ours "$0"', place), stdin="stream")
job.until(lambda: job.out[1] == b"up\\n")
subprocess.run(["mount", "-t", "tmpfs", "late", place], check=True)
Path(place, "seen").touch()
job.feed(b"\\n")
job.finish()
assert job.out[1] == b"up\\nseen\\n", job.out
assert "ours" not in Path("/proc/self/mounts").read_text()
bench.close()
print("ended")
"""


@ROOT_ONLY
def test_mounts_of_the_host_are_seen_and_mounts_of_a_job_stay_in_it(tmp_path: Path) -> None:
    if not namespaces_work():
        pytest.skip("this kernel or container refuses PID namespaces")
    argv = ["unshare", "-m", "--propagation", "shared", sys.executable, "-c", MOUNTS, str(ROOT / "tests"), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.endswith("ended\n"), done.stderr
