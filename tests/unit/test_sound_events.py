"""Events from frame scores: one sound is one event, with its own times, however the stream is cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundstage.params import EventParams
from soundstage.sound.events import EventTracker
from soundstage.types import FrameScores, SoundEvent

HOP_S, WINDOW_S = 0.32, 1.92
PARAMS = EventParams()

Sounds = list[tuple[str, float, float]]


def heard(sounds: Sounds, start_s: float, end_s: float, labels: tuple[str, ...] = ("dog", "rain")) -> FrameScores:
    """What an ideal listener scores in a chunk: 0.9 where a window holds enough of a sound, else 0.05."""
    times = start_s + np.arange(int((end_s - start_s) / HOP_S + 1e-6) + 1) * HOP_S
    scores = np.full((len(times), len(labels)), 0.05, np.float32)
    for label, first_s, last_s in sounds:
        for frame, time_s in enumerate(times):
            low, high = max(start_s, time_s - WINDOW_S / 2), min(end_s, time_s + WINDOW_S / 2)
            overlap = min(high, last_s) - max(low, first_s)
            if overlap >= min(PARAMS.response_s, (last_s - first_s) / 2):
                scores[frame, labels.index(label)] = 0.9
    return FrameScores(
        scores=scores,
        labels=labels,
        start_s=start_s,
        hop_s=HOP_S,
        window_s=WINDOW_S,
        tags=scores.max(axis=0),
    )


def tracked(sounds: Sounds, cuts_s: list[float], params: EventParams = PARAMS) -> list[SoundEvent]:
    tracker = EventTracker(params)
    events = []
    for start_s, end_s in pairwise(cuts_s):
        events += tracker.push(heard(sounds, start_s, end_s), is_last=end_s == cuts_s[-1])
    return sorted(events, key=lambda event: event.start_s)


def test_a_sound_is_an_event_with_its_own_times() -> None:
    (event,) = tracked([("dog", 8.0, 11.0)], [0.0, 20.0])
    assert event.label == "dog"
    assert event.score == pytest.approx(0.9)
    assert event.start_s == pytest.approx(8.0, abs=HOP_S)
    assert event.end_s == pytest.approx(11.0, abs=HOP_S)


def test_a_short_sound_is_reported_where_it_is() -> None:
    (event,) = tracked([("dog", 8.0, 8.15)], [0.0, 20.0])
    assert event.start_s - HOP_S <= 8.075 <= event.end_s + HOP_S
    assert event.end_s - event.start_s == pytest.approx(PARAMS.min_duration_s, abs=2 * HOP_S)


def test_nothing_is_heard_in_nothing() -> None:
    assert tracked([], [0.0, 20.0, 40.0]) == []
    assert EventTracker(PARAMS).push(heard([], 0.0, 0.1), is_last=True) == []


def test_a_chunk_without_frames_is_fine() -> None:
    empty = FrameScores(
        scores=np.zeros((0, 1), np.float32),
        labels=("dog",),
        start_s=0.0,
        hop_s=HOP_S,
        window_s=WINDOW_S,
        tags=np.zeros(1, np.float32),
    )
    assert EventTracker(PARAMS).push(empty, is_last=True) == []


def test_a_sound_that_spans_chunks_is_one_event_and_comes_when_it_has_ended() -> None:
    sounds: Sounds = [("rain", 5.0, 70.0)]
    tracker = EventTracker(PARAMS)
    cuts_s = [0.0, 25.6, 51.2, 76.8, 102.4]
    pushed = [
        tracker.push(heard(sounds, start_s, end_s), is_last=end_s == cuts_s[-1]) for start_s, end_s in pairwise(cuts_s)
    ]
    assert pushed[:2] == [[], []]
    (event,) = [event for events in pushed for event in events]
    assert event.start_s == pytest.approx(5.0, abs=HOP_S)
    assert event.end_s == pytest.approx(70.0, abs=HOP_S)


def test_a_sound_that_never_ends_comes_with_the_end_of_the_stream() -> None:
    (event,) = tracked([("rain", 12.0, 60.0)], [0.0, 30.08, 60.0])
    assert event.start_s == pytest.approx(12.0, abs=HOP_S)
    assert event.end_s == pytest.approx(60.0, abs=HOP_S)
    assert event.end_s <= 60.0


@settings(max_examples=60, deadline=None)
@given(
    start_s=st.floats(2.0, 30.0),
    duration_s=st.floats(0.5, 20.0),
    n_hops=st.lists(st.integers(12, 90), min_size=1, max_size=4),
)
def test_cuts_far_from_the_ends_of_a_sound_change_nothing(start_s: float, duration_s: float, n_hops: list[int]) -> None:
    cuts_s = [0.0, *(np.cumsum(n_hops) * HOP_S).tolist(), 120.0]
    end_s = start_s + duration_s
    if any(abs(cut_s - edge_s) < WINDOW_S for cut_s in cuts_s for edge_s in (start_s, end_s)):
        return
    whole, cut = (tracked([("dog", start_s, end_s)], cuts) for cuts in ([0.0, 120.0], cuts_s))
    assert len(whole) == len(cut) == 1
    assert cut[0].start_s == pytest.approx(whole[0].start_s, abs=1e-6)
    assert cut[0].end_s == pytest.approx(whole[0].end_s, abs=1e-6)
    assert cut[0].score == whole[0].score


def test_a_cut_right_at_the_edge_of_a_sound_still_gives_one_event() -> None:
    for edge_s in np.arange(9.0, 12.0, 0.25):
        (event,) = tracked([("dog", 10.0, 14.0)], [0.0, float(edge_s), 30.0])
        assert event.start_s == pytest.approx(10.0, abs=WINDOW_S / 2 + HOP_S)
        assert event.end_s == pytest.approx(14.0, abs=HOP_S)


def test_short_gaps_are_closed_and_long_ones_are_not() -> None:
    joined = tracked([("dog", 5.0, 7.0), ("dog", 7.3, 9.0)], [0.0, 20.0])
    assert len(joined) == 1
    apart = tracked([("dog", 5.0, 7.0), ("dog", 10.5, 12.0)], [0.0, 20.0])
    assert [event.start_s for event in apart] == pytest.approx([5.0, 10.5], abs=HOP_S)


def test_two_sounds_at_once_are_two_events() -> None:
    events = tracked([("dog", 5.0, 9.0), ("rain", 3.0, 12.0)], [0.0, 20.0])
    assert [event.label for event in events] == ["rain", "dog"]


def with_scores(values: list[float]) -> FrameScores:
    scores = np.array(values, np.float32)[:, np.newaxis]
    return FrameScores(
        scores=scores, labels=("dog",), start_s=0.0, hop_s=HOP_S, window_s=WINDOW_S, tags=scores.max(axis=0)
    )


def test_a_single_frame_is_chance() -> None:
    assert EventTracker(PARAMS).push(with_scores([0.1] * 10 + [0.9] + [0.1] * 10), is_last=True) == []


def test_scores_between_the_thresholds_prolong_but_do_not_start() -> None:
    between = (PARAMS.on_score + PARAMS.off_score) / 2
    assert EventTracker(PARAMS).push(with_scores([0.1] * 5 + [between] * 10 + [0.1] * 5), is_last=True) == []
    (event,) = EventTracker(PARAMS).push(
        with_scores([0.1] * 5 + [0.8] * 10 + [between] * 10 + [0.8] * 10 + [0.1] * 5), is_last=True
    )
    assert event.score == pytest.approx(0.8)
    assert event.end_s - event.start_s == pytest.approx(30 * HOP_S - WINDOW_S, abs=3 * HOP_S)


def test_what_fills_a_very_short_clip_is_an_event() -> None:
    (event,) = EventTracker(PARAMS).push(with_scores([0.9]), is_last=True)
    assert event.start_s == 0


def test_a_tiny_last_chunk_makes_no_event_of_its_own() -> None:
    tracker = EventTracker(PARAMS)
    before = tracker.push(heard([], 0.0, 25.6), is_last=False)
    after = tracker.push(heard([("dog", 25.6, 25.62)], 25.6, 25.62), is_last=True)
    assert before == after == []
