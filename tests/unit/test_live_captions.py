"""Captions of a stream: in order and apart, every word once, sounds beside the words."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from soundstage.live.captions import LiveCaptions
from soundstage.live.events import LiveCaption
from soundstage.params import CaptionParams, SdhParams
from soundstage.types import Segment, SoundEvent, Word


def segment(text: str, start_s: float, word_s: float = 0.3) -> Segment:
    words = tuple(
        Word(text=one, start_s=start_s + i * word_s, end_s=start_s + (i + 1) * word_s, confidence=1)
        for i, one in enumerate(text.split())
    )
    return Segment(start_s=start_s, end_s=words[-1].end_s, text=text, words=words)


def dog(start_s: float, end_s: float, score: float = 0.9) -> SoundEvent:
    return SoundEvent(label="dog", score=score, start_s=start_s, end_s=end_s)


def live() -> LiveCaptions:
    return LiveCaptions(CaptionParams(), SdhParams())


def lines(captions: list[LiveCaption]) -> list[tuple[str, ...]]:
    return [shown.caption.lines for shown in captions]


def test_words_are_shown_when_they_are_final() -> None:
    (shown,) = live().say(segment("It was the best of times.", 4.0))
    assert shown.caption.lines == ("It was the best of times.",)
    assert shown.caption.start_s == 4.0
    assert not shown.is_sound


def test_every_word_is_shown_once_and_captions_never_overlap() -> None:
    rng = np.random.default_rng(0)
    captions, said, shown, start_s = live(), list[str](), list[LiveCaption](), 0.0
    for i in range(40):
        text = " ".join(f"{i}-{j}" for j in range(int(rng.integers(1, 30))))
        part = segment(text, start_s, word_s=float(rng.uniform(0.1, 0.5)))
        start_s = part.end_s + float(rng.uniform(0.3, 2))
        captions.hear([(i, dog(part.start_s + 0.2, part.end_s))])
        said += text.split()
        shown += captions.say(part)
        shown += captions.ready()
    words = [word for one in lines(shown) for line in one if not line.startswith("[") for word in line.split()]
    assert words == said
    for one, other in pairwise(shown):
        assert one.caption.end_s + CaptionParams().min_gap_s <= other.caption.start_s + 1e-9
        assert one.caption.end_s > one.caption.start_s


def test_a_sound_is_shown_at_once_where_nobody_speaks() -> None:
    captions = live()
    captions.hear([(0, dog(5.0, 5.4))])
    (shown,) = captions.ready()
    assert shown.is_sound
    assert shown.caption.lines == ("[dog barking]",)
    assert shown.caption.start_s == 5.0
    captions.hear([(0, dog(5.0, 6.4))])
    assert captions.ready() == []


def test_a_sound_under_speech_stands_with_the_words() -> None:
    captions = live()
    captions.hear([(0, dog(4.5, 5.5))])
    shown = captions.say(segment("Who is there?", 4.0, word_s=0.6))
    assert lines(shown) == [("[dog barking]", "Who is there?")]


def test_a_sound_is_shown_when_it_is_sure_enough_and_not_again_while_it_goes_on() -> None:
    captions = live()
    captions.hear([(0, dog(5.0, 5.4, score=0.35))])
    assert captions.ready() == []
    captions.hear([(0, dog(5.0, 6.0, score=0.7))])
    assert len(captions.ready()) == 1
    captions.hear([(0, dog(5.0, 9.0))])
    captions.hear([(1, dog(11.0, 12.0))])
    assert captions.ready() == []
    captions.hear([(2, dog(20.0, 21.0))])
    assert len(captions.ready()) == 1
