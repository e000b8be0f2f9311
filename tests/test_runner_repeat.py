"""The runner: may an attempt be run again? What it tells of that before the call that makes it true goes on, and what waits for it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from runner_bench import ROOT_ONLY, Bench, Job, bench, processes_with, sh
from test_runner_writes import LISTEN, REFUSE, TABLE

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
    assert [os.path.relpath(os.fsdecode(path), bench.cwd) for path in end.all("made")] == names.split()


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("cat old dir/in >/dev/null; ls -lR; test -w old; kill -0 $$", ""),
        ("echo x >$TMPDIR/t; mv $TMPDIR/t $TMPDIR/u; rm $TMPDIR/u", ""),
        ("echo x >way/new; mkdir way/sub; echo y >way/../newer; mv way/sub way/moved", "dir/new dir/sub newer dir/moved"),
        ("mkdir -p a/b; ln -s a/b link; echo x >link/x; mv link/x link/y; mkdir link/c; : >a/b/c/d; mv link/c link/e",
         "a a/b link a/b/x a/b/y a/b/c a/b/c/d a/b/e a/b/e/d"),
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


@pytest.mark.parametrize(("number", "said"), [(signal.SIGWINCH, b"listens 0\n"), (signal.SIGUSR1, b"-1 16\n")])
def test_a_window_size_does_not_keep_a_command_from_starting_over(place: Bench, number: int, said: bytes) -> None:
    """Other signals do: nobody knows what they have done."""
    told = place.folder / "told"
    script = f'trap "" USR1; while ! test -e {told}; do sleep 0.01; done; exec python3 -c "$0"'
    job = place.start((*sh(script), LISTEN))
    place.until(lambda: job.runner.pid and processes_with(str(told)))
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
