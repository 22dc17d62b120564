"""Live streams at the speed at which they sound: `python -m benchmarks.streaming --streams 8 --seconds 300`.

Each stream is a programme of its own: sentences of LJ Speech with pauses between them and clips of ESC-50 in some of
the pauses, over a quiet room. When speech and sounds begin and end is known from where the clips were put and from
their own level, librosa's trim, which knows nothing of voice activity. Client and service share all cores, and with
--bulk clients that send files one after the other besides. Then the same audio goes to /v1/analyze.

The last line printed is JSON: `first_partial_p95_ms` after speech begins, `final_p95_ms` after it ends, `sound_p95_ms`
after a sound begins, `max_lag_s` of any final or level behind the audio it tells of, `wer_live`, `wer_offline`.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import librosa
import numpy as np
import typer
from rich.console import Console

from benchmarks.audio import Samples, clip, level, leveled, rows, silence
from benchmarks.results import as_table, write_result
from benchmarks.serving import Served, encoded, running_cluster, watching
from deployments.local import LocalCluster
from soundstage.live_client import LiveClient, LiveRequest
from soundstage.types import SAMPLE_RATE, JsonObject
from training.voice_recognition.scoring import score

RUNS = ((1, 0), (8, 0), (12, 0), (8, 32))
"""Streams, and bulk clients beside them, of `make bench`."""

_PIECE_S = 0.04
_GAP_S = (1.0, 2.5)
_SOUND_SHARE = 0.5
"""Of the pauses that hold a sound."""
_SPEECH_TRIM_DB, _SOUND_TRIM_DB = 35.0, 25.0
"""Below its loudest moment, a clip has not begun or has ended."""
_FADE_S = 0.01
_VOICE_DB, _SOUND_DB, _ROOM_DB = -23.0, -23.0, -65.0
_SLACK_S = 1.0
"""How far the times of an event may lie from the truth it is taken for."""

_console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Something said or heard: its text or its label."""

    what: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Programme:
    """What one stream sends, and what is in it."""

    samples: Samples
    sentences: Sequence[Stretch]
    sounds: Sequence[Stretch]


class Material:
    """Sentences and sounds, each used once before any is used again."""

    def __init__(self, data: Path, rng: np.random.Generator) -> None:
        self._rng = rng
        self._sentences = self._endless(
            [(data / "ljspeech" / "audio" / row["filename"], row["transcript"]) for row in rows(data / "ljspeech")]
        )
        self._sounds = self._endless(
            [(data / "esc50" / "audio" / row["filename"], row["category"]) for row in rows(data / "esc50")]
        )

    def _endless(self, entries: list[tuple[Path, str]]) -> Iterator[tuple[Path, str]]:
        while True:
            for i in self._rng.permutation(len(entries)):
                yield entries[i]

    def programme(self, duration_s: float) -> Programme:
        """As many sentences as fit, and silence to the end."""
        pieces, sentences, sounds = [silence(self._rng.uniform(0.5, 4.0))], [], []
        n_samples = len(pieces[0])
        while True:
            path, text = next(self._sentences)
            said = trimmed(leveled(clip(path), _VOICE_DB), _SPEECH_TRIM_DB)
            if n_samples + len(said) > (duration_s - 2) * SAMPLE_RATE:
                break
            start_s = n_samples / SAMPLE_RATE
            sentences.append(Stretch(text, start_s, start_s + len(said) / SAMPLE_RATE))
            new = [said, silence(self._rng.uniform(*_GAP_S))]
            if self._rng.random() < _SOUND_SHARE:
                path, label = next(self._sounds)
                heard = trimmed(leveled(clip(path), _SOUND_DB), _SOUND_TRIM_DB)
                start_s += sum(map(len, new)) / SAMPLE_RATE
                sounds.append(Stretch(label, start_s, start_s + len(heard) / SAMPLE_RATE))
                new += [heard, silence(self._rng.uniform(*_GAP_S))]
            pieces += new
            n_samples += sum(map(len, new))
        samples = np.concatenate(pieces)[: round(duration_s * SAMPLE_RATE)]
        samples = np.pad(samples, (0, round(duration_s * SAMPLE_RATE) - len(samples)))
        samples += level(_ROOM_DB) * self._rng.standard_normal(len(samples), np.float32)
        # A sound that the end cuts short is none.
        return Programme(samples, sentences, [sound for sound in sounds if sound.end_s < duration_s - 1])


