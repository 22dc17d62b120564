"""Events from frame scores: one sound is one event, with its own times, however the stream is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from soundstage.params import EventParams, LabelEventParams
from soundstage.sound.events import EventTracker
from soundstage.types import FrameScores, SoundEvent

HOP_S = 0.32
LABELS = ("dog", "rain")
PARAMS = EventParams(response_s=HOP_S / 2, release_s=HOP_S / 2, max_gap_s=0.2)

Sounds = list[tuple[str, float, float]]


def scored(scores: NDArray[np.floating], first: int = 0, labels: tuple[str, ...] = LABELS) -> FrameScores:
    """Scores of steps side by side, as a chunk that begins with the given step."""
    return FrameScores(
        scores=np.asarray(scores, np.float32).reshape(-1, len(labels)),
        labels=labels,
        start_s=(first + 0.5) * HOP_S,
        hop_s=HOP_S,
        window_s=HOP_S,
        tags=np.zeros(len(labels), np.float32),
    )


def heard(sounds: Sounds, duration_s: float) -> NDArray[np.float64]:
    """What an ideal listener scores: in each step, the share of it that a sound fills."""
    edges_s = np.arange(round(duration_s / HOP_S) + 1) * HOP_S
    scores = np.zeros((len(edges_s) - 1, len(LABELS)))
    for label, first_s, last_s in sounds:
        filled_s = np.minimum(edges_s[1:], last_s) - np.maximum(edges_s[:-1], first_s)
        scores[:, LABELS.index(label)] += filled_s.clip(0) / HOP_S
    return scores


def tracked(scores: NDArray[np.floating], params: EventParams = PARAMS, cuts: tuple[int, ...] = ()) -> list[SoundEvent]:
    """Events of a stream that is pushed in pieces."""
    tracker, events = EventTracker(params), list[SoundEvent]()
    starts = (0, *cuts)
    for start, end in zip(starts, (*cuts, len(scores)), strict=True):
        events += tracker.push(scored(scores[start:end], start), is_last=end == len(scores) and start == starts[-1])
    return sorted(events, key=lambda event: (event.start_s, event.end_s, event.label))


@settings(max_examples=100, deadline=None)
@given(start_s=st.floats(1.0, 3.0), duration_s=st.floats(0.7, 5.0))
def test_a_sound_is_an_event_with_its_own_times(start_s: float, duration_s: float) -> None:
    params = PARAMS.model_copy(update={"off_score": 0.5})
    (event,) = tracked(heard([("dog", start_s, start_s + duration_s)], 12.8), params)
    assert event.label == "dog"
    assert event.start_s == pytest.approx(start_s, abs=0.09)  # a quarter of a step, which only lines between steps give
    assert event.end_s == pytest.approx(start_s + duration_s, abs=0.09)
    assert event.score == pytest.approx(1.0)


def test_nothing_is_heard_in_nothing() -> None:
    assert tracked(np.zeros((40, 2))) == []
    assert tracked(np.zeros((0, 2))) == []


def test_what_is_up_from_the_first_frame_to_the_last_begins_and_ends_with_the_stream() -> None:
    (event,) = tracked(np.full((40, 2), [0.9, 0.0]))
    assert event.start_s == 0
    assert event.end_s == pytest.approx(40 * HOP_S)


def test_a_sound_that_spans_chunks_is_one_event_and_comes_when_it_has_ended() -> None:
    scores = heard([("rain", 5.0, 70.0)], 102.4)
    tracker = EventTracker(PARAMS)
    pushed = [tracker.push(scored(scores[i : i + 80], i), is_last=i == 240) for i in (0, 80, 160, 240)]
    assert [len(events) for events in pushed] == [0, 0, 1, 0]
    assert pushed[2][0].start_s == pytest.approx(5.0, abs=HOP_S / 2)
    assert pushed[2][0].end_s == pytest.approx(70.0, abs=HOP_S / 2)


def test_short_gaps_are_closed_and_long_ones_are_not() -> None:
    params = PARAMS.model_copy(update={"max_gap_s": 0.5})
    assert len(tracked(heard([("dog", 5.12, 7.04), ("dog", 7.36, 9.0)], 19.2), params)) == 1
    assert len(tracked(heard([("dog", 5.12, 7.04), ("dog", 8.32, 9.0)], 19.2), params)) == 2


def test_two_sounds_at_once_are_two_events() -> None:
    events = tracked(heard([("dog", 5.0, 9.0), ("rain", 3.0, 12.0)], 19.2))
    assert [event.label for event in events] == ["rain", "dog"]


def test_scores_between_the_thresholds_prolong_but_do_not_start() -> None:
    dog = [0.1] * 5 + [0.4] * 10 + [0.1] * 5
    assert tracked(np.array([dog, [0.0] * 20]).T) == []
    dog[10] = 0.8
    (event,) = tracked(np.array([dog, [0.0] * 20]).T)
    assert event.end_s - event.start_s > 5 * HOP_S
    assert event.score == pytest.approx(0.8)


def test_the_median_takes_out_a_single_frame_and_fills_a_single_hole() -> None:
    dog = [0.0] * 5 + [0.9] + [0.0] * 5 + [0.9] * 4 + [0.0] + [0.9] * 4 + [0.0] * 5
    scores = np.array([dog, [0.0] * len(dog)]).T
    assert len(tracked(scores)) == 3
    assert len(tracked(scores, PARAMS.model_copy(update={"n_median_frames": 3}))) == 1


def test_scores_that_stay_up_for_too_few_frames_are_chance() -> None:
    scores = heard([("dog", 3.2, 3.84), ("dog", 6.4, 7.36)], 12.8)
    (event,) = tracked(scores, PARAMS.model_copy(update={"n_min_frames": 3}))
    assert event.start_s == pytest.approx(6.4, abs=HOP_S / 2)


def test_a_short_clip_that_a_sound_fills_is_an_event_however_few_its_frames() -> None:
    assert len(tracked(np.array([[0.9, 0.0]]), PARAMS.model_copy(update={"n_min_frames": 3}))) == 1


def test_a_label_may_have_parameters_of_its_own() -> None:
    scores = np.full((20, 2), 0.6)
    strict = LabelEventParams(on_score=0.7, off_score=0.5)
    assert [event.label for event in tracked(scores, PARAMS.model_copy(update={"by_label": {"rain": strict}}))] == [
        "dog"
    ]


def test_a_window_that_reaches_further_than_its_step_is_allowed_for() -> None:
    n_frames, window_s = 60, 1.92
    times_s = np.arange(n_frames) * HOP_S
    overlap_s = np.minimum(times_s + window_s / 2, 11.0) - np.maximum(times_s - window_s / 2, 8.0)
    scores = FrameScores(
        scores=np.where(overlap_s >= 0.5, 0.9, 0.05).astype(np.float32)[:, np.newaxis],
        labels=("dog",),
        start_s=0.0,
        hop_s=HOP_S,
        window_s=window_s,
        tags=np.ones(1, np.float32),
    )
    (event,) = EventTracker(EventParams(response_s=0.5, release_s=0.5)).push(scores, is_last=True)
    assert event.start_s == pytest.approx(8.0, abs=HOP_S)
    assert event.end_s == pytest.approx(11.0, abs=HOP_S)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 120), max_size=12),
    n_median_frames=st.sampled_from([1, 3, 5]),
    n_min_frames=st.integers(1, 3),
    max_gap_s=st.floats(0.0, 2.0),
    response_s=st.floats(-0.2, 0.6),
)
def test_the_events_are_the_same_however_the_stream_is_cut(
    *, seed: int, cuts: list[int], n_median_frames: int, n_min_frames: int, max_gap_s: float, response_s: float
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((120, 2)) ** rng.uniform(0.3, 3)
    params = EventParams(
        n_median_frames=n_median_frames,
        n_min_frames=n_min_frames,
        max_gap_s=max_gap_s,
        response_s=response_s,
        by_label={"rain": LabelEventParams(n_median_frames=7, max_gap_s=0.3)},
    )
    whole, cut = tracked(scores, params), tracked(scores, params, tuple(sorted(cuts)))
    assert [(event.label, event.score) for event in cut] == [(event.label, event.score) for event in whole]
    for ours, theirs in zip(cut, whole, strict=True):
        # times of a chunk are counted from its own start
        assert ours.start_s == pytest.approx(theirs.start_s, abs=1e-6)
        assert ours.end_s == pytest.approx(theirs.end_s, abs=1e-6)


def test_what_is_kept_does_not_grow_with_the_stream() -> None:
    tracker = EventTracker(EventParams(n_median_frames=5))
    rng = np.random.default_rng(0)
    n_kept = set()
    for i in range(200):
        tracker.push(scored(rng.random((90, 2)), 90 * i), is_last=False)
        n_kept.add(len(tracker._times_s) + len(tracker._running) + len(tracker._ended))
    assert max(n_kept) < 20


def test_parameters_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValidationError, match="off_score"):
        EventParams(on_score=0.3, off_score=0.4)
    with pytest.raises(ValidationError, match="odd"):
        LabelEventParams(n_median_frames=2)
