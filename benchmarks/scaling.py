"""How the service follows its load: `python -m benchmarks.scaling`, and what it would take for many more.

Measured on this machine, in one run: a load curve of one replica a stage (clients at once, throughput, p95), from which
target_ongoing_requests is chosen; then a ramp and a spike with autoscaling, with replicas, requests in flight, p95 and
refusals over time, drawn into benchmarks/results/scaling.png.

Simulated: `simulate` carries the measured cost of a stream to many of them on many nodes: live ones with words while
they are being said, and audio that is sent in pieces and written down once. It is a model, not a measurement: what it
assumes is in `Assumptions`.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
import yaml
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.results import RESULTS_DIR, as_table, write_result
from benchmarks.serving import CLIP_S, QUERY, clips, encoded
from deployments.local import CONFIG, LocalCluster, Ports

CONCURRENCY = (1, 2, 4, 8, 16, 32, 64)
CLIENTS_TIMEOUT_S = 60.0
MAX_P95_S = 2.0
"""For a clip of CLIP_S: the most requests in flight that keep it are the target of autoscaling."""

STREAMS = (1_000, 10_000, 100_000)
"""How many are simulated."""

_console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Request:
    """One that was answered.

    Attributes:
        sent_s: When, from the start of the run.
        took_s: Until its answer.
        code: HTTP; 0 where there was none.
    """

    sent_s: float
    took_s: float
    code: int


@dataclass
class Client:
    """Sends clips and keeps what came of it."""

    url: str
    started_s: float = field(default_factory=time.monotonic)
    requests: list[Request] = field(default_factory=list)
    n_open: int = 0

    def __post_init__(self) -> None:
        limits = httpx.Limits(max_connections=512, max_keepalive_connections=512)
        self._http = httpx.Client(base_url=self.url, timeout=CLIENTS_TIMEOUT_S, limits=limits)
        self._bodies = [encoded(clip) for clip in clips()]
        self._lock = threading.Lock()

    def send(self, number: int) -> Request:
        """One clip."""
        with self._lock:
            self.n_open += 1
        sent_s = time.monotonic() - self.started_s
        try:
            body = self._bodies[number % len(self._bodies)]
            code = self._http.post("/v1/analyze", params=QUERY, content=body, headers={"Content-Type": "audio/wav"})
            request = Request(sent_s, time.monotonic() - self.started_s - sent_s, code.status_code)
        except httpx.HTTPError:
            request = Request(sent_s, time.monotonic() - self.started_s - sent_s, 0)
        with self._lock:
            self.n_open -= 1
            self.requests.append(request)
        return request


def p95(values: list[float]) -> float:
    """Nothing has none."""
    return float(np.percentile(values, 95)) if values else math.nan


def load_curve(url: str, duration_s: float) -> list[dict[str, float]]:
    """Throughput and p95 for so many clients at once, each of which sends its next clip when it has its answer."""
    rows = []
    for n in CONCURRENCY:
        client = Client(url)
        end_s = time.monotonic() + duration_s

        def go_on(number: int, client: Client = client, end_s: float = end_s) -> None:
            while time.monotonic() < end_s:
                client.send(number)

        with ThreadPoolExecutor(n) as pool:
            list(pool.map(go_on, range(n)))
        good = [request for request in client.requests if request.code == 200]
        took_s = max(request.sent_s + request.took_s for request in client.requests)
        rows.append(
            {
                "clients": n,
                "requests_per_s": round(len(good) / took_s, 2),
                "audio_s_per_s": round(CLIP_S * len(good) / took_s, 1),
                "p50_s": round(float(np.median([request.took_s for request in good])), 3),
                "p95_s": round(p95([request.took_s for request in good]), 3),
                "refused": len(client.requests) - len(good),
            }
        )
        _console.print(rows[-1])
    return rows


def best_target(rows: list[dict[str, float]]) -> int:
    """The most requests in flight a replica that keep MAX_P95_S.

    Not the knee of throughput: batches grow with the load, so that it grows on long after clients wait too long.
    """
    return max([int(row["clients"]) for row in rows if row["p95_s"] <= MAX_P95_S], default=1)


def profile(peak_per_s: float, *, ramp_s: float, spike_s: float) -> list[tuple[float, float]]:
    """(seconds, requests a second): up in steps to the peak, a spike of three times the peak, down, and little."""
    steps = [(ramp_s / 4, peak_per_s * share) for share in (0.25, 0.5, 0.75, 1.0)]
    return [*steps, (spike_s, 3 * peak_per_s), (ramp_s / 2, peak_per_s / 2), (ramp_s / 2, peak_per_s / 10)]


def follow(cluster: LocalCluster, steps: list[tuple[float, float]]) -> tuple[list[Request], list[dict[str, float]]]:
    """Send requests at these rates, whether or not earlier ones are answered; look at the service each second."""
    client, seen, rng = Client(cluster.url), [], np.random.default_rng(0)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(1.0):
            at_s = time.monotonic() - client.started_s
            seen.append({"at_s": round(at_s, 1), "in_flight": client.n_open, **replicas(cluster)})

    watcher = threading.Thread(target=look)
    watcher.start()
    with ThreadPoolExecutor(512) as pool:
        next_s, number = 0.0, 0
        until_s = 0.0
        for duration_s, rate in steps:
            until_s += duration_s
            while next_s < until_s:
                time.sleep(max(0.0, client.started_s + next_s - time.monotonic()))
                pool.submit(client.send, number)
                number += 1
                next_s += float(rng.exponential(1 / rate))
    ended.set()
    watcher.join()
    return sorted(client.requests, key=lambda request: request.sent_s), seen


def replicas(cluster: LocalCluster) -> dict[str, int]:
    """Running replicas by deployment."""
    headers = {"Authorization": f"Bearer {cluster.token_file.read_text(encoding='ascii')}"}
    try:
        answer = httpx.get(f"{cluster.dashboard_url}/api/serve/applications/", headers=headers, timeout=10).json()
    except httpx.HTTPError:
        return {}
    deployments = answer["applications"]["soundstage"]["deployments"]
    return {
        name: sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
        for name, deployment in deployments.items()
    }


def document(*, max_voice: int, target: int | None = None) -> dict[str, Any]:
    """serve_config.yaml with so many replicas for speech at most; delays short enough to be seen in minutes."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    for deployment in config["applications"][0]["deployments"]:
        scaling = deployment["autoscaling_config"]
        scaling |= {"min_replicas": 1, "max_replicas": 1}
        if deployment["name"] == "VoiceRecognizer":
            scaling |= {"max_replicas": max_voice, "upscale_delay_s": 5, "downscale_delay_s": 30}
            if target is not None:
                scaling["target_ongoing_requests"] = target
    return config


