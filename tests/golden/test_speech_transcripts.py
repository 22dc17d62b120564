"""What is said in real clips, and nothing where nobody speaks."""

from __future__ import annotations

import csv
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path

import jiwer
import numpy as np
import pytest
from numpy.typing import NDArray

from soundstage.audio.chunks import Chunker
from soundstage.audio.resample import decode_mono
from soundstage.params import ChunkParams, Limits, VoiceActivityParams
from soundstage.pipeline import Pipeline
from soundstage.speech import shortlist, weights
from soundstage.speech.decoding import Decoded, GreedyDecoder
from soundstage.speech.hints import n_found
from soundstage.speech.transcriber import Transcriber
from soundstage.types import Waveform

BECKETT = "Ever tried, ever failed, no matter, try again, fail again, fail better."
TWO_CITIES = {
    (0.99, 13.09): "It was the best of times, it was the worst of times. It was the age of wisdom, it was the age of "
    "foolishness. It was the epoch of belief. It was the epoch of incredulity.",
    (13.25, 16.99): "It was a season of light, it was a season of darkness.",
    (17.34, 20.77): "It was the spring of hope, it was the winter of despair.",
    (21.02, 28.58): "We had everything before us, we had nothing before us. We were all going direct to heaven, we "
    "were all going direct the other way.",
    (28.7, 42.0): "In short, the period was so far like the present period that some of its noisiest authorities "
    "insisted on its being received for good or for evil in the superlative degree of comparison only.",
}
"""Seconds of the clip, and what the model writes for them (the season and the winter lack their article)."""


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    return Transcriber(weights.fetch())


def clip(name: str) -> Waveform:
    """A recording that comes with the package of the weights."""
    assets = distribution(weights.DISTRIBUTION).locate_file("moonshine_voice/assets")
    return decode_mono(Path(str(assets)) / name, Limits())


@pytest.fixture(scope="module")
def regions() -> list[Waveform]:
    two_cities = clip("two_cities.wav")
    return [clip("beckett.wav"), *(two_cities.between(*span) for span in TWO_CITIES)]


def test_transcripts(transcriber: Transcriber, regions: list[Waveform]) -> None:
    segments = transcriber.transcribe(regions)
    assert [segment and segment.text for segment in segments] == [BECKETT, *TWO_CITIES.values()]
    for segment, region in zip(segments, regions, strict=True):
        assert segment is not None
        assert (segment.start_s, segment.end_s) == (region.start_s, region.end_s)
        assert -0.2 < segment.avg_logprob < 0


def test_short_phrases_are_heard_in_context(transcriber: Transcriber) -> None:
    """Region by region, "Fail again." would become "Fare again."; each region still is a segment of its own."""
    assets = distribution(weights.DISTRIBUTION).locate_file("moonshine_voice/assets")
    analysis = Pipeline(transcriber, None).analyze(Path(str(assets)) / "beckett.wav")
    assert analysis.text == BECKETT
    assert len(analysis.segments) > 3
    for before, after in pairwise(analysis.segments):
        assert before.end_s <= after.start_s


