"""environment/: what counts of what is installed, each package database; and a farm whose machines have different compilers.

The databases are made here, of the form that their managers write. For the farm, one agent is started where another file lies on dpkg's
status (a mount namespace of its own: needs root), so that everything else is real.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import textwrap
import unittest.mock
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from farm import DWRAP, Farm, eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from runner_bench import sanitized

from dwrap.agent.stock import LOOK_SECONDS, Stock
from dwrap.protocol.likeness import difference

RUNNER = Path(DWRAP).with_name("dwrap-runner")
DPKG = Path("/var/lib/dpkg/status")
DEB = """\
    Package: {name}
    Status: install ok {state}
    Architecture: {arch}
    Version: {version}
    Description: first line
     Package: not-a-field
    """


def deb(name: str, version: str, state: str = "installed", arch: str = "amd64") -> str:
    return textwrap.dedent(DEB).format(name=name, version=version, state=state, arch=arch)


def put(root: Path, path: str, text: str) -> Path:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def told(root: Path | str, *more: str) -> tuple[dict[str, str], list[str]]:
    done = subprocess.run([RUNNER, "--environment", root, *more], capture_output=True, text=True, check=True, timeout=60)
    head, _, packages = done.stdout.partition("\n\n")
    return dict(line.split("=", 1) for line in head.splitlines()), sorted(packages.splitlines())


def line(root: Path | str) -> str:
    return told(root)[0]["environment"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "/etc/os-release", 'NAME="Debian"\nID=debian\nVERSION_ID="12"\n')
    put(tmp_path, DPKG.as_posix(), "\n".join([deb("g++-12", "12.2.0-14"), deb("g++", "4:12.2.0-3"), deb("libc6", "2.36-9")]))
    return tmp_path


def test_dpkg(root: Path) -> None:
    facts, packages = told(root)
    machine = os.uname().machine
    assert facts["environment"].startswith(f"{machine} debian/12 g++=12.2.0-14 libc=2.36-9 #")
    assert packages == ["g++-12:amd64 12.2.0-14", "g++:amd64 4:12.2.0-3", "libc6:amd64 2.36-9"]


@pytest.mark.parametrize(
    ("more", "counts"),
    [
        (deb("libfoo-dev", "1.2"), True),
        (deb("firefox", "1"), False),
        (deb("gcc-12-doc", "1"), False),
        (deb("dwrap", "2.0"), False),
        (deb("dwrap-agent", "2.0"), False),
        (deb("libfoo-dev", "1.2", "config-files"), False),
        (deb("libfoo-dev", "1.2", "not-installed"), False),
        (deb("libfoo-dev", "1.2", "half-configured"), True),
        (deb("libc6", "2.36-9", arch="i386"), True),
        *(
            (deb(name, "1"), False) for name in ("libllvm15", "llvm-libs", "libpython3.11", "libperl5.36")
        ),  # Mesa, gdb and vim have them too
        *(
            (deb(name, "1"), True)
            for name in ("gcc13", "gcc13-c++", "cpp13", "clang17", "llvm17", "rust1.75", "go1.21", "python311", "samurai")
        ),
    ],
)
def test_what_counts(root: Path, more: str, counts: bool) -> None:
    before = line(root)
    with (root / DPKG.relative_to("/")).open("a") as status:
        status.write("\n" + more)
    assert (line(root) != before) == counts


def test_the_order_of_a_database_does_not_count(root: Path) -> None:
    status = root / DPKG.relative_to("/")
    paragraphs = [deb(f"lib{n}-dev", f"{n}.0") for n in range(50)] + [deb("g++-11", "11.3"), deb("g++-12", "12.2"), deb("clang-14", "14.0")]
    seen = set()
    for seed in range(5):
        random.Random(seed).shuffle(paragraphs)
        status.write_text("\n".join(paragraphs))
        seen.add(line(root))
    assert len(seen) == 1
    assert "g++=11.3,12.2 clang=14.0 #" in seen.pop()


def test_of_many_versions_the_same_are_shown_in_any_order(root: Path) -> None:
    """CI images have five of each compiler; rpm lists in the order of a hash, readdir(3) in any."""
    paragraphs = [deb(f"g++-{n}", f"{n}.1") for n in (10, 11, 12, 13, 14)] + [deb("libc6", "2.36-9"), deb("libc6", "2.36-9", arch="i386")]
    seen = set()
    for order in (paragraphs, paragraphs[::-1], paragraphs[3:] + paragraphs[:3]):
        put(root, DPKG.as_posix(), "\n".join(order))
        seen.add(line(root))
    assert len(seen) == 1, seen
    assert " libc=2.36-9 #" in seen.pop()


@pytest.mark.skipif(shutil.which("setarch") is None, reason="needs setarch: apt-get install util-linux")
def test_under_linux32_it_is_another_machine(root: Path) -> None:
    """What wrappers remember is found by its stamp: one `setarch linux32 make` must not tell all others that this is an i686."""
    there = subprocess.run(
        ["setarch", "linux32", RUNNER, "--environment", root], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    facts = told(root)[0]
    assert f"environment={facts['environment']}\n" not in there
    assert f"stamp={facts['stamp']}\n" not in there


def test_apk(tmp_path: Path) -> None:
    put(tmp_path, "/etc/os-release", "ID=alpine\nVERSION_ID=3.19.1\n")
    compiler, library, editor = "C:Q1x=\nP:g++\nV:13.2.1-r0\nA:x86_64\nF:usr/bin\nR:g++\n", "P:musl\nV:1.2.4-r2\nA:x86_64\n", "P:vim\nV:9\n"
    put(tmp_path, "/lib/apk/db/installed", "\n".join([compiler, library, editor]))
    facts, packages = told(tmp_path)
    assert " alpine/3.19.1 g++=13.2.1-r0 libc=1.2.4-r2 #" in facts["environment"]
    assert packages == ["g++:x86_64 13.2.1-r0", "musl:x86_64 1.2.4-r2"]


def test_pacman(tmp_path: Path) -> None:
    for name in ("gcc-13.2.1-3", "glibc-2.38-7", "xorg-server-21.1-1", "ALPM_DB_VERSION"):
        put(tmp_path, f"/var/lib/pacman/local/{name}/desc", "")
    facts, packages = told(tmp_path)
    assert " unknown gcc=13.2.1-3 libc=2.38-7 #" in facts["environment"]
    assert packages == ["gcc 13.2.1-3", "glibc 2.38-7"]


def test_pacman_has_headers_in_any_package(tmp_path: Path) -> None:
    """Nothing is called -dev there."""
    put(tmp_path, "/var/lib/pacman/local/boost-1.84.0-1/files", "%FILES%\nusr/\nusr/include/\nusr/include/boost/any.hpp\n")
    put(tmp_path, "/var/lib/pacman/local/firefox-1-1/files", "%FILES%\nusr/\nusr/bin/firefox\nusr/share/usr/include/\n")
    put(tmp_path, "/var/lib/pacman/local/gcc-13.2.1-3/desc", "")
    assert told(tmp_path)[1] == ["boost-dev 1.84.0-1", "gcc 13.2.1-3"]


SPEC = """\
Name: gcc-c++
Epoch: 1
Version: 13.2.1
Release: 6
Summary: nothing
License: none
BuildArch: noarch
%description
nothing
%files
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("rpmbuild"), reason="needs root and rpmbuild: apt-get install rpm")
def test_rpm(tmp_path: Path) -> None:
    spec, root = put(tmp_path, "it.spec", SPEC), tmp_path / "root"
    root.mkdir()
    subprocess.run(["rpmbuild", "-bb", "-D", f"_topdir {tmp_path}", spec], check=True, capture_output=True, timeout=60)
    packages = list(tmp_path.glob("RPMS/noarch/*.rpm"))
    stamp = told(root)[0]["stamp"]
    subprocess.run(["rpm", "--root", root, "-i", "--justdb", "--nodeps", "--dbpath", "/var/lib/rpm", *packages], check=True, timeout=60)
    facts, known = told(root)
    assert known == ["gcc-c++:noarch 1:13.2.1-6"]
    assert "g++=1:13.2.1-6" in facts["environment"]
    assert facts["stamp"] != stamp
    assert told(root, facts["stamp"])[0].keys() == {"stamp"}, "that root has asked changes something, every time"


