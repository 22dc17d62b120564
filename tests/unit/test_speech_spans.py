"""Regions that are decoded together come apart again where the speaker paused."""

from __future__ import annotations

import numpy as np
import pytest

from soundstage.params import SpanParams
from soundstage.pipeline import ChunkAssembler, regions_of
from soundstage.speech.spans import Heard, in_context, own_segments, parted, spans
from soundstage.types import Chunk, Region, Segment, Waveform, Word

PARAMS = SpanParams(max_pause_s=1.0, max_duration_s=10.0)


def regions(*spans_s: tuple[float, float]) -> tuple[Region, ...]:
    return tuple(Region(start_s=start_s, end_s=end_s) for start_s, end_s in spans_s)


def said(*words: tuple[str, float, float]) -> Segment:
    return Segment(
        start_s=1.0,
        end_s=9.0,
        text=" ".join(text for text, _, _ in words),
        words=tuple(Word(text=text, start_s=start_s, end_s=end_s, confidence=0.9) for text, start_s, end_s in words),
        avg_logprob=-0.3,
    )


@pytest.mark.parametrize(
    ("given", "lengths"),
    [
        ([], []),
        ([(1, 2), (3, 4), (5, 6)], [3]),
        ([(1, 2), (3.1, 4), (5, 6)], [1, 2]),
        ([(1, 6), (6.5, 11), (11.5, 14)], [2, 1]),
        ([(1, 16), (16, 20)], [1, 1]),
    ],
    ids=["nothing", "short pauses", "a long pause", "as long as may be", "longer than may be"],
)
def test_short_pauses_do_not_part(given: list[tuple[float, float]], lengths: list[int]) -> None:
    found = spans(regions(*given), PARAMS)
    assert [len(span) for span in found] == lengths
    assert [region for span in found for region in span] == list(regions(*given))


def test_each_region_gets_its_words() -> None:
    whole = said(("Fail", 1.2, 1.6), ("again,", 1.6, 2.3), ("fail", 3.4, 3.8), ("better.", 3.8, 4.2))
    first, last = parted(whole, regions((1.0, 2.2), (2.8, 3.0), (3.5, 4.4)))
    assert (first.text, first.start_s, first.end_s) == ("Fail again,", 1.0, 2.3), "no word is cut off"
    assert (last.text, last.start_s, last.end_s) == ("fail better.", 3.4, 4.4)
    assert first.words + last.words == whole.words
    assert first.avg_logprob == last.avg_logprob == -0.3


def test_without_word_times_the_text_stays_whole() -> None:
    whole = Segment(start_s=1.0, end_s=9.0, text="Fail again.")
    assert parted(whole, regions((1.0, 2.0), (2.5, 9.0))) == [whole]


def test_a_chunk_is_heard_by_spans_and_told_by_regions() -> None:
    """Pauses are heard as they are; between spans nothing is."""
    speech = regions((1.0, 2.0), (2.5, 3.0), (6.0, 9.0))
    waveform = Waveform(samples=np.arange(160_000, dtype=np.float32))
    chunk = Chunk(waveform=waveform, heard=waveform, speech=speech, index=0, is_last=True)
    heard = regions_of(chunk)
    assert [(waveform.start_s, waveform.end_s) for waveform in heard] == [(1.0, 3.0), (6.0, 9.0)]
    part = ChunkAssembler().push(chunk, [said(("Ever", 1.1, 1.9), ("tried.", 2.6, 2.9)), None], None)
    assert [(segment.text, segment.end_s) for segment in part.segments] == [("Ever", 2.0), ("tried.", 3.0)]


def test_speech_that_was_cut_is_heard_beyond_the_cut() -> None:
    """Within a chunk and at its edges; speech that begins or ends by itself is heard alone."""

    def chunk(heard: Region, own: Region, *speech: tuple[float, float]) -> Chunk:
        stream, waveform = (
            Waveform(samples=np.zeros(round(16_000 * each.duration_s), np.float32), start_s=each.start_s)
            for each in (heard, own)
        )
        return Chunk(waveform=waveform, heard=stream, speech=regions(*speech), index=1, is_last=False)

    stream, own = Region(start_s=9.0, end_s=40.5), Region(start_s=10.0, end_s=40.0)
    cut = chunk(stream, own, (10.0, 17.0), (17.0, 25.0), (30.0, 33.0), (34.0, 40.0))
    found = in_context(cut, PARAMS, 1.0)
    assert [(heard.start_s, heard.end_s) for heard in found] == [(9.0, 18.0), (16.0, 25.0), (30.0, 40.5)]
    assert [len(heard.span) for heard in found] == [1, 1, 2]
    (alone,) = in_context(chunk(own, own, (10.0, 40.0)), PARAMS, 1.0)
    assert (alone.before, alone.after) == (None, None), "there is nothing beyond the ends of a stream"


def test_each_side_of_a_cut_tells_its_own_words() -> None:
    """The middle of a word decides; none reaches beyond the cut."""
    before = Heard(regions((1.0, 5.0)), after=Region(start_s=5.0, end_s=6.0))
    after = Heard(regions((5.0, 9.0)), before=Region(start_s=4.0, end_s=5.0))
    whole = said(("and", 4.0, 4.4), ("Cologne,", 4.4, 5.1), ("which", 5.1, 5.4), ("were", 5.5, 5.9))
    (first,), (last,) = own_segments(whole, before), own_segments(whole, after)
    assert (first.text, first.start_s, first.end_s) == ("and Cologne,", 1.0, 5.0)
    assert first.words[-1].end_s == 5.0
    assert (last.text, last.start_s, last.end_s) == ("which were", 5.0, 9.0)
    assert own_segments(said(("which", 5.1, 5.4)), before) == []


def test_a_cut_parts_words_without_times_by_their_number() -> None:
    whole = Segment(start_s=1.0, end_s=9.0, text="one two three four")
    (first,) = own_segments(whole, Heard(regions((1.0, 5.0)), after=Region(start_s=5.0, end_s=9.0)))
    assert first.text == "one two"
