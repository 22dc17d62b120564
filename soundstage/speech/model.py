"""Moonshine: a transformer that reads the waveform itself and writes tokens.

Jeffries et al., "Moonshine: Speech Recognition for Live Transcription and Voice Commands", arXiv:2410.15608. Written
so that a clip's result does not depend on what it is batched with: statistics are taken over valid frames alone,
and attention gives padding a weight of exactly zero. The blocks are pure functions of the weights in `keras.ops`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf
from keras import ops
from numpy.typing import NDArray

from soundstage.errors import ModelError
from soundstage.params import MoonshineParams
from soundstage.speech.shapes import HOP_LENGTH, n_frames_of, n_windows_of, weight_shapes

Tensor: TypeAlias = Any
Weights: TypeAlias = Mapping[str, Tensor]
Cache: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""For each decoder layer the keys and values so far, each (n_batch, n_heads, n_steps, head_size)."""


class Encoded(NamedTuple):
    """What the decoder reads of a batch of waveforms.

    Attributes:
        cross: Keys and values of each layer, (n_batch, n_heads, n_frames, head_size).
        padding: float32 (n_batch, 1, 1, n_frames), added to the attention logits.
    """

    cross: Cache
    padding: Tensor


class Unused(NamedTuple):
    """Places in the cache that hold what was not written in the end; what follows them stands directly behind the rest.

    Attributes:
        first: int32 (n_batch,), the first of each row.
        end: int32 (), the place after the last, the same in all rows.
    """

    first: Tensor
    end: Tensor


_MASKED = -1e9
"""Added to the attention logits of padding: exp() makes it exactly zero."""


