"""The Debian packages, as an operator meets them: built from the sdist, linted, and on a fresh Debian with systemd installed, used,
upgraded and purged. The tests follow one another on one machine, in this order.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import debian_machine
import pytest
from debian_machine import Machine, MachineError
from farm import eventually
from wrapper_program import ROOT

PACKAGES = ("dwrap", "dwrap-agent", "dwrap-distributor")
NEEDED = ["adduser", "python3-click", "python3-prometheus-client", "python3-psutil", "python3-zmq"]  # what they depend on
TOOLS = {"dpkg-buildpackage": "dpkg-dev", "dh": "debhelper", "dh_python3": "dh-python", "lintian": "lintian"}
ADDRESS = "tcp://127.0.0.1:7776"
USER = "builder"
HOME = f"/home/{USER}"
MASQUERADE = {"PATH": "/usr/lib/dwrap:/usr/bin:/bin", "DWRAP_FALLBACK": "fail", "DWRAP_PATIENCE": "20"}
LINKS = {"cc", "c++", "gcc", "g++", "gcc-12", "g++-12", "x86_64-linux-gnu-gcc", "x86_64-linux-gnu-g++"}


def debs(folder: Path) -> dict[str, Path]:
    return {name: next(folder.glob(f"{name}_*.deb")) for name in PACKAGES}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Built from the sdist, as whoever has only that would."""
    why = debian_machine.prerequisites()
    missing = [package for program, package in TOOLS.items() if not shutil.which(program)]
    if why or missing:
        pytest.skip(why or f"building packages needs {', '.join(missing)}")
    place = tmp_path_factory.mktemp("debian")
    debian_machine.run([sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", str(place), str(ROOT)])
    with tarfile.open(next(place.glob("*.tar.gz"))) as archive:
        archive.extractall(place, filter="data")
    source = next(path for path in place.iterdir() if path.is_dir())
    # Not the environment of this test: a build daemon's is short, and has Debian's own Python.
    surroundings = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"}
    command = ["dpkg-buildpackage", "-b", "-us", "-uc"]
    built = subprocess.run(command, cwd=source, env=surroundings, capture_output=True, text=True, timeout=300)
    if "Unmet build dependencies" in built.stderr:
        pytest.skip(f"packages cannot be built here: {built.stderr.strip().splitlines()[-2]}")
    assert built.returncode == 0, built.stdout[-2_000:] + built.stderr[-2_000:]
    return debs(place)


@contextlib.contextmanager
def machine_with(packages: dict[str, Path]) -> Iterator[Machine]:
    """A fresh one on which apt has installed them, with a user."""
    try:
        with debian_machine.booted(NEEDED) as machine:
            for deb in packages.values():
                shutil.copy(deb, machine.root / "root")
            machine.run("useradd", "--create-home", USER)
            (machine.root / HOME[1:] / "answer.cpp").write_text("int main() { return 0; }\n")
            machine.run("apt-get", "install", "-y", "--no-install-recommends", *(f"./{deb.name}" for deb in packages.values()))
            yield machine
            if machine.is_up:
                print(machine.run("journalctl", "--no-pager", "--lines=200", "--unit=dwrap-*", status=None))
    except MachineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def installed(packages: dict[str, Path]) -> Iterator[Machine]:
    with machine_with(packages) as machine:
        yield machine


@pytest.fixture(scope="module")
def farm(installed: Machine) -> Machine:
    return as_a_farm(installed)


def as_a_farm(machine: Machine) -> Machine:
    """As docs/bare-metal.md says for all three on one machine."""
    append(machine, "/etc/dwrap/agent.conf", f"DISTRIBUTOR={ADDRESS}")
    append(machine, "/etc/dwrap/client.conf", f"distributor = {ADDRESS}")
    machine.run("systemctl", "restart", "dwrap-agent")
    return machine


def append(machine: Machine, file: str, line: str) -> None:
    path = machine.root / file[1:]
    path.write_text(f"{path.read_text()}{line}\n")


def unit(machine: Machine, name: str, what: str) -> str:
    return machine.run("systemctl", "show", "--value", f"--property={what}", name)


def change(machine: Machine, name: str, setting: str) -> None:
    """A setting of a unit, until the next one."""
    folder = f"/run/systemd/system/{name}.service.d"
    machine.run("sh", "-c", f"mkdir -p {folder}; printf '[Service]\\n{setting}\\n' > {folder}/test.conf; systemctl daemon-reload")


def is_in(machine: Machine, file: str) -> bool:
    return (machine.root / file[1:]).exists()


class Job:
    """A command on the agent that has started, and ends when it may."""

    def __init__(self, machine: Machine, name: str, before: str = "") -> None:
        self._machine, self._name = machine, f"{HOME}/{name}"
        waits = f"while [ ! -e {self._name}.may-end ]; do sleep 0.1; done"
        script = f"{before} echo started > {self._name}.started; {waits}; echo ended > {self._name}.ended"
        self.wrapper = machine.start("dwrap", "sh", "-c", script, user=USER, **MASQUERADE)
        eventually(lambda: is_in(machine, f"{self._name}.started"), saying="the job does not start")

    def may_end(self) -> None:
        (self._machine.root / f"{self._name}.may-end"[1:]).touch()

    def ends(self) -> tuple[int, str]:
        """Lets it; the wrapper's status and what it said."""
        self.may_end()
        said, _ = self.wrapper.communicate(timeout=60)
        return self.wrapper.returncode, said

    @property
    def has_ended(self) -> bool:
        return is_in(self._machine, f"{self._name}.ended")


# ---- the packages themselves


def test_lintian_has_nothing_to_say(packages: dict[str, Path]) -> None:
    changes = next(packages["dwrap"].parent.glob("*.changes"))
    command = ["lintian", "--allow-root", "--fail-on=error,warning", "--tag-display-limit=0", str(changes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_overrides_have_reasons() -> None:
    for file in (ROOT / "debian").glob("*.lintian-overrides"):
        lines = file.read_text().splitlines()
        assert all(lines[at - 1].startswith("# ") for at, line in enumerate(lines) if not line.startswith("#")), file.name


def test_each_program_is_in_its_package(packages: dict[str, Path]) -> None:
    found = {}
    for name, deb in packages.items():
        files = [line.split()[5] for line in debian_machine.run(["dpkg-deb", "--contents", str(deb)]).splitlines()]
        found[name] = {file[2:] for file in files if re.match(r"\./(usr/s?bin/.|(usr/)?lib/systemd/system/.|etc/dwrap/.)", file)}
    assert found["dwrap"] == {"usr/bin/dwrap", "usr/bin/dwrapctl", "usr/sbin/update-dwrap-symlinks", "etc/dwrap/client.conf"}
    system = "lib/systemd/system" if any(file.startswith("lib/") for file in found["dwrap-agent"]) else "usr/lib/systemd/system"
    assert found["dwrap-agent"] == {"usr/bin/dwrap-agent", "usr/bin/dwrap-runner", "etc/dwrap/agent.conf", f"{system}/dwrap-agent.service"}
    assert found["dwrap-distributor"] == {"usr/bin/dwrap-distributor", "etc/dwrap/distributor.toml", f"{system}/dwrap-distributor.service"}


# ---- on a fresh machine


def test_what_an_installation_starts(installed: Machine) -> None:
    assert unit(installed, "dwrap-distributor", "ActiveState") == "active"
    assert unit(installed, "dwrap-distributor", "Type") == "notify"
    assert unit(installed, "dwrap-distributor", "User") == "dwrap"
    assert unit(installed, "dwrap-distributor", "NRestarts") == "0"
    assert unit(installed, "dwrap-agent", "ActiveState") == "inactive", "no distributor is named yet"
    assert "set DISTRIBUTOR in /etc/dwrap/agent.conf" in installed.run("journalctl", "--no-pager", "--unit=dwrap-agent")
    assert installed.run("systemctl", "is-enabled", "dwrap-agent", "dwrap-distributor") == "enabled\nenabled"
    said = installed.run("systemd-analyze", "security", "--no-pager", "dwrap-distributor.service").splitlines()[-1]
    print(said)


def test_man_finds_its_pages(installed: Machine) -> None:
    for page in ("dwrap", "dwrapctl", "dwrap-agent", "dwrap-distributor", "update-dwrap-symlinks"):
        assert f"/{page}." in installed.run("man", "-w", page)


def test_a_started_agent_is_ready(farm: Machine) -> None:
    assert unit(farm, "dwrap-agent", "ActiveState") == "active"
    assert unit(farm, "dwrap-agent", "StatusText") == f"serving {ADDRESS}"
    assert [one["name"] for one in json.loads(farm.run("dwrapctl", "agents", "--json", user=USER))["agents"]] == [farm.run("hostname")]


def test_a_compiler_is_distributed_without_a_change_to_the_build(farm: Machine) -> None:
    farm.run("g++", "-o", "answer", "answer.cpp", user=USER, **MASQUERADE)
    farm.run(f"{HOME}/answer", user=USER)
    (job,) = json.loads(farm.run("dwrapctl", "jobs", "--json", user=USER))
    uid = int(farm.run("id", "-u", USER))
    assert (job["command"], job["where"], job["uid"]) == ("g++", farm.run("hostname"), uid)


def test_jobs_are_not_in_a_world_of_the_unit_s(farm: Machine) -> None:
    """But for no_new_privs, which they have anyway: neither a filter, nor other files, nor a limit."""
    there = farm.run("dwrap", "sh", "-c", "ulimit -n; umask; ls -d /tmp /home/*; cat /proc/self/oom_score_adj", user=USER, **MASQUERADE)
    here = farm.run("sh", "-c", "ulimit -n; umask; ls -d /tmp /home/*; cat /proc/self/oom_score_adj", user=USER, **MASQUERADE)
    assert there == here
    farm.run("dwrap", "sh", "-c", "echo seen > /tmp/shared", user=USER, **MASQUERADE)
    assert farm.run("cat", "/tmp/shared") == "seen", "the unit has a /tmp of its own"


def test_links_follow_what_dpkg_does(installed: Machine, tmp_path: Path) -> None:
    def links() -> set[str]:
        return {file.name for file in (installed.root / "usr/lib/dwrap").iterdir()}

    assert links() >= LINKS
    before = links()
    (tmp_path / "made/DEBIAN").mkdir(parents=True)
    (tmp_path / "made/usr/bin").mkdir(parents=True)
    fields = {"Package": "own-cross", "Version": "1", "Architecture": "all", "Maintainer": "nobody <n@example.org>", "Description": "x"}
    (tmp_path / "made/DEBIAN/control").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    compiler = tmp_path / "made/usr/bin/riscv64-linux-gnu-g++-13"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    debian_machine.run(["dpkg-deb", "--root-owner-group", "--build", str(tmp_path / "made"), str(installed.root / "root/own-cross.deb")])
    installed.run("dpkg", "-i", "own-cross.deb")
    assert links() == before | {"riscv64-linux-gnu-g++-13"}
    installed.run("dpkg", "-P", "own-cross")
    assert links() == before


def test_a_stop_lets_jobs_end(farm: Machine) -> None:
    job = Job(farm, "stopped")
    farm.run("systemctl", "stop", "--no-block", "dwrap-agent")
    farm.until("systemctl", "show", "--value", "--property=StatusText", "dwrap-agent", says="draining")
    assert unit(farm, "dwrap-agent", "ActiveState") == "deactivating"
    assert not job.has_ended
    assert job.ends() == (0, "")
    farm.until("systemctl", "is-active", "dwrap-agent", says="inactive")
    assert unit(farm, "dwrap-agent", "Result") == "success"
    farm.run("systemctl", "start", "dwrap-agent")


def test_a_distributor_that_is_restarted_loses_no_job(farm: Machine) -> None:
    job = Job(farm, "restarted")
    farm.run("systemctl", "restart", "dwrap-distributor")
    assert job.ends() == (0, "")


@pytest.mark.parametrize(("mode", "status"), [("process", 0), ("mixed", 125)])
def test_what_must_not_be_cut_short_outlives_its_agent(farm: Machine, mode: str, status: int) -> None:
    """A job that has changed what was there is let finish when the agent dies; a unit that killed all would lose it."""
    change(farm, "dwrap-agent", f"KillMode={mode}")
    name = f"killed-{mode}"
    (farm.root / HOME[1:] / f"{name}.old").write_text("old\n")
    job = Job(farm, name, before=f"echo new > {HOME}/{name}.old;")
    restarts = int(unit(farm, "dwrap-agent", "NRestarts"))
    farm.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "dwrap-agent")
    farm.until("systemctl", "show", "--value", "--property=NRestarts", "dwrap-agent", says=str(restarts + 1))
    farm.until("systemctl", "is-active", "dwrap-agent", says="active")
    assert job.ends()[0] == status
    assert job.has_ended == (status == 0)
    change(farm, "dwrap-agent", "")


def test_a_distributor_that_hangs_is_started_again(farm: Machine) -> None:
    change(farm, "dwrap-distributor", "WatchdogSec=2")
    farm.run("systemctl", "restart", "dwrap-distributor")
    farm.run("systemctl", "kill", "--signal=STOP", "dwrap-distributor")
    farm.until("systemctl", "show", "--value", "--property=NRestarts", "dwrap-distributor", says="1")
    farm.until("systemctl", "is-active", "dwrap-distributor", says="active")
    assert "watchdog" in farm.run("journalctl", "--no-pager", "--unit=dwrap-distributor").lower()
    change(farm, "dwrap-distributor", "")
    farm.run("systemctl", "restart", "dwrap-distributor")


def test_an_agent_does_not_wait_for_its_distributor_to_be_started(farm: Machine) -> None:
    farm.run("systemctl", "stop", "dwrap-distributor")
    farm.run("systemctl", "restart", "dwrap-agent")
    assert unit(farm, "dwrap-agent", "StatusText") == f"no answer from {ADDRESS} yet"
    farm.run("systemctl", "start", "dwrap-distributor")
    farm.until("systemctl", "show", "--value", "--property=StatusText", "dwrap-agent", says=f"serving {ADDRESS}")


def test_several_machines_with_keys(farm: Machine) -> None:
    """The page's own words, with an address that is not this machine's loopback."""
    outside = "tcp://10.66.0.1:7776"
    subprocess.run(farm.enter_network("ip", "addr", "add", "10.66.0.1/24", "dev", "lo"), check=True)
    config = farm.root / "etc/dwrap/distributor.toml"
    text = config.read_text()
    written = re.sub(r"(?m)^listen.*$", "", text)
    for line in ("listen = [\"tcp://0.0.0.0:7776\"", "keys = "):
        assert f"\n# {line}" in written
        written = written.replace(f"\n# {line}", f"\n{line}")
    config.write_text(written)
    farm.run("systemctl", "restart", "dwrap-distributor")
    invite = ("dwrapctl", "invite", "--keys", "/var/lib/dwrap/keys")
    agent = farm.run("sh", "-c", f"{' '.join(invite)} farm1 --address {outside} --serve 2>/dev/null")
    uid = farm.run("id", "-u", USER)
    user = farm.run("sh", "-c", f"{' '.join(invite)} alice --address {outside} --submit --uid {uid} 2>/dev/null")
    assert farm.run("stat", "-c", "%U %a", "/var/lib/dwrap/keys/authorized_keys") == "dwrap 600"
    assert farm.run("sh", "-c", f"echo {agent} | dwrapctl join --agent") == f"joined {outside} as farm1"
    assert farm.run("sh", "-c", f"echo {user} | dwrapctl join", user=USER) == f"joined {outside} as alice"
    append(farm, "/etc/dwrap/agent.conf", f"DISTRIBUTOR={outside}\nOPTIONS=--root /home --slots 3 --name 'farm1'")
    farm.run("systemctl", "restart", "dwrap-agent")
    assert unit(farm, "dwrap-agent", "StatusText") == f"serving {outside}"
    farm.run("g++", "-c", "answer.cpp", user=USER, **MASQUERADE, DWRAP_HOST=outside)
    local = "ipc:///run/dwrap/distributor.sock"  # for this machine, without keys
    farm.run("g++", "-c", "answer.cpp", user=USER, **MASQUERADE, DWRAP_HOST=local)
    jobs = json.loads(farm.run("dwrapctl", "--host", local, "jobs", "--json", user=USER))
    assert [job["where"] for job in jobs if job["command"] == "g++"] == ["farm1", "farm1"]
    config.write_text(text)
    append(farm, "/etc/dwrap/agent.conf", f"DISTRIBUTOR={ADDRESS}\nOPTIONS=")
    farm.run("systemctl", "restart", "dwrap-distributor", "dwrap-agent")


def newer(deb: Path, place: Path) -> Path:
    """The same package with a higher version."""
    debian_machine.run(["dpkg-deb", "--raw-extract", str(deb), str(place / "raw")])
    control = place / "raw/DEBIAN/control"
    control.write_text(re.sub(r"(?m)^(Version: .*)$", r"\1+1", re.sub(r"\(= ([^)]*)\)", r"(= \1+1)", control.read_text())))
    out = place / f"newer_{deb.name}"
    debian_machine.run(["dpkg-deb", "--root-owner-group", "--build", str(place / "raw"), str(out)])
    return out


def test_an_upgrade_waits_for_no_job_and_loses_none(farm: Machine, packages: dict[str, Path], tmp_path: Path) -> None:
    fresh = []
    for name, deb in packages.items():
        (tmp_path / name).mkdir()
        fresh.append(shutil.copy(newer(deb, tmp_path / name), farm.root / "root"))
    job = Job(farm, "upgraded")
    before = {name: unit(farm, name, "MainPID") for name in ("dwrap-agent", "dwrap-distributor")}
    farm.run("apt-get", "install", "-y", *(f"./{Path(deb).name}" for deb in fresh))
    assert not job.has_ended
    assert unit(farm, "dwrap-distributor", "MainPID") not in ("0", before["dwrap-distributor"])
    assert unit(farm, "dwrap-agent", "MainPID") == before["dwrap-agent"]
    farm.until("systemctl", "show", "--value", "--property=StatusText", "dwrap-agent", says="draining")
    assert job.ends() == (0, "")
    farm.until("systemctl", "show", "--value", "--property=StatusText", "dwrap-agent", says=f"serving {ADDRESS}")
    assert unit(farm, "dwrap-agent", "MainPID") not in ("0", before["dwrap-agent"])
    assert f"distributor = {ADDRESS}" in (farm.root / "etc/dwrap/client.conf").read_text(), "a setting was lost"


def ours(machine: Machine) -> set[str]:
    """Every file with our name, but for what this test and apt's cache brought."""
    found = machine.run("find", "/", "-xdev", "-iname", "*dwrap*").splitlines()
    return {file for file in found if not file.startswith(("/root/", "/var/cache/", f"{HOME}/"))}


def test_removal_ends_services_and_keeps_settings(farm: Machine) -> None:
    farm.run("apt-get", "remove", "-y", *PACKAGES)
    for name in ("dwrap-agent", "dwrap-distributor"):
        assert unit(farm, name, "LoadState") in ("not-found", "masked")
    assert not is_in(farm, "/usr/lib/dwrap")
    assert not is_in(farm, "/usr/bin/dwrap")
    assert {file.name for file in (farm.root / "etc/dwrap").iterdir()} >= {"agent.conf", "client.conf", "distributor.toml", "keys"}
    assert is_in(farm, "/var/lib/dwrap/keys/server.key")


def test_a_purge_leaves_nothing_but_the_user(farm: Machine) -> None:
    farm.run("apt-get", "purge", "-y", *PACKAGES)
    assert ours(farm) == set()
    assert farm.run("getent", "passwd", "dwrap").endswith("/usr/sbin/nologin")
    commands = [file.read_bytes() for file in (farm.root / "proc").glob("[0-9]*/cmdline")]
    assert not [command for command in commands if b"dwrap-" in command]


@pytest.mark.parametrize("seconds", [1, 3600])
def test_a_shutdown_does_not_wait_for_jobs_for_ever(packages: dict[str, Path], seconds: int) -> None:
    """With the control: one that is told to wait does."""
    with machine_with(packages) as machine:
        append(as_a_farm(machine), "/etc/dwrap/agent.conf", f"SHUTDOWN_SECONDS={seconds}")
        machine.run("systemctl", "restart", "dwrap-agent")
        job = Job(machine, "held")
        machine.run("systemctl", "poweroff", "--no-block")
        if seconds == 1:
            eventually(lambda: not machine.is_up, seconds=30, saying="the machine waits for the job")
        else:
            machine.until("systemctl", "show", "--value", "--property=StatusText", "dwrap-agent", says="draining")
            assert machine.is_up
            job.may_end()
            eventually(lambda: not machine.is_up, seconds=30, saying="the machine waits for nothing")
            assert job.has_ended
        job.wrapper.communicate(timeout=30)
