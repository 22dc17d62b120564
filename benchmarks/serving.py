"""The service against its own models: `python -m benchmarks.serving`.

Both run on the same cores in the same run, in turn: the bare models in one process with all cores and full batches,
and the service with 32 clients over HTTP (then one against one). Then a file of one hour against one of a minute.
64 different clips are also transcribed one by one and all at once, and compared. The last line printed is JSON:
`served_over_bare` (throughput, higher is better), `single_over_bare` (time, lower is better), `hour_added_mb`,
`n_transcripts_changed_by_batching`.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import av
import httpx
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.results import as_table, write_result
from deployments.local import LocalCluster, Ports
from soundstage.audio.resample import decode_mono
from soundstage.params import Limits
from soundstage.sample import reading_path
from soundstage.types import SAMPLE_RATE, EncodedAudio, Waveform

CLIP_S = 5
BATCH = 16
N_CLIENTS = 32
WARM_UP_S = 45.0
QUERY = {"tasks": "speech,sounds"}

_console = Console(stderr=True)


def clips() -> list[NDArray[np.float32]]:
    """Clips of five seconds of continuous speech, 16 kHz mono."""
    samples = decode_mono(reading_path(), Limits()).samples
    n_clip = CLIP_S * SAMPLE_RATE
    return [samples[first : first + n_clip] for first in range(0, len(samples) - n_clip + 1, n_clip)]


def encoded(samples: NDArray[np.float32], container: str = "wav", codec: str = "pcm_s16le", repeats: int = 1) -> bytes:
    """The samples as a file, as often as asked for."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=SAMPLE_RATE, layout="mono")
        assert isinstance(stream, av.AudioStream)
        pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16)[None]
        for _ in range(repeats):
            frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


class Bare:
    """The models in a process of their own."""

    def __init__(self, n_threads: int) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _load, (n_threads,))

    def seconds(self, n_clips: int, n_rounds: int) -> float:
        """Wall seconds for some rounds of a batch."""
        return self._pool.submit(_run, n_clips, n_rounds).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


_models: dict[str, object] = {}


def _load(n_threads: int) -> None:
    from soundstage.models import registry  # noqa: PLC0415 - TensorFlow belongs into the process of its own
    from soundstage.pipeline import SOUND_MODEL, SPEECH_MODEL  # noqa: PLC0415
    from soundstage.sound.listener import SoundListener  # noqa: PLC0415
    from soundstage.speech.transcriber import Transcriber  # noqa: PLC0415

    transcriber = Transcriber(registry.find(SPEECH_MODEL), n_threads=n_threads)
    listener = SoundListener(registry.find(SOUND_MODEL), n_threads=n_threads)
    waveforms = [Waveform(samples=clip) for clip in clips()]
    _models.update(transcriber=transcriber, listener=listener, waveforms=waveforms)
    _run(BATCH, 1)
    _run(1, 1)


def _run(n_clips: int, n_rounds: int) -> float:
    waveforms = [_models["waveforms"][number % len(_models["waveforms"])] for number in range(n_clips)]  # type: ignore[index, arg-type]
    start = time.perf_counter()
    for number in range(n_rounds):
        batch = waveforms if n_clips > 1 else [_models["waveforms"][number % len(_models["waveforms"])]]  # type: ignore[index, arg-type]
        _models["transcriber"].transcribe(batch)  # type: ignore[attr-defined]
        _models["listener"].listen(batch)  # type: ignore[attr-defined]
    return time.perf_counter() - start


class Served:
    """The service, asked over HTTP."""

    def __init__(self, url: str) -> None:
        key = os.environ.get("SOUNDSTAGE_API_KEY")
        headers = {"Content-Type": "audio/wav", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=600, limits=httpx.Limits(max_connections=64))
        self._bodies = [encoded(clip) for clip in clips()]

    def seconds(self, n_clips: int, n_clients: int) -> float:
        """Wall seconds for some clips from some clients at once."""
        start = time.perf_counter()
        with ThreadPoolExecutor(n_clients) as pool:
            list(pool.map(self._ask, range(n_clips)))
        return time.perf_counter() - start

    def _ask(self, number: int) -> None:
        self.analyze(self._bodies[number % len(self._bodies)])

    def analyze(self, body: bytes) -> httpx.Response:
        """One request; an error ends the benchmark."""
        return self._client.post("/v1/analyze", params=QUERY, content=body).raise_for_status()