def draw(path: Path, requests: list[Request], seen: list[dict[str, float]], steps: list[tuple[float, float]]) -> None:
    """Arrivals, replicas, requests in flight, p95 and refusals over time."""
    import matplotlib as mpl  # noqa: PLC0415 - of the extra dev

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (rate, flight, delay) = plt.subplots(3, 1, figsize=(9, 8), sharex=True, layout="constrained")
    edges = np.concatenate([[0.0], np.cumsum([duration_s for duration_s, _ in steps])])
    rate.stairs([per_s for _, per_s in steps], edges, color="tab:gray", label="sent a second", baseline=None)
    rate.set_ylabel("requests a second")
    twin = rate.twinx()
    at_s = [row["at_s"] for row in seen]
    twin.step(at_s, [row.get("VoiceRecognizer", math.nan) for row in seen], "tab:blue", where="post", label="replicas")
    twin.set(ylabel="replicas for speech", ylim=(0, None))
    rate.legend(loc="upper left")
    twin.legend(loc="upper right")
    flight.plot(at_s, [row["in_flight"] for row in seen], "tab:orange")
    flight.set_ylabel("requests in flight")
    bins = np.arange(0, edges[-1] + 5, 5)
    sent = np.digitize([request.sent_s for request in requests], bins)
    groups = [[request for request, i in zip(requests, sent, strict=True) if i == k] for k in range(1, len(bins))]
    delay.plot(bins[:-1] + 2.5, [p95([r.took_s for r in group if r.code == 200]) for group in groups], "tab:green")
    delay.set(ylabel="p95, s", xlabel="seconds", ylim=(0, None))
    refused = delay.twinx()
    refused.bar(bins[:-1] + 2.5, [sum(r.code != 200 for r in group) for group in groups], 4, color="tab:red", alpha=0.4)
    refused.set_ylabel("refused in 5 s")
    figure.suptitle("A ramp and a spike of 5 s clips")
    figure.savefig(path, dpi=110)


