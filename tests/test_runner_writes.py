"""The runner: what it hears of a job's writes (every call of its table), and the manifest that it makes of them."""

from __future__ import annotations

import os
import platform
import re
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from runner_bench import ENV, ROOT, ROOT_ONLY, Bench, Job, bench, compiled, sh

from dwrap.agent.accounts import Identity
from dwrap.agent.events import Kind
from dwrap.protocol.messages import MAX_DATA_BYTES

__all__ = ["bench"]  # a fixture: importing it is its use

CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
HERE = -100  # AT_FDCWD
MODE = 0o644


class Entry(NamedTuple):
    """An entry of a manifest."""

    kind: str
    ino: int
    size: int
    mtime: int
    ctime: int
    path: str


class Row(NamedTuple):
    """How a test makes a call, and what must be told: kinds and names, or why the record is in doubt."""

    arguments: tuple[str | int, ...]
    told: str = ""
    doubt: str = ""


NEW = "D . F new"
TOLD = "F old"
CONTAINER = "a container may have written files"
XATTR = ("s:user.x", "s:1", 1, 0)
ROWS = {
    "open": Row(("s:new", CREATE, MODE), NEW),
    "openat": Row(("d:dir", "s:new", CREATE, MODE), "D dir F dir/new"),
    "openat2": Row(("d:dir", "s:new", f"h:{CREATE}", 24), "D dir F dir/new"),
    "creat": Row(("s:new", MODE), NEW),
    "rename": Row(("s:old", "s:new"), "D . G old F new"),
    "renameat": Row(("d:dir", "s:in", HERE, "s:new"), "D . D dir G dir/in F new"),
    "renameat2": Row(("d:dir", "s:in", HERE, "s:new", 0), "D . D dir G dir/in F new"),
    "link": Row(("s:old", "s:new"), "D . F old F new"),
    "linkat": Row((HERE, "s:old", "d:dir", "s:new", 0), "F old D dir F dir/new"),
    "symlink": Row(("s:old", "s:new"), NEW),
    "symlinkat": Row(("s:old", "d:dir", "s:new"), "D dir F dir/new"),
    "unlink": Row(("s:old",), "D . G old"),
    "unlinkat": Row(("d:dir", "s:in", 0), "D dir G dir/in"),
    "rmdir": Row(("s:empty",), "D . G empty"),
    "mkdir": Row(("s:new", 0o755), "D . D new"),
    "mkdirat": Row(("d:dir", "s:new", 0o755), "D dir D dir/new"),
    "mknod": Row(("s:new", 0o010644, 0), NEW),
    "mknodat": Row(("d:dir", "s:new", 0o010644, 0), "D dir F dir/new"),
    "bind": Row(("k:", "u:new", 110), NEW),
    "truncate": Row(("s:old", 1), TOLD),
    "truncate64": Row(("s:old", 1, 0), TOLD),
    "chmod": Row(("s:old", 0o600), TOLD),
    "fchmod": Row(("f:old", 0o600), TOLD),
    "fchmodat": Row((HERE, "s:old", 0o600), TOLD),
    "fchmodat2": Row((HERE, "s:old", 0o600, 0), TOLD),
    "chown": Row(("s:old", -1, -1), TOLD),
    "chown32": Row(("s:old", -1, -1), TOLD),
    "lchown": Row(("s:old", -1, -1), TOLD),
    "lchown32": Row(("s:old", -1, -1), TOLD),
    "fchown": Row(("f:old", -1, -1), TOLD),
    "fchown32": Row(("f:old", -1, -1), TOLD),
    "fchownat": Row((HERE, "s:old", -1, -1, 0), TOLD),
    "utime": Row(("s:old", 0), TOLD),
    "utimes": Row(("s:old", 0), TOLD),
    "futimesat": Row((HERE, "s:old", 0), TOLD),
    "utimensat": Row((HERE, "s:old", 0, 0), TOLD),
    "utimensat_time64": Row(("f:old", 0, 0, 0), TOLD),
    "setxattr": Row(("s:old", *XATTR), TOLD),
    "lsetxattr": Row(("s:old", *XATTR), TOLD),
    "fsetxattr": Row(("f:old", *XATTR), TOLD),
    "setxattrat": Row((HERE, "s:old", 0, "s:user.x", 0), TOLD),
    "removexattr": Row(("s:old", "s:user.x"), TOLD),
    "lremovexattr": Row(("s:old", "s:user.x"), TOLD),
    "fremovexattr": Row(("f:old", "s:user.x"), TOLD),
    "removexattrat": Row((HERE, "s:old", 0, "s:user.x"), TOLD),
    "file_setattr": Row((HERE, "s:old", 0, 0, 0), TOLD),
    "open_by_handle_at": Row((HERE, 0, 0), doubt="it opened a file by its number"),
    "execve": Row(("s:old", 0, 0)),
    "execveat": Row(("d:dir", "s:in", 0, 0, 0)),
    "mount": Row((0, 0, 0, 0, 0), doubt=CONTAINER),
    "move_mount": Row((-1, 0, -1, 0, 0), doubt=CONTAINER),
    "open_tree": Row((HERE, 0, 0), doubt=CONTAINER),
    "open_tree_attr": Row((HERE, 0, 0, 0, 0), doubt=CONTAINER),
    "fsmount": Row((-1, 0, 0), doubt=CONTAINER),
    "pivot_root": Row((0, 0), doubt=CONTAINER),
    "chroot": Row((0,), doubt=CONTAINER),
    "setns": Row((-1, 0), doubt=CONTAINER),
    "connect": Row(("k:", "u:docker.sock", 110), doubt=CONTAINER),
    "seccomp": Row((1, 8, 0), doubt="it installs a seccomp listener of its own"),
    "io_uring_setup": Row((1, 0)),
}
TABLE = {
    match[4]: {abi: int(number) for abi, number in zip(("64", "32", "aarch64"), match.groups()[:3], strict=True) if number != "NO"}
    for match in re.finditer(r"\{\{(\w+), (\w+), (\w+)\}, .*/\* (\w+)", (ROOT / "agent" / "calls.c").read_text())
}
ABIS = ("64", "32") if platform.machine() == "x86_64" else ("aarch64",)
CALLS = [(abi, name) for name, numbers in TABLE.items() for abi in ABIS if abi in numbers]


