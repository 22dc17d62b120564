"""What a caption reader is promised of speech: every word, in time to be read, cut where phrases end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundstage.captions.layout import layout, n_chars, too_fast
from soundstage.params import CaptionParams
from soundstage.types import Caption, Segment, Word

PARAMS = CaptionParams()
EPS = 1e-6

_word = st.builds(
    lambda core, end: core + end,
    st.text("abcdefghijklmnopqrstuvwxyzéA'", min_size=1, max_size=14),
    st.sampled_from(["", "", "", "", "", ",", ".", "?", "…"]),
) | st.sampled_from(["the", "a", "and", "of", "with", "that", "Mr.", "not", "I"])


@st.composite
def speech(draw: st.DrawFn, *, min_pause_s: float = 0.0, max_chars_per_s: float = 35.0) -> list[Segment]:
    """Segments one after another, some with the times of their words."""
    segments, now_s = [], draw(st.floats(0, 3))
    for _ in range(draw(st.integers(1, 6))):
        words = draw(st.lists(_word, min_size=1, max_size=40))
        per_char_s = 1 / draw(st.floats(4, max_chars_per_s))
        start_s, timed = now_s, []
        for text in words:
            end_s = now_s + len(text) * per_char_s
            timed.append(Word(text=text, start_s=now_s, end_s=end_s, confidence=1.0))
            now_s = end_s + per_char_s
        segments.append(
            Segment(
                start_s=start_s,
                end_s=timed[-1].end_s,
                text=" ".join(words),
                words=tuple(timed) if draw(st.booleans()) else (),
            )
        )
        now_s += draw(st.floats(min_pause_s, min_pause_s + 4))
    return segments


def words_of(captions: list[Caption]) -> list[str]:
    return [word for caption in captions for line in caption.lines for word in line.split()]


def end_of(segments: list[Segment]) -> float:
    return max(segment.end_s for segment in segments) + 5


@settings(deadline=None)
@given(speech())
def test_every_word_comes_once_and_in_order(segments: list[Segment]) -> None:
    captions = layout(segments, PARAMS, duration_s=end_of(segments))
    assert words_of(captions) == [word for segment in segments for word in segment.text.split()]


@settings(deadline=None)
@given(speech())
def test_captions_follow_one_another_with_two_frames_between(segments: list[Segment]) -> None:
    captions = layout(segments, PARAMS, duration_s=end_of(segments))
    for caption, following in pairwise(captions):
        gap_s = following.start_s - caption.end_s
        assert gap_s >= PARAMS.min_gap_s - EPS
        # A gap is two frames or long enough to be a pause, unless closing it would hold the caption too long.
        held_s = following.start_s - PARAMS.min_gap_s - caption.start_s
        assert gap_s <= PARAMS.min_gap_s + EPS or gap_s >= 0.5 - EPS or held_s > PARAMS.max_duration_s


@settings(deadline=None)
@given(speech())
def test_at_most_two_lines_of_42_characters_for_at_most_seven_seconds(segments: list[Segment]) -> None:
    for caption in layout(segments, PARAMS, duration_s=end_of(segments)):
        assert len(caption.lines) <= 2
        assert max(map(len, caption.lines)) <= 42
        assert 0 < caption.end_s - caption.start_s <= 7 + EPS
        if sum(map(len, caption.lines)) + len(caption.lines) - 1 <= 42:
            assert len(caption.lines) == 1


@settings(deadline=None)
@given(speech(min_pause_s=4, max_chars_per_s=20))
def test_speech_at_a_readable_pace_gives_readable_captions(segments: list[Segment]) -> None:
    captions = layout(segments, PARAMS, duration_s=end_of(segments))
    # Where somebody speaks at the limit without a pause, the two frames between captions come out of their time.
    assert too_fast(captions, PARAMS.model_copy(update={"max_chars_per_s": 23.0})) == ()


@settings(deadline=None)
@given(speech())
def test_a_caption_is_only_too_short_where_there_is_no_more_room(segments: list[Segment]) -> None:
    timed = [segment for segment in segments if segment.words]
    duration_s = end_of(segments)
    captions = layout(timed, PARAMS, duration_s=duration_s)
    spoken = [word for segment in timed for word in segment.words]
    index = 0
    for i, caption in enumerate(captions):
        first_s = spoken[index].start_s
        index += sum(len(line.split()) for line in caption.lines)
        shown_s = caption.end_s - caption.start_s
        if shown_s >= 1 - EPS and n_chars(caption.lines) <= 20 * shown_s + EPS:
            continue
        next_s = captions[i + 1].start_s if i + 1 < len(captions) else duration_s + PARAMS.min_gap_s
        previous_s = captions[i - 1].end_s if i else -PARAMS.min_gap_s
        assert next_s - caption.end_s <= PARAMS.min_gap_s + EPS or shown_s >= 7 - EPS
        no_silence_before = caption.start_s - previous_s <= PARAMS.min_gap_s + EPS
        assert no_silence_before or caption.start_s <= first_s - PARAMS.max_lead_s + EPS or shown_s >= 7 - EPS


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 5), st.lists(_word, min_size=1, max_size=30)), max_size=6))
def test_broken_times_still_give_captions_that_can_be_played(raw: list[tuple[float, float, list[str]]]) -> None:
    segments = [Segment(start_s=start, end_s=start + length, text=" ".join(words)) for start, length, words in raw]
    captions = layout(segments, PARAMS, duration_s=20)
    assert sorted(words_of(captions)) == sorted(word for _, _, words in raw for word in words)
    assert all(caption.end_s - caption.start_s >= 0.2 for caption in captions)
    assert all(following.start_s >= caption.end_s for caption, following in pairwise(captions))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "It was the best of times, it was the worst of times,",
            ("It was the best of times,", "it was the worst of times,"),
        ),
        (
            "I told you that the meeting would be postponed for good",
            ("I told you that the meeting", "would be postponed for good"),
        ),
        (
            "Nobody had seen the old man since the storm broke",
            ("Nobody had seen the old man", "since the storm broke"),
        ),
        (
            "We are going to see Mr. Henderson at the lake house",
            ("We are going to see Mr. Henderson", "at the lake house"),
        ),
        ("Short enough for one line, even with a comma", ("Short enough for one line,", "even with a comma")),
        ("One line is better than two, always", ("One line is better than two, always",)),
    ],
)
def test_lines_break_where_phrases_do(text: str, lines: tuple[str, ...]) -> None:
    (caption,) = layout([Segment(start_s=0, end_s=4, text=text)], PARAMS, duration_s=10)
    assert caption.lines == lines


def test_no_caption_or_line_ends_with_an_article() -> None:
    text = (
        "When the committee had finally reached a decision about the budget for the coming year the chairman rose "
        "and thanked the members of the board for the patience that they had shown throughout a difficult season."
    )
    captions = layout([Segment(start_s=0, end_s=14, text=text)], PARAMS, duration_s=20)
    assert len(captions) > 2
    assert not [line for caption in captions for line in caption.lines if line.split()[-1] in {"a", "an", "the"}]


def test_sentences_have_captions_of_their_own() -> None:
    text = "The door was locked from the inside. Nobody had been in the room since noon."
    captions = layout([Segment(start_s=0, end_s=6, text=text)], PARAMS, duration_s=10)
    assert [" ".join(caption.lines) for caption in captions] == [
        "The door was locked from the inside.",
        "Nobody had been in the room since noon.",
    ]


def test_captions_come_with_the_word_that_the_recogniser_timed() -> None:
    sentence = "Wait for it, and then run as fast as you can to the other side of the road."
    texts = sentence.split()
    starts = [0.5 * i + (4.0 if i >= 3 else 0.0) for i in range(len(texts))]
    words = tuple(
        Word(text=text, start_s=start, end_s=start + 0.4, confidence=1.0)
        for text, start in zip(texts, starts, strict=True)
    )
    segment = Segment(start_s=0, end_s=words[-1].end_s, text=sentence, words=words)
    captions = layout([segment], PARAMS, duration_s=30)
    assert captions[0].lines == ("Wait for it,",)
    assert captions[1].start_s == pytest.approx(5.5)


def test_fast_speech_is_held_into_the_silence_after_it() -> None:
    text = "I have told you this a hundred times before."  # 44 characters need 2.2 s
    (caption,) = layout([Segment(start_s=5, end_s=6, text=text)], PARAMS, duration_s=20)
    assert caption.start_s == 5
    assert caption.end_s == pytest.approx(7.2)


def test_fast_speech_comes_earlier_only_where_the_next_caption_is_near() -> None:
    fast = Segment(start_s=5, end_s=6, text="I have told you this a hundred times before.")
    following = Segment(start_s=7.05, end_s=9, text="And you did not listen, did you?")
    first, second = layout([fast, following], PARAMS, duration_s=20)
    assert second.start_s == pytest.approx(7.05)
    assert first.end_s == pytest.approx(7.05 - PARAMS.min_gap_s)
    assert first.end_s - first.start_s == pytest.approx(2.2)


def test_what_stays_too_fast_is_kept_whole_and_told() -> None:
    text = " ".join(["unbelievably fast talker"] * 8)
    captions = layout([Segment(start_s=0, end_s=3, text=text)], PARAMS, duration_s=3)
    assert words_of(captions) == text.split()
    assert len(too_fast(captions, PARAMS)) == len(captions) > 1


def test_a_word_longer_than_a_line_is_cut_to_lines() -> None:
    (caption,) = layout([Segment(start_s=0, end_s=6, text="x" * 60)], PARAMS, duration_s=10)
    assert "".join(caption.lines) == "x" * 60
    assert max(map(len, caption.lines)) <= 42


def test_nothing_said_gives_no_captions() -> None:
    assert layout([], PARAMS, duration_s=10) == []
