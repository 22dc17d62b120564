"""What is said in a stream, while it is being said: utterances, hypotheses about them, and what was said for good.

The state of one stream, which knows neither models nor networks: it is given audio and hands out jobs, it is given
answers and tells events. Which jobs are final and what audio they hold depends on the audio alone: neither the sizes
of the pieces that it comes in nor when hypotheses are answered, or whether, changes a final.

An utterance begins with a voice and ends with a pause, in frames of 32 ms. Its audio is known as soon as its padding
was heard, so its final is asked for then, and told once the pause is long enough to end it. If the voice goes on
before, the answer serves as a hypothesis.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from soundstage.audio.chunks import quietest_frame
from soundstage.audio.recent import MARGIN_S, Recent
from soundstage.audio.voice_activity import FRAME_LENGTH, FRAME_S, SpeechTracker, n_frames_in
from soundstage.live.events import Final, LiveEvent, Partial, StreamOptions, TranscribeJob
from soundstage.params import LiveParams
from soundstage.speech.profanity import masked
from soundstage.speech.spans import Span, middle_s, parted, timed
from soundstage.types import Region, Segment, Waveform, Word

_N_OVERLAP_WORDS = 3
"""Committed words that a hypothesis may repeat where its word times are a little off."""


@dataclass(slots=True)
class Draft:
    """What is known of an utterance before its final.

    Words on which two successive hypotheses agree are committed, but for the last ones, which may be cut off.

    Attributes:
        n_tentative: How many those are.
        committed: For good.
        tentative: What the newest hypothesis says after them.

    Source: LocalAgreement-2 of Liu, Spanakis and Niehues, "Low-Latency Sequence-to-Sequence Speech Recognition and
    Translation by Partial Hypothesis Selection" (Interspeech 2020).
    """

    n_tentative: int
    committed: list[Word] = field(default_factory=list)
    tentative: list[Word] = field(default_factory=list)

    def hear(self, words: Sequence[Word]) -> None:
        """Take in the newest hypothesis; it may begin anywhere before the last committed word ends."""
        news = self._after_committed(words)
        agreed = takewhile(
            lambda pair: bare(pair[0].text) == bare(pair[1].text), zip(news, self.tentative, strict=False)
        )
        n_agreed = min(len(list(agreed)), max(0, len(news) - self.n_tentative))
        self.committed += news[:n_agreed]
        self.tentative = news[n_agreed:]

    def commit_before(self, time_s: float) -> None:
        """Commit what lies before a time, since no hypothesis will hear it again."""
        n_gone = sum(middle_s(word) < time_s for word in self.tentative)
        self.committed += self.tentative[:n_gone]
        self.tentative = self.tentative[n_gone:]

    def parted(self, time_s: float) -> Draft:
        """Take what lies after a time out of this draft, into one of its own."""
        n_committed = sum(middle_s(word) < time_s for word in self.committed)
        after = Draft(self.n_tentative, self.committed[n_committed:], self.tentative)
        self.committed, self.tentative = self.committed[:n_committed], []
        return after

    def _after_committed(self, words: Sequence[Word]) -> list[Word]:
        if not self.committed:
            return list(words)
        known_s = self.committed[-1].end_s
        news = [word for word in words if middle_s(word) > known_s]
        for n in range(min(_N_OVERLAP_WORDS, len(news), len(self.committed)), 0, -1):
            if [bare(word.text) for word in news[:n]] == [bare(word.text) for word in self.committed[-n:]]:
                return news[n:]
        return news


def bare(text: str) -> str:
    """A word without case and punctuation, by which hypotheses are compared."""
    return "".join(filter(str.isalnum, text)).casefold()


def _from(start_s: float, segment: Segment) -> Segment:
    """The segment without what it reaches into the one before."""
    if segment.start_s >= start_s:
        return segment
    words = tuple(
        replace(word, start_s=max(word.start_s, start_s), end_s=max(word.end_s, start_s)) for word in segment.words
    )
    return replace(segment, start_s=start_s, words=words)


def _text_of(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


@dataclass(slots=True)
class _Asked:
    """A final that was asked for.

    Attributes:
        utterance: Its number.
        span: What is heard: the context, and the utterance as the last region.
        is_ended: The utterance ended here; else the voice went on.
    """

    utterance: int
    span: Span
    is_ended: bool = False
    is_answered: bool = False
    segment: Segment | None = None

    @property
    def own(self) -> Segment | None:
        """What was said in the utterance itself; None for nothing."""
        if self.segment is None or len(self.span) == 1:
            return self.segment
        before, region = self.span[-2:]
        own = parted(timed(self.segment), self.span)[-1]
        if middle_s(own.words[-1]) <= (before.end_s + region.start_s) / 2:
            return None
        return _from(before.end_s, own)


@dataclass(slots=True)
class _Utterance:
    """What is being said; frames count from the start of the stream.

    Attributes:
        first: Its first frame, padding included.
        voice: The first frame of voice.
        end: The frame after the last of voice.
        is_certain: It is long and sure enough to be speech, or goes on from one that is.
        number: In the stream; -1 until it is certain.
        asked: Its final, where that was asked for and the voice did not go on since.
        draft: What is known of it.
        heard_end: The frame up to which the newest hypothesis hears.
        heard_first: Where the next one begins to hear.
        newest: The words of the newest hypothesis, and before them those of older ones where it does not hear all.
        told: The last partial: committed and tentative.
    """

    first: int
    voice: int
    end: int
    draft: Draft
    heard_first: int
    is_certain: bool = False
    number: int = -1
    peak: float = 0.0
    asked: _Asked | None = None
    heard_end: int = 0
    newest: tuple[Word, ...] = ()
    told: tuple[str, str] = ("", "")


class SpeechStream:
    """What is said in one stream.

    Args:
        options: What the client wants to know.
        params: How a stream is followed.
        next_number: Numbers jobs.
        audio: The stream at 16 kHz, kept by somebody else from keeps_from on.

    Attributes:
        keeps_from: The first sample of the stream that is needed yet.
    """

    def __init__(
        self, options: StreamOptions, params: LiveParams, next_number: Callable[[], int], *, audio: Recent
    ) -> None:
        self._options = options
        self._params = params
        self._next_number = next_number
        activity = params.voice_activity
        self._n_padding = n_frames_in(activity.padding_s)
        self._n_tail = n_frames_in(params.tail_s)
        self._n_min_speech = n_frames_in(activity.min_speech_s)
        self._n_long = int(params.long_utterance_s / FRAME_S)
        self._n_longest = int(params.max_utterance_s / FRAME_S)
        self._tracker = SpeechTracker(activity)
        self._audio = audio
        self.keeps_from = 0
        self._probs = Recent(n_frames_in(kept_s(params) + MARGIN_S))
        self._utterance: _Utterance | None = None
        self._n_utterances = 0
        self._context: list[tuple[int, int]] = []  # frames of the utterances of the span, in order
        self._newest: tuple[Word, ...] = ()  # of the newest final, its context included
        self._free = 0  # the first frame that belongs to no utterance
        self._new_jobs: list[TranscribeJob] = []
        self._asked: dict[int, _Asked] = {}
        self._waiting: deque[tuple[_Asked, tuple[str, str]]] = deque()  # ended utterances, with their last partial
        self._hypothesis: tuple[int, _Utterance] | None = None  # number of the job in flight, and what it hears
        self._answer_s = 0.0  # of the stream, that the newest hypothesis took

    def hear(self, probs: NDArray[np.float32]) -> list[LiveEvent]:
        """Take in more of the stream.

        Args:
            probs: What VoiceActivity.push gave for at most a second, which is kept already.
        """
        for prob in probs.tolist():
            self._probs.append(np.array([prob], np.float32))
            self._step(prob)
        self._forget()
        return self._told()

    def jobs(self) -> list[TranscribeJob]:
        """What is to be written down now, finals first."""
        jobs, self._new_jobs = self._new_jobs, []
        hypothesis = self._next_hypothesis()
        return [*jobs, hypothesis] if hypothesis else jobs

    def answer(self, job: TranscribeJob, segment: Segment | None) -> list[LiveEvent]:
        """Take in what was written for a job; None for nothing."""
        if segment is not None and self._options.profanity == "mask":
            segment = masked(segment)
        asked = self._asked.pop(job.number, None)
        if asked is None:
            return self._heard(job, segment)
        asked.is_answered, asked.segment = True, segment
        self._newest = timed(segment).words if segment is not None else ()
        utterance, own = self._utterance, asked.own
        is_current = utterance is not None and utterance.number == asked.utterance and not asked.is_ended
        # An older one than the newest hypothesis has nothing to say that is not known better.
        if is_current and utterance is not None and _frame_of(asked.span[-1].end_s) >= utterance.heard_end:
            return [*self._told(), *self._drafted(utterance, own, asked.span[-1].end_s)]
        return self._told()

    def drop(self, job: TranscribeJob) -> None:
        """A hypothesis will not be answered; the next one may be asked for."""
        if self._hypothesis is not None and self._hypothesis[0] == job.number:
            self._hypothesis = None
            self._answer_s = self._probs.end * FRAME_S - job.waveform.end_s

    def flush(self) -> list[LiveEvent]:
        """End the utterance here."""
        utterance = self._utterance
        # What is not certain yet may be the beginning of a word.
        if utterance is not None and utterance.is_certain:
            self._end(utterance)
            self._tracker = SpeechTracker(self._params.voice_activity)
            # Words at the cut would be heard twice.
            self._context = []
        return self._told()

    @property
    def n_asked(self) -> int:
        """Finals that were asked for and not answered."""
        return len(self._asked)

    @property
    def waits_since_s(self) -> float | None:
        """When the first utterance ended whose final is not told; None where all are."""
        return self._waiting[0][0].span[-1].end_s if self._waiting else None

    @property
    def is_speaking(self) -> bool:
        """An utterance is under way, or its final awaited."""
        return bool(self._waiting) or (self._utterance is not None and self._utterance.is_certain)

    def _step(self, prob: float) -> None:
        """Take in the next frame."""
        n, tracker, utterance = self._probs.end, self._tracker, self._utterance
        tracker.step(prob)
        if tracker.n_quiet == 0:
            if utterance is None:
                utterance = self._begin(n - 1)
            utterance.end, utterance.peak, utterance.asked = n, max(utterance.peak, prob), None
            self._judge(utterance)
            self._bound_context(n + self._n_tail)
            if n - utterance.first > self._n_longest:
                self._cut(utterance)
        elif utterance is not None:
            if tracker.n_quiet == self._n_tail and utterance.is_certain:
                self._ask(utterance, n)
            is_long = n - utterance.first >= self._n_long
            if not tracker.in_speech or (is_long and tracker.n_quiet >= self._n_tail):
                self._end(utterance)

    def _begin(self, voice: int) -> _Utterance:
        first = max(self._free, voice - self._n_padding)
        if self._context and (first - self._context[-1][1]) * FRAME_S > self._params.context.max_pause_s:
            self._context = []
        self._utterance = _Utterance(first, voice, voice, Draft(self._params.n_tentative_words), first)
        return self._utterance

    def _bound_context(self, end: int) -> None:
        """Leave out what lies too far back for a final that ends before a frame."""
        while self._context and (end - self._context[0][0]) * FRAME_S > self._params.context.max_duration_s:
            del self._context[0]

    def _judge(self, utterance: _Utterance) -> None:
        """Give the utterance its number as soon as it is certain that it is one."""
        is_long = utterance.end - utterance.voice >= self._n_min_speech
        if utterance.number < 0 and (
            utterance.is_certain or (is_long and utterance.peak >= self._params.voice_activity.min_peak)
        ):
            utterance.is_certain, utterance.number = True, self._n_utterances
            self._n_utterances += 1

    def _ask(self, utterance: _Utterance, end: int) -> None:
        """Ask for the final of the utterance as if it ended before a frame."""
        span = tuple(_region(*frames) for frames in (*self._context, (utterance.first, end)))
        first = self._context[0][0] if self._context else utterance.first
        job = self._job(first, end, is_final=True, utterance=utterance)
        utterance.asked = _Asked(utterance.number, span)
        utterance.heard_end = max(utterance.heard_end, end)
        self._asked[job.number] = utterance.asked
        self._new_jobs.append(job)

    def _end(self, utterance: _Utterance, end: int | None = None) -> None:
        """The utterance is over; with its tail, as far as that is heard, unless told otherwise."""
        end = min(utterance.end + self._n_tail, self._probs.end) if end is None else end
        if utterance.is_certain:
            if utterance.asked is None:
                self._ask(utterance, end)
            assert utterance.asked is not None
            utterance.asked.is_ended = True
            self._waiting.append((utterance.asked, utterance.told))
            self._context.append((utterance.first, end))
            self._free = end
        self._utterance = None

    def _cut(self, utterance: _Utterance) -> None:
        """End an utterance that is too long, and begin the next one at the same frame."""
        first = utterance.first + self._n_longest // 2
        last = utterance.first + self._n_longest
        samples = self._audio.between(first * FRAME_LENGTH, last * FRAME_LENGTH)
        cut = first + quietest_frame(self._probs.between(first, last), samples)
        utterance.asked = None
        draft = utterance.draft.parted(cut * FRAME_S)
        self._end(utterance, cut)
        # Words at the cut would be heard twice in its context, and might be told twice or not at all.
        self._context = []
        self._utterance = rest = _Utterance(cut, cut, self._probs.end, draft, cut, is_certain=True)
        rest.heard_end, rest.newest = utterance.heard_end, utterance.newest
        self._judge(rest)

    def _next_hypothesis(self) -> TranscribeJob | None:
        utterance, params = self._utterance, self._params
        if not self._options.partials or utterance is None or not utterance.is_certain or utterance.asked is not None:
            return None
        if self._hypothesis is not None and self._hypothesis[1] is utterance:
            return None
        now = self._probs.end
        # Until there is something to show, it is asked for more often.
        interval_s = params.first_interval_s
        if any(utterance.told):
            interval_s = max(
                params.hypothesis_interval_s, min(params.patience * self._answer_s, params.max_hypothesis_s)
            )
        due = max(
            utterance.voice + n_frames_in(params.first_hypothesis_s),
            utterance.heard_end + n_frames_in(interval_s) if utterance.heard_end else 0,
        )
        if now < due:
            return None
        first = self._hypothesis_first(utterance, now)
        job = self._job(first, now, is_final=False, utterance=utterance)
        utterance.heard_end = now
        self._hypothesis = job.number, utterance
        return job

    def _job(self, first: int, end: int, *, is_final: bool, utterance: _Utterance) -> TranscribeJob:
        """The job to write down what is between two frames; what is known of it already need not be written anew."""
        begins_s, says_s = first * FRAME_S, utterance.first * FRAME_S
        before = [word for word in self._newest if begins_s <= middle_s(word) < says_s]
        own = [word for word in utterance.newest if middle_s(word) >= max(begins_s, says_s)]
        return TranscribeJob(
            number=self._next_number(),
            is_final=is_final,
            waveform=self._waveform(first, end),
            hints=self._options.hints,
            draft=_text_of([*before, *own]),
        )

    def _hypothesis_first(self, utterance: _Utterance, now: int) -> int:
        """Where the hypothesis begins to hear: its cost must not grow with the utterance."""
        longest = n_frames_in(self._params.max_hypothesis_s)
        if now - utterance.heard_first > longest:
            committed = utterance.draft.committed
            # The last committed words are heard again, as context and so that the first new one is whole.
            wanted = _frame_of(committed[-2].start_s) if len(committed) > 1 else 0
            utterance.heard_first = max(utterance.heard_first, min(wanted, now - longest // 4), now - longest)
            utterance.draft.commit_before(utterance.heard_first * FRAME_S)
        return utterance.heard_first

    def _heard(self, job: TranscribeJob, segment: Segment | None) -> list[LiveEvent]:
        """What a hypothesis says; nothing where its utterance is over."""
        if self._hypothesis is None or self._hypothesis[0] != job.number:
            return []
        utterance = self._hypothesis[1]
        self._hypothesis = None
        self._answer_s = self._probs.end * FRAME_S - job.waveform.end_s
        if utterance is not self._utterance:
            return []
        return self._drafted(utterance, segment, job.waveform.end_s)

    def _drafted(self, utterance: _Utterance, segment: Segment | None, end_s: float) -> list[LiveEvent]:
        if segment is None:
            return []
        words = timed(segment).words
        heard_s = segment.start_s
        utterance.newest = (*(word for word in utterance.newest if middle_s(word) < heard_s), *words)
        if not self._options.partials:
            return []
        utterance.draft.hear(words)
        told = _text_of(utterance.draft.committed), _text_of(utterance.draft.tentative)
        if told == utterance.told:
            return []
        utterance.told = told
        return [
            Partial(
                utterance=utterance.number,
                start_s=utterance.first * FRAME_S,
                end_s=end_s,
                committed=told[0],
                tentative=told[1],
            )
        ]

    def _told(self) -> list[LiveEvent]:
        """The finals that are due, in order."""
        events: list[LiveEvent] = []
        while self._waiting and self._waiting[0][0].is_answered:
            asked, told = self._waiting.popleft()
            own, region = asked.own, asked.span[-1]
            if own is not None:
                events.append(Final(utterance=asked.utterance, segment=own))
            elif any(told):
                events.append(
                    Partial(
                        utterance=asked.utterance,
                        start_s=region.start_s,
                        end_s=region.end_s,
                        committed="",
                        tentative="",
                    )
                )
        return events

    def _forget(self) -> None:
        """Let go of audio that no job will hear."""
        now, utterance = self._probs.end, self._utterance
        if utterance is None and self._context:
            first = max(self._free, now - self._n_padding)
            if (first - self._context[-1][1]) * FRAME_S > self._params.context.max_pause_s:
                self._context = []
        kept = now - self._n_padding if utterance is None else utterance.first
        if self._context:
            kept = min(kept, self._context[0][0])
        self._probs.forget(kept)
        self.keeps_from = max(0, kept * FRAME_LENGTH)

    def _waveform(self, first: int, end: int) -> Waveform:
        samples = self._audio.between(first * FRAME_LENGTH, end * FRAME_LENGTH)
        return Waveform(samples=samples, start_s=first * FRAME_S)


def kept_s(params: LiveParams) -> float:
    """Of the stream, that is kept at most for what is being said."""
    return max(params.max_utterance_s, params.context.max_duration_s) + params.context.max_pause_s


def _region(first: int, end: int) -> Region:
    return Region(start_s=first * FRAME_S, end_s=end * FRAME_S)


def _frame_of(time_s: float) -> int:
    return round(time_s / FRAME_S)