def one_call() -> Path:
    """The program that makes one call."""
    return compiled("one_call")


def entries(job: Job) -> list[Entry]:
    """The manifest of a job that has ended."""
    found = []
    for text in bytes(job.manifest).split(b"\0")[:-1]:
        kind, ino, size, mtime, ctime, path = os.fsdecode(text).split(" ", 5)
        found.append(Entry(kind, int(ino), int(size), int(mtime), int(ctime), path))
    return found


def told(bench: Bench, job: Job) -> set[str]:
    """The manifest as "KIND NAME" below the working directory. What it says of each name must be true."""
    for entry in entries(job):
        if entry.kind in "DF":
            st = os.lstat(entry.path)
            assert (entry.ino, entry.mtime, entry.ctime) == (st.st_ino, st.st_mtime_ns, st.st_ctime_ns), entry
            assert entry.kind == "D" or entry.size == st.st_size
        else:
            assert entry[1:5] == (0, 0, 0, 0)
            assert (entry.kind == "R") == os.path.lexists(entry.path)
    return {f"{entry.kind} {os.path.relpath(entry.path, bench.cwd)}" for entry in entries(job)}


def words(text: str) -> set[str]:
    """ "D . F new" as a set of entries."""
    each = text.split()
    return {f"{kind} {name}" for kind, name in zip(each[::2], each[1::2], strict=True)}


@pytest.fixture
def place(bench: Bench) -> Bench:
    """A shared tree with a few names in it."""
    bench.roots = (str(bench.folder),)
    for name in ("dir", "empty"):
        (bench.cwd / name).mkdir()
    for name in ("old", "dir/in"):
        (bench.cwd / name).write_text("before")
    return bench


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(ROWS)


