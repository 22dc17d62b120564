"""Events from frame scores: one sound is one event, with its own times, however the stream is cut."""

from __future__ import annotations

import itertools

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


def scored(
    scores: NDArray[np.floating],
    first: int = 0,
    labels: tuple[str, ...] = LABELS,
    edges_s: NDArray[np.float64] | None = None,
) -> FrameScores:
    """Scores of steps side by side, as a chunk that begins with the given step, with the rises and falls near them."""
    return FrameScores(
        scores=np.asarray(scores, np.float32).reshape(-1, len(labels)),
        labels=labels,
        start_s=(first + 0.5) * HOP_S,
        hop_s=HOP_S,
        window_s=HOP_S,
        tags=np.zeros(len(labels), np.float32),
        rises_s=None if edges_s is None else edges_s[0].copy(),
        falls_s=None if edges_s is None else edges_s[1].copy(),
    )


def heard(sounds: Sounds, duration_s: float) -> NDArray[np.float64]:
    """What an ideal listener scores: in each step, the share of it that a sound fills."""
    edges_s = np.arange(round(duration_s / HOP_S) + 1) * HOP_S
    scores = np.zeros((len(edges_s) - 1, len(LABELS)))
    for label, first_s, last_s in sounds:
        filled_s = np.minimum(edges_s[1:], last_s) - np.maximum(edges_s[:-1], first_s)
        scores[:, LABELS.index(label)] += filled_s.clip(0) / HOP_S
    return scores


def tracked(
    scores: NDArray[np.floating],
    params: EventParams = PARAMS,
    cuts: tuple[int, ...] = (),
    edges_s: NDArray[np.float64] | None = None,
) -> list[SoundEvent]:
    """Events of a stream that is pushed in pieces."""
    tracker, events = EventTracker(params), list[SoundEvent]()
    starts = (0, *cuts)
    for start, end in zip(starts, (*cuts, len(scores)), strict=True):
        own_s = None if edges_s is None else edges_s[:, start:end]
        chunk = scored(scores[start:end], start, edges_s=own_s)
        events += tracker.push(chunk, is_last=end == len(scores) and start == starts[-1])
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


def edges_near(
    n_frames: int, *, rises_s: tuple[float, ...] = (), falls_s: tuple[float, ...] = ()
) -> NDArray[np.float64]:
    """For each frame the rise and the fall in its step or in the two before it, (2, n_frames)."""
    ends_s = np.arange(1, n_frames + 1) * HOP_S
    edges_s = np.full((2, n_frames), np.nan)
    for row, times_s in zip(edges_s, (rises_s, falls_s), strict=True):
        for time_s in times_s:
            row[(ends_s - 3 * HOP_S <= time_s) & (time_s < ends_s)] = time_s
    return edges_s


def test_an_event_starts_where_the_level_rises_and_ends_where_it_falls() -> None:
    scores = heard([("dog", 5.0, 7.0)], 12.8)
    (event,) = tracked(scores, edges_s=edges_near(40, rises_s=(4.81, 9.0), falls_s=(2.0, 7.23)))
    assert (event.start_s, event.end_s) == (4.81, 7.23)
    (event,) = tracked(scores, edges_s=edges_near(40, rises_s=(9.0,), falls_s=(2.0,)))
    assert event == tracked(scores)[0]


def test_two_sounds_that_the_level_does_not_part_do_not_overlap() -> None:
    scores = heard([("dog", 5.12, 7.04), ("dog", 7.68, 9.6)], 12.8)
    first, second = tracked(scores, edges_s=edges_near(40, rises_s=(7.05,), falls_s=(7.2,)))
    assert first.end_s == second.start_s == 7.2


def test_what_sounds_from_the_start_of_the_stream_starts_there() -> None:
    (event,) = tracked(heard([("dog", 0.0, 3.0)], 12.8), edges_s=edges_near(40, rises_s=(0.1,)))
    assert event.start_s == 0


def test_an_edge_for_each_frame_is_asked_for() -> None:
    with pytest.raises(ValueError, match="edge a frame"):
        scored(np.zeros((10, 2)), edges_s=np.zeros((2, 9)))


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
    # each near its frame; a third of the frames have none
    edges_s = (np.arange(120) + rng.uniform(-2, 1, (2, 120))) * HOP_S
    edges_s[rng.random((2, 120)) < 1 / 3] = np.nan
    params = EventParams(
        n_median_frames=n_median_frames,
        n_min_frames=n_min_frames,
        max_gap_s=max_gap_s,
        response_s=response_s,
        by_label={"rain": LabelEventParams(n_median_frames=7, max_gap_s=0.3)},
    )
    whole, cut = (tracked(scores, params, own, edges_s) for own in ((), tuple(sorted(cuts))))
    assert [(event.label, event.score) for event in cut] == [(event.label, event.score) for event in whole]
    for ours, theirs in zip(cut, whole, strict=True):
        # times of a chunk are counted from its own start
        assert ours.start_s == pytest.approx(theirs.start_s, abs=1e-6)
        assert ours.end_s == pytest.approx(theirs.end_s, abs=1e-6)
    for label in LABELS:
        own_events = [event for event in whole if event.label == label]
        assert all(before.end_s <= after.start_s for before, after in itertools.pairwise(own_events))
        assert all(event.start_s < event.end_s for event in own_events)


def test_a_model_exchanged_in_the_middle_goes_on_with_what_both_know() -> None:
    scores = heard([("dog", 3.2, 9.6), ("rain", 3.2, 9.6)], 12.8)
    others = np.stack([np.zeros(20), scores[20:, 0]], axis=1)
    tracker = EventTracker(PARAMS)
    events = tracker.push(scored(scores[:20]), is_last=False)
    tracker.params = EventParams(on_score=0.2, off_score=0.1, n_median_frames=5, response_s=0, max_gap_s=0.1)
    events += tracker.push(scored(others, 20, ("cat", "dog")), is_last=True)
    rain, dog = sorted(events, key=lambda event: event.end_s)
    assert (rain.label, dog.label) == ("rain", "dog")
    assert rain.end_s == pytest.approx(6.4, abs=HOP_S)
    assert (dog.start_s, dog.end_s) == pytest.approx((3.2, 9.6), abs=HOP_S)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), at=st.integers(0, 60), on_score=st.floats(0, 1))
def test_thresholds_may_be_exchanged_at_any_chunk(*, seed: int, at: int, on_score: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.choice([0.1, 0.5, 0.9], (60, 2))
    tracker = EventTracker(EventParams(max_gap_s=0.0))
    events = tracker.push(scored(scores[:at]), is_last=False)
    tracker.params = EventParams(on_score=on_score, off_score=0.5 * on_score, n_median_frames=7)
    events += tracker.push(scored(scores[at:], at), is_last=True)
    end_s = 60 * HOP_S + EventParams().min_duration_s  # a sound at the very end is told to be so long
    assert all(0 <= event.start_s < event.end_s <= end_s for event in events)


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
