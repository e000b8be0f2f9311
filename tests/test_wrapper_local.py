"""What the wrapper decides alone: the forms of its command line, the rules, and running a command here."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import wrapper_program
from fake_distributor import FakeDistributor, offer_then, result
from wrapper_program import ROOT, Wrapper

program = wrapper_program.program
dwrap = wrapper_program.dwrap
capped = wrapper_program.capped
FAIL = {"DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "0"}


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("option", ["-print-sysroot", "-v", "--unknown", "-dumpmachine", "-"])
def test_other_leading_options_are_refused_at_once(dwrap: Wrapper, option: str) -> None:
    done = dwrap.run(option, env={"DWRAP_HOST": "tcp://192.0.2.1:1"})
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"dwrap: unknown option")


def test_an_option_without_its_value(dwrap: Wrapper) -> None:
    done = dwrap.run("-H")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"dwrap: no host is given after -H;")


def test_version_and_help(dwrap: Wrapper) -> None:
    assert re.fullmatch(rb"dwrap \d+\.\d+\.\d+\n", dwrap.run("--version").stdout)
    text = dwrap.run("--help").stdout
    assert b"usage: dwrap [OPTIONS] [DISTRIBUTOR] COMMAND" in text
    assert b"dwrapctl doctor" in text
    assert dwrap.run().returncode == 2


def test_version_is_the_package_s(dwrap: Wrapper) -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert dwrap.run("--version").stdout.decode().split() == ["dwrap", version[1]]


@pytest.mark.parametrize("form", ["address", "host:port", "-H", "environment", "config", "named", "config names", "bare word"])
def test_forms_of_naming_the_distributor(dwrap: Wrapper, form: str) -> None:
    with FakeDistributor(offer_then(result(256 * 5))) as d:
        plain = d.address.removeprefix("tcp://")
        config = dwrap.directory / ".config" / "dwrap" / "client.conf"
        config.parent.mkdir(parents=True)
        config.write_text(f"# ours\n farm = {d.address}  # here\ndistributor = {'farm' if form == 'config names' else plain}\n")
        words, env = ["true"], dict(FAIL)
        if form == "environment":
            env["DWRAP_HOST"] = plain
        elif form not in ("config", "config names"):
            named = {"address": [d.address], "host:port": [plain], "-H": ["-H", plain], "named": ["farm"], "bare word": ["no-such-word"]}
            words = named[form] + words
        if form == "bare word":
            done = dwrap.run("--explain", *words, env=env)
            assert b"no-such-word" in done.stdout
            return
        assert dwrap.run(*words, env=env).returncode == 5
        assert d.by_verb("SUBMIT")[0][1].text("command") == "true"


def test_a_word_on_path_is_the_command(dwrap: Wrapper) -> None:
    assert dwrap.run("echo", "true").stdout == b"true\n"
    assert dwrap.run("no-such-command", "also-none").returncode == 127


def test_a_bracket_is_a_command(dwrap: Wrapper) -> None:
    assert dwrap.run("[", "1", "=", "1", "]").returncode == 0
    assert dwrap.run("[", "1", "=", "2", "]").returncode == 1


def test_lists_hold_names_and_blanks(dwrap: Wrapper) -> None:
    with FakeDistributor(offer_then(result(256 * 5))) as d:
        config = dwrap.directory / ".config" / "dwrap" / "client.conf"
        config.parent.mkdir(parents=True)
        config.write_text(f"distributor = 127.0.0.1:1, farm # two\nfarm = 127.0.0.1:1, {d.address}\n")
        assert dwrap.run("cmd", env=FAIL).returncode == 5
        assert dwrap.run("cmd", env=FAIL | {"DWRAP_HOST": " 127.0.0.1:1 , farm "}).returncode == 5


def test_a_path_of_links_only_leads_nowhere(dwrap: Wrapper) -> None:
    """And not to the working directory, which an empty PATH means."""
    executable(dwrap.directory / "g++", "#!/bin/sh\necho the wrong one\n")
    (dwrap.directory / "links").mkdir()
    (dwrap.directory / "links" / "g++").symlink_to(dwrap.program)
    env = {**dwrap.env, "PATH": f"{dwrap.directory}/links"}
    done = subprocess.run([dwrap.directory / "links" / "g++"], env=env, cwd=dwrap.directory, capture_output=True)
    assert (done.returncode, done.stdout) == (127, b"")


def test_masquerading(dwrap: Wrapper) -> None:
    links, real = dwrap.directory / "links", dwrap.directory / "real"
    executable(real / "g++", "#!/bin/sh\necho real $0 $*\n")
    links.mkdir()
    (links / "g++").symlink_to(dwrap.program)
    env = {**dwrap.env, "PATH": f"{links}:{real}:/usr/bin:/bin"}
    here = subprocess.run([links / "g++", "-c", "-H"], env=env, capture_output=True)
    assert here.stdout == f"real {real}/g++ -c -H\n".encode()
    with FakeDistributor(offer_then(result(256 * 6))) as d:
        there = subprocess.run([links / "g++", "--help"], env=env | FAIL | {"DWRAP_HOST": d.address, "DWRAP_REMOTE": "1"})
        assert d.by_verb("GO")[0][2][0] == b"g++\0--help\0"
    assert there.returncode == 6


@pytest.mark.parametrize(("name", "value"), [("DWRAP_LOCAL", "1"), ("FORCE_INLINE", "yes"), ("FORCE_LOCAL", "1")])
def test_local_switches(dwrap: Wrapper, name: str, value: str) -> None:
    with FakeDistributor(offer_then(result())) as d:
        done = dwrap.run(d.address, "sh", "-c", "exit 3", env={name: value, **FAIL})
        assert done.returncode == 3
        assert not d.seen
    assert dwrap.log()[0][2] == f"{name} is set"


def test_inside_a_job_it_runs_in_place(dwrap: Wrapper) -> None:
    with FakeDistributor(offer_then(result())) as d:
        assert dwrap.run(d.address, "sh", "-c", "exit 3", env={"DWRAP_JOB": "j1", **FAIL}).returncode == 3
        assert not d.seen
    assert dwrap.log() == []


@pytest.mark.parametrize(
    "setting",
    [
        "DWRAP_LOCAL=yes", "DWRAP_FALLBACK=never", "DWRAP_PATIENCE=-1", "DWRAP_PRIORITY=9", "DWRAP_LOCAL_SLOTS=0", "DWRAP_LABELS=arm64",
        "DWRAP_VERBOSE=2",
    ],
)
def test_bad_settings(dwrap: Wrapper, setting: str) -> None:
    name, _, value = setting.partition("=")
    done = dwrap.run("true", env={name: value})
    assert done.returncode == 125
    assert done.stderr.startswith(f"dwrap: {setting} is not understood: ".encode())
    assert done.stderr.count(b"\n") == 1


RULES = [
    (["gcc", "-c", "conftest.c"], "autoconf probe"),
    (["gcc", "-o", "dir/conftest.dir/x"], "autoconf probe"),
    (["g++", "CMakeFiles/3.25.1/CompilerIdCXX/a.cpp"], "cmake probe"),
    (["g++", "/x/CMakeScratch/TryCompile-1/a.cpp"], "cmake probe"),
    (["cc", "meson-private/tmp1/testfile.c"], "meson probe"),
    (["cc", "sanity_check_for_c.c"], "meson probe"),
    (["g++", "-v"], "asks for a version"),
    (["rustc", "-vV"], "asks for a version"),
    (["g++", "--version"], "asks for a version"),
    (["g++", "-dumpmachine"], "asks the compiler about itself"),
    (["g++", "-E", "-dM", "-"], "asks the compiler about itself"),
    (["g++", "-print-search-dirs"], "asks the compiler about itself"),
    (["rustc", "-", "--print=cfg"], "asks the compiler about itself"),
    (["g++", "-c", "a.cpp"], None),
    (["g++", "-v", "a.cpp"], None),
    (["python3", "exists.py", "--version"], None),
    (["g++", "myconftest.c"], None),
    (["true"], None),
]


@pytest.mark.parametrize(("words", "why"), RULES)
def test_rules_that_need_no_network(dwrap: Wrapper, words: list[str], why: str | None) -> None:
    (dwrap.directory / "exists.py").touch()
    with FakeDistributor(offer_then(result())) as d:
        done = dwrap.run("--explain", "-H", d.address, *words) if why else dwrap.run(d.address, *words, env=FAIL)
        assert bool(d.by_verb("SUBMIT")) == (why is None)
        remote = dwrap.run(d.address, *words, env=FAIL | {"DWRAP_REMOTE": "1"})
        assert d.by_verb("GO")
    assert (done.returncode, remote.returncode) == (0, 0)
    assert done.stdout == (f"here: {why}\n".encode() if why else b"")


def test_a_probe_s_directory_counts(dwrap: Wrapper) -> None:
    probe = dwrap.directory / "CMakeFiles" / "CMakeScratch" / "TryCompile-x"
    probe.mkdir(parents=True)
    assert dwrap.run("--explain", "-H", "ipc:///nobody", "g++", "a.cpp", cwd=probe).stdout == b"here: cmake probe\n"


def test_path_arguments(dwrap: Wrapper, tmp_path_factory: pytest.TempPathFactory) -> None:
    tree, other = dwrap.directory, tmp_path_factory.mktemp("other")
    (tree / "job").mkdir()
    (other / "inc" / "deep").mkdir(parents=True)
    (other / "src").mkdir()
    (other / "src" / "a.c").touch()
    (other / "args").touch()
    (tree / "away").symlink_to(other / "src")
    words = [
        f"{other}/src/a.c", f"-I{other}/inc", f"-I{other}/inc/deep", f"@{other}/args", f"-o{tree}/new.o", f"{tree}/job/x",
        "/usr/include", "-I/usr/../usr/include", "/no/such/thing", "/nothing", "relative/x", "--opt=/etc", f"{tree}/away/a.c", "/dev/null",
    ]
    with FakeDistributor(offer_then(result())) as d:
        dwrap.run(d.address, "cmd", *words, cwd=tree / "job", env=FAIL)
        paths = d.by_verb("SUBMIT")[0][1].texts("path")
    assert paths == (f"{other}/src", f"{other}/inc", str(other), str(tree))


def test_a_link_that_leads_elsewhere_is_sent_both_ways(dwrap: Wrapper, tmp_path_factory: pytest.TempPathFactory) -> None:
    other, third = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("third")
    (other / "link").symlink_to(third)
    (third / "a.c").touch()
    with FakeDistributor(offer_then(result())) as d:
        dwrap.run(d.address, "cmd", f"{other}/link/a.c", env=FAIL)
        assert d.by_verb("SUBMIT")[0][1].texts("path") == (f"{other}/link", str(third))


def test_a_path_that_climbs_is_followed(dwrap: Wrapper) -> None:
    work = dwrap.directory / "work"
    (work / "..odd").mkdir(parents=True)
    (dwrap.directory / "away").mkdir()
    with FakeDistributor(offer_then(result())) as d:
        dwrap.run(d.address, "cmd", f"{work}/..odd/../../away", env=FAIL, cwd=work)
        assert d.by_verb("SUBMIT")[0][1].texts("path") == (f"{dwrap.directory}/away",)


def test_too_many_directories_run_here(dwrap: Wrapper, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    for number in range(1002):
        (other / f"d{number}").mkdir()
    with FakeDistributor(offer_then(result())) as d:
        done = dwrap.run(d.address, "true", *[f"{other}/d{n}" for n in range(1002)], env=FAIL)
        assert not d.seen
    assert done.returncode == 0
    assert "too many" in dwrap.log()[0][2]


def test_a_directory_that_is_gone(dwrap: Wrapper) -> None:
    gone = dwrap.directory / "gone"
    gone.mkdir()
    line = f"cd {gone} && rmdir {gone} && exec {dwrap.program} -H ipc:///nobody sh -c 'exit 4'"
    assert subprocess.run(["/bin/sh", "-c", line], env=dwrap.env | FAIL, stderr=subprocess.DEVNULL).returncode == 4


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["no-such-command"], 127), (["./none"], 127), (["./plain"], 126), ([""], 127), (["."], 126), (["./our-script"], 8),
        (["our-script"], 8),
    ],
)
def test_status_of_commands_here(dwrap: Wrapper, words: list[str], status: int) -> None:
    (dwrap.directory / "plain").write_text("exit 9\n")
    executable(dwrap.directory / "our-script", "exit 8\n")
    done = dwrap.run(*words, env={"PATH": f"/usr/bin:/bin:{dwrap.directory}"})
    assert done.returncode == status
    assert done.stderr.count(b"\n") == (1 if status > 100 else 0)


def test_what_ran_here_is_logged(dwrap: Wrapper) -> None:
    before = time.time()
    dwrap.run("true", "a\tb\n\\c", "\xe9".encode("latin-1"))
    (line,) = dwrap.log()
    stamp, pid, reason, cwd, command = line
    assert before - 1 < float(stamp) < time.time() + 1
    assert int(pid) > 1
    assert (reason, cwd) == ("no distributor is configured", str(dwrap.directory))
    assert command == "true a\\x09b\\x0a\\x5cc \\xe9"
    log = dwrap.state / "dwrap" / "here.log"
    assert log.stat().st_mode & 0o777 == 0o600
    log.write_bytes(b"x" * (1024 * 1024 + 1))
    dwrap.run("true", "x" * 10_000)
    assert log.with_name("here.log.1").exists()
    assert len(dwrap.log()) == 1
    assert len(dwrap.log()[0][4]) <= 2048


def test_a_home_that_cannot_be_written_does_no_harm(dwrap: Wrapper) -> None:
    done = dwrap.run("echo", "x", env={"XDG_STATE_HOME": "/proc/nowhere"})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x\n", b"")


def test_a_home_that_does_not_exist_is_not_made(dwrap: Wrapper) -> None:
    home = dwrap.directory / "away" / "home"
    done = dwrap.run("true", env={"XDG_STATE_HOME": "", "HOME": str(home)})
    assert (done.returncode, done.stderr, home.parent.exists()) == (0, b"", False)
    home.mkdir(parents=True)
    dwrap.run("true", env={"XDG_STATE_HOME": "", "HOME": str(home)})
    assert (home / ".local/state/dwrap/here.log").exists()


def test_in_the_home_of_another_nothing_is_made(dwrap: Wrapper) -> None:
    """`sudo` may keep HOME: directories of root's in it would lock its owner out."""
    if os.geteuid() != 0:
        pytest.skip("a directory of another user needs root")
    home = dwrap.directory / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    dwrap.run("true", env={"XDG_STATE_HOME": "", "HOME": str(home)})
    assert not list(home.iterdir())
    state = home / ".local" / "state" / "dwrap"
    state.mkdir(parents=True)
    os.chown(state, 65534, 65534)
    dwrap.run("true", env={"XDG_STATE_HOME": "", "HOME": str(home)})
    assert not list(state.iterdir())