@pytest.mark.parametrize(("abi", "name"), CALLS, ids=lambda value: str(value))
def test_every_call(place: Bench, abi: str, name: str) -> None:
    row = ROWS[name]
    job = place.run(str(one_call()), abi, str(TABLE[name][abi]), *map(str, row.arguments), views=True)
    end = job.finish()
    if abi == "32" and bytes(job.out[1]) in (b"", b"-38\n") and name not in ("io_uring_setup", "fchmodat2"):
        pytest.skip("this kernel runs no 32-bit programs")
    assert end.text("outputs_why") == row.doubt, job.out
    assert end.text("outputs") == ("approximate" if row.doubt else "exact")
    if name == "io_uring_setup":
        assert job.out[1] == b"-38\n"
    if not row.doubt:
        assert told(place, job) == words(row.told), job.out


def test_what_is_read_is_not_told(place: Bench) -> None:
    job = place.run(*sh("cat old dir/in; ls -lR; test -w old; : </dev/null >/dev/null"), views=True)
    assert job.finish().text("outputs") == "exact"
    assert not entries(job)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo x >old", "F old D ."),
        ("echo x >>old", "F old D ."),
        ("mkdir -p dir empty/a/b", "D . D dir D empty D empty/a D empty/a/b"),
        ("echo t >temporary; mv temporary old", "D . G temporary F old"),
        ("mktemp -p dir >/dev/null; rm dir/tmp.*", "D dir"),
        ("mkdir dir.new; echo x >dir.new/in; rm -r dir; mv dir.new dir", "D . D dir F dir/in"),
        ("mv dir moved", "D . G dir D moved F moved/in"),
        ("ln -s dir/in link; echo x >link", "D . F link F dir/in"),
        ("ln -s dir link; echo x >link/new", "D . F link D dir F dir/new"),
        ("ln -s dir link; echo x >link/new; rm link", "D . D dir F dir/new"),
        ("ln -s dir link; echo x >link/new; ln -sfn empty link; echo y >link/new", "D . F link D dir F dir/new D empty F empty/new"),
        ("ln -s old link; echo x >link; rm link", "D . F old"),
        ("ln -s $PWD $TMPDIR/t; echo x >$TMPDIR/t/new; rm $TMPDIR/t", "D . F new"),
        ("ln -s $PWD/old $TMPDIR/l; chmod 600 $TMPDIR/l; rm $TMPDIR/l", "F old"),
        ("exec 3<old; chmod 600 /proc/self/fd/3; echo x >/proc/self/cwd/dir/new", "F old D dir F dir/new"),
        ("mkdir a; echo x >a/../new; rmdir a", "D . F new"),
        ("cd dir; echo x >../empty/../new", "D . F new"),
        ("cp -p old ./dir//./new", "D dir F dir/new"),
        ("rm old; mkdir old", "D . D old"),
        ("cd empty; rmdir ../empty; echo x >new || :", "D . G empty"),
        ("mkfifo new; rm new; rmdir nothing || :", "D ."),
        ("touch -d 2001-01-01 old new; chmod 400 dir/in", "D . F old F new F dir/in"),
        ("chmod 0 old", "F old"),
        ("(echo x >new; setsid sh -c 'echo y >dir/late' & wait)", "D . F new D dir F dir/late"),
    ],
)
def test_what_scripts_do(place: Bench, script: str, expected: str) -> None:
    job = place.run(*sh(script), views=True)
    assert job.finish().text("outputs") == "exact"
    assert told(place, job) == words(expected)


def test_two_names_change_places(place: Bench) -> None:
    job = place.run(str(one_call()), ABIS[0], str(TABLE["renameat2"][ABIS[0]]), *map(str, (HERE, "s:old", "d:dir", "s:in", 2)), views=True)
    assert job.out[1] == b"0\n"
    assert told(place, job) == words("D . F old D dir F dir/in")


def test_a_descriptor_without_a_path(place: Bench) -> None:
    script = "import os; fd = os.open('old', os.O_RDONLY); os.utime(fd, ns=(1, 1)); os.chdir('dir'); os.fchown(fd, -1, -1)"
    job = place.run(sys.executable, "-c", script, views=True)
    assert told(place, job) == {"F old"}
    assert entries(job)[0].mtime == 1


