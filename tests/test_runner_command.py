"""The runner: what a command finds around it (identity, limits, environment, TMPDIR), and what happens to its files."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from runner_bench import ENV, ROOT_ONLY, Bench, bench, sh

from dwrap.agent.accounts import Identity

__all__ = ["bench"]  # a fixture: importing it is its use


def test_umask_nice_limits_and_ignored_signals(bench: Bench) -> None:
    claims = [("umask", "027"), ("nice", 7), ("limit", "nofile:99:200"), ("limit", "core:0:unlimited"), ("ignore", 13), ("ignore", 1)]
    script = "umask; nice; ulimit -Sn; ulimit -Hn; grep SigIgn /proc/self/status; touch made; cat /proc/self/status | grep -i nonewprivs"
    job = bench.run(*sh(script), claims=claims)
    words = job.out[1].split()
    assert words[:4] == [b"0027", b"7", b"99", b"200"]
    assert int(words[5], 16) & 0x7FFF_FFFF == 1 << 12 | 1 << 0  # 32 and 33 are the C library's
    assert words[-1] == b"1"
    assert stat.S_IMODE((bench.cwd / "made").stat().st_mode) == 0o640


def test_limits_are_never_raised(bench: Bench) -> None:
    hard = int(subprocess.run(["/bin/sh", "-c", "ulimit -Hn"], capture_output=True, check=True).stdout)
    job = bench.run(*sh("ulimit -Hn"), claims=[("limit", f"nofile:{hard * 2}:{hard * 2}")])
    assert int(job.out[1]) == hard


def test_environment_is_exact(bench: Bench) -> None:
    env = {"PATH": ENV["PATH"], "ODD name": "x=y", "EMPTY": "", "BIG": "b" * 100_000, "TMP": "/old"}
    job = bench.run("env", "-0", env=env)
    seen = dict(item.split(b"=", 1) for item in bytes(job.out[1]).split(b"\0") if item)
    work = seen.pop(b"TMPDIR")
    assert seen.pop(b"DWRAP_JOB") == b"job0"
    assert seen.pop(b"TMP") == work
    assert seen == {key.encode(): value.encode() for key, value in env.items() if key != "TMP"}


def test_private_tmpdir_is_made_and_removed(bench: Bench) -> None:
    victim = bench.folder / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    litter = f"mkdir -p a/b; touch a/b/c d; ln -s {victim} link; mkdir locked; touch locked/x; chmod 0 locked"
    script = f'stat -c "%a %u" "$TMPDIR"; cd "$TMPDIR"; {litter}'
    job = bench.run(*sh(script))
    assert job.out[1] == f"700 {os.geteuid()}\n".encode()
    assert (victim / "file").read_text() == "kept"
    assert not scratch_of(bench)


def scratch_of(bench: Bench) -> list[Path]:
    """The temporary directories of jobs that are there."""
    return [path for path in bench.work.iterdir() if path.name != "runs"]


def test_a_tmpdir_of_any_depth_is_removed(bench: Bench) -> None:
    script = "import os; os.chdir(os.environ['TMPDIR'])\nfor i in range(1500): os.mkdir('d'); os.mkdir('e'); open('f', 'w'); os.chdir('d')"
    assert bench.run(sys.executable, "-c", script).status() == 0
    assert not scratch_of(bench)


def test_the_mark_of_a_job_is_set_once(bench: Bench) -> None:
    job = bench.run("env", env={**ENV, "DWRAP_JOB": "forged"})
    assert [line for line in bytes(job.out[1]).split(b"\n") if line.startswith(b"DWRAP_JOB=")] == [b"DWRAP_JOB=job0"]


def test_reasons_are_one_printable_line(bench: Bench) -> None:
    end = bench.run("true", cwd=str(bench.cwd / "new\nline\x1b")).finish()
    assert end.text("reason").isprintable()


def test_tmpdir_on_the_shared_tree_is_kept(bench: Bench) -> None:
    bench.roots = (str(bench.folder),)
    env = {**ENV, "TMPDIR": str(bench.cwd)}
    assert bench.run(*sh('echo "$TMPDIR"'), env=env).out[1].decode().strip() == str(bench.cwd)
    gone = {**ENV, "TMPDIR": str(bench.folder / "missing")}
    assert str(bench.work) in bench.run(*sh('echo "$TMPDIR"'), env=gone).out[1].decode()
    beside = {**ENV, "TMPDIR": str(bench.folder) + "-beside"}
    assert str(bench.work) in bench.run(*sh('echo "$TMPDIR"'), env=beside).out[1].decode()


@pytest.mark.parametrize(
    ("argv", "word", "text"),
    [
        (("no-such-command",), "not_found", "no-such-command"),
        (("./plain",), "not_executable", "ermission denied"),
        (("/",), "not_executable", "/"),
    ],
)
def test_commands_that_cannot_run(bench: Bench, argv: tuple[str, ...], word: str, text: str) -> None:
    (bench.cwd / "plain").write_text("text")
    end = bench.run(*argv).finish()
    assert end.text("error") == word
    assert text in end.text("reason")
    assert end.get("status") is None


def test_a_script_without_interpreter_line_runs_in_the_shell(bench: Bench) -> None:
    (bench.cwd / "script").write_text("exit 9\n")
    (bench.cwd / "script").chmod(0o755)
    assert os.WEXITSTATUS(bench.run("./script").status()) == 9


def test_a_missing_directory(bench: Bench) -> None:
    end = bench.run("true", cwd=bench.cwd / "missing").finish()
    assert end.text("error") == "cwd"
    assert "missing" in end.text("reason")


def test_usage_is_reported(bench: Bench) -> None:
    end = bench.run(*sh("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")).finish()
    assert end.number("user_ms") > 10
    assert end.number("run_ms") >= end.number("user_ms") * 0.5
    assert end.number("max_rss_bytes") > 100_000
    assert end.text("tree") == bench.tree


@pytest.mark.parametrize("views", [False, True])
def test_outputs_are_flushed(bench: Bench, views: bool) -> None:
    bench.roots = (str(bench.folder),)
    (bench.folder / "named").mkdir()
    (bench.folder / "other").mkdir()
    old = bench.cwd / "old"
    old.write_text("old")
    os.utime(old, (1, 1))
    os.mkfifo(bench.cwd / "fifo")
    named = bench.folder / "named" / "object.o"
    script = f"echo x > new; mkdir -p sub; echo y > sub/deep; echo z > $0; echo w > {bench.folder}/other/o"
    end = bench.run("/bin/sh", "-c", script, str(named), paths=[str(bench.folder / "other")], views=views).finish()
    assert end.text("outputs") == ("exact" if views else "coherent")
    assert end.number("outputs_count") == (4 if views else 0)


@ROOT_ONLY
def test_runs_as_the_submitter(bench: Bench) -> None:
    nobody = pwd.getpwnam("nobody")
    bench.cwd.chmod(0o777)
    identity = Identity(nobody.pw_uid, nobody.pw_gid, (nobody.pw_gid, 20), become=True)
    script = 'id -u; id -g; id -G; touch mine; stat -c %u "$TMPDIR"; mkdir -p "$TMPDIR/deep/er"; grep CapEff /proc/self/status'
    job = bench.run(*sh(script), identity=identity)
    uid, gid = str(nobody.pw_uid), str(nobody.pw_gid)
    assert job.out[1].decode().splitlines() == [uid, gid, f"{gid} 20", uid, "CapEff:\t0000000000000000"], job.out
    assert (bench.cwd / "mine").stat().st_uid == nobody.pw_uid


@ROOT_ONLY
@pytest.mark.parametrize(
    ("uid", "claim", "limits"),
    [(65534, "unlimited:unlimited", "50 50"), (65534, "20:30", "20 30"), (65534, "40:90", "40 50"), (0, "", "")],
)
def test_only_users_have_a_limit_of_processes(bench: Bench, uid: int, claim: str, limits: str) -> None:
    bench.processes = 50
    read = "grep 'Max processes' /proc/self/limits"
    own = subprocess.run(["/bin/sh", "-c", read], capture_output=True, check=True).stdout.split()[2:4]
    claims = [("limit", f"nproc:{claim}")] if claim else []
    job = bench.run(*sh(read), identity=Identity(uid, uid, (), become=True), cwd="/", claims=claims)
    assert job.out[1].split()[2:4] == (limits.encode().split() or own)


@pytest.mark.parametrize(("dropped", "told"), [((), None), ((7, 44), "7,44"), (range(1, 100), ",".join(map(str, range(1, 65))) + ",…")])
def test_groups_that_were_dropped_are_told(bench: Bench, dropped: Sequence[int], told: str | None) -> None:
    end = bench.run("true", identity=Identity(0, 0, (), become=False, dropped=tuple(dropped))).finish()
    assert (end.text("groups_dropped") or None) == told


KEYCTL = {"x86_64": 250, "aarch64": 219}
GET_SESSION_KEYRING = "import ctypes, sys; print(ctypes.CDLL(None).syscall(int(sys.argv[1]), 0, -3, 0))"


@ROOT_ONLY
@pytest.mark.parametrize("becomes", [True, False])
def test_users_have_no_session_keyring_in_common(bench: Bench, becomes: bool) -> None:
    """Whoever has it may read and change what others left in it. One who runs jobs of their own only keeps their own, as here."""
    number = KEYCTL.get(os.uname().machine)
    if number is None or not Path("/proc/keys").exists():
        pytest.skip("this kernel has no keyrings, or this test does not know its number for keyctl")
    identity = Identity(65534, 65534, (), become=True) if becomes else Identity(os.geteuid(), os.getegid(), (), become=False)
    ask = ["/usr/bin/python3", "-c", GET_SESSION_KEYRING, str(number)]
    own = int(subprocess.run(ask, capture_output=True, check=True).stdout)
    seen = [int(bench.run(*ask, identity=identity, cwd="/").out[1]) for _ in range(2)]
    assert len({own, *seen}) == (3 if becomes else 1)


@ROOT_ONLY
def test_the_directory_is_entered_as_the_submitter(bench: Bench) -> None:
    bench.cwd.chmod(0o700)
    end = bench.run("true", identity=Identity(65534, 65534, (), become=True)).finish()
    assert end.text("error") == "cwd"


@ROOT_ONLY
def test_negative_nice_is_not_granted_to_users(bench: Bench) -> None:
    job = bench.run("nice", claims=[("nice", -5)], cwd="/", identity=Identity(65534, 65534, (), become=True))
    assert int(job.out[1]) == os.getpriority(os.PRIO_PROCESS, 0)