def test_a_clip_alone_gives_the_tokens_that_it_gives_in_any_batch(
    transcriber: Transcriber, regions: list[Waveform]
) -> None:
    """Cut anywhere, mid-word too, where the model is least certain."""
    rng = np.random.default_rng(0)
    cuts = [(region, *np.sort(rng.uniform(region.start_s, region.end_s, 2))) for region in regions * 2]
    pieces = [region.between(start_s, end_s).samples for region, start_s, end_s in cuts]
    pieces = [piece for piece in pieces if len(piece) > 1_600]
    limits = [len(piece) // 2_000 + 2 for piece in pieces]
    assert len(pieces) >= 8
    alone = [transcriber._decoder.decode([piece], [limit])[0] for piece, limit in zip(pieces, limits, strict=True)]
    _assert_same(transcriber._decoder.decode(pieces, limits), alone)
    with_noise = [*pieces, rng.normal(0, 0.5, 15 * 16_000).astype(np.float32)]
    _assert_same(transcriber._decoder.decode(with_noise, [*limits, 99])[:-1], alone)


@pytest.mark.slow
def test_what_was_expected_changes_no_text(transcriber: Transcriber, regions: list[Waveform]) -> None:
    """Rightly, up to its middle, with a wrong word in it, of another region, and nothing; alone and together."""
    plain = transcriber.transcribe(regions)
    texts = [segment.text for segment in plain if segment is not None]
    assert len(texts) == len(regions)
    words = texts[3].split()
    drafts = [texts[0], texts[1][: len(texts[1]) // 2], texts[1], " ".join([*words[:4], "banana", *words[5:]]), "", ""]
    together = transcriber.transcribe(regions, drafts=drafts)
    alone = [transcriber.transcribe([r], drafts=[draft])[0] for r, draft in zip(regions, drafts, strict=True)]
    for before, *after in zip(plain, together, alone, strict=True):
        assert before is not None
        for segment in after:
            assert segment is not None
            assert segment.text == before.text
            assert segment.avg_logprob == pytest.approx(before.avg_logprob, abs=1e-3)
            for word, known in zip(segment.words, before.words, strict=True):
                assert (word.text, word.start_s, word.end_s) == (known.text, known.start_s, known.end_s)


@pytest.mark.slow
def test_what_makes_decoding_fast_leaves_its_text(
    transcriber: Transcriber, regions: list[Waveform], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 8-bit shortlist and the convolutions in bfloat16, against everything in float32."""
    monkeypatch.setattr(shortlist, "integer_products", tuple)
    plain = GreedyDecoder(weights.fetch().weights(), transcriber._model_params)
    pieces = [region.samples for region in regions]
    limits = [round(6.5 * region.duration_s) for region in regions]
    _assert_same(transcriber._decoder.decode(pieces, limits), plain.decode(pieces, limits), tolerance=5e-3)


def _assert_same(found: list[Decoded], expected: list[Decoded], tolerance: float = 1e-4) -> None:
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]
    np.testing.assert_allclose(
        [row.avg_logprob for row in found], [row.avg_logprob for row in expected], atol=tolerance, rtol=0
    )


@pytest.mark.parametrize("kind", ["zeros", "white noise", "pink noise", "440 Hz"])
def test_no_speech_gives_no_text(transcriber: Transcriber, kind: str) -> None:
    waveforms = [Waveform(samples=_sound(kind, round(duration_s * 16_000))) for duration_s in (0.3, 1, 2.5, 6, 15)]
    assert transcriber.transcribe(waveforms) == [None] * len(waveforms)


def _sound(kind: str, n_samples: int) -> NDArray[np.float32]:
    if kind == "zeros":
        return np.zeros(n_samples, np.float32)
    if kind == "440 Hz":
        return (0.1 * np.sin(2 * np.pi * 440 * np.arange(n_samples) / 16_000)).astype(np.float32)
    spectrum = np.fft.rfft(np.random.default_rng(0).normal(0, 0.1, n_samples))
    if kind == "pink noise":
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1) / 100)
    return np.fft.irfft(spectrum, n_samples).astype(np.float32)


@pytest.mark.shared_data
@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # when Python first compiles the normaliser
def test_few_words_of_a_reader_are_wrong(transcriber: Transcriber, shared_data: Path) -> None:
    """Every seventh of 289 sentences: at most 4.8 % of the words (3.8 % of all 289 were measured)."""
    from whisper_normalizer.english import EnglishTextNormalizer

    with (shared_data / "ljspeech" / "meta.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[::7]
    clips = [decode_mono(shared_data / "ljspeech" / "audio" / row["filename"], Limits()) for row in rows]
    normalize = EnglishTextNormalizer()
    hypotheses = [normalize(segment.text if segment else "") for segment in transcriber.transcribe(clips)]
    assert jiwer.wer([normalize(row["transcript"]) for row in rows], hypotheses) <= 0.048


@pytest.mark.shared_data
def test_few_sounds_that_voice_activity_lets_pass_become_text(transcriber: Transcriber, shared_data: Path) -> None:
    """Sneezes and barks: measured over all 1,600 clips, voice activity passes 106, and 98 of these would have text."""
    with (shared_data / "esc50" / "meta.csv").open(encoding="utf-8", newline="") as file:
        names = [row["filename"] for row in csv.DictReader(file) if row["category"] in {"sneezing", "coughing"}]
    regions: list[Waveform] = []
    for name in names:
        chunker = Chunker(ChunkParams(), VoiceActivityParams())
        waveform = decode_mono(shared_data / "esc50" / "audio" / name, Limits())
        for chunk in [*chunker.push(waveform.samples), *chunker.finish()]:
            regions += [chunk.waveform.between(region.start_s, region.end_s) for region in chunk.speech]
    invented = [segment for segment in transcriber.transcribe(regions) if segment is not None]
    assert len(invented) <= len(names) // 4


@pytest.mark.shared_data
def test_expected_names_are_written_and_others_are_not(transcriber: Transcriber, shared_data: Path) -> None:
    """Of a printer's name, and of names that nobody says: without any loss elsewhere."""
    with (shared_data / "ljspeech" / "meta.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if "Schoeffer" in row["transcript"] or "Pannartz" in row["transcript"]
        ]
    clips = [decode_mono(shared_data / "ljspeech" / "audio" / row["filename"], Limits()) for row in rows]
    plain = [segment.text if segment else "" for segment in transcriber.transcribe(clips)]
    names = "Sweynheim", "Pannartz", "Schoeffer"
    led = [segment.text if segment else "" for segment in transcriber.transcribe(clips, [names] * len(clips))]
    assert n_found(names, " ".join(led)) > n_found(names, " ".join(plain))
    others = "Szymanowska", "Zvishavane", "Ophelia", "Aberystwyth"
    assert [
        segment.text if segment else "" for segment in transcriber.transcribe(clips, [others] * len(clips))
    ] == plain
    mixed = transcriber.transcribe(clips, [names if i % 2 else () for i in range(len(clips))])
    assert [segment.text if segment else "" for segment in mixed] == [
        led[i] if i % 2 else plain[i] for i in range(len(clips))
    ]


@pytest.mark.shared_data
def test_a_sentence_that_is_said_nine_times_is_written_nine_times(transcriber: Transcriber, shared_data: Path) -> None:
    """Truth that looks like a model in a loop: what takes of one line sound like."""
    once = decode_mono(shared_data / "ljspeech" / "audio" / "LJ001-0002.flac", Limits()).samples
    takes = Waveform(samples=np.tile(np.concatenate([once, np.zeros(3_200, np.float32)]), 9))
    (segment,) = transcriber.transcribe([takes])
    assert segment is not None
    assert segment.is_retried
    assert segment.text.lower().count("comparatively modern") == 9
    starts_s = [word.start_s for word in segment.words]
    assert starts_s == sorted(starts_s)