def test_an_unnamed_file_that_gets_a_name(place: Bench) -> None:
    script = (
        "import os; fd = os.open('dir', os.O_TMPFILE | os.O_RDWR); os.write(fd, b'data');"
        "os.link(f'/proc/self/fd/{fd}', 'new', src_dir_fd=0, follow_symlinks=True)"
    )
    job = place.run(sys.executable, "-c", script, views=True)
    assert job.finish().number("status") == 0, job.out
    assert told(place, job) == words("D . F new")


def test_directories_come_first_and_those_above_before_those_below(place: Bench) -> None:
    job = place.run(*sh("mkdir -p a/b/c a.b; for d in a/b/c a.b a a/b; do echo x >$d/f; echo y >$d/g; done"), views=True)
    found = [f"{entry.kind} {os.path.relpath(entry.path, place.cwd)}" for entry in entries(job)]
    folders = [word for word in found if word[0] == "D"]
    assert found[: len(folders)] == folders
    assert set(folders) == words("D . D a D a/b D a/b/c D a.b")
    for above, below in (("D .", "D a"), ("D a", "D a/b"), ("D a/b", "D a/b/c"), ("D .", "D a.b")):
        assert folders.index(above) < folders.index(below)
    homes = [os.path.dirname(word[2:]) for word in found[len(folders) :]]
    assert len(homes) == 8
    assert all(homes[i] == homes[i + 1] for i in range(0, 8, 2)), "files of one directory come in rows"


def test_a_manifest_of_many_pieces(place: Bench) -> None:
    job = place.run(*sh("mkdir many; cd many; seq 3000 | xargs touch"), views=True)
    assert len(job.manifest) > 3 * MAX_DATA_BYTES
    assert {f"F many/{i}" for i in range(1, 3001)} < told(place, job)
    assert job.finish().number("outputs_count") == 3000


def test_more_names_than_are_kept(place: Bench) -> None:
    script = "import os\nfor i in range(66000):\n  try: os.rmdir(f'n{i}')\n  except OSError: pass"
    job = place.start((sys.executable, "-c", script), views=True)
    end = job.finish(120)
    assert end.text("outputs_why") == "it wrote more files than the agent keeps a record of"
    assert end.number("status") == 0


def test_outside_of_the_roots_nothing_is_told_but_counted(place: Bench) -> None:
    place.roots = (str(place.cwd),)
    outside = place.folder / "outside"
    script = f"echo x >{outside}; echo y >{outside}2; rm {outside}2; mkdir {outside}3; echo z >$TMPDIR/t; echo >/dev/null; echo n >new"
    job = place.run(*sh(script), views=True)
    assert told(place, job) == words(NEW)
    end = job.finish()
    assert (end.number("escaped"), end.text("escaped_path")) == (1, str(outside))
    assert place.run(*sh("echo n >new"), views=True).finish().get("escaped") is None


def test_a_root_that_is_a_link_keeps_its_name(place: Bench) -> None:
    link = place.folder / "link"
    link.symlink_to(place.cwd)
    place.roots = (str(link),)
    job = place.run(*sh("echo x >new; cd dir; echo y >in"), views=True, cwd=link)
    assert {entry.path for entry in entries(job)} == {f"{link}{name}" for name in ("", "/new", "/dir", "/dir/in")}


DEPENDENCIES = r"""printf 'a.o b.o: old \\\n dir/in ./dir/other \\\n odd\\ name/x.h $(it) a$$b/y.h /usr/include/stdio.h\n\ndir/in:\n' >"""


@pytest.mark.parametrize("name", ["a.d", "a.Po", "a.Plo", "a.Tpo", "a.o.dep", "a.txt"])
def test_dependency_files_tell_what_was_read(place: Bench, name: str) -> None:
    for folder in ("odd name", "a$b"):
        (place.cwd / folder).mkdir()
    job = place.run(*sh(DEPENDENCIES + name), views=True)
    read = {path for kind, *_, path in entries(job) if kind == "R"}
    expected = {str(place.cwd / folder) for folder in ("", "dir", "odd name", "a$b")}
    assert read == (set() if name == "a.txt" else {path.rstrip("/") for path in expected})


