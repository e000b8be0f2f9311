"""The manifests in deploy/kubernetes, without a cluster: that they fit together, and fit what dwrap's programs accept and tell.

What Kubernetes itself thinks of them its schemas say, where kubernetes-validate is installed; what the components make of them, kustomize,
where kubectl has one. A ScaledObject is in no schema of Kubernetes': its fields are checked here, its values against a real distributor.
"""

from __future__ import annotations

import http.client
import importlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from farm import Farm, eventually
from slurm_cluster import USER, as_user

from dwrap.agent.cli import main as agent_program
from dwrap.distributor.cli import main as distributor_program
from dwrap.distributor.roster import LEASE_GRACE_SECONDS, LEASE_SECONDS
from dwrap.protocol import keys

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

FOLDER = Path(__file__).resolve().parent.parent / "deploy/kubernetes"
VARIANTS = [(), ("autoscaling",), ("daemonset",), ("one-user",), ("autoscaling", "one-user"), ("daemonset", "one-user")]
VERSIONS = ("1.25", "1.28", "1.31", "1.34", "1.37")
WORKLOADS = ("StatefulSet", "DaemonSet", "Deployment")
Manifest = dict[str, Any]


def load(file: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


@cache
def plain() -> list[Manifest]:
    """The manifests as they are written, without components."""
    (settings,) = load(FOLDER / "kustomization.yaml")
    return [manifest for name in settings["resources"] for manifest in load(FOLDER / name)]


@cache
def why_no_kustomize() -> str:
    if shutil.which("kubectl") is None:
        return "not installed: kubectl"
    said = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False).stdout
    known = re.search(r"Kustomize Version: v(\d+)", said)  # kubectl before 1.24 does not tell, and has one that is too old
    return "" if known and int(known[1]) >= 5 else "kubectl is older than 1.27, whose kustomize knows what these manifests use"


