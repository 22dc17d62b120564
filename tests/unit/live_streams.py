"""Streams whose voice is planned, and models that are cheap and answer by the audio alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from soundstage.audio.recent import Recent
from soundstage.audio.voice_activity import FRAME_LENGTH, FRAME_S
from soundstage.live.events import (
    Final,
    Job,
    LevelReading,
    LiveCaption,
    LiveEvent,
    Partial,
    Sound,
    StreamOptions,
    TranscribeJob,
)
from soundstage.live.session import LiveSession
from soundstage.params import EventParams, LiveParams, SpanParams
from soundstage.pipeline import Task
from soundstage.speech.streaming import SpeechStream
from soundstage.types import SAMPLE_RATE, AudioBlock, FrameScores, Segment, Waveform, Word

LABELS = ("dog", "siren")
EVENTS = EventParams(on_score=0.5, off_score=0.25, response_s=0.16, max_gap_s=0.4)
SPEECH_ONLY = StreamOptions(tasks=frozenset({Task.SPEECH}), captions=False)
NO_CONTEXT = SpanParams(max_pause_s=0, max_duration_s=0.1)
WORD_S = 0.3


def written(waveform: Waveform) -> Segment | None:
    """A word for every 0.3 s of the stream whose middle is heard here, whoever hears it; silence is no word."""
    words = []
    for i in range(int(waveform.start_s / WORD_S), int(waveform.end_s / WORD_S) + 1):
        start_s, end_s = i * WORD_S, (i + 1) * WORD_S
        middle = waveform.between((start_s + end_s) / 2 - 0.01, (start_s + end_s) / 2 + 0.01)
        if len(middle.samples) > 300 and np.abs(middle.samples).mean() > 0.05:
            words.append(
                Word(
                    text=f"w{i}",
                    start_s=max(start_s, waveform.start_s),
                    end_s=min(end_s, waveform.end_s),
                    confidence=1,
                )
            )
    if not words:
        return None
    return Segment(
        start_s=waveform.start_s, end_s=waveform.end_s, text=" ".join(w.text for w in words), words=tuple(words)
    )


def scored(waveform: Waveform) -> FrameScores:
    """Scores by what the samples are: dogs are positive, sirens negative; steps of 0.32 s."""
    n_step = round(0.32 * SAMPLE_RATE)
    padded = np.pad(waveform.samples, (0, -len(waveform.samples) % n_step)).reshape(-1, n_step)
    means = padded.mean(axis=1) * 4
    scores = np.clip(np.stack([means, -means], axis=1), 0, 1).astype(np.float32)
    return FrameScores(
        scores=scores,
        labels=LABELS,
        start_s=waveform.start_s + 0.16,
        hop_s=0.32,
        window_s=0.32,
        tags=scores.max(axis=0, initial=0),
    )


def answer_of(job: Job) -> Segment | FrameScores | None:
    return written(job.waveform) if isinstance(job, TranscribeJob) else scored(job.waveform)


def block(samples: NDArray[np.float32]) -> AudioBlock:
    return AudioBlock(samples=samples[:, None].copy(), sample_rate=SAMPLE_RATE)


def cut(samples: NDArray[np.float32], sizes: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Pieces of these sizes, again and again."""
    at = 0
    for i in count():
        if at >= len(samples):
            return
        yield samples[at : at + sizes[i % len(sizes)]]
        at += sizes[i % len(sizes)]


def follow(
    session: LiveSession, samples: NDArray[np.float32], sizes: Sequence[int], rng: np.random.Generator | None = None
) -> list[LiveEvent]:
    """All events of a stream that comes in pieces.

    Args:
        session: Fresh.
        samples: 16 kHz mono.
        sizes: Of the pieces, in turn.
        rng: Jobs wait for some pieces and are answered in an order drawn by it, and every fourth that is not final is
            dropped; all at once and in order without it.
    """
    events: list[LiveEvent] = []
    open_jobs: list[Job] = []

    def settle(*, all_of_them: bool) -> None:
        open_jobs.extend(session.jobs())
        if rng is not None:
            rng.shuffle(open_jobs)
        for job in list(open_jobs):
            if rng is not None and not all_of_them and rng.random() < 0.7:
                continue
            open_jobs.remove(job)
            if rng is not None and not job.is_final and rng.random() < 0.25:
                session.drop(job)
            else:
                events.extend(session.answer(job, answer_of(job), model_events=EVENTS))

    for piece in cut(samples, sizes):
        events.extend(session.push(block(piece)))
        settle(all_of_them=False)
    events.extend(session.finish())
    while not session.is_done:
        settle(all_of_them=True)
    return events


