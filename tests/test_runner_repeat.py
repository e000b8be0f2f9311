"""The runner: may an attempt be run again? What it tells of that before the call that makes it true goes on, and what waits for it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from runner_bench import ROOT_ONLY, Bench, Job, bench, processes_with, sh
from test_runner_writes import ABIS, LISTEN, REFUSE, TABLE, one_call

from dwrap.agent.accounts import Identity
from dwrap.agent.events import Kind

__all__ = ["bench"]  # a fixture: importing it is its use

NAMES = 256
ABI = {"x86_64": "64", "aarch64": "aarch64"}[os.uname().machine]


@pytest.fixture
def place(bench: Bench) -> Bench:
    """A shared tree with a few names in it; `tool` can be run."""
    bench.roots = (str(bench.folder),)
    (bench.cwd / "dir").mkdir()
    for name in ("old", "dir/in"):
        (bench.cwd / name).write_text("before")
    (bench.cwd / "tool").write_text("#!/bin/sh\nexit 0\n")
    (bench.cwd / "tool").chmod(0o755)
    (bench.cwd / "way").symlink_to("dir")
    os.mkfifo(bench.cwd / "fifo")
    return bench


def made(bench: Bench, job: Job) -> str:
    """The names that it told, as seen from its directory."""
    return " ".join(os.path.relpath(value, bench.cwd) for key, value in job.facts if key == "path")


def beyond(job: Job) -> str:
    """Why it cannot be run again."""
    assert [key for key, _ in job.facts[:-1]] == ["path"] * (len(job.facts) - 1), "nothing follows"
    return next((value for key, value in job.facts if key == "beyond"), "")


def check(bench: Bench, job: Job, names: str, why: str) -> None:
    assert (made(bench, job), beyond(job).replace(f"{bench.cwd}/", "")) == (names, why)
    end = job.finish()
    assert (end.get("repeat") == b"1") == (why == "")
    assert own(bench, job) == [name for name in names.split() if why or is_kept(bench.cwd / name)]


def is_kept(path: Path) -> bool:
    """Is it still where it was made? At the end it is known what an attempt has removed itself."""
    return os.path.lexists(path) and os.path.realpath(path.parent) == str(path.parent)


def own(bench: Bench, job: Job) -> list[str]:
    """What its result says that it made."""
    return [os.path.relpath(os.fsdecode(path), bench.cwd) for path in job.finish().all("made")]


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("cat old dir/in >/dev/null; ls -lR; test -w old; kill -0 $$", ""),
        ("echo x >$TMPDIR/t; mv $TMPDIR/t $TMPDIR/u; rm $TMPDIR/u", ""),
        ("echo x >way/new; mkdir way/sub; echo y >way/../newer; mv way/sub way/moved", "dir/new dir/sub newer dir/moved"),
        (
            "mkdir -p a/b; ln -s a/b link; echo x >link/x; mv link/x link/y; mkdir link/c; : >a/b/c/d; mv link/c link/e",
            "a a/b link a/b/x a/b/y a/b/c a/b/c/d a/b/e a/b/e/d",
        ),
        ("ln -s $TMPDIR t; echo x >t/new; rm t/new; mkdir t/sub", "t"),
        ("echo x >new", "new"),
        ("echo x >new; echo y >>new; echo z >new; chmod 600 new; touch new; mv new newer; rm newer; echo a >new", "new newer"),
        ("rm -f nothing; mv nothing new || :; rmdir nothing || :; chmod 1 nothing || :", ""),
        ("rm -f new; : >new", "new"),
        ("mkdir -p dir sub/deep; mkdir sub old || :; ln -s x old || :; mkfifo fifo || :", "sub sub/deep"),
        ("ln -s old new; mkfifo pipe; ln -s nothing none; rm none", "new pipe none"),
        ("echo x >new; ln new hard; echo y >hard", "new hard"),
        ("echo x >new; ln -s new link; echo y >link", "new link"),
        ("ln -s /dev/null link; echo y >link", "link"),
        ("mkdir a; echo x >a/x; mkdir a/b; mv a/x a/b/x; mv a c", "a a/x a/b a/b/x c c/x c/b c/b/x"),
        ("mkdir dir/a; cd dir/a; echo x >../../new; cd ../..; rmdir dir/a", "dir/a new"),
        ("set -C; : >old || :", ""),
        ("exec 3<>fifo; echo x >&3", ""),
        ("./missing || ./old || ./dir || :", ""),
        ("cp tool new; python3 --version; sh ./tool", "new"),
        ("echo x >/dev/null; echo x >/dev/stderr; echo x >/dev/fd/1; echo x >/proc/self/fd/2; echo x >/dev/shm/$$; rm /dev/shm/$$", ""),
        ("exec 3<>$TMPDIR/t; rm $TMPDIR/t; echo x >/proc/self/fd/3", ""),
        ("ln -s $PWD/old $TMPDIR/l; touch -h $TMPDIR/l; ln -sfn $PWD/old $TMPDIR/l; rm $TMPDIR/l", ""),
        ("ln -s old new; touch -h new", "new"),
        ("ln -s $PWD $TMPDIR/t; echo x >$TMPDIR/t/new; ln -s $PWD/newer $TMPDIR/l; echo x >$TMPDIR/l", "new newer"),
        ("mkdir new; echo x >new/x; rmdir new || :; rmdir new || :; echo y >new/y; rm new/x new/y; rmdir new", "new new/x new/y"),
        ("echo x >new; mv new /dev/shm/$$; mv /dev/shm/$$ newer; echo y >new; echo z >newer; rm new", "new newer"),
        ("mkdir new/sub || :; mkdir new; mkdir new/sub; rmdir new/sub", "new/sub new"),
        ("mkdir new/sub || :", "new/sub"),
        ("mkdir new; cd new; rmdir ../new; echo x >newer || :", "new"),
    ],
)
def test_what_may_be_run_again(place: Bench, script: str, names: str, views: bool) -> None:
    job = place.run(*sh(script + "\n:"), views=views)
    check(place, job, names, "")
    assert job.asked == (names != "")


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize(
    ("script", "names", "why"),
    [
        ("echo x >old", "", "it changed old"),
        ("echo x >>old", "", "it changed old"),
        ("exec 3<>old; echo x >new", "", "it changed old"),
        ("echo x >new; truncate -s 1 old; echo y >newer", "new", "it changed old"),
        ("rm -f old", "", "it changed old"),
        ("mv old new", "", "it changed old"),
        ("mv dir new", "", "it changed dir"),
        ("rm -r dir", "", "it changed dir/in"),
        ("echo x >new; mv new old", "new", "it replaced old"),
        ("chmod 600 old", "", "it changed old"),
        ("touch old", "", "it changed old"),
        ("ln old new", "", "it changed old"),
        ("ln -s old new; echo x >new", "new", "it changed old"),
        ("ln -s old new; chmod 600 new", "new", "it changed old"),
        ("ln -s nothing new; echo x >new", "new", "it made what the link new led to"),
        ("mkdir $TMPDIR/d; mv $TMPDIR/d new", "", "it moved a whole directory to new"),
        ("./tool", "", "it ran tool, a program of the tree"),
        ("dir/../tool; echo x >new", "", "it ran tool, a program of the tree"),
        ("/usr/..$PWD/tool; echo x >new", "", "it ran tool, a program of the tree"),
        ("PATH=$PWD:$PATH tool", "", "it ran tool, a program of the tree"),
        ("mkdir way/sub; rm way/in", "dir/sub", "it changed dir/in"),
        ("echo x >way/in", "", "it changed dir/in"),
        ("cp tool new; ./new", "new", "it ran new, a program of the tree"),
        ("exec 7<tool; exec /proc/self/fd/7", "", "it ran tool, a program of the tree"),
    ],
)
def test_what_may_not(place: Bench, script: str, names: str, why: str, views: bool) -> None:
    check(place, place.run(*sh(script + "\n:"), views=views), names, why)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("ln -s $PWD $TMPDIR/t; echo x >$TMPDIR/t/old", "it changed old"),
        ("ln -s $PWD/old $TMPDIR/l; echo x >$TMPDIR/l", "it changed old"),
        ("ln -s $PWD/old $TMPDIR/l; ln -s $TMPDIR/l $TMPDIR/m; truncate -s 1 $TMPDIR/m", "it changed old"),
        ("ln -s $PWD/dir $TMPDIR/l; touch -h $TMPDIR/l/", "it changed dir"),
        ("ln -s $PWD/way $TMPDIR/l; rm $TMPDIR/l/in", "it changed dir/in"),
        ("ln -s $PWD/old ../l; echo x >../l", "it changed old"),
        ("ln -s $PWD/old ../l; chmod 600 ../l", "it changed old"),
        ("ln -s $PWD/tool ../l; ../l", "it ran tool, a program of the tree"),
        ("ln -s $PWD /dev/shm/$$; echo x >/dev/shm/$$/old; rm /dev/shm/$$", "it changed old"),
        ("exec 3<old; echo x >/proc/self/fd/3", "it changed old"),
        ("exec 3<old; echo x >/dev/fd/3", "it changed old"),
        ("echo x <old >/dev/stdin", "it changed old"),
        ("echo x >/proc/self/cwd/old", "it changed old"),
        ("echo x >/proc/self/root$PWD/old", "it changed old"),
        ("cd dir; echo x >/proc/self/cwd/../old", "it changed old"),
        ("ln -s /proc/self/cwd $TMPDIR/c; echo x >$TMPDIR/c/old", "it changed old"),
        ("rm /proc/thread-self/cwd/tool", "it changed tool"),
        ("/proc/self/cwd/tool", "it ran tool, a program of the tree"),
        ("mkdir ../d; cd ../d; rmdir ../d; echo x >../cwd/old", "it used a name that the agent cannot read"),
    ],
)
def test_what_leads_into_the_tree_may_not(place: Bench, script: str, why: str, views: bool) -> None:
    """It is written as something private, or as something outside of the roots."""
    place.roots = (str(place.cwd),)
    check(place, place.run(*sh(script + "\n:"), views=views), "", why)


def test_links_of_the_tree_that_lead_elsewhere_for_each_process(place: Bench) -> None:
    (place.cwd / "here").symlink_to("/proc/self/cwd")
    (place.cwd / "this").symlink_to("/proc/self/cwd/old")
    check(place, place.run(*sh("echo x >here/new")), "new", "")
    check(place, place.run(*sh("echo x >here/old")), "", "it changed old")
    check(place, place.run(*sh("echo x >this")), "", "it changed old")


def test_a_private_directory_whose_path_has_a_link(place: Bench) -> None:
    (place.folder / "link").symlink_to(place.work)
    place.work, work = place.folder / "link", place.work
    place.roots = (str(place.folder),)
    check(place, place.run(*sh("echo x >$TMPDIR/t; echo y >$TMPDIR/t; rm $TMPDIR/t"), views=True), "", "")
    place.work = work


DEEP = """
import os
def down():
    for i in range(22):
        name = f"{i:0200}"
        if not os.path.isdir(name): os.mkdir(name)
        os.chdir(name)
