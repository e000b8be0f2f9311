"""The images, Compose and Swarm on a real engine (tests/docker/engine.py): what docs/docker.md says is done, by an ordinary user.

`make docker` runs them; they need root and packages, and take about five minutes. Knows the guide and what must come of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import debian_source
import pytest
from farm import eventually

sys.path.insert(0, str(Path(__file__).resolve().parent / "docker"))

import engine
from engine import PREFIX, TOP, EngineError, docker

USER = 1000
TAG = "test"
NETWORK = f"{PREFIX}-compose_default"
MOST_LAYER_BYTES = 60_000_000
MOST_START_SECONDS = 3.0
NEEDED = ("SETUID", "SETGID", "CHOWN", "KILL", "SYS_PTRACE")
COMPILERS = ("g++", "cmake", "ninja-build")

pytestmark = pytest.mark.skipif(bool(engine.missing()), reason=engine.missing() or "none")


class Place:
    """An ordinary user's clone and source tree, and their shell."""

    def __init__(self, folder: Path, toolchain: str, maker: str) -> None:
        self.clone, self.tree, self.home = folder / "dwrap", folder / "tree", folder / "home"
        folder.chmod(0o755)
        for name in ("Makefile", "pyproject.toml", ".dockerignore"):
            self.clone.mkdir(exist_ok=True)
            shutil.copy2(TOP / name, self.clone)
        for name in ("protocol", "coherence", "environment", "wrapper", "agent", "distributor", "control", "docker"):
            shutil.copytree(TOP / name, self.clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (self.tree, self.home):
            path.mkdir()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, USER, USER)
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.home), "DOCKER_BUILDKIT": "0", "COMPOSE_PROJECT_NAME": f"{PREFIX}-compose",
            "DWRAP_BUILD": maker, "DWRAP_BUILD_NETWORK": "host", "DWRAP_IMAGES": PREFIX, "DWRAP_TAG": TAG,
            "DWRAP_UID": str(USER), "DWRAP_GID": str(USER), "DWRAP_HTTP_PORT": "27778", "DWRAP_PORT": "27776",
            "DWRAP_BASE": toolchain, "DWRAP_TREE": str(self.tree),
        }  # fmt: skip

    def shell(self, text: str, seconds: float = 300, folder: str = "docker", **settings: str) -> str:
        """Lines of shell, as the user, who may speak to the engine. Raises AssertionError."""
        become = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--groups", str(os.stat("/var/run/docker.sock").st_gid)]
        done = subprocess.run(
            [*become, "bash", "-euo", "pipefail", "-c", text], cwd=self.clone / folder, env=self.environment | settings,
            capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def desktop(self, text: str, *options: str) -> str:
        """In the desktop of the Compose farm, as that user; nothing may run on the desktop itself."""
        return compose("run", "--rm", "-T", "-e", "DWRAP_FALLBACK=fail", *options, "desktop", "sh", "-euc", text, place=self)


def guide(section: str, place: Place) -> list[str]:
    """The commands of a section of the guide, a text for each block; what this user has chosen stands for what is chosen there."""
    text = (TOP / "docs" / "docker.md").read_text()
    body = next(part for part in text.split("\n## ") if part.startswith(f"{section}\n"))
    blocks = re.findall(r"(?:^    .*\n)+", body, re.M)
    assert blocks
    has_plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    told = [re.sub(r"(?m)^    ", "", block).replace("--rm desktop", "--rm -T desktop") for block in blocks]  # here is no terminal
    told = [text if has_plugin else text.replace("docker compose", "docker-compose") for text in told]
    return [re.sub(r"(DWRAP_(?:BASE|TREE|IMAGES|TAG))=\S+", lambda one: f"{one[1]}={place.environment[one[1]]}", text) for text in told]


def compose(*words: str, place: Place, seconds: float = 120) -> str:
    return place.shell(shlex.join(["docker-compose", *words]), seconds)


@pytest.fixture(scope="module", autouse=True)
def an_engine() -> Iterator[None]:
    with engine.running():
        yield


@pytest.fixture(scope="module")
def maker(an_engine: None) -> str:
    return engine.base("bookworm")


@pytest.fixture(scope="module")
def place(maker: str) -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-"))
    yield Place(folder, engine.toolchain("gcc12", maker, *COMPILERS), maker)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def farm(place: Place, maker: str) -> Iterator[Place]:
    """The guide's first section, as it stands: built, started, keys handed on."""
    first, check = guide("One machine", place)
    before = time.monotonic()
    place.shell(first.removeprefix("cd docker\n"), 600)
    engine.build("build", maker, TAG, maker, place.clone)  # where the tree was made: it has a name now, by which it is removed
    print(f"the guide's first block: {time.monotonic() - before:.0f} s, images made")
    assert "ok    answer" in place.shell(check)
    yield place
    compose("down", "-v", "-t", "20", place=place)


@pytest.fixture
def agent_of_its_own(farm: Place) -> Iterator[Any]:
    """An agent of the Compose farm with other options than its file says: its container."""
    made = []

    def start(*options: str, say: tuple[str, ...]) -> str:
        words = ["run", "-d", "--name", f"{PREFIX}-single", *options, "agent", "tcp://distributor:7776", "--root", str(farm.tree), *say]
        compose(*words, place=farm)
        made.append(f"{PREFIX}-single")
        eventually(lambda: "ready" in docker("logs", made[0]), 15, "it is ready")
        return made[0]

    yield start
    for name in made:
        docker("rm", "-fv", name)


def distributor(farm: Place, *words: str) -> str:
    return compose("exec", "-T", "distributor", "dwrapctl", *words, place=farm)


def jobs(farm: Place) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(distributor(farm, "jobs", "--json"))
    return found


def agents_of(farm: Place) -> list[str]:
    return compose("ps", "-q", "agent", place=farm).split()


def health(container: str) -> str:
    return docker("inspect", "-f", "{{.State.Health.Status}}", container)


# ---- the images ----


def test_an_image_is_its_base_and_one_small_directory(farm: Place) -> None:
    base = farm.environment["DWRAP_BASE"]
    layer = engine.size(f"{PREFIX}-agent:{TAG}") - engine.size(base)
    print(f"agent: {layer / 1e6:.1f} MB over its base; distributor: {engine.size(f'{PREFIX}-distributor:{TAG}') / 1e6:.1f} MB in all")
    assert layer <= MOST_LAYER_BYTES
    look = ("run", "--rm", "--entrypoint", "sh")
    packages = [docker(*look, image, "-c", "dpkg -l | sha256sum") for image in (base, f"{PREFIX}-agent:{TAG}", f"{PREFIX}-desktop:{TAG}")]
    assert len(set(packages)) == 1, "the package database says which environment this is"


def test_an_agent_is_ready_soon(farm: Place, agent_of_its_own: Any) -> None:
    container = agent_of_its_own(say=("--label", "only=this"))
    started, ready = docker("inspect", "-f", "{{.State.StartedAt}}", container), docker("logs", "-t", container).split()[0]
    assert " ready " in docker("logs", "-t", container).splitlines()[0]
    took = seconds(ready) - seconds(started)
    print(f"start to ready: {took:.2f} s")
    assert took <= MOST_START_SECONDS


@pytest.mark.parametrize("target", ["agent", "distributor"])
def test_what_is_told_to_end_at_once_does(target: str, farm: Place) -> None:
    """It is its container's first process: what comes before it has a handler must not be lost. With so little of a processor it needs
    seconds to have one.
    """
    command = [] if target == "distributor" else ["tcp://127.0.0.1"]
    container = docker("run", "-d", "--cpus", "0.1", f"{PREFIX}-{target}:{TAG}", *command)
    docker("kill", "--signal", "TERM", container)
    try:
        assert docker("wait", container, seconds=60) == "0"
        assert "ready" not in docker("logs", container)
    finally:
        docker("rm", "-fv", container)


def seconds(stamp: str) -> float:
    """Of a time as the engine tells it, within its hour."""
    _, minute, second = stamp.rstrip("Z").split("T")[1].split(":")
    return int(minute) * 60 + float(second)


def test_the_same_tree_runs_on_an_older_c_library_and_uses_nothing_of_its(farm: Place) -> None:
    image = engine.build("agent", engine.base("bullseye"), "bullseye", farm.environment["DWRAP_BUILD"])
    look = ("run", "--rm", "--init", "--entrypoint", "sh", image, "-euc")
    rooms = ", ".join(f"dwrap.{room}.cli" for room in ("agent", "control", "distributor"))
    script = f"import re, {rooms}; print(*set(re.findall(r'/\\S+', open('/proc/self/maps').read())))"
    astray = 'LD_LIBRARY_PATH="$(dirname "$(find /lib /usr/lib -name libc.so.6 | head -1)")"'
    library, used = docker(*look, f'ldd --version | head -1; {astray} /opt/dwrap/libexec/python3 -IS -c "{script}"').splitlines()
    print(f"bullseye: {library}")
    assert "2.31" in library
    assert "/opt/dwrap/lib/libc.so.6" in used.split()
    assert [file for file in used.split() if ".so" in file and not file.startswith("/opt/dwrap/")] == []
    told = docker(*look, "env -i PATH=$PATH A=1 dwrapctl up -- sh -c 'DWRAP_FALLBACK=fail dwrap /usr/bin/env'")
    given = {line.split("=")[0] for line in told.splitlines()}
    assert {"A", "DWRAP_JOB"} <= given
    assert not [name for name in given if name.startswith(("PYTHON", "LD_"))], "a job inherits nothing of the interpreter"


def hardened(without: str = "") -> list[str]:
    """What Compose's file gives an agent, less a right."""
    rights = [word for name in NEEDED if name != without for word in ("--cap-add", name)]
    places = ["--read-only", "--tmpfs", "/run/dwrap", "--tmpfs", "/tmp:exec"]
    return [*places, "--security-opt", "no-new-privileges", "--cap-drop", "ALL", *rights]


@pytest.mark.parametrize("right", NEEDED[:4])
def test_without_a_right_that_it_needs_an_agent_says_so(right: str, farm: Place) -> None:
    with pytest.raises(EngineError, match=rf"root may not do here what jobs of others need \({right}\)"):
        docker("run", "--rm", *hardened(without=right), f"{PREFIX}-agent:{TAG}", "127.0.0.1")


# ---- Compose ----


def test_jobs_run_on_all_agents_as_their_user(farm: Place) -> None:
    before = len(jobs(farm))
    farm.desktop("for i in 1 2 3 4 5 6; do dwrap sh -c 'id -u; sleep 1; touch made-$0' $i & done; wait")
    done = jobs(farm)[before:]
    places = Counter(job["agent"] for job in done)
    print(f"compose: {dict(places)}")
    assert (len(done), len(places)) == (6, 3)
    assert {file.stat().st_uid for file in farm.tree.glob("made-*")} == {USER}


def test_another_server_joins_by_a_token_and_another_user_too(farm: Place) -> None:
    gateway = docker("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", NETWORK)
    address = f"tcp://{gateway}:{farm.environment['DWRAP_PORT']}"
    _, first, others = guide("Five servers in five minutes", farm)
    far = {"DWRAP_ADDRESS": address, "COMPOSE_PROJECT_NAME": f"{PREFIX}-far"}
    tokens = [line for line in farm.shell(first, DWRAP_ADDRESS=address).splitlines() if line.startswith("dwrap_join_")]
    try:
        for line, token in zip(others.splitlines(), tokens, strict=True):
            farm.shell(f"{{ {line}; }} <<< {token}", **far)
        container = farm.shell("docker-compose ps -q agent", **far).strip()
        eventually(lambda: "ready" in docker("logs", container), 15, "it is ready")
        label = f"DWRAP_LABELS=agent={docker('inspect', '-f', '{{.Config.Hostname}}', container)}"
        told = farm.shell(f"docker-compose run --rm -T -e DWRAP_FALLBACK=fail -e {label} desktop dwrap id -u", **far)
        assert told.split()[-1] == str(USER)
    finally:
        farm.shell("docker-compose down -v -t 20", **far)


def test_containers_may_do_as_little_as_the_file_says(farm: Place) -> None:
    for container in (*agents_of(farm), *compose("ps", "-q", "distributor", place=farm).split()):
        told = json.loads(docker("inspect", container))[0]["HostConfig"]
        assert (told["ReadonlyRootfs"], told["CapDrop"], told["Privileged"]) == (True, ["ALL"], False)
        assert told["SecurityOpt"] == ["no-new-privileges:true"], "and no other seccomp profile than the engine's"
        with pytest.raises(EngineError, match="Read-only"):
            docker("exec", container, "/opt/dwrap/libexec/python3", "-IS", "-c", "open('/opt/dwrap/x', 'w')")


@pytest.mark.parametrize(("less", "outputs"), [("", "exact"), ("SYS_PTRACE", "approximate")])
def test_what_jobs_write_is_recorded_under_the_default_profile(less: str, outputs: str, farm: Place) -> None:
    name = f"{PREFIX}-records"
    mounts = ["-v", f"{farm.tree}:{farm.tree}", "-v", f"{PREFIX}-compose_agent-keys:/etc/dwrap/keys"]
    say = ["tcp://distributor:7776", "--root", str(farm.tree), "--views", "always", "--label", "only=records"]
    docker("run", "-d", "--name", name, *hardened(without=less), "--network", NETWORK, *mounts, f"{PREFIX}-agent:{TAG}", *say)
    try:
        eventually(lambda: "ready" in docker("logs", name), 15, "it is ready")
        build = "echo 'int main() { return 0; }' > a.cpp; dwrap g++ -c a.cpp; dwrap g++ a.o -o a; dwrap ./a"
        farm.desktop(build, "-e", "DWRAP_LABELS=only=records")
        assert [job["outputs"] for job in jobs(farm)[-3:]] == [outputs] * 3
    finally:
        docker("rm", "-fv", name)


PROCESSES = """
import contextlib, os
for pid in filter(str.isdigit, os.listdir("/proc")):
    with contextlib.suppress(OSError):  # it has just ended
        print(open(f"/proc/{pid}/stat").read().strip(), open(f"/proc/{pid}/cmdline").read().replace(chr(0), " "))
"""


def left_in(container: str) -> list[str]:
    """Processes that sleep, and those that nobody has waited for, which the engine itself does not show."""
    told = docker("exec", container, "/opt/dwrap/libexec/python3", "-IS", "-c", PROCESSES).splitlines()
    return [line for line in told if "sleep 4321" in line or ") Z " in line]


def test_orphans_are_ended_and_reaped_by_the_agent_as_the_first_process(farm: Place, agent_of_its_own: Any) -> None:
    container = agent_of_its_own(say=("--label", "only=orphans"))
    farm.desktop("dwrap sh -c '(setsid sleep 4321 &); (setsid true &)'", "-e", "DWRAP_LABELS=only=orphans")
    orphan = ("sh", "-c", "(setsid sleep 0.1 &)")
    docker("exec", container, *orphan)
    eventually(lambda: not left_in(container), 10, "none is left, nor a zombie")
    docker("exec", container, "sh", "-c", "(setsid sleep 4321 &)")
    eventually(lambda: not left_in(container), 10, "what nobody has asked for is ended")
    control = f"{PREFIX}-control"
    docker("run", "-d", "--name", control, f"{PREFIX}-desktop:{TAG}", "sleep", "100")
    docker("exec", control, *orphan)
    eventually(lambda: left_in(control), 10, "a first process that does not reap has a zombie")
    docker("rm", "-fv", control)


def test_one_users_agent_needs_no_right_at_all(farm: Place) -> None:
    keys = farm.home / "agent-keys"
    name = f"{PREFIX}-one"
    shape = ["--read-only", "--tmpfs", "/run/dwrap", "--tmpfs", "/tmp:exec", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    shape += ["--user", f"{USER}:{USER}", "--network", NETWORK, "-v", f"{farm.home}:{farm.home}", "-e", f"DWRAP_KEYS={keys}"]
    token = distributor(farm, "invite", "one", "--address", "tcp://distributor:7776", "--serve", "--uid", str(USER))
    docker("run", "--rm", "-i", *shape, "--entrypoint", "/opt/dwrap/bin/dwrapctl", f"{PREFIX}-agent:{TAG}", "join", "--agent", given=token)
    say = ["tcp://distributor:7776", "--root", str(farm.tree), "--views", "always", "--label", "only=one"]
    docker("run", "-d", "--name", name, *shape, "-v", f"{farm.tree}:{farm.tree}", f"{PREFIX}-agent:{TAG}", *say)
    try:
        eventually(lambda: "ready" in docker("logs", name), 15, "it is ready")
        farm.desktop("dwrap sh -c 'id -u > one'", "-e", "DWRAP_LABELS=only=one")
        assert (farm.tree / "one").read_text() == f"{USER}\n"
        assert jobs(farm)[-1]["outputs"] == "exact"
        eventually(lambda: health(name) == "healthy", 20, "it is healthy")
    finally:
        docker("rm", "-fv", name)


def test_a_quota_gives_fewer_slots(farm: Place) -> None:
    count = "from dwrap.agent.environment import processors; print(processors())"
    look = ("--entrypoint", "/opt/dwrap/libexec/python3", f"{PREFIX}-agent:{TAG}", "-IS", "-c", count)
    assert docker("run", "--rm", "--cpus", "1", *look) == "1"
    assert int(docker("run", "--rm", *look)) == len(os.sched_getaffinity(0))


def test_an_agent_is_healthy_only_while_a_distributor_counts_on_it(farm: Place) -> None:
    server, *_ = compose("ps", "-q", "distributor", place=farm).split()
    eventually(lambda: {health(one) for one in (server, *agents_of(farm))} == {"healthy"}, 30, "all are healthy")
    docker("stop", server)
    eventually(lambda: {health(one) for one in agents_of(farm)} == {"unhealthy"}, 40, "the agents are ill without it")
    docker("start", server)
    eventually(lambda: {health(one) for one in (server, *agents_of(farm))} == {"healthy"}, 40, "all are healthy again")


def test_fewer_agents_leave_when_their_jobs_have_ended(farm: Place) -> None:
    one, _, _ = agents_of(farm)
    name = docker("inspect", "-f", "{{.Config.Hostname}}", one)
    label = ("-e", f"DWRAP_LABELS=agent={name}")
    began = farm.tree / "began"
    argv = ["docker", "run", "--rm", *desktop_of(farm), *label, "-e", "DWRAP_FALLBACK=fail", f"{PREFIX}-desktop:{TAG}"]
    with subprocess.Popen([*argv, "dwrap", "sh", "-c", "touch began; sleep 4; echo whole"], stdout=subprocess.PIPE, text=True) as job:
        eventually(began.exists, 20, "the job runs")
        docker("stop", "-t", "60", one)
        assert job.communicate(timeout=30)[0] == "whole\n"
    assert job.returncode == 0
    assert docker("inspect", "-f", "{{.State.ExitCode}}", one) == "0"
    docker("start", one)


def desktop_of(farm: Place) -> list[str]:
    mounts = ["-v", f"{farm.tree}:{farm.tree}", "-v", f"{PREFIX}-compose_desktop-keys:/keys", "-w", str(farm.tree)]
    own = ["-e", f"DWRAP_KEYS=/keys/{USER}", "-e", "DWRAP_HOST=tcp://distributor:7776", "-e", "HOME=/tmp"]
    return ["-u", f"{USER}:{USER}", "--network", NETWORK, *mounts, *own]


# ---- Swarm ----


@pytest.fixture(scope="module")
def swarm(farm: Place) -> Iterator[Place]:
    """The guide's section, as it stands, with three agents on the one node there is."""
    if docker("info", "-f", "{{.Swarm.LocalNodeState}}") != "inactive":
        pytest.skip("this machine takes part in a swarm: it must not be changed for a test")
    docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    try:
        (commands,) = guide("Swarm", farm)
        shutil.copy2(Path(engine.__file__).parent / "replicas.yaml", farm.clone)
        farm.shell(commands.replace("-c docker/stack.yaml", "-c docker/stack.yaml -c replicas.yaml"), folder=".")
        eventually(lambda: len(fleet()) == 3, 60, "three agents serve")
        yield farm
    finally:
        with contextlib.suppress(EngineError):
            docker("stack", "rm", "dwrap")
            eventually(lambda: not docker("ps", "-aq", "--filter", "name=dwrap_"), 60, "the stack is gone")
        docker("swarm", "leave", "--force")
        docker("volume", "rm", "dwrap_distributor")


def in_swarm(*words: str) -> str:
    return docker("exec", docker("ps", "-qf", "name=dwrap_distributor"), "dwrapctl", *words)


def fleet() -> dict[str, dict[str, Any]]:
    with contextlib.suppress(EngineError):
        return {agent["name"]: agent for agent in json.loads(in_swarm("agents", "--json"))["agents"] if agent["is_serving"]}
    return {}


def task_of(agent: str) -> str:
    return docker("ps", "-qf", f"name=dwrap_agent.{agent.rpartition('-')[2]}.")


def test_a_real_project_is_built_while_one_agent_is_killed_and_one_leaves(swarm: Place) -> None:
    try:
        source = debian_source.unpack("libjsoncpp", swarm.tree)
    except debian_source.SourceError as error:
        pytest.skip(str(error))
    for path in (source, *source.rglob("*")):
        os.chown(path, USER, USER)
    desk = [*desktop(swarm, TAG, DWRAP_FALLBACK="fail"), "-w", str(source), f"{PREFIX}-desktop:{TAG}"]
    launch = " ".join(f"-DCMAKE_CXX_{what}_LAUNCHER=dwrap" for what in ("COMPILER", "LINKER"))
    docker(*desk, "sh", "-c", f"cmake -G Ninja -B build -DCMAKE_BUILD_TYPE=Release -DCCACHE_EXECUTABLE= {launch}", seconds=300)
    configured, here = len(json.loads(in_swarm("jobs", "--json"))), lines(swarm)
    test = "for n in 1 2 3; do dwrap build/bin/jsoncpp_test & done; wait; ctest --test-dir build"
    with subprocess.Popen(["docker", *desk, "sh", "-euc", f"ninja -j6 -C build && {test}"], stdout=subprocess.PIPE, text=True) as building:
        eventually(lambda: sum(agent["jobs_done"] for agent in fleet().values()) >= configured + 3, 120, "the build is under way")
        busy = eventually(lambda: [name for name, agent in fleet().items() if agent["assigned"]], 60, "one is at work")
        killed, leaving = busy[0], sorted(fleet().keys() - {busy[0]})[0]
        gone = task_of(leaving)
        docker("kill", task_of(killed))
        with subprocess.Popen(["docker", "stop", "-t", "120", gone], stdout=subprocess.DEVNULL):
            said, _ = building.communicate(timeout=300)
    assert building.returncode == 0, said[-3000:]
    assert "100% tests passed" in said
    assert docker("inspect", "-f", "{{.State.ExitCode}}", gone) == "0", "it left when its jobs had ended"
    done = json.loads(in_swarm("jobs", "--json"))[configured:]
    places = Counter(job["where"] for job in done)
    print(f"swarm: {len(done)} commands on {dict(places)}, here {lines(swarm) - here}; {killed} killed, {leaving} left; "
          f"{sum(job['losses'] for job in done)} attempts lost and made again")  # fmt: skip
    assert set(places) == {"agent-1", "agent-2", "agent-3"}
    assert lines(swarm) - here <= len(done) // 20
    made = [path for path in (source / "build").rglob("*") if path.suffix in (".o", ".so", ".a") or path.name == "jsoncpp_test"]
    assert len(made) > 10
    assert {path.stat().st_uid for path in made} == {USER}


def desktop(swarm: Place, tag: str, **settings: str) -> list[str]:
    """The words that run a desktop on the Swarm's network, as the user, but for its image; their key is let in when it is not yet."""
    own = {"DWRAP_KEYS": "/h/desk", "DWRAP_HOST": "tcp://distributor:7776", "HOME": "/h"}
    own |= {"XDG_STATE_HOME": f"{swarm.tree}/state", **settings}
    words = ["run", "--rm", "-i", "-u", f"{USER}:{USER}", "--network", "dwrap_farm", "-v", f"{swarm.tree}:{swarm.tree}"]
    words += ["-v", f"{swarm.home}:/h", "-w", str(swarm.tree), *(word for name, value in own.items() for word in ("-e", f"{name}={value}"))]
    if not (swarm.home / "desk" / "client.key").exists():
        token = in_swarm("invite", "desk", "--address", "tcp://distributor:7776", "--submit", "--uid", str(USER), "--group", str(USER))
        docker(*words, f"{PREFIX}-desktop:{tag}", "dwrapctl", "join", given=token)
    return words


def lines(swarm: Place) -> int:
    """How many commands have run on the desktop."""
    log = swarm.tree / "state" / "dwrap" / "here.log"
    return len(log.read_text(errors="replace").splitlines()) if log.exists() else 0


SCRIPT = """#!/bin/sh
unit() { [ -e enough ] || dwrap sh -c 'sleep 1; echo "int f() { return $0; }" | g++ -x c++ -c - -o $0.o' "$1"; }
[ $# = 0 ] || { unit "$1"; exit; }
seq 1000 | xargs -P 6 -n 1 "$0"
"""


@pytest.fixture(scope="module")
def newer(farm: Place) -> str:
    """Images of the next toolchain: agent and desktop."""
    base = engine.toolchain("gcc10", engine.base("bullseye"), "g++")
    for target in ("agent", "desktop"):
        engine.build(target, base, "next", farm.environment["DWRAP_BUILD"], farm.clone)
    return "next"


def compiler_of(unit: Path) -> str:
    """What made an object file, as it says itself."""
    found = re.search(rb"GCC: \(Debian ([0-9.]+)", unit.read_bytes())
    return found[1].decode() if found else "unknown"


def test_a_new_image_is_rolled_out_under_a_build(swarm: Place, newer: str) -> None:
    """The old desktop's build goes on, on old agents as long as there are any, then on the desktop, which is told why."""
    folder = swarm.tree / "roll"
    folder.mkdir()
    script = folder / "build"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    os.chown(folder, USER, USER)
    configured, here = len(json.loads(in_swarm("jobs", "--json"))), lines(swarm)
    old = [*desktop(swarm, TAG), "-w", str(folder), f"{PREFIX}-desktop:{TAG}"]
    image = ("--image", f"{PREFIX}-agent:{newer}", "--update-monitor", "1s", "--no-resolve-image", "-d", "dwrap_agent")
    with subprocess.Popen(["docker", *old, str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as building:
        eventually(lambda: sum(agent["jobs_done"] for agent in fleet().values()) >= configured + 3, 60, "the build is under way")
        docker("service", "update", *image)
        eventually(lambda: ["g++=10." in agent["identity"] for agent in fleet().values()] == [True] * 3, 180, "three new agents serve")
        eventually(lambda: lines(swarm) >= here + 6, 60, "the old desktop runs commands itself")
        (folder / "enough").touch()
        said, _ = building.communicate(timeout=60)
    assert building.returncode == 0, said[-3000:]
    units = list(folder.glob("*.o"))
    done = json.loads(in_swarm("jobs", "--json"))[configured:]
    places = Counter(job["where"] for job in done)
    print(f"rolled out: {len(units)} units, made by {dict(Counter(map(compiler_of, units)))}; {dict(places)}, here {lines(swarm) - here}")
    assert {compiler_of(unit).partition(".")[0] for unit in units} == {"12"}, "no job ran in the other environment"
    assert {"agent-1", "agent-2", "agent-3"} <= places.keys(), "it began on them"
    assert len(units) >= len(done) - places["here"], "what was asked for was made"
    told = docker(*old, "sh", "-c", "dwrap g++ --version >&2; dwrap sh -c 'exit 0'; dwrapctl why; dwrap --explain sh -c 'exit 0'")
    print(told)
    assert re.search(r"no agent has your environment: agent agent-\d has g\+\+ 10\.2[^,]*, you have 12\.2", told)


def test_two_environments_are_served_at_once(swarm: Place, newer: str) -> None:
    """After the test above: three new agents, and one of the old image beside them."""
    keys = swarm.home / "old-keys"
    keys.mkdir(0o700)
    for name in ("agent.key", "known_distributors"):  # root's, who has no right there to read others'
        shutil.copyfile(swarm.clone / "keys" / name, keys / name)
        (keys / name).chmod(0o600)
    mounts = ["-v", f"{swarm.tree}:{swarm.tree}", "-v", f"{keys}:/etc/dwrap/keys:ro"]
    shape = ["--name", f"{PREFIX}-old", "--hostname", "old", "--network", "dwrap_farm", *hardened(), *mounts]
    docker("run", "-d", *shape, f"{PREFIX}-agent:{TAG}", "tcp://distributor:7776", "--root", str(swarm.tree))
    try:
        eventually(lambda: "old" in fleet(), 30, "the old one serves")
        before = len(json.loads(in_swarm("jobs", "--json")))
        for tag in (TAG, newer):
            words = [*desktop(swarm, tag, DWRAP_FALLBACK="fail"), f"{PREFIX}-desktop:{tag}", "sh", "-euc"]
            docker(*words, "for i in 1 2 3 4; do echo 'int f;' >$0-$i.cpp; dwrap g++ -c $0-$i.cpp & done; wait", tag)
        places = [job["where"] for job in json.loads(in_swarm("jobs", "--json"))[before:]]
        print(f"two pools at once: {dict(Counter(places))}")
        assert set(places[:4]) == {"old"}
        assert set(places[4:]) <= {"agent-1", "agent-2", "agent-3"}
        made = {tag: {compiler_of(unit) for unit in swarm.tree.glob(f"{tag}-*.o")} for tag in (TAG, newer)}
        assert {tag: [version.split(".")[0] for version in versions] for tag, versions in made.items()} == {TAG: ["12"], newer: ["10"]}
    finally:
        docker("rm", "-fv", f"{PREFIX}-old")


def test_an_agent_for_each_node_ends_its_jobs_when_it_is_updated_or_removed(swarm: Place) -> None:
    """The file as it is, without the replicas of the tests above."""
    docker("service", "rm", "dwrap_agent")
    eventually(lambda: not docker("ps", "-q", "--filter", "name=dwrap_agent"), 60, "those are gone")
    swarm.shell("docker stack deploy -c docker/stack.yaml dwrap", folder=".")
    node = docker("node", "inspect", "self", "-f", "{{.Description.Hostname}}")
    eventually(lambda: [*fleet()] == [node], 60, "the node's agent serves")
    assert "Global" in docker("service", "inspect", "-f", "{{json .Spec.Mode}}", "dwrap_agent")
    desk = ["docker", *desktop(swarm, TAG, DWRAP_FALLBACK="fail"), f"{PREFIX}-desktop:{TAG}", "dwrap", "sh", "-c"]
    update = ("update", "--force", "--update-monitor", "1s", "-d")
    for change in (update, ("rm",)):
        began, may_end = swarm.tree / f"began-{change[0]}", swarm.tree / f"may-end-{change[0]}"
        script = f"touch {began}; until [ -e {may_end} ]; do sleep 0.1; done; echo whole"
        agent = docker("ps", "-qf", "name=dwrap_agent")
        with (
            subprocess.Popen([*desk, script], stdout=subprocess.PIPE, text=True) as job,
            subprocess.Popen(["docker", "wait", agent], stdout=subprocess.PIPE, text=True) as ended,
        ):
            try:
                eventually(began.exists, 20, "the job runs")
                docker("service", *change, "dwrap_agent")
                eventually(lambda: json.loads(in_swarm("agents", "--json"))["agents"][0]["is_draining"], 30, "it drains")
                assert (job.poll(), ended.poll()) == (None, None)
            finally:
                may_end.touch()
            assert job.communicate(timeout=30)[0] == "whole\n"
            assert ended.communicate(timeout=30)[0] == "0\n"
        assert job.returncode == 0
        if change == update:
            eventually(lambda agent=agent: [*fleet()] == [node] and docker("ps", "-qf", "name=dwrap_agent") != agent, 60, "the next serves")
    assert json.loads(in_swarm("jobs", "--json"))[-1]["losses"] == 0
