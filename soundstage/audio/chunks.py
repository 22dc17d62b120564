"""A stream cut into chunks at silences, each with the regions in which somebody speaks."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from soundstage.audio.recent import Recent
from soundstage.audio.voice_activity import (
    FRAME_LENGTH,
    FRAME_S,
    SpeechTracker,
    VoiceActivity,
    n_frames_in,
    speech_spans,
)
from soundstage.params import ChunkParams, VoiceActivityParams
from soundstage.types import SAMPLE_RATE, Chunk, Region, Waveform

_PAUSE_FRAMES = 9
"""About 0.3 s: a pause between words rather than the closure of a plosive."""


def quietest_frame(probs: NDArray[np.float32], samples: NDArray[np.float32]) -> int:
    """The frame at which a cut harms least: where the voice is least certain and quietest, the middle of a pause.

    Args:
        probs: float32 (n_frames,), at least one.
        samples: float32 (n_frames * FRAME_LENGTH,).
    """
    frames = samples.reshape(-1, FRAME_LENGTH)
    rms = np.sqrt(np.mean(np.square(frames), axis=1, dtype=np.float64))
    cost = probs + rms / max(float(rms.max()), 1e-9)
    n_side = _PAUSE_FRAMES // 2
    smooth = np.convolve(np.pad(cost, n_side, mode="edge"), np.ones(_PAUSE_FRAMES), mode="valid")
    return int(np.argmin(smooth))


class Chunker:
    """Cuts one stream; the same stream in other pieces gives the same chunks.

    A chunk ends in the first stretch of non-speech once it has min_duration_s; where none comes, it is cut at
    max_duration_s at the latest, where the voice is least certain and quietest in the last third before that, as soon
    as context_s of what follows is there.

    Args:
        params: How long chunks are.
        voice_activity: When somebody speaks.
        audio: Where somebody else keeps the stream, from keeps_from on; None for a chunker that keeps it by itself.

    Raises:
        ValueError: A chunk would have to be longer than it may.
    """

    def __init__(self, params: ChunkParams, voice_activity: VoiceActivityParams, audio: Recent | None = None) -> None:
        self._params = params
        self._padding = n_frames_in(voice_activity.padding_s)
        self._min_frames = n_frames_in(params.min_duration_s)
        self._max_frames = int(params.max_duration_s / FRAME_S)
        if self._min_frames >= self._max_frames:
            raise ValueError(f"min_duration_s must be below max_duration_s, got {params}")
        # Ahead of the chunk, and now.
        self._before = SpeechTracker(voice_activity)
        self._tracker = SpeechTracker(voice_activity)
        self._n_context = round(params.context_s * SAMPLE_RATE)
        self._most_frames = self._max_frames + math.ceil(self._n_context / FRAME_LENGTH)  # until a cut is certain
        n_kept = self._n_context + (self._most_frames + 1) * FRAME_LENGTH
        self._audio = Recent(n_kept + SAMPLE_RATE) if audio is None else audio
        self._probs = np.empty(self._most_frames + SAMPLE_RATE // FRAME_LENGTH + 2, np.float32)
        self._n_probs = 0
        self._n_tracked = 0
        self._start = 0  # of the chunk in the stream, in samples
        self._index = 0

    @cached_property
    def _voice_activity(self) -> VoiceActivity:
        """Only where nobody else listens: it takes megabytes, and each live stream has a chunker."""
        return VoiceActivity()

    def push(self, samples: NDArray[np.float32]) -> list[Chunk]:
        """Take in more of the stream.

        Args:
            samples: float32 (n_samples,), 16 kHz, of any number. Copied.

        Returns:
            The chunks that ended, in order; none of them is the last.
        """
        chunks: list[Chunk] = []
        for start in range(0, len(samples), SAMPLE_RATE):
            piece = samples[start : start + SAMPLE_RATE]
            self._audio.append(piece)
            chunks.extend(self.hear(self._voice_activity.push(piece)))
            self._audio.forget(self.keeps_from)
        return chunks

    def hear(self, probs: NDArray[np.float32]) -> list[Chunk]:
        """Take in more of a stream that somebody else keeps and listens to, from the start on.

        Args:
            probs: What VoiceActivity.push gave for at most a second, which is kept already.

        Returns:
            As push does.
        """
        self._append_probs(probs)
        return self._ended_chunks()

    @property
    def keeps_from(self) -> int:
        """The first sample of the stream that is needed yet."""
        return max(0, self._start - self._n_context)

    def finish(self) -> list[Chunk]:
        """End the stream.

        Returns:
            The last chunk. It is empty only where the stream was.
        """
        return self.finish_heard(self._voice_activity.finish())

    def finish_heard(self, probs: NDArray[np.float32]) -> list[Chunk]:
        """End a stream of hear, with what VoiceActivity.finish gave."""
        self._append_probs(probs)
        chunks = self._ended_chunks()
        while self._n_probs >= self._max_frames:
            chunks += [self._take(self._forced_cut(), is_last=False), *self._ended_chunks()]
        return [*chunks, self._take(self._n_probs, is_last=True)]

    def _append_probs(self, probs: NDArray[np.float32]) -> None:
        self._probs[self._n_probs : self._n_probs + len(probs)] = probs
        self._n_probs += len(probs)

    def _ended_chunks(self) -> list[Chunk]:
        chunks = []
        while self._n_tracked < self._n_probs:
            self._tracker.step(float(self._probs[self._n_tracked]))
            self._n_tracked += 1
            cut = self._cut()
            if cut is not None:
                chunks.append(self._take(cut, is_last=False))
        return chunks

    def _cut(self) -> int | None:
        """The frame before which the chunk ends, as far as the tracked frames tell."""
        quiet_cut = self._n_tracked - self._padding
        # Room for the padding of speech on either side.
        is_quiet = not self._tracker.in_speech and self._tracker.n_quiet >= 2 * self._padding
        if is_quiet and self._min_frames <= quiet_cut < self._max_frames:
            return quiet_cut
        return self._forced_cut() if self._n_tracked >= self._most_frames else None

    def _forced_cut(self) -> int:
        """The frame before which the chunk ends where no pause comes; one more is there, so that no chunk is empty."""
        return self._quietest(2 * self._max_frames // 3, self._max_frames - 1)

    def _quietest(self, first: int, last: int) -> int:
        """The frame from first up to last at which a cut harms least: the middle of a pause."""
        samples = self._audio.between(self._start + first * FRAME_LENGTH, self._start + last * FRAME_LENGTH)
        return first + quietest_frame(self._probs[first:last], samples)

    def _take(self, n_frames: int, *, is_last: bool) -> Chunk:
        """End the chunk before the frame and begin the next one there."""
        n_samples = self._audio.end - self._start if is_last else n_frames * FRAME_LENGTH
        end = self._start + n_samples
        # As far as tracked, whatever came: the pieces of a stream decide nothing.
        end_heard = min(end + self._n_context, max(end, self._start + self._n_tracked * FRAME_LENGTH))
        first = self.keeps_from
        heard = Waveform(samples=self._audio.between(first, end_heard), start_s=first / SAMPLE_RATE)
        own = heard.samples[self._start - first : end - first]
        waveform = Waveform(samples=own, start_s=self._start / SAMPLE_RATE)
        probs = self._probs[:n_frames]
        regions = [
            Region(
                start_s=(self._start + first * FRAME_LENGTH) / SAMPLE_RATE,
                end_s=min((self._start + last * FRAME_LENGTH) / SAMPLE_RATE, waveform.end_s),
            )
            for span in speech_spans(probs, self._before, goes_on=not is_last)
            for first, last in self._split(*span)
        ]
        chunk = Chunk(waveform=waveform, heard=heard, speech=tuple(regions), index=self._index, is_last=is_last)
        for prob in probs.tolist():
            self._before.step(prob)
        self._probs[: self._n_probs - n_frames] = self._probs[n_frames : self._n_probs].copy()
        self._n_probs -= n_frames
        self._start += n_samples
        self._index += 1
        self._tracker, self._n_tracked = self._before.copy(), 0
        return chunk

    def _split(self, first: int, last: int) -> list[tuple[int, int]]:
        """Parts of a span, none longer than max_region_s."""
        longest = int(self._params.max_region_s / FRAME_S)
        parts = []
        while last - first > longest:
            cut = self._quietest(first + longest // 2, min(first + longest, last - longest // 4))
            parts.append((first, cut))
            first = cut
        return [*parts, (first, last)]
