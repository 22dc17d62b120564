"""From frame scores to events: what starts and ends when, across chunks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from soundstage.params import EventParams
from soundstage.types import FrameScores, SoundEvent


@dataclass(frozen=True, slots=True)
class _Run:
    """Scores of one label that stay up.

    Attributes:
        start_s: Where the sound starts.
        n_frames: For how many frames they have stayed up.
        score: The highest.
        is_from_start: They have been up since the stream began.
    """

    start_s: float
    n_frames: int
    score: float
    is_from_start: bool


class EventTracker:
    """Follows each label through the chunks of one stream.

    A score rises past its threshold somewhere between two frames; the place is found on the straight line between
    them, and moved by what the window of a frame reaches beyond its middle and by how much of a sound it has to hold.
    What is kept between chunks is a few frames and one run for each label: memory does not grow with the stream.

    Args:
        params: Thresholds and durations.
    """

    def __init__(self, params: EventParams) -> None:
        self._params = params
        widest = max([params.n_median_frames, *(own.n_median_frames for own in params.by_label.values())])
        self._n_ahead = widest // 2
        self._times_s: NDArray[np.float64] = np.zeros(0)
        self._scores: NDArray[np.float32] | None = None
        self._n_done = 0
        self._running: dict[str, _Run] = {}
        self._ended: dict[str, SoundEvent] = {}

    def push(self, scores: FrameScores, *, is_last: bool) -> list[SoundEvent]:
        """Take the next chunk's scores.

        Args:
            scores: They follow those of the chunk before in stream time.
            is_last: No chunk follows.

        Returns:
            The events that have ended for certain, in order of their start. What still sounds, or may go on after
            a short gap, is held back until it is certain.
        """
        done: list[SoundEvent] = []
        times_s = scores.start_s + np.arange(len(scores.scores)) * scores.hop_s
        self._times_s = np.concatenate([self._times_s, times_s])
        self._scores = scores.scores if self._scores is None else np.concatenate([self._scores, scores.scores])
        n_known = len(self._times_s) if is_last else max(self._n_done, len(self._times_s) - self._n_ahead)
        if n_known > self._n_done:
            highest = self._scores.max(axis=0)
            for index, label in enumerate(scores.labels):
                own = self._params.of(label)
                if label in self._running or highest[index] >= own.on_score:
                    smooth = self._scores[:, index]
                    if own.n_median_frames > 1:
                        smooth = median_filter(smooth, own.n_median_frames, mode="nearest")
                    self._follow(label, smooth, n_known, scores, done)
        # neither what runs nor what may still begin can start before
        early_s = self._params.response_s - scores.window_s / 2 + self._params.min_duration_s
        limit_s = self._times_s[n_known - 1] - early_s if n_known else 0.0
        if is_last:
            for label, run in sorted(self._running.items()):
                end_s = float(self._times_s[-1]) + min(scores.hop_s, scores.window_s) / 2
                self._end(label, run, end_s, done, is_certain=run.is_from_start)
            self._running.clear()
        for label, event in list(self._ended.items()):
            running = self._running.get(label)
            earliest_s = limit_s if running is None else min(limit_s, running.start_s - self._params.min_duration_s)
            if is_last or earliest_s - event.end_s > self._params.of(label).max_gap_s:
                done.append(self._ended.pop(label))
        # the median looks back as far as ahead, and a crossing lies after the last frame that is done with
        n_gone = max(0, n_known - self._n_ahead - 1)
        self._times_s, self._scores = self._times_s[n_gone:], self._scores[n_gone:]
        self._n_done = n_known - n_gone
        return sorted(done, key=lambda event: (event.start_s, event.end_s, event.label))

    def _follow(
        self, label: str, smooth: NDArray[np.float32], n_known: int, scores: FrameScores, done: list[SoundEvent]
    ) -> None:
        """Start, prolong and end the runs of one label over the frames that are new."""
        own = self._params.of(label)
        run = self._running.pop(label, None)
        half_s = scores.window_s / 2
        for frame in range(self._n_done, n_known):
            score = float(smooth[frame])
            if run is None and score >= own.on_score:
                if frame == 0:
                    start_s = float(self._times_s[0]) - min(scores.hop_s, scores.window_s) / 2
                else:
                    start_s = self._crossing_s(smooth, frame, own.on_score) + half_s - self._params.response_s
                run = _Run(max(0.0, start_s), 1, score, is_from_start=frame == 0)
            elif run is not None and score >= own.off_score:
                run = replace(run, n_frames=run.n_frames + 1, score=max(run.score, score))
            elif run is not None:
                end_s = self._crossing_s(smooth, frame, own.off_score) - half_s + self._params.release_s
                self._end(label, run, end_s, done)
                run = None
        if run is not None:
            self._running[label] = run

    def _crossing_s(self, smooth: NDArray[np.float32], frame: int, threshold: float) -> float:
        """When the scores pass the threshold on their way to this frame from the one before."""
        before, after = float(smooth[frame - 1]), float(smooth[frame])
        before_s, after_s = float(self._times_s[frame - 1]), float(self._times_s[frame])
        return before_s + (after_s - before_s) * (threshold - before) / (after - before)

    def _end(self, label: str, run: _Run, end_s: float, done: list[SoundEvent], *, is_certain: bool = False) -> None:
        """Turn a run that is long enough, or certain, into an event; join it to the one before after a short gap."""
        own, shortest_s = self._params.of(label), self._params.min_duration_s
        if run.n_frames < own.n_min_frames and not is_certain:
            return
        start_s = run.start_s
        if end_s - start_s < shortest_s:
            start_s = max(0.0, (start_s + end_s - shortest_s) / 2)
            end_s = start_s + shortest_s
        event = SoundEvent(label=label, score=min(1.0, run.score), start_s=start_s, end_s=end_s)
        before = self._ended.pop(label, None)
        if before is not None:
            if event.start_s - before.end_s <= own.max_gap_s:
                event = replace(
                    event,
                    score=max(before.score, event.score),
                    start_s=min(before.start_s, event.start_s),
                    end_s=max(before.end_s, event.end_s),
                )
            else:
                done.append(before)
        self._ended[label] = event
