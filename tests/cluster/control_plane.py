"""A real Kubernetes without a kubelet: etcd, API server, controllers, scheduler, KubeRay's operator, on free ports.

KWOK stands in for the kubelets of made-up nodes: Pods are scheduled and called running and ready at once, whatever
their probes would say, and no container runs. `RayHeads` stands in for what the operator asks of a Ray head.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import yaml

from deployments.local import free_port
from tests.cluster import binaries

T = TypeVar("T")
NAMESPACE = "soundstage"
CUSTOM_RESOURCES = (
    (binaries.KUBERAY_MODULE, "config/crd/bases"),
    (binaries.GATEWAY_API_MODULE, "config/crd/standard"),
    (binaries.PROMETHEUS_OPERATOR_MODULE, "example/prometheus-operator-crd"),
)


def until(what: str, ask: Callable[[], T], *, timeout_s: float = 60.0) -> T:
    """What `ask` answers, as soon as it is anything but false; errors of kubectl count as not yet."""
    deadline, last = time.monotonic() + timeout_s, ""
    while time.monotonic() < deadline:
        try:
            if answer := ask():
                return answer
        except (subprocess.CalledProcessError, KeyError, IndexError) as e:
            last = f": {e!r} {getattr(e, 'stderr', '')}"
        time.sleep(0.2)
    raise AssertionError(f"not within {timeout_s} s: {what}{last}")


class RayHeads(ThreadingHTTPServer):
    """All Ray heads and proxies that the operator talks to: a plain forward proxy, one Serve state a host.

    Attributes:
        configs: What was deployed, by host.
        had_token: Whether each request that deployed showed a token.
        fails: Says of a host whether its application cannot be deployed.
        forward: To a real Ray instead: its dashboard and its proxy (HOST:PORT).
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.configs: dict[str, dict[str, Any]] = {}
        self.had_token: list[bool] = []
        self.fails: Callable[[str], bool] = lambda _: False
        self.forward: tuple[str, str] | None = None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def state(self, host: str) -> dict[str, Any]:
        """As Serve's REST interface answers."""
        config = self.configs.get(host, {})
        is_well = not self.fails(host)
        status, message = ("RUNNING", "") if is_well else ("DEPLOY_FAILED", "the model cannot be loaded")
        health = "HEALTHY" if is_well else "UNHEALTHY"
        applications = {
            application["name"]: {
                "name": application["name"],
                "status": status,
                "message": message,
                "route_prefix": application.get("route_prefix"),
                "deployments": {
                    deployment["name"]: {"name": deployment["name"], "status": health, "message": ""}
                    for deployment in application.get("deployments", [])
                },
            }
            for application in config.get("applications", [])
        }
        capacity = config.get("target_capacity")
        return {"applications": applications, "deploy_mode": "MULTI_APP", "target_capacity": capacity}

    def close(self) -> None:
        """Stop answering."""
        self.shutdown()
        self.server_close()


class _Answers(BaseHTTPRequestHandler):
    server: RayHeads

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if self.server.forward:
            self._pass_on(self.server.forward, b"")
        elif url.path.endswith("/-/healthz"):
            self._answer(200, b"success")
        elif url.path == "/api/serve/applications/":
            self._answer(200, json.dumps(self.server.state(url.netloc)).encode())
        else:
            self._answer(404, b"{}")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.had_token.append("x-ray-authorization" in self.headers or "Authorization" in self.headers)
        self.server.configs[urlsplit(self.path).netloc] = json.loads(body)
        if self.server.forward:
            self._pass_on(self.server.forward, body)
        else:
            self._answer(200, b"{}")

    def _pass_on(self, to: tuple[str, str], body: bytes) -> None:
        url = urlsplit(self.path)
        connection = HTTPConnection(to[url.path.endswith("/-/healthz")], timeout=10)
        kept = ("content-type", "x-ray-authorization", "authorization")
        headers = {name: value for name, value in self.headers.items() if name.lower() in kept}
        try:
            connection.request(self.command, url.path + ("?" + url.query) * bool(url.query), body, headers)
            answer = connection.getresponse()
            self._answer(answer.status, answer.read())
        except OSError as e:
            self._answer(502, str(e).encode())
        finally:
            connection.close()

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)