@pytest.mark.parametrize("program", ["/usr/local/bin/g++", "/usr/local/go/bin/go"])
def test_programs_that_nobody_packaged(root: Path, program: str) -> None:
    before = line(root)
    compiler = put(root, program, "one")
    first = line(root)
    assert before != first
    assert any(package.startswith(f"{program} #") for package in told(root)[1])
    compiler.write_text("two")
    second = line(root)
    assert second not in (before, first)
    compiler.unlink()
    put(root, "/usr/local/bin/notes", "three")
    (root / "usr/local/bin/gcc").symlink_to(put(root, "/opt/dwrap/bin/dwrap", "a wrapper"))
    assert line(root) == before


def test_a_program_that_is_written_over_in_place_is_noticed(root: Path) -> None:
    compiler = put(root, "/usr/local/bin/gcc", "one")
    stamp = told(root)[0]["stamp"]
    compiler.write_text("other")
    assert "environment" in told(root, stamp)[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user as well")
def test_root_and_users_come_to_the_same(root: Path) -> None:
    put(root, "/usr/local/bin/gcc", "secret").chmod(0o700)
    put(root, "/etc/dwrap/environment", "secret\n").chmod(0o600)
    for folder in (root, *root.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    program = root / "runner"
    shutil.copy(RUNNER, program)
    done = subprocess.run([*as_nobody, program, "--environment", root], capture_output=True, text=True, check=True, timeout=60)
    assert f"environment={line(root)}\n" in done.stdout


def test_which_of_several_compilers_is_cc_counts(root: Path) -> None:
    (root / "etc/alternatives").mkdir()
    seen = [line(root)]
    for target in ("/usr/bin/gcc", "/usr/bin/clang"):
        (root / "etc/alternatives/cc").unlink(missing_ok=True)
        (root / "etc/alternatives/cc").symlink_to(target)
        seen.append(line(root))
    for name in ("awk", "java", "javac", "yacc", "lex"):
        (root / "etc/alternatives" / name).symlink_to(f"/usr/bin/another-{name}")
        seen.append(line(root))
    (root / "etc/alternatives/editor").symlink_to("/usr/bin/vim")
    (root / "etc/alternatives/automake.1.gz").symlink_to("/usr/share/man/man1/automake-1.16.1.gz")  # not where dpkg leaves out manuals
    assert len(set(seen)) == 8
    assert line(root) == seen[-1]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("dpkg-deb"), reason="needs root and dpkg")
def test_while_dpkg_is_at_work_a_machine_is_like_no_other(tmp_path: Path) -> None:
    """With the real dpkg, on a root of its own: what it has unpacked already lies there under the old status until it ends."""
    root = tmp_path / "root"
    (root / "var/lib/dpkg/info").mkdir(parents=True)
    put(root, DPKG.as_posix(), "")
    fifo, names = tmp_path / "go", ("g++-12", "slow")
    os.mkfifo(fifo)
    for name, version in zip(names, ("2.0", "1.0"), strict=True):
        control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
        put(tmp_path, f"{name}/DEBIAN/control", control)
        put(tmp_path, f"{name}/usr/bin/{name}", version)
    put(tmp_path, "slow/DEBIAN/preinst", f"#!/bin/sh\nread x <{fifo}\n").chmod(0o755)
    for name in names:
        subprocess.run(["dpkg-deb", "-b", tmp_path / name, tmp_path / f"{name}.deb"], check=True, capture_output=True)
    before = line(root)
    dpkg = ["dpkg", f"--root={root}", "--force-script-chrootless", "-i", *(tmp_path / f"{name}.deb" for name in names)]
    with subprocess.Popen(dpkg, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: (root / "usr/bin/g++-12.dpkg-new").exists() or (root / "usr/bin/g++-12").exists(), saying="the new compiler")
        meanwhile = told(root)
        fifo.write_text("go\n")
    assert process.returncode == 0
    after = line(root)
    assert "g++=2.0" in after
    assert meanwhile[0]["environment"] not in (before, after)
    assert any(package.startswith("unfinished ") for package in meanwhile[1])


def test_what_the_operator_names(root: Path) -> None:
    before = line(root)
    put(root, "/etc/dwrap/environment", "# a comment\n\n")
    assert line(root) == before
    put(root, "/etc/dwrap/environment", "toolchain /opt/sdk-7\n")
    assert line(root) != before


def test_what_the_operator_names_counts_once_everybody_may_read_it(root: Path) -> None:
    file = put(root, "/etc/dwrap/environment", "image 7\n")
    file.chmod(0o600)
    facts = told(root)[0]
    file.chmod(0o644)
    assert told(root, facts["stamp"])[0].get("environment") not in (None, facts["environment"])


def test_programs_that_change_their_names_are_noticed(root: Path) -> None:
    one, other = (put(root, f"/usr/local/bin/{name}", name) for name in ("gcc", "g++"))
    facts = told(root)[0]
    one.rename(one.with_name("kept"))
    other.rename(one)
    one.with_name("kept").rename(other)
    assert told(root, facts["stamp"])[0].get("environment") not in (None, facts["environment"])


def test_where_nobody_manages_packages_the_compilers_count(tmp_path: Path) -> None:
    """Gentoo, Void, an image made by hand: two of those with different compilers must not be alike because nothing is known of either."""
    put(tmp_path, "/etc/os-release", "ID=gentoo\n")
    compiler = put(tmp_path, "/usr/bin/gcc", "one")
    facts, packages = told(tmp_path)
    assert [package.split()[0] for package in packages] == ["/usr/bin/gcc"]
    fresh = put(tmp_path, "/usr/bin/gcc.new", "two")
    fresh.rename(compiler)
    assert told(tmp_path, facts["stamp"])[0].get("environment") not in (None, facts["environment"])


def test_long_and_strange_text_stays_one_short_line(root: Path) -> None:
    put(root, DPKG.as_posix(), "\n".join(deb(f"g++-{n}", f"1\t=#,{'x' * 3000}{n}") for n in range(30)) + "\nPackage: " + "y" * 100_000)
    put(root, "/etc/os-release", "ID='a b\x1b'\nVERSION_ID=" + "9" * 5_000 + "\n")
    said = line(root)
    assert len(said) < 240
    assert said.isprintable()
    assert len(said.rpartition(" #")[2]) == 16


PIECES = [
    b"Package: ", b"Version: ", b"Status: install ok installed", b"g++-12", b"\n", b"\n\n", b"P:", b"V:", b"ID=", b"\0", b"\xff", b" ",
]  # fmt: skip


def test_what_does_not_fit_into_the_line_is_not_told_as_missing(root: Path) -> None:
    many = [deb(f"{tool}-{n}", f"{n}.4.0-1ubuntu1~22.04.{n}") for tool in ("g++", "gcc") for n in (10, 11, 12)]
    lines = []
    for clangs in ((14,), (13, 14, 15)):
        clang = [deb(f"clang-{n}", f"1:{n}.0.7-0ubuntu0.22.04.3") for n in clangs]
        put(root, DPKG.as_posix(), "\n".join([*many, *clang, deb("libc6", "2.35-0ubuntu3.8")]))
        lines.append(line(root))
    assert difference(*lines).startswith("has clang 1:14.0.7")
    assert difference(*lines[::-1]) == "has clang several, you have 1:14.0.7-0ubuntu0.22.04.3"


@given(st.lists(st.sampled_from(PIECES)))
@settings(max_examples=60, deadline=None)
def test_no_database_makes_it_read_where_it_must_not(pieces: list[bytes]) -> None:
    program = sanitized()
    if program is None:
        pytest.skip("this compiler has no address sanitizer")
    with tempfile.TemporaryDirectory() as folder:
        for path in (DPKG.as_posix(), "/lib/apk/db/installed", "/etc/os-release", "/etc/dwrap/environment"):
            put(Path(folder), path, "").write_bytes(b"".join(pieces) * 40)
        for name in (b"-", b"--", b"a-", b"-1-2", b"gcc-1"):
            (Path(folder) / "var/lib/pacman/local" / os.fsdecode(name)).mkdir(parents=True)
        done = subprocess.run([program, "--environment", folder], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    said = done.stdout.partition(b"\n")[0]
    assert len(said) < 256
    assert said.decode("ascii").isprintable()


def test_the_stamp_is_old_when_anything_changed(root: Path) -> None:
    stamp = told(root)[0]["stamp"]
    assert told(root, stamp) == ({"stamp": stamp}, [])
    put(root, "/etc/dwrap/environment", "x\n")
    assert told(root, stamp)[0]["environment"]


def test_an_agent_notices_an_upgrade(root: Path) -> None:
    stock = Stock(RUNNER, str(root))
    first = stock.first()
    assert first.environment == line(root)
    assert "g++-12:amd64 12.2.0-14" in first.packages
    now = 0.0

    def news() -> object:
        nonlocal now
        now += LOOK_SECONDS / 2
        return stock.news(now)

    assert not any(news() for _ in range(6))
    with unittest.mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
        assert not any(news() for _ in range(6)), "an agent whose jobs have used up all threads lives on"
    put(root, DPKG.as_posix(), deb("g++-13", "13.2.0-1"))
    found = eventually(news)
    assert "g++=13.2.0-1" in found.environment
    assert found.environment == line(root)


def test_an_agent_that_cannot_tell_any_more_is_like_no_other(root: Path) -> None:
    """What was installed when it could be read last is no more: jobs of that environment must not come."""
    stock, status = Stock(RUNNER, str(root)), root / DPKG.relative_to("/")
    before, now = stock.first(), 0.0
    kept = status.rename(status.with_name("kept"))

    def news() -> object:
        nonlocal now
        now += LOOK_SECONDS
        return stock.news(now)

    status.mkdir()  # nobody can read that, root neither
    assert eventually(news).environment == ""
    assert not any(news() for _ in range(3))
    status.rmdir()
    kept.rename(status)
    eventually(lambda: news() == before)  # a look that is under way may have seen neither


def test_an_agent_that_cannot_tell_at_its_start_says_why(root: Path) -> None:
    put(root, "/var/lib/rpm/rpmdb.sqlite", "no database")
    with pytest.raises(OSError, match=r"a package database cannot be read .*install rpm"):
        Stock(RUNNER, str(root)).first()


BESIDE = """
import subprocess, sys, threading, time
from pathlib import Path
from dwrap.agent import workplace
from dwrap.agent.runner import Runners, find_program

workplace.become_subreaper()
runners = Runners(find_program(), Path(sys.argv[1]), ("/",), "subreaper", 100)
statuses = []
looking = threading.Thread(target=lambda: statuses.append(subprocess.run(["sh", "-c", "sleep 0.5; exit 7"]).returncode))
orphan = int(subprocess.run(["sh", "-c", "sleep 100 >/dev/null 2>&1 & echo $!"], capture_output=True, check=True).stdout)
looking.start()
while looking.is_alive():
    runners.kill_orphans()
    time.sleep(0.01)
print(statuses, Path(f"/proc/{orphan}").exists())
"""


def test_a_look_is_not_taken_for_something_that_a_job_left(tmp_path: Path) -> None:
    """Where agents hold jobs by reaping, what has no place in their books is killed each second; rpm may need as long."""
    done = subprocess.run([sys.executable, "-c", BESIDE, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[7] False\n", done.stderr


# ---- a farm ----


def with_other_status(file: Path) -> list[str]:
    """A command prefix: this file lies on dpkg's status."""
    return ["unshare", "--mount", "sh", "-c", f'mount --bind {file} {DPKG} && exec "$@"', "sh"]


needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 or not DPKG.exists() or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
    reason="needs root, mount namespaces and dpkg",
)


@pytest.fixture
def other(short_dir: Path) -> Path:
    """dpkg's status, as if g++ were of version 13.2.0-1 here."""
    paragraphs = DPKG.read_text("utf-8").split("\n\n")
    kept = [paragraph for paragraph in paragraphs if not paragraph.startswith("Package: g++-")]
    file = short_dir / "status"
    file.write_text("\n\n".join([*kept, deb("g++-13", "13.2.0-1")]))
    return file


@pytest.fixture
def mixed(farm: Farm, other: Path) -> Farm:
    """Two agents as this machine, one of the other kind."""
    farm.add_agent("other", 2, under=with_other_status(other))
    return farm


def desk(farm: Farm, argv: Sequence[str | Path], cwd: Path, under: Sequence[str] = (), **more: str) -> subprocess.CompletedProcess[str]:
    runtime = cwd / ("run" + "".join(under[:1]))
    runtime.mkdir(0o700, exist_ok=True)
    environment = farm.environment(XDG_RUNTIME_DIR=str(runtime), **more)
    return subprocess.run([*under, *argv], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def places(farm: Farm) -> list[str]:
    return [job["where"] for job in farm.jobs()]


@needs_mounts
def test_two_environments_are_two_pools_at_once(mixed: Farm, other: Path, tmp_path: Path) -> None:
    for _ in range(6):
        assert desk(mixed, [DWRAP, "true"], tmp_path).returncode == 0
        assert desk(mixed, [DWRAP, "true"], tmp_path, with_other_status(other)).returncode == 0
    here, there = places(mixed)[::2], places(mixed)[1::2]
    assert set(here) <= {"agent-1", "agent-2"}
    assert set(there) == {"other"}
    shown = desk(mixed, ["dwrapctl", "agents"], tmp_path).stdout
    assert ": agent-1 agent-2" in shown
    assert "g++=13.2.0-1" in shown
    assert desk(mixed, ["dwrapctl", "slots"], tmp_path).stdout == "4\n"
    assert desk(mixed, ["dwrapctl", "slots"], tmp_path, with_other_status(other)).stdout == "2\n"


@needs_mounts
def test_another_compiler_is_refused_with_the_line_that_says_why(short_dir: Path, other: Path, tmp_path: Path) -> None:
    with Farm(short_dir, agents=0) as farm:
        farm.add_agent("other", 2, under=with_other_status(other))
        told = f"no agent has your environment: agent other has g++ 13.2.0-1, you have {version_here()}"
        assert desk(farm, [DWRAP, "--explain", "true"], tmp_path).stdout == f"nowhere: {told}\n"
        first = desk(farm, [DWRAP, "true"], tmp_path, DWRAP_FALLBACK="local", DWRAP_VERBOSE="1")
        assert (first.returncode, told in first.stderr) == (0, True), first
        again = desk(farm, [DWRAP, "sh", "-c", "echo mine"], tmp_path, DWRAP_FALLBACK="local")
        assert (again.stdout, again.stderr) == ("mine\n", "")
        assert {job["where"] for job in farm.jobs()} == {"here"}
        assert [job["queued_ms"] is None for job in farm.jobs()] == [True, True]
        assert told in desk(farm, ["dwrapctl", "why"], tmp_path).stdout
        doctor = desk(farm, ["dwrapctl", "doctor"], tmp_path)
        assert "fail  environment: no agent is as this machine" in doctor.stdout
        difference = f"agent other: has g++ 13.2.0-1, you have {version_here()}: g++-12"
        assert difference in doctor.stdout
        assert "g++-13:amd64 13.2.0-1 (you: none)" in doctor.stdout
        assert "agent other: the same tree" in doctor.stdout  # all else is looked at even so
        assert desk(farm, [DWRAP, "true"], tmp_path, DWRAP_ENVIRONMENT="any").returncode == 0
        assert places(farm)[-1] == "other"
        refused = desk(farm, [DWRAP, "true"], tmp_path, DWRAP_ENVIRONMENT="some")
        assert refused.returncode == 125
        assert "DWRAP_ENVIRONMENT=some is not understood" in refused.stderr


@needs_mounts
def test_after_ten_seconds_nobody_waits_for_what_is_not_there(short_dir: Path, other: Path, tmp_path: Path) -> None:
    """A build of thousands of commands on a desktop of an old image must not wait ten seconds for each."""
    with Farm(short_dir, agents=0) as farm:
        farm.add_agent("other", 2, under=with_other_status(other))
        desk(farm, [DWRAP, "true"], tmp_path, DWRAP_FALLBACK="local")
        before = farm.status()["uptime_seconds"]
        for _ in range(5):
            assert desk(farm, [DWRAP, "true"], tmp_path, DWRAP_FALLBACK="local").returncode == 0
        assert farm.status()["uptime_seconds"] - before < 8
        farm.add_agent("same", 2)
        assert desk(farm, [DWRAP, "true"], tmp_path).returncode == 0
        assert places(farm)[-1] == "same"


@needs_mounts
def test_an_operator_may_allow_it_and_then_it_is_marked(short_dir: Path, other: Path, tmp_path: Path) -> None:
    with Farm(short_dir, agents=0, more=["--environment", "warn"]) as farm:
        farm.add_agent("other", 1, under=with_other_status(other))
        said = desk(farm, [DWRAP, "--explain", "true"], tmp_path).stdout
        assert said.startswith("agent other: ")
        assert "though it has g++ 13.2.0-1" in said
        assert desk(farm, [DWRAP, "true"], tmp_path).returncode == 0
        assert f"other has g++ 13.2.0-1, you have {version_here()}" in desk(farm, ["dwrapctl", "why"], tmp_path).stdout
        assert "warn  environment: no agent is as this machine" in desk(farm, ["dwrapctl", "doctor"], tmp_path).stdout
        farm.add_agent("same", 1)
        for _ in range(4):
            desk(farm, [DWRAP, "true"], tmp_path)
        assert places(farm)[-4:] == ["same"] * 4


@needs_mounts
def test_an_agent_that_is_upgraded_leaves_its_pool(farm: Farm, other: Path, tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_bytes(DPKG.read_bytes())
    farm.add_agent("changing", 1, under=with_other_status(status))

    def identities() -> Mapping[str, str]:
        return {agent["name"]: agent["identity"] for agent in farm.status()["agents"]}

    assert len(set(identities().values())) == 1
    status.write_bytes(other.read_bytes())  # in place: the mount stays on the same file
    eventually(lambda: "g++=13.2.0-1" in identities()["changing"], 30, "the agent to notice")
    assert "g++=13" not in identities()["agent-1"]


def test_wrappers_remember_what_is_installed(farm: Farm, tmp_path: Path) -> None:
    for _ in range(2):
        assert desk(farm, [DWRAP, "true"], tmp_path).returncode == 0
    facts, _ = told("")
    [kept] = (tmp_path / "run" / "dwrap").glob("environment-*")
    text = kept.read_text()
    assert (kept.name, text) == (f"environment-{facts['stamp']}", facts["environment"])
    assert {agent["identity"] for agent in farm.status()["agents"]} == {text}
    kept.write_text(f"another machine #{'0' * 16}")  # believed, for the stamp is right; and doctor hears the same
    for words in (["true"], []):
        assert "another machine" in desk(farm, [DWRAP, "--explain", *words], tmp_path).stdout or words
    assert "no agent has your environment" in desk(farm, [DWRAP, "--explain", "true"], tmp_path).stdout
    for torn in (text[:-1], text + "tail", "", f"{text[:20]}\0{text[21:]}"[:-3]):
        kept.write_text(torn)
        assert desk(farm, [DWRAP, "true"], tmp_path).returncode == 0
        assert kept.read_text() == text
    old = kept.with_name("environment-" + "0" * 16)
    old.write_text(text)
    os.utime(old, (1, 1))
    kept.unlink()
    assert desk(farm, [DWRAP, "true"], tmp_path).returncode == 0
    assert kept.exists()
    assert not old.exists()


def with_rpm(tmp_path: Path, script: str) -> list[str]:
    """A command prefix: there are packages of rpm, and it is this script."""
    if not Path("/usr/bin/rpm").exists():
        pytest.skip("rpm is not installed: apt-get install rpm")
    tool, database = tmp_path / "rpm", tmp_path / "database"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    database.mkdir()
    (database / "rpmdb.sqlite").touch()
    mounts = f"mkdir -p /var/lib/rpm && mount --bind {database} /var/lib/rpm"
    return ["unshare", "--mount", "sh", "-c", f'{mounts} && mount --bind {tool} "$(readlink -f /usr/bin/rpm)" && exec "$@"', "sh"]


@needs_mounts
def test_a_slow_rpm_is_no_silent_distributor(farm: Farm, tmp_path: Path) -> None:
    """With cold caches it takes seconds; the distributor is there all the time, and those that wait for its answer have to hear it too."""
    under = with_rpm(tmp_path, 'sleep 2; printf "gcc\\t1\\tx\\n"')
    both = f"{DWRAP} --explain true & {DWRAP} --explain true; wait"
    said = desk(farm, ["sh", "-c", both], tmp_path, under).stdout.splitlines()
    assert [line.partition(": agent")[0] for line in said] == ["nowhere: no agent has your environment"] * 2
    assert not list((tmp_path / "rununshare" / "dwrap").glob("silent-*"))


@needs_mounts
def test_an_rpm_that_hangs_is_given_up(tmp_path: Path) -> None:
    """Berkeley DB's locks outlive who held them; a wrapper would wait as long as they do."""
    under = with_rpm(tmp_path, "exec sleep 1000")
    done = subprocess.run([*under, RUNNER, "--environment"], capture_output=True, text=True, timeout=50)
    assert (done.returncode, "cannot be read" in done.stderr) == (1, True), done


@needs_mounts
def test_who_ignores_the_end_of_children_hears_of_rpm_even_so(tmp_path: Path) -> None:
    under = with_rpm(tmp_path, 'printf "gcc\\t1\\tx\\n"')
    ignoring = ["env", "--ignore-signal=CHLD", RUNNER, "--environment"]
    assert "\ngcc:x 1\n" in subprocess.run([*under, *ignoring], capture_output=True, text=True, check=True, timeout=50).stdout


@needs_mounts
def test_what_cannot_be_read_is_not_remembered_as_what_is(farm: Farm, tmp_path: Path) -> None:
    """An rpm that fails for once (no memory, a locked database, Ctrl-C) would else keep a machine apart until its next upgrade."""
    under = with_rpm(tmp_path, f'test -e {tmp_path}/mended && printf "gcc\\t1\\tx\\n"')
    wrong = desk(farm, [DWRAP, "--explain"], tmp_path, under)
    assert wrong.returncode == 125
    assert "dwrap: a package database cannot be read" in wrong.stderr
    memory = tmp_path / "rununshare" / "dwrap"
    assert not list(memory.glob("environment-*"))
    (tmp_path / "mended").touch()
    right = desk(farm, [DWRAP, "--explain"], tmp_path, under)
    assert right.returncode == 0
    assert "\ngcc:x 1\n" in right.stdout
    assert len(list(memory.glob("environment-*"))) == 1


def test_what_depends_on_the_processor_goes_where_it_is_the_same(farm: Farm, tmp_path: Path) -> None:
    """The cpuinfo of another machine, laid over this wrapper's own."""
    assert desk(farm, [DWRAP, "echo", "-march=native"], tmp_path).returncode == 0
    facts, _ = told("")
    assert {agent["cpu"] for agent in farm.status()["agents"]} == {facts["cpu"]}
    if os.geteuid() != 0:
        pytest.skip("needs root to lay another /proc/cpuinfo over this one")
    other = tmp_path / "cpuinfo"
    other.write_text("processor\t: 0\nmodel name\t: Toy 1\nflags\t\t: fpu\n\n")
    under = ["unshare", "--mount", "sh", "-c", f'mount --bind {other} /proc/cpuinfo && exec "$@"', "sh"]
    assert desk(farm, [DWRAP, "--explain", "echo", "-O2"], tmp_path, under).stdout.startswith("agent ")
    gcc = ["-march=native", "-mcpu=native+crypto", "-mtune=native", "-optc-march=native", "-Xcompiler=-march=native", "-Wc,-march=native"]
    rust = ["-Ctarget-cpu=native", "target-cpu=native", "--codegen=target-cpu=native", "-Ztune-cpu=native", "tune-cpu=native"]
    for word in (*gcc, *rust, "-xHost", "-tp=host", "--target=host"):
        said = desk(farm, [DWRAP, "--explain", "echo", word], tmp_path, under).stdout
        assert said.startswith("nowhere: no agent has your processor"), word
        assert ", you have Toy 1 #" in said
    assert desk(farm, [DWRAP, "--explain", "true"], tmp_path, under, DWRAP_NATIVE="1").stdout.startswith("nowhere")


def version_here() -> str:
    return next(word.removeprefix("g++=") for word in line("").split() if word.startswith("g++=")).replace(",", " and ")
