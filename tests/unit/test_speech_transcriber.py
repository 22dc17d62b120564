"""What the transcriber does around the model, with a tiny model of random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from soundstage.errors import ModelError, SampleRateMismatch
from soundstage.models import registry
from soundstage.models.registry import ModelCard, ModelFolder
from soundstage.params import DecodingParams, MoonshineParams
from soundstage.speech import model, shapes, shortlist
from soundstage.speech.decoding import Decoded, GreedyDecoder, Trace
from soundstage.speech.fallback import compression_ratio, is_astray, is_latin
from soundstage.speech.hinting import Tables
from soundstage.speech.tokenizer import TOKENIZER_NAME, Tokenizer
from soundstage.speech.transcriber import Transcriber
from soundstage.types import Waveform

TINY = MoonshineParams(
    hidden_size=16,
    n_heads=2,
    n_encoder_layers=2,
    n_decoder_layers=2,
    rotary_size=4,
    vocabulary_size=12,
    alignment_layer=1,
    alignment_heads=(1,),
)
PIECES = ["<unk>", "<s>", "</s>", "▁zero", "▁one", "▁two", "▁three", "▁You", ".", "▁♪", "▁seven", "▁eight"]
CARD = ModelCard(name="tiny", version="1", kind="speech", description="", licence="CC0-1.0", source="test")


def random_weights(seed: int = 0) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.weight_shapes(TINY).items()}


def write(
    path: Path,
    *,
    card: ModelCard = CARD,
    pieces: Sequence[str] = PIECES,
    weights: dict[str, NDArray[np.generic]] | None = None,
) -> ModelFolder:
    weights = random_weights() if weights is None else weights
    tokenizer = b"".join(bytes([len(piece.encode())]) + piece.encode() for piece in pieces)
    return registry.write_folder(path, card, params=TINY, weights=weights, readme="", extra={TOKENIZER_NAME: tokenizer})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return write(tmp_path_factory.mktemp("models"))


def tone(duration_s: float, start_s: float = 0.0) -> Waveform:
    t = np.arange(round(duration_s * 16_000)) / 16_000
    return Waveform(samples=np.sin(2 * np.pi * 440 * t).astype(np.float32), start_s=start_s)


class ScriptedDecoder:
    """Writes what a test wants, and notes what it was given."""

    def __init__(self, *results: Decoded) -> None:
        self.results = list(results)
        self.batches: list[tuple[list[int], list[int]]] = []

    def decode(
        self, batch: Sequence[NDArray[np.float32]], max_tokens: Sequence[int], trees: Tables | None = None
    ) -> list[Decoded]:
        self.batches.append(([len(samples) for samples in batch], list(max_tokens)))
        if self.results:
            return [self.results.pop(0) for _ in batch]
        # The token tells the length in tenths of a second, 0.4 s of silence included.
        return [Decoded(token_ids=(3 + len(s) // 1600 - 4,), avg_logprob=-0.1, has_ended=True) for s in batch]


def scripted(folder: ModelFolder, decoder: ScriptedDecoder, params: DecodingParams | None = None) -> Transcriber:
    transcriber = Transcriber(folder, params)
    transcriber._decoder = decoder  # type: ignore[assignment]
    return transcriber


def test_results_keep_the_callers_order_and_times(folder: ModelFolder) -> None:
    waveforms = [tone(0.1, 5.0), tone(0.3, 9.0), tone(0.0, 9.5), tone(0.2, 1.0)]
    segments = scripted(folder, ScriptedDecoder()).transcribe(waveforms)
    found = [segment and (segment.text, segment.start_s, round(segment.end_s, 6)) for segment in segments]
    assert found == [("one", 5.0, 5.1), ("three", 9.0, 9.3), None, ("two", 1.0, 1.2)]


def test_batches_hold_like_lengths_within_the_bound(folder: ModelFolder) -> None:
    decoder = ScriptedDecoder()
    lengths_s = [0.1, 0.4, 0.2, 0.4, 0.1, 0.2, 0.3]
    scripted(folder, decoder, DecodingParams(max_batch_s=2.0)).transcribe([tone(length) for length in lengths_s])
    padded_s = [[n / 16_000 for n in batch] for batch, _ in decoder.batches]
    assert padded_s == [[0.8, 0.8], [0.7, 0.6], [0.6, 0.5, 0.5]]
    assert all(len(batch) * max(batch) <= 2.0 for batch in padded_s)


def test_a_row_may_write_so_many_tokens_a_second(folder: ModelFolder) -> None:
    decoder = ScriptedDecoder()
    scripted(folder, decoder, DecodingParams(max_tokens_per_s=6.5)).transcribe([tone(0.6)])
    assert decoder.batches[0][1] == [7]  # of 1.0 s, silence included, rounded up


@pytest.mark.parametrize(
    ("decoded", "text"),
    [
        (Decoded(token_ids=(3, 4), avg_logprob=-0.3, has_ended=True), "zero one"),
        (Decoded(token_ids=(), avg_logprob=-0.3, has_ended=True), None),
        (Decoded(token_ids=(3, 4), avg_logprob=-0.71, has_ended=True), None),
        (Decoded(token_ids=(3, 4), avg_logprob=float("nan"), has_ended=True), None),
        (Decoded(token_ids=(3, 4), avg_logprob=-0.3, has_ended=False), None),
        (Decoded(token_ids=(3, 4) * 20, avg_logprob=-0.1, has_ended=True), None),
        (Decoded(token_ids=(9, 9), avg_logprob=-0.1, has_ended=True), None),
        (Decoded(token_ids=(7,), avg_logprob=-0.1, has_ended=True), None),
        (Decoded(token_ids=(7, 8), avg_logprob=-0.1, has_ended=True), "You."),
    ],
    ids=["believed", "nothing", "improbable", "not finite", "cut off", "in a loop", "notes", "filler", "spoken"],
)
def test_text_that_cannot_be_believed_is_dropped(folder: ModelFolder, decoded: Decoded, text: str | None) -> None:
    segment = scripted(folder, ScriptedDecoder(decoded)).transcribe([tone(1.0)])[0]
    assert (segment and segment.text) == text


def test_prose_does_not_count_as_a_loop() -> None:
    prose = (
        "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness"
    )
    assert compression_ratio(prose) < DecodingParams().max_compression_ratio < compression_ratio("again and " * 15)


def test_the_cache_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token by token, as in serving, gives what reading the whole row at once gives, in the same precision."""
    monkeypatch.setattr(shortlist, "integer_products", tuple)
    n_tokens, samples = 9, tone(1.0).samples
    decoded = GreedyDecoder(random_weights(), TINY.model_copy(update={"end_token_id": -1})).decode(
        [samples], [n_tokens]
    )[0]
    assert len(decoded.token_ids) == n_tokens
    assert len(set(decoded.token_ids)) > 1  # else the test could not fail
    assert not decoded.has_ended

    ready = model.prepare(random_weights(), TINY)
    padded = np.pad(samples, (0, shapes.pad_length(len(samples)) - len(samples)))[None]
    encoded = model.encode(ready, TINY, padded, np.array([len(samples)], np.int32))
    given = tf.constant([[TINY.start_token_id, *decoded.token_ids[:-1]]], tf.int32)
    logits, _ = model.decode(ready, TINY, given, model.empty_cache(TINY, 1), encoded, position=0)
    logprobs = tf.nn.log_softmax(logits[0]).numpy()
    assert tuple(logprobs.argmax(axis=-1)) == decoded.token_ids
    np.testing.assert_allclose(logprobs.max(axis=-1).mean(), decoded.avg_logprob, atol=1e-5)


