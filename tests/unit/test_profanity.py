"""Swear words are masked on demand; everything else stays."""

from __future__ import annotations

import numpy as np
import pytest

from soundstage.pipeline import ChunkAssembler
from soundstage.speech.profanity import Profanity, masked, swear_words
from soundstage.types import Chunk, Region, Segment, Waveform, Word


def segment(text: str) -> Segment:
    words = tuple(
        Word(text=word, start_s=float(i), end_s=i + 0.5, confidence=0.9) for i, word in enumerate(text.split())
    )
    return Segment(start_s=0.0, end_s=9.0, text=text, words=words)


def test_the_first_letter_stays_and_so_do_times_and_punctuation() -> None:
    said = segment("Bullshit, he said. SHIT! Holy-shit in Scunthorpe.")
    found = masked(said)
    assert found.text == "B*******, he said. S***! Holy-s*** in Scunthorpe."
    assert [word.text for word in found.words] == found.text.split()
    assert [(word.start_s, word.end_s) for word in found.words] == [(word.start_s, word.end_s) for word in said.words]


@pytest.mark.parametrize("text", ["The class was assessed by Dick Cockburn.", "42 % of £5"])
def test_words_that_hold_others_are_left_alone(text: str) -> None:
    said = segment(text)
    assert masked(said) is said


@pytest.mark.parametrize(("profanity", "text"), [("keep", "What the fuck?"), ("mask", "What the f***?")])
def test_only_where_asked_for(profanity: Profanity, text: str) -> None:
    speech = Region(start_s=0.0, end_s=4.0), Region(start_s=6.0, end_s=9.0)
    waveform = Waveform(samples=np.zeros(160_000, np.float32))
    chunk = Chunk(waveform=waveform, heard=waveform, speech=speech, index=0, is_last=True)
    part = ChunkAssembler(profanity=profanity).push(chunk, [segment("What the fuck?"), None], None)
    assert [found.text for found in part.segments] == [text]


def test_the_list_holds_plain_words() -> None:
    assert len(swear_words()) > 20
    assert all(word.isalpha() and word == word.lower() for word in swear_words())
