"""Several Ray nodes with the real service: replicas spread, and what happens when nodes come, go and die.

The tests build on one another. A custom resource stands in for GPUs.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.kubernetes.serve_config import serve_config
from deployments.auth import hash_key
from soundstage.models import registry
from soundstage.speech import weights
from tests.cluster.binaries import CannotBuild
from tests.cluster.nodes import PYTHON, RayNetwork, poll

pytestmark = pytest.mark.timeout(900)
KEY = "a key for the tests"
DEPLOYMENTS = {"Ingress", "Preprocessor", "VoiceRecognizer", "SoundClassifier"}
CLIENT_GIVES_UP_S = 90.0
DRAIN_S = 360
"""Replicas begin beside the load here: on two cores, where one takes 30 s alone, in more than two minutes."""


def document(keys: Path) -> dict[str, Any]:
    """The cluster's configuration, two replicas of each on two nodes, speech on half a made-up GPU."""
    config = serve_config("base")
    application = config["applications"][0]
    application["args"] |= {
        "auth": {"api_keys_file": str(keys)},
        "models": {"cache_dir": str(registry.cache_dir().absolute())},
    }
    for deployment in application["deployments"]:
        deployment["max_replicas_per_node"] = 1
        deployment["graceful_shutdown_timeout_s"] = 30
        deployment["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
        deployment["ray_actor_options"] = {"num_cpus": 0.4}
        if deployment["name"] == "VoiceRecognizer":
            deployment["ray_actor_options"] = {"num_cpus": 0.5, "resources": {"gpu_like": 0.5}}
    return config


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNetwork]:
    state_dir = tmp_path_factory.mktemp("nodes")
    weights.fetch()
    try:
        network = RayNetwork(state_dir)
    except CannotBuild as e:
        pytest.skip(f"SEVERAL NODES ARE NOT PROVEN: {e}")
    keys = state_dir / "keys"
    keys.write_text(f"tests:{hash_key(KEY)}\n")
    try:
        network.start_head()
        poll("the head", lambda: network.ask_dashboard("/api/version"), timeout_s=150)
        network.start_worker("one", n_cpus=2, resources={"gpu_like": 1})
        network.start_worker("two", n_cpus=2, resources={"gpu_like": 1})
        network.wait_for("one", "two")
        network.deploy(document(keys))
        poll("the service", lambda: network.status() == "RUNNING", timeout_s=240)
        yield network
    finally:
        network.close()


def clip() -> bytes:
    files = distribution("moonshine-voice").files or []
    return Path(str(next(file for file in files if file.name == "beckett.wav").locate())).read_bytes()


