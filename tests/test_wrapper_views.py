"""The wrapper on a tree that others change: what it tells before GO, and what it makes of the manifests that come back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import wrapper_program
from fake_distributor import FakeDistributor, Message, Reply, Script, output, result
from wrapper_program import Wrapper

from dwrap.protocol import manifest

program = wrapper_program.program
dwrap = wrapper_program.dwrap
FAIL = {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "2", "DWRAP_BUILD": "b"}
UNLISTED = "/sys/kernel"  # a file system of which the wrapper knows nothing


def offer_views(*replies: Reply) -> Callable[[Message], Script]:
    """Offers with views=1, waits for GO (MANIFESTs may come before it), and sends `replies`."""

    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s1"), ("views", 1)])
        while (message := (yield None)) and message[0] != "GO":
            pass
        yield from replies

    return script


def told(*entries: manifest.Entry | bytes) -> Reply:
    return ("MANIFEST", [("attempt", 1)], b"".join(entry if isinstance(entry, bytes) else entry.raw for entry in entries))


def entry_of(path: Path, *, kind: bytes = b"F", size: int | None = None, later: int = 0) -> manifest.Entry:
    st = path.lstat()
    return manifest.make(kind, os.fsencode(path), st.st_ino, st.st_size if size is None else size, st.st_mtime_ns, st.st_ctime_ns + later)


def names(entries: Sequence[manifest.Entry], directory: Path) -> list[str]:
    """Kind and path, relative to a directory, of each entry."""
    return [f"{entry.kind.decode()} {os.path.relpath(os.fsdecode(entry.path), directory)}" for entry in entries]


def seen(d: FakeDistributor) -> list[manifest.Entry]:
    return manifest.parse(d.by_verb("GO")[-1][2][2])


# ---- who takes part ----


@pytest.mark.parametrize(("cwd", "setting", "views"), [(None, "auto", False), (UNLISTED, "auto", True), (UNLISTED, "never", False)])
def test_submit_says_whether_views_are_needed(dwrap: Wrapper, cwd: str | None, setting: str, views: bool) -> None:
    where = cwd or str(dwrap.directory)
    with FakeDistributor(offer_views(result())) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL | {"DWRAP_VIEWS": setting}, cwd=where)
        assert (done.returncode, done.stderr) == (0, b"")
        assert d.by_verb("SUBMIT")[0][1].flag("views") == views
        assert (d.by_verb("GO")[0][2][2] == b"") == (setting == "never")


def test_a_setting_that_is_not_understood(dwrap: Wrapper) -> None:
    done = dwrap.run("tcp://127.0.0.1:1", "cmd", env={"DWRAP_VIEWS": "sometimes"})
    assert done.returncode == 125
    assert b"DWRAP_VIEWS=sometimes is not understood" in done.stderr


# ---- what it sees ----


def test_go_tells_what_the_arguments_name(dwrap: Wrapper) -> None:
    cwd = dwrap.directory
    for name in ("sub/a.c", "sub/b.c", "inc/x.h", "other/y.h", "list.rsp", "plain"):
        (cwd / name).parent.mkdir(exist_ok=True)
        (cwd / name).write_text(name)
    words = ["-c", "sub/a.c", "./sub/b.c", "-Iinc/", f"--sysroot={cwd}/other", "@list.rsp"]
    words += ["-O2", "-Wall", "-o", "sub/new.o", "plain", "-Iinc"]
    with FakeDistributor(offer_views(result())) as d:
        dwrap.run(d.address, "cmd", *words, "", "-", "@", "=", "x" * 5000, env=FAIL)
        entries = seen(d)
    expected = ["D .", "D sub", "F sub/a.c", "F sub/b.c", "D inc", "D other", "F list.rsp", "D sub", "F plain"]
    assert names(entries, cwd) == expected
    file = (cwd / "sub/a.c").stat()
    assert entries[2].raw.split(b" ")[2:5] == [b"%d" % n for n in (file.st_size, file.st_mtime_ns, file.st_ctime_ns)]
    inodes = {entry.raw.split(b" ")[1] for entry in entries}
    assert inodes == {b"0"} or inodes >= {b"%d" % cwd.stat().st_ino, b"%d" % file.st_ino}


def test_thousands_of_arguments_are_told_as_far_as_there_is_room(dwrap: Wrapper) -> None:
    for i in range(1000):
        (dwrap.directory / f"object{i}.o").touch()
    with FakeDistributor(offer_views(result())) as d:
        done = dwrap.run(d.address, "ld", *(f"object{i}.o" for i in range(1000)), env=FAIL)
        entries = seen(d)
    assert done.returncode == 0
    assert len(entries) == 256
    assert sum(len(entry.raw) for entry in entries) <= 64 * 1024


# ---- what its build reads ----


def test_changes_where_the_build_reads_are_told_before_go(dwrap: Wrapper) -> None:
    include = dwrap.directory / "include"
    include.mkdir()
    (include / "old.h").touch()
    reads = told(manifest.make(b"R", os.fsencode(include)), manifest.make(b"R", b"/no/such/place"))

    def run(*replies: Reply, build: str = "b") -> list[str]:
        """What was told before GO in one more run of the wrapper."""
        with FakeDistributor(offer_views(*replies)) as d:
            dwrap.run(d.address, "cmd", env=FAIL | {"DWRAP_BUILD": build})
            assert not d.problems
            assert all(fields.need("job") for _, fields, _ in d.by_verb("MANIFEST"))
            verbs = [m[0] for m in d.seen]
            assert verbs == ["SUBMIT", *["MANIFEST"] * verbs.count("MANIFEST"), "GO", *verbs[verbs.index("GO") + 1 :]]
            return names([entry for m in d.by_verb("MANIFEST") for entry in manifest.parse(m[2][0])], dwrap.directory)

    assert run(reads, result()) == []
    assert "D include" in run(result())  # for the first time
    assert run(result()) == []
    assert run(result(), build="another") == []
    (include / "old.h").stat()
    (include / "new.h").write_text("new")
    assert run(("FAILED", [("reason", "lost"), ("safe", 0)]))[0] == "D include"
    again = run(result())  # nobody had said that it arrived
    assert again[0] == "D include"
    assert set(again[1:]) <= {"F include/new.h", "F include/old.h"}
    assert run(result()) == []
    (include / "by-the-farm.h").touch()
    assert run(told(entry_of(include, kind=b"D")), result())[0] == "D include"
    (include / "by-the-farm-too.h").touch()
    known = include.stat()
    run(told(entry_of(include, kind=b"D")), result())
    assert run(result()) == []
    assert include.stat().st_mtime_ns == known.st_mtime_ns


def test_memory_of_a_build_is_bounded_and_forgotten(dwrap: Wrapper) -> None:
    directory = dwrap.runtime / "dwrap"
    directory.mkdir(mode=0o700)
    stale = directory / "reads-long_2fago"
    stale.touch()
    day = 86_500
    os.utime(stale, (time.time() - day, time.time() - day))
    pieces = [told(*(manifest.make(b"R", b"/%d/%s" % (i * 300 + j, b"x" * 60)) for j in range(300))) for i in range(4)]
    with FakeDistributor(offer_views(*pieces, result())) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL).returncode == 0
    assert not stale.exists()
    kept = (directory / "reads-b").read_bytes()
    assert len(manifest.parse(kept)) == 512
    assert len(kept) <= 64 * 1024
    (directory / "reads-b").write_bytes(b"R 1 2 3 rubbish")
    with FakeDistributor(offer_views(result())) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL).returncode == 0


# ---- what the command wrote ----


def test_what_is_seen_as_it_was_written_is_silent(dwrap: Wrapper) -> None:
    file, link = dwrap.directory / "a.o", dwrap.directory / "link"
    file.write_text("object")
    link.symlink_to("nowhere")
    gone = manifest.make(b"G", os.fsencode(dwrap.directory / "gone"))
    entries = [entry_of(dwrap.directory, kind=b"D"), entry_of(file), entry_of(link), gone]
    with FakeDistributor(offer_views(told(*entries), told(), output(b"hello\n"), told(*entries), result(stdout_bytes=6))) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
        d.wait_for("ACK")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")
    assert file.read_text() == "object"


def test_what_is_not_seen_is_never_silent(dwrap: Wrapper) -> None:
    file = dwrap.directory / "a.o"
    file.write_text("object")
    unseen = told(entry_of(file, size=9999, later=10**10))
    with FakeDistributor(offer_views(unseen, result(agent="a7"))) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
        d.wait_for("ACK")
    assert (done.returncode, done.stdout) == (125, b"")
    assert f"this machine does not see {file} as a7 wrote it; check its mount with `dwrapctl doctor`".encode() in done.stderr
    assert done.stderr.count(b"\n") == 1
    with FakeDistributor(offer_views(unseen, result(7 * 256, agent="a7"))) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
    assert done.returncode == 7
    assert str(file).encode() in done.stderr
    with FakeDistributor(offer_views(unseen, result())) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL | {"DWRAP_VIEWS": "never"})
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("piece", [b"F 1 2 3 4 relative\0", b"F 1 2 3 4 /unended", b"nonsense\0", b"F 1 2 3 4 /" + b"x" * 5000 + b"\0"])
def test_a_malformed_manifest_is_a_failure(dwrap: Wrapper, piece: bytes) -> None:
    with FakeDistributor(offer_views(told(piece), result())) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
    assert done.returncode == 125
    assert b"update dwrap" in done.stderr


def test_manifests_do_not_change_a_failure(dwrap: Wrapper) -> None:
    with FakeDistributor(offer_views(told(), ("FAILED", [("reason", "its agent was lost"), ("safe", 0)]))) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
    assert done.returncode == 125
    assert b"its agent was lost" in done.stderr


def test_a_second_offer_is_answered_alike(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield ("OFFER", [("stamp", "s1")])
        yield None
        yield ("OFFER", [("stamp", "s2"), ("views", 1)])
        yield None
        yield result()

    with FakeDistributor(script) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL).returncode == 0
        first, second = d.by_verb("GO")
    assert (first[2][2], second[1].text("stamp")) == (b"", "s2")
    assert names(manifest.parse(second[2][2]), dwrap.directory) == ["D ."]
