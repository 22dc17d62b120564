"""What is heard in a stream: at once as far as the newest seconds tell, and for good once their context is known.

The state of one stream, which knows neither models nor networks. Final jobs are the chunks that a file would be cut
into, and what they say for good are the events of that file. Early sounds come from looks at the newest seconds, each
turned into events by the same rules; a look is asked for when the one before is answered.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from soundstage.audio.chunks import Chunker
from soundstage.audio.recent import Recent
from soundstage.live.events import ListenJob, Sound, StreamOptions
from soundstage.params import EventParams, LabelEventParams, LiveParams
from soundstage.pipeline import ChunkAssembler, ReadingParams, without_faint
from soundstage.sound.events import EventTracker
from soundstage.types import SAMPLE_RATE, Chunk, FrameScores, SoundEvent, Waveform

_SILENCE = "silence"
"""Is no sound that starts; a file tells of it, so it may be confirmed."""


@dataclass(slots=True)
class _Early:
    """A sound that was told of and is not settled.

    Attributes:
        event: As the newest look that heard it has it.
        has_ended: That was told.
    """

    sound: int
    event: SoundEvent
    has_ended: bool = False


@dataclass(slots=True)
class _Asked:
    """A chunk whose scores were asked for."""

    chunk: Chunk
    scores: FrameScores | None = None
    model_events: EventParams | None = None


class SoundStream:
    """What is heard in one stream.

    Args:
        options: What the client wants to know.
        params: How a stream is followed.
        reading: How a file is cut.
        events: How scores become events, whatever the model says; None for what each model was given.
        next_number: Numbers jobs.
        audio: The stream at 16 kHz, kept by somebody else from keeps_from on.
    """

    def __init__(
        self,
        options: StreamOptions,
        params: LiveParams,
        reading: ReadingParams,
        events: EventParams | None,
        next_number: Callable[[], int],
        *,
        audio: Recent,
    ) -> None:
        self._options = options
        self._params = params
        self._events = events
        self._next_number = next_number
        self._audio = audio
        self._chunker = Chunker(reading.chunks, reading.voice_activity, audio)
        self._assembler = ChunkAssembler(events)
        self._new_jobs: list[ListenJob] = []
        self._asked: dict[int, _Asked] = {}
        self._waiting: deque[_Asked] = deque()
        self._look: int | None = None  # number of the job in flight
        self._looked_end = 0
        self._answer_s = 0.0  # of the stream, that the newest look took
        self._is_speech = False  # in the newest piece
        self._early: list[_Early] = []
        self._settled_s: dict[str, float] = {}  # until when each label is confirmed
        self._known_s = 0.0  # until when chunks tell what sounds, so that looks need not
        self._n_sounds = 0
        self._is_finished = False
        self.n_confirmed = 0

    def hear(self, probs: NDArray[np.float32]) -> None:
        """Take in more of the stream.

        Args:
            probs: What VoiceActivity.push gave for at most a second, which is kept already.
        """
        if len(probs):
            self._is_speech = float(probs[-1]) >= self._params.voice_activity.threshold
        self._ask(self._chunker.hear(probs))

    @property
    def keeps_from(self) -> int:
        """The first sample of the stream that is needed yet."""
        return min(self._chunker.keeps_from, max(0, self._audio.end - round(self._params.look_s * SAMPLE_RATE)))

    def finish(self, probs: NDArray[np.float32]) -> None:
        """The stream has ended, with what VoiceActivity.finish gave."""
        self._ask(self._chunker.finish_heard(probs))
        self._is_finished = True

    def jobs(self) -> list[ListenJob]:
        """What is to be listened to now, finals first."""
        jobs, self._new_jobs = self._new_jobs, []
        look = self._next_look()
        return [*jobs, look] if look else jobs

    def answer(self, job: ListenJob, scores: FrameScores | None, model_events: EventParams | None) -> list[Sound]:
        """Take in the scores of a job; of a look that was dropped there are none."""
        asked = self._asked.pop(job.number, None)
        if asked is None:
            return self._looked(job, scores, model_events)
        assert scores is not None, "the scores of a chunk are never dropped"
        asked.scores, asked.model_events = scores, model_events
        told: list[Sound] = []
        while self._waiting and self._waiting[0].scores is not None:
            told += self._confirm(self._waiting.popleft())
        return told

    def drop(self, job: ListenJob) -> None:
        """A look will not be answered; the next one may be asked for."""
        if self._look == job.number:
            self._look, self._answer_s = None, self._audio.end / SAMPLE_RATE - job.waveform.end_s

    @property
    def n_asked(self) -> int:
        """Chunks that were asked for and not answered."""
        return len(self._asked)

    @property
    def waits_since_s(self) -> float | None:
        """When the first chunk ended whose scores are not there; None where all are."""
        return self._waiting[0].chunk.waveform.end_s if self._waiting else None

    @property
    def unsettled(self) -> list[tuple[int, SoundEvent]]:
        """Number and event of each sound that is not settled, as the newest looks have it."""
        return [(early.sound, early.event) for early in self._early]

    def _ask(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            asked = _Asked(chunk)
            self._waiting.append(asked)
            job = ListenJob(number=self._next_number(), is_final=True, waveform=chunk.waveform)
            self._asked[job.number] = asked
            self._new_jobs.append(job)

    def _next_look(self) -> ListenJob | None:
        end = self._audio.end
        params = self._params
        interval_s = params.speech_look_interval_s if self._is_speech else params.look_interval_s
        interval_s = max(interval_s, min(params.patience * self._answer_s, params.look_s))
        is_due = end - self._looked_end >= round(interval_s * SAMPLE_RATE)
        if self._look is not None or self._is_finished or not is_due:
            return None
        first = max(0, end - round(self._params.look_s * SAMPLE_RATE))
        waveform = Waveform(samples=self._audio.between(first, end), start_s=first / SAMPLE_RATE)
        job = ListenJob(number=self._next_number(), is_final=False, waveform=waveform)
        self._look, self._looked_end = job.number, end
        return job

    def _looked(self, job: ListenJob, scores: FrameScores | None, model_events: EventParams | None) -> list[Sound]:
        """What a look says of the sounds that are heard now."""
        if self._look != job.number:
            return []
        self._look, self._answer_s = None, self._audio.end / SAMPLE_RATE - job.waveform.end_s
        if scores is None:
            return []
        params = _eager(self._events or model_events or self._assembler.tracker.params, self._params.early_score_share)
        now_s = job.waveform.end_s
        heard = [
            replace(event, start_s=min(event.start_s, now_s), end_s=min(event.end_s, now_s))
            for event in EventTracker(params).push(scores, is_last=True)
            if event.score >= self._options.min_score and event.label != _SILENCE
        ]
        told: list[Sound] = []
        for early in self._early:
            own = [event for event in heard if _is_same(event, early.event, params.of(event.label).max_gap_s)]
            heard = [event for event in heard if event not in own]
            told += self._go_on(early, own, now_s)
        for event in heard:
            settled_s = self._settled_s.get(event.label, 0.0)
            if event.end_s > max(settled_s, self._known_s, now_s - self._params.max_news_s):
                told += self._begin(replace(event, start_s=max(event.start_s, settled_s)), now_s)
        return told

    def _begin(self, event: SoundEvent, now_s: float) -> list[Sound]:
        early = _Early(self._n_sounds, event)
        self._n_sounds += 1
        self._early.append(early)
        return [_told(early.sound, "started", event, ends=False), *self._go_on(early, [event], now_s)]

    def _go_on(self, early: _Early, own: list[SoundEvent], now_s: float) -> list[Sound]:
        """Take in what the newest look says of a sound that was told of; nothing where it is heard no more."""
        if own:
            score, end_s = max(event.score for event in own), max(event.end_s for event in own)
            score, end_s = max(score, early.event.score), max(end_s, early.event.start_s)
            early.event = replace(early.event, score=score, end_s=end_s)
        # The newest step knows nothing of what follows it, and may miss what goes on.
        if early.has_ended or early.event.end_s > now_s - self._params.sound_hangover_s:
            return []
        early.has_ended = True
        return [_told(early.sound, "ended", early.event)]

    def _confirm(self, asked: _Asked) -> list[Sound]:
        """The next chunk's scores are there: tell what ended for certain, and take back what it knows nothing of."""
        chunk, told = asked.chunk, list[Sound]()
        part = self._assembler.push(chunk, None, asked.scores, asked.model_events)
        for event in without_faint(part, self._options.min_score).events:
            own = [early for early in self._early if _is_same(event, early.event, self._params.same_sound_s)]
            self._early = [early for early in self._early if early not in own]
            if not own:
                own = [_Early(self._n_sounds, event)]
                self._n_sounds += 1
            told.append(_told(own[0].sound, "confirmed", event))
            # The same sound may have been told of twice.
            told += [_told(early.sound, "withdrawn", early.event) for early in own[1:]]
            self._settled_s[event.label] = event.end_s
            self.n_confirmed += 1
        held = self._assembler.tracker.held_labels
        self._known_s = math.inf if chunk.is_last else chunk.waveform.end_s - self._params.same_sound_s
        gone = [
            early
            for early in self._early
            if chunk.is_last
            or (early.has_ended and early.event.end_s < self._known_s and early.event.label not in held)
        ]
        self._early = [early for early in self._early if early not in gone]
        return told + [_told(early.sound, "withdrawn", early.event) for early in gone]


def _eager(params: EventParams, share: float) -> EventParams:
    """The same with lower thresholds for what starts."""

    def own(params: LabelEventParams) -> dict[str, float]:
        on_score = share * params.on_score
        return {"on_score": on_score, "off_score": min(params.off_score, on_score)}

    by_label = {label: of_label.model_copy(update=own(of_label)) for label, of_label in params.by_label.items()}
    return params.model_copy(update={**own(params), "by_label": by_label})


def _is_same(one: SoundEvent, other: SoundEvent, max_gap_s: float) -> bool:
    """Whether two events may be one sound."""
    gap_s = max(one.start_s, other.start_s) - min(one.end_s, other.end_s)
    return one.label == other.label and gap_s <= max_gap_s


def _told(
    sound: int, state: Literal["started", "ended", "confirmed", "withdrawn"], event: SoundEvent, *, ends: bool = True
) -> Sound:
    return Sound(
        sound=sound,
        state=state,
        label=event.label,
        score=event.score,
        start_s=event.start_s,
        end_s=event.end_s if ends else None,
    )