def test_a_rows_limit_and_result_do_not_depend_on_its_batch() -> None:
    decoder = GreedyDecoder(random_weights(), TINY)
    rng = np.random.default_rng(1)
    rows = [rng.normal(0, 0.3, n).astype(np.float32) for n in (2_000, 30_001, 9_000, 16_000)]
    limits = [3, 12, 5, 7]
    together = decoder.decode(rows, limits)
    for row, limit, result in zip(rows, limits, together, strict=True):
        alone = decoder.decode([row], [limit])[0]
        assert (alone.token_ids, alone.has_ended) == (result.token_ids, result.has_ended)
        assert alone.avg_logprob == pytest.approx(result.avg_logprob, abs=1e-5)
        assert len(alone.token_ids) + alone.has_ended <= limit


@pytest.mark.parametrize("n_rows", [1, 5])
def test_the_whole_head_finds_the_most_probable_token(n_rows: int) -> None:
    rng = np.random.default_rng(0)
    embedding, states = (rng.normal(size=size).astype(np.float32) for size in ((1_024, 24), (n_rows, 24)))
    tokens, logprobs = tf.function(shortlist.whole_head(tf.constant(embedding)))(states)
    logits = states @ embedding.T
    assert tokens.numpy().tolist() == logits.argmax(axis=1).tolist()
    np.testing.assert_allclose(logprobs, tf.nn.log_softmax(logits).numpy().max(axis=1), atol=1e-4)


