"""A new attempt after GO: what was printed is printed once, what cannot be given again ends it, and what a lost attempt made is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import wrapper_program
from fake_distributor import Message, Reply
from test_wrapper_torn import FAIL, attached, until
from torn_distributor import Cut, Script, TornDistributor
from wrapper_program import Wrapper

program = wrapper_program.program
dwrap = wrapper_program.dwrap


def offer(attempt: int) -> Reply:
    return ("OFFER", [("stamp", f"s{attempt}"), ("attempt", attempt)])


def output(attempt: int, data: bytes, offset: int = 0, stream: str = "stdout") -> Reply:
    return ("OUTPUT", [("attempt", attempt), ("stream", stream), ("offset", offset)], data)


def credit(attempt: int, limit: int) -> Reply:
    return ("CREDIT", [("attempt", attempt), ("stream", "stdin"), ("limit", limit)])


def result(attempt: int, status: int = 0, **fields: int | str) -> Reply:
    return ("RESULT", [("attempt", attempt), ("status", status), *fields.items()])


def failed(*undo: str, safe: int = 1) -> Reply:
    return ("FAILED", [("reason", "its agent is lost"), ("safe", safe), *(("undo", name) for name in undo)])


def attempts(*stories: Sequence[Reply | Cut]) -> Callable[[Message], Script]:
    """Offers again and again; after each GO the next story."""

    def script(_submit: Message) -> Script:
        for number, story in enumerate(stories, 1):
            yield offer(number)
            yield from until("GO")
            yield from story

    return script


@pytest.mark.parametrize("size", [1, 4, 9, 13, 14])
def test_what_was_printed_is_not_printed_again(dwrap: Wrapper, size: int) -> None:
    """In pieces that end before, at and behind the place where the first attempt had come to."""
    text = b"some warnings\nand an error\n"
    second: list[Reply | Cut] = [output(2, text[at : at + size], at) for at in range(0, len(text), size)]
    script = attempts([output(1, b"some war"), output(1, b"nings", 8)], [*second, result(2, 256, stdout_bytes=len(text))])
    with TornDistributor(script) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
        assert (done.returncode, done.stdout, done.stderr) == (1, text, b"")
        assert [m[1].text("stamp") for m in d.by_verb("GO")] == ["s1", "s2"]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("text", [b"some WARnings\n", b"xome warnings\n", b"some war", b""])
def test_another_output_is_no_success(dwrap: Wrapper, text: bytes, stream: str) -> None:
    end = result(2, **{f"{stream}_bytes": len(text)})
    with TornDistributor(attempts([output(1, b"some warn", stream=stream)], [output(2, text, stream=stream), end])) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
    printed = done.stdout + done.stderr
    assert done.returncode == 125
    assert printed.startswith(b"some warn")
    assert b"did not print the same" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_command_that_is_not_there_any_more_is_no_success(dwrap: Wrapper) -> None:
    gone: Reply = ("RESULT", [("attempt", 2), ("error", "not_found"), ("reason", "no such file")])
    with TornDistributor(attempts([output(1, b"text")], [gone])) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL).returncode == 125


def test_an_attempt_that_is_lost_while_it_repeats(dwrap: Wrapper) -> None:
    """The third is still compared with all that the first has printed."""
    for third, status in ((b"abcdefgh", 0), (b"abcdeFgh", 125)):
        end = result(3, stdout_bytes=8)
        with TornDistributor(attempts([output(1, b"abcdef")], [output(2, b"abc")], [output(3, third), end])) as d:
            done = dwrap.run(d.address, "cmd", env=FAIL)
        assert (done.returncode, done.stdout) == (status, b"abcdefgh" if status == 0 else b"abcdef")


def test_torn_while_it_repeats(dwrap: Wrapper) -> None:
    """What is heard twice is compared once."""

    def script(_submit: Message) -> Script:
        yield offer(1)
        yield from until("GO")
        yield output(1, b"abcdef")
        yield offer(2)
        yield from until("GO")
        yield output(2, b"abc")
        yield Cut(output(2, b"def", 3), 20)
        fields = (yield from attached())[1]
        assert (fields.number("attempt"), fields.number("stdout")) == (2, 3)
        yield output(2, b"bcde", 1)
        yield output(2, b"abcdefgh")
        yield result(2, stdout_bytes=8)

    with TornDistributor(script) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"abcdefgh", b"")


def test_late_words_of_an_earlier_attempt_do_not_count(dwrap: Wrapper) -> None:
    late: list[Reply | Cut] = [output(1, b"def", 3), credit(1, 4096), result(1, 256 * 9, stdout_bytes=6)]
    with TornDistributor(attempts([output(1, b"abc")], [*late, output(2, b"abcdeX"), result(2, stdout_bytes=6)])) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL, data=b"input")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"abcdeX", b"")
        assert not d.by_verb("INPUT")


def test_credit_while_it_repeats(dwrap: Wrapper) -> None:
    """200 kB were printed: they come again in the same pieces as credit allows, and no credit runs ahead of what has come."""
    size, whole = 10_000, os.urandom(300_000)

    def prints(attempt: int, end: int) -> Script:
        limit = 65_536
        for at in range(0, end, size):
            while limit < at + size:
                limit = (yield from until("CREDIT"))[1].number("limit")
                assert limit <= at + 65_536
            yield output(attempt, whole[at : at + size], at)

    def script(_submit: Message) -> Script:
        yield offer(1)
        yield from until("GO")
        yield from prints(1, 200_000)
        yield offer(2)
        yield from until("GO")
        yield from prints(2, 300_000)
        yield result(2, stdout_bytes=300_000)

    with TornDistributor(script) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
    assert (done.returncode, done.stdout == whole, done.stderr) == (0, True, b"")


def reads_twice(first: int) -> Callable[[Message], Script]:
    def script(_submit: Message) -> Script:
        yield offer(1)
        yield from until("GO")
        yield credit(1, first)
        have = 0
        while have < first:
            have += len((yield from until("INPUT"))[2][0])
        yield offer(2)
        yield from until("GO")
        yield credit(2, 65_536)
        while not (yield from until("INPUT"))[1].flag("eof"):
            pass
        yield result(2, stdin_taken=10_000)

    return script


def inputs(d: TornDistributor) -> bytes:
    """Of the second attempt."""
    second = [number for number, m in enumerate(d.seen) if m[0] == "GO"][1]
    return b"".join(m[2][0] for m in d.seen[second:] if m[0] == "INPUT")


def test_a_file_is_given_again_from_its_start(dwrap: Wrapper) -> None:
    data = os.urandom(10_000)
    (dwrap.directory / "in").write_bytes(b"skipped" + data)
    with TornDistributor(reads_twice(8000)) as d, (dwrap.directory / "in").open("rb", buffering=0) as file:
        file.seek(7)
        assert dwrap.run(d.address, "cmd", env=FAIL, stdin=file).returncode == 0
        assert inputs(d) == data
        assert file.tell() == 10_007


@pytest.mark.parametrize("first", [4096, 4097])
def test_a_pipe_is_given_again_while_all_of_it_is_known(dwrap: Wrapper, first: int) -> None:
    data = os.urandom(10_000)
    with TornDistributor(reads_twice(first)) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL, data=data)
        if first == 4096:
            assert (done.returncode, inputs(d)) == (0, data)
        else:
            assert (done.returncode, len(d.by_verb("GO"))) == (125, 1)
            assert b"its input cannot be given again" in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGUSR1, 125), (signal.SIGWINCH, 0)])
def test_a_command_that_was_told_to_end_is_not_run_again(dwrap: Wrapper, number: int, status: int) -> None:
    def script(_submit: Message) -> Script:
        yield offer(1)
        yield from until("GO")
        yield from until("SIGNAL")
        yield offer(2)
        yield from until("GO")
        yield result(2)

    with TornDistributor(script) as d, dwrap.popen(d.address, "cmd", env=FAIL) as process:
        d.wait_for("GO")
        process.send_signal(number)
        assert process.wait(10) == status
        assert len(d.by_verb("GO")) == (2 if status == 0 else 1)


@pytest.mark.parametrize("end", [offer(2), failed()])
def test_a_signal_is_not_forgotten_however_many_follow(dwrap: Wrapper, end: Reply) -> None:
    many = 20

    def script(_submit: Message) -> Script:
        yield offer(1)
        yield from until("GO")
        for _ in range(1 + many):
            yield from until("SIGNAL")
        yield end
        yield from until("GO")
        yield result(2)

    with TornDistributor(script) as d, dwrap.popen(d.address, "true") as process:
        d.wait_for("GO")
        for count, number in enumerate([signal.SIGUSR1, *[signal.SIGWINCH] * many], 1):
            process.send_signal(number)
            d.wait_for("SIGNAL", count)
        assert process.wait(10) == 125
        assert len(d.by_verb("GO")) == 1


def test_signals_count_on_in_a_new_attempt(dwrap: Wrapper) -> None:
    def script(_submit: Message) -> Script:
        yield offer(1)
        yield from until("GO")
        yield from until("SIGNAL")
        yield offer(2)
        yield from until("GO")
        yield from until("SIGNAL")
        yield Cut()
        yield from attached()
        yield from until("SIGNAL")
        yield result(2)

    with TornDistributor(script) as d, dwrap.popen(d.address, "cmd", env=FAIL) as process:
        d.wait_for("GO")
        process.send_signal(signal.SIGWINCH)
        d.wait_for("GO", 2)
        process.send_signal(signal.SIGCONT)
        assert process.wait(10) == 0
        assert {m[1].number("seq") for m in d.by_verb("SIGNAL")[1:]} == {2}


def test_a_closed_stream_is_closed_in_a_new_attempt(dwrap: Wrapper) -> None:
    """And what it would have printed is not compared."""

    def script(_submit: Message) -> Script:
        yield offer(1)
        yield from until("GO")
        yield output(1, b"some text")
        yield from until("CLOSE")
        yield offer(2)
        yield from until("GO")
        yield output(2, b"other text")
        yield from until("CLOSE")
        yield result(2, signal.SIGPIPE, stdout_bytes=3)

    read_end, write_end = os.pipe()
    os.close(read_end)
    with TornDistributor(script) as d:
        assert dwrap.run(d.address, "cmd", env=FAIL, stdout=write_end).returncode == -signal.SIGPIPE
    os.close(write_end)


def test_attached_and_never_started_is_offered_again(dwrap: Wrapper) -> None:
    """The GO was lost with the connection: the same attempt is offered again."""

    def script(_submit: Message) -> Script:
        yield offer(1)
        yield from until("GO")
        yield Cut()
        yield from attached()
        yield ("QUEUED", [("ahead", 1)])
        yield offer(1)
        yield from until("GO")
        yield output(1, b"text")
        yield result(1, stdout_bytes=4)

    with TornDistributor(script) as d:
        done = dwrap.run(d.address, "cmd", env=FAIL)
        assert (done.returncode, done.stdout, len(d.by_verb("GO"))) == (0, b"text", 2)


def made(directory: Path) -> list[str]:
    """What a lost attempt left behind, in the order in which it made it."""
    (directory / "new" / "deep").mkdir(parents=True)
    (directory / "new" / "deep" / "a.o").write_text("half")
    (directory / "new" / "link").symlink_to("/nowhere")
    os.mkfifo(directory / "new" / "pipe")
    names = ("new", "new/deep", "new/deep/a.o", "new/link", "new/pipe", "new/never-made", "new/deep/a.o/below")
    return [str(directory / name) for name in names]


def lost(names: Callable[[], Sequence[str]]) -> Callable[[Message], Script]:
    """The attempt makes names after its GO, and is lost."""

    def script(_submit: Message) -> Script:
        yield offer(1)
        yield from until("GO")
        yield failed(*names())

    return script


def test_what_a_lost_attempt_made_is_removed_before_it_runs_here(dwrap: Wrapper) -> None:
    with TornDistributor(lost(lambda: made(dwrap.directory))) as d:
        done = dwrap.run(d.address, "sh", "-c", "test ! -e new && echo gone")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"gone\n", b"")


def test_a_directory_in_which_others_have_put_something_stays(dwrap: Wrapper) -> None:
    def names() -> list[str]:
        (dwrap.directory / "new").mkdir()
        (dwrap.directory / "new" / "users").write_text("file")
        return [str(dwrap.directory / "new")]

    with TornDistributor(lost(names)) as d:
        done = dwrap.run(d.address, "cat", "new/users")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"file", b"")


@pytest.fixture
def tree(dwrap: Wrapper) -> Path:
    """What was there long before the command: nothing of it can have been made by it."""
    tree = dwrap.directory / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "dots").symlink_to(".")
    for name in ("old", "sub/in"):
        (tree / name).write_text("before")
        os.utime(tree / name, (1, 1))
    time.sleep(0.1)
    return tree


PLAIN = "that is no plain path"
LINK = "a link has taken the place of a directory"
OLD = "it was there before the command"
ELSEWHERE = "it is on another file system than what the command names"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("relative", PLAIN),
        ("/", PLAIN),
        ("TREE/", PLAIN),
        ("TREE//new", PLAIN),
        ("TREE/./new", PLAIN),
        ("TREE/sub/../new", PLAIN),
        ("TREE/..", PLAIN),
        ("TREE/dots/new", LINK),
        ("TREE/old", OLD),
        ("TREE/dots", OLD),
        ("/proc/version", ELSEWHERE),
    ],
)
def test_what_no_command_can_have_made_is_not_removed(dwrap: Wrapper, tree: Path, name: str, why: str) -> None:
    (dwrap.directory / "relative").write_text("file")
    wrong = name.replace("TREE", str(tree))

    def names() -> list[str]:
        (tree / "new").write_text("file")
        return [wrong, *made(dwrap.directory)]

    with TornDistributor(lost(names)) as d:
        done = dwrap.run(d.address, "touch", "ran")
    assert (done.returncode, (dwrap.directory / "ran").exists()) == (125, False)
    assert done.stderr.count(b"\n") == 1
    assert f"its agent is lost, and {wrong}, which it is said to have made, is not removed: {why};".encode() in done.stderr
    assert not (dwrap.directory / "new").exists()
    assert (dwrap.directory / "relative").exists()
    assert sorted(path.name for path in tree.rglob("*")) == ["dots", "in", "new", "old", "sub"]


def test_what_was_there_before_does_not_pass_for_new_because_it_is_changed(dwrap: Wrapper, tree: Path) -> None:
    """Where the file system tells when a file was made."""
    if b"Birth: -" in subprocess.run(["stat", tree / "old"], capture_output=True, check=True).stdout:
        pytest.skip("this file system does not tell when a file was made")

    def names() -> list[str]:
        (tree / "old").write_text("after")
        return [str(tree / "old")]

    with TornDistributor(lost(names)) as d:
        done = dwrap.run(d.address, "true")
    assert (done.returncode, (tree / "old").read_text()) == (125, "after")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_what_belongs_to_others_is_not_removed(dwrap: Wrapper) -> None:
    def names() -> list[str]:
        (dwrap.directory / "others").touch()
        os.chown(dwrap.directory / "others", 65534, 65534)
        return [str(dwrap.directory / "others")]

    with TornDistributor(lost(names)) as d:
        done = dwrap.run(d.address, "true")
    assert done.returncode == 125
    assert b"it belongs to another user" in done.stderr
    assert (dwrap.directory / "others").exists()


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="a second file system is needed")
def test_what_its_arguments_name_may_lie_on_another_file_system(dwrap: Wrapper) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        with TornDistributor(lost(lambda: made(Path(other)))) as d:
            assert dwrap.run(d.address, "sh", "-c", f"test ! -e {other}/new", env={"X": other}).returncode == 125
            (Path(other) / "in").touch()
        subprocess.run(["rm", "-r", f"{other}/new"], check=True)
        with TornDistributor(lost(lambda: made(Path(other)))) as d:
            assert dwrap.run(d.address, "test", "!", "-e", f"{other}/in", "-o", "!", "-e", f"{other}/new").returncode == 0


@pytest.mark.parametrize("story", [[output(1, b"text"), failed("UNDO")], [failed("UNDO", safe=0)]])
def test_nothing_is_removed_when_it_does_not_run_here(dwrap: Wrapper, story: list[Reply]) -> None:
    kept = dwrap.directory / "kept"
    kept.write_text("file")
    told = [(verb, [(key, str(kept) if value == "UNDO" else value) for key, value in pairs], *rest) for verb, pairs, *rest in story]
    with TornDistributor(attempts(told)) as d:
        assert dwrap.run(d.address, "touch", "ran").returncode == 125
    assert kept.exists()
    assert not (dwrap.directory / "ran").exists()