@dataclass
class Load:
    """Clients that send one clip after the other, and ask again where they are told to, as every client should.

    Attributes:
        texts: What they were answered.
        refusals: Codes and exceptions of attempts that were made again.
        lost: Requests that were never answered.
        latencies_s: Of whole requests, attempts that failed included.
    """

    url: str
    n_clients: int = 4
    texts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._audio = clip()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(self.n_clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        while not self._ended.is_set():
            started_s = time.monotonic()
            while True:
                try:
                    answer = httpx.post(
                        f"{self.url}/v1/analyze", content=self._audio, timeout=60,
                        headers={"Content-Type": "audio/wav", "Authorization": f"Bearer {KEY}"},
                    )  # fmt: skip
                    if answer.is_success:
                        self.texts[" ".join(segment["text"] for segment in answer.json()["segments"])] += 1
                        self.latencies_s.append(time.monotonic() - started_s)
                        break
                    refusal, wait_s = str(answer.status_code), float(answer.headers.get("Retry-After", 0.5))
                    # A proxy that has just started knows no paths yet; a Service sends it nothing until it does.
                    is_of_proxy = answer.status_code == 404 and "Ping http" in answer.text
                    assert answer.status_code >= 500 or is_of_proxy, answer.text
                except httpx.TransportError as e:
                    refusal, wait_s = type(e).__name__, 0.5
                self.refusals[refusal] += 1
                if time.monotonic() - started_s > CLIENT_GIVES_UP_S:
                    self.lost.append(refusal)
                    break
                time.sleep(wait_s)

    def answered(self, n: int) -> None:
        """Wait until so many more requests are answered."""
        wanted = sum(self.texts.values()) + n
        poll(f"{n} more answers", lambda: sum(self.texts.values()) >= wanted, timeout_s=120)

    def report(self, what: str) -> None:
        """For people who run this."""
        slowest_s = max(self.latencies_s)
        print(f"{what}: {sum(self.texts.values())} answered, {len(self.lost)} lost, made again {dict(self.refusals)}, "
              f"slowest {slowest_s:.1f} s")  # fmt: skip


def places(ray: RayNetwork) -> dict[str, list[str]]:
    """Of each deployment, the names of the nodes with a running replica."""
    names = {node.ip: name for name, node in ray.nodes.items()}
    return {name: sorted(names.get(ip, ip) for ip in replicas.values()) for name, replicas in ray.replicas().items()}


def are_on(ray: RayNetwork, *names: str) -> bool:
    return places(ray) == dict.fromkeys(DEPLOYMENTS, sorted(names))


def test_replicas_spread_over_nodes_and_none_is_on_the_head(ray: RayNetwork) -> None:
    poll("one of each on each worker", lambda: are_on(ray, "one", "two"), timeout_s=120)


def is_ready(url: str) -> bool:
    return httpx.get(url, timeout=10).is_success


def test_every_node_s_proxy_answers(ray: RayNetwork) -> None:
    for name in ("one", "two", "head"):
        url = f"{ray.url(name)}/readyz"
        poll(f"{name} is ready", functools.partial(is_ready, url), timeout_s=60)


def test_the_dashboard_wants_the_token(ray: RayNetwork) -> None:
    url = f"http://{ray.nodes['head'].ip}:{ray.DASHBOARD_PORT}/api/serve/applications/"
    assert httpx.get(url, timeout=10).status_code == 401


def test_a_worker_killed_under_load_loses_no_request(ray: RayNetwork) -> None:
    with Load(ray.url("head")) as load:
        load.answered(8)
        ray.nodes["two"].kill()
        load.answered(24)
    load.report("worker killed")
    assert load.lost == []
    assert len(load.texts) == 1, "the same answer to the same clip, whoever gave it"


def test_a_new_node_takes_replicas(ray: RayNetwork) -> None:
    ray.remove("two")
    ray.start_worker("three", n_cpus=2, resources={"gpu_like": 1})
    started_s = time.monotonic()
    ray.wait_for("three")
    poll("replicas on the new node", lambda: are_on(ray, "one", "three"), timeout_s=180)
    print(f"new node full after {time.monotonic() - started_s:.0f} s")


def test_a_node_that_is_emptied_first_fails_no_request_at_all(ray: RayNetwork) -> None:
    ray.start_worker("four", n_cpus=2, resources={"gpu_like": 1})
    ray.wait_for("four")
    env = ray.environment() | {"RAY_ADDRESS": f"{ray.nodes['head'].ip}:{ray.GCS_PORT}"}
    with Load(ray.url("head")) as load:
        load.answered(4)
        drain = [PYTHON, "-m", "deployments.drain", "--deadline-s", f"{DRAIN_S}"]
        printed = ray.nodes["three"].run(drain, env, timeout_s=DRAIN_S + 60)
        ray.nodes["three"].kill()
        load.answered(12)
    load.report(f"worker emptied ({printed.strip()})")
    assert printed.startswith("0 replicas left")
    assert load.lost == []
    assert not load.refusals
    ray.remove("three")
    poll("replicas on the other nodes", lambda: are_on(ray, "one", "four"), timeout_s=60)


def is_back(ray: RayNetwork) -> bool:
    ray.keep("head")
    return ray.status() == "RUNNING"


def test_the_service_answers_while_the_head_is_gone_and_after(ray: RayNetwork) -> None:
    before = ray.replicas()
    with Load(ray.url("one")) as load:
        load.answered(4)
        ray.nodes["head"].kill()
        load.answered(16)
        assert not load.refusals, "nobody notices that it is gone"
        ray.start_head()
        poll("the new head knows the service", lambda: is_back(ray), timeout_s=300)
        load.answered(8)
    load.report("head restarted")
    assert load.lost == []
    assert len(load.texts) == 1
    assert places(ray).keys() == DEPLOYMENTS
    kept = sum(len(ray.replicas()[name].keys() & before[name].keys()) for name in DEPLOYMENTS)
    print(f"{kept} of {sum(map(len, before.values()))} replicas are those of before")
    assert kept, "a new head takes over what is there"
