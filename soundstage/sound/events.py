"""From frame scores to events: what starts and ends when, across chunks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from soundstage.params import EventParams
from soundstage.types import FrameScores, SoundEvent


@dataclass(frozen=True, slots=True)
class _Run:
    """Scores of one label that stay up.

    Attributes:
        start_s: Where the sound starts, as far as known.
        first_hot_s: Time of the first frame.
        last_hot_s: Time of the last frame.
        end_s: Where the sound would end if the next frame were cold.
        score: The highest.
    """

    start_s: float
    first_hot_s: float
    last_hot_s: float
    end_s: float
    score: float


class EventTracker:
    """Follows each label through the chunks of one stream.

    A frame looks at about 2 s, so its score is up as soon as a sound enters the window, and until it has left it:
    both ends are moved inwards by what the window reaches beyond the frame.

    Args:
        params: Thresholds and durations.
    """

    def __init__(self, params: EventParams) -> None:
        self._params = params
        self._running: dict[str, _Run] = {}
        self._ended: dict[str, SoundEvent] = {}
        self._stream_start_s: float | None = None

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
        if self._stream_start_s is None:
            self._stream_start_s = scores.start_s
        highest = scores.scores.max(axis=0, initial=0.0)
        for index, label in enumerate(scores.labels):
            if label in self._running or highest[index] >= self._params.on_score:
                self._follow(label, scores, index, done)
        n_frames = len(scores.scores)
        now_s = scores.start_s + max(0, n_frames - 1) * scores.hop_s
        if is_last:
            for label, run in sorted(self._running.items()):
                is_all_of_it = run.first_hot_s == self._stream_start_s
                self._end(label, run, done, is_certain=is_all_of_it)
            self._running.clear()
        for label, event in list(self._ended.items()):
            running = self._running.get(label)
            limit_s = now_s - scores.window_s / 2 if running is None else running.start_s
            if is_last or limit_s - event.end_s > self._params.max_gap_s:
                done.append(self._ended.pop(label))
        return sorted(done, key=lambda event: (event.start_s, event.end_s, event.label))

    def _follow(self, label: str, scores: FrameScores, index: int, done: list[SoundEvent]) -> None:
        """Start, prolong and end the runs of one label over the frames of a chunk."""
        run = self._running.pop(label, None)
        last = len(scores.scores) - 1
        reach_s = max(0.0, scores.window_s / 2 - self._params.response_s)
        for frame, score in enumerate(scores.scores[:, index].tolist()):
            time_s = scores.start_s + frame * scores.hop_s
            if score < (self._params.on_score if run is None else self._params.off_score):
                if run is not None:
                    self._end(label, run, done)
                run = None
                continue
            # windows end where the chunk does, on either side
            ahead_s = min(reach_s, (last - frame) * scores.hop_s)
            behind_s = min(reach_s, frame * scores.hop_s)
            end_s = time_s if frame == last else time_s - behind_s
            if run is None:
                start_s = time_s if frame == 0 else time_s + ahead_s
                run = _Run(start_s, time_s, time_s, end_s, score)
            else:
                run = replace(run, last_hot_s=time_s, end_s=max(run.end_s, end_s), score=max(run.score, score))
        if run is not None:
            self._running[label] = run

    def _end(self, label: str, run: _Run, done: list[SoundEvent], *, is_certain: bool = False) -> None:
        """Turn a run that is long enough, or certain, into an event; join it to the one before after a short gap."""
        if run.last_hot_s - run.first_hot_s < self._params.min_hot_s and not is_certain:
            return
        start_s, end_s = run.start_s, run.end_s
        if end_s - start_s < self._params.min_duration_s:
            middle_s = float(np.clip((start_s + end_s) / 2, run.first_hot_s, run.last_hot_s))
            half_s = self._params.min_duration_s / 2
            start_s, end_s = max(0.0, middle_s - half_s), middle_s + half_s
        event = SoundEvent(label=label, score=min(1.0, run.score), start_s=start_s, end_s=end_s)
        before = self._ended.pop(label, None)
        if before is not None:
            if event.start_s - before.end_s <= self._params.max_gap_s:
                event = SoundEvent(
                    label=label,
                    score=max(before.score, event.score),
                    start_s=min(before.start_s, event.start_s),
                    end_s=max(before.end_s, event.end_s),
                )
            else:
                done.append(before)
        self._ended[label] = event
