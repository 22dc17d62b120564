"""Greedy decoding of a batch: at each step the most probable token of each row.

Where a text is expected, such as that of the same audio without its last half second, it is given as a draft: all of
its tokens are looked at in one step, and those that would have been written are taken over. What is written does not
depend on the draft; how long it takes does.

Source: speculative decoding, Leviathan, Kalman and Matias, arXiv:2211.17192, with a draft from the audio before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from soundstage.models.runtime import multiplies_bfloat16
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


class Drafts(NamedTuple):
    """What is expected of each row of a batch.

    Attributes:
        token_ids: int32 (n_batch, n_drafted), shorter ones filled up; without special ones.
        n_tokens: int32 (n_batch,), less than the row may have in all.
    """

    token_ids: tf.Tensor
    n_tokens: tf.Tensor


class _Rows(NamedTuple):
    """The rows that are still decoded: what each reads, and where it stands, (n_rows,) unless said."""

    index: tf.Tensor
    """In the batch."""
    first_unused: tf.Tensor
    """Place in the cache of the first token of the draft that was not taken over."""
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
        embedding = self._weights["decoder.embedding"]
        if products := shortlist.integer_products():
            self._next_token = shortlist.shortlisted(embedding, products[0])
            if multiplies_bfloat16():
                for name in _BFLOAT16:
                    self._weights[name] = tf.cast(self._weights[name], tf.bfloat16)
        else:
            self._next_token = shortlist.whole_head(embedding)
        signature = [
            tf.TensorSpec((None, None), tf.float32),
            tf.TensorSpec((None,), tf.int32),
            tf.TensorSpec((None,), tf.int32),
        ]
        self._run = tf.function(self._write, input_signature=signature)
        self._run_hinted = tf.function(self._write, input_signature=[*signature, Tables.signature()])
        drafts = Drafts(tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None,), tf.int32))
        self._run_drafted = tf.function(self._write_drafted, input_signature=[*signature, drafts])

    def decode(
        self,
        batch: Sequence[NDArray[np.float32]],
        max_tokens: Sequence[int],
        trees: Tables | None = None,
        drafts: Sequence[Sequence[int]] | None = None,
    ) -> list[Decoded]:
        """Decode waveforms together.

        Args:
            batch: Each (n_samples,), 16 kHz mono, at least `shapes.MIN_SAMPLES` long.
            max_tokens: For each the number of tokens after which it is cut off.
            trees: The hints of each, from `hinting.tables`.
            drafts: What is expected of each, tokens as the model writes them. Not used where there are hints.

        Returns:
            One for each waveform, in the same order.
        """
        n_samples = [len(samples) for samples in batch]
        padded = np.zeros((len(batch), shapes.pad_length(max(n_samples))), np.float32)
        for row, samples in zip(padded, batch, strict=True):
            row[: len(samples)] = samples
        arguments = padded, np.array(n_samples, np.int32), np.array(max_tokens, np.int32)
        if trees is not None:
            results = self._run_hinted(*arguments, trees)
        elif drafts is not None and any(drafts):
            results = self._run_drafted(*arguments, _drafts(drafts, max_tokens))
        else:
            results = self._run(*arguments)
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

    def _write_drafted(
        self, samples: tf.Tensor, n_samples: tf.Tensor, max_tokens: tf.Tensor, drafts: Drafts
    ) -> tuple[tf.Tensor, ...]:
        return self._write(samples, n_samples, max_tokens, drafts=drafts)

    def _write(
        self,
        samples: tf.Tensor,
        n_samples: tf.Tensor,
        max_tokens: tf.Tensor,
        trees: Tables | None = None,
        drafts: Drafts | None = None,
    ) -> tuple[tf.Tensor, ...]:
        weights, params = self._weights, self._params
        encoded = model.encode(weights, params, samples, n_samples)
        hinting = None if trees is None else Hinting(trees, self._hint_params)
        token_ids, n_tokens, logprobs = greedy(
            weights, params, encoded, max_tokens, next_token=self._next_token, hinting=hinting, drafts=drafts
        )
        if not params.alignment_heads:
            return token_ids, n_tokens, logprobs, tf.zeros([tf.shape(token_ids)[0], 0, 0])
        # Once more over the finished text, all tokens at once: far cheaper than noting it at every step.
        before = tf.concat([tf.fill([tf.shape(token_ids)[0], 1], params.start_token_id), token_ids[:, :-1]], axis=1)
        attention = model.cross_attention(
            weights, params, before, encoded, layer=params.alignment_layer, heads=params.alignment_heads
        )
        return token_ids, n_tokens, logprobs, attention


def _drafts(drafts: Sequence[Sequence[int]], max_tokens: Sequence[int]) -> Drafts:
    """The drafts of a batch as arrays, each shorter than the text may be: a token is written after it."""
    cut = [draft[: limit - 1] for draft, limit in zip(drafts, max_tokens, strict=True)]
    n_tokens = np.array([len(draft) for draft in cut], np.int32)
    token_ids = np.zeros((len(cut), n_tokens.max()), np.int32)
    for row, draft in zip(token_ids, cut, strict=True):
        row[: len(draft)] = draft
    return Drafts(token_ids, n_tokens)


def greedy(
    weights: model.Weights,
    params: MoonshineParams,
    encoded: model.Encoded,
    max_tokens: tf.Tensor,
    *,
    next_token: shortlist.NextToken,
    hinting: Hinting | None = None,
    drafts: Drafts | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The loop over tokens, for a graph.

    Args:
        weights: As from `model.prepare`.
        params: Of the same model.
        encoded: Of the waveforms.
        max_tokens: int32 (n_batch,), after how many tokens each row is cut off.
        next_token: How the most probable token is found.
        hinting: Leads to the phrases that are expected.
        drafts: What is expected of each row; not together with hinting.

    Returns:
        Token numbers int32 (n_batch, n_steps), how many of them are the row's own with its end, int32 (n_batch,), and
        the natural logarithms of their probabilities, float32 (n_batch, n_steps), zero after a row's end.
    """
    assert hinting is None or drafts is None, "what hints lead to is not what was expected"
    n_batch = tf.shape(max_tokens)[0]
    end_drafted = None if drafts is None else tf.shape(drafts.token_ids)[1] + 1  # the start token is before them

    def step(position: tf.Tensor, rows: _Rows, written: _Written) -> tuple[tf.Tensor, _Rows, _Written]:
        last = rows.last[:, None]
        unused = None if end_drafted is None else model.Unused(rows.first_unused, end_drafted)
        states, cache = model.decoder_states(
            weights, params, last, rows.cache, rows.encoded, position=position, unused=unused
        )
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
        n_written = position + 1 if unused is None else position + 1 - (unused.end - unused.first)
        goes_on = (token != params.end_token_id) & (n_written < tf.gather(max_tokens, rows.index))
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
        first_unused=tf.zeros([n_batch], tf.int32),
        last=tf.fill([n_batch], params.start_token_id),
        node=tf.zeros([n_batch], tf.int32) if hinting is None else hinting.roots(),
        is_active=tf.fill([n_batch], True),
        cache=model.empty_cache(params, n_batch),
        encoded=encoded,
    )
    written = _Written(tf.zeros([n_batch, 0], tf.int32), tf.zeros([n_batch], tf.int32), tf.zeros([n_batch, 0]))
    taken = None
    if drafts is not None:
        taken, rows = _taken_over(weights, params, next_token, drafts, rows)
        is_end = (rows.last == params.end_token_id) | (taken.n_tokens + 1 >= max_tokens)
        rows = rows._replace(is_active=~is_end)
        written = _Written(rows.last[:, None], tf.ones([n_batch], tf.int32), taken.next_logprobs[:, None])
    one, two, padding = (tf.TensorShape(shape) for shape in ([None], [None, None], [None, 1, 1, None]))
    states = tf.TensorShape([None, params.n_heads, None, params.hidden_size // params.n_heads])
    keys_values = ((states, states),) * params.n_decoder_layers
    row_shapes = _Rows(one, one, one, one, one, keys_values, model.Encoded(keys_values, padding))
    shapes = tf.TensorShape([]), row_shapes, _Written(two, one, two)
    result: tuple[tf.Tensor, _Rows, _Written] = tf.while_loop(
        lambda _, rows, __: tf.shape(rows.last)[0] > 0,
        stretch,
        (tf.constant(0) if end_drafted is None else end_drafted, rows, written),
        shape_invariants=shapes,
    )
    return result[2] if taken is None else _joined(taken, result[2], params)


class _Taken(NamedTuple):
    """What was taken over of the drafts of a batch.

    Attributes:
        token_ids: int32 (n_batch, n_drafted), the drafts.
        n_tokens: int32 (n_batch,), how many of them were taken over.
        logprobs: float32 (n_batch, n_drafted).
        next_logprobs: float32 (n_batch,), of the token that is written after them.
    """

    token_ids: tf.Tensor
    n_tokens: tf.Tensor
    logprobs: tf.Tensor
    next_logprobs: tf.Tensor


def _taken_over(
    weights: model.Weights,
    params: MoonshineParams,
    next_token: shortlist.NextToken,
    drafts: Drafts,
    rows: _Rows,
) -> tuple[_Taken, _Rows]:
    """As much of the drafts as would have been written, and the rows after it and the token that follows."""
    before = tf.concat([rows.last[:, None], drafts.token_ids], axis=1)
    states, cache = model.decoder_states(weights, params, before, rows.cache, rows.encoded, position=tf.constant(0))
    token, logprob = (tf.reshape(values, tf.shape(before)) for values in next_token(states))
    n_drafted = tf.shape(drafts.token_ids)[1]
    is_same = (token[:, :-1] == drafts.token_ids) & (tf.range(n_drafted) < drafts.n_tokens[:, None])
    n_same = tf.reduce_sum(tf.math.cumprod(tf.cast(is_same, tf.int32), axis=1), axis=1)
    taken = _Taken(drafts.token_ids, n_same, logprob[:, :-1], tf.gather(logprob, n_same, batch_dims=1))
    last = tf.gather(token, n_same, batch_dims=1)
    return taken, rows._replace(first_unused=n_same + 1, last=last, cache=cache)


def _joined(taken: _Taken, written: _Written, params: MoonshineParams) -> _Written:
    """What was taken over and what was written after it."""
    n_tokens = taken.n_tokens + written.n_tokens
    places = tf.range(tf.reduce_max(n_tokens))[None, :]
    is_taken = places < taken.n_tokens[:, None]
    of_draft = tf.minimum(places + tf.zeros_like(n_tokens)[:, None], tf.shape(taken.token_ids)[1] - 1)
    of_written = tf.clip_by_value(places - taken.n_tokens[:, None], 0, tf.shape(written.token_ids)[1] - 1)
    is_over = places >= n_tokens[:, None]

    def joined(drafted: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
        return tf.where(
            is_taken, tf.gather(drafted, of_draft, batch_dims=1), tf.gather(after, of_written, batch_dims=1)
        )

    return _Written(
        token_ids=tf.where(is_over, params.end_token_id, joined(taken.token_ids, written.token_ids)),
        n_tokens=n_tokens,
        logprobs=tf.where(is_over, 0.0, joined(taken.logprobs, written.logprobs)),
    )