def finals(events: Sequence[LiveEvent]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


def partials(events: Sequence[LiveEvent]) -> list[Partial]:
    return [event for event in events if isinstance(event, Partial)]


def sounds(events: Sequence[LiveEvent]) -> list[Sound]:
    return [event for event in events if isinstance(event, Sound)]


def confirmed(events: Sequence[LiveEvent]) -> list[Sound]:
    return [event for event in sounds(events) if event.state == "confirmed"]


def readings(events: Sequence[LiveEvent]) -> list[LevelReading]:
    return [event for event in events if isinstance(event, LevelReading)]


def assert_same_sounds(
    heard: Iterable[tuple[Any, ...]], expected: Iterable[tuple[Any, ...]], *, max_difference: float
) -> None:
    """The same sounds, whatever bfloat16 rounding makes of their last decimals.

    Args:
        heard, expected: Of each sound its label, start and whatever other numbers; in any order.
        max_difference: Of a number.
    """
    heard, expected = (sorted(each, key=lambda sound: (sound[1], sound[0])) for each in (heard, expected))
    assert [label for label, *_ in heard] == [label for label, *_ in expected]
    for one, other in zip(heard, expected, strict=True):
        assert one[1:] == pytest.approx(other[1:], abs=max_difference, rel=0)


def captions(events: Sequence[LiveEvent]) -> list[LiveCaption]:
    return [event for event in events if isinstance(event, LiveCaption)]


class LevelAsVoice:
    """Stands in for the detector where the plan of the speech must be exact: the louder, the surer."""

    def __init__(self) -> None:
        self._rest = np.empty(0, np.float32)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        samples = np.concatenate([self._rest, samples])
        n_frames = len(samples) // FRAME_LENGTH
        self._rest = samples[n_frames * FRAME_LENGTH :]
        frames = np.abs(samples[: n_frames * FRAME_LENGTH]).reshape(n_frames, FRAME_LENGTH)
        probs: NDArray[np.float32] = np.minimum(frames.mean(axis=1) * 4, 1).astype(np.float32)
        return probs

    def finish(self) -> NDArray[np.float32]:
        return self.push(np.zeros(-len(self._rest) % FRAME_LENGTH, np.float32))


def plan(*runs: tuple[float, float]) -> NDArray[np.float32]:
    """Stretches of (level, seconds); below zero the samples are."""
    return np.concatenate([np.full(round(duration_s * SAMPLE_RATE), level, np.float32) for level, duration_s in runs])


class Speech:
    """A SpeechStream that is pushed frame by frame, whose jobs are answered when the test says so."""

    def __init__(self, params: LiveParams | None = None, options: StreamOptions = SPEECH_ONLY) -> None:
        self.audio = Recent(35 * SAMPLE_RATE)
        self.stream = SpeechStream(options, params or LiveParams(), count().__next__, audio=self.audio)
        self.jobs: list[TranscribeJob] = []
        self.events: list[LiveEvent] = []

    def say(self, duration_s: float, prob: float = 1.0) -> Speech:
        """So much voice, or silence where prob is 0; new jobs are noted, not answered."""
        for _ in range(round(duration_s / FRAME_S)):
            self.audio.append(np.full(FRAME_LENGTH, prob / 2, np.float32))
            self.events += self.stream.hear(np.array([prob], np.float32))
            self.audio.forget(self.stream.keeps_from)
            self.jobs += self.stream.jobs()
        return self

    def answer(self, job: TranscribeJob, segment: Segment | None) -> None:
        self.events += self.stream.answer(job, segment)

    def answer_all(self) -> None:
        while self.jobs:
            job = self.jobs.pop(0)
            self.answer(job, written(job.waveform))

    @property
    def final_jobs(self) -> list[TranscribeJob]:
        return [job for job in self.jobs if job.is_final]