@pytest.mark.parametrize("end_token_id", [-1, TINY.end_token_id])
def test_what_was_expected_changes_nothing(end_token_id: int) -> None:
    """Rightly, in part, wrongly, beyond the end, beyond the limit, or nothing at all; alone and together.

    Products of several rows round otherwise than those of one.
    """
    decoder = GreedyDecoder(random_weights(), TINY.model_copy(update={"end_token_id": end_token_id}))
    rng = np.random.default_rng(1)
    rows = [rng.normal(0, 0.3, n).astype(np.float32) for n in (9_000, 30_001, 9_000, 16_000, 20_000, 12_000)]
    limits = [7, 12, 9, 12, 2, 1]
    plain = decoder.decode(rows, limits)
    written = [list(result.token_ids) for result in plain]
    assert max(map(len, written)) > 4  # else there is nothing to expect
    other = TINY.vocabulary_size - 1
    drafts = [written[0], written[1][:4], [other, *written[2]], [*written[3], *[other] * 20], written[4], []]
    together = decoder.decode(rows, limits, drafts=drafts)
    alone = [
        decoder.decode([row], [limit], drafts=[draft])[0]
        for row, limit, draft in zip(rows, limits, drafts, strict=True)
    ]
    for expected, *others in zip(plain, together, alone, strict=True):
        for result in others:
            assert (result.token_ids, result.has_ended) == (expected.token_ids, expected.has_ended)
            assert result.avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-4)
            assert result.trace is not None
            assert expected.trace is not None
            np.testing.assert_allclose(result.trace.logprobs, expected.trace.logprobs, atol=1e-4)
            np.testing.assert_allclose(result.trace.attention, expected.trace.attention, atol=1e-4)


