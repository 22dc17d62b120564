"""Sounds of a stream: told of early, then confirmed as the file has them, or taken back."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
from numpy.typing import NDArray

from soundstage.audio.recent import Recent
from soundstage.audio.voice_activity import FRAME_LENGTH
from soundstage.live.events import ListenJob, Sound, StreamOptions
from soundstage.params import LiveParams
from soundstage.pipeline import ReadingParams, Task
from soundstage.sound.streaming import SoundStream
from soundstage.types import SAMPLE_RATE, FrameScores, Waveform
from tests.unit.live_streams import EVENTS, plan, scored

OPTIONS = StreamOptions(tasks=frozenset({Task.SOUNDS}), captions=False, min_score=0.1)
PARAMS = LiveParams()


class Sounds(SoundStream):
    """One that keeps its audio by itself."""

    def __init__(self) -> None:
        self.audio = Recent(35 * SAMPLE_RATE)
        super().__init__(OPTIONS, PARAMS, ReadingParams(), None, count().__next__, audio=self.audio)

    def push(self, samples: NDArray[np.float32], probs: NDArray[np.float32]) -> None:
        self.audio.append(samples)
        self.hear(probs)
        self.audio.forget(self.keeps_from)


class Listening:
    """A SoundStream pushed in tenths of a second, each look answered at once, chunks at the end or when asked."""

    def __init__(self, *, hears_early: bool = True) -> None:
        self.stream = Sounds()
        self.chunks: list[ListenJob] = []
        self.looks: list[ListenJob] = []
        self.told: list[tuple[float, Sound]] = []
        self.now_s = 0.0
        self._hears_early = hears_early

    def hear(self, samples: NDArray[np.float32]) -> Listening:
        for start in range(0, len(samples), 1600):
            piece = samples[start : start + 1600]
            self.stream.push(piece, np.zeros(len(piece) // FRAME_LENGTH, np.float32))
            self.now_s += len(piece) / SAMPLE_RATE
            for job in self.stream.jobs():
                if job.is_final:
                    self.chunks.append(job)
                else:
                    self.looks.append(job)
                    self.note(job, scored(job.waveform) if self._hears_early else None)
        return self

    def finish(self) -> Listening:
        self.stream.finish(np.zeros(0, np.float32))
        self.chunks += self.stream.jobs()
        while self.chunks:
            job = self.chunks.pop(0)
            self.note(job, scored(job.waveform))
        return self

    def note(self, job: ListenJob, scores: FrameScores | None) -> None:
        self.told += [(self.now_s, sound) for sound in self.stream.answer(job, scores, EVENTS)]

    def states(self) -> list[tuple[int, str, str]]:
        return [(sound.sound, sound.state, sound.label) for _, sound in self.told]


def test_a_sound_is_told_of_when_it_starts_when_it_ends_and_for_good() -> None:
    heard = Listening().hear(plan((0.0, 3), (0.5, 2), (0.0, 4))).finish()
    assert heard.states() == [(0, "started", "dog"), (0, "ended", "dog"), (0, "confirmed", "dog")]
    (started_s, started), (ended_s, ended), (_, confirmed) = heard.told
    assert 3 < started_s < 3 + PARAMS.look_interval_s + 0.4
    assert started.end_s is None
    assert started.start_s == pytest.approx(3, abs=0.4)
    assert 5 < ended_s < 5 + PARAMS.sound_hangover_s + PARAMS.look_interval_s + 0.4
    assert ended.end_s == pytest.approx(5, abs=0.4)
    assert (confirmed.start_s, confirmed.end_s) == pytest.approx((3, 5), abs=0.4)


def test_each_sound_has_its_own_number() -> None:
    heard = Listening().hear(plan((0.0, 2), (0.5, 2), (0.0, 3), (-0.5, 2), (0.0, 3), (0.5, 2), (0.0, 2))).finish()
    confirmed = [(number, label) for number, state, label in heard.states() if state == "confirmed"]
    assert confirmed == [(0, "dog"), (1, "siren"), (2, "dog")]
    assert sum(state == "started" for _, state, _ in heard.states()) == 3


def test_what_only_a_look_heard_is_withdrawn() -> None:
    heard = Listening().hear(plan((0.0, 1)))
    heard.stream.push(np.zeros(SAMPLE_RATE // 2, np.float32), np.zeros(15, np.float32))
    (job,) = heard.stream.jobs()
    heard.now_s += 0.5
    misheard = plan((0.0, job.waveform.duration_s - 0.6), (0.5, 0.6))
    heard.note(job, scored(Waveform(samples=misheard, start_s=job.waveform.start_s)))
    assert [state for _, state, _ in heard.states()] == ["started"]
    heard.hear(plan((0.0, 5))).finish()
    assert [state for _, state, _ in heard.states()] == ["started", "ended", "withdrawn"]
    assert heard.stream.n_confirmed == 0


def test_what_no_look_heard_is_confirmed_all_the_same() -> None:
    heard = Listening(hears_early=False).hear(plan((0.0, 3), (0.5, 2), (0.0, 4))).finish()
    assert heard.states() == [(0, "confirmed", "dog")]


def test_a_look_is_asked_for_when_the_one_before_is_answered_and_hears_the_newest_seconds() -> None:
    stream = Sounds()
    asked: list[ListenJob] = []
    for _ in range(100):
        stream.push(np.zeros(1600, np.float32), np.zeros(3, np.float32))
        asked += stream.jobs()
    (first,) = asked
    stream.drop(first)
    (second,) = stream.jobs()
    assert second.waveform.end_s == pytest.approx(10)
    assert second.waveform.duration_s == pytest.approx(PARAMS.look_s)


def test_a_sound_that_goes_on_over_chunks_stays_one() -> None:
    heard = Listening().hear(plan((0.0, 15), (0.5, 30), (0.0, 30)))
    assert heard.states() == [(0, "started", "dog"), (0, "ended", "dog")]
    heard.finish()
    assert heard.states()[2:] == [(0, "confirmed", "dog")]
    assert heard.told[-1][1].end_s == pytest.approx(45, abs=0.4)


def test_what_is_nearly_sure_is_told_of_early_and_taken_back_if_that_is_all() -> None:
    told = [
        Listening().hear(plan((0.0, 3), (share * EVENTS.on_score / 4, 2), (0.0, 4))).finish().states()
        for share in (PARAMS.early_score_share + 0.1, PARAMS.early_score_share - 0.1)
    ]
    assert told == [[(0, "started", "dog"), (0, "ended", "dog"), (0, "withdrawn", "dog")], []]


def test_while_somebody_speaks_and_where_the_model_is_busy_it_is_looked_at_less_often() -> None:
    def n_looks(prob: float, answered_after_s: float) -> int:
        stream = Sounds()
        asked: list[tuple[float, ListenJob]] = []
        n_asked = 0
        for i in range(100):
            stream.push(np.zeros(1600, np.float32), np.full(3, prob, np.float32))
            while asked and i / 10 >= asked[0][0] + answered_after_s:
                _, look = asked.pop(0)
                stream.answer(look, scored(look.waveform), EVENTS)
            new = [job for job in stream.jobs() if not job.is_final]
            asked += [(i / 10, job) for job in new]
            n_asked += len(new)
        return n_asked

    assert n_looks(0.0, 0.0) == 50  # every 0.2 s
    assert n_looks(1.0, 0.0) == 14
    assert n_looks(0.0, 0.5) == 10
