"""Several Ray nodes on one machine, each with a network and folders of its own, as machines have.

A node is a network namespace on a bridge, with its own processes, /tmp/ray and /tmp/haproxy-serve. Killing it kills
exactly its processes. Needs root.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from deployments.local import LocalCluster
from tests.cluster.binaries import CannotBuild, debian_packages

OWN_FOLDERS = ("/tmp/ray", "/tmp/haproxy-serve")
REDIS_PACKAGES = ("redis-tools", "liblzf1", "libjemalloc2", "libatomic1")
ROOT = Path(__file__).parents[2]


def redis_server() -> list[str]:
    """How to start a Redis server: the installed one, else Debian's, unpacked into the cache.

    Raises:
        CannotBuild: There is none.
    """
    if installed := shutil.which("redis-server"):
        return [installed]
    root = debian_packages("redis", *REDIS_PACKAGES)
    program = root / "usr" / "bin" / "redis-server"
    if not program.exists():
        program.symlink_to("redis-check-rdb")  # its name says what the program does
    library = next(root.rglob("libjemalloc.so.2")).parent
    return ["env", f"LD_LIBRARY_PATH={library}", str(program)]


def _sh(command: str) -> str:
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


@dataclass
class Node:
    """One machine, as Ray sees it."""

    name: str
    ip: str
    namespace: str
    folder: Path
    hosts: Mapping[str, str] = field(default_factory=dict)
    """Names that it resolves beside DNS."""
    niceness: int = 0
    """Below 0, it goes before others of this machine."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    began_with: tuple[list[str], Mapping[str, str]] = ([], {})
    """Command and environment of what runs on it."""

    def command(self, command: list[str]) -> list[str]:
        """The command, as run on this node."""
        mounts = []
        for path in OWN_FOLDERS:
            own = self.folder / Path(path).name
            own.mkdir(parents=True, exist_ok=True)
            own.chmod(0o777)
            mounts.append(f"mkdir -p {path}; mount --bind {own} {path}")
        names = self.folder / "hosts"
        known = {"localhost": "127.0.0.1", socket.gethostname(): self.ip, **self.hosts}
        names.write_text("".join(f"{ip} {name}\n" for name, ip in known.items()))
        mounts.append(f"mount --bind {names} /etc/hosts")
        # No server of names is reached from here: say so at once, instead of after ten seconds a name.
        (self.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        mounts.append(f"mount --bind {self.folder / 'resolv.conf'} /etc/resolv.conf")
        script = "; ".join([*mounts, f"exec {shlex.join(command)}"])
        return [
            "ip",
            "netns",
            "exec",
            self.namespace,
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "/bin/bash",
            "-c",
            script,
        ]

    def start(self, command: list[str], env: Mapping[str, str]) -> None:
        """Run something on this node until it is killed."""
        self.began_with = command, env
        if self.niceness:
            command = ["nice", "-n", f"{self.niceness}", *command]
        with (self.folder / "log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    self.command(command), env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )
            )  # fmt: skip
        with suppress(FileNotFoundError):  # Linux shares processor time between sessions first, where it is told to
            Path(f"/proc/{self.processes[-1].pid}/autogroup").write_text(f"{self.niceness}")

    def beside(self, command: list[str], *, net: bool = True) -> list[str]:
        """The command, as run beside what runs on this node, as `kubectl exec` does.

        Args:
            command: What to run.
            net: In its network as well; else in this machine's.
        """
        ours = Path("/proc/self/ns/pid").readlink()
        pids = _sh(f"ip netns pids {self.namespace}").split()
        inside = next(pid for pid in pids if Path(f"/proc/{pid}/ns/pid").readlink() != ours)
        return ["nsenter", f"--target={inside}", "--mount", "--pid", *["--net"] * net, "--", *command]

    def run(self, command: list[str], env: Mapping[str, str], *, timeout_s: float = 240) -> str:
        """Run something beside what runs on this node; returns what it printed.

        Raises:
            CalledProcessError: It failed.
        """
        done = subprocess.run(
            self.beside(command), env=env, capture_output=True, text=True, check=False, timeout=timeout_s
        )
        if done.returncode:
            print(done.stdout[-3000:], done.stderr[-3000:])
            done.check_returncode()
        return done.stdout

    def kill(self) -> None:
        """End all its processes at once, as a power cut does."""
        while pids := _sh(f"ip netns pids {self.namespace}").split():
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        for process in self.processes:
            process.wait()
        self.processes.clear()

    def log(self) -> str:
        """What its commands printed."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""


class Network:
    """Nodes on a bridge; removed with everything on it by `close`.

    Args:
        state_dir: For the folders of the nodes.

    Raises:
        CannotBuild: Without root, or without network namespaces.
    """

    def __init__(self, state_dir: Path) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise CannotBuild("separate Ray nodes need root and the command ip")
        self.state_dir = state_dir
        self._id = f"{secrets.randbelow(200) + 20}"
        self.prefix = f"10.199.{self._id}"
        self.bridge = f"ssbr{self._id}"
        self.nodes: dict[str, Node] = {}
        self._n = 10
        try:
            _sh(f"ip link add {self.bridge} type bridge && ip addr add {self.prefix}.1/24 dev {self.bridge}")
            _sh(f"ip link set {self.bridge} up")
        except subprocess.CalledProcessError as e:
            raise CannotBuild(f"no bridge can be made: {e.stderr}") from e

    @property
    def gateway(self) -> str:
        """Address of this machine, as the nodes see it."""
        return f"{self.prefix}.1"

    def add(self, name: str, hosts: Mapping[str, str] | None = None) -> Node:
        """Another node, with nothing on it."""
        self._n += 1
        namespace, ip, inside = f"ss{self._id}-{name}", f"{self.prefix}.{self._n}", f"ssv{self._id}.{self._n}"
        _sh(f"ip netns add {namespace} && ip link add {inside} type veth peer name eth0 netns {namespace}")
        _sh(f"ip link set {inside} master {self.bridge} up && ip -n {namespace} addr add {ip}/24 dev eth0")
        _sh(f"ip -n {namespace} link set eth0 up && ip -n {namespace} link set lo up")
        _sh(f"ip -n {namespace} route add default via {self.gateway}")
        folder = self.state_dir / name
        folder.mkdir(parents=True)
        self.nodes[name] = Node(name, ip, namespace, folder, hosts or {})
        return self.nodes[name]

    def remove(self, name: str) -> None:
        """The node and all that runs on it."""
        node = self.nodes.pop(name)
        node.kill()
        _sh(f"ip netns del {node.namespace}")

    def close(self) -> None:
        """Everything."""
        for name in list(self.nodes):
            self.remove(name)
        _sh(f"ip link del {self.bridge}")


class RayNetwork(Network):
    """A Ray cluster on such nodes, with its control plane's knowledge in a Redis that outlives the head.

    Args:
        state_dir: For the folders of the nodes, the token and the keys.
    """

    GCS_PORT, DASHBOARD_PORT, HTTP_PORT = 6379, 8265, 8000

    def __init__(self, state_dir: Path) -> None:
        redis = redis_server()
        super().__init__(state_dir)
        self.token_file = state_dir / "ray-token"
        self.token_file.write_text(secrets.token_hex(32))
        self._password = secrets.token_hex(16)
        self._redis = subprocess.Popen(
            [*redis, "--bind", self.gateway, "--port", "6399", "--requirepass", self._password, "--save", ""],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            cwd=state_dir,
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Of every node: as on one machine, on the ports that every machine has for itself."""
        env = LocalCluster(state_dir=self.state_dir).environment()
        return {
            **env,
            "PYTHONPATH": str(ROOT),
            "RAY_REDIS_ADDRESS": f"{self.gateway}:6399",
            "RAY_external_storage_namespace": "tests",
            # As KubeRay sets it: so long does a worker wait for a new head before it ends itself.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
            # Where three nodes share two busy cores, one takes longer than 30 s to begin.
            "RAY_raylet_start_wait_time_s": "60",
        }

    def start_head(self, name: str = "head") -> Node:
        """Start or start again the head; no replica fits on it.

        It goes first, as it does on a machine of its own: Ray gives its agent 15 s to begin, whatever else runs.
        """
        node = self.nodes.get(name) or self.add(name)
        node.niceness = -10
        node.start(
            [
                "ray", "start", "--head", "--block", "--num-cpus=0", f"--node-ip-address={node.ip}",
                f"--port={self.GCS_PORT}", f"--dashboard-host={node.ip}", f"--dashboard-port={self.DASHBOARD_PORT}",
                f"--redis-password={self._password}", "--object-store-memory=200000000", "--disable-usage-stats",
            ],
            self.environment(),
        )  # fmt: skip
        return node

    def keep(self, name: str) -> None:
        """Start a node again where Ray has ended by itself, as a kubelet does: it gives up where a machine is busy."""
        node = self.nodes[name]
        if all(process.poll() is not None for process in node.processes):
            node.kill()
            node.start(*node.began_with)

    def is_alive(self, name: str) -> bool:
        """Whether the head knows the node as one that work may go to; a node that ended is started again."""
        self.keep(name)
        answer = self.ask_dashboard("/nodes?view=summary")
        nodes = answer["data"]["summary"] if answer else []
        ip = self.nodes[name].ip
        # One that has just come tells nothing of itself yet.
        return any(node.get("ip") == ip and node["raylet"].get("state") == "ALIVE" for node in nodes)

    def start_worker(self, name: str, *, n_cpus: int, resources: Mapping[str, float]) -> Node:
        """Add a node with these resources."""
        node = self.add(name)
        env = self.environment()
        for variable in ("RAY_REDIS_ADDRESS", "RAY_external_storage_namespace"):
            del env[variable]
        node.start(
            [
                "ray", "start", "--block", f"--address={self.nodes['head'].ip}:{self.GCS_PORT}",
                f"--node-ip-address={node.ip}", f"--num-cpus={n_cpus}", f"--resources={json.dumps(dict(resources))}",
                "--object-store-memory=200000000", "--disable-usage-stats",
            ],
            env,
        )  # fmt: skip
        return node

    def wait_for(self, *names: str) -> None:
        """Until all of these nodes are alive."""
        for name in names:
            poll(f"node {name}", functools.partial(self.is_alive, name), timeout_s=240)

    def ask_dashboard(self, path: str, *, ip: str | None = None) -> Any:
        """What the head's dashboard answers; None while it does not."""
        headers = {"Authorization": f"Bearer {self.token_file.read_text()}"}
        url = f"http://{ip or self.nodes['head'].ip}:{self.DASHBOARD_PORT}{path}"
        try:
            return httpx.get(url, headers=headers, timeout=10).raise_for_status().json()
        except httpx.HTTPError:
            return None

    def deploy(self, document: dict[str, Any]) -> None:
        """Put a Serve configuration, as `serve deploy` does."""
        headers = {"Authorization": f"Bearer {self.token_file.read_text()}"}
        url = f"http://{self.nodes['head'].ip}:{self.DASHBOARD_PORT}/api/serve/applications/"
        httpx.put(url, json=document, headers=headers, timeout=30).raise_for_status()

    def replicas(self) -> dict[str, dict[str, str]]:
        """Running replicas: of each deployment, their ids and the address of their node."""
        answer = self.ask_dashboard("/api/serve/applications/")
        if not answer:
            return {}
        return {
            name: {
                replica["replica_id"]: replica["node_ip"]
                for replica in deployment["replicas"]
                if replica["state"] == "RUNNING"
            }
            for application in answer["applications"].values()
            for name, deployment in application["deployments"].items()
        }

    def status(self) -> str | None:
        """Of the application."""
        answer = self.ask_dashboard("/api/serve/applications/")
        return next((entry["status"] for entry in answer["applications"].values()), None) if answer else None

    def url(self, name: str) -> str:
        """Of the service through the proxy of a node."""
        return f"http://{self.nodes[name].ip}:{self.HTTP_PORT}"

    def close(self) -> None:
        """Everything, Redis last."""
        try:
            super().close()
        finally:
            self._redis.kill()
            self._redis.wait()


def poll(what: str, ask: Callable[[], Any], *, timeout_s: float) -> Any:
    """What `ask` answers as soon as it is anything but false."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.3)
    raise AssertionError(f"not within {timeout_s} s: {what}")


PYTHON = sys.executable
