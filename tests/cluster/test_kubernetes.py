"""The manifests on a real API server, with the real controllers, scheduler and KubeRay operator.

What needs a kubelet is not proven here: images, commands, probes, preStop, volumes. Networks are stored, not enforced
(tests/unit/test_manifests.py evaluates them). The tests build on one another, from first deployment to upgrade.
"""

from __future__ import annotations

import copy
import json
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.kubernetes.serve_config import serve_config
from tests.cluster.control_plane import NAMESPACE, ControlPlane, until
from tests.cluster.custom_metrics import CustomMetrics

KUBERNETES = Path(__file__).parents[2] / "cluster" / "kubernetes"
OVERLAYS = ("local", "cpu", "gpu", "multi-zone")
PLAIN = ("audio-processing-service", "tensorflow-serving")
pytestmark = pytest.mark.timeout(300)
Document = dict[str, Any]


def rayservice(documents: list[Document]) -> Document:
    return next(document for document in documents if document["kind"] == "RayService")


@pytest.fixture(scope="module")
def cluster(kubernetes: ControlPlane) -> ControlPlane:
    """With the namespace and what an operator makes by hand, as docs/kubernetes.md says."""
    kubernetes.apply(*yaml.safe_load_all((KUBERNETES / "base" / "namespace.yaml").read_text()))
    for command in (
        ("create", "secret", "generic", "redis-password", "--from-literal=password=made-up"),
        ("create", "secret", "generic", "soundstage-api-keys", "--from-literal=keys=made:up"),
    ):
        kubernetes.kubectl("-n", NAMESPACE, *command)
    return kubernetes


# Validation


@pytest.mark.parametrize("name", [*(f"overlays/{name}" for name in OVERLAYS), *PLAIN])
def test_everything_is_accepted_under_strict_validation_and_the_restricted_policy(
    cluster: ControlPlane, name: str
) -> None:
    documents = cluster.kustomize(KUBERNETES / name)
    warnings = cluster.check(*documents)
    assert "would violate PodSecurity" not in warnings, warnings
    assert "unknown field" not in warnings, warnings


@contextmanager
def overlay(**kustomization: list[str]) -> Iterator[Path]:
    """Of a user's own, beside those that are there."""
    folder = KUBERNETES / "overlays" / f"proof-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["edge-nginx", "logging", "nifi", "tensorflow-serving"])
def test_components_may_be_added(cluster: ControlPlane, name: str) -> None:
    with overlay(resources=["../../base"], components=[f"../../components/{name}"]) as folder:
        warnings = cluster.check(*cluster.kustomize(folder))
    assert "would violate PodSecurity" not in warnings, warnings


def test_every_worker_s_logs_are_shipped(cluster: ControlPlane) -> None:
    components = ["../../components/logging", "../../components/logging-gpu"]
    with overlay(resources=["../gpu"], components=components) as folder:
        documents = cluster.kustomize(folder)
    cluster.check(*documents)
    cpu, gpu = (worker(rayservice(documents)["spec"], group)["template"]["spec"] for group in (0, 1))
    assert cpu["containers"][1:] == gpu["containers"][1:]
    assert cpu["containers"][1]["name"] == "filebeat"
    names = {volume["name"] for volume in gpu["volumes"]}
    assert names == {mount["name"] for container in gpu["containers"] for mount in container["volumeMounts"]}


def head(spec: Document) -> Document:
    pod: Document = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    return pod


def worker(spec: Document, group: int = 0) -> Document:
    found: Document = spec["rayClusterConfig"]["workerGroupSpecs"][group]
    return found


