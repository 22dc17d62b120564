"""One live stream: audio in, jobs for the models out, answers in, events out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from soundstage.audio.recent import MARGIN_S, Recent
from soundstage.audio.resample import Resampler
from soundstage.audio.voice_activity import VoiceActivity
from soundstage.live.captions import LiveCaptions
from soundstage.live.events import Answer, Final, Job, LiveEvent, StreamOptions, TranscribeJob
from soundstage.live.levels import ReadingLevelMeter
from soundstage.params import CaptionParams, EventParams, LiveParams, SdhParams
from soundstage.pipeline import ReadingParams, Task
from soundstage.sound.streaming import SoundStream
from soundstage.speech.streaming import SpeechStream, kept_s
from soundstage.types import SAMPLE_RATE, AudioBlock, FrameScores, Levels, Segment


class LiveSession:
    """The state of one stream. Knows nothing of networks and models, and is not thread-safe.

    Finals and confirmed sounds depend on the audio alone, not on the sizes of its pieces, nor on when and in which
    order jobs are answered, nor on whether hypotheses are. Confirmed sounds are those of the same audio as a file.
    Memory does not grow with the stream.

    Args:
        options: What the client wants to know.
        params: How the stream is followed.
        reading: How a file is cut and its levels are measured; the same as for files, so that the same comes out.
        events: How scores become events, whatever the model says; None for what each model was given.
        sdh: Which sounds captions tell of.
        captions: What a reader can follow.
    """

    def __init__(
        self,
        options: StreamOptions,
        params: LiveParams | None = None,
        *,
        reading: ReadingParams | None = None,
        events: EventParams | None = None,
        sdh: SdhParams | None = None,
        captions: CaptionParams | None = None,
    ) -> None:
        params, reading = params or LiveParams(), reading or ReadingParams()
        next_number = count().__next__
        chunk_s = reading.chunks.max_duration_s + 2 * reading.chunks.context_s
        longest_s = max(kept_s(params), chunk_s, params.look_s)
        self._audio = audio = Recent(round((longest_s + MARGIN_S) * SAMPLE_RATE))
        self._resampler = Resampler()
        is_heard = options.tasks & {Task.SPEECH, Task.SOUNDS}
        self._voice_activity = VoiceActivity() if is_heard else None
        self._meter = ReadingLevelMeter(reading.levels) if Task.LEVELS in options.tasks else None
        self._speech = SpeechStream(options, params, next_number, audio=audio) if Task.SPEECH in options.tasks else None
        self._sounds = (
            SoundStream(options, params, reading, events, next_number, audio=audio)
            if Task.SOUNDS in options.tasks
            else None
        )
        self._captions = LiveCaptions(captions or CaptionParams(), sdh or SdhParams()) if options.captions else None
        self._n_source_samples = 0
        self._source_rate = SAMPLE_RATE
        self._is_finished = False
        self._levels: Levels | None = None
        self.n_finals = 0
        self.n_words = 0

    def push(self, block: AudioBlock) -> list[LiveEvent]:
        """Take in more of the stream, of any length.

        Raises:
            SampleRateMismatch: The block has another rate or other channels than the first.
        """
        assert not self._is_finished, "the stream has ended"
        if not len(block.samples):
            return []
        events: list[LiveEvent] = []
        samples = self._resampler.push(block)
        if self._meter is not None:
            events += self._meter.read(block)
        self._n_source_samples += len(block.samples)
        self._source_rate = block.sample_rate
        return self._captioned([*events, *self._listen(samples)])

    def jobs(self) -> list[Job]:
        """What the models are to be asked now, finals first; each job is handed out once."""
        jobs: list[Job] = []
        if self._speech is not None:
            jobs += self._speech.jobs()
        if self._sounds is not None:
            jobs += self._sounds.jobs()
        return sorted(jobs, key=lambda job: not job.is_final)

    def answer(self, job: Job, answer: Answer, *, model_events: EventParams | None = None) -> list[LiveEvent]:
        """Take in what a model answered to a job; jobs may be answered in any order.

        Args:
            job: As handed out.
            answer: Of a TranscribeJob what was said, or None for nothing; of a ListenJob its scores.
            model_events: How the scores of the model that gave them become events.
        """
        if isinstance(job, TranscribeJob):
            assert self._speech is not None
            assert answer is None or isinstance(answer, Segment)
            return self._captioned(self._speech.answer(job, answer))
        assert self._sounds is not None
        assert answer is None or isinstance(answer, FrameScores)
        return self._captioned(self._sounds.answer(job, answer, model_events))

    def drop(self, job: Job) -> None:
        """A job that is not final will not be answered.

        Raises:
            ValueError: It is final.
        """
        if job.is_final:
            raise ValueError("a final job must be answered")
        if isinstance(job, TranscribeJob):
            assert self._speech is not None
            self._speech.drop(job)
        else:
            assert self._sounds is not None
            self._sounds.drop(job)

    def flush(self) -> list[LiveEvent]:
        """End the utterance here, wherever it is."""
        return self._captioned(self._speech.flush() if self._speech is not None else [])

    def finish(self) -> list[LiveEvent]:
        """The audio has ended; jobs() then gives the last ones."""
        assert not self._is_finished, "the stream has ended"
        events = self._listen(self._resampler.finish())
        rest = self._voice_activity.finish() if self._voice_activity is not None else np.empty(0, np.float32)
        if self._speech is not None:
            events += self._speech.hear(rest)
            events += self._speech.flush()
        if self._sounds is not None:
            self._sounds.finish(rest)
        if self._meter is not None and self._n_source_samples:
            self._levels = self._meter.result()
        # Who comes back for the last events may keep the session for a while.
        self._voice_activity = self._meter = None
        self._audio.close()
        self._is_finished = True
        return self._captioned(events)

    @property
    def is_done(self) -> bool:
        """The audio has ended, and every final job was handed out and answered."""
        return self._is_finished and not any(stream.n_asked for stream in self._streams)

    @property
    def duration_s(self) -> float:
        """Of the audio so far."""
        return self._n_source_samples / self._source_rate

    @property
    def n_sounds(self) -> int:
        """Sounds that are confirmed."""
        return self._sounds.n_confirmed if self._sounds is not None else 0

    @property
    def levels(self) -> Levels | None:
        """Of the whole stream; None until it is finished, and where levels were not asked for."""
        return self._levels

    @property
    def lag_s(self) -> float:
        """How far answers are behind: audio since the end of the first utterance or chunk that waits for one."""
        since_s = [stream.waits_since_s for stream in self._streams if stream.waits_since_s is not None]
        return max(0.0, self._audio.end / SAMPLE_RATE - min(since_s)) if since_s else 0.0

    @property
    def _streams(self) -> list[SpeechStream | SoundStream]:
        """What was asked for."""
        return [stream for stream in (self._speech, self._sounds) if stream is not None]

    def _listen(self, samples: NDArray[np.float32]) -> list[LiveEvent]:
        """Follow 16 kHz mono on."""
        events: list[LiveEvent] = []
        if self._voice_activity is None:
            return events
        for start in range(0, len(samples), SAMPLE_RATE):
            piece = samples[start : start + SAMPLE_RATE]
            probs = self._voice_activity.push(piece)
            self._audio.append(piece)
            if self._speech is not None:
                events += self._speech.hear(probs)
            if self._sounds is not None:
                self._sounds.hear(probs)
            self._audio.forget(min(stream.keeps_from for stream in self._streams))
        return events

    def _captioned(self, events: Sequence[LiveEvent]) -> list[LiveEvent]:
        """The events, each followed by the captions that it makes ready, and counted."""
        if self._captions is not None and self._sounds is not None:
            self._captions.hear(self._sounds.unsettled)
        told: list[LiveEvent] = []
        for event in events:
            told.append(event)
            if isinstance(event, Final):
                self.n_finals += 1
                self.n_words += len(event.segment.text.split())
                if self._captions is not None:
                    told += self._captions.say(event.segment)
        # While somebody speaks, sounds wait for the words that they are to stand beside.
        if self._captions is not None and not (self._speech is not None and self._speech.is_speaking):
            told += self._captions.ready()
        return told