def test_a_failed_command_is_told_too(place: Bench) -> None:
    job = place.run(*sh("echo x >new; exit 3"), views=True)
    assert os.WEXITSTATUS(job.status()) == 3
    assert told(place, job) == words(NEW)


def test_a_command_that_cannot_start_tells_nothing(place: Bench) -> None:
    job = place.run("no-such-command", views=True)
    assert job.finish().text("error") == "not_found"
    assert not entries(job)


def test_a_killed_command_is_told_too(place: Bench) -> None:
    job = place.start(sh("echo x >new; echo up; exec sleep 600"), views=True)
    job.until(lambda: job.out[1] == b"up\n")
    job.tell(Kind.KILL)
    job.finish()
    assert told(place, job) == words(NEW)


@ROOT_ONLY
def test_written_as_the_submitter(place: Bench) -> None:
    (place.cwd / "dir").chmod(0o777)
    os.chown(place.cwd / "old", 1, 1)
    (place.cwd / "old").chmod(0o600)
    nobody = Identity(65534, 65534, (), become=True)
    job = place.run(*sh("echo x >dir/new; chmod 0 dir/new; : >old"), identity=nobody, views=True)
    assert job.finish().text("outputs") == "exact"
    assert {"D dir", "F dir/new"} <= told(place, job)


@ROOT_ONLY
def test_set_user_id_programs_gain_nothing_and_hide_nothing(place: Bench) -> None:
    shell = place.cwd / "shell"
    shell.write_bytes(Path("/bin/sh").resolve().read_bytes())
    shell.chmod(0o4755)
    (place.cwd / "dir").chmod(0o777)
    nobody = Identity(65534, 65534, (), become=True)
    job = place.run("./shell", "-p", "-c", "id -u; echo x >dir/new", identity=nobody, views=True)
    assert job.out[1] == b"65534\n", (job.out, job.finish().text("reason"))
    assert told(place, job) == words("D dir F dir/new")


STORM = """
import os, signal, threading, time
hits = 0
def count(*_):
    global hits
    hits += 1
signal.signal(signal.SIGALRM, count)
signal.signal(signal.SIGCHLD, count)
for number in (signal.SIGALRM, signal.SIGCHLD):
    signal.siginterrupt(number, False)
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
end = time.monotonic() + 1.0
made = 0
while time.monotonic() < end:
    with open(f"f{made}", "xb") as file:
        file.write(b"x")
    os.rename(f"f{made}", f"g{made}")
    made += 1
    if made % 50 == 0:
        os.posix_spawn("/bin/true", ["true"], {})
signal.setitimer(signal.ITIMER_REAL, 0)
assert hits > 100, hits
print(made)
"""


def test_signals_do_not_break_what_is_heard(place: Bench) -> None:
    job = place.run(sys.executable, "-c", STORM, views=True)
    assert job.finish().number("status") == 0, job.out
    assert {f"F g{i}" for i in range(int(job.out[1]))} <= told(place, job)