def trimmed(samples: Samples, top_db: float) -> Samples:
    """What is within so many decibels of the loudest moment, from its first to its last, faded at its edges."""
    _, (first, last) = librosa.effects.trim(samples, top_db=top_db, frame_length=512, hop_length=128)
    kept = samples[first:last].copy()
    n_fade = min(round(_FADE_S * SAMPLE_RATE), len(kept) // 2)
    ramp = np.linspace(0, 1, n_fade, dtype=np.float32)
    kept[:n_fade] *= ramp
    kept[len(kept) - n_fade :] *= ramp[::-1]
    return kept


@dataclass(slots=True)
class Told:
    """What came back of one stream.

    Attributes:
        begun_s: On the clock, when its first sample was said.
        events: Each with the time at which it came, in seconds of the stream.
    """

    begun_s: float = 0.0
    events: list[tuple[float, JsonObject]] = field(default_factory=list)

    def of(self, *kinds: str) -> Iterator[tuple[float, JsonObject]]:
        """Events of some kinds."""
        return ((came_s, event) for came_s, event in self.events if event["type"] in kinds)

    @property
    def text(self) -> str:
        """All that was said."""
        return " ".join(event["text"] for _, event in self.of("final"))

    @property
    def lags_s(self) -> list[float]:
        """How long after the end of what it tells each final and each level came."""
        return [came_s - event["end_s"] for came_s, event in self.of("final", "levels")]

    def first_partials_s(self, sentences: Sequence[Stretch]) -> list[float]:
        """After the beginning of each sentence that has one."""
        texts = list(self.of("partial", "final"))
        return [
            min(found) - said.start_s
            for said in sentences
            if (found := [c for c, event in texts if said.start_s - _SLACK_S / 2 < event["start_s"] < said.end_s])
        ]

    def finals_s(self, sentences: Sequence[Stretch]) -> list[float]:
        """After the end of each sentence whose end has one."""
        finals = list(self.of("final"))
        return [
            min(found) - said.end_s
            for said in sentences
            if (found := [c for c, event in finals if abs(event["end_s"] - said.end_s) < _SLACK_S])
        ]

    def sounds_s(self, sounds: Sequence[Stretch]) -> list[float]:
        """After the beginning of each sound that was told by its name; not those that were taken back."""
        taken_back = {event["sound"] for _, event in self.of("sound") if event["state"] == "withdrawn"}
        told = [(c, event) for c, event in self.of("sound") if event["sound"] not in taken_back]
        return [
            min(found) - heard.start_s
            for heard in sounds
            if (
                found := [
                    came_s
                    for came_s, event in told
                    if event["label"] == heard.what and heard.start_s - _SLACK_S < event["start_s"] < heard.end_s
                ]
            )
        ]


async def play(client: LiveClient, programme: Programme) -> Told:
    """Send a programme at its speed; what comes back."""
    told = Told()
    loop = asyncio.get_running_loop()
    pcm = (np.clip(programme.samples, -1, 1) * 32767).astype("<i2").tobytes()
    n_piece = 2 * round(_PIECE_S * SAMPLE_RATE)

    async def microphone() -> AsyncIterator[bytes]:
        told.begun_s = loop.time()
        for i, first in enumerate(range(0, len(pcm), n_piece), start=1):
            await asyncio.sleep(told.begun_s + i * _PIECE_S - loop.time())
            yield pcm[first : first + n_piece]

    async for event in client.stream(microphone(), LiveRequest(sample_rate=SAMPLE_RATE), can_wait=False):
        told.events.append((loop.time() - told.begun_s, event))
    return told


async def play_all(url: str, programmes: Sequence[Programme]) -> list[Told]:
    """All at once."""
    client = LiveClient(url, api_key=os.environ.get("SOUNDSTAGE_API_KEY"))
    return list(await asyncio.gather(*(play(client, programme) for programme in programmes)))


@contextmanager
def flood(url: str, n_clients: int) -> Iterator[None]:
    """Clients that send clips of five seconds one after the other, from a process of their own."""
    if not n_clients:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=_send_for_ever, args=(url, n_clients), daemon=True)
    process.start()
    try:
        time.sleep(10)  # until it sends, and replicas have scaled to it
        yield
        assert process.is_alive(), "the flood has run dry"
    finally:
        process.terminate()
        process.join()