def built(place: Path, components: tuple[str, ...]) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    if why_no_kustomize():
        pytest.skip(why_no_kustomize())
    shutil.copytree(FOLDER, place / "kubernetes")
    settings = place / "kubernetes/kustomization.yaml"
    text = settings.read_text()
    for name in components:
        assert f"  # - {name} #" in text
        text = text.replace(f"  # - {name} #", f"  - {name} #")
    settings.write_text(text)
    done = subprocess.run(["kubectl", "kustomize", str(settings.parent)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(params=["as written", *VARIANTS], ids=lambda variant: variant if isinstance(variant, str) else "+".join(variant) or "built")
def manifests(request: pytest.FixtureRequest, tmp_path: Path) -> list[Manifest]:
    return plain() if isinstance(request.param, str) else built(tmp_path, request.param)


def workloads(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] in WORKLOADS}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """What pods are made of, by their workload."""
    return {name: one["spec"]["template"] for name, one in workloads(manifests).items()}


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def selected(manifests: list[Manifest], labels: Manifest) -> list[str]:
    """The workloads whose pods have these labels."""
    return [name for name, pod in pods(manifests).items() if labels.items() <= pod["metadata"]["labels"].items()]


def kind(manifests: list[Manifest], name: str) -> Iterator[Manifest]:
    return (one for one in manifests if one["kind"] == name)


# ---- they fit together ----


def test_every_container_is_confined(manifests: list[Manifest]) -> None:
    assert set(pods(manifests)) == {"dwrap-distributor", "dwrap-agent"}
    for name, pod in pods(manifests).items():
        spec = pod["spec"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not any(spec.get(word) for word in ("hostNetwork", "hostPID", "hostIPC"))
        for container in containers(pod):
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["capabilities"]["drop"] == ["ALL"]
            is_root = spec["securityContext"]["runAsUser"] == 0
            assert spec["securityContext"].get("runAsNonRoot", False) is not is_root
            assert bool(rights["capabilities"].get("add")) is (is_root and container["name"] == "agent"), name
            assert "memory" in container["resources"]["limits"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            claimed = {one["metadata"]["name"] for one in workloads(manifests)[name]["spec"].get("volumeClaimTemplates", [])}
            assert mounted <= {volume["name"] for volume in spec["volumes"]} | claimed


def test_selectors_match_labels_and_ports_match(manifests: list[Manifest]) -> None:
    for name, workload in workloads(manifests).items():
        assert selected(manifests, workload["spec"]["selector"]["matchLabels"]) == [name]
        if workload["kind"] == "StatefulSet":
            assert workload["spec"]["serviceName"] in {one["metadata"]["name"] for one in kind(manifests, "Service")}
    for service in kind(manifests, "Service"):
        (name,) = selected(manifests, service["spec"]["selector"])
        has = {port["name"]: port["containerPort"] for one in containers(pods(manifests)[name]) for port in one.get("ports", [])}
        for port in service["spec"].get("ports", []):
            assert has[port["targetPort"]] == port["port"]
    for budget in kind(manifests, "PodDisruptionBudget"):
        assert selected(manifests, budget["spec"]["selector"]["matchLabels"]) == ["dwrap-agent"]
    for policy in kind(manifests, "NetworkPolicy"):
        (name,) = selected(manifests, policy["spec"]["podSelector"]["matchLabels"])
        has = {port["name"] for one in containers(pods(manifests)[name]) for port in one.get("ports", [])}
        for rule in policy["spec"].get("ingress", []):
            assert rule["from"], "an empty list is everybody"
            assert {port["port"] for port in rule["ports"]} <= has
            for source in rule["from"]:
                assert "namespaceSelector" in source or selected(manifests, source["podSelector"]["matchLabels"]) == ["dwrap-agent"]


def test_every_pod_is_behind_a_policy(manifests: list[Manifest]) -> None:
    behind = {name for one in kind(manifests, "NetworkPolicy") for name in selected(manifests, one["spec"]["podSelector"]["matchLabels"])}
    assert behind == set(pods(manifests))


def test_the_distributor_is_one_and_keeps_its_state(manifests: list[Manifest]) -> None:
    one = workloads(manifests)["dwrap-distributor"]
    assert (one["kind"], one["spec"]["replicas"]) == ("StatefulSet", 1)  # of which Kubernetes never lets two live
    assert [claim["metadata"]["name"] for claim in one["spec"]["volumeClaimTemplates"]] == ["state"]
    (container,) = containers(one["spec"]["template"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "http"}


def test_agents_drain_when_they_end(manifests: list[Manifest]) -> None:
    pod = pods(manifests)["dwrap-agent"]
    (agent,) = pod["spec"]["containers"]
    assert pod["spec"]["terminationGracePeriodSeconds"] >= 10 * (LEASE_SECONDS + LEASE_GRACE_SECONDS)
    assert "command" not in agent, "the image's first process is the agent, which gets SIGTERM itself"
    assert "livenessProbe" not in agent, "jobs run on while the distributor is away"
    assert agent["resources"]["requests"] == agent["resources"]["limits"]


def test_a_disruption_budget_is_one_that_can_be_reckoned(manifests: list[Manifest]) -> None:
    """Of a DaemonSet Kubernetes cannot tell how many pods there ought to be: a budget of so many missing would forbid every eviction."""
    is_counted = workloads(manifests)["dwrap-agent"]["kind"] == "StatefulSet"
    assert [one["spec"]["maxUnavailable"] for one in kind(manifests, "PodDisruptionBudget")] == [1] * is_counted


def test_the_tree_is_mounted_where_the_agent_says_it_is(manifests: list[Manifest]) -> None:
    (agent,) = pods(manifests)["dwrap-agent"]["spec"]["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in agent["volumeMounts"]}
    assert agent["args"][agent["args"].index("--root") + 1] == mounted["tree"]
    (claim,) = kind(manifests, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_images_are_named_in_one_place() -> None:
    (settings,) = load(FOLDER / "kustomization.yaml")
    assert {image for pod in pods(plain()).values() for one in containers(pod) for image in [one["image"]]} == {
        image["name"] for image in settings["images"]
    }


def test_what_is_built_has_those_images(tmp_path: Path) -> None:
    used = {one["image"] for pod in pods(built(tmp_path, ())).values() for one in containers(pod)}
    assert all(re.fullmatch(r"registry\.example\.com/dwrap-(agent|distributor):\S+", image) for image in used), used


def test_one_user_needs_no_rights_and_keeps_to_the_restricted_standard(tmp_path: Path) -> None:
    manifests = built(tmp_path, ("one-user",))
    (namespace,) = kind(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(manifests).values():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert all("add" not in one["securityContext"]["capabilities"] for one in containers(pod))


# ---- they fit dwrap ----


@pytest.mark.parametrize(("name", "program"), [("dwrap-agent", agent_program), ("dwrap-distributor", distributor_program)])
def test_the_options_are_the_programs_own(name: str, program: Any) -> None:
    container = pods(plain())[name]["spec"]["containers"][0]
    program.make_context(name, list(container["args"]))
    with pytest.raises(Exception, match="no-such-option"):  # so it does look
        program.make_context(name, [*container["args"], "--no-such-option"])


def test_the_probe_asks_as_the_image_does() -> None:
    dockerfile = FOLDER.parent.parent / "docker/Dockerfile"
    if not dockerfile.exists():
        pytest.skip("there are no images here")
    agent = pods(plain())["dwrap-agent"]["spec"]["containers"][0]
    command = agent["readinessProbe"]["exec"]["command"]
    assert f"CMD {json.dumps(command)}" in dockerfile.read_text()
    folder = str(Path(command[-1]).parent.parent)  # in it the agent makes a directory of its own
    assert folder in {mount["mountPath"] for mount in agent["volumeMounts"]}
    assert importlib.util.find_spec(command[command.index("-m") + 1])


def test_the_rights_are_those_that_a_container_needs_elsewhere_too() -> None:
    compose = FOLDER.parent.parent / "docker/compose.yaml"
    if not compose.exists():
        pytest.skip("there are no images here")
    agent = pods(plain())["dwrap-agent"]["spec"]["containers"][0]
    elsewhere = yaml.safe_load(compose.read_text(encoding="utf-8"))["services"]["agent"]
    assert set(agent["securityContext"]["capabilities"]["add"]) == set(elsewhere["cap_add"])


@pytest.mark.parametrize("user", ["root", USER])
def test_the_init_container_makes_keys_that_dwrap_accepts(tmp_path: Path, short_dir: Path, user: str) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can act as the pod's user")
    (init,) = pods(plain())["dwrap-agent"]["spec"]["initContainers"]
    (volume,) = [one for one in pods(plain())["dwrap-agent"]["spec"]["volumes"] if "secret" in one]
    source, server = tmp_path / "source", keys.new_pair().public
    keys.write_pair(source, "agent", keys.new_pair())
    keys.pin(source, "tcp://dwrap-distributor:7776", server)
    secret, place = short_dir / "secret", short_dir / "keys"
    (secret / "..1").mkdir(parents=True)  # as the kubelet lays it out
    short_dir.chmod(0o755)
    (secret / "..data").symlink_to("..1")
    for name in ("agent.key", "known_distributors"):
        shutil.copy(source / name, secret / "..1" / name)
        (secret / "..1" / name).chmod(volume["secret"]["defaultMode"])
        (secret / name).symlink_to(f"..data/{name}")
    secret.chmod(0o1777)
    place.mkdir()
    place.chmod(0o777)  # an emptyDir
    with pytest.raises(keys.KeysError):  # what it is for
        keys.read_pair(secret, "agent")
    with pytest.raises(keys.KeysError, match="others may have written it"):
        keys.known_distributor(secret, "tcp://dwrap-distributor:7776")
    for name in ("tmp", "run/dwrap"):
        (short_dir / name).mkdir(parents=True)
        (short_dir / name).chmod(0o777)
    shared = [mount["mountPath"] for mount in init["volumeMounts"]]
    assert sorted(shared) == ["/keys", "/run/dwrap", "/secret", "/tmp"]
    command = [re.sub(rf"(?<=\s)({'|'.join(shared)})\b", rf"{short_dir}\1", word) for word in init["command"]]
    subprocess.run(command if user == "root" else as_user("env", *command), check=True, timeout=30)
    made = place / "own"
    assert made.owner() == user
    assert keys.read_pair(made, "agent") == keys.read_pair(source, "agent")
    assert keys.known_distributor(made, "tcp://dwrap-distributor:7776") == server
    assert {file.stat().st_mode & 0o777 for file in made.iterdir()} == {0o600}
    if user == "root":  # where jobs of several users run
        assert [(short_dir / name).stat().st_mode & 0o7777 for name in ("tmp", "run/dwrap")] == [0o1777, 0o755]


# ---- autoscaling ----


def scaled() -> Manifest:
    return next(one for one in load(FOLDER / "autoscaling/scaledobject.yaml") if one["kind"] == "ScaledObject")


def get(farm: Farm, path: str, host: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(farm.http.removeprefix("http://").rstrip("/"), timeout=10)
    try:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_scaled_object_names_what_is_there() -> None:
    spec = scaled()["spec"]
    workload = workloads(plain())[spec["scaleTargetRef"]["name"]]
    assert {key: spec["scaleTargetRef"][key] for key in ("apiVersion", "kind")} == {key: workload[key] for key in ("apiVersion", "kind")}
    slots = workload["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]
    modifiers = spec["advanced"]["scalingModifiers"]
    assert {modifiers["target"], *(one["metadata"]["targetValue"] for one in spec["triggers"])} == {slots}
    assert sorted(modifiers["formula"].split(" + ")) == sorted(one["name"] for one in spec["triggers"])
    assert modifiers["metricType"] == "AverageValue"
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    (service,) = [one for one in kind(plain(), "Service") if one["metadata"]["name"] == "dwrap-distributor"]
    port = next(one["port"] for one in service["spec"]["ports"] if one["name"] == "http")
    for one in spec["triggers"]:
        assert one["type"] == "metrics-api"
        assert all(isinstance(value, str) for value in one["metadata"].values()), "KEDA takes strings only"
        assert one["metadata"]["url"].startswith(f"http://dwrap-distributor.dwrap.svc:{port}/")


def test_a_distributor_tells_it_how_many_slots_are_wanted(short_dir: Path) -> None:
    arguments = pods(plain())["dwrap-distributor"]["spec"]["containers"][0]["args"]
    names = [word for option, word in pairwise(arguments) if option == "--http-host"]
    triggers = scaled()["spec"]["triggers"]
    with Farm(short_dir, agents=1, slots=2, more=[word for name in names for word in ("--http-host", name)]) as farm:

        def told() -> int:
            values = []
            for one in triggers:
                host, slash, path = one["metadata"]["url"].removeprefix("http://").partition("/")
                status, body = get(farm, slash + path, host)
                assert status == 200, body
                values.append(json.loads(body)[one["metadata"]["valueLocation"]])
            assert all(type(value) is int for value in values)
            return sum(values)

        assert told() == 0
        waiting = ["dwrap", "sh", "-c", f"until [ -e {short_dir}/go ]; do sleep 0.1; done"]
        jobs = [subprocess.Popen(waiting, env=farm.environment(), stdin=subprocess.DEVNULL) for _ in range(5)]
        eventually(lambda: told() == 5, saying="two run, three wait")
        assert get(farm, "/status.json", "elsewhere.example.com:7778")[0] == 403
        assert get(farm, "/healthz", "10.0.0.1:7778") == (200, b"ok\n")  # as the kubelet asks
        metrics = get(farm, "/metrics", "127.0.0.1")[1].decode()
        for name in set(re.findall(r"\bdwrap_\w+", (FOLDER.parent.parent / "docs/kubernetes.md").read_text())):
            assert re.search(rf"^{name}[ {{]", metrics, re.MULTILINE), f"docs/kubernetes.md names {name}, which is no metric"
        (short_dir / "go").touch()
        assert [job.wait(30) for job in jobs] == [0] * 5
        eventually(lambda: told() == 0)


# ---- schemas ----


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(manifests: list[Manifest], version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    strange = []
    for manifest in manifests:
        try:
            validator.validate(manifest, version, strict=True)
        except validator.SchemaNotFoundError:
            strange.append(manifest["kind"])
    assert set(strange) <= {"ScaledObject"}
    with pytest.raises(validator.ValidationError):  # so it does look
        validator.validate({**manifests[0], "no-such-field": 1}, version, strict=True)