def test_what_was_expected_rightly_takes_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step asks for the next token of one place in each row, looking at a draft for those of all its places."""
    decoder = GreedyDecoder(random_weights(), TINY.model_copy(update={"end_token_id": -1}))
    samples = tone(1.0).samples
    (plain,) = decoder.decode([samples], [9])
    n_places: list[int] = []
    own = decoder._next_token

    def counting(states: tf.Tensor, bonus: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        tf.py_function(lambda n: n_places.append(int(n)), [tf.shape(states)[0]], [])
        return own(states, bonus)

    monkeypatch.setattr(decoder, "_next_token", counting)
    (drafted,) = decoder.decode([samples], [9], drafts=[plain.token_ids[:6]])
    assert drafted.token_ids == plain.token_ids
    assert n_places == [7, 1, 1]


def test_a_row_tells_how_sure_it_was_and_where_it_looked() -> None:
    """For each token; the same whatever else is in the batch."""
    rng = np.random.default_rng(1)
    rows = [rng.normal(0, 0.3, n).astype(np.float32) for n in (9_000, 30_001)]
    decoder = GreedyDecoder(random_weights(), TINY.model_copy(update={"end_token_id": -1}))
    together = decoder.decode(rows, [7, 12])
    for row, result, n_tokens in zip(rows, together, [7, 12], strict=True):
        trace, alone = result.trace, decoder.decode([row], [n_tokens])[0].trace
        assert trace is not None
        assert alone is not None
        assert trace.attention.shape == (n_tokens, shapes.n_frames_of(len(row)))
        np.testing.assert_allclose(trace.attention.sum(axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(trace.attention, alone.attention, atol=5e-5)
        np.testing.assert_allclose(trace.logprobs, alone.logprobs, atol=5e-5)
        assert trace.logprobs.mean() == pytest.approx(result.avg_logprob)


def test_a_model_without_heads_for_it_gives_no_words(folder: ModelFolder) -> None:
    without = GreedyDecoder(random_weights(), TINY.model_copy(update={"alignment_heads": ()}))
    assert without.decode([tone(1.0).samples], [5])[0].trace is None
    decoded = Decoded(token_ids=(3, 4), avg_logprob=-0.3, has_ended=True)
    (segment,) = scripted(folder, ScriptedDecoder(decoded)).transcribe([tone(1.0)])
    assert segment is not None
    assert segment.words == ()


def test_words_have_stream_times_and_the_probability_of_their_tokens(folder: ModelFolder) -> None:
    """The full stop is a token of its own, whose probability says nothing of the word."""
    n_frames = shapes.n_frames_of(16_000 + 6_400)
    attention = np.zeros((4, n_frames), np.float32)
    for token, frames in enumerate([slice(0, 20), slice(20, 30), slice(30, 50), slice(50, n_frames)]):
        attention[token, frames] = 1
    attention /= attention.sum(axis=1, keepdims=True)
    trace = Trace(np.log(np.array([0.9, 0.5, 0.8, 0.1], np.float32)), attention)
    decoded = Decoded(token_ids=(3, 4, 5, 8), avg_logprob=-0.3, has_ended=True, trace=trace)
    (segment,) = scripted(folder, ScriptedDecoder(decoded)).transcribe([tone(1.0, 5.0)])
    assert segment is not None
    assert [word.text for word in segment.words] == ["zero", "one", "two."] == segment.text.split()
    assert [word.confidence for word in segment.words] == pytest.approx([0.9, 0.5, 0.8])
    assert [word.start_s for word in segment.words] == pytest.approx([5.0, 5.3, 5.54], abs=0.03)
    assert segment.words[-1].end_s <= segment.end_s


def test_warm_up_notices_a_broken_model(tmp_path: Path) -> None:
    Transcriber(write(tmp_path / "good")).warm_up()
    not_finite = {"decoder.norm.scale": np.full(16, np.nan, np.float32)}
    broken = write(tmp_path / "bad", weights=random_weights() | not_finite)
    with pytest.raises(RuntimeError, match="not finite"):
        Transcriber(broken).warm_up()


def test_another_rate_is_refused(folder: ModelFolder) -> None:
    with pytest.raises(SampleRateMismatch):
        Transcriber(folder).transcribe([Waveform(samples=np.zeros(8_000, np.float32), sample_rate=8_000)])


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    incomplete = random_weights()
    del incomplete["decoder.norm.scale"]
    unfit = {
        "is a sound model": write(tmp_path / "kind", card=CARD.model_copy(update={"kind": "sound"})),
        "knows 3 tokens": write(tmp_path / "tokens", pieces=PIECES[:3]),
        "decoder.norm.scale": write(tmp_path / "weights", weights=incomplete),
    }
    for message, folder in unfit.items():
        with pytest.raises(ModelError, match=message):
            Transcriber(folder)


def test_where_the_model_lost_its_way_it_is_asked_again_for_each_half(folder: ModelFolder) -> None:
    """Cut in the pause; the text of both halves is one segment, marked."""
    loop = Decoded(token_ids=(3, 4) * 20, avg_logprob=-0.1, has_ended=True)
    halves = [Decoded(token_ids=ids, avg_logprob=-0.2, has_ended=True) for ids in ((3,), (4, 5))]
    decoder = ScriptedDecoder(loop, *reversed(halves))  # the longer half is decoded first
    voice = tone(3.0).samples.copy()
    voice[20_000:24_000] = 0
    (segment,) = scripted(folder, decoder).transcribe([Waveform(samples=voice, start_s=5.0)])
    assert segment is not None
    assert (segment.text, segment.start_s, segment.end_s) == ("zero one two", 5.0, 8.0)
    assert segment.is_retried
    assert segment.avg_logprob == pytest.approx(-0.2)
    silence = 6_400
    first, second = sorted(n - silence for lengths, _ in decoder.batches[1:] for n in lengths)
    assert first + second == len(voice)
    assert 20_000 <= first <= 24_000


@pytest.mark.parametrize(
    "astray",
    [
        Decoded(token_ids=(3, 4) * 20, avg_logprob=-0.1, has_ended=True),
        Decoded(token_ids=(3, 4), avg_logprob=-0.1, has_ended=False),
    ],
    ids=["in a loop", "cut off"],
)
def test_a_half_that_is_astray_too_is_dropped(folder: ModelFolder, astray: Decoded) -> None:
    sound = Decoded(token_ids=(5,), avg_logprob=-0.2, has_ended=True)
    transcriber = scripted(folder, ScriptedDecoder(astray, astray, sound))
    (segment,) = transcriber.transcribe([tone(3.0)])
    assert segment is not None
    assert segment.text == "two"
    (nothing,) = scripted(folder, ScriptedDecoder(astray, astray, astray)).transcribe([tone(3.0)])
    assert nothing is None


def test_halves_are_halved_again(folder: ModelFolder) -> None:
    astray = Decoded(token_ids=(3, 4), avg_logprob=-0.1, has_ended=False)
    sound = Decoded(token_ids=(5,), avg_logprob=-0.2, has_ended=True)
    decoder = ScriptedDecoder(*[astray] * 3, *[sound] * 4)
    (segment,) = scripted(folder, decoder).transcribe([tone(6.0)])
    assert segment is not None
    assert segment.text == "two two two two"


@pytest.mark.parametrize(
    ("text", "is_ours"), [("Zoë, naïve façade: 42 %", True), ("Привет", False), ("ab 你好", False)]
)
def test_another_script_is_noticed(text: str, is_ours: bool) -> None:
    assert is_latin(text) == is_ours
    assert is_astray(text, has_ended=True, params=DecodingParams()) != is_ours


def test_hints_that_make_a_text_unbelievable_are_passed_over(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "encode", lambda _, text: [PIECES.index("▁" + word) for word in text.split()])
    plain = Decoded(token_ids=(3, 4), avg_logprob=-0.1, has_ended=True)
    for avg_logprob, text in ((-0.6, "zero two"), (-0.8, "zero one"), (-4.0, "zero one")):
        led = Decoded(token_ids=(3, 5), avg_logprob=avg_logprob, has_ended=True)
        (segment,) = scripted(folder, ScriptedDecoder(plain, led)).transcribe([tone(1.0)], [("two",)])
        assert segment is not None
        assert segment.text == text


def test_without_hints_nothing_is_decoded_twice(folder: ModelFolder) -> None:
    decoder = ScriptedDecoder()
    scripted(folder, decoder).transcribe([tone(0.1), tone(0.2)], [(), ()])
    assert len(decoder.batches) == 1
