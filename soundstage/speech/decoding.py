"""Greedy decoding of a batch: at each step the most probable token of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from soundstage.params import HintParams, MoonshineParams
from soundstage.speech import model, shapes, shortlist
from soundstage.speech.hinting import Hinting, Tables

_BFLOAT16 = ("encoder.conv2.kernel", "encoder.conv3.kernel")
"""An eighth of the time of encoding, at no change of 289 texts. With the encoder's layers in it too, encoding takes
two thirds of the time, but the text of 1 clip in 96 depends on its batch: each rounding amplifies tiny differences."""


class Trace(NamedTuple):
    """What is known of each token of a row.

    Attributes:
        logprobs: float32 (n_tokens,), natural logarithms of their probabilities.
        attention: float32 (n_tokens, n_frames), where in the audio the model looked, see `model.cross_attention`.
    """

    logprobs: NDArray[np.float32]
    attention: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What the model wrote for one row.

    Attributes:
        token_ids: Without the special ones.
        avg_logprob: Mean natural logarithm of the probability of each token, that of the end included.
        has_ended: The model ended by itself, rather than at the limit.
        trace: None for a model that has no heads for it.
    """

    token_ids: tuple[int, ...]
    avg_logprob: float
    has_ended: bool
    trace: Trace | None = None

    @property
    def logprob(self) -> float:
        """Natural logarithm of the probability of the whole text, its end included."""
        return self.avg_logprob * (len(self.token_ids) + self.has_ended)


class _Rows(NamedTuple):
    """The rows that are still decoded: what each reads, and where it stands, (n_rows,) unless said."""

    index: tf.Tensor
    """In the batch."""
    last: tf.Tensor
    node: tf.Tensor
    """Of the tree of hints."""
    is_active: tf.Tensor
    cache: model.Cache
    encoded: model.Encoded


class _Written(NamedTuple):
    """What `greedy` returns, of the whole batch."""

    token_ids: tf.Tensor
    n_tokens: tf.Tensor
    logprobs: tf.Tensor


class GreedyDecoder:
    """The model, traced once for every shape of batch."""

    def __init__(
        self, weights: Mapping[str, NDArray[Any]], params: MoonshineParams, hint_params: HintParams | None = None
    ) -> None:
        """Prepare the model.

        Args:
            weights: As stored.
            params: Of the same model.
            hint_params: How far hints weigh.

        Raises:
            ModelError: The weights do not fit the parameters.
        """
        self._params = params
        self._hint_params = hint_params or HintParams()
        self._weights = {name: tf.constant(array) for name, array in model.prepare(weights, params).items()}
        next_token = None
        if shortlist.is_supported():
            next_token = shortlist.shortlisted(self._weights["decoder.embedding"])
            del self._weights["decoder.head.kernel"]
            if _multiplies_bfloat16():
                for name in _BFLOAT16:
                    self._weights[name] = tf.cast(self._weights[name], tf.bfloat16)
        signature = [
            tf.TensorSpec((None, None), tf.float32),
            tf.TensorSpec((None,), tf.int32),
            tf.TensorSpec((None,), tf.int32),
        ]
        self._next_token = next_token
        self._run = tf.function(self._write, input_signature=signature)
        self._run_hinted = tf.function(self._write, input_signature=[*signature, Tables.signature()])

    def decode(
        self,
        batch: Sequence[NDArray[np.float32]],
        max_tokens: Sequence[int],
        trees: Tables | None = None,
    ) -> list[Decoded]:
        """Decode waveforms together.

        Args:
            batch: Each (n_samples,), 16 kHz mono, at least `shapes.MIN_SAMPLES` long.
            max_tokens: For each the number of tokens after which it is cut off.
            trees: The hints of each, from `hinting.tables`.

        Returns:
            One for each waveform, in the same order.
        """
        n_samples = [len(samples) for samples in batch]
        padded = np.zeros((len(batch), shapes.pad_length(max(n_samples))), np.float32)
        for row, samples in zip(padded, batch, strict=True):
            row[: len(samples)] = samples
        arguments = padded, np.array(n_samples, np.int32), np.array(max_tokens, np.int32)
        results = self._run(*arguments) if trees is None else self._run_hinted(*arguments, trees)
        token_ids, n_tokens, logprobs, attention = (result.numpy() for result in results)
        decoded, has_trace = [], bool(self._params.alignment_heads)
        for i, n in enumerate(n_tokens):
            has_ended = bool(token_ids[i, n - 1] == self._params.end_token_id)
            n_text, n_frames = n - has_ended, shapes.n_frames_of(n_samples[i])
            decoded.append(
                Decoded(
                    token_ids=tuple(token_ids[i, :n_text].tolist()),
                    avg_logprob=float(logprobs[i, :n].mean()),
                    has_ended=has_ended,
                    trace=Trace(logprobs[i, :n_text], attention[i, :n_text, :n_frames]) if has_trace else None,
                )
            )
        return decoded

    def _write(
        self, samples: tf.Tensor, n_samples: tf.Tensor, max_tokens: tf.Tensor, trees: Tables | None = None
    ) -> tuple[tf.Tensor, ...]:
        weights, params = self._weights, self._params
        encoded = model.encode(weights, params, samples, n_samples)
        hinting = None if trees is None else Hinting(trees, self._hint_params)
        token_ids, n_tokens, logprobs = greedy(
            weights, params, encoded, max_tokens, next_token=self._next_token, hinting=hinting
        )
        if not params.alignment_heads:
            return token_ids, n_tokens, logprobs, tf.zeros([tf.shape(token_ids)[0], 0, 0])
        # Once more over the finished text, all tokens at once: far cheaper than noting it at every step.
        before = tf.concat([tf.fill([tf.shape(token_ids)[0], 1], params.start_token_id), token_ids[:, :-1]], axis=1)
        attention = model.cross_attention(
            weights, params, before, encoded, layer=params.alignment_layer, heads=params.alignment_heads
        )
        return token_ids, n_tokens, logprobs, attention


