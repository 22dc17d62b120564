"""Chunks are the stream, cut where nobody speaks; how the stream arrives does not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from soundstage.audio import chunks as chunks_module
from soundstage.audio.chunks import Chunker
from soundstage.audio.resample import decode_mono
from soundstage.audio.voice_activity import FRAME_LENGTH
from soundstage.params import ChunkParams, Limits, VoiceActivityParams
from soundstage.types import Chunk

VOICE_LEVEL = 0.5
VOICE_ACTIVITY = VoiceActivityParams(min_peak=0.5)


class LevelAsVoice:
    """Stands in for the detector where the plan of the speech must be exact: loud is speech."""

    def __init__(self) -> None:
        self._rest = np.empty(0, np.float32)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        samples = np.concatenate([self._rest, samples])
        n_frames = len(samples) // FRAME_LENGTH
        self._rest = samples[n_frames * FRAME_LENGTH :]
        frames = np.abs(samples[: n_frames * FRAME_LENGTH]).reshape(n_frames, FRAME_LENGTH)
        probs: NDArray[np.float32] = np.minimum(frames.mean(axis=1) / VOICE_LEVEL, 1).astype(np.float32)
        return probs

    def finish(self) -> NDArray[np.float32]:
        return self.push(np.zeros(-len(self._rest) % FRAME_LENGTH, np.float32))


@pytest.fixture
def exact_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_module, "VoiceActivity", LevelAsVoice)


def plan(*runs: tuple[float, float]) -> NDArray[np.float32]:
    """Stretches of (level, seconds)."""
    return np.concatenate([np.full(round(duration_s * 16_000), level, np.float32) for level, duration_s in runs])


def cut(samples: NDArray[np.float32], n_piece: int = 16_000, params: ChunkParams | None = None) -> list[Chunk]:
    chunker = Chunker(params or ChunkParams(), VOICE_ACTIVITY)
    chunks = [chunk for i in range(0, len(samples), n_piece) for chunk in chunker.push(samples[i : i + n_piece])]
    return chunks + chunker.finish()


def check(chunks: list[Chunk], samples: NDArray[np.float32], params: ChunkParams | None = None) -> None:
    """What holds for the chunks of every stream."""
    params = params or ChunkParams()
    assert np.array_equal(np.concatenate([chunk.waveform.samples for chunk in chunks]), samples)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    n_before = 0
    for chunk in chunks:
        assert chunk.waveform.start_s == n_before / 16_000
        first = round(chunk.heard.start_s * 16_000)
        assert first == max(0, n_before - round(params.context_s * 16_000))
        assert np.array_equal(chunk.heard.samples, samples[first : first + len(chunk.heard.samples)])
        n_before += len(chunk.waveform.samples)
        assert n_before <= first + len(chunk.heard.samples) <= n_before + round(params.context_s * 16_000)
        assert chunk.waveform.duration_s <= params.max_duration_s
        edges = [chunk.waveform.start_s]
        for region in chunk.speech:
            assert region.duration_s <= params.max_region_s + 1e-9
            assert region.duration_s > 0
            edges += [region.start_s, region.end_s]
        edges.append(chunk.waveform.end_s)
        assert edges == sorted(edges)
    for chunk in chunks[:-1]:
        assert chunk.waveform.duration_s >= params.min_duration_s - 0.05


@pytest.mark.usefixtures("exact_voice")
def test_a_clip_is_one_chunk() -> None:
    samples = plan((0, 1), (VOICE_LEVEL, 2), (0, 1.01))
    (chunk,) = cut(samples)
    check([chunk], samples)
    (region,) = chunk.speech
    assert (region.start_s, region.end_s) == pytest.approx((0.8, 3.2), abs=0.07)


@pytest.mark.usefixtures("exact_voice")
def test_an_empty_stream_is_one_empty_chunk() -> None:
    (chunk,) = cut(np.empty(0, np.float32))
    assert chunk.is_last
    assert not len(chunk.waveform.samples)
    assert not chunk.speech


@pytest.mark.usefixtures("exact_voice")
def test_a_long_chunk_ends_in_the_next_pause() -> None:
    samples = plan((VOICE_LEVEL, 12), (0, 1), (VOICE_LEVEL, 12), (0, 1), (VOICE_LEVEL, 12))
    first, second = cut(samples)
    check([first, second], samples)
    assert 25.2 < first.waveform.end_s < 25.8
    assert len(first.speech) == 2
    assert len(second.speech) == 1


@pytest.mark.usefixtures("exact_voice")
@pytest.mark.parametrize("before_s", [26.0, 29.5])
def test_speech_without_a_pause_is_cut_where_it_is_quietest(before_s: float) -> None:
    samples = plan((VOICE_LEVEL, before_s), (0.4 * VOICE_LEVEL, 0.4), (VOICE_LEVEL, 10))
    first, second = cut(samples)
    check([first, second], samples)
    assert before_s <= first.waveform.end_s <= before_s + 0.4
    assert first.speech[-1].end_s == first.waveform.end_s
    assert first.heard.end_s == pytest.approx(first.waveform.end_s + 1.0), "what goes on is heard"
    assert second.heard.start_s == pytest.approx(second.waveform.start_s - 1.0)
    assert second.speech[0].start_s == second.waveform.start_s
    total_s = sum(region.duration_s for chunk in (first, second) for region in chunk.speech)
    assert total_s == pytest.approx(before_s + 10.4)


@pytest.mark.usefixtures("exact_voice")
@pytest.mark.parametrize("duration_s", [29.9, 30.0, 30.5, 31.0, 31.1])
def test_a_stream_may_end_while_a_cut_waits_for_what_follows(duration_s: float) -> None:
    samples = plan((VOICE_LEVEL, duration_s))
    chunks = cut(samples)
    check(chunks, samples)
    assert len(chunks) == (1 if duration_s < 30 else 2)
    assert len(chunks[-1].waveform.samples) > 0


@pytest.mark.usefixtures("exact_voice")
def test_long_speech_is_split_where_it_is_quietest() -> None:
    samples = plan((VOICE_LEVEL, 11), (0.4 * VOICE_LEVEL, 0.4), (VOICE_LEVEL, 8))
    (chunk,) = cut(samples)
    check([chunk], samples)
    first, second = chunk.speech
    assert 11.0 <= first.end_s <= 11.4
    assert second.start_s == first.end_s


@pytest.mark.usefixtures("exact_voice")
def test_silence_is_cut_too_and_holds_no_speech() -> None:
    samples = np.zeros(65 * 16_000, np.float32)
    chunks = cut(samples)
    check(chunks, samples)
    assert len(chunks) == 4
    assert not any(chunk.speech for chunk in chunks)


@pytest.mark.usefixtures("exact_voice")
@settings(max_examples=40, deadline=None)
@example(runs=[(0.0, 20.0), (0.8, 4.59375), (0.4, 8.609375), (0.8, 16.6875), (0.0, 1.0)], n_piece=509)
@given(
    runs=st.lists(st.tuples(st.sampled_from([0.0, 0.0, 0.4, 0.8, 1.0]), st.floats(0.05, 9)), min_size=1, max_size=30),
    n_piece=st.sampled_from([509, 5_000, 44_100, 10_000_000]),
)
def test_every_stream_is_its_chunks_and_all_its_speech(runs: list[tuple[float, float]], n_piece: int) -> None:
    samples = plan(*((level * VOICE_LEVEL, duration_s) for level, duration_s in runs))
    chunks = cut(samples, n_piece)
    check(chunks, samples)
    covered = np.zeros(len(samples), bool)
    for chunk in chunks:
        for region in chunk.speech:
            covered[round(region.start_s * 16_000) : round(region.end_s * 16_000)] = True
    start = 0
    for level, duration_s in runs:
        end = start + round(duration_s * 16_000)
        if level >= 0.8 and duration_s > 0.4:
            # A cut may fall on the frame in which speech begins or ends, where the detector hears too little of it to
            # tell; a decoder hears that frame as context.
            first, last = -(-start // FRAME_LENGTH), end // FRAME_LENGTH
            assert covered[first * FRAME_LENGTH : last * FRAME_LENGTH].all()
        start = end


@pytest.mark.usefixtures("exact_voice")
@pytest.mark.parametrize("n_piece", [17, 509, 44_100])
def test_pieces_of_any_size_give_the_same_chunks(n_piece: int) -> None:
    rng = np.random.default_rng(3)
    samples = plan(*((rng.choice([0, 0.3, 0.5]), rng.uniform(0.1, 4)) for _ in range(50)))
    whole, pieces = cut(samples, len(samples)), cut(samples, n_piece)
    assert len(whole) > 2
    for expected, chunk in zip(whole, pieces, strict=True):
        assert np.array_equal(chunk.waveform.samples, expected.waveform.samples)
        assert np.array_equal(chunk.heard.samples, expected.heard.samples)
        assert (chunk.speech, chunk.index, chunk.is_last) == (expected.speech, expected.index, expected.is_last)


def test_chunks_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="min_duration_s"):
        Chunker(ChunkParams(min_duration_s=30.0), VOICE_ACTIVITY)


@pytest.mark.shared_data
def test_sentences_read_one_after_another_keep_all_their_speech(shared_data: Path) -> None:
    rng = np.random.default_rng(0)
    parts, sentences, n_samples = [], [], 0
    for path in sorted((shared_data / "ljspeech/audio").glob("*.flac"))[:8]:
        pause = (rng.standard_normal(round(rng.uniform(0.8, 2.0) * 16_000)) * 1e-3).astype(np.float32)
        sentence = decode_mono(path, Limits()).samples
        sentences.append(((n_samples + len(pause)) / 16_000, (n_samples + len(pause) + len(sentence)) / 16_000))
        parts += [pause, sentence]
        n_samples += len(pause) + len(sentence)
    samples = np.concatenate(parts)
    chunks = cut(samples, 44_100)
    check(chunks, samples)
    regions = [region for chunk in chunks for region in chunk.speech]
    for start_s, end_s in sentences:
        heard_s = sum(max(0.0, min(end_s, r.end_s) - max(start_s, r.start_s)) for r in regions)
        assert heard_s > 0.9 * (end_s - start_s)
        assert not any(start_s + 0.3 < chunk.waveform.end_s < end_s - 0.3 for chunk in chunks)