down()
"""


def test_names_that_are_too_long_to_be_read(place: Bench) -> None:
    """Deeper than a path can tell."""
    deep = place.folder / "deep"
    deep.mkdir()
    script = f"{DEEP}open('old', 'w').close(); os.chdir('{place.cwd}')"
    assert place.run("python3", "-c", script, cwd=deep).finish().number("status") == 0
    job = place.run("python3", "-c", f"{DEEP}os.unlink('old')", cwd=deep, views=True)
    assert beyond(job) == "it used a name that the agent cannot read"
    assert job.finish().text("outputs") == "approximate"


def test_what_fails_does_nothing(place: Bench) -> None:
    """No descriptor, no name, one that is too long, one of a pipe: these are no names that cannot be read."""
    script = """
import os
for call in (lambda: os.fchmod(99, 0), lambda: os.mkdir("new", dir_fd=99), lambda: os.mkdir("x" * 5000), lambda: os.fchmod(1, 0o600)):
    try: call()
    except OSError: pass
"""
    check(place, place.run("python3", "-c", script), "", "")


def test_a_program_that_has_no_name(place: Bench) -> None:
    make = "import os; fd = os.memfd_create('x', 0); os.write(fd, open('/bin/true', 'rb').read())"
    check(place, place.run("python3", "-c", f"{make}; os.execve(fd, ['x'], {{}})"), "", "it ran a program that has no name")
    check(place, place.run("python3", "-c", f"{make}; os.execv(f'/proc/self/fd/{{fd}}', ['x'])"), "", "it ran a program that has no name")
    check(place, place.run("python3", "-c", f"{make}; os.fchmod(fd, 0o600)"), "", "")


def test_two_names_change_places(place: Bench) -> None:
    change = f"{one_call()} {ABIS[0]} {TABLE['renameat2'][ABIS[0]]} -100 s:new -100 s:newer 2"
    job = place.run(*sh(f"echo x >new; echo y >newer; {change}; echo z >>new; echo z >>newer; rm new"))
    check(place, job, "new newer", "")
    job = place.run(*sh(f"rm newer; echo x >new; {change}"))
    assert beyond(job) == f"it changed {place.cwd}/newer"


IN_ROOT = """
import ctypes, os, struct
how = struct.pack("QQQ", os.O_WRONLY | os.O_TRUNC, 0, 0x10)
print(ctypes.CDLL(None).syscall(437, os.open(".", os.O_RDONLY), b"/old", how, 24))
"""


def test_a_root_of_its_own(place: Bench) -> None:
    job = place.run("python3", "-c", IN_ROOT, views=True)
    check(place, job, "", "it opened a name below a root of its own")
    assert job.finish().text("outputs") == "approximate"


def test_a_program_that_the_command_has_made_itself(place: Bench) -> None:
    """As `go test` does: it makes a test where nobody sees it, and runs it."""
    job = place.run(*sh("cp /bin/true $TMPDIR/run; $TMPDIR/run"))
    assert beyond(job).startswith("it ran /")
    assert beyond(job).endswith("/run, a program that it had made")


def test_where_all_is_shared_only_the_image_is_no_tree(place: Bench) -> None:
    place.roots = ("/",)
    check(place, place.run(*sh("/bin/true; env true; echo x >new")), "new", "")
    check(place, place.run("./tool"), "", "it ran tool, a program of the tree")


def test_a_program_by_its_descriptor(place: Bench) -> None:
    script = "import os; os.execve(os.open('tool', os.O_RDONLY), ['tool'], {})"
    check(place, place.run("python3", "-c", script), "", "it ran tool, a program of the tree")


def test_names_outside_of_the_roots_do_not_count_unless_they_lead_inside(place: Bench) -> None:
    place.roots = (str(place.cwd),)
    (place.folder / "link").symlink_to(place.cwd)
    check(place, place.run(*sh("echo x >../outside; echo y >>../outside; rm ../outside; echo z >../link/new")), "new", "")
    check(place, place.run(*sh(f"echo z >>{place.folder}/link/old")), "", "it changed old")
    (place.cwd / "out").symlink_to(place.folder)
    check(place, place.run(*sh("echo x >out/outside")), "", "a link led it out of the shared tree at out/outside")


def test_what_was_made_through_a_link_is_undone_where_it_is(place: Bench) -> None:
    """The link leads to a file of the user's by then."""
    job = place.run(*sh("echo x >way/old"))
    assert made(place, job) == "dir/old"
    (place.cwd / "way").unlink()
    (place.cwd / "way").symlink_to(".")
    place.run("true", undo=[value for _, value in job.facts])
    assert ((place.cwd / "dir" / "old").exists(), (place.cwd / "old").read_text()) == (False, "before")


