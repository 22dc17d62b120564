"""A real service with a real Prometheus, Alertmanager and canary beside it, and clients that keep it busy."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from websockets.sync.client import connect

from deployments.local import CONFIG, LocalCluster, Ports, free_port
from monitoring.local import Monitor, stop
from soundstage.models import registry
from soundstage.models.registry import STABLE, ModelSources
from soundstage.pipeline import SOUND_MODEL
from soundstage.speech import weights
from tests.contract.conftest import wav_bytes
from tests.observability.grafana import ask
from tests.observability.tools import how_to_get, missing

DAMAGED = "1000.0.0"
"""A version of the sound model that loads, runs, and calls every sound by another's name."""
CANDIDATE = "candidate"
SCRAPE_S = 3
START_AND_TEST_S = 900
TOOLS = ("promtool", "amtool", "prometheus", "prometheus-alertmanager")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the tools nothing here can be proven; with them, the first test starts everything."""
    for item in items:
        if "observability" in item.nodeid:
            item.add_marker(pytest.mark.timeout(START_AND_TEST_S))
    absent = missing(*TOOLS)
    if absent:
        reason = f"SKIPPED, NOT PROVEN: {how_to_get(absent)}"
        for item in items:
            if "observability" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))


def poll(is_done: Callable[[], object], timeout_s: float, complaint: Callable[[], str] | str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > deadline_s:
            pytest.fail(complaint if isinstance(complaint, str) else complaint())
        time.sleep(0.2)


@dataclass
class Receiver:
    """Keeps what is posted to it."""

    url: str
    bodies: list[tuple[str, bytes]] = field(default_factory=list)


@contextmanager
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            found.bodies.append((self.headers.get("Content-Encoding", ""), self.rfile.read(length)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quietly."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receiver(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True)
class Observed:
    """The service, and what watches it."""

    cluster: LocalCluster
    monitor: Monitor
    document: dict[str, Any]
    models: ModelSources
    client: httpx.Client
    alerts: Receiver
    spans: Receiver
    logs_dir: Path

    def prometheus(self, path: str, **params: Any) -> Any:
        """An answer of Prometheus's API.

        Raises:
            ValueError: It says why not.
        """
        return ask(self.monitor.prometheus_url, path, **params)

    def value(self, expr: str) -> float | None:
        """The value of an expression now; None where there is none, the first where there are several."""
        result = self.prometheus("query", query=expr)["result"]
        return float(result[0]["value"][1]) if result else None


@pytest.fixture(scope="session")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    state_dir = tmp_path_factory.mktemp("observed")
    models = ModelSources(cache_dir=state_dir / "models", registry=str(state_dir / "registry"))
    with pytest.MonkeyPatch.context() as patch, receiver() as alerts, receiver() as spans:
        patch.setenv("SOUNDSTAGE_MODELS_DIR", str(models.cache))
        weights.fetch()
        add_damaged(models, state_dir)
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
        patch.setenv("OTEL_SERVICE_NAME", "soundstage")
        document = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        document["logging_config"] = {"encoding": "JSON", "log_level": "INFO", "enable_access_log": False}
        document["tracing_config"] = {
            "enabled": True, "exporter_import_path": "deployments.tracing:otlp", "sampling_ratio": 0.0,
        }  # fmt: skip
        application = document["applications"][0]
        application["args"]["models"] = models.model_dump(mode="json")
        sounds = next(entry for entry in application["deployments"] if entry["name"] == "SoundClassifier")
        sounds["user_config"] |= {"shadow": {"version": CANDIDATE, "share": 1.0}, "follow_s": 2.0}
        cluster = LocalCluster(state_dir=state_dir / "ray", ports=Ports.free(), n_cpus=4)
        monitor = Monitor(
            cluster=cluster,
            state_dir=state_dir / "monitor",
            prometheus_port=free_port(),
            alertmanager_port=free_port(),
            canary_port=free_port(),
            canary_every_s=2.0,
            scrape_interval_s=SCRAPE_S,
        )
        running = {}
        try:
            cluster.start()
            cluster.deploy_document(document)
            hurry(patch, alerts.url)
            running = monitor.start()
            with httpx.Client(base_url=cluster.url, timeout=120) as client:
                yield Observed(cluster, monitor, document, models, client, alerts, spans, logs_of(cluster))
        finally:
            stop(running)
            cluster.stop()


def logs_of(cluster: LocalCluster) -> Path:
    """Where its replicas write: `session_latest` may by now be that of another cluster on this machine."""
    found: set[bytes] = set()
    for pid in cluster.pids():
        with suppress(OSError):
            found |= set(re.findall(rb"/tmp/ray/session_2[\w.-]*", Path(f"/proc/{pid}/cmdline").read_bytes()))
    (session,) = found
    return Path(session.decode()) / "logs" / "serve"


def hurry(patch: pytest.MonkeyPatch, webhook_url: str) -> None:
    """The shipped rules and routes, but no alert waits for minutes, and somebody listens."""
    write = Monitor.write_configuration

    def write_hurried(monitor: Monitor) -> None:
        write(monitor)
        rules = monitor.state_dir / "rules" / "alerts.yml"
        rules.write_text(re.sub(r"for: \d+[mh]", "for: 4s", rules.read_text(encoding="utf-8")), encoding="utf-8")
        path = monitor.state_dir / "alertmanager.yml"
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["route"] |= {"group_wait": "1s", "group_interval": "2s"}
        config["receivers"][0]["webhook_configs"][0]["url"] = webhook_url
        path.write_text(yaml.safe_dump(config), encoding="utf-8")

    patch.setattr(Monitor, "write_configuration", write_hurried)


def add_damaged(models: ModelSources, root: Path) -> None:
    """Put the sound model that serves under `stable`, and one with its sounds turned round under `candidate`."""
    folder = registry.find(SOUND_MODEL, None, models)
    path = root / SOUND_MODEL / DAMAGED
    shutil.copytree(folder.path, path)
    card = json.loads((path / registry.CARD_NAME).read_text(encoding="utf-8"))
    params = json.loads((path / "params.json").read_text(encoding="utf-8"))
    sounds = [*params["sounds"][7:], *params["sounds"][:7]]
    text = json.dumps({**params, "sounds": sounds})
    (path / "params.json").write_text(text, encoding="utf-8")
    card |= {
        "version": DAMAGED,
        "labels": [*sounds, *card["labels"][len(sounds) :]],
        "files": {**card["files"], "params.json": hashlib.sha256(text.encode()).hexdigest()},
    }
    (path / registry.CARD_NAME).write_text(json.dumps(card), encoding="utf-8")
    registry.publish(registry.open_folder(path), models.home)
    registry.set_aliases(SOUND_MODEL, {STABLE: folder.card.version, CANDIDATE: DAMAGED}, models.home)


@pytest.fixture(scope="session")
def busy(observed: Observed, sample_clip: Path) -> Iterator[None]:
    """Clients send speech, sounds, music, a silent, a clipped and an unreadable file, again and again."""
    t = np.arange(16_000 * 4) / 16_000
    requests = [
        (sample_clip.read_bytes(), "audio/wav", 200),
        (wav_bytes(np.zeros(16_000)), "audio/wav", 200),
        (wav_bytes(np.sign(np.sin(2 * np.pi * 440 * t))), "audio/wav", 200),
        (b"no audio at all", "audio/wav", 415),
    ]
    done = threading.Event()

    def keep_asking(first: int) -> None:
        number = first
        while not done.is_set():
            body, media_type, status = requests[number % len(requests)]
            headers = {"Content-Type": media_type}
            answer = observed.client.post("/v1/analyze", content=body, headers=headers)
            assert answer.status_code == status, answer.text
            number += 1
            # Leave two cores a moment, and the replicas: candidates run only while nobody asks.
            done.wait(5.0)

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(keep_asking, first) for first in range(2)]
        clients.append(pool.submit(keep_streaming, observed.cluster.url, sample_clip, done))
        try:
            yield
        finally:
            done.set()
        for client in clients:
            client.result()


def keep_streaming(url: str, clip: Path, done: threading.Event) -> None:
    """A live programme: the sample again and again, as fast as it plays."""
    with wave.open(str(clip)) as file:
        rate, n_channels = file.getframerate(), file.getnchannels()
        pcm = file.readframes(file.getnframes())
    start = {"type": "start", "encoding": "pcm_s16le", "sample_rate": rate, "n_channels": n_channels}
    piece_bytes = 2 * n_channels * rate // 5
    with connect(url.replace("http", "ws") + "/v1/stream", max_size=None) as socket:
        socket.send(json.dumps(start))
        started_s = time.monotonic()
        for number in count():
            first = number * piece_bytes % (len(pcm) - piece_bytes)
            socket.send(pcm[first - first % (2 * n_channels) :][:piece_bytes])
            with suppress(TimeoutError):
                while True:
                    socket.recv(timeout=0)
            if done.wait(max(0.0, started_s + 0.2 * (number + 1) - time.monotonic())):
                break