WRONG: dict[str, tuple[Callable[[Document], Any], str]] = {
    "an unknown field": (lambda s: s["rayClusterConfig"].update(enableInTreeAutoscalling=True), "unknown field"),
    "a wrong type": (lambda s: worker(s).update(minReplicas="two"), "must be of type integer"),
    "a wrong token mode": (lambda s: s["rayClusterConfig"]["authOptions"].update(mode="password"), "Unsupported value"),
    "no autoscaler v9": (
        lambda s: s["rayClusterConfig"]["autoscalerOptions"].update(version="v9"),
        "Unsupported value",
    ),
    "a group without a name": (lambda s: worker(s).pop("groupName"), "Required value"),
    "no address of the store": (
        lambda s: s["rayClusterConfig"]["gcsFaultToleranceOptions"].pop("redisAddress"),
        "Required value",
    ),
    "no step of an upgrade": (
        lambda s: s["upgradeStrategy"]["clusterUpgradeOptions"].pop("stepSizePercent"),
        "Required value",
    ),
    "a container without a name": (lambda s: head(s)["containers"][0].pop("name"), "Required value"),
    "a quantity that is none": (
        lambda s: head(s)["containers"][0]["resources"]["limits"].update(memory="4 gigs"),
        "should match",
    ),
    "a negative delay": (lambda s: s.update(rayClusterDeletionDelaySeconds=-1), "greater than or equal to 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_refused(cluster: ControlPlane, name: str) -> None:
    change, why = WRONG[name]
    document = copy.deepcopy(rayservice(cluster.kustomize(KUBERNETES / "overlays" / "gpu")))
    document["metadata"]["name"] = "wrong"
    change(document["spec"])
    with pytest.raises(subprocess.CalledProcessError) as refused:
        cluster.check(document)
    assert why in refused.value.stderr


# The operator


def ray_clusters(cluster: ControlPlane) -> list[str]:
    return [document["metadata"]["name"] for document in cluster.all("rayclusters")]


def pods(cluster: ControlPlane, ray_cluster: str, group: str) -> list[Document]:
    found = cluster.all("pods", ray_io__cluster=ray_cluster, ray_io__group=group)
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def applications(cluster: ControlPlane) -> dict[str, str]:
    status = cluster.get("rayservice", "soundstage")["status"]["activeServiceStatus"]["applicationStatuses"]
    return {name: application["status"] for name, application in status.items()}


def condition(document: Document, name: str) -> str | None:
    found = document.get("status", {}).get("conditions", [])
    return next((entry["status"] for entry in found if entry["type"] == name), None)


@pytest.fixture(scope="module")
def deployed(cluster: ControlPlane) -> ControlPlane:
    """The gpu overlay, with steps of an upgrade that a test can wait for."""
    documents = cluster.kustomize(KUBERNETES / "overlays" / "gpu")
    spec = rayservice(documents)["spec"]
    spec["rayClusterDeletionDelaySeconds"] = 3
    spec["upgradeStrategy"]["clusterUpgradeOptions"] |= {
        "stepSizePercent": 50, "intervalSeconds": 2, "maxSurgePercent": 100
    }  # fmt: skip
    cluster.apply(*documents)
    until("the service is deployed", lambda: applications(cluster) == {"soundstage": "RUNNING"}, timeout_s=120)
    return cluster


def test_the_operator_makes_head_workers_and_services(deployed: ControlPlane) -> None:
    (name,) = ray_clusters(deployed)
    (head,) = pods(deployed, name, "headgroup")
    assert [container["name"] for container in head["spec"]["containers"]] == ["ray-head", "autoscaler"]
    command = " ".join(head["spec"]["containers"][0]["args"])
    assert "--num-cpus=0" in command, "no replica on the head"
    workers = until("two workers", lambda: pods(deployed, name, "cpu"))
    assert len(workers) == 2
    assert {pod["spec"]["nodeName"][:3] for pod in workers} == {"cpu"}
    assert len({pod["spec"]["nodeName"] for pod in workers}) == 2, "spread over nodes"
    assert pods(deployed, name, "gpu") == [], "no GPU node while none is asked for"
    services = {service["metadata"]["name"] for service in deployed.all("services")}
    assert {f"{name}-head-svc", f"{name}-serve-svc", "redis"} <= services


def test_every_pod_passes_the_restricted_policy_that_is_enforced(deployed: ControlPlane) -> None:
    assert deployed.all("pods")
    events = deployed.all("events")
    assert not [event["message"] for event in events if "PodSecurity" in event.get("message", "")]
    with pytest.raises(subprocess.CalledProcessError) as e:
        deployed.kubectl("-n", NAMESPACE, "run", "intruder", "--image=x")
    assert "violates PodSecurity" in e.value.stderr


def test_what_is_deployed_is_serve_config_with_the_cluster_s_few_differences(deployed: ControlPlane) -> None:
    (config,) = deployed.heads.configs.values()
    expected = serve_config("base", "gpu")
    assert config["applications"] == expected["applications"]
    assert config["http_options"] == expected["http_options"]
    assert all(deployed.heads.had_token), "Ray's own token goes with every deployment"


def test_ray_s_token_and_the_store_s_password_come_from_secrets(deployed: ControlPlane) -> None:
    (name,) = ray_clusters(deployed)
    for pod in deployed.all("pods", ray_io__cluster=name):
        env = {entry["name"]: entry for entry in pod["spec"]["containers"][0]["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token"
        assert "secretKeyRef" in env["RAY_AUTH_TOKEN"]["valueFrom"]
    (head,) = pods(deployed, name, "headgroup")
    env = {entry["name"]: entry for entry in head["spec"]["containers"][0]["env"]}
    assert env["RAY_REDIS_ADDRESS"]["value"] == "redis:6379"
    assert env["REDIS_PASSWORD"]["valueFrom"]["secretKeyRef"]["name"] == "redis-password"


def test_workers_have_no_rights_and_the_head_those_of_its_autoscaler(deployed: ControlPlane) -> None:
    (name,) = ray_clusters(deployed)
    (head,) = pods(deployed, name, "headgroup")

    def may(account: str, *what: str) -> bool:
        try:
            deployed.kubectl(
                "-n", NAMESPACE, "auth", "can-i", *what, f"--as=system:serviceaccount:{NAMESPACE}:{account}"
            )
        except subprocess.CalledProcessError:
            return False
        return True

    for account in ("soundstage-worker", "redis", "default"):
        assert not any(may(account, verb, kind) for verb in ("get", "list", "create") for kind in ("pods", "secrets"))
    autoscaler = head["spec"]["serviceAccountName"]
    assert may(autoscaler, "patch", "rayclusters")
    assert not may(autoscaler, "get", "secrets")
    assert not may(autoscaler, "create", "pods")
    for pod in pods(deployed, name, "cpu"):
        assert pod["spec"]["automountServiceAccountToken"] is False


def scale(cluster: ControlPlane, ray_cluster: str, group: int, n: int) -> None:
    path = f"/spec/workerGroupSpecs/{group}/replicas"
    cluster.patch("raycluster", ray_cluster, {"op": "replace", "path": path, "value": n})


def test_the_autoscaler_s_wish_adds_workers_up_to_the_limit_and_takes_named_ones_away(deployed: ControlPlane) -> None:
    (name,) = ray_clusters(deployed)
    scale(deployed, name, 0, 4)
    until("four workers", lambda: len(pods(deployed, name, "cpu")) == 4)
    victims = [pod["metadata"]["name"] for pod in pods(deployed, name, "cpu")][:2]
    deployed.patch(
        "raycluster", name,
        {"op": "replace", "path": "/spec/workerGroupSpecs/0/replicas", "value": 2},
        {"op": "add", "path": "/spec/workerGroupSpecs/0/scaleStrategy", "value": {"workersToDelete": victims}},
    )  # fmt: skip

    def left() -> set[str]:
        return {pod["metadata"]["name"] for pod in pods(deployed, name, "cpu")}

    until("the named ones are gone", lambda: len(left()) == 2 and not left() & set(victims))


def test_gpu_workers_come_on_gpu_nodes_only_and_wait_where_there_are_no_more(deployed: ControlPlane) -> None:
    (name,) = ray_clusters(deployed)
    scale(deployed, name, 1, 3)

    def gpu() -> list[Document]:
        return pods(deployed, name, "gpu")

    until("two run", lambda: sum(pod["status"]["phase"] == "Running" for pod in gpu()) == 2)
    assert {pod["spec"]["nodeName"] for pod in gpu() if "nodeName" in pod["spec"]} == {"gpu-0"}
    shortage = until(
        "the third waits, and says for what",
        lambda: [e["message"] for e in deployed.all("events") if "nvidia.com/gpu" in e.get("message", "")],
    )
    assert "Insufficient nvidia.com/gpu" in shortage[0]
    victims = [pod["metadata"]["name"] for pod in gpu()]
    deployed.patch(
        "raycluster", name,
        {"op": "replace", "path": "/spec/workerGroupSpecs/1/replicas", "value": 0},
        {"op": "add", "path": "/spec/workerGroupSpecs/1/scaleStrategy", "value": {"workersToDelete": victims}},
    )  # fmt: skip
    until("the GPU nodes are free again", lambda: gpu() == [])


@pytest.mark.parametrize("group", ["cpu", "headgroup"])
def test_a_lost_pod_comes_back(deployed: ControlPlane, group: str) -> None:
    (name,) = ray_clusters(deployed)
    before = {pod["metadata"]["name"] for pod in pods(deployed, name, group)}
    victim = min(before)
    deployed.kubectl("-n", NAMESPACE, "delete", "pod", victim, "--wait=false")

    def is_replaced() -> bool:
        now = {pod["metadata"]["name"] for pod in pods(deployed, name, group)}
        return len(now) == len(before) and victim not in now

    until(f"another for {victim}", is_replaced)
    until("the service again", lambda: applications(deployed) == {"soundstage": "RUNNING"})


def test_one_worker_stays_whatever_is_emptied(deployed: ControlPlane) -> None:

    def status() -> Document:
        found: Document = deployed.get("poddisruptionbudget", "soundstage-workers")["status"]
        return found

    until("one of two may go", lambda: (status()["expectedPods"], status()["disruptionsAllowed"]) == (2, 1))


# Upgrades


def accept_gateways(cluster: ControlPlane) -> None:
    """What a controller of the Gateway API does: say that Gateways and routes work."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def conditions(generation: int, *names: str) -> list[Document]:
        fixed = {"status": "True", "message": "", "lastTransitionTime": now, "observedGeneration": generation}
        return [{"type": name, "reason": name, **fixed} for name in names]

    for kind, names in (("gateways", ("Accepted", "Programmed")), ("httproutes", ("Accepted", "ResolvedRefs"))):
        for document in cluster.all(f"{kind}.gateway.networking.k8s.io"):
            found = conditions(document["metadata"]["generation"], *names)
            status: Document = {"conditions": found}
            if kind == "httproutes":
                parent = document["spec"]["parentRefs"][0]
                status = {"parents": [{"controllerName": "example.org/it", "parentRef": parent, "conditions": found}]}
            cluster.kubectl(
                "-n", NAMESPACE, "patch", f"{kind}.gateway.networking.k8s.io", document["metadata"]["name"],
                "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}),
            )  # fmt: skip


def weights(cluster: ControlPlane) -> tuple[int, ...]:
    route = cluster.get("httproutes.gateway.networking.k8s.io", "soundstage-httproute")
    return tuple(backend["weight"] for backend in route["spec"]["rules"][0]["backendRefs"])


def set_image(cluster: ControlPlane, tag: str) -> None:
    path = "/spec/rayClusterConfig/workerGroupSpecs/0/template/spec/containers/0/image"
    cluster.patch("rayservice", "soundstage", {"op": "replace", "path": path, "value": f"soundstage:{tag}"})


def test_a_bad_upgrade_leaves_the_first_cluster_serving(deployed: ControlPlane) -> None:
    (first,) = ray_clusters(deployed)
    deployed.heads.fails = lambda host: first not in host
    set_image(deployed, "broken")
    until("a second cluster", lambda: len(ray_clusters(deployed)) == 2)

    def pending_failed() -> bool:
        accept_gateways(deployed)
        status = deployed.get("rayservice", "soundstage")["status"]["pendingServiceStatus"]
        return bool(status["applicationStatuses"]["soundstage"]["status"] == "DEPLOY_FAILED")

    until("the second one says why it does not come up", pending_failed)
    for _ in range(15):  # it stays so
        accept_gateways(deployed)
        status = deployed.get("rayservice", "soundstage")["status"]
        assert status["activeServiceStatus"]["rayClusterName"] == first
        assert applications(deployed) == {"soundstage": "RUNNING"}
        assert weights(deployed)[0] == 100
        time.sleep(0.3)


def test_going_back_ends_a_bad_upgrade(deployed: ControlPlane) -> None:
    first = deployed.get("rayservice", "soundstage")["status"]["activeServiceStatus"]["rayClusterName"]
    set_image(deployed, "0.1.0")

    def is_back() -> bool:
        accept_gateways(deployed)
        return ray_clusters(deployed) == [first]

    until("only the first cluster is left", is_back, timeout_s=120)
    assert applications(deployed) == {"soundstage": "RUNNING"}


def test_an_upgrade_moves_requests_in_steps_to_a_second_cluster(deployed: ControlPlane) -> None:
    (first,) = ray_clusters(deployed)
    deployed.heads.fails = lambda _: False
    set_image(deployed, "0.2.0")
    seen: list[tuple[int, ...]] = []

    def is_done() -> bool:
        accept_gateways(deployed)
        if not seen or seen[-1] != weights(deployed):
            seen.append(weights(deployed))
        names = ray_clusters(deployed)
        return len(names) == 1 and names != [first]

    until("the first cluster is gone", is_done, timeout_s=150)
    assert [step for step in seen if len(step) == 2] == [(100, 0), (50, 50), (0, 100)]
    assert condition(deployed.get("rayservice", "soundstage"), "Ready") == "True"
    assert applications(deployed) == {"soundstage": "RUNNING"}


# Without KubeRay


def test_without_kuberay_pods_come_as_requests_in_flight_grow_and_go_as_they_fall(
    cluster: ControlPlane, tmp_path: Path
) -> None:
    name = "audio-processing-service"
    documents = cluster.kustomize(KUBERNETES / name)
    scaler = next(document for document in documents if document["kind"] == "HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    target = int(metric["pods"]["target"]["averageValue"])
    scaler["spec"]["behavior"]["scaleDown"] = {"stabilizationWindowSeconds": 0}
    labels = {"app.kubernetes.io__name": name}

    def running() -> list[str]:
        return [pod["metadata"]["name"] for pod in cluster.all("pods", **labels) if pod["status"]["phase"] == "Running"]

    metrics = CustomMetrics(tmp_path, metric["pods"]["metric"]["name"], running)
    try:
        cluster.apply(*metrics.registration())
        metrics.value = target
        cluster.apply(*documents)
        until("two Pods, as at least", lambda: len(running()) == 2, timeout_s=90)
        metrics.value = 2 * target
        until("twice as many for twice the load", lambda: len(running()) >= 4, timeout_s=90)
        metrics.value = 0
        until("two again", lambda: len(running()) == 2, timeout_s=120)
    finally:
        cluster.kubectl("delete", "apiservice", "v1beta2.custom.metrics.k8s.io")
        metrics.close()
