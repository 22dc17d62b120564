"""Chunks put together: whose thresholds make events of scores, also where the model is exchanged on the way."""

from __future__ import annotations

import numpy as np
import pytest

from deployments.settings import PreprocessConfig
from soundstage.params import EventParams
from soundstage.pipeline import ChunkAssembler
from soundstage.types import SAMPLE_RATE, Chunk, FrameScores, SoundEvent, Waveform

CHUNK_S = 3.2
N_STEPS = 10

STRICT, LENIENT = EventParams(on_score=0.8, off_score=0.7), EventParams(on_score=0.2, off_score=0.1)


def chunk(index: int, n_chunks: int) -> Chunk:
    waveform = Waveform(samples=np.zeros(round(CHUNK_S * SAMPLE_RATE), np.float32), start_s=index * CHUNK_S)
    return Chunk(waveform=waveform, heard=waveform, speech=(), index=index, is_last=index == n_chunks - 1)


def scores(index: int, score: float) -> FrameScores:
    hop_s = CHUNK_S / N_STEPS
    return FrameScores(
        scores=np.full((N_STEPS, 1), score, np.float32),
        labels=("dog",),
        start_s=index * CHUNK_S + hop_s / 2,
        hop_s=hop_s,
        window_s=hop_s,
        tags=np.full(1, score, np.float32),
    )


def events(assembler: ChunkAssembler, heard: list[tuple[float, EventParams]]) -> list[SoundEvent]:
    """Of one chunk for each score and the parameters of the model that gave it."""
    return [
        event
        for i, (score, model_events) in enumerate(heard)
        for event in assembler.push(chunk(i, len(heard)), None, scores(i, score), model_events).events
    ]


def test_the_model_says_how_its_scores_become_events() -> None:
    assert events(ChunkAssembler(), [(0.5, STRICT)] * 2) == []
    assert len(events(ChunkAssembler(), [(0.5, LENIENT)] * 2)) == 1


def test_the_service_leaves_that_to_the_model_unless_it_is_told_otherwise() -> None:
    assert len(events(ChunkAssembler(PreprocessConfig().events), [(0.5, LENIENT)])) == 1
    told = PreprocessConfig.model_validate({"events": {"on_score": 0.8, "off_score": 0.7}})
    assert events(ChunkAssembler(told.events), [(0.5, LENIENT)]) == []


def test_what_sounds_while_the_model_is_exchanged_goes_on() -> None:
    (event,) = events(ChunkAssembler(), [(0.9, STRICT), (0.5, LENIENT)])
    assert (event.start_s, event.end_s) == pytest.approx((0, 2 * CHUNK_S))
    (event,) = events(ChunkAssembler(), [(0.9, LENIENT), (0.5, STRICT)])
    assert event.end_s == pytest.approx(CHUNK_S, abs=0.32)


def test_without_sounds_there_are_no_events() -> None:
    part = ChunkAssembler().push(chunk(0, 1), None, None)
    assert (part.events, part.tags) == ((), ())