class ControlPlane:
    """The cluster.

    Args:
        state_dir: For keys, data and logs; holds the key of an administrator while it runs.

    Raises:
        CannotBuild: Its programs are not to be had here.
    """

    NODES: ClassVar[tuple[tuple[str, str, str], ...]] = (
        ("cpu-0", "zone-a", "0"),
        ("cpu-1", "zone-b", "0"),
        ("cpu-2", "zone-c", "0"),
        ("gpu-0", "zone-a", "2"),
    )
    """Name, zone, GPUs; the nodes with GPUs carry the taint and label of NVIDIA's operator."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._programs = {name: binaries.program(name) for name in binaries.PROGRAMS if name != "docker-compose"}
        self._processes: list[subprocess.Popen[bytes]] = []
        self.kubeconfig = state_dir / "kubeconfig"
        self._kubectl_cache = state_dir / "kubectl-cache"
        self.heads = RayHeads()

    # Life

    def start(self) -> None:
        """Start everything; takes about 20 s."""
        etcd_port, peer_port, api_port = free_port(), free_port(), free_port()
        certs = self.state_dir / "certs"
        certs.mkdir(parents=True)
        etcd = f"http://127.0.0.1:{etcd_port}"
        peer = f"http://127.0.0.1:{peer_port}"
        self._run(
            "etcd", f"--data-dir={self.state_dir / 'etcd'}", f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}", "--unsafe-no-fsync",
        )  # fmt: skip
        key = self.state_dir / "service-accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        token = secrets.token_hex(16)
        tokens = self.state_dir / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(f'{token},admin,admin,"system:masters"\n')
        self._run(
            "kube-apiserver", f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", f"--secure-port={api_port}",
            # Else it looks for an outside interface.
            "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none", f"--cert-dir={certs}",
            "--authorization-mode=Node,RBAC", f"--token-auth-file={tokens}",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-signing-key-file={key}",
            f"--service-account-key-file={key}", "--service-cluster-ip-range=10.96.0.0/16",
            "--shutdown-delay-duration=0s",
        )  # fmt: skip
        ca = certs / "apiserver.crt"
        until("the API server has a certificate", lambda: ca.exists() and ca.stat().st_size)
        self.api_url, self.ca_file = f"https://127.0.0.1:{api_port}", ca
        self._write_kubeconfig(self.kubeconfig, token)
        until("the API server is ready", lambda: self.kubectl("get", "--raw", "/readyz"))
        self._run(
            "kube-controller-manager", f"--kubeconfig={self.kubeconfig}", "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}", f"--cert-dir={certs}", "--leader-elect=false",
            f"--service-account-private-key-file={key}", f"--root-ca-file={ca}",
            "--use-service-account-credentials=true",
            # Sooner than after the default of 15 s and 5 min.
            "--horizontal-pod-autoscaler-sync-period=2s", "--horizontal-pod-autoscaler-initial-readiness-delay=1s",
        )  # fmt: skip
        self._run(
            "kube-scheduler", f"--kubeconfig={self.kubeconfig}", "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}", f"--cert-dir={certs}", "--leader-elect=false",
        )  # fmt: skip
        self._run(
            "kwok", f"--config={self._kwok_stages()}", f"--kubeconfig={self.kubeconfig}", "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake", "--cidr=10.244.0.0/16",
            "--node-ip=10.1.0.1", "--node-lease-duration-seconds=40", f"--server-address=127.0.0.1:{free_port()}",
        )  # fmt: skip
        self.apply(*(self._node(*node) for node in self.NODES))
        for module, folder in CUSTOM_RESOURCES:
            # Server-side: they are larger than an annotation may be.
            self.kubectl("apply", "--server-side", "-f", str(binaries.module_dir(*module) / folder))
        until(
            "the custom resources are known",
            lambda: self.kubectl("wait", "--for=condition=Established", "crd", "--all"),
        )
        shutil.rmtree(self._kubectl_cache, ignore_errors=True)  # which knows none of them
        until("the default ServiceAccount is there", lambda: self.kubectl("get", "serviceaccount", "default"))
        self._start_operator()

    def stop(self) -> None:
        """End its processes, newest first, and remove its keys."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.heads.close()
        shutil.rmtree(self.state_dir, ignore_errors=True)

    # Use

    def program(self, name: str) -> Path:
        """Where one of its programs is."""
        return self._programs[name]

    def kubectl(self, *args: str, given: str | None = None) -> str:
        """Run kubectl; returns what it printed.

        Raises:
            CalledProcessError: It failed; `stderr` says why.
        """
        return self.kubectl_with_warnings(*args, given=given)[0]

    def kubectl_with_warnings(self, *args: str, given: str | None = None) -> tuple[str, str]:
        """The same, with the warnings of the API server."""
        kubectl = [str(self._programs["kubectl"]), f"--kubeconfig={self.kubeconfig}"]
        done = subprocess.run(
            [*kubectl, f"--cache-dir={self._kubectl_cache}", *args],
            input=given, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout, done.stderr

    def apply(self, *documents: dict[str, Any]) -> None:
        """Apply documents."""
        self.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(documents))

    def check(self, *documents: dict[str, Any]) -> str:
        """Have the API server validate documents strictly, without keeping them; returns its warnings.

        Raises:
            CalledProcessError: It refuses.
        """
        text = yaml.safe_dump_all(documents)
        return self.kubectl_with_warnings("apply", "--dry-run=server", "--validate=strict", "-f", "-", given=text)[1]

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """One object."""
        answer: dict[str, Any] = json.loads(self.kubectl("-n", NAMESPACE, "get", kind, name, "-o", "json"))
        return answer

    def all(self, kind: str, **labels: str) -> list[dict[str, Any]]:
        """Objects with these labels; `__` in a name stands for `/`, and `ray_io` for `ray.io`."""
        wanted = [f"{name.replace('ray_io', 'ray.io').replace('__', '/')}={value}" for name, value in labels.items()]
        selector = ["-l", ",".join(wanted)] if wanted else []
        items: list[dict[str, Any]] = json.loads(
            self.kubectl("-n", NAMESPACE, "get", kind, *selector, "-o", "json")
        )["items"]  # fmt: skip
        return items

    def patch(self, kind: str, name: str, *operations: dict[str, Any]) -> None:
        """JSON patch."""
        self.kubectl("-n", NAMESPACE, "patch", kind, name, "--type=json", "-p", json.dumps(operations))

    def kustomize(self, folder: Path) -> list[dict[str, Any]]:
        """The documents that kustomize makes of a folder."""
        return list(yaml.safe_load_all(self.kubectl("kustomize", str(folder))))

    def log(self, name: str) -> str:
        """What a program printed."""
        return (self.state_dir / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    # Parts

    def _run(self, name: str, *args: str, env: dict[str, str] | None = None) -> None:
        with (self.state_dir / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(self._programs[name]), *args],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **(env or {})}, cwd=self.state_dir,
            )  # fmt: skip
        self._processes.append(process)

    def _write_kubeconfig(self, path: Path, token: str) -> None:
        cluster = {"server": self.api_url, "certificate-authority": str(self.ca_file)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me"}}],
            "current-context": "it",
        }
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(document))

    def _kwok_stages(self) -> Path:
        """What a made-up kubelet does; without it KWOK ends with "no stages found"."""
        folder = binaries.module_dir(*binaries.KWOK_MODULE) / "kustomize" / "stage"
        patterns = ("node/fast/node-*.yaml", "node/heartbeat-with-lease/node-*.yaml", "pod/fast/pod-*.yaml")
        texts = [file.read_text() for pattern in patterns for file in sorted(folder.glob(pattern))]
        path = self.state_dir / "kwok.yaml"
        path.write_text("\n---\n".join(texts))
        return path

    @staticmethod
    def _node(name: str, zone: str, n_gpus: str) -> dict[str, Any]:
        has_gpu = n_gpus != "0"
        resources = {"cpu": "32", "memory": "128Gi", "pods": "110", **({"nvidia.com/gpu": n_gpus} if has_gpu else {})}
        labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone, "kubernetes.io/os": "linux"}
        taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "annotations": {"kwok.x-k8s.io/node": "fake"},
                "labels": {**labels, **({"nvidia.com/gpu.present": "true"} if has_gpu else {})},
            },
            "spec": {"taints": [taint]} if has_gpu else {},
            "status": {"allocatable": resources, "capacity": resources},
        }

    def _start_operator(self) -> None:
        """KubeRay's operator beside the cluster, as its own ServiceAccount with the rights of its own manifests."""
        rights = self.state_dir / "operator-rights"
        shutil.copytree(
            binaries.module_dir(*binaries.KUBERAY_MODULE) / "config" / "rbac", rights, copy_function=shutil.copyfile
        )
        for path in (rights, *rights.rglob("*")):
            path.chmod(0o755)
        with (rights / "kustomization.yaml").open("a") as file:
            file.write("\nnamespace: kuberay\n")
        self.kubectl("create", "namespace", "kuberay")
        self.kubectl("apply", "-f", "-", given=self.kubectl("kustomize", str(rights)))
        token = self.kubectl("-n", "kuberay", "create", "token", "kuberay-operator", "--duration=24h").strip()
        kubeconfig = self.state_dir / "operator.kubeconfig"
        self._write_kubeconfig(kubeconfig, token)
        health_port = free_port()
        self._run(
            "ray-operator", f"--metrics-addr=127.0.0.1:{free_port()}",
            f"--health-probe-bind-address=127.0.0.1:{health_port}", "--leader-election-namespace=kuberay",
            "--feature-gates=RayServiceIncrementalUpgrade=true",
            env={
                "KUBECONFIG": str(kubeconfig),
                "POD_NAMESPACE": "kuberay",
                # Go sends what is for 127.0.0.1 past a proxy: the API server is reached all the same.
                "HTTP_PROXY": self.heads.url,
                "http_proxy": self.heads.url,
                "NO_PROXY": "",
                "no_proxy": "",
            },
        )  # fmt: skip

        def is_ready() -> bool:
            with suppress(OSError), closing(HTTPConnection("127.0.0.1", health_port, timeout=2)) as connection:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
            return False

        until("the operator is ready", is_ready)
