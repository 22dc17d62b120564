"""The commands of docs/kubernetes.md and docs/operations.md, as they stand there, on the real API server.

Helm's and Compose's are not run: neither Helm nor a container engine is here. The tests build on one another.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.control_plane import NAMESPACE, ControlPlane, until

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(300)


def text(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(name: str, language: str, word: str = "") -> list[str]:
    """Blocks of code in a document that hold a word."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", text(name), flags=re.MULTILINE | re.DOTALL)
    return [block for block in found if word in block]


def said(name: str, command: str) -> str:
    """The command, where the document has it."""
    assert command in text(name), command
    return command


class Operator:
    """A person at a shell in the root of the repository."""

    def __init__(self, cluster: ControlPlane, folder: Path, overlay: str) -> None:
        self.folder, self.overlay = folder, overlay
        (folder / "cluster").symlink_to(ROOT / "cluster")
        kubectl = folder / "bin" / "kubectl"
        kubectl.parent.mkdir()
        # `kubectl diff` ends with 1 where there are differences.
        kubectl.write_text(
            f'#!/bin/sh\n{cluster.program("kubectl")} --cache-dir={folder}/cache "$@"; code=$?\n'
            '[ "$1 $code" = "diff 1" ] || exit $code\n'
        )
        kubectl.chmod(0o755)
        self._env = {
            **os.environ,
            "PATH": f"{kubectl.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "KUBECONFIG": str(cluster.kubeconfig),
        }

    def run(self, script: str) -> str:
        script = script.replace("overlays/mine", f"overlays/{self.overlay}")
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=self.folder, env=self._env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def operator(kubernetes: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    overlay = ROOT / "cluster" / "kubernetes" / "overlays" / f"proof-{secrets.token_hex(4)}"
    overlay.mkdir()
    try:
        yield Operator(kubernetes, tmp_path_factory.mktemp("checkout"), overlay.name)
    finally:
        shutil.rmtree(overlay)


def test_the_first_deployment(operator: Operator, kubernetes: ControlPlane) -> None:
    for namespace in ("monitoring", "ingress-nginx"):
        kubernetes.kubectl("create", "namespace", namespace)
    operator.run("openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=it -keyout tls.key -out tls.crt")
    (preparation,) = blocks("kubernetes.md", "sh", "create secret")
    operator.run(preparation)
    assert not (operator.folder / "keys").exists(), "no key is left lying about"
    (kustomization,) = blocks("kubernetes.md", "yaml", "overlays/mine")
    folder = ROOT / "cluster" / "kubernetes" / "overlays" / operator.overlay
    (folder / "kustomization.yaml").write_text(kustomization)
    (deployment,) = blocks("kubernetes.md", "sh", "kubectl diff")
    assert "+kind: RayService" in operator.run(deployment)
    question = deployment.strip().splitlines()[-1]
    until("it says that it answers", lambda: "RUNNING" in operator.run(question), timeout_s=120)
    images = {
        container["image"] for pod in kubernetes.all("pods") for container in pod["spec"]["containers"]
    }  # fmt: skip
    assert "registry.example.org/soundstage:0.1.0" in images


def test_the_state_of_an_upgrade_is_seen(operator: Operator) -> None:
    operator.run(said("operations.md", "kubectl config set-context --current --namespace soundstage"))
    (questions,) = blocks("operations.md", "sh", "httproute")
    until("there is a route", lambda: operator.run("kubectl get httproute -o name"))
    assert operator.run(questions).strip() == "100"
    assert "Events" in operator.run(said("operations.md", "kubectl describe rayservice soundstage"))


def test_keys_are_rotated(operator: Operator) -> None:
    (rotation,) = blocks("operations.md", "sh", "keys new")
    operator.run(rotation)
    keys = operator.run("kubectl get secret soundstage-api-keys -o jsonpath='{.data.keys}' | base64 -d")
    names = [line.split(":")[0] for line in keys.split()]
    assert names[0] == "newsroom", "which the client has until it has the new one"
    assert names[-1] == "newsroom-2027"


def test_the_store_s_password_is_taken_over_by_a_new_pod(operator: Operator) -> None:
    operator.run(said("operations.md", "kubectl rollout restart statefulset redis"))


def test_a_node_is_emptied_and_its_worker_comes_elsewhere(operator: Operator, kubernetes: ControlPlane) -> None:
    def workers() -> dict[str, str]:
        """Their nodes, where there are two and each has one."""
        found = kubernetes.all("pods", ray_io__group="cpu")
        nodes = {pod["metadata"]["name"]: pod["spec"].get("nodeName", "") for pod in found}
        return nodes if len(nodes) == 2 and all(nodes.values()) else {}

    victim, node = next(iter(until("two workers", workers).items()))
    command = said("operations.md", "kubectl drain NODE --ignore-daemonsets --delete-emptydir-data")
    operator.run(command.replace("NODE", node))
    placed = until("two again", workers)
    assert victim not in placed
    assert node not in placed.values()
    operator.run(f"kubectl uncordon {node}")


def test_what_ray_knows_may_be_lost(operator: Operator, kubernetes: ControlPlane) -> None:
    assert "delete its disk and the RayCluster" in text("operations.md")
    (before,) = kubernetes.all("rayclusters")
    operator.run("kubectl delete raycluster --all --wait=false")

    def is_new() -> bool:
        uids = [cluster["metadata"]["uid"] for cluster in kubernetes.all("rayclusters")]
        return bool(uids) and before["metadata"]["uid"] not in uids

    until("another RayCluster", is_new, timeout_s=120)


def test_without_kuberay_a_bad_roll_out_is_undone(operator: Operator, kubernetes: ControlPlane) -> None:
    (commands,) = blocks("kubernetes.md", "sh", "rollout undo")
    apply, undo = commands.strip().splitlines()
    operator.run(apply)
    name = "audio-processing-service"

    def image() -> str:
        (container,) = kubernetes.get("deployment", name)["spec"]["template"]["spec"]["containers"]
        return str(container["image"])

    before = image()
    operator.run(f"kubectl -n {NAMESPACE} set image deployment/{name} soundstage=soundstage:broken")
    assert image() != before
    operator.run(undo)
    assert image() == before