# Beyond this machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What the simulation takes for given.

    Attributes:
        core_s_per_audio_s: Measured: cores that a stream keeps busy.
        chunk_s: It asks the models for so much audio at once.
        cores_per_node: Of a worker, and how many of them replicas get.
        node_hour: Price of such a node, in the currency you like.
        node_start_s: From the wish to a node that runs, its image pulled.
        replica_start_s: Measured: from a node to a replica that answers.
        decide_s: upscale_delay_s and the autoscaler's own round.
        target_utilisation: How full replicas are kept, which leaves room for what is decided too late.
        proxy_requests_per_s: Of one HAProxy; measured with an echo of 160 KB on four cores.
        max_nodes: One Ray cluster, as far as its makers test it.
        max_wait_s: What would wait longer is refused.
        stream_bit_per_s: 16 kHz, 16 bit.
        node_bit_per_s: Network of a node.
    """

    core_s_per_audio_s: float
    chunk_s: float = 2.0
    cores_per_node: int = 16
    node_hour: float = 0.70
    node_start_s: float = 120.0
    replica_start_s: float = 30.0
    decide_s: float = 15.0
    target_utilisation: float = 0.7
    proxy_requests_per_s: float = 300.0
    max_nodes: int = 2000
    max_wait_s: float = 10.0
    stream_bit_per_s: float = 256_000.0
    node_bit_per_s: float = 10e9


def simulate(n_streams: int, assumed: Assumptions, *, ramp_s: float = 1800.0, step_s: float = 1.0) -> dict[str, Any]:
    """Streams come evenly over `ramp_s` and stay for as long again; nodes follow.

    Work that is not done at once waits; the autoscaler asks each step for what the load of that moment needs.

    Args:
        n_streams: At the end of the ramp.
        assumed: Costs and delays.
        ramp_s: How fast they come.
        step_s: Of the simulation.

    Returns:
        Nodes at the peak, price an hour, delay of chunks, and what gives out first.
    """
    n_steps = round(2 * ramp_s / step_s)
    times_s = np.arange(n_steps) * step_s
    streams: NDArray[np.float64] = n_streams * np.minimum(1.0, times_s / ramp_s)
    offered = streams * assumed.core_s_per_audio_s  # cores
    wanted = np.ceil(offered / (assumed.target_utilisation * assumed.cores_per_node)).clip(min=2)
    lag = round((assumed.decide_s + assumed.node_start_s + assumed.replica_start_s) / step_s)
    nodes = np.concatenate([np.full(lag, 2.0), wanted])[:n_steps]
    backlog, refused, waits_s = 0.0, 0.0, np.zeros(n_steps)  # core seconds
    for i in range(n_steps):
        capacity = nodes[i] * assumed.cores_per_node
        backlog = max(0.0, backlog + (offered[i] - capacity) * step_s)
        too_late = max(0.0, float(backlog - assumed.max_wait_s * capacity))
        backlog, refused = backlog - too_late, refused + too_late
        waits_s[i] = backlog / capacity
    peak = float(wanted.max())
    needs = {
        "nodes of one Ray cluster": peak / assumed.max_nodes,
        "one proxy": n_streams / assumed.chunk_s / assumed.proxy_requests_per_s,
        "network of one way in": n_streams * assumed.stream_bit_per_s / assumed.node_bit_per_s,
    }
    settled_s = waits_s[-1:]
    return {
        "streams": n_streams,
        "cores": round(float(offered.max())),
        "nodes": round(peak),
        "price_hour": round(peak * assumed.node_hour, 2),
        "price_stream_hour": round(peak * assumed.node_hour / n_streams, 5),
        "longest_wait_s": round(float(waits_s.max()), 2),
        "refused_on_the_ramp": round(float(refused) / float(offered.sum() * step_s), 4),
        "wait_once_settled_s": round(float(settled_s.max()), 2),
        # What comes while new nodes are on their way has to find room already.
        "spare_nodes": math.ceil(
            n_streams / ramp_s * lag * step_s * assumed.core_s_per_audio_s / assumed.cores_per_node
        ),
        "needs": {name: round(share, 2) for name, share in needs.items()},
        "gives_out_first": max(needs, key=lambda name: needs[name]) if max(needs.values()) > 1 else "nothing",
    }


def cost_of_live_stream() -> float | None:
    """Cores of a stream with words as they are said, by the run of `benchmarks.streaming` with the most streams."""
    kept = [json.loads(path.read_text(encoding="utf-8"))["figures"] for path in RESULTS_DIR.glob("streaming_*.json")]
    costs = {figures["n_streams"]: figures.get("cores_per_stream") for figures in kept if not figures["n_bulk_clients"]}
    return costs[max(costs)] if costs else None


def main(
    duration_s: Annotated[float, typer.Option(help="For each point of the load curve.")] = 12.0,
    ramp_s: Annotated[float, typer.Option(help="Of the ramp.")] = 80.0,
    spike_s: Annotated[float, typer.Option(help="Of the spike.")] = 20.0,
    max_voice: Annotated[int, typer.Option(help="Replicas for speech at most.")] = 3,
) -> None:
    """Measure the load curve, a ramp and a spike; simulate 1,000 to 100,000 streams."""
    n_cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        cluster = LocalCluster(state_dir=Path(folder), ports=Ports.free(), n_cpus=max(4, n_cores))
        try:
            cluster.start()
            cluster.deploy_document(document(max_voice=1))
            warm = Client(cluster.url)
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(warm.send, range(48)))
            load_before = os.getloadavg()[0]
            curve = load_curve(cluster.url, duration_s)
            target = best_target(curve)
            cluster.deploy_document(document(max_voice=max_voice, target=target))
            peak_per_s = max(row["requests_per_s"] for row in curve)
            steps = profile(peak_per_s, ramp_s=ramp_s, spike_s=spike_s)
            requests, seen = follow(cluster, steps)
        finally:
            cluster.stop()
    draw(RESULTS_DIR / "scaling.png", requests, seen, steps)
    best = max(row["audio_s_per_s"] for row in curve)
    costs = {"in pieces, written once": round(n_cores / best, 4), "live, words as they are said": cost_of_live_stream()}
    good = [request for request in requests if request.code == 200]
    figures = {
        "target_ongoing_requests": target,
        "best_audio_s_per_s": best,
        "peak_replicas": max(int(row.get("VoiceRecognizer", 0)) for row in seen),
        "final_replicas": int(seen[-1].get("VoiceRecognizer", 0)),
        "most_in_flight": max(int(row["in_flight"]) for row in seen),
        "sent": len(requests),
        "answered": len(good),
        "refused_503": sum(request.code == 503 for request in requests),
        "other_failures": sum(request.code not in {200, 503} for request in requests),
        "p95_s": round(p95([request.took_s for request in good]), 2),
        "load_before": round(load_before, 1),
    }
    simulated = {
        kind: [simulate(n, Assumptions(core_s_per_audio_s=cost)) for n in STREAMS]
        for kind, cost in costs.items()
        if cost is not None
    }
    others = asdict(Assumptions(core_s_per_audio_s=math.nan)) | {"core_s_per_audio_s": costs}
    write_result("scaling", figures, {"curve": curve, "steps": steps, "assumed": others, "simulated": simulated})
    _console.print(as_table("scaling", figures))
    for kind, rows in simulated.items():
        for row in rows:
            _console.print(as_table(f"simulated: {row['streams']} streams, {kind}", row))


if __name__ == "__main__":
    typer.run(main)
