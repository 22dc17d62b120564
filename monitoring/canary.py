"""Sends labelled reference clips through the public API, slowly, and tells Prometheus how right the answers are.

A small process of its own beside the service. It notices what no metric of the service can: that a model answers,
quickly, and wrongly.

The clips are those of `soundstage.sample`; a folder adds others: its `clips.csv` with the columns `file`, `text` (what
is said, or empty) and `label` (the sound, or empty), and the files.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import secrets
import signal
import socket
import ssl
import sys
import threading
import time
import warnings
import wave
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any, Literal

import ecs_logging
import httpx
import jiwer
import numpy as np
import typer
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from soundstage import sample

with warnings.catch_warnings():
    # Its docstrings have backslashes that Python warns of.
    warnings.simplefilter("ignore")
    from whisper_normalizer.english import EnglishTextNormalizer

PORT = 9105
MARGIN_S = 0.2
"""Of what lies around a sound or a reading in the sample."""
LATENCY_BOUNDS_S = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
OK, UNREACHABLE = "ok", "unreachable"

_log = logging.getLogger("soundstage.canary")
_normalised = EnglishTextNormalizer()

Task = Literal["speech", "sounds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceClip:
    """Audio of which one thing is known.

    Attributes:
        name: For the log.
        audio: An audio file.
        task: What is asked for.
        truth: What is said, or the sound, as the sound model calls it.
    """

    name: str
    audio: bytes
    task: Task
    truth: str


def sample_clips() -> list[ReferenceClip]:
    """One clip of each thing in the sample beside which nothing else is heard.

    Raises:
        SpeechMissing: The package that holds the reading is not installed.
    """
    samples, truth = sample.mix()
    said: list[tuple[float, float, Task, str]] = [
        (part.start_s, part.end_s, "speech", part.text) for part in truth.speech
    ]
    heard: list[tuple[float, float, Task, str]] = [
        (part.start_s, part.end_s, "sounds", part.label) for part in truth.sounds
    ]
    clips = []
    spans = [(start_s, end_s) for start_s, end_s, *_ in (*said, *heard)]
    for start_s, end_s, task, known in (*said, *heard):
        if sum(start_s < other_end_s and other_start_s < end_s for other_start_s, other_end_s in spans) == 1:
            first, last = (round(t * sample.SAMPLE_RATE_HZ) for t in (start_s - MARGIN_S, end_s + MARGIN_S))
            name = f"sample from {start_s:g} s"
            clips.append(ReferenceClip(name=name, audio=_wav(samples[first:last]), task=task, truth=known))
    return clips


def read_clips(folder: Path) -> list[ReferenceClip]:
    """The clips of a folder with its clips.csv; one of which text and label are known is two.

    Raises:
        OSError: A file is not there.
        ValueError: A column is not there.
    """
    clips = []
    with (folder / "clips.csv").open(newline="", encoding="utf-8") as table:
        rows = csv.DictReader(table)
        if missing := {"file", "text", "label"} - set(rows.fieldnames or ()):
            raise ValueError(f"{folder / 'clips.csv'} has no column {', '.join(sorted(missing))}")
        for row in rows:
            audio = (folder / row["file"]).read_bytes()
            tasks: tuple[tuple[Task, str], ...] = (("speech", row["text"]), ("sounds", row["label"]))
            for task, truth in tasks:
                if truth:
                    clips.append(ReferenceClip(name=row["file"], audio=audio, task=task, truth=truth))
    return clips


class Canary:
    """Asks about one clip after the other; figures are of the last answer about each clip, by model version.

    Args:
        client: Of the service.
        registry: Where the figures go.
    """

    def __init__(self, client: httpx.Client, registry: CollectorRegistry) -> None:
        self._client = client
        labels = ("model", "version")
        self._ratios: dict[Task, Gauge] = {
            "speech": Gauge("soundstage_canary_word_error_ratio", "Word errors over words.", labels, registry=registry),
            "sounds": Gauge("soundstage_canary_top1_ratio", "Sounds that were named right.", labels, registry=registry),
        }
        self._latency = Histogram(
            "soundstage_canary_latency_seconds",
            "Of one clip, as a client sees it.",
            buckets=LATENCY_BOUNDS_S,
            registry=registry,
        )
        self._requests = Counter(
            "soundstage_canary_requests",
            "Requests by how they ended: ok, a code of the error table, or unreachable.",
            ("result",),
            registry=registry,
        )
        for result in (OK, UNREACHABLE):
            self._requests.labels(result)
        self._certificate_end = Gauge(
            "soundstage_canary_certificate_not_after_timestamp_seconds",
            "When the certificate of the service ends; only where it has one.",
            ("service",),
            registry=registry,
        )
        self._serving: dict[Task, tuple[str, str]] = {}
        self._judged: dict[Task, dict[str, tuple[float, float]]] = {"speech": {}, "sounds": {}}

    def ask(self, clip: ReferenceClip) -> str:
        """Send one clip, keep what its answer is worth, and return how it ended."""
        # Sampled: whoever sees a slow one in Grafana can open its trace.
        trace_id = secrets.token_hex(16)
        headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
        form = {"file": (clip.name, clip.audio, "application/octet-stream")}
        fields: dict[str, Any] = {"trace.id": trace_id, "event.action": "canary"}
        start_s = time.perf_counter()
        try:
            answer = self._client.post("/v1/analyze", params={"tasks": clip.task}, files=form, headers=headers)
        except httpx.HTTPError as e:
            result = UNREACHABLE
            _log.warning("%s: %s", clip.name, type(e).__name__, extra=fields | {"event.outcome": "failure"})
        else:
            seconds = time.perf_counter() - start_s
            fields["event.duration"] = round(seconds * 1e9)
            result = OK if answer.is_success else _code(answer)
            if result == OK:
                self._latency.observe(seconds, {"trace_id": trace_id})
                self._judge(clip, answer.json())
                _log.info("%s: %.2f s", clip.name, seconds, extra=fields | {"event.outcome": "success"})
            else:
                _log.warning(
                    "%s: %s", clip.name, result, extra=fields | {"event.outcome": "failure", "error.code": result}
                )
        self._requests.labels(result).inc()
        return result

    def look_at_certificate(self, context: ssl.SSLContext) -> None:
        """Tell when the service's certificate ends, where the service has one.

        Raises:
            OSError: The service cannot be reached, or its certificate is not to be trusted.
        """
        url = self._client.base_url
        if url.scheme != "https":
            return
        with (
            socket.create_connection((url.host, url.port or 443), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=url.host) as tls,
        ):
            certificate = tls.getpeercert() or {}
        self._certificate_end.labels(url.host).set(ssl.cert_time_to_seconds(str(certificate["notAfter"])))

    def _judge(self, clip: ReferenceClip, answer: dict[str, Any]) -> None:
        serving = next(iter(answer["models"].items()), None)
        if serving is None:
            # No speech was found, so that no model was asked: all words are missing, whichever would have written them.
            serving = self._serving.get(clip.task)
            if serving is None:
                return
        judged = self._judged[clip.task]
        if self._serving.get(clip.task, serving) != serving:
            self._ratios[clip.task].remove(*self._serving[clip.task])
            judged.clear()
        self._serving[clip.task] = serving
        judged[f"{clip.name} {clip.truth}"] = _errors_of(clip, answer)
        wrong, n = (sum(values) for values in zip(*judged.values(), strict=True))
        ratio = wrong / n
        self._ratios[clip.task].labels(*serving).set(ratio if clip.task == "speech" else 1 - ratio)


def _errors_of(clip: ReferenceClip, answer: dict[str, Any]) -> tuple[float, float]:
    """How much is wrong, of how much."""
    if clip.task == "sounds":
        tags = answer["tags"]
        return float(not tags or tags[0]["label"] != clip.truth), 1.0
    words = jiwer.process_words(_normalised(clip.truth), _normalised(answer["text"]))
    return (
        float(words.substitutions + words.deletions + words.insertions),
        float(words.substitutions + words.deletions + words.hits),
    )


def _code(answer: httpx.Response) -> str:
    """The code of the error table; of answers from elsewhere the status."""
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"http_{answer.status_code}"


def _wav(samples: NDArray[np.float32]) -> bytes:
    """16-bit WAV of float samples (n_samples, n_channels)."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(sample.SAMPLE_RATE_HZ)
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command(epilog="Example:  python -m monitoring.canary --url https://soundstage.example.com --every 30")
def main(  # noqa: PLR0917  # options, given by name
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8000",
    port: Annotated[int, typer.Option(help="Where Prometheus finds the figures.")] = PORT,
    host: Annotated[str, typer.Option(help="The address that it listens on.")] = "127.0.0.1",
    every: Annotated[float, typer.Option(min=0.0, help="Seconds from one clip to the next.")] = 15.0,
    clips: Annotated[Path | None, typer.Option(help="A folder with clips.csv: file, text, label.")] = None,
    ca: Annotated[Path | None, typer.Option(help="Certificates to trust beside the system's.")] = None,
    as_json: Annotated[
        bool | None,
        typer.Option("--json/--text", help="Log in the Elastic Common Schema; the default where no terminal is."),
    ] = None,
) -> None:
    """Watch how right a service is. Its key is read from SOUNDSTAGE_API_KEY."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ecs_logging.StdlibFormatter(
            exclude_fields=("log.original", "process.thread", "process.name"),
            extra={"service.name": "soundstage-canary"},
        )
        if as_json or (as_json is None and not sys.stderr.isatty())
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    key = os.environ.get("SOUNDSTAGE_API_KEY")
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    registry = CollectorRegistry()
    references = read_clips(clips) if clips else sample_clips()
    with httpx.Client(
        base_url=url, timeout=60, verify=context, headers={"Authorization": f"Bearer {key}"} if key else {}
    ) as client:
        canary = Canary(client, registry)
        start_http_server(port, addr=host, registry=registry)
        _log.info(
            "%d clips, one every %g s, to %s; figures at http://%s:%d/metrics", len(references), every, url, host, port
        )
        for clip in cycle(references):
            canary.ask(clip)
            try:
                canary.look_at_certificate(context)
            except OSError as e:
                _log.warning("certificate: %s", e)
            if stop.wait(every):
                return


if __name__ == "__main__":
    app()