def prepare(weights: Mapping[str, NDArray[Any]], params: MoonshineParams) -> dict[str, NDArray[np.float32]]:
    """Lay the stored weights out as the computation wants them: fewer and larger products.

    Queries, keys and values become one kernel, the keys and values of every cross-attention another; the attention
    scale moves into the queries, and the output head is the embedding transposed. What the layers add to their input
    is centred here, so that the input of a norm already is, and the norm's scale moves into the kernel that reads it.

    Raises:
        ModelError: An array is missing or has another shape than params says.
    """
    expected = weight_shapes(params)
    found = {name: array.shape for name, array in weights.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ModelError(f"the speech model's weights do not fit its parameters: {', '.join(wrong[:5])} …")
    scale = (params.hidden_size // params.n_heads) ** -0.5
    ready = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    window = ready["encoder.conv1.kernel"][:, 0]
    ready["encoder.conv1.kernel"] = np.pad(window, ((0, 2 * HOP_LENGTH - len(window)), (0, 0)))
    # The scale of the group norm goes through the second convolution; the rest of it follows there, see _front_end.
    kernel, bias = ready.pop("encoder.conv2.kernel"), ready.pop("encoder.conv2.bias")
    ready["encoder.conv2.bias"] = bias + np.einsum("c,wcd->d", ready.pop("encoder.group_norm.bias"), kernel)
    ready["encoder.conv2.kernel"] = ready.pop("encoder.group_norm.scale")[:, None] * kernel
    ready["encoder.conv2.sum"] = ready["encoder.conv2.kernel"].sum(axis=(0, 1))
    layers = [f"encoder.layers.{i}" for i in range(params.n_encoder_layers)]
    layers += [f"decoder.layers.{i}" for i in range(params.n_decoder_layers)]
    for layer in layers:
        q, k, v = (ready.pop(f"{layer}.self_attention.{name}.kernel") for name in "qkv")
        norm = ready.pop(f"{layer}.self_norm.scale")[:, None]
        ready[f"{layer}.self_attention.qkv.kernel"] = norm * np.concatenate([q * scale, k, v], axis=1)
        norm = ready.pop(f"{layer}.mlp_norm.scale")[:, None]
        ready[f"{layer}.mlp.fc1.kernel"] = norm * ready[f"{layer}.mlp.fc1.kernel"]
        for name in ("self_attention.o.kernel", "mlp.fc2.kernel", "mlp.fc2.bias"):
            ready[f"{layer}.{name}"] = _centred(ready[f"{layer}.{name}"])
    cross = []
    for i in range(params.n_decoder_layers):
        layer = f"decoder.layers.{i}"
        attention = f"{layer}.cross_attention"
        norm = ready.pop(f"{layer}.cross_norm.scale")[:, None]
        ready[f"{attention}.q.kernel"] = norm * ready[f"{attention}.q.kernel"] * scale
        ready[f"{attention}.o.kernel"] = _centred(ready[f"{attention}.o.kernel"])
        cross += [ready.pop(f"{attention}.{name}.kernel") for name in "kv"]
    ready["decoder.cross_kv.kernel"] = np.concatenate(cross, axis=1)
    return ready


def _centred(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """The kernel or bias whose output has no mean."""
    centred: NDArray[np.float32] = kernel - kernel.mean(axis=-1, keepdims=True)
    return centred


def encode(weights: Weights, params: MoonshineParams, samples: Tensor, n_samples: Tensor) -> Encoded:
    """Read a batch of waveforms.

    Args:
        weights: As from `prepare`.
        params: Of the same model.
        samples: float32 (n_batch, n_padded), 16 kHz mono; n_padded as from `pad_length`.
        n_samples: int32 (n_batch,); what follows in a row is padding.

    Returns:
        What the decoder needs, in which padding counts for nothing.
    """
    states = encoder_states(weights, params, samples, n_samples)
    n_frames = ops.shape(states)[1]
    kv = _dense(weights, "decoder.cross_kv", ops.reshape(states, (-1, params.hidden_size)))
    heads = ops.reshape(kv, (-1, n_frames, 2 * params.n_decoder_layers, *_head_shape(params)))
    kv = ops.unstack(ops.transpose(heads, (2, 0, 3, 1, 4)))  # of each layer, (n_batch, n_heads, n_frames, head_size)
    return Encoded(tuple(zip(kv[::2], kv[1::2], strict=True)), _padding_bias(n_frames_of(n_samples), n_frames))


def encoder_states(weights: Weights, params: MoonshineParams, samples: Tensor, n_samples: Tensor) -> Tensor:
    """What the encoder hears, float32 (n_batch, n_frames, hidden_size); arguments as for `encode`.

    Frames from `n_frames_of(n_samples)` on are meaningless.
    """
    x = _front_end(weights, params, samples, n_samples)
    n_frames = ops.shape(x)[1]
    padding = _padding_bias(n_frames_of(n_samples), n_frames)
    turns = _rotary(params, ops.arange(n_frames))
    x = _centre(ops.reshape(x, (-1, params.hidden_size)))  # all rows below one another, see _dense
    for i in range(params.n_encoder_layers):
        layer = f"encoder.layers.{i}"
        q, k, v = _self_qkv(weights, params, layer, _norm(params, x), turns)
        x = x + _attend(weights, f"{layer}.self_attention.o", q, k, v, bias=padding)
        h = ops.gelu(_dense(weights, f"{layer}.mlp.fc1", _norm(params, x)), approximate=False)  # one with the product
        x = x + _dense(weights, f"{layer}.mlp.fc2", h)
    return ops.reshape(_norm(params, x) * weights["encoder.norm.scale"], (-1, n_frames, params.hidden_size))


def _front_end(weights: Weights, params: MoonshineParams, samples: Tensor, n_samples: Tensor) -> Tensor:
    """Three convolutions, with a norm after the first: float32 (n_batch, n_frames, hidden_size)."""
    n_padded, d = ops.shape(samples)[1], params.hidden_size
    # A window of 128 samples every 64 is two neighbouring blocks of 64; the kernel's last row is zero.
    blocks = ops.reshape(samples, (-1, n_padded // HOP_LENGTH, HOP_LENGTH))
    windows = ops.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=-1)
    n_windows, n_valid = ops.shape(windows)[1], n_windows_of(n_samples)
    is_valid = ops.cast(ops.arange(n_windows) < n_valid[:, None], "float32")[:, :, None]
    x = ops.tanh(_dense(weights, "encoder.conv1", ops.reshape(windows * is_valid, (-1, 2 * HOP_LENGTH))))
    x = ops.reshape(x, (-1, n_windows, d))  # zero where not valid
    # One group: mean and variance over the valid windows of all channels of a row. They are applied after the second
    # convolution, whose output is half as large: conv((x - mean) / deviation) = (conv(x) - mean * sum) / deviation.
    # Values lie in [-1, 1], so that the difference of squares is exact to 1e-7, far below epsilon.
    n_values = ops.cast(n_valid * d, "float32")[:, None, None]
    mean = ops.sum(x, axis=(1, 2), keepdims=True) / n_values
    variance = ops.maximum(ops.sum(ops.square(x), axis=(1, 2), keepdims=True) / n_values - ops.square(mean), 0.0)
    scale = ops.rsqrt(variance + params.norm_epsilon)
    x = _conv(weights, "encoder.conv2", x, strides=3) * scale
    x = x + (weights["encoder.conv2.bias"] - mean * scale * weights["encoder.conv2.sum"])
    x = _gelu(x)
    x = _conv(weights, "encoder.conv3", x, strides=2) + weights["encoder.conv3.bias"]
    return _gelu(x)


def _padding_bias(n_valid: Tensor, n_frames: Tensor) -> Tensor:
    is_padding = ops.arange(n_frames) >= n_valid[:, None]
    return ops.cast(is_padding, "float32")[:, None, None, :] * _MASKED


def empty_cache(params: MoonshineParams, n_batch: Tensor) -> Cache:
    """The cache before the first token."""
    nothing = ops.zeros((n_batch, params.n_heads, 0, params.hidden_size // params.n_heads))
    return ((nothing, nothing),) * params.n_decoder_layers


def decode(
    weights: Weights, params: MoonshineParams, token_ids: Tensor, cache: Cache, encoded: Encoded, *, position: Tensor
) -> tuple[Tensor, Cache]:
    """Logits of the tokens that follow each given one.

    Args:
        weights: As from `prepare`.
        params: Of the same model.
        token_ids: int32 (n_batch, n_new), those not in the cache yet; n_new is known when traced.
        cache: Of the tokens before.
        encoded: Of the waveforms.
        position: int32 (), number of tokens in the cache.

    Returns:
        Logits float32 (n_batch, n_new, vocabulary_size), and the cache with the new tokens.
    """
    states, grown = decoder_states(weights, params, token_ids, cache, encoded, position=position)
    logits = ops.matmul(states, ops.transpose(weights["decoder.embedding"]))
    return ops.reshape(logits, (-1, token_ids.shape[1], params.vocabulary_size)), grown


def decoder_states(
    weights: Weights,
    params: MoonshineParams,
    token_ids: Tensor,
    cache: Cache,
    encoded: Encoded,
    *,
    position: Tensor,
    unused: Unused | None = None,
) -> tuple[Tensor, Cache]:
    """What the output head reads, float32 (n_batch * n_new, hidden_size), and the cache; arguments as for `decode`.

    n_new may be known when run only. With `unused`, it is 1.
    """
    n_new = ops.shape(token_ids)[1]
    positions = position + ops.arange(n_new)
    hidden = None
    if unused is not None:
        places = ops.arange(position + 1)
        is_unused = (places >= unused.first[:, None]) & (places < unused.end)
        hidden = (ops.cast(is_unused, "float32") * _MASKED)[:, None, None, :]  # (n_batch, 1, 1, n_steps)
        positions = (positions - (unused.end - unused.first))[:, None]
    elif not (isinstance(n_new, int) and n_new == 1):
        is_future = ops.arange(position + n_new) > positions[:, None]
        hidden = ops.cast(is_future, "float32") * _MASKED  # (n_new, n_steps)
    turns = _rotary(params, positions)
    x = _centre(ops.take(weights["decoder.embedding"], ops.reshape(token_ids, (-1,)), axis=0))
    grown = []
    for i, (past_k, past_v) in enumerate(cache):
        layer = f"decoder.layers.{i}"
        q, k, v = _self_qkv(weights, params, layer, _norm(params, x), turns)
        k, v = ops.concatenate([past_k, k], axis=2), ops.concatenate([past_v, v], axis=2)
        grown.append((k, v))
        x = x + _attend(weights, f"{layer}.self_attention.o", q, k, v, bias=hidden)
        q = _dense(weights, f"{layer}.cross_attention.q", _norm(params, x))
        q = ops.transpose(ops.reshape(q, (-1, n_new, *_head_shape(params))), (0, 2, 1, 3))
        x = x + _attend(weights, f"{layer}.cross_attention.o", q, *encoded.cross[i], bias=encoded.padding)
        value, gate = ops.split(_dense(weights, f"{layer}.mlp.fc1", _norm(params, x)), 2, axis=-1)
        x = x + _dense(weights, f"{layer}.mlp.fc2", value * ops.silu(gate))
    return _norm(params, x) * weights["decoder.norm.scale"], tuple(grown)


def cross_attention(
    weights: Weights,
    params: MoonshineParams,
    token_ids: Tensor,
    encoded: Encoded,
    *,
    layer: int,
    heads: tuple[int, ...],
) -> Tensor:
    """Where in the audio some heads look while the token after each given one is written.

    Args:
        weights: As from `prepare`.
        params: Of the same model.
        token_ids: int32 (n_batch, n_tokens), from the start token on.
        encoded: Of the waveforms.
        layer: Of the decoder; those after it are not computed.
        heads: Of that layer.

    Returns:
        float32 (n_batch, n_tokens, n_frames), the mean over the heads; over the frames it sums to one.
    """
    n_tokens = ops.shape(token_ids)[1]
    positions = ops.arange(n_tokens)
    turns = _rotary(params, positions)
    future = ops.cast(positions > positions[:, None], "float32") * _MASKED
    x = _centre(ops.take(weights["decoder.embedding"], ops.reshape(token_ids, (-1,)), axis=0))
    for i in range(layer + 1):
        name = f"decoder.layers.{i}"
        q, k, v = _self_qkv(weights, params, name, _norm(params, x), turns)
        x = x + _attend(weights, f"{name}.self_attention.o", q, k, v, bias=future)
        q = _dense(weights, f"{name}.cross_attention.q", _norm(params, x))
        q = ops.transpose(ops.reshape(q, (-1, n_tokens, *_head_shape(params))), (0, 2, 1, 3))
        if i < layer:
            x = x + _attend(weights, f"{name}.cross_attention.o", q, *encoded.cross[i], bias=encoded.padding)
            value, gate = ops.split(_dense(weights, f"{name}.mlp.fc1", _norm(params, x)), 2, axis=-1)
            x = x + _dense(weights, f"{name}.mlp.fc2", value * ops.silu(gate))
    q, k = (ops.take(states, heads, axis=1) for states in (q, encoded.cross[layer][0]))
    attention = ops.softmax(ops.matmul(q, ops.swapaxes(k, 2, 3)) + encoded.padding)
    return ops.mean(attention, axis=1)


def _head_shape(params: MoonshineParams) -> tuple[int, int]:
    return params.n_heads, params.hidden_size // params.n_heads


def _dense(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Product of (n_rows, n_in) with a kernel, in its precision, and its bias where there is one.

    Flat on purpose: TensorFlow turns a product of rank 3 with rank 2 into a slow batched one. The bias by its own
    operation, which TensorFlow computes within the product.
    """
    kernel = weights[f"{name}.kernel"]
    y = ops.cast(ops.matmul(ops.cast(x, kernel.dtype), kernel), x.dtype)
    return tf.nn.bias_add(y, weights[f"{name}.bias"]) if f"{name}.bias" in weights else y


def _conv(weights: Weights, name: str, x: Tensor, *, strides: int) -> Tensor:
    """In the precision of the kernel, as the products of `_dense`."""
    kernel = weights[f"{name}.kernel"]
    return ops.cast(ops.conv(ops.cast(x, kernel.dtype), kernel, strides=strides, padding="valid"), x.dtype)


def _gelu(x: Tensor) -> Tensor:
    """As ops.gelu, which by itself computes erfc, at four times the cost of erf."""
    half = 0.5 * x
    return half + half * ops.erf(x * 0.5**0.5)


def _centre(x: Tensor) -> Tensor:
    return x - ops.mean(x, axis=-1, keepdims=True)


def _norm(params: MoonshineParams, x: Tensor) -> Tensor:
    """Layer norm of what is centred already; its scale is in the kernel that reads it, see `prepare`."""
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + params.norm_epsilon)


def _rotary(params: MoonshineParams, positions: Tensor) -> Tensor:
    """What queries, keys and values are multiplied by, complex64 (…, n_steps, 3 * hidden_size / 2).

    Neighbouring dimensions turn together, as one complex number; those beyond rotary_size, and values, stand still.

    Source: Su et al., "RoFormer", arXiv:2104.09864.
    """
    n_heads, head_size = _head_shape(params)
    n_pairs = params.rotary_size // 2
    speeds = np.zeros((3, n_heads, head_size // 2), np.float32)
    speeds[:2, :, :n_pairs] = params.rotary_base ** -(np.arange(n_pairs, dtype=np.float32) / n_pairs)
    angles = ops.cast(positions, "float32")[..., None] * speeds.reshape(-1)
    return tf.complex(ops.cos(angles), ops.sin(angles))


def _self_qkv(
    weights: Weights, params: MoonshineParams, layer: str, x: Tensor, turns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Turned queries and keys, and values, each (n_batch, n_heads, n_steps, head_size)."""
    n_steps, n_pairs = ops.shape(turns)[-2:]
    pairs = ops.reshape(_dense(weights, f"{layer}.self_attention.qkv", x), (-1, n_steps, n_pairs, 2))
    turned = tf.bitcast(tf.bitcast(pairs, tf.complex64) * turns, tf.float32)  # a complex number is a pair of floats
    heads = ops.reshape(turned, (-1, n_steps, 3, *_head_shape(params)))
    q, k, v = ops.unstack(ops.transpose(heads, (2, 0, 3, 1, 4)))
    return q, k, v


def _attend(weights: Weights, name: str, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None) -> Tensor:
    """Attention of all heads, joined by the output product: (n_batch * n_steps, hidden_size)."""
    logits = ops.matmul(q, ops.swapaxes(k, 2, 3))
    if bias is not None:
        logits = logits + bias
    mixed = ops.transpose(ops.matmul(ops.softmax(logits), v), (0, 2, 1, 3))
    return _dense(weights, name, ops.reshape(mixed, (-1, v.shape[1] * v.shape[3])))
