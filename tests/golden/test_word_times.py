"""When words are said: against espeak-ng's own word times, phrases with known gaps, and a clip that was looked at."""

from __future__ import annotations

from importlib.metadata import distribution
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.word_times import SENTENCES, VOICES, Errors, Espeak, Split, matched_errors_s, spliced_clips
from benchmarks.word_times import SpokenWord as Spoken
from soundstage.audio.resample import decode_mono
from soundstage.captions.layout import layout
from soundstage.params import CaptionParams, Limits
from soundstage.pipeline import AnalysisOptions, Pipeline, Task
from soundstage.speech import weights
from soundstage.speech.transcriber import Transcriber
from soundstage.types import Analysis, Segment, Waveform, Word

MAX_MAE_MS = 60.0
"""Of word starts. Measured over all test clips: 35 ms for espeak-ng's speech, 17 ms for spliced phrases."""

BECKETT = {
    "Ever": 0.30, "tried.": 0.56, "failed.": 2.15, "No": 3.53, "matter.": 3.70, "Try": 4.88,
    "better.": 8.47,
}  # fmt: skip
"""Seconds at which words begin, as seen in the waveform; the first time for those said twice."""


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    return Transcriber(weights.fetch())


@pytest.fixture(scope="module")
def pipeline(transcriber: Transcriber) -> Pipeline:
    return Pipeline(transcriber, None)


def asset(name: str) -> Path:
    """A recording that comes with the package of the weights."""
    return Path(str(distribution(weights.DISTRIBUTION).locate_file(f"moonshine_voice/assets/{name}")))


@pytest.fixture(scope="module")
def beckett(pipeline: Pipeline) -> Analysis:
    return pipeline.analyze(asset("beckett.wav"), AnalysisOptions(tasks=frozenset({Task.SPEECH})))


@pytest.fixture(scope="module")
def two_cities(pipeline: Pipeline) -> Analysis:
    return pipeline.analyze(asset("two_cities.wav"), AnalysisOptions(tasks=frozenset({Task.SPEECH})))


def _bare(word: str) -> str:
    """Without what the model may write one way or another."""
    return word.strip(".,;:!?").lower()


def test_words_begin_where_they_are_seen_in_the_waveform(beckett: Analysis) -> None:
    starts: dict[str, float] = {}
    for segment in beckett.segments:
        for word in segment.words:
            starts.setdefault(_bare(word.text), word.start_s)
    for text, start_s in BECKETT.items():
        assert starts[_bare(text)] == pytest.approx(start_s, abs=0.08), text


def test_words_are_the_text_in_order_inside_their_segments(beckett: Analysis, two_cities: Analysis) -> None:
    segments = beckett.segments + two_cities.segments
    assert sum(len(segment.words) for segment in segments) > 100
    for segment in segments:
        assert [word.text for word in segment.words] == segment.text.split()
        assert segment.start_s <= segment.words[0].start_s
        assert segment.words[-1].end_s <= segment.end_s
        assert all(word.end_s > word.start_s for word in segment.words)
        assert all(left.end_s <= right.start_s for left, right in pairwise(segment.words))


def test_the_model_doubts_the_word_that_it_misheard(beckett: Analysis) -> None:
    """Beckett's "Fail again" is read, and "Fare again" may be written: then with little confidence."""
    words = {_bare(word.text): word for segment in beckett.segments for word in segment.words}
    assert words["matter"].confidence > 0.9
    if "fare" in words:
        assert words["fare"].confidence < 0.6


def test_captions_begin_with_their_first_words(two_cities: Analysis) -> None:
    """Segments begin with the pause that voice activity leaves before speech, captions do not."""
    captions = layout(two_cities.segments, CaptionParams(), duration_s=two_cities.duration_s)
    starts_s = [word.start_s for segment in two_cities.segments for word in segment.words]
    texts = [word.text for segment in two_cities.segments for word in segment.words]
    position = 0
    for caption in captions:
        n_words = sum(len(line.split()) for line in caption.lines)
        assert " ".join(caption.lines) == " ".join(texts[position : position + n_words])
        lead_s = starts_s[position] - caption.start_s
        assert 0 <= lead_s <= CaptionParams().max_lead_s + 1e-6
        position += n_words
    assert position == len(texts)
    leads_s = [starts_s[0] - captions[0].start_s]
    assert leads_s == [pytest.approx(0, abs=1e-6)]
    assert two_cities.segments[0].start_s < starts_s[0] - 0.1


def test_words_of_a_clip_alone_are_those_of_any_batch(transcriber: Transcriber) -> None:
    """Cut anywhere; times to the bit, confidence as far as sums of floats in another order allow."""
    clip = decode_mono(asset("two_cities.wav"), Limits())
    rng = np.random.default_rng(0)
    pieces = [clip.between(*np.sort(rng.uniform(0, clip.duration_s, 2))) for _ in range(40)]
    pieces = [piece for piece in pieces if 0.3 < piece.duration_s < 12][:12]
    together = transcriber.transcribe(pieces)
    alone = [transcriber.transcribe([piece])[0] for piece in pieces]
    assert [times(segment) for segment in together] == [times(segment) for segment in alone]
    assert sum(segment is not None for segment in alone) >= 8
    for segment, other in zip(together, alone, strict=True):
        if segment is not None and other is not None:
            found, expected = ([word.confidence for word in each.words] for each in (segment, other))
            np.testing.assert_allclose(found, expected, atol=1e-3)


def times(segment: Segment | None) -> list[tuple[str, float, float]]:
    return [(word.text, word.start_s, word.end_s) for word in segment.words] if segment else []


def test_word_starts_of_a_synthesiser_that_tells_them(pipeline: Pipeline) -> None:
    try:
        espeak = Espeak()
    except OSError as e:
        pytest.skip(f"SKIPPED, NOT PROVEN: {Espeak.LIBRARY} does not load: {e}")
    voices = VOICES[Split.TEST][:2]
    clips = [espeak.say(text, *voice) for voice in voices for text in SENTENCES[Split.TEST][::4]]
    errors = Errors.of(clips, pipeline)
    assert len(errors.errors_s) >= 0.6 * errors.n_known >= 50
    assert errors.mae_ms <= MAX_MAE_MS


@pytest.mark.shared_data
def test_word_starts_after_known_gaps(transcriber: Transcriber, pipeline: Pipeline, shared_data: Path) -> None:
    def words_of(waveform: Waveform) -> list[str]:
        (segment,) = transcriber.transcribe([waveform])
        return segment.text.split() if segment else []

    clips = islice(spliced_clips(shared_data / "ljspeech", Split.TEST, words_of), 8)
    errors = Errors.of(clips, pipeline)
    assert len(errors.errors_s) >= 0.6 * errors.n_known >= 15
    assert errors.mae_ms <= MAX_MAE_MS


def test_only_words_that_were_written_count() -> None:
    spoken = [Spoken(text="One,", start_s=1.0), Spoken(text="two", start_s=None), Spoken(text="three.", start_s=3.0)]
    found = [
        Word(text=text, start_s=start_s, end_s=start_s + 0.1, confidence=1)
        for text, start_s in [("One", 1.25), ("too", 2.0), ("three", 2.5)]
    ]
    assert matched_errors_s(spoken, found) == [0.25, -0.5]
    assert matched_errors_s(spoken, found[1:2]) == []
