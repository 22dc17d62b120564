"""Ray's own autoscaler between a real Ray and the real API server: what is asked for becomes Pods.

It runs as the sidecar of the head would, with the rights of the ServiceAccount that KubeRay made. The workers' Pods are
KWOK's: no Ray starts in them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.cluster.binaries import CannotBuild
from tests.cluster.control_plane import NAMESPACE, ControlPlane, until
from tests.cluster.nodes import PYTHON, RayNetwork, poll

KUBERNETES = Path(__file__).parents[2] / "cluster" / "kubernetes"
pytestmark = pytest.mark.timeout(400)

SIDECAR = """
import sys
from ray.autoscaler._private.kuberay import node_provider
# Where a kubelet would put them.
node_provider.IN_CLUSTER_TOKEN_PATH, node_provider.IN_CLUSTER_CA_CERT_PATH = sys.argv[4:6]
from ray.autoscaler._private.kuberay.run_autoscaler import run_kuberay_autoscaler
run_kuberay_autoscaler(sys.argv[1], sys.argv[2], sys.argv[3])
"""
ASK = """
import sys, ray
from ray.autoscaler.sdk import request_resources
ray.init(address=sys.argv[1], log_to_driver=False)
request_resources(bundles=[{"CPU": 4}] * 4 + [{"GPU": 1}])
"""


def pods(cluster: ControlPlane, group: str) -> list[dict[str, Any]]:
    return cluster.all("pods", ray_io__group=group)


@pytest.fixture
def asked(kubernetes: ControlPlane, tmp_path: Path) -> Iterator[ControlPlane]:
    """The gpu overlay, a real Ray head for it, and its autoscaler; then sixteen cores and a GPU are asked for."""
    try:
        network = RayNetwork(tmp_path)
    except CannotBuild as e:
        pytest.skip(f"THE AUTOSCALER IS NOT PROVEN: {e}")
    sidecar: subprocess.Popen[bytes] | None = None
    try:
        documents = kubernetes.kustomize(KUBERNETES / "overlays" / "gpu")
        kubernetes.apply(*yaml.safe_load_all((KUBERNETES / "base" / "namespace.yaml").read_text()))
        kubernetes.apply(*documents)
        (pod,) = until("the head's Pod", lambda: pods(kubernetes, "headgroup"))
        env = {
            **network.environment(),
            # As KubeRay sets them in the Pod.
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": pod["metadata"]["name"],
            "RAY_NODE_TYPE_NAME": "headgroup",
        }
        network.environment = lambda: env  # type: ignore[method-assign]
        head = network.start_head()
        poll("a head", lambda: network.ask_dashboard("/api/version"), timeout_s=120)
        account = pod["spec"]["serviceAccountName"]
        token = tmp_path / "token"
        token.write_text(kubernetes.kubectl("-n", NAMESPACE, "create", "token", account).strip())
        api = urlsplit(kubernetes.api_url)
        gcs = f"{head.ip}:{network.GCS_PORT}"
        name = pod["metadata"]["labels"]["ray.io/cluster"]
        with (tmp_path / "sidecar.log").open("wb") as log:
            sidecar = subprocess.Popen(
                # Beside the head, but in this machine's network, where the API server listens.
                head.beside(
                    [PYTHON, "-c", SIDECAR, name, NAMESPACE, gcs, str(token), str(kubernetes.ca_file)], net=False
                ),
                env={
                    **env,
                    "KUBERNETES_SERVICE_HOST": str(api.hostname),
                    "KUBERNETES_SERVICE_PORT_HTTPS": str(api.port),
                    "RAY_HEAD_POD_NAME": pod["metadata"]["name"],
                },
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        head.run([PYTHON, "-c", ASK, gcs], env)
        yield kubernetes
    finally:
        print((tmp_path / "sidecar.log").read_text()[-3000:] if sidecar else "")
        network.close()
        if sidecar is not None:
            sidecar.kill()
            sidecar.wait()


def test_what_is_asked_for_becomes_pods_and_the_gpu_group_starts_from_none(asked: ControlPlane) -> None:
    (gpu,) = until("a worker with a GPU", lambda: pods(asked, "gpu"), timeout_s=120)
    # Four times four cores: two were there, one comes, and the GPU's worker has four as well.
    until("three workers", lambda: len(pods(asked, "cpu")) == 3, timeout_s=60)
    until("it is on a GPU node", lambda: asked.get("pod", gpu["metadata"]["name"])["spec"].get("nodeName") == "gpu-0")
