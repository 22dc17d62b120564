"""A stream tells the same for good, however its audio comes and whenever its jobs are answered."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from soundstage.audio import chunks as chunks_module
from soundstage.live import session as session_module
from soundstage.live.events import Final, LiveEvent, Sound, StreamOptions
from soundstage.live.session import LiveSession
from soundstage.params import LiveParams, SpanParams
from soundstage.pipeline import AnalysisCollector, ChunkAssembler, ReadingParams, Task, without_faint
from soundstage.types import SAMPLE_RATE, ClipSummary, SoundEvent, Waveform
from tests.unit.live_streams import (
    EVENTS,
    LevelAsVoice,
    block,
    captions,
    confirmed,
    finals,
    follow,
    partials,
    plan,
    readings,
    scored,
    sounds,
    written,
)


@pytest.fixture(autouse=True)
def exact_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "VoiceActivity", LevelAsVoice)
    monkeypatch.setattr(chunks_module, "VoiceActivity", LevelAsVoice)


def for_good(events: list[LiveEvent]) -> tuple[list[Final], list[tuple[str, float, float, float | None]]]:
    told = [(event.label, event.score, event.start_s, event.end_s) for event in confirmed(events)]
    return finals(events), told


def of_the_file(samples: NDArray[np.float32]) -> list[SoundEvent]:
    """The sound events of the same samples as a file."""
    reading = ReadingParams()
    chunker = chunks_module.Chunker(reading.chunks, reading.voice_activity)
    assembler, collector = ChunkAssembler(), AnalysisCollector()
    for chunk in [*chunker.push(samples), *chunker.finish()]:
        part = assembler.push(chunk, None, scored(chunk.waveform), EVENTS)
        collector.push(without_faint(part, StreamOptions().min_score))
    return list(collector.finish(ClipSummary(duration_s=1), request_id="").events)


RUNS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0, 0.03, -0.3, 0.3, 0.5, -0.5]), st.floats(0.05, 12)), min_size=1, max_size=12
)
SIZES = st.one_of(
    st.sampled_from([[509], [44_100], [1_000_000]]),
    st.lists(st.integers(100, 30_000), min_size=1, max_size=8),
)


@settings(max_examples=40, deadline=None)
@given(runs=RUNS, sizes=SIZES, seed=st.integers(0, 1000), has_context=st.booleans(), has_partials=st.booleans())
def test_finals_and_confirmed_sounds_depend_on_the_audio_alone(
    runs: list[tuple[float, float]], sizes: list[int], seed: int, has_context: bool, has_partials: bool
) -> None:
    samples = plan(*runs)
    params = LiveParams(context=SpanParams(max_pause_s=1.0 if has_context else 0.0))
    expected = for_good(follow(LiveSession(StreamOptions(), params), samples, [10_000_000]))
    session = LiveSession(StreamOptions(partials=has_partials), params)
    events = follow(session, samples, sizes, np.random.default_rng(seed))
    assert for_good(events) == expected
    check(events)
    confirmed = sorted((start_s, end_s or 0, label, score) for label, score, start_s, end_s in expected[1])
    assert confirmed == [(e.start_s, e.end_s, e.label, e.score) for e in of_the_file(samples)]
    assert session.n_finals == len(expected[0])
    assert session.n_sounds == len(expected[1])


def check(events: list[LiveEvent]) -> None:
    """What every stream promises."""
    told = finals(events)
    assert [final.utterance for final in told] == sorted({final.utterance for final in told})
    for before, after in pairwise(told):
        assert before.segment.end_s <= after.segment.start_s + 1e-6
    words = Counter(word.text for final in told for word in final.segment.words)
    assert not words or max(words.values()) == 1
    shown: dict[int, str] = {}
    ended: set[int] = set()
    for event in events:
        if isinstance(event, Final):
            ended.add(event.utterance)
    for partial in partials(events):
        if partial.committed or partial.tentative:
            assert partial.committed.startswith(shown.get(partial.utterance, ""))
        else:
            assert partial.utterance not in ended
        shown[partial.utterance] = partial.committed
    states: dict[int, list[str]] = {}
    for sound in sounds(events):
        states.setdefault(sound.sound, []).append(sound.state)
    assert sorted(states) == list(range(len(states)))
    for own in states.values():
        assert own in (
            ["confirmed"],
            *([*first, last] for first in (["started"], ["started", "ended"]) for last in ("confirmed", "withdrawn")),
        )
    shows = [caption.caption for caption in captions(events)]
    for one, other in pairwise(shows):
        assert one.end_s <= other.start_s + 1e-6


@pytest.mark.parametrize("n_piece", [17, 509, 44_100])
def test_pieces_of_any_size_give_the_same_levels(n_piece: int) -> None:
    samples = plan((0.0, 0.7), (0.1, 1.1), (0.4, 1.6), (0.0, 0.2))
    options = StreamOptions(tasks=frozenset({Task.LEVELS}))
    whole, pieces = LiveSession(options), LiveSession(options)
    expected = readings(follow(whole, samples, [10_000_000]))
    assert readings(follow(pieces, samples, [n_piece])) == expected
    assert [(reading.start_s, reading.end_s) for reading in expected] == [(0, 1), (1, 2), (2, 3)]
    assert pieces.levels == whole.levels
    assert whole.levels is not None
    assert whole.duration_s == pytest.approx(len(samples) / SAMPLE_RATE)


def test_an_empty_stream_and_silence_tell_nothing() -> None:
    nothing = LiveSession(StreamOptions())
    assert follow(nothing, np.zeros(0, np.float32), [100]) == []
    assert nothing.levels is None
    session = LiveSession(StreamOptions())
    events = follow(session, plan((0.0, 40)), [1600])
    assert len(readings(events)) == 40
    assert len(events) == 40
    assert all(r.momentary_lufs is None and r.sample_peak_dbfs is None for r in readings(events))


def test_only_what_was_asked_for_is_told() -> None:
    samples = plan((0.5, 3), (0.0, 2))
    for task, kind in ((Task.SPEECH, Final), (Task.SOUNDS, Sound)):
        session = LiveSession(StreamOptions(tasks=frozenset({task}), captions=False, partials=False))
        events = follow(session, samples, [1600])
        assert events
        assert all(isinstance(event, kind) for event in events)


def test_lag_is_how_long_a_final_has_been_waited_for() -> None:
    session = LiveSession(StreamOptions(tasks=frozenset({Task.SPEECH})))
    session.push(block(plan((0.5, 2), (0.0, 1))))
    jobs = [job for job in session.jobs() if job.is_final]
    assert session.lag_s == pytest.approx(0.8, abs=0.06)
    session.push(block(plan((0.0, 2))))
    assert session.lag_s == pytest.approx(2.8, abs=0.06)
    for job in jobs:
        session.answer(job, written(job.waveform))
    assert session.lag_s == 0
    assert not session.is_done
    session.finish()
    assert session.is_done


def test_a_final_job_cannot_be_dropped() -> None:
    session = LiveSession(StreamOptions(tasks=frozenset({Task.SPEECH}), partials=False))
    session.push(block(plan((0.5, 2), (0.0, 1))))
    (job,) = session.jobs()
    with pytest.raises(ValueError, match="final"):
        session.drop(job)


def test_a_job_hears_what_was_pushed() -> None:
    rng = np.random.default_rng(0)
    samples = (plan((0.0, 1), (0.5, 3), (0.0, 1)) * rng.uniform(0.9, 1, 5 * SAMPLE_RATE)).astype(np.float32)
    session = LiveSession(StreamOptions(tasks=frozenset({Task.SPEECH}), partials=False))
    for start in range(0, len(samples), 700):
        session.push(block(samples[start : start + 700]))
    (job,) = session.jobs()
    whole = Waveform(samples=samples).between(job.waveform.start_s, job.waveform.end_s)
    assert np.abs(whole.samples - job.waveform.samples).max() < 1e-6
