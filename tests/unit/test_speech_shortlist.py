"""The next token by the shortlist is the one that the whole output head gives."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from soundstage.speech import shortlist

pytestmark = pytest.mark.skipif(
    not shortlist.integer_products(), reason="NOT PROVEN: no 8-bit products on this processor"
)

N_ROWS, HIDDEN_SIZE = 12, 48


@pytest.fixture(params=[40, 8_192], ids=["small", "in blocks"])
def embedding(request: pytest.FixtureRequest) -> tf.Tensor:
    """Rows of very different size, as a trained one has."""
    rng = np.random.default_rng(0)
    sizes = rng.uniform(0.1, 1, (request.param, 1))
    return tf.constant((sizes * rng.normal(size=(request.param, HIDDEN_SIZE))).astype(np.float32))


@pytest.fixture(params=shortlist.integer_products(), ids=lambda product: f"{product.n_bits} bits")
def product(request: pytest.FixtureRequest) -> shortlist.IntegerProduct:
    found: shortlist.IntegerProduct = request.param
    return found


@pytest.fixture
def states() -> tf.Tensor:
    """Some in which nothing stands out; one is zero throughout."""
    rng = np.random.default_rng(1)
    states = rng.normal(size=(N_ROWS, HIDDEN_SIZE)) * np.linspace(0, 2, N_ROWS)[:, None]
    return tf.constant(states.astype(np.float32))


def test_token_and_probability_are_those_of_the_whole_head(
    embedding: tf.Tensor, states: tf.Tensor, product: shortlist.IntegerProduct
) -> None:
    tokens, logprobs = tf.function(shortlist.shortlisted(embedding, product))(states)
    whole_tokens, whole_logprobs = shortlist.whole_head(embedding)(states)
    assert len(set(tokens.numpy().tolist())) > 1
    assert tokens.numpy()[1:].tolist() == whole_tokens.numpy()[1:].tolist()
    np.testing.assert_allclose(logprobs, whole_logprobs, atol=0.01)


def test_a_row_does_not_depend_on_the_others(
    embedding: tf.Tensor, states: tf.Tensor, product: shortlist.IntegerProduct
) -> None:
    next_token = tf.function(shortlist.shortlisted(embedding, product))
    tokens, logprobs = next_token(states)
    for row in range(N_ROWS):
        token, logprob = next_token(states[row : row + 1])
        assert token.numpy()[0] == tokens.numpy()[row]
        np.testing.assert_allclose(logprob[0], logprobs[row], atol=1e-6)


def test_near_ties_are_settled_exactly(product: shortlist.IntegerProduct) -> None:
    """Ten tokens that 8 bits cannot tell apart: only their exact logits can."""
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(512, HIDDEN_SIZE)).astype(np.float32)
    leaders = rng.permutation(512)[:10]
    rows[leaders] = rows[leaders[0]] * 3
    rows[leaders, 0] += 1e-4 * np.arange(10)
    state = rows[leaders[:1]] * [1 if i else np.sign(rows[leaders[0], 0]) for i in range(HIDDEN_SIZE)]
    state[0, 0] = 1.0
    token, _ = tf.function(shortlist.shortlisted(tf.constant(rows), product))(tf.constant(state.astype(np.float32)))
    assert token.numpy()[0] == leaders[-1]