def test_the_cap_holds_across_exec_and_nesting(capped: Wrapper) -> None:
    """Six commands under a cap of two: never more than two at once, and a nested wrapper takes no second slot."""
    running = capped.directory / "running"
    running.mkdir()
    line = f"touch {running}/$$; ls {running} | wc -l >> counts; {capped.program} -H ipc:///nobody sleep 0.05; rm {running}/$$"
    env = {"DWRAP_LOCAL_SLOTS": "2"}
    commands = [capped.popen("-H", "ipc:///nobody", "sh", "-c", line, env=env) for _ in range(6)]
    for command in commands:
        with command:
            assert command.wait(20) == 0
    counts = [int(count) for count in (capped.directory / "counts").read_text().split()]
    assert len(counts) == 6
    assert max(counts) <= 2


def test_a_killed_command_gives_its_slot_back(capped: Wrapper) -> None:
    env = {"DWRAP_LOCAL_SLOTS": "1"}
    with capped.popen("sh", "-c", "echo started; exec sleep 30", env=env) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"started\n"
        with capped.popen("true", env=env) as waiter:
            with pytest.raises(subprocess.TimeoutExpired):
                waiter.wait(0.2)
            holder.kill()
            assert waiter.wait(10) == 0


def test_verbose_says_why_here(dwrap: Wrapper) -> None:
    assert dwrap.run("true", env={"DWRAP_VERBOSE": "1"}).stderr == b"dwrap: true runs here: no distributor is configured\n"


def test_messages_go_where_ccache_wants_them(dwrap: Wrapper) -> None:
    read_end, write_end = os.pipe()
    done = dwrap.run("no-such-command", env={"UNCACHED_ERR_FD": str(write_end)}, pass_fds=[write_end])
    os.close(write_end)
    assert (done.returncode, done.stderr) == (127, b"")
    with os.fdopen(read_end, "rb") as messages:
        assert messages.read().startswith(b"dwrap: cannot run no-such-command")


def test_explain_without_a_distributor(dwrap: Wrapper) -> None:
    done = dwrap.run("--explain", "touch", "ran")
    assert (done.returncode, done.stdout) == (0, b"here: no distributor is configured\n")
    assert not (dwrap.directory / "ran").exists()


def test_explain_inside_a_job_runs_nothing(dwrap: Wrapper) -> None:
    done = dwrap.run("--explain", "touch", "ran", env={"DWRAP_JOB": "j1"})
    assert (done.returncode, done.stdout) == (0, b"here: inside of the job j1\n")
    assert not (dwrap.directory / "ran").exists()
