"""The battery: commands run directly and through a farm of two agents look the same to whoever started them (G1, G11).

Every case is one row of a table; battery.py says what is compared. What must differ is said in `normalise`:
the variables that stay on the desktop (rules.def), and those that the agent sets.
"""

from __future__ import annotations

import fnmatch
import os
import re
import resource
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from battery import Case, Word, observe
from farm import DWRAP, HERE, Farm

BINARY = bytes(range(256)) * 16
MEGABYTE = bytes((i * 7 + i // 251) % 256 for i in range(1 << 20))
STAYS = re.findall(r'RULE\(STAYS, "([^"]+)"', (HERE / "protocol" / "rules.def").read_text())
SET_BY_AGENT = ("TMPDIR", "DWRAP_*")
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="becoming another user needs root")


def sh(script: str) -> list[Word]:
    """A command that is a line of shell."""
    return ["sh", "-c", script]


def without_host_bound(stdout: bytes) -> bytes:
    """`env -0` without the variables that may differ."""
    kept = [
        entry
        for entry in stdout.split(b"\0")
        if not any(fnmatch.fnmatchcase(os.fsdecode(entry.partition(b"=")[0]), name) for name in (*STAYS, *SET_BY_AGENT))
    ]
    return b"\0".join(sorted(kept))


def limit(which: int, soft: int) -> None:
    """Lower a soft limit."""
    resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))


def ignore(*signals: signal.Signals) -> None:
    """Ignore them, and leave that to the command."""
    for one in signals:
        signal.signal(one, signal.SIG_IGN)


def become_nobody() -> None:
    """A user without any right, in its own group."""
    os.setgroups([65534])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def variables(name: str, environment: dict[Word, Word]) -> Case:
    """A command that shows its environment, with these added."""
    return Case(name, ["env", "-0"], environment=environment, normalise=without_host_bound)


HELLO = b'#include <stdio.h>\nint main(void){puts("hi");return 0;}\n'
F_C = b"int f(void) { return 3; }\n"
def without_libc_signals(text: bytes) -> bytes:
    """The masks less signals 32 and 33, which glibc keeps for itself: a caller such as make may hand them down ignored."""
    lines = [line.split(b"\t") for line in text.splitlines()]
    return b"".join(b"%s\t%016x\n" % (name, int(mask, 16) & ~(3 << 31)) for name, mask in lines)


