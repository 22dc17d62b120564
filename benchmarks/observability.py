"""What it costs to watch the service: `python -m benchmarks.observability`.

Two services on the same cores, asked in turn in one run. The one is watched as `make monitor` and Compose watch it:
metrics on and scraped every 15 s, each request a line of JSON in the log, tracing off. The other is blind: counters,
gauges and histograms of ours, of Serve and of Ray do nothing, and nothing below an error is logged. Each pair of rounds
gives one ratio of throughput and one of processor time; the medians count. Then both rest, and the watched one is
scraped: how long that takes, and how many series there are.

The last line printed is JSON: `watched_over_blind` (throughput, higher is better), `processor_time_added`,
`scrape_ms`, `n_series_at_rest`.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import yaml
from rich.console import Console

from benchmarks.results import as_table, write_result
from benchmarks.serving import CLIP_S, Served
from benchmarks.streaming import processor_s
from deployments.local import CONFIG, LocalCluster, Ports

N_CLIENTS = 16
SCRAPE_INTERVAL_S = 15.0
N_SCRAPES = 20
REST_S = 30.0
"""Three exports of Ray, after which nothing of the load is under way."""

BLIND = '''\
"""Makes what Ray's metrics record do nothing, in every process of a cluster that is not watched."""
import importlib.abc
import importlib.util
import sys


class Blind(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "ray.util.metrics":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_blind(module):
            load(module)
            for kind, method in (("Counter", "inc"), ("Gauge", "set"), ("Histogram", "observe")):
                setattr(getattr(module, kind), method, lambda *_, **__: None)

        spec.loader.exec_module = load_blind
        return spec


sys.meta_path.insert(0, Blind())
'''
_console = Console(stderr=True)


def _document(*, is_watched: bool) -> dict[str, Any]:
    """serve_config.yaml with one replica of each stage, so that both services are the same all the time."""
    document: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    document["logging_config"] = (
        {"encoding": "JSON", "log_level": "INFO"} if is_watched else {"log_level": "ERROR", "enable_access_log": False}
    )
    for deployment in document["applications"][0]["deployments"]:
        deployment["autoscaling_config"]["max_replicas"] = 1
    return document


@contextmanager
def _service(folder: Path, *, is_watched: bool) -> Iterator[LocalCluster]:
    folder.mkdir()
    changes = {
        # HAProxy's files are in one fixed folder otherwise, of both.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "haproxy.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
    }
    if not is_watched:
        (folder / "sitecustomize.py").write_text(BLIND, encoding="utf-8")
        changes |= {"PYTHONPATH": str(folder), "RAY_enable_metrics_collection": "false"}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    cluster = LocalCluster(state_dir=folder / "ray", ports=Ports.free())
    try:
        cluster.start()
        cluster.deploy_document(_document(is_watched=is_watched))
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        yield cluster
    finally:
        cluster.stop()


@contextmanager
def _scraped(cluster: LocalCluster) -> Iterator[None]:
    """Look at a cluster's figures as often as Prometheus does."""
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(SCRAPE_INTERVAL_S):
            for port in (cluster.ports.ray_metrics, cluster.ports.haproxy_metrics):
                httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).raise_for_status()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _round(cluster: LocalCluster, served: Served, n_clips: int) -> tuple[float, float]:
    """Seconds by the clock and of processors, for each clip."""
    before_s = processor_s(cluster)
    wall_s = served.seconds(n_clips, N_CLIENTS)
    return wall_s / n_clips, (processor_s(cluster) - before_s) / n_clips


def _tells(cluster: LocalCluster) -> bool:
    """Whether it says anything of what it has analysed."""
    with suppress(httpx.HTTPError):
        return "ray_soundstage_requests_total{" in httpx.get(cluster.metrics_url, timeout=30).text
    return False


def _at_rest(cluster: LocalCluster) -> tuple[list[float], int]:
    """Milliseconds of some scrapes of the node with all replicas, and how many series it has."""
    times_ms = []
    text = ""
    for _ in range(N_SCRAPES):
        start_s = time.perf_counter()
        text = httpx.get(cluster.metrics_url, timeout=30).raise_for_status().text
        times_ms.append(1000 * (time.perf_counter() - start_s))
    return times_ms, sum(not line.startswith("#") for line in text.splitlines())


def measure(*, n_rounds: int, n_clips: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures that count, and those that explain them."""
    pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
    with tempfile.TemporaryDirectory(prefix="watch") as name:
        folder = Path(name)
        with (
            _service(folder / "watched", is_watched=True) as watched,
            _service(folder / "blind", is_watched=False) as blind,
            _scraped(watched),
        ):
            clients = {cluster: Served(cluster.url) for cluster in (watched, blind)}
            for cluster, served in clients.items():
                _round(cluster, served, 2 * n_clips)  # batches of every size have been seen
            for number in range(n_rounds):
                # Whichever comes first in a pair has the cores as the pair before left them.
                turns = (watched, blind) if number % 2 else (blind, watched)
                times = {cluster: _round(cluster, clients[cluster], n_clips) for cluster in turns}
                pairs.append((times[watched], times[blind]))
                _console.print(f"pair {number + 1} of {n_rounds}: {pairs[-1]}", style="dim")
            if _tells(blind) or not _tells(watched):
                raise RuntimeError("the one service must tell metrics, and the other must not")
            threading.Event().wait(REST_S)
            times_ms, n_series = _at_rest(watched)
            log_lines = sum(
                path.read_text(encoding="utf-8").count("\n")
                for path in Path("/tmp/ray").glob(f"session_*_{_session_pid(watched)}/logs/serve/replica_*.log")
            )
    figures = {
        "watched_over_blind": round(statistics.median(blind[0] / watched[0] for watched, blind in pairs), 4),
        "processor_time_added": round(statistics.median(watched[1] / blind[1] - 1 for watched, blind in pairs), 4),
        "scrape_ms": round(statistics.median(times_ms), 1),
        "n_series_at_rest": n_series,
    }
    detail = {
        "watched_over_blind_pairs": [round(blind[0] / watched[0], 3) for watched, blind in pairs],
        "processor_time_added_pairs": [round(watched[1] / blind[1] - 1, 3) for watched, blind in pairs],
        "watched_audio_s_per_s": round(CLIP_S / statistics.median(watched[0] for watched, _ in pairs), 1),
        "blind_audio_s_per_s": round(CLIP_S / statistics.median(blind[0] for _, blind in pairs), 1),
        "scrape_ms_slowest": round(max(times_ms), 1),
        "n_log_lines_watched": log_lines,
        "n_clips_a_round": n_clips,
        "n_clients": N_CLIENTS,
    }
    return figures, detail


def _session_pid(cluster: LocalCluster) -> str:
    """Ray names the folder of a session by the process that began it."""
    return cluster.session_file.read_text(encoding="ascii")


def main(
    rounds: Annotated[int, typer.Option(help="Pairs of measurements; the medians count.")] = 12,
    clips: Annotated[int, typer.Option(help="Clips of 5 s in each round.")] = 128,
    write: Annotated[bool, typer.Option(help="Write benchmarks/results/observability.json.")] = True,
) -> None:
    """Measure what watching costs."""
    figures, detail = measure(n_rounds=rounds, n_clips=clips)
    _console.print(as_table("Watching", {**figures, **detail}))
    if write:
        write_result("observability", figures, detail)
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
