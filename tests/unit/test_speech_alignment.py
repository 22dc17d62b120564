"""Where words lie, with attention that is made up: order, bounds, pauses, and independence of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from soundstage.params import AlignmentParams
from soundstage.speech.alignment import FRAME_HOP, Span, Utterance, align, cheapest_paths, timed_words, tokens_of_words
from soundstage.speech.shapes import n_frames_of
from soundstage.speech.tokenizer import Tokenizer
from soundstage.types import SAMPLE_RATE

N_SILENCE = 3_200
FRAME_S = FRAME_HOP / SAMPLE_RATE


def utterance(
    n_tokens: Sequence[int], n_samples: int, *, attention: NDArray[np.float32] | None = None, seed: int = 0
) -> Utterance:
    """Words of so many tokens each, in noise; attention at random where none is given."""
    rng = np.random.default_rng(seed)
    silence = np.zeros(N_SILENCE, np.float32)
    levels = np.repeat(10 ** rng.uniform(-4, 0, n_samples // 800 + 1), 800)[:n_samples]
    samples = np.concatenate([silence, (levels * rng.normal(0, 0.1, n_samples)).astype(np.float32), silence])
    if attention is None:
        attention = rng.dirichlet(np.full(n_frames_of(len(samples)), 0.1), sum(n_tokens)).astype(np.float32)
    ends = np.cumsum(n_tokens).tolist()
    words = [range(end - n, end) for n, end in zip(n_tokens, ends, strict=True)]
    return Utterance(samples=samples, n_silence=N_SILENCE, attention=attention, words=words)


utterances = st.builds(
    utterance,
    st.lists(st.integers(1, 4), min_size=1, max_size=8),
    st.integers(1_600, 40_000),
    seed=st.integers(0, 999),
)


@given(utterances)
def test_words_are_in_order_and_lie_within_the_sound(given_utterance: Utterance) -> None:
    """Also where there are more tokens than frames."""
    (spans,) = align([given_utterance], AlignmentParams())
    assert len(spans) == len(given_utterance.words)
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(edges)
    assert all(end_s - start_s > 0.001 for start_s, end_s in spans)
    assert edges[0] >= 0
    assert edges[-1] <= (len(given_utterance.samples) - 2 * N_SILENCE) / SAMPLE_RATE


@given(utterances, st.floats(0, 1e4), st.floats(0, 1))
def test_words_lie_within_their_segment(given_utterance: Utterance, start_s: float, confidence: float) -> None:
    (spans,) = align([given_utterance], AlignmentParams())
    end_s = start_s + (len(given_utterance.samples) - 2 * N_SILENCE) / SAMPLE_RATE
    texts = [f"word{i}" for i in range(len(spans))]
    words = timed_words(texts, spans, [confidence] * len(spans), start_s=start_s, end_s=end_s)
    assert [word.text for word in words] == texts
    edges = [edge for word in words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert all(word.end_s > word.start_s for word in words)
    assert start_s <= edges[0] <= edges[-1] <= end_s


@settings(max_examples=30)
@given(st.lists(utterances, min_size=2, max_size=5))
def test_words_do_not_depend_on_the_batch(batch: list[Utterance]) -> None:
    assert align(batch, AlignmentParams()) == [align([row], AlignmentParams())[0] for row in batch]


def test_nothing_to_align_gives_nothing() -> None:
    assert align([], AlignmentParams()) == []


@st.composite
def _rows(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    opens = [False]
    for n_tokens in draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)):
        opens += [True] + [False] * n_tokens
    shape = draw(st.integers(1, 9)), len(opens)
    costs = draw(hnp.arrays(np.float32, shape, elements=st.integers(0, 100).map(float)))
    return costs, np.array(opens)


@given(st.lists(_rows(), min_size=1, max_size=4))
def test_paths_are_the_cheapest_there_are(rows: list[tuple[NDArray[np.float32], NDArray[np.bool_]]]) -> None:
    """Against a search that tries everything."""
    paths = cheapest_paths([costs for costs, _ in rows], [opens for _, opens in rows])
    for (costs, opens), path in zip(rows, paths, strict=True):
        expected = _least_cost(costs, opens)
        assert (path is None) == (expected is None)
        if path is not None:
            assert costs[np.arange(len(costs)), path].sum() == expected
            assert path[0] <= 1
            assert path[-1] >= len(opens) - 2
            for before, after in pairwise(path):
                assert after - before in ((0, 1, 2) if opens[after] else (0, 1))


def _least_cost(costs: NDArray[np.float32], opens: NDArray[np.bool_]) -> float | None:
    n_frames, n_states = costs.shape

    @cache
    def to_end(frame: int, state: int) -> float:
        if frame == n_frames - 1:
            return float(costs[frame, state]) if state >= n_states - 2 else np.inf
        following = [s for s in (state, state + 1) if s < n_states]
        following += [state + 2] if state + 2 < n_states and opens[state + 2] else []
        return float(costs[frame, state]) + min(to_end(frame + 1, s) for s in following)

    least = min(to_end(0, 0), to_end(0, 1))
    return least if np.isfinite(least) else None


def spans_of(loud: Sequence[Span], attended: Sequence[Span], duration_s: float) -> list[Span]:
    """Words of one token each, in sound that is loud in some stretches; tokens attend to stretches."""
    times_s = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    is_loud = np.any([(first <= times_s) & (times_s < last) for first, last in loud], axis=0)
    noise = np.random.default_rng(0).normal(0, 0.1, len(times_s))
    sound = np.where(is_loud, noise, 1e-4 * noise).astype(np.float32)
    silence = np.zeros(N_SILENCE, np.float32)
    samples = np.concatenate([silence, sound, silence])
    middles_s = (np.arange(n_frames_of(len(samples))) * FRAME_HOP + 447 - N_SILENCE) / SAMPLE_RATE
    attention = np.array([(first <= middles_s) & (middles_s < last) for first, last in attended], np.float32)
    attention /= attention.sum(axis=1, keepdims=True)
    words = [range(i, i + 1) for i in range(len(attended))]
    (spans,) = align(
        [Utterance(samples=samples, n_silence=N_SILENCE, attention=attention, words=words)], AlignmentParams()
    )
    return spans


def test_words_that_follow_one_another_part_where_attention_does() -> None:
    spans = spans_of([(0.0, 2.0)], [(0.0, 0.4), (0.4, 1.3), (1.3, 2.0)], 2.0)
    assert spans == [pytest.approx(span, abs=FRAME_S) for span in [(0, 0.4), (0.4, 1.3), (1.3, 2)]]


def test_a_pause_belongs_to_no_word() -> None:
    """Attention reaches into the pause from both sides, as it does in speech; the level tells where words end."""
    spans = spans_of([(0.2, 0.8), (1.4, 2.0)], [(0.2, 1.0), (1.1, 2.1)], 2.3)
    assert spans == [pytest.approx(span, abs=FRAME_S) for span in [(0.2, 0.8), (1.4, 2.0)]]


def test_no_word_lies_in_the_silence_put_around_the_sound() -> None:
    """Even if that is all that its token attends to."""
    spans = spans_of([(0.0, 1.0)], [(-0.2, -0.1), (1.05, 1.15)], 1.0)
    assert 0 <= spans[0][0] < spans[0][1] <= spans[1][0] < spans[1][1] <= 1


PIECES = [b"<unk>", b"<s>", b"</s>", "▁no".encode(), b"thing", b",", "▁".encode(), "▁a▁b".encode(), b"\xc3", b"\xa9"]
TOKENIZER = Tokenizer([*PIECES, b"\xe3", b"\x80", b"x"])


@pytest.mark.parametrize(
    ("token_ids", "words"),
    [
        ([3, 4, 5, 3], [range(3), range(3, 4)]),
        ([4, 3], [range(1), range(1, 2)]),
        ([3, 6, 4], [range(2), range(2, 3)]),
        ([3, 7, 4], [range(1), range(1, 2), range(1, 3)]),
        ([8, 9, 6, 8, 9], [range(3), range(3, 5)]),
        ([12, 10, 11, 11, 12], [range(4), range(4, 5)]),
        ([0, 3], [range(2)]),
        ([], []),
        ([6, 6], []),
    ],
    ids=["words", "no space", "space alone", "two in one", "bytes", "a space of bytes", "special", "nothing", "blank"],
)
def test_every_word_knows_its_tokens(token_ids: list[int], words: list[range]) -> None:
    assert tokens_of_words(TOKENIZER, token_ids) == words


@given(st.lists(st.integers(0, 12), max_size=30))
def test_words_have_all_tokens_in_order(token_ids: list[int]) -> None:
    words = tokens_of_words(TOKENIZER, token_ids)
    assert len(words) == len(TOKENIZER.decode(token_ids).split())
    assert {i for word in words for i in word} == (set(range(len(token_ids))) if words else set())
    assert [word.start for word in words] == sorted(word.start for word in words)