SIGNAL_MASKS = ["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"]
STATUS = [Case(f"status-{status}", sh(f"exit {status}")) for status in (0, 1, 2, 77, 99, 125, 126, 127, 130, 139, 255)]
SIGNALS = [
    Case(f"dies-by-{one.name}", sh(f"kill -{one.name[3:]} $$"))
    for one in (
        signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE,
        signal.SIGKILL, signal.SIGUSR1, signal.SIGSEGV, signal.SIGUSR2, signal.SIGPIPE, signal.SIGALRM, signal.SIGTERM, signal.SIGXCPU,
    )
]  # fmt: skip
STREAMS = [
    Case("silence", ["true"]),
    Case("both-streams", sh("echo out; echo err >&2; echo out again; exit 3")),
    Case("no-newline", ["printf", "no newline"]),
    Case("nul-and-not-utf-8", sh(r"printf 'a\000b\377\376c'; printf '\200\000' >&2")),
    Case("every-byte", ["cat", "bytes"], files={"bytes": BINARY}),
    Case("50-MB-out", ["head", "-c", "50000000", "/dev/zero"]),
    Case("5-MB-err", sh("head -c 5000000 /dev/zero >&2")),
    Case("both-streams-large", sh("head -c 3000000 /dev/zero & head -c 3000000 /dev/zero >&2; wait")),
    Case("many-small-writes", sh("i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done")),
    Case("interleaved", sh("for i in 1 2 3 4 5 6 7 8 9; do echo out $i; echo err $i >&2; done"), one_file=True),
    Case("closed-stdin", sh("cat; echo $?"), stdin_from="closed"),
    Case("closed-stdout", sh("echo lost || echo failed >&2"), closed=(1,)),
    Case("closed-stderr", sh("echo kept; echo lost >&2; exit 4"), closed=(2,)),
    Case("stdout-closed-by-command", sh("exec >&-; echo err >&2; sleep 0.1; exit 5")),
]
ARGUMENTS = [
    Case("empty-argument", [*sh('echo $#; printf "<%s>" "$@"'), "x", "", "a", ""]),
    Case("quotes-and-blanks", ["printf", "<%s>", "a b", "'", '"', "\\", "$HOME", "`id`", "*", "\t", ";", "&&"]),
    Case("newline-in-argument", ["printf", "<%s>", "a\nb", "\n"]),
    Case("not-utf-8-argument", ["printf", "<%s>", b"\xff\xfe", b"caf\xe9"]),
    Case("1-MB-of-arguments", [*sh('echo $#; printf %s "$@" | cksum'), "x", *(bytes([97 + i % 26]) * 10_000 for i in range(105))]),
    Case("100000-arguments", [*sh("echo $#"), "x", *("a",) * 100_000]),
    Case("dash-arguments", ["printf", "<%s>", "--", "-H", "--explain", "-"]),
    Case("argument-with-equals", ["env", "A=1", "printenv", "A"]),
    Case("own-path", ["./tool.sh", "one"], files={"tool.sh": b'#!/bin/sh\necho "$0" "$@"\n'}),
    Case("script-without-interpreter-line", ["env", "./bare.sh"], files={"bare.sh": b"echo bare\n"}),
]
ENVIRONMENT = [
    variables("environment", {}),
    variables("odd-names", {"a.b-c": "1", "1x": "2", b"\xe4": b"\xff", "EMPTY": "", "sp ace": " "}),
    variables("odd-values", {"NL": "a\nb", "EQ": "a=b=c", "BASH_FUNC_f%%": "() { echo f; }"}),
    variables("100-KB-value", {"BIG": "x" * 100_000}),
    variables("many-variables", {f"V{i}": "y" * 100 for i in range(1000)}),
    Case("callers-path", ["there.sh"], files={"bin/there.sh": b"#!/bin/sh\necho found\n"}, environment={"PATH": "bin:/usr/bin:/bin"}),
    Case("locale-and-zone", sh("date -d @0; echo $LC_ALL"), environment={"TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"}),
]
CIRCUMSTANCES = [
    Case("cwd", sh("pwd; pwd -P; ls")),
    Case("umask-027", sh("umask; : >f; mkdir d"), before=lambda: os.umask(0o027)),
    Case("umask-000", sh("umask; : >f; mkdir d"), before=lambda: os.umask(0)),
    Case("ids", sh("id; grep -E '^(Uid|Gid|Groups)' /proc/self/status")),
    Case("nice-7", ["nice"], before=lambda: os.nice(7)),
    Case("limits", sh("ulimit -Sa; ulimit -Ha")),
    Case("file-limit", sh("ulimit -n; ulimit -Hn"), before=lambda: limit(resource.RLIMIT_NOFILE, 77)),
    Case("cpu-limit", sh("ulimit -t"), before=lambda: limit(resource.RLIMIT_CPU, 99)),
    Case("file-size-limit", sh("head -c 9000 /dev/zero >f; echo $?"), before=lambda: limit(resource.RLIMIT_FSIZE, 4096)),
    Case("stack-limit", sh("ulimit -s"), before=lambda: limit(resource.RLIMIT_STACK, 1 << 20)),
    Case("no-core-left", sh("kill -SEGV $$")),
    Case(
        "ignored-signals", SIGNAL_MASKS, normalise=without_libc_signals,
        before=lambda: ignore(signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN, signal.SIGRTMAX),
    ),
    Case("no-ignored-signals", SIGNAL_MASKS, normalise=without_libc_signals),
    Case("ignored-pipe", SIGNAL_MASKS, normalise=without_libc_signals, before=lambda: ignore(signal.SIGPIPE)),
    Case("open-descriptors", sh("ls /proc/self/fd | wc -l")),
]
STDIN = [
    Case("stdin-null", ["cat"]),
    Case("stdin-empty-pipe", ["cat"], stdin_from="pipe"),
    Case("stdin-text", ["cat"], stdin=b"one\ntwo\n", stdin_from="pipe"),
    Case("stdin-binary", ["cat"], stdin=BINARY, stdin_from="pipe"),
    Case("stdin-5-MB-pipe", ["cksum"], stdin=MEGABYTE * 5, stdin_from="pipe"),
    Case("stdin-5-MB-file", ["cksum"], stdin=MEGABYTE * 5, stdin_from="file"),
    Case("stdin-5-MB-echoed", ["cat"], stdin=MEGABYTE * 5, stdin_from="pipe"),
    Case("stdin-file-unread", ["true"], stdin=MEGABYTE, stdin_from="file"),
    Case("stdin-file-half-read", ["head", "-c", "300000"], stdin=MEGABYTE, stdin_from="file"),
    Case("stdin-file-one-line", sh("read a; echo $a"), stdin=b"first\nsecond\nthird\n", stdin_from="file"),
    Case("stdin-pipe-unread", ["true"], stdin=b"x" * 3000, stdin_from="pipe"),
    Case("compile-from-stdin", ["gcc", "-x", "c", "-", "-c", "-o", "a.o"], stdin=b"int f(void) { return 1; }\n", stdin_from="pipe"),
]
ON_DISK = [
    Case("files-and-modes", sh("echo a >a; chmod 600 a; mkdir -p d/e; echo b >d/e/b; chmod 755 d/e/b; ln -s a l; ln a h; mkfifo p")),
    Case("order-of-changes", sh("for i in 3 1 2; do echo $i >f$i; sleep 0.02; done")),
    Case("append-and-truncate", sh("echo b >>f; : >g; mv h i; rm j"), files={"f": b"a\n", "g": b"g", "h": b"h", "j": b"j"}),
    Case("sparse", sh("truncate -s 1M s; stat -c %s s")),
    Case("compile", ["gcc", "-O2", "-g", "-c", "a.c", "-o", "a.o"], files={"a.c": HELLO}),
    Case("compile-error", ["gcc", "-c", "bad.c"], files={"bad.c": b"int main(void) { return x; }\n"}),
    Case("link", ["gcc", "a.c", "b.c", "-o", "p"], files={"a.c": b"int f(void);int main(void){return f();}", "b.c": F_C}),
    Case("private-tmp", sh('f=$(mktemp) && echo x >"$f" && cat "$f" && rm "$f"')),
]
PROCESSES = [
    Case("background-child-finishes", sh("(sleep 0.2; echo late) & echo early; wait")),
    Case("pipeline", sh("seq 1 1000 | grep 7 | tail -3")),
    Case("sigpipe-inside", sh("yes | head -1; true")),
    Case("deep-tree", sh("sh -c 'sh -c \"sh -c \\\"echo deep; exit 9\\\"\"'")),
    Case("exit-trap", sh("trap 'echo bye; exit 6' EXIT; false")),
    Case("nested-dwrap", [*sh(f"{DWRAP} sh -c 'echo inner; exit 8'")]),
]
CASES = [*STATUS, *SIGNALS, *STREAMS, *ARGUMENTS, *ENVIRONMENT, *CIRCUMSTANCES, *STDIN, *ON_DISK, *PROCESSES]
OTHER_USER = [
    Case("nobody", sh("id; umask; : >f; stat -c '%u %g %a' f; grep Groups /proc/self/status"), before=become_nobody),
    Case("nobody-status", sh("exit 42"), before=become_nobody),
    Case("nobody-compiles", ["gcc", "-c", "a.c"], files={"a.c": b"int x;\n"}, before=become_nobody),
    Case("nobody-dies", sh("kill -TERM $$"), before=become_nobody),
]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that every user may enter; pytest's own are private."""
    with tempfile.TemporaryDirectory(prefix="dwrap-battery-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def farm(place: Path) -> Iterator[Farm]:
    with Farm(place) as running:
        yield running


def compare(case: Case, farm: Farm, place: Path, address: str) -> None:
    """Observe the case both ways; the second must have run on an agent."""
    environment = farm.environment(DWRAP_HOST=address)
    direct = observe(case, place / "work", environment)
    before = sum(farm.per_agent().values())
    through = observe(case, place / "work", environment, [DWRAP])
    assert through.status == direct.status, through.stderr
    assert through.stdout == direct.stdout
    assert through.stderr == direct.stderr
    assert through.left_on_disk == direct.left_on_disk
    assert through.by_age == direct.by_age
    assert through.stdin_offset == direct.stdin_offset
    assert sum(farm.per_agent().values()) == before + 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_looks_as_when_run_directly(case: Case, farm: Farm, place: Path) -> None:
    compare(case, farm, place, farm.over("ipc"))


@AS_ROOT
@pytest.mark.parametrize("case", OTHER_USER, ids=lambda case: case.name)
def test_as_another_user(case: Case, farm: Farm, place: Path) -> None:
    compare(case, farm, place, farm.over("tcp"))


def test_both_agents_worked(farm: Farm, place: Path) -> None:
    """The two agents share the battery; an idle farm prefers none of them for ever."""
    for _ in range(4):
        observe(Case("true", ["true"]), place / "work", farm.environment(), [DWRAP])
    assert min(farm.per_agent().values()) > 0, farm.per_agent()


def test_battery_is_large_enough() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
