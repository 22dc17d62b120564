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
        start_s: Where the sound starts by its scores.
        rise_s: Where the level rises nearby; None where it does not, or where the stream begins.
        n_frames: For how many frames they have stayed up.
        score: The highest.
        is_from_start: They have been up since the stream began.
    """

    start_s: float
    rise_s: float | None
    n_frames: int
    score: float
    is_from_start: bool


@dataclass(frozen=True, slots=True)
class _Ended:
    """An event that may go on after a short gap.

    Attributes:
        event: With the times that are told.
        end_s: Where it ends by its scores, which gaps are counted from.
    """

    event: SoundEvent
    end_s: float


class EventTracker:
    """Follows each label through the chunks of one stream.

    A score rises past its threshold somewhere between two frames; the place is found on the straight line between
    them, and moved by what the window of a frame reaches beyond its middle and by how much of a sound it has to hold.
    Where the level rises or falls nearby, the event that is told starts or ends there instead: scores say what sounds
    and whether it goes on, the level says when.

    What is kept between chunks is a few frames, one run and one event for each label: memory does not grow with the
    stream.

    Attributes:
        params: Thresholds and durations. May be exchanged between chunks, where another model goes on.
    """

    def __init__(self, params: EventParams) -> None:
        self.params = params
        self._labels: tuple[str, ...] = ()
        self._times_s: NDArray[np.float64] = np.zeros(0)
        self._rises_s: NDArray[np.float64] = np.zeros(0)
        self._falls_s: NDArray[np.float64] = np.zeros(0)
        self._scores: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._n_done = 0
        self._running: dict[str, _Run] = {}
        self._ended: dict[str, _Ended] = {}
        self._last_end_s: dict[str, float] = {}

    @property
    def held_labels(self) -> frozenset[str]:
        """Of events that still go on, or may after a short gap, and are not told yet."""
        return frozenset(self._running.keys() | self._ended.keys())

    def push(self, scores: FrameScores, *, is_last: bool) -> list[SoundEvent]:
        """Take the next chunk's scores.

        Args:
            scores: They follow those of the chunk before in stream time. Labels may differ from that chunk's: what
                is known no more ends there.
            is_last: No chunk follows.

        Returns:
            The events that have ended for certain, in order of their start. What still sounds, or may go on after
            a short gap, is held back until it is certain.
        """
        done: list[SoundEvent] = []
        widest = max([self.params.n_median_frames, *(own.n_median_frames for own in self.params.by_label.values())])
        n_ahead = widest // 2
        times_s = scores.start_s + np.arange(len(scores.scores)) * scores.hop_s
        self._times_s = np.concatenate([self._times_s, times_s])
        unknown = np.full(len(times_s), np.nan)
        rises_s, falls_s = (unknown if own is None else own for own in (scores.rises_s, scores.falls_s))
        self._rises_s = np.concatenate([self._rises_s, rises_s])
        self._falls_s = np.concatenate([self._falls_s, falls_s])
        if scores.labels != self._labels:
            self._relabel(scores.labels, done)
        self._scores = np.concatenate([self._scores, scores.scores])
        n_known = len(self._times_s) if is_last else max(self._n_done, len(self._times_s) - n_ahead)
        if n_known > self._n_done:
            highest = self._scores.max(axis=0)
            for index, label in enumerate(scores.labels):
                own = self.params.of(label)
                if label in self._running or highest[index] >= own.on_score:
                    smooth = self._scores[:, index]
                    if own.n_median_frames > 1:
                        smooth = median_filter(smooth, own.n_median_frames, mode="nearest")
                    self._follow(label, smooth, n_known, scores, done)
        # neither what runs nor what may still begin can start before
        early_s = self.params.response_s - scores.window_s / 2 + self.params.min_duration_s
        limit_s = self._times_s[n_known - 1] - early_s if n_known else 0.0
        if is_last:
            for label, run in sorted(self._running.items()):
                end_s = float(self._times_s[-1]) + min(scores.hop_s, scores.window_s) / 2
                self._end(label, run, end_s, None, done, is_certain=run.is_from_start)
            self._running.clear()
        for label, ended in list(self._ended.items()):
            running = self._running.get(label)
            earliest_s = limit_s if running is None else min(limit_s, running.start_s - self.params.min_duration_s)
            if is_last or earliest_s - ended.end_s > self.params.of(label).max_gap_s:
                done.append(self._ended.pop(label).event)
        # the median looks back as far as ahead, and a crossing lies after the last frame that is done with
        n_gone = max(0, n_known - n_ahead - 1)
        self._times_s, self._scores = self._times_s[n_gone:], self._scores[n_gone:]
        self._rises_s, self._falls_s = self._rises_s[n_gone:], self._falls_s[n_gone:]
        self._n_done = n_known - n_gone
        return sorted(done, key=lambda event: (event.start_s, event.end_s, event.label))

    def _relabel(self, labels: tuple[str, ...], done: list[SoundEvent]) -> None:
        """Keep the frames of labels that are known still; end what sounds of the others."""
        kept = np.zeros((len(self._scores), len(labels)), np.float32)
        for index, label in enumerate(labels):
            if label in self._labels:
                kept[:, index] = self._scores[:, self._labels.index(label)]
        for label in sorted(self._running.keys() - set(labels)):
            self._end(label, self._running.pop(label), float(self._times_s[self._n_done - 1]), None, done)
        self._labels, self._scores = labels, kept

    def _follow(
        self, label: str, smooth: NDArray[np.float32], n_known: int, scores: FrameScores, done: list[SoundEvent]
    ) -> None:
        """Start, prolong and end the runs of one label over the frames that are new."""
        own = self.params.of(label)
        run = self._running.pop(label, None)
        half_s = scores.window_s / 2
        for frame in range(self._n_done, n_known):
            score = float(smooth[frame])
            if run is None and score >= own.on_score:
                rise_s = None
                if frame == 0:
                    start_s = float(self._times_s[0]) - min(scores.hop_s, scores.window_s) / 2
                else:
                    start_s = self._crossing_s(smooth, frame, own.on_score) + half_s - self.params.response_s
                    rise_s = _known(self._rises_s[frame])
                run = _Run(max(0.0, start_s), rise_s, 1, score, is_from_start=frame == 0)
            elif run is not None and score >= own.off_score:
                run = replace(run, n_frames=run.n_frames + 1, score=max(run.score, score))
            elif run is not None:
                end_s = self._crossing_s(smooth, frame, own.off_score) - half_s + self.params.release_s
                self._end(label, run, end_s, _known(self._falls_s[frame]), done)
                run = None
        if run is not None:
            self._running[label] = run

    def _crossing_s(self, smooth: NDArray[np.float32], frame: int, threshold: float) -> float:
        """When the scores pass the threshold on their way to this frame from the one before."""
        before, after = float(smooth[frame - 1]), float(smooth[frame])
        before_s, after_s = float(self._times_s[frame - 1]), float(self._times_s[frame])
        # where the model was exchanged, the frame before may lie on the same side of the new threshold
        share = (threshold - before) / (after - before) if after != before else 0.0
        return before_s + (after_s - before_s) * min(1.0, max(0.0, share))

    def _end(
        self,
        label: str,
        run: _Run,
        end_s: float,
        fall_s: float | None,
        done: list[SoundEvent],
        *,
        is_certain: bool = False,
    ) -> None:
        """Turn a run that is long enough, or certain, into an event; join it to the one before after a short gap."""
        own, shortest_s = self.params.of(label), self.params.min_duration_s
        if run.n_frames < own.n_min_frames and not is_certain:
            return
        start_s = run.start_s
        if end_s - start_s < shortest_s:
            start_s = max(0.0, (start_s + end_s - shortest_s) / 2)
            end_s = start_s + shortest_s
        before, score = self._ended.pop(label, None), min(1.0, run.score)
        if before is not None and start_s - before.end_s <= own.max_gap_s:
            told_start_s = min(before.event.start_s, start_s)
            score, end_s = max(before.event.score, score), max(before.end_s, end_s)
        else:
            if before is not None:
                done.append(before.event)
            told_start_s = start_s if run.rise_s is None else min(run.rise_s, end_s)
            told_start_s = max(told_start_s, self._last_end_s.get(label, 0.0))
        told_end_s = max(end_s if fall_s is None else fall_s, told_start_s + shortest_s)
        self._last_end_s[label] = told_end_s
        event = SoundEvent(label=label, score=score, start_s=told_start_s, end_s=told_end_s)
        self._ended[label] = _Ended(event, end_s)


def _known(edge_s: float) -> float | None:
    """The time of an edge; None where there is none."""
    return None if np.isnan(edge_s) else float(edge_s)
