"""Live and offline give the same sound events, by the model that comes with the package."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from soundstage.audio.chunks import Chunker
from soundstage.audio.resample import Resampler
from soundstage.models.registry import find
from soundstage.params import ChunkParams, VoiceActivityParams
from soundstage.pipeline import SOUND_MODEL, AnalysisOptions, ChunkAssembler, Pipeline, Task
from soundstage.sample import SAMPLE_RATE_HZ, rain
from soundstage.sound.listener import SoundListener
from soundstage.types import AudioBlock, EncodedAudio, SoundEvent

RATE = 16_000
DURATION_S = 47


@pytest.fixture(scope="module")
def listener() -> SoundListener:
    return SoundListener(find(SOUND_MODEL))


@pytest.fixture(scope="module")
def samples() -> NDArray[np.float32]:
    """Beeps, and rain across the place where the stream is cut, on a faint floor; in steps of 16 bits."""
    rng = np.random.default_rng(0)
    t = np.arange(DURATION_S * RATE) / RATE
    mixed = rng.standard_normal(len(t)) * 1e-3
    for start_s in (3.1, 11.7, 30.2, 41.3):
        on = (t > start_s) & (t < start_s + 2.2) & (t % 0.5 < 0.25)
        mixed[on] += 0.3 * np.sin(2 * np.pi * 2000 * t[on])
    mixed[17 * RATE : 27 * RATE] += 0.3 * soxr.resample(rain(10, rng), SAMPLE_RATE_HZ, RATE)
    return (np.round(mixed.clip(-0.99, 0.99) * 32768) / 32768).astype(np.float32)


def live(samples: NDArray[np.float32], n_piece: int, listener: SoundListener) -> list[SoundEvent]:
    """The events of a stream that arrives in pieces of so many samples."""
    resampler, chunker = Resampler(), Chunker(ChunkParams(), VoiceActivityParams())
    assembler, events, n_chunks = ChunkAssembler(listener.params.events), list[SoundEvent](), 0
    for start in range(0, len(samples) + n_piece, n_piece):
        piece = samples[start : start + n_piece, np.newaxis].copy()
        chunks = list(
            chunker.push(resampler.push(AudioBlock(samples=piece, sample_rate=RATE)) if len(piece) else piece[:, 0])
        )
        if start >= len(samples):
            chunks += [*chunker.push(resampler.finish()), *chunker.finish()]
        for chunk in chunks:
            n_chunks += 1
            events += assembler.push(chunk, None, listener.listen([chunk.waveform])[0]).events
    assert n_chunks > 1
    return sorted(events, key=lambda event: (event.start_s, event.end_s, event.label))


@pytest.mark.parametrize("n_piece", [17, 509, 44_100])
def test_a_stream_in_pieces_gives_the_events_of_the_whole_clip(
    n_piece: int, samples: NDArray[np.float32], listener: SoundListener
) -> None:
    whole = EncodedAudio(
        data=(samples * 32768).astype("<i2").tobytes(),
        media_type="audio/l16",
        sample_rate=RATE,
        n_channels=1,
        encoding="s16le",
    )
    offline = Pipeline(None, listener).analyze(whole, AnalysisOptions(tasks=frozenset({Task.SOUNDS}))).events
    assert len(offline) > 1
    assert live(samples, n_piece, listener) == list(offline)


def test_an_event_ends_with_the_clip_at_the_latest(samples: NDArray[np.float32], listener: SoundListener) -> None:
    in_the_rain = (samples[: 25 * RATE + 77] * 32768).astype("<i2").tobytes()
    clip = EncodedAudio(data=in_the_rain, media_type="audio/l16", sample_rate=RATE, n_channels=1, encoding="s16le")
    analysis = Pipeline(None, listener).analyze(clip, AnalysisOptions(tasks=frozenset({Task.SOUNDS})))
    assert max(event.end_s for event in analysis.events) == analysis.duration_s
