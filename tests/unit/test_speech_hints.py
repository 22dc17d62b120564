"""Names that are expected are written where they may have been said, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf

from soundstage.errors import InvalidRequest
from soundstage.params import HintParams
from soundstage.speech import shortlist
from soundstage.speech.decoding import GreedyDecoder
from soundstage.speech.hinting import Hinting, tables
from soundstage.speech.hints import hints_of_prompt, is_better, n_found, parse_hints
from soundstage.speech.tokenizer import WORD_START, Tokenizer
from tests.unit.test_speech_transcriber import PIECES, TINY, random_weights


class WordTokenizer(Tokenizer):
    """A word is a token."""

    def encode(self, text: str) -> list[int]:
        return [PIECES.index(WORD_START + word) for word in text.split()]


TOKENIZER = WordTokenizer(piece.encode() for piece in PIECES)
LIMITS = HintParams(max_phrases=3, max_chars=10, max_total_chars=40)


def test_a_list_is_read_from_commas_and_lines() -> None:
    assert parse_hints(" Ophelia,Polonius\n\nKing  Claudius,, Ophelia ") == ("Ophelia", "Polonius", "King Claudius")
    assert parse_hints("") == ()


@pytest.mark.parametrize(
    ("text", "hint"),
    [("a,b,c,d", "3 phrases"), ("a" * 11, "10 characters"), ("x," * 21, "40 characters"), ("a, ..", "no letter")],
)
def test_a_list_beyond_the_limits_is_refused(text: str, hint: str) -> None:
    with pytest.raises(InvalidRequest, match=hint):
        parse_hints(text, LIMITS)


def test_a_prompt_is_never_refused() -> None:
    assert hints_of_prompt("Ophelia, Elsinore, .., " + "a" * 11, LIMITS) == ("Ophelia", "Elsinore")
    assert hints_of_prompt("this is a talk about boats, Ushant") == ("Ushant",)
    assert hints_of_prompt("x," * 1_000, LIMITS) == ("x",)


def test_phrases_count_as_whole_words() -> None:
    assert n_found(["Ann", "St. Ives"], "Ann, Anne and Ann-Marie met in St. Ives.") == 3


def test_a_phrase_more_is_worth_so_much_probability() -> None:
    params = HintParams(phrase_bonus=5.0)
    assert is_better(1, -14.0, -10.0, params)
    assert is_better(2, -19.0, -10.0, params)
    assert not is_better(1, -16.0, -10.0, params)
    assert not is_better(0, -9.0, -10.0, params), "without a phrase more there is no reason for it"


def test_a_tree_leads_along_its_phrases_and_back() -> None:
    """Two rows with lists of their own, one without."""
    params = HintParams(start_bonus=1.0, continue_bonus=2.0)
    zero, one, two, three = (TOKENIZER.encode(word)[0] for word in ("zero", "one", "two", "three"))
    hinting = Hinting(tables([("one two", "one three", "two"), (), ("zero",)], TOKENIZER), params)
    rows, nodes = tf.range(3), hinting.roots()
    assert bonuses(hinting, rows, nodes) == [{one: 1.0, two: 1.0}, {}, {zero: 1.0}]
    nodes = hinting.follow(rows, nodes, tf.constant([one, one, one]))
    assert bonuses(hinting, rows, nodes) == [{one: 1.0, two: 2.0, three: 2.0}, {}, {zero: 1.0}]
    assert bonuses(hinting, rows[:1], nodes[:1]) == [{one: 1.0, two: 2.0, three: 2.0}], "when other rows have ended"
    nodes = hinting.follow(rows, nodes, tf.constant([one, one, zero]))
    assert bonuses(hinting, rows, nodes)[0] == {one: 1.0, two: 2.0, three: 2.0}, "begun anew"
    nodes = hinting.follow(rows, nodes, tf.constant([zero, two, zero]))
    assert bonuses(hinting, rows, nodes) == [{one: 1.0, two: 1.0}, {}, {zero: 1.0}], "left, or at its end"


def bonuses(hinting: Hinting, rows: tf.Tensor, nodes: tf.Tensor) -> list[dict[int, float]]:
    matrix = hinting.bonus(rows, nodes).numpy()
    return [{int(i): float(row[i]) for i in np.nonzero(row)[0]} for row in matrix]


def texts(decoder: GreedyDecoder, rows: Sequence[np.ndarray], hints: Sequence[tuple[str, ...]]) -> list[str]:
    found = decoder.decode(rows, [6] * len(rows), tables(hints, TOKENIZER))
    return [TOKENIZER.decode(row.token_ids) for row in found]


def test_each_row_of_a_batch_is_led_by_its_own_hints() -> None:
    rng = np.random.default_rng(1)
    rows = [rng.normal(0, 0.3, n).astype(np.float32) for n in (9_000, 16_000, 12_000)]
    never_ends = TINY.model_copy(update={"end_token_id": -1})
    decoder = GreedyDecoder(random_weights(), never_ends, HintParams(start_bonus=50.0, continue_bonus=100.0))
    plain = decoder.decode(rows, [6] * 3)
    hints: list[tuple[str, ...]] = [("seven eight two",), (), ("three one",)]
    together = texts(decoder, rows, hints)
    assert together == [
        "seven eight two seven eight two",
        TOKENIZER.decode(plain[1].token_ids),
        "three one " * 2 + "three one",
    ]
    assert [texts(decoder, [row], [own])[0] for row, own in zip(rows, hints, strict=True)] == together
    led = decoder.decode(rows, [6] * 3, tables(hints, TOKENIZER))
    assert led[0].avg_logprob < plain[0].avg_logprob, "probabilities are the model's own, without the bonus"
    assert led[1].avg_logprob == pytest.approx(plain[1].avg_logprob, abs=1e-5)


@pytest.mark.skipif(not shortlist.integer_products(), reason="NOT PROVEN: no 8-bit products on this processor")
def test_the_shortlist_heeds_a_bonus_like_the_whole_head() -> None:
    """Tokens that are far from leading, too."""
    rng = np.random.default_rng(0)
    embedding = tf.constant(rng.normal(size=(8_192, 48)).astype(np.float32))
    states = tf.constant(rng.normal(size=(12, 48)).astype(np.float32))
    bonus = np.zeros((12, 8_192), np.float32)
    bonus[np.arange(0, 12, 2), rng.integers(0, 8_192, 6)] = 60.0
    tokens, logprobs = tf.function(shortlist.shortlisted(embedding, shortlist.integer_products()[0]))(
        states, tf.constant(bonus)
    )
    whole = shortlist.whole_head(embedding)(states, tf.constant(bonus))
    assert tokens.numpy().tolist() == whole[0].numpy().tolist()
    assert set(np.nonzero(bonus)[1]) <= set(tokens.numpy().tolist())
    np.testing.assert_allclose(logprobs, whole[1], atol=0.02)
