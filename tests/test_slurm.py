"""Agents in Slurm allocations (deploy/slurm), on a real Slurm of four virtual nodes here, as a user who is not root.

An array of agents builds, drains in the middle of it and at its time limit, and ends; a distributor in an allocation makes what it needs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from farm import eventually, ready_line
from slurm_cluster import CPUS, Cluster, as_user, free_ports, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
ROOM = Path(__file__).resolve().parent.parent
AGENTS = str(ROOM / "deploy/slurm/dwrap-agents.sbatch")
DISTRIBUTOR = str(ROOM / "deploy/slurm/dwrap-distributor.sbatch")
WIDE = f"--cpus-per-task={CPUS}"
LIMIT_SECONDS = 90.0  # Slurm looks at time limits twice a minute
COMPLETED = ("COMPLETED", "0:0")


@pytest.fixture
def slurm(short_dir: Path) -> Iterator[Cluster]:
    with Cluster(short_dir, nodes=4) as cluster:
        yield cluster
        print(cluster.logs())


@pytest.fixture
def distributor(slurm: Cluster) -> Iterator[str]:
    """One outside of Slurm, run by the user, who let themselves and their agents in as docs/slurm.md says."""
    port = free_ports(1)[0]
    address = f"tcp://127.0.0.1:{port}"
    keys = str(slurm.home / ".config/dwrap/keys")
    new = {kind: slurm.run("dwrapctl", "key", "new", kind).split()[0] for kind in ("server", "agent", "client")}
    slurm.run("dwrapctl", "key", "allow", "agents", new["agent"], "--serve", "--uid", str(slurm.user_uid))
    slurm.run("dwrapctl", "key", "allow", "me", new["client"], "--submit", "--operate", "--uid", str(slurm.user_uid))
    slurm.run("dwrapctl", "key", "trust", address, new["server"])
    listen = ["--listen", f"tcp://0.0.0.0:{port}", "--keys", keys, "--http", "off"]
    slurm.env["DWRAP_HOST"] = address
    log = (slurm.place / "distributor.log").open("wb")
    command = as_user("dwrap-distributor", *listen, "--state", str(slurm.home / "state"))
    with log, subprocess.Popen(command, env=slurm.env, cwd=slurm.home, stdout=subprocess.PIPE, stderr=log) as process:
        try:
            ready_line(process)
            yield address
        finally:
            process.terminate()
    assert process.returncode == 0


def agents(slurm: Cluster) -> dict[str, dict[str, Any]]:
    """Those that are connected now."""
    return {agent["name"]: agent for agent in json.loads(slurm.run("dwrapctl", "status", "--json"))["agents"]}


def jobs(slurm: Cluster) -> list[dict[str, Any]]:
    return list(json.loads(slurm.run("dwrapctl", "jobs", "--json")))


def held_on(slurm: Cluster, agent: str) -> tuple[subprocess.Popen[str], Path]:
    """A job on that agent which ends when a file is made, and that file."""
    go = slurm.home / f"go-{agent}"
    waiting = 'echo began; until [ -e "$0" ]; do sleep 0.1; done; echo went on'
    job = slurm.start("dwrap", "sh", "-c", waiting, str(go), DWRAP_LABELS=f"agent={agent}")
    eventually(lambda: agents(slurm)[agent]["assigned"], saying=f"{agent} has a job")
    return job, go


def release(job: subprocess.Popen[str], go: Path) -> None:
    """Its end, which is to be a good one."""
    go.touch()
    assert job.communicate(timeout=30)[0] == "began\nwent on\n"
    assert job.returncode == 0


def test_an_array_of_agents_builds_drains_and_ends(slurm: Cluster, distributor: str) -> None:
    brief = slurm.sbatch("--time=1", "--signal=B:TERM@50", WIDE, AGENTS, "--name", "brief")
    array = slurm.sbatch("--array=1-3", WIDE, AGENTS, distributor, "--root", str(slurm.home))
    names = [f"slurm-{array}-{number}" for number in (1, 2, 3)]
    eventually(lambda: set(agents(slurm)) == {"brief", *names}, 30, "all agents have come")
    known = agents(slurm)
    assert {known[name]["slots"] for name in names} == {CPUS}
    assert {known[name]["serves"] for name in names} == {slurm.user_uid}
    assert len(set(slurm.run("squeue", "-h", "-j", array, "-o", "%N").split())) == 3

    at_the_limit = held_on(slurm, "brief")
    in_the_middle = held_on(slurm, names[1])
    shutil.copytree(ROOM / "examples/cmake", slurm.home / "project")
    launchers = [f"-DCMAKE_{what}_LAUNCHER=dwrap" for what in ("CXX_COMPILER", "CXX_LINKER", "TEST")]
    slurm.run("cmake", "-Wno-dev", "-G", "Ninja", "-S", "project", "-B", "build", *launchers, seconds=120)
    before = done(slurm)
    build = slurm.start("ninja", "-C", "build", "-j8")
    eventually(lambda: all(done(slurm)[name] > before[name] for name in names), 60, "all three have finished some job")
    slurm.run("scancel", "--batch", "--signal=TERM", f"{array}_2")
    eventually(lambda: "draining running=" in slurm.log(f"dwrap-agent-{array}_2.log"), saying="it drains")
    assert build.poll() is None, "the build was over before an agent drained"
    eventually(lambda: agents(slurm)[names[1]]["is_draining"] and agents(slurm)[names[1]]["assigned"] == 1, 30, "only the held job is left")
    assert slurm.states(array)[f"{array}_2"][0] == "RUNNING"
    release(*in_the_middle)
    eventually(lambda: slurm.states(array)[f"{array}_2"] == COMPLETED, 20, "the drained task has completed")
    said, _ = build.communicate(timeout=240)
    assert build.returncode == 0, said
    assert "100% tests passed" in slurm.run("ctest", "--test-dir", "build", "-j4", seconds=120)

    eventually(lambda: "draining running=1" in log_of(slurm, brief), LIMIT_SECONDS, "the limit's signal has come")
    release(*at_the_limit)
    eventually(lambda: slurm.states(brief) == {brief: COMPLETED}, 20, "it completed before its limit")

    ended = jobs(slurm)
    where = Counter(job["where"] for job in ended if job["outcome"] == "done")
    assert set(names) <= set(where) <= {"brief", *names}, where
    assert sum(where.values()) >= 19 + 8 + 7 + 2
    assert set(Counter(job["outcome"] for job in ended)) <= {"done", "here"}
    assert not [job for job in ended if job["losses"]], "an attempt was lost"
    print(f"jobs by agent: {dict(where)}; none lost")

    slurm.run("scancel", "--batch", "--signal=TERM", array)
    everyone = dict.fromkeys((f"{array}_{number}" for number in (1, 2, 3)), COMPLETED)
    eventually(lambda: slurm.states(array) == everyone, 20, "all have completed")
    assert not agents(slurm)
    eventually(lambda: not [one for one in slurm.left() if "dwrap-distributor" not in one], saying="nothing of the agents is left")
    assert not [*(slurm.place / "tmp").iterdir()]


def log_of(slurm: Cluster, job: str) -> str:
    """What the agent of a job that is no array has said; Slurm has a number for "no task"."""
    return slurm.log(f"dwrap-agent-{job}_{2**32 - 2}.log")


def done(slurm: Cluster) -> Counter[str]:
    """How many jobs each agent has finished."""
    return Counter({name: agent["jobs_done"] for name, agent in agents(slurm).items()})


def test_a_distributor_in_an_allocation_makes_the_keys_and_keeps_its_jobs_over_a_restart(slurm: Cluster) -> None:
    port = free_ports(1)[0]
    slurm.env |= {"DWRAP_HOST": f"tcp://127.0.0.1:{port}", "DWRAP_PORT": str(port)}  # the node's name is known to Slurm alone
    first = slurm.sbatch("--nodelist=n1", DISTRIBUTOR)
    eventually(lambda: "\nready tcp://" in slurm.log(f"dwrap-distributor-{first}.log"), 30, "it is ready")
    known = slurm.home / ".config/dwrap/keys/known_distributors"
    name, key = known.read_text().split()
    assert (name, key) == (f"tcp://n1:{port}", slurm.run("dwrapctl", "key", "show", "server").strip())
    slurm.run("dwrapctl", "key", "trust", slurm.env["DWRAP_HOST"], key)
    slurm.sbatch("--array=7", AGENTS)
    eventually(lambda: len(agents(slurm)) == 1, 30, "the agent has come")
    (agent,) = agents(slurm)
    assert agents(slurm)[agent]["roots"] == [str(slurm.home)]
    job = held_on(slurm, agent)
    slurm.run("scancel", first)
    second = slurm.sbatch("--nodelist=n1", DISTRIBUTOR)
    eventually(lambda: "\nready tcp://" in slurm.log(f"dwrap-distributor-{second}.log"), 30, "the next one is ready")
    release(*job)
    assert len((slurm.home / ".config/dwrap/keys/authorized_keys").read_text().splitlines()) == 2
    assert len(known.read_text().splitlines()) == 2


def test_what_a_cancelled_agent_ran_runs_again_elsewhere(slurm: Cluster, distributor: str) -> None:
    """`scancel` alone sends TERM to all processes of an allocation, commands too: that is no result of theirs.

    A shell that says so of its child before it ends has printed what it will not print again, and would get 125: this one keeps silent.
    """
    array = slurm.sbatch("--array=1-2", AGENTS)
    eventually(lambda: len(agents(slurm)) == 2, 30, "both have come")
    go = slurm.home / "go"
    waiting = f'exec 2>/dev/null; echo $$ >made; until [ -e {go} ]; do sleep 0.1; done; echo "through $(cat made | wc -l)"'
    job = slurm.start("dwrap", "sh", "-c", waiting)
    eventually(lambda: any(agent["assigned"] for agent in agents(slurm).values()), saying="one runs it")
    (first,) = [name for name, agent in agents(slurm).items() if agent["assigned"]]
    eventually((slurm.home / "made").exists)
    slurm.run("scancel", f"{array}_{first.rpartition('-')[2]}")
    eventually(lambda: first not in agents(slurm), 30, "the agent has gone")
    go.touch()
    assert job.communicate(timeout=30)[0] == "through 1\n"
    assert job.returncode == 0
    (record,) = [one for one in jobs(slurm) if one["command"] == "sh"]
    assert record["where"] != first
    assert (record["losses"], record["lost_why"]) == (1, f"agent {first}: everything there was told to end (SIGTERM)")


def test_what_is_missing_is_said_in_one_line(slurm: Cluster) -> None:
    nowhere = slurm.sbatch(AGENTS)
    elsewhere = slurm.sbatch(AGENTS, "tcp://127.0.0.1:1", PATH="/usr/bin:/bin")
    for job, words in ((nowhere, "nobody says where the distributor is; set DWRAP_HOST"), (elsewhere, "dwrap-agent is not on the PATH")):
        eventually(lambda job=job: slurm.states(job) == {job: ("FAILED", "1:0")}, 30, "the job has failed")
        said = log_of(slurm, job)
        assert said.startswith(f"dwrap: cannot start an agent: {words}")
        assert said.count("\n") == 1
