"""The manifests say once what is said once elsewhere, and who may talk to whom; tests/cluster has a real API server."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.kubernetes.serve_config import joined, rendered, serve_config
from deployments.settings import USER_CONFIGS, AppArgs

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "cluster" / "kubernetes"
Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def every_document() -> Iterator[tuple[Path, Document]]:
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        for document in documents(path):
            if isinstance(document, dict) and "kind" in document:
                yield path, document


@pytest.fixture(scope="module")
def ray_cluster() -> Document:
    (document,) = documents(KUBERNETES / "base" / "rayservice.yaml")
    spec: Document = document["spec"]["rayClusterConfig"]
    return spec


# One place for each fact


@pytest.mark.parametrize("path", rendered(), ids=lambda path: str(path.relative_to(ROOT / "cluster")))
def test_generated_files_are_those_of_serve_config(path: Path) -> None:
    text = rendered()[path]
    assert path.read_text(encoding="utf-8") == text, "run python -m cluster.kubernetes.serve_config"


@pytest.mark.parametrize("names", [("base",), ("base", "local"), ("base", "gpu"), ("base", "tensorflow-serving")])
def test_the_service_takes_the_configuration_of_every_cluster(names: tuple[str, ...]) -> None:
    (application,) = serve_config(*names)["applications"]
    AppArgs.model_validate(application["args"])
    assert application["args"]["auth"]["api_keys_file"], "it listens on the network"
    for deployment in application["deployments"]:
        if deployment["name"] in USER_CONFIGS:
            USER_CONFIGS[deployment["name"]].model_validate(deployment["user_config"])
        scaling = deployment["autoscaling_config"]
        assert scaling["min_replicas"] <= scaling["max_replicas"]


def test_what_a_cluster_changes_is_joined_by_name_and_a_misspelt_name_is_an_error() -> None:
    base = {"a": 1, "list": [{"name": "x", "n": 1, "m": 2}, {"name": "y", "n": 1}]}
    change = {"list": [{"name": "x", "n": 5}]}
    expected = {"a": 1, "list": [{"name": "x", "n": 5, "m": 2}, {"name": "y", "n": 1}]}
    assert joined(base, change) == expected
    with pytest.raises(KeyError, match="z"):
        joined(base, {"list": [{"name": "z"}]})


def test_gpu_workers_are_cpu_workers_with_a_gpu(ray_cluster: Document) -> None:
    (operation,) = yaml.safe_load((KUBERNETES / "components" / "gpu" / "worker-group.yaml").read_text())
    gpu, cpu = copy.deepcopy(operation["value"]), copy.deepcopy(ray_cluster["workerGroupSpecs"][0])
    assert gpu["minReplicas"] == gpu["replicas"] == 0, "no GPU node while nothing asks for one"
    for group in (gpu, cpu):
        for name in ("groupName", "replicas", "minReplicas", "maxReplicas"):
            del group[name]
        pod = group["template"]["spec"]
        pod.pop("nodeSelector", None)
        pod.pop("tolerations", None)
        del pod["containers"][0]["image"], pod["containers"][0]["resources"]
    assert gpu == cpu


def test_ray_is_of_the_version_that_is_locked(ray_cluster: Document) -> None:
    lock = (ROOT / "cluster" / "requirements-cpu.lock").read_text(encoding="utf-8")
    assert f"\nray=={ray_cluster['rayVersion']} " in lock


def test_ray_keeps_no_work_on_the_head_and_scales_by_itself(ray_cluster: Document) -> None:
    assert ray_cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert ray_cluster["enableInTreeAutoscaling"] is True
    assert ray_cluster["authOptions"] == {"mode": "token"}
    assert ray_cluster["gcsFaultToleranceOptions"]["redisAddress"]


# What every Pod is held to


def pod_specs() -> Iterator[tuple[str, Document]]:
    def found(value: Any) -> Iterator[Document]:
        if isinstance(value, dict):
            if "containers" in value:
                yield value
            for inner in value.values():
                yield from found(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from found(inner)

    for path in sorted(KUBERNETES.rglob("*.yaml")):
        for document in documents(path):
            for i, spec in enumerate(found(document)):
                yield f"{path.relative_to(KUBERNETES)} {i}", spec


@pytest.mark.parametrize("spec", [pytest.param(spec, id=name) for name, spec in pod_specs()])
def test_every_pod_is_restricted_and_says_what_it_needs(spec: Document) -> None:
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec.get("hostNetwork")
    assert not [volume for volume in spec.get("volumes", []) if "hostPath" in volume]
    for container in spec["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is (container["name"] != "nifi")
        assert context["capabilities"] == {"drop": ["ALL"]}
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][kind])
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert "nvidia.com/gpu" not in limits or limits["nvidia.com/gpu"] == requests["nvidia.com/gpu"]


def test_what_prometheus_scrapes_has_the_names_that_the_rules_know() -> None:
    monitors = documents(KUBERNETES / "components" / "monitoring" / "podmonitor.yaml")
    jobs = {
        relabeling["replacement"]
        for monitor in monitors
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
        for relabeling in endpoint["relabelings"]
        if relabeling.get("targetLabel") == "job"
    }
    config = yaml.safe_load((ROOT / "monitoring" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert jobs == {"ray", "haproxy", "canary", "nifi"}
    assert jobs <= {scrape["job_name"] for scrape in config["scrape_configs"]}


def test_no_secret_is_in_the_repository() -> None:
    assert [path for path, document in every_document() if document["kind"] == "Secret"] == []


# Who may talk to whom


def policies() -> list[Document]:
    files = [KUBERNETES / "base" / "network.yaml"]
    return [document["spec"] for path in files for document in documents(path)]


def selects(selector: Document, labels: dict[str, str]) -> bool:
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "Exists"
        if expression["key"] not in labels:
            return False
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())


def may_reach(target: dict[str, str], port: int, *, pod: dict[str, str], namespace: dict[str, str] | None) -> bool:
    """Whether Ingress policies let a Pod in; `namespace` holds its namespace's labels, None for the same one.

    Source: kubernetes.io/docs/concepts/services-networking/network-policies
    """
    applied = [policy for policy in policies() if "Ingress" in policy["policyTypes"]]
    applied = [policy for policy in applied if selects(policy["podSelector"], target)]
    assert applied, "a Pod without a policy is open to all"
    for policy in applied:
        for rule in policy.get("ingress", []):
            ports = [entry["port"] for entry in rule.get("ports", [])]
            if ports and port not in ports:
                continue
            for peer in rule.get("from", []):
                is_there = (
                    namespace is None
                    if "namespaceSelector" not in peer
                    else namespace is not None and selects(peer["namespaceSelector"], namespace)
                )
                if is_there and selects(peer.get("podSelector", {}), pod):
                    return True
    return False


HEAD = {"app.kubernetes.io/name": "soundstage", "app.kubernetes.io/component": "head"}
WORKER = {"app.kubernetes.io/name": "soundstage", "app.kubernetes.io/component": "worker"}
REDIS = {"app.kubernetes.io/name": "redis"}
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
CLIENT = {"soundstage.io/client": "true"}
EDGE, MONITORING, OPERATORS = (
    {f"soundstage.io/{name}": "true"} for name in ("edge", "monitoring", "operator")
)  # fmt: skip
ELSEWHERE: dict[str, str] = {}


@pytest.mark.parametrize(
    ("target", "port", "pod", "namespace", "may"),
    [
        pytest.param(WORKER, 8000, {}, EDGE, True, id="ingress controllers reach the proxy"),
        pytest.param(WORKER, 8000, CLIENT, None, True, id="clients of the namespace reach the proxy"),
        pytest.param(WORKER, 8000, {}, None, False, id="others of the namespace do not"),
        pytest.param(WORKER, 8000, CLIENT, ELSEWHERE, False, id="a label alone opens nothing from another namespace"),
        pytest.param(HEAD, 8265, {}, EDGE, False, id="the dashboard is closed to ingress controllers"),
        pytest.param(HEAD, 8265, CLIENT, None, False, id="the dashboard is closed to clients"),
        pytest.param(HEAD, 6379, CLIENT, None, False, id="GCS is closed to clients"),
        pytest.param(HEAD, 10001, {}, ELSEWHERE, False, id="Ray's client port is closed"),
        pytest.param(WORKER, 8404, {}, MONITORING, False, id="HAProxy's statistics are closed"),
        pytest.param(WORKER, 8080, {}, MONITORING, True, id="Prometheus reaches the metrics"),
        pytest.param(WORKER, 8080, {}, EDGE, False, id="nobody else does"),
        pytest.param(WORKER, 9101, {}, MONITORING, True, id="Prometheus reaches the proxy's metrics"),
        pytest.param(WORKER, 9101, CLIENT, None, False, id="clients do not reach the proxy's metrics"),
        pytest.param(HEAD, 8265, OPERATOR, OPERATORS, True, id="the operator reaches the dashboard"),
        pytest.param(HEAD, 8265, {}, OPERATORS, False, id="its neighbours do not"),
        pytest.param(HEAD, 6379, WORKER, None, True, id="workers reach GCS"),
        pytest.param(REDIS, 6379, HEAD, None, True, id="the head reaches the store"),
        pytest.param(REDIS, 6379, CLIENT, None, False, id="clients do not"),
    ],
)
def test_only_the_proxy_is_reached(
    target: dict[str, str], port: int, pod: dict[str, str], namespace: dict[str, str] | None, may: bool
) -> None:
    assert may_reach(target, port, pod=pod, namespace=namespace) is may