@contextmanager
def watching(measure: Callable[[], float], every_s: float = 0.25) -> Iterator[list[float]]:
    """Measure again and again until the block ends."""
    seen = [measure()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            seen.append(measure())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def n_changed_by_batching(served: Served, n_clips: int = 64) -> int:
    """How many of some clips of 2 to 8 s have another transcript when they are sent all at once."""
    reading = np.concatenate(clips())
    rng = np.random.default_rng(0)
    bodies = []
    for _ in range(n_clips):
        n_samples = int(rng.uniform(2, 8) * SAMPLE_RATE)
        first = int(rng.integers(len(reading) - n_samples))
        bodies.append(encoded(reading[first : first + n_samples]))
    alone = [served.analyze(body).json()["text"] for body in bodies]
    with ThreadPoolExecutor(n_clips) as pool:
        together = [answer.json()["text"] for answer in pool.map(served.analyze, bodies)]
    return sum(one != other for one, other in zip(alone, together, strict=True))


def hour_added_mb(cluster: LocalCluster, served: Served) -> tuple[float, float]:
    """Peak memory with a file of an hour over that with a file of a minute; and the hour's real-time factor."""
    speech = decode_mono(EncodedAudio(data=encoded(np.concatenate(clips())), media_type="audio/wav"), Limits()).samples
    minute = np.resize(speech, 60 * SAMPLE_RATE)
    with watching(cluster.resident_mb) as with_minute:
        served.analyze(encoded(minute, "flac", "flac"))
    hour = encoded(minute, "flac", "flac", repeats=60)
    with watching(cluster.resident_mb) as with_hour:
        start = time.perf_counter()
        served.analyze(hour)
        wall_s = time.perf_counter() - start
    return round(max(with_hour) - max(with_minute), 1), round(wall_s / 3600, 4)


@contextmanager
def running_cluster() -> Iterator[LocalCluster]:
    """The service of `make run` where it is up, else one of our own."""
    cluster = LocalCluster()
    if cluster.is_ready():
        yield cluster
        return
    with tempfile.TemporaryDirectory() as folder:
        cluster = LocalCluster(state_dir=Path(folder), ports=Ports.free())
        try:
            with _console.status("starting a service to measure"):
                cluster.start()
                cluster.deploy()
            yield cluster
        finally:
            cluster.stop()


def measure(cluster: LocalCluster, *, rounds: int, hour: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures that count, and those that explain them."""
    served = Served(cluster.url)
    bare = Bare(os.cpu_count() or 1)
    try:
        with _console.status("warming up, so that replicas scale to the load"):
            deadline = time.monotonic() + WARM_UP_S
            while time.monotonic() < deadline:
                served.seconds(2 * N_CLIENTS, N_CLIENTS)
            bare.seconds(BATCH, 1)
        full: list[tuple[float, float]] = []
        single: list[tuple[float, float]] = []
        n_bare, n_served, n_single = 8 * BATCH, 4 * N_CLIENTS, 8
        for number in range(rounds):
            _console.print(f"round {number + 1} of {rounds}", style="dim")
            full.append((bare.seconds(BATCH, n_bare // BATCH) / n_bare, served.seconds(n_served, N_CLIENTS) / n_served))
            single.append((bare.seconds(1, n_single) / n_single, served.seconds(n_single, 1) / n_single))
    finally:
        bare.close()
    n_changed = n_changed_by_batching(served)
    added_mb, hour_rtf = hour_added_mb(cluster, served) if hour else (None, None)
    figures = {
        "served_over_bare": round(statistics.median(b / s for b, s in full), 3),
        "single_over_bare": round(statistics.median(s / b for b, s in single), 3),
        "hour_added_mb": added_mb,
        "n_transcripts_changed_by_batching": n_changed,
    }
    detail = {
        "bare_audio_s_per_s": round(CLIP_S / statistics.median(b for b, _ in full), 1),
        "served_audio_s_per_s": round(CLIP_S / statistics.median(s for _, s in full), 1),
        "bare_single_ms": round(1000 * statistics.median(b for b, _ in single), 1),
        "served_single_ms": round(1000 * statistics.median(s for _, s in single), 1),
        "hour_real_time_factor": hour_rtf,
        "served_over_bare_rounds": [round(b / s, 3) for b, s in full],
        "single_over_bare_rounds": [round(s / b, 3) for b, s in single],
    }
    return figures, detail


def main(
    rounds: Annotated[int, typer.Option(help="Pairs of measurements; the medians count.")] = 5,
    hour: Annotated[bool, typer.Option(help="Also send a file of an hour.")] = True,
    write: Annotated[bool, typer.Option(help="Write benchmarks/results/serving.json.")] = True,
) -> None:
    """Measure the service against its own models on the same cores."""
    with running_cluster() as cluster:
        figures, detail = measure(cluster, rounds=rounds, hour=hour)
    _console.print(as_table("Service over bare models", {**figures, **detail}))
    if write:
        write_result("serving", figures, detail)
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