def _multiplies_bfloat16() -> bool:
    """Whether the processor does; the others would take longer with it."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and " avx512_bf16 " in cpuinfo.read_text(encoding="utf-8")


def greedy(
    weights: model.Weights,
    params: MoonshineParams,
    encoded: model.Encoded,
    max_tokens: tf.Tensor,
    *,
    next_token: shortlist.NextToken | None = None,
    hinting: Hinting | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The loop over tokens, for a graph.

    Args:
        weights: As from `model.prepare`.
        params: Of the same model.
        encoded: Of the waveforms.
        max_tokens: int32 (n_batch,), after how many tokens each row is cut off.
        next_token: How the most probable token is found; by the whole output head unless given.
        hinting: Leads to the phrases that are expected.

    Returns:
        Token numbers int32 (n_batch, n_steps), how many of them are the row's own with its end, int32 (n_batch,), and
        the natural logarithms of their probabilities, float32 (n_batch, n_steps), zero after a row's end.
    """
    next_token = next_token or shortlist.whole_head(weights)
    n_batch = tf.shape(max_tokens)[0]

    def step(position: tf.Tensor, rows: _Rows, written: _Written) -> tuple[tf.Tensor, _Rows, _Written]:
        last = rows.last[:, None]
        states, cache = model.decoder_states(weights, params, last, rows.cache, rows.encoded, position=position)
        bonus = None if hinting is None else hinting.bonus(rows.index, rows.node)
        token, logprob = next_token(states, bonus)
        node = rows.node if hinting is None else hinting.follow(rows.index, rows.node, token)
        place = rows.index[:, None]
        token = tf.where(rows.is_active, token, params.end_token_id)
        column = tf.tensor_scatter_nd_update(tf.fill([n_batch], params.end_token_id), place, token)
        logprobs = tf.scatter_nd(place, tf.where(rows.is_active, logprob, 0.0), [n_batch])
        written = _Written(
            token_ids=tf.concat([written.token_ids, column[:, None]], axis=1),
            n_tokens=written.n_tokens + tf.scatter_nd(place, tf.cast(rows.is_active, tf.int32), [n_batch]),
            logprobs=tf.concat([written.logprobs, logprobs[:, None]], axis=1),
        )
        goes_on = (token != params.end_token_id) & (position + 1 < tf.gather(max_tokens, rows.index))
        rows = rows._replace(last=token, node=node, is_active=rows.is_active & goes_on, cache=cache)
        return position + 1, rows, written

    def is_worth_a_step(_: tf.Tensor, rows: _Rows, __: _Written) -> tf.Tensor:
        # Rows that have ended are computed too, until they are a quarter: leaving them out copies what the others
        # read. It takes 8 % off the loop at a batch of 8, 13 % at 16.
        return 4 * tf.math.count_nonzero(rows.is_active, dtype=tf.int32) > 3 * tf.shape(rows.last)[0]

    def stretch(position: tf.Tensor, rows: _Rows, written: _Written) -> tuple[tf.Tensor, _Rows, _Written]:
        state = position, rows, written
        position, rows, written = tf.while_loop(is_worth_a_step, step, state, shape_invariants=shapes)
        active = tf.where(rows.is_active)[:, 0]
        return position, tf.nest.map_structure(lambda part: tf.gather(part, active), rows), written

    rows = _Rows(
        index=tf.range(n_batch),
        last=tf.fill([n_batch], params.start_token_id),
        node=tf.zeros([n_batch], tf.int32) if hinting is None else hinting.roots(),
        is_active=tf.fill([n_batch], True),
        cache=model.empty_cache(params, n_batch),
        encoded=encoded,
    )
    written = _Written(tf.zeros([n_batch, 0], tf.int32), tf.zeros([n_batch], tf.int32), tf.zeros([n_batch, 0]))
    one, two, padding = (tf.TensorShape(shape) for shape in ([None], [None, None], [None, 1, 1, None]))
    states = tf.TensorShape([None, params.n_heads, None, params.hidden_size // params.n_heads])
    keys_values = ((states, states),) * params.n_decoder_layers
    row_shapes = _Rows(one, one, one, one, keys_values, model.Encoded(keys_values, padding))
    shapes = tf.TensorShape([]), row_shapes, _Written(two, one, two)
    result: tuple[tf.Tensor, _Rows, _Written] = tf.while_loop(
        lambda _, rows, __: tf.shape(rows.last)[0] > 0,
        stretch,
        (tf.constant(0), rows, written),
        shape_invariants=shapes,
    )
    return result[2]
