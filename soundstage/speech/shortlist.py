"""The most probable token after each state of the decoder, without reading the whole output head.

The head is 38 MB of float32, and each step reads all of it for a few rows: it took 5 ms of a step's 12 at a batch of
8 on one thread. Its 8-bit copy is a quarter of that and is multiplied in integers. The tokens that lead by it are
then compared by their exact logits, so that the text is that of the whole head; a row's result does not depend on
the others, since each row has a scale of its own and sums of integers are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray


class NextToken(Protocol):
    """How the next token of each row is chosen."""

    def __call__(self, states: tf.Tensor, bonus: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """The next tokens.

        Args:
            states: As of `model.decoder_states`.
            bonus: float32 (n_rows, vocabulary_size), added to the logits before the greatest is chosen.

        Returns:
            Token numbers int32 and their natural log probabilities, in which the bonus does not count, a row each.
        """
        ...


N_CANDIDATES = 16
"""Whose logits are computed exactly. Those of 7 bits err by 0.2 (one in a hundred leaders more), those of 8 by 0.1; in
789 steps the first choice led by 8, and was first or second by 7."""
_BLOCK_SIZE = 256
"""Candidates are looked for in the blocks of the vocabulary with the greatest maxima: 10 times as fast as top_k."""


def whole_head(embedding: tf.Tensor) -> NextToken:
    """By all logits.

    Args:
        embedding: float32 (vocabulary_size, hidden_size).
    """

    def next_token(states: tf.Tensor, bonus: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        return _best(tf.matmul(states, embedding, transpose_b=True), bonus)

    return next_token


def _best(logits: tf.Tensor, bonus: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    token_ids = tf.argmax(logits if bonus is None else logits + bonus, axis=-1, output_type=tf.int32)
    return token_ids, tf.gather(logits, token_ids, batch_dims=1) - tf.reduce_logsumexp(logits, axis=-1)


def shortlisted(embedding: tf.Tensor, product: IntegerProduct) -> NextToken:
    """By the exact logits of those that lead in 8 bits; the others count for the probability as they are in 8 bits.

    Args:
        embedding: float32 (vocabulary_size, hidden_size).
        product: Which gives the logits in 8 bits.
    """
    codes, scales = _quantised(embedding.numpy())
    vocabulary_size = len(scales)
    block_size = _BLOCK_SIZE if vocabulary_size % _BLOCK_SIZE == 0 else 1
    n_candidates = min(N_CANDIDATES, vocabulary_size)
    n_blocks = vocabulary_size // block_size

    def next_token(states: tf.Tensor, bonus: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        logits = product(states, codes) * scales
        led = logits if bonus is None else logits + bonus
        blocks = tf.reshape(led, (-1, n_blocks, block_size))  # the best n tokens are in the best n blocks
        best_blocks = tf.math.top_k(tf.reduce_max(blocks, axis=-1), min(n_candidates, n_blocks)).indices
        leading = tf.gather(blocks, best_blocks, batch_dims=1)
        leading = tf.reshape(leading, (-1, leading.shape[1] * block_size))
        rough, places = tf.math.top_k(leading, n_candidates)
        block = tf.gather(best_blocks, places // block_size, batch_dims=1)
        token_ids = block * block_size + places % block_size  # (n_rows, n_candidates)
        exact = tf.linalg.matvec(tf.gather(embedding, token_ids), states)
        own = None if bonus is None else tf.gather(bonus, token_ids, batch_dims=1)
        best = tf.argmax(exact if own is None else exact + own, axis=-1, output_type=tf.int32)
        top = tf.reduce_max(exact, axis=-1, keepdims=True)
        of_all = tf.reduce_sum(tf.exp(logits - top), axis=-1)
        of_candidates = tf.reduce_sum(tf.exp(exact - top), axis=-1)
        rough = rough if own is None else rough - own
        of_others = tf.maximum(of_all - tf.reduce_sum(tf.exp(rough - top), axis=-1), 0.0)
        behind = 0.0 if own is None else tf.gather(exact, best, batch_dims=1) - top[:, 0]
        return tf.gather(token_ids, best, batch_dims=1), behind - tf.math.log(of_candidates + of_others)

    return next_token


class IntegerProduct(NamedTuple):
    """A way to multiply integers exactly.

    Attributes:
        n_bits: Of the states.
        multiply: Rounded states uint8 (n_rows, hidden_size) times codes (hidden_size, n_columns), plus int32
            (n_columns,): int32 (n_rows, n_columns).
    """

    n_bits: int
    multiply: Callable[[tf.Tensor, NDArray[np.int8], NDArray[np.int32]], tf.Tensor]

    def __call__(self, states: tf.Tensor, codes: NDArray[np.int8]) -> tf.Tensor:
        """States, rounded, times codes: float32 (n_rows, n_columns)."""
        greatest = 2 ** (self.n_bits - 1) - 1
        scale = tf.maximum(tf.reduce_max(tf.abs(states), axis=-1, keepdims=True), 1e-9) / greatest
        offset = greatest + 1
        rounded = tf.cast(tf.round(states / scale) + offset, tf.uint8)
        sums = self.multiply(rounded, codes, -offset * codes.sum(axis=0, dtype=np.int32))
        return tf.cast(sums, tf.float32) * scale


def _by_matmul(states: tf.Tensor, codes: NDArray[np.int8], bias: NDArray[np.int32]) -> tf.Tensor:
    sums, _, _ = tf.raw_ops.QuantizedMatMulWithBias(
        a=tf.bitcast(states, tf.quint8),
        b=tf.bitcast(tf.constant(codes), tf.qint8),
        bias=tf.bitcast(tf.constant(bias), tf.qint32),
        min_a=0.0,
        max_a=255.0,
        min_b=-127.0,
        max_b=127.0,
        input_quant_mode="SCALED",
    )
    return tf.bitcast(sums, tf.int32)


def _by_convolution(states: tf.Tensor, codes: NDArray[np.int8], bias: NDArray[np.int32]) -> tf.Tensor:
    sums, _, _ = tf.raw_ops.QuantizedConv2D(
        input=tf.bitcast(states[None, :, None, :], tf.quint8),
        filter=tf.bitcast(tf.constant(codes[None, None]), tf.qint8),
        min_input=0.0,
        max_input=255.0,
        min_filter=-127.0,
        max_filter=127.0,
        out_type=tf.qint32,
        strides=[1, 1, 1, 1],
        padding="VALID",
    )
    return tf.bitcast(sums, tf.int32)[0, :, 0, :] + bias


_PRODUCTS = (IntegerProduct(8, _by_matmul), IntegerProduct(7, _by_convolution))
"""The fastest first. In both the codes are a constant of the graph, which oneDNN rearranges once and not at every step;
its matrix product does so on processors with VNNI only, which also sum without loss. On the others two products share
16 bits, which those of 7 and 8 bits do not fill."""


@cache
def integer_products() -> tuple[IntegerProduct, ...]:
    """Those that are exact here, the fastest first: oneDNN's, on x86 processors; none on GPUs and in other builds."""
    if tf.config.list_physical_devices("GPU"):
        return ()
    return tuple(product for product in _PRODUCTS if _is_exact(product))


def _is_exact(product: IntegerProduct) -> bool:
    greatest = 2 ** (product.n_bits - 1) - 1
    rng = np.random.default_rng(0)
    codes = rng.choice(np.array([-127, 127], np.int8), (256, 64))
    codes[:, 0] = 127
    states = rng.choice(np.array([-greatest, greatest], np.float32), (2, 256))
    states[0] = greatest
    try:
        sums = tf.function(lambda: product(tf.constant(states), codes))()
    except (tf.errors.OpError, ValueError):
        return False
    return bool(np.array_equal(sums, states @ codes.astype(np.float32)))


def _quantised(embedding: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (hidden_size, vocabulary_size), and what each column is multiplied by (vocabulary_size,)."""
    scales = np.maximum(np.abs(embedding).max(axis=1), 1e-9) / 127
    return np.ascontiguousarray(np.rint(embedding / scales[:, None]).astype(np.int8).T), scales.astype(np.float32)