THREADS = """
import os, subprocess, threading
def work(n):
    for i in range(100):
        with open(f"dir/{n}-{i}", "w") as file:
            file.write("x")
    subprocess.run(["sh", "-c", f"echo x >dir/{n}-child"], check=True)
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_threads_and_their_children(place: Bench) -> None:
    job = place.run(sys.executable, "-c", THREADS, views=True)
    assert job.finish().number("status") == 0, job.out
    assert {f"F dir/{n}-{i}" for n in range(8) for i in (*range(100), "child")} <= told(place, job)


LISTEN = """
import ctypes, os, struct, sys
class Program(ctypes.Structure):
    _fields_ = [("size", ctypes.c_ushort), ("code", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
if len(sys.argv) > 1:
    open(sys.argv[1], "w").close()
allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
program = Program(1, ctypes.cast(allow, ctypes.c_void_p))
libc.prctl(38, 1, 0, 0, 0)
number = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
fd = libc.syscall(number, 1, 8, ctypes.byref(program))
print(fd if fd < 0 else "listens", ctypes.get_errno())
open("new", "w").close()
"""


def test_a_job_that_listens_itself_is_run_without_our_ears(place: Bench) -> None:
    job = place.run(sys.executable, "-c", LISTEN, views=True)
    end = job.finish()
    assert job.out[1] == b"listens 0\n"
    assert (end.text("outputs"), end.text("outputs_why")) == ("approximate", "it installs a seccomp listener of its own")
    assert words(NEW) <= told(place, job)


def test_a_job_that_listens_too_late_is_refused(place: Bench) -> None:
    job = place.run(sys.executable, "-c", LISTEN, "first", views=True)
    end = job.finish()
    assert job.out[1] == b"-1 16\n"
    assert (end.text("outputs"), end.text("outputs_why")) == ("exact", "it asked for a seccomp listener of its own, and was refused one")
    assert told(place, job) == words("D . F first F new")


def test_where_listeners_are_refused_time_stamps_do(place: Bench) -> None:
    """The bench's program starts under a filter that refuses seccomp(), as a container's may."""
    wrapped = place.folder / "refused"
    script = "import ctypes, os, struct, sys\n" + REFUSE.format(number=TABLE["seccomp"][ABIS[0]])
    wrapped.write_text(f"#!{sys.executable}\n{script}\nos.execv({str(place.program)!r}, sys.argv)\n")
    wrapped.chmod(0o755)
    place.program = wrapped
    (place.folder / "named").mkdir()
    script = f"echo x >new; mkdir -p sub; echo y >sub/deep; rm old; echo z >{place.folder}/named/o"
    job = place.run(*sh(script), views=True, paths=[str(place.folder / "named")])
    end = job.finish()
    assert end.text("outputs") == "approximate"
    assert end.text("outputs_why") == "this kernel, or what this agent runs in, refuses seccomp listeners"
    assert words("D . F new D sub F sub/deep D ../named F ../named/o") <= told(place, job)


REFUSE = """
class Program(ctypes.Structure):
    _fields_ = [("size", ctypes.c_ushort), ("code", ctypes.c_void_p)]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, {number}), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
program = Program(len(code), ctypes.cast(text, ctypes.c_void_p))
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, ctypes.byref(program)) == 0
"""


def test_memory_that_may_not_be_read(place: Bench) -> None:
    """Root reads everything; another agent may not look into a process that is not dumpable."""
    hide = "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); open('new', 'w').close()"
    end = place.run(sys.executable, "-c", hide, views=True).finish()
    assert end.text("outputs") == ("exact" if os.geteuid() == 0 else "approximate")


def test_signals_pass(place: Bench) -> None:
    job = place.start(sh("trap 'echo x >new; exit 5' USR1; echo ready; while :; do sleep 0.01; done"), views=True)
    job.until(lambda: job.out[1] == b"ready\n")
    job.tell(Kind.SIGNAL, 0, signal.SIGUSR1)
    assert os.WEXITSTATUS(job.status()) == 5
    assert told(place, job) == words(NEW)


def test_a_socket_is_a_name_too(place: Bench) -> None:
    script = "import socket; socket.socket(socket.AF_UNIX).bind('new'); socket.socket(socket.AF_UNIX).bind('\\0abstract')"
    job = place.run(sys.executable, "-c", script, views=True)
    assert told(place, job) == words(NEW)


def test_tools_with_a_tracer_of_their_own(place: Bench) -> None:
    job = place.run("strace", "-f", "-o", "/dev/null", "sh", "-c", "echo x >new; exit 3", views=True)
    if job.finish().get("error"):
        pytest.skip("strace is not installed")
    assert os.WEXITSTATUS(job.status()) == 3
    assert told(place, job) == words(NEW)


def test_hearing_costs_nothing_while_nothing_is_written(place: Bench) -> None:
    place.run("sleep", "1", views=True)
    assert place.runners
    place.jobs[0].runner.close()
    while place.runners.pids:
        place.runners.reap()
    assert place.runners.ended_cpu_seconds < 0.3


def test_without_views_nothing_is_told_of_it(place: Bench) -> None:
    job = place.run(*sh("echo x >new"), env=ENV)
    assert job.finish().text("outputs") == "coherent"
    assert not job.manifest
