"""What a deaf reader is promised: the sounds that matter, where they are heard, without a word of speech lost."""

from __future__ import annotations

import csv
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundstage.captions.layout import layout
from soundstage.captions.sdh import AMBIENCE, FAINT, PHRASES, sdh_layout, select_cues, sound_line
from soundstage.params import CaptionParams, SdhParams
from soundstage.types import Caption, Segment, SoundEvent
from tests.unit.test_captions_layout import EPS, end_of, speech

PARAMS, SDH = CaptionParams(), SdhParams()


def seg(start_s: float, end_s: float, text: str) -> Segment:
    return Segment(start_s=start_s, end_s=end_s, text=text)


def event(label: str, start_s: float, end_s: float, score: float = 0.9) -> SoundEvent:
    return SoundEvent(label=label, score=score, start_s=start_s, end_s=end_s)


def track(segments: list[Segment], events: list[SoundEvent], duration_s: float = 120) -> list[Caption]:
    return sdh_layout(segments, events, PARAMS, SDH, duration_s=duration_s)


def sounds(captions: list[Caption]) -> list[tuple[float, str]]:
    return [(caption.start_s, line) for caption in captions for line in caption.lines if line.startswith("[")]


events = st.lists(
    st.builds(
        lambda label, score, start, length: event(label, start, start + length, score),
        st.sampled_from([*PHRASES, "speech", "silence", "my_model_knows_this"]),
        st.floats(0, 1),
        st.floats(0, 60),
        st.floats(0.05, 20),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(speech(), events)
def test_one_track_without_overlap_of_at_most_two_lines(segments: list[Segment], heard: list[SoundEvent]) -> None:
    captions = track(segments, heard, max([end_of(segments), *(e.end_s for e in heard)]))
    for caption in captions:
        assert 1 <= len(caption.lines) <= 2
        assert max(map(len, caption.lines)) <= 42
        assert 0 < caption.end_s - caption.start_s <= 7 + EPS
    for caption, following in pairwise(captions):
        assert following.start_s - caption.end_s >= PARAMS.min_gap_s - EPS


@settings(deadline=None)
@given(speech(), events)
def test_sounds_take_no_word_and_no_time_from_speech(segments: list[Segment], heard: list[SoundEvent]) -> None:
    duration_s = max([end_of(segments), *(e.end_s for e in heard)])
    plain = layout(segments, PARAMS, duration_s=duration_s)
    captions = track(segments, heard, duration_s)
    spoken = [
        (caption.start_s, " ".join(line for line in caption.lines if not line.startswith("["))) for caption in captions
    ]
    spoken = [(start_s, text) for start_s, text in spoken if text]
    assert " ".join(text for _, text in spoken).split() == [w for c in plain for line in c.lines for w in line.split()]
    # Captions are parted for a sound, never moved.
    assert {caption.start_s for caption in plain} <= {start_s for start_s, _ in spoken}


@settings(deadline=None)
@given(speech(), events)
def test_only_selected_sounds_are_shown_and_each_once(segments: list[Segment], heard: list[SoundEvent]) -> None:
    cues = select_cues(heard, segments, SDH, max_chars=42)
    shown = sounds(track(segments, heard))
    assert len(shown) <= len(cues)
    for start_s, line in shown:
        assert any(
            cue.line == line
            and cue.start_s - SDH.max_shift_s <= start_s <= max(cue.end_s, cue.start_s + SDH.max_shift_s)
            for cue in cues
        )
    assert not {"[speech]", "[silence]"} & {line for _, line in shown}


def test_a_sound_in_a_pause_has_a_caption_of_its_own_at_its_start() -> None:
    captions = track([seg(0, 3, "I left the keys here."), seg(8, 10, "Where are they?")], [event("dog", 4.5, 6)])
    assert [caption.lines for caption in captions] == [
        ("I left the keys here.",),
        ("[dog barking]",),
        ("Where are they?",),
    ]
    assert captions[1].start_s == 4.5


def test_a_sound_under_speech_stands_above_the_words() -> None:
    captions = track([seg(0, 4, "It came from the kitchen, I think.")], [event("glass_breaking", 1, 2)])
    assert [caption.lines for caption in captions] == [("[glass shatters]", "It came from the kitchen, I think.")]


def test_two_lines_are_parted_for_a_sound_under_the_second() -> None:
    text = "Somebody must have moved them while we were out in the garden"
    captions = track([seg(0, 6, text)], [event("glass_breaking", 4, 5)], duration_s=6)
    assert [caption.lines for caption in captions] == [
        ("Somebody must have moved them",),
        ("[glass shatters]", "while we were out in the garden"),
    ]


def test_two_sounds_at_once_share_a_caption() -> None:
    (caption,) = track([], [event("rain", 5, 60), event("thunderstorm", 5.5, 9)])
    assert caption.lines == ("[rain falling]", "[thunder rumbling]")


def test_ambience_is_told_of_once_and_again_after_a_long_pause() -> None:
    rain = [event("rain", start, start + 8) for start in (0, 10, 25, 45, 85, 100)]
    assert [start_s for start_s, _ in sounds(track([], rain))] == [0, 85]


def test_a_sound_repeated_within_seconds_is_one_caption() -> None:
    barks = [event("dog", start, start + 0.5) for start in (1, 2, 4, 8, 20)]
    assert [start_s for start_s, _ in sounds(track([], barks))] == [1, 20]


def test_where_no_caption_has_room_ambience_waits_for_a_pause_and_other_sounds_are_left_out() -> None:
    text = "Somebody must have moved them while we were out there in the garden by the lake"
    talk = [seg(start, start + 3, text) for start in (0.0, 3.1, 6.2)]  # too fast to be parted
    captions = track(talk, [event("music", 0.1, 40), event("dog", 3, 4)])
    assert [line for _, line in sounds(captions)] == ["[♪ music playing ♪]"]
    assert 9.2 < sounds(captions)[0][0] < 11


@pytest.mark.parametrize(
    ("label", "score", "length_s", "under_speech", "shown"),
    [
        ("dog", 0.55, 1.0, False, True),
        ("dog", 0.45, 1.0, False, False),
        ("dog", 0.55, 1.0, True, False),
        ("dog", 0.7, 1.0, True, True),
        ("dog", 0.7, 0.2, True, False),
        ("mouse_click", 0.7, 1.0, False, False),
        ("mouse_click", 0.85, 1.0, False, True),
        ("silence", 1.0, 5.0, False, False),
        ("speech", 1.0, 5.0, False, False),
    ],
)
def test_what_a_reader_does_not_care_for_stays_out(
    label: str, score: float, length_s: float, under_speech: bool, shown: bool
) -> None:
    segments = [seg(9, 13, "It came from the kitchen.")] if under_speech else []
    assert bool(select_cues([event(label, 10, 10 + length_s, score)], segments, SDH, max_chars=42)) is shown


def test_labels_of_a_users_own_model_come_out_as_words() -> None:
    assert sound_line("Gun_shot_far", 42) == "[gun shot far]"
    assert sound_line("odd [label]\n\nhere", 42) == "[odd (label) here]"
    assert len(sound_line("a_very_long_label_" * 5, 42)) <= 42
    assert len(sound_line("x" * 99, 42)) <= 42


def test_phrases_are_lower_case_and_short() -> None:
    for phrase in PHRASES.values():
        assert re.fullmatch(r"(♪ )?[a-z ]+( ♪)?", phrase)
        assert len(phrase) <= 32
    assert PHRASES.keys() >= AMBIENCE
    assert PHRASES.keys() >= FAINT


@pytest.mark.shared_data
def test_every_class_of_esc_50_has_a_phrase(shared_data: Path) -> None:
    with (shared_data / "esc50" / "meta.csv").open(encoding="utf-8") as file:
        labels = {row["category"] for row in csv.DictReader(file)}
    assert len(labels) == 50
    assert labels <= PHRASES.keys()