def test_a_root_that_is_a_link_keeps_its_name(place: Bench) -> None:
    link = place.folder / "link"
    link.symlink_to(place.cwd)
    place.roots = (str(link),)
    job = place.run(*sh("echo x >new"), cwd=link)
    assert job.facts == [("path", f"{link}/new")]


def test_names_are_told_as_they_are(place: Bench) -> None:
    job = place.run("touch", b"a\n\xff = b")
    assert job.finish().need("made") == os.fsencode(place.cwd) + b"/a\n\xff = b"
    assert beyond(place.run("rm", b"a\n\xff = b")) == f"it changed {place.cwd}/a?\udcff = b"


@pytest.mark.parametrize(("count", "length"), [(NAMES, 8), (NAMES + 1, 8), (110, 240)])
def test_more_names_than_are_kept(place: Bench, count: int, length: int) -> None:
    job = place.run(*sh(f"for i in $(seq {count}); do : >$(printf %0{length}d $i); done"), views=True)
    told = min(count, NAMES) if length == 8 else len(job.facts) - 1
    assert len(made(place, job).split()) == told
    assert beyond(job) == ("" if count == NAMES else "it made more names than the agent keeps")
    assert len(job.finish().all("made")) == told


def test_what_cannot_be_heard(place: Bench) -> None:
    job = place.run("python3", "-c", LISTEN)
    assert job.out[1] == b"listens 0\n"
    check(place, job, "", "it installs a seccomp listener of its own")
    job = place.run("python3", "-c", "import ctypes; ctypes.CDLL(None).chroot(b'/nonexistent')")
    check(place, job, "", "a container may have written files")