def _send_for_ever(url: str, n_clients: int) -> None:
    served = Served(url)
    while True:
        served.seconds(16 * n_clients, n_clients)


def offline_texts(url: str, programmes: Sequence[Programme]) -> list[str]:
    """What /v1/analyze writes for the same audio."""
    served = Served(url)
    return [served.analyze(encoded(programme.samples)).json()["text"] for programme in programmes]


def word_error_rate(programmes: Sequence[Programme], texts: Sequence[str]) -> float:
    """Of all streams together."""
    return score([" ".join(said.what for said in programme.sentences) for programme in programmes], texts).words.rate


def ingress_mb(cluster: LocalCluster) -> float:
    """Memory of the replicas that hold the streams, in megabytes."""
    n_kb = 0
    for pid in cluster.pids():
        try:
            if b"Ingress" in Path(f"/proc/{pid}/cmdline").read_bytes():
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
                n_kb += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        except OSError:
            continue
    return n_kb * 1024 / 1e6


def processor_s(cluster: LocalCluster) -> float:
    """Processor time that the service has taken so far, all processes together."""
    ticks = 0
    for pid in cluster.pids():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _p(values: Sequence[float], percent: float) -> float | None:
    return round(1000 * float(np.percentile(values, percent))) if values else None


def measure(
    url: str, data: Path, *, n_streams: int, duration_s: float, n_bulk: int, cluster: LocalCluster | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures that count, and those that explain them."""
    with _console.status("cutting programmes"):
        material = Material(data, np.random.default_rng(5))
        programmes = [material.programme(duration_s) for _ in range(n_streams)]
        warm_up = [material.programme(25.0) for _ in range(n_streams)]
    load = [os.getloadavg()[0]]
    with flood(url, n_bulk):
        with _console.status("warming up"):
            asyncio.run(play_all(url, warm_up))
        load.append(os.getloadavg()[0])
        with (
            _console.status(f"{n_streams} streams of {duration_s:g} s"),
            watching((lambda: ingress_mb(cluster)) if cluster else (lambda: 0.0), every_s=5.0) as memory_mb,
        ):
            before_s, client_before_s = processor_s(cluster) if cluster else 0.0, time.process_time()
            told = asyncio.run(play_all(url, programmes))
            client_s = time.process_time() - client_before_s
            service_s = processor_s(cluster) - before_s if cluster else 0.0
        load.append(os.getloadavg()[0])
    with _console.status("the same as files"):
        wer_offline = word_error_rate(programmes, offline_texts(url, programmes))
    memory = memory_mb if cluster else []
    figures, detail = summary(programmes, told, wer_offline=wer_offline, memory_mb=memory, n_bulk=n_bulk, load=load)
    if cluster and not n_bulk:
        # Holds however busy the machine is.
        figures["cores_per_stream"] = round(service_s / n_streams / duration_s, 3)
        detail["cores_per_stream_of_the_client"] = round(client_s / n_streams / duration_s, 3)
    return figures, detail


def summary(
    programmes: Sequence[Programme],
    told: Sequence[Told],
    *,
    wer_offline: float,
    memory_mb: Sequence[float],
    n_bulk: int,
    load: Sequence[float],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of what came back."""
    pairs = list(zip(programmes, told, strict=True))
    partials = [delay_s for p, t in pairs for delay_s in t.first_partials_s(p.sentences)]
    finals = [delay_s for p, t in pairs for delay_s in t.finals_s(p.sentences)]
    sounds = [delay_s for p, t in pairs for delay_s in t.sounds_s(p.sounds)]
    lags = [max(t.lags_s) for t in told]
    n_sentences = sum(len(p.sentences) for p in programmes)
    n_sounds = sum(len(p.sounds) for p in programmes)
    wer_live = word_error_rate(programmes, [t.text for t in told])
    figures = {
        "n_streams": len(told),
        "n_bulk_clients": n_bulk,
        "first_partial_p95_ms": _p(partials, 95),
        "final_p95_ms": _p(finals, 95),
        "sound_p95_ms": _p(sounds, 95),
        "max_lag_s": round(max(lags), 2),
        "wer_live": round(wer_live, 4),
        "wer_offline": round(wer_offline, 4),
        "memory_per_stream_mb": round((max(memory_mb) - memory_mb[0]) / len(told), 2) if memory_mb else None,
    }
    thirds = np.array_split(np.array(memory_mb), 3) if len(memory_mb) >= 6 else []
    warnings = [event["code"] for t in told for _, event in t.of("warning")]
    detail = {
        "seconds": round(len(programmes[0].samples) / SAMPLE_RATE),
        "first_partial_p50_ms": _p(partials, 50),
        "final_p50_ms": _p(finals, 50),
        "sound_p50_ms": _p(sounds, 50),
        "share_of_sounds_within_1200_ms": round(sum(s <= 1.2 for s in sounds) / len(sounds), 3) if sounds else None,
        "n_sentences": n_sentences,
        "n_sentences_without_partial": n_sentences - len(partials),
        "n_sentences_without_final": n_sentences - len(finals),
        "n_sounds": n_sounds,
        "n_sounds_not_recognised": n_sounds - len(sounds),
        "mean_lag_s": round(statistics.mean(lag for t in told for lag in t.lags_s), 3),
        "warnings": {code: warnings.count(code) for code in sorted(set(warnings))},
        "memory_growth_mb": round(float(np.median(thirds[2]) - np.median(thirds[1])), 2) if thirds else None,
        "load_before_after": [round(value, 1) for value in load],
    }
    return figures, detail


def write(figures: dict[str, Any], detail: dict[str, Any]) -> None:
    """Keep them, a file for each number of streams and bulk clients."""
    bulk = f"_beside_{figures['n_bulk_clients']}_bulk_clients" if figures["n_bulk_clients"] else ""
    write_result(f"streaming_{figures['n_streams']}{bulk}", figures, detail)


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder that holds ljspeech and esc50.")] = Path("../shared/data"),
    streams: Annotated[int, typer.Option(min=1, help="At once.")] = 8,
    seconds: Annotated[float, typer.Option(min=20, help="Of each stream.")] = 120.0,
    bulk: Annotated[int, typer.Option(min=0, help="Clients that send files beside them, without a pause.")] = 0,
    url: Annotated[str | None, typer.Option(help="Of a service; one of our own if left out.")] = None,
    keep: Annotated[bool, typer.Option("--write/--no-write", help="Write benchmarks/results/.")] = True,
) -> None:
    """Measure live streams."""
    if url is not None:
        httpx.get(f"{url}/readyz", timeout=10).raise_for_status()
        figures, detail = measure(url, data, n_streams=streams, duration_s=seconds, n_bulk=bulk, cluster=None)
    else:
        with running_cluster() as cluster:
            figures, detail = measure(
                cluster.url, data, n_streams=streams, duration_s=seconds, n_bulk=bulk, cluster=cluster
            )
    _console.print(as_table("Live streams", {**figures, **detail}))
    if keep:
        write(figures, detail)
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