def ignores(pid: int, number: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.parametrize(("number", "said"), [(signal.SIGWINCH, b"listens 0\n"), (signal.SIGUSR1, b"-1 16\n")])
def test_a_window_size_does_not_keep_a_command_from_starting_over(place: Bench, number: int, said: bytes) -> None:
    """Other signals do: nobody knows what they have done."""
    told = place.folder / "told"
    script = f'trap "" USR1; while ! test -e {told}; do sleep 0.01; done; exec python3 -c "$0"'
    job = place.start((*sh(script), LISTEN))
    place.until(lambda: job.runner.pid and any(ignores(pid, signal.SIGUSR1) for pid in processes_with(str(told))))
    job.tell(Kind.SIGNAL, 0, number)
    told.touch()
    job.finish()
    assert job.out[1] == said


def test_a_command_that_is_not_heard_begins_once_that_is_known(place: Bench) -> None:
    wrapped = place.folder / "refused"
    refuse = "import ctypes, os, struct, sys\n" + REFUSE.format(number=TABLE["seccomp"][ABI])
    wrapped.write_text(f"#!{sys.executable}\n{refuse}\nos.execv({str(place.program)!r}, sys.argv)\n")
    wrapped.chmod(0o755)
    place.program = wrapped
    job = place.start(sh("echo x >new; echo up"), notes=False)
    job.until(lambda: job.facts)
    assert stays(job, lambda: not job.out[1] and not (place.cwd / "new").exists())
    job.tell(Kind.NOTED, 0, 1)
    job.finish()
    check(place, job, "", "this kernel, or what this agent runs in, refuses seccomp listeners")
    assert job.out[1] == b"up\n"


def stays(job: Job, fact: object, seconds: float = 0.2) -> bool:
    """Is it so all the time, while whatever comes is taken?"""
    assert callable(fact)
    with pytest.raises(AssertionError):
        job.until(lambda: not fact(), seconds)
    return True


def test_calls_wait_until_what_they_make_is_noted(place: Bench) -> None:
    job = place.start(sh("echo x >new; echo 1; echo y >newer; echo 2; echo z >old; echo 3"), notes=False)
    for seq, name in ((1, "new"), (2, "newer"), (3, None)):
        job.until(lambda seq=seq: len(job.facts) == seq)  # type: ignore[misc]
        job.tell(Kind.NOTED, 0, seq + 5)  # of nothing that was told
        job.tell(Kind.NOTED, 0, seq - 1)
        assert stays(job, lambda name=name: not (place.cwd / name).exists() if name else (place.cwd / "old").read_text() == "before")
        job.tell(Kind.NOTED, 0, seq)
    assert job.status() == 0
    assert (place.cwd / "old").read_text() == "z\n"
    assert job.out[1] == b"1\n2\n3\n"


def test_others_wait_too(place: Bench) -> None:
    """A name that another process is about to make is not this one's either before it is noted."""
    job = place.start(sh("(echo x >>new; echo 1) & (echo x >>new; echo 2) & wait"), notes=False)
    job.until(lambda: job.facts)
    assert stays(job, lambda: not (place.cwd / "new").exists())
    job.tell(Kind.NOTED, 0, 1)
    assert job.status() == 0
    assert (len(job.facts), (place.cwd / "new").read_text()) == (1, "x\nx\n")


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("script", ["echo x >new", "set -C; echo x >new", "mkdir new", "mkfifo new", "ln -s x new", "echo x >way/../new"])
def test_what_somebody_else_makes_meanwhile_is_not_its_own(place: Bench, script: str, views: bool) -> None:
    job = place.start(sh(f"{script} || :; echo y >>old"), notes=False, views=views)
    job.until(lambda: job.facts)
    (place.cwd / "new").write_text("users")
    job.tell(Kind.NOTED, 0, 1)
    job.until(lambda: len(job.facts) == 2)
    assert beyond(job) == f"somebody else made {place.cwd}/new when it was about to"
    assert stays(job, lambda: (place.cwd / "new").read_text() == "users" and (place.cwd / "old").read_text() == "before")
    job.tell(Kind.NOTED, 0, 2)
    end = job.finish()
    assert (end.get("repeat"), (place.cwd / "old").read_text()) == (None, "beforey\n")


def test_what_a_name_has_become_meanwhile_is_told_too(place: Bench) -> None:
    """While it waits the directory becomes a link to another."""
    (place.cwd / "from").mkdir()
    job = place.start(sh("echo x >from/new"), notes=False)
    job.until(lambda: job.facts)
    (place.cwd / "from").rmdir()
    (place.cwd / "from").symlink_to("dir")
    job.tell(Kind.NOTED, 0, 1)
    job.until(lambda: len(job.facts) == 2)
    assert stays(job, lambda: not (place.cwd / "dir" / "new").exists())
    job.tell(Kind.NOTED, 0, 2)
    check(place, job, "from/new dir/new", "")
    assert (place.cwd / "dir" / "new").exists()


def test_what_it_removed_itself_is_another_commands_later(place: Bench) -> None:
    """A lock file: it is not removed once more with what an attempt made."""
    job = place.run(*sh("set -C; : >lock && rm lock; : >new"))
    assert own(place, job) == ["new"]
    job = place.run(*sh("mkdir -p a/b; : >a/b/c; mv a moved"))
    assert own(place, job) == ["moved", "moved/b", "moved/b/c"]


@pytest.mark.parametrize("take", ["rm name", "mv name newer", "mkdir over; mv name over; rm -r over", "rmdir name"])
def test_what_somebody_else_makes_where_it_had_something(place: Bench, take: str) -> None:
    """While it lives, and after it; what looks at it again, or does not."""
    make = "mkdir name" if take == "rmdir name" else ": >name"
    wait = "while ! test -e name; do sleep 0.01; done"
    for then, why in ((":", ""), ("echo x >>name", f"somebody else made {place.cwd}/name when it was about to")):
        job = place.start(sh(f"{make}; {take}; echo up; {wait}; {then}"))
        job.until(lambda job=job: job.out[1])  # type: ignore[misc]
        (place.cwd / "name").write_text("users")
        assert ((job.finish().get("repeat") == b"1"), beyond(job)) == (not why, why)
        assert why or "name" not in own(place, job)
        (place.cwd / "name").unlink()
        for left in ("newer", "over"):
            place.run("rm", "-rf", left)


@pytest.mark.parametrize("then", [":", "echo mine >>sub/new", "mkdir sub/new || :", "rm sub/new"])
def test_what_could_not_be_made_is_not_its_own(place: Bench, then: str) -> None:
    """There was no directory for it; then somebody made both."""
    job = place.start(sh(f"mkdir sub/new || echo up; while ! test -e sub/new; do sleep 0.01; done; {then}"))
    job.until(lambda: job.out[1])
    (place.cwd / "sub").mkdir()
    (place.cwd / "part").write_text("users")
    (place.cwd / "part").rename(place.cwd / "sub" / "new")
    assert job.finish().get("repeat") is None
    assert beyond(job) == ("" if then == ":" else f"somebody else made {place.cwd}/sub/new when it was about to")


NO_LSTAT = """
import ctypes, os, struct
class Program(ctypes.Structure):
    _fields_ = [("size", ctypes.c_ushort), ("code", ctypes.c_void_p)]
code = [(0x20, 0, 0, 0), (0x15, 0, 3, {number}), (0x20, 0, 0, 40), (0x15, 0, 1, 0x100), (6, 0, 0, 0x50005), (6, 0, 0, 0x7FFF0000)]
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
program = Program(len(code), ctypes.cast(text, ctypes.c_void_p))
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, ctypes.byref(program)) == 0
"""


@pytest.mark.parametrize("script", ["set -C; echo x >new", "echo x >new", "mkdir new"])
def test_where_the_file_server_answers_with_an_error(place: Bench, script: str) -> None:
    """Then nobody knows whether the name was there."""
    wrapped = place.folder / "wrapped"
    fail = NO_LSTAT.format(number={"64": 262, "aarch64": 79}[ABI])
    wrapped.write_text(f"#!{sys.executable}\nimport sys\n{fail}\nos.execv({str(place.program)!r}, sys.argv)\n")
    wrapped.chmod(0o755)
    place.program = wrapped
    job = place.run(*sh(script))
    assert (job.finish().get("repeat"), (place.cwd / "new").exists()) == (None, True)


def test_what_was_not_let_go_on_was_not_made(place: Bench) -> None:
    job = place.start(sh("echo x >new; echo y >newer"), notes=False)
    job.until(lambda: job.facts)
    job.tell(Kind.NOTED, 0, 1)
    job.until(lambda: len(job.facts) == 2)
    job.tell(Kind.KILL, 0, 1)
    end = job.finish()
    assert (end.text("error"), end.number("repeat")) == ("lost", 1)
    assert [Path(os.fsdecode(path)).name for path in end.all("made")] == ["new"]
    assert not (place.cwd / "newer").exists()


def test_nothing_is_lost_or_out_of_order_while_the_agent_does_not_read(place: Bench) -> None:
    """As many processes wait as there are names: their facts do not fit into the socket."""
    script = "head -c 60000 /dev/zero; head -c 60000 /dev/zero >&2; for i in $(seq 250); do : >f$i & done; wait"
    job = place.start(sh(script))
    with pytest.raises(TimeoutError):
        place.until(lambda: (place.cwd / "f1").exists(), 1.0)
    job.finish()
    assert sorted(made(place, job).split()) == sorted(f"f{i}" for i in range(1, 251))


@ROOT_ONLY
def test_looked_at_as_the_submitter(place: Bench) -> None:
    """A name that its user cannot reach is none that it can change."""
    (place.cwd / "dir").chmod(0o700)
    place.cwd.chmod(0o777)
    job = place.run(*sh("echo x >dir/in || rm -rf dir/in || :; echo x >new"), identity=Identity(65534, 65534, (), become=True))
    check(place, job, "new", "")


@ROOT_ONLY
@pytest.mark.parametrize("views", [False, True])
def test_what_leads_where_as_the_submitter_sees_it(place: Bench, views: bool) -> None:
    """Root looks at a process of another user's."""
    nobody = Identity(65534, 65534, (), become=True)
    place.cwd.chmod(0o777)
    (place.cwd / "old").chmod(0o666)
    script = "echo x >/dev/stderr; echo x >/proc/self/fd/1; (echo x >/dev/stdout) | cat; echo x >/proc/self/cwd/new; echo y >$TMPDIR/t"
    check(place, place.run(*sh(script), identity=nobody, views=views), "new", "")
    check(place, place.run(*sh("exec 3<old; echo x >/dev/fd/3"), identity=nobody, views=views), "", "it changed old")
