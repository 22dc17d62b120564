"""Moonshine: a transformer that reads the waveform itself and writes tokens.

Jeffries et al., "Moonshine: Speech Recognition for Live Transcription and Voice Commands", arXiv:2410.15608. Written
so that a clip's result does not depend on what it is batched with: statistics are taken over valid frames alone,
and attention gives padding a weight of exactly zero. The blocks are pure functions of the weights in `keras.ops`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from keras import ops
from numpy.typing import NDArray

from soundstage.errors import ModelError
from soundstage.params import MoonshineParams

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


HOP_LENGTH = 64
"""Samples from one window of the first convolution to the next."""
_MASKED = -1e9
"""Added to the attention logits of padding: exp() makes it exactly zero."""
MIN_SAMPLES = 895
"""Shorter audio gives no frame: the receptive field of the three convolutions."""


def n_frames_of(n_samples: Any) -> Any:
    """Encoder frames of so many samples, for integers and integer tensors alike."""
    return ((_n_windows_of(n_samples) - 7) // 3 + 1 - 3) // 2 + 1


def _n_windows_of(n_samples: Any) -> Any:
    return (n_samples - 127) // HOP_LENGTH + 1


def pad_length(n_samples: int) -> int:
    """The shortest length from n_samples on that `encode` takes."""
    return -(-max(n_samples, MIN_SAMPLES) // HOP_LENGTH) * HOP_LENGTH


def prepare(weights: Mapping[str, NDArray[Any]], params: MoonshineParams) -> dict[str, NDArray[np.float32]]:
    """Lay the stored weights out as the computation wants them: fewer and larger products.

    Queries, keys and values become one kernel, the keys and values of every cross-attention another; the attention
    scale moves into the queries, and the output head is the embedding transposed.

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
    layers = [f"encoder.layers.{i}" for i in range(params.n_encoder_layers)]
    layers += [f"decoder.layers.{i}" for i in range(params.n_decoder_layers)]
    for layer in layers:
        q, k, v = (ready.pop(f"{layer}.self_attention.{name}.kernel") for name in "qkv")
        ready[f"{layer}.self_attention.qkv.kernel"] = np.concatenate([q * scale, k, v], axis=1)
    cross = []
    for i in range(params.n_decoder_layers):
        attention = f"decoder.layers.{i}.cross_attention"
        ready[f"{attention}.q.kernel"] = ready[f"{attention}.q.kernel"] * scale
        cross += [ready.pop(f"{attention}.{name}.kernel") for name in "kv"]
    ready["decoder.cross_kv.kernel"] = np.concatenate(cross, axis=1)
    ready["decoder.head.kernel"] = np.ascontiguousarray(ready["decoder.embedding"].T)
    return ready


def weight_shapes(params: MoonshineParams) -> dict[str, tuple[int, ...]]:
    """Every stored array of the model and its shape."""
    d = params.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.kernel": (127, 1, d),
        "encoder.conv2.kernel": (7, d, 2 * d),
        "encoder.conv2.bias": (2 * d,),
        "encoder.conv3.kernel": (3, 2 * d, d),
        "encoder.conv3.bias": (d,),
        "encoder.group_norm.scale": (d,),
        "encoder.group_norm.bias": (d,),
        "encoder.norm.scale": (d,),
        "decoder.embedding": (params.vocabulary_size, d),
        "decoder.norm.scale": (d,),
    }
    stacks = (
        ("encoder", params.n_encoder_layers, ("self",), 4 * d),
        ("decoder", params.n_decoder_layers, ("self", "cross"), 8 * d),  # half of it is the gate
    )
    for stack, n_layers, attentions, fc1_size in stacks:
        for i in range(n_layers):
            layer = f"{stack}.layers.{i}"
            for attention in attentions:
                shapes[f"{layer}.{attention}_norm.scale"] = (d,)
                shapes.update({f"{layer}.{attention}_attention.{name}.kernel": (d, d) for name in "qkvo"})
            shapes[f"{layer}.mlp_norm.scale"] = (d,)
            shapes[f"{layer}.mlp.fc1.kernel"] = (d, fc1_size)
            shapes[f"{layer}.mlp.fc1.bias"] = (fc1_size,)
            shapes[f"{layer}.mlp.fc2.kernel"] = (4 * d, d)
            shapes[f"{layer}.mlp.fc2.bias"] = (d,)
    return shapes


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
    heads = _heads(params, _dense(weights, "decoder.cross_kv", states))  # all layers' keys and values
    n = params.n_heads
    starts = range(0, 2 * n * params.n_decoder_layers, 2 * n)
    cross = tuple((heads[:, j : j + n], heads[:, j + n : j + 2 * n]) for j in starts)
    return Encoded(cross, _padding_bias(n_frames_of(n_samples), ops.shape(states)[1]))


def encoder_states(weights: Weights, params: MoonshineParams, samples: Tensor, n_samples: Tensor) -> Tensor:
    """What the encoder hears, float32 (n_batch, n_frames, hidden_size); arguments as for `encode`.

    Frames from `n_frames_of(n_samples)` on are meaningless.
    """
    n_batch, n_padded = ops.shape(samples)
    # A window of 128 samples every 64 is two neighbouring blocks of 64; the kernel's last row is zero.
    blocks = ops.reshape(samples, (n_batch, n_padded // HOP_LENGTH, HOP_LENGTH))
    windows = ops.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=-1)
    x = ops.tanh(_dense(weights, "encoder.conv1", windows))  # (n_batch, n_windows, hidden_size)
    x = _group_norm(weights, params, x, _n_windows_of(n_samples))
    x = ops.conv(x, weights["encoder.conv2.kernel"], strides=3, padding="valid") + weights["encoder.conv2.bias"]
    x = ops.gelu(x, approximate=False)
    x = ops.conv(x, weights["encoder.conv3.kernel"], strides=2, padding="valid") + weights["encoder.conv3.bias"]
    x = ops.gelu(x, approximate=False)  # (n_batch, n_frames, hidden_size)
    n_frames = ops.shape(x)[1]
    padding = _padding_bias(n_frames_of(n_samples), n_frames)
    turns = _rotary(params, ops.arange(n_frames))
    for i in range(params.n_encoder_layers):
        layer = f"encoder.layers.{i}"
        h = _norm(weights, params, f"{layer}.self_norm", x)
        q, k, v = _self_qkv(weights, params, layer, h, turns)
        x = x + _attend(weights, f"{layer}.self_attention.o", q, k, v, bias=padding)
        h = _norm(weights, params, f"{layer}.mlp_norm", x)
        h = ops.gelu(_dense(weights, f"{layer}.mlp.fc1", h), approximate=False)
        x = x + _dense(weights, f"{layer}.mlp.fc2", h)
    return _norm(weights, params, "encoder.norm", x)


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
    n_new = token_ids.shape[1]
    positions = position + ops.arange(n_new)
    turns = _rotary(params, positions)
    future = None
    if n_new > 1:
        is_future = ops.arange(position + n_new) > positions[:, None]
        future = ops.cast(is_future, "float32") * _MASKED  # (n_new, n_steps)
    x = ops.take(weights["decoder.embedding"], token_ids, axis=0)
    grown = []
    for i, (past_k, past_v) in enumerate(cache):
        layer = f"decoder.layers.{i}"
        h = _norm(weights, params, f"{layer}.self_norm", x)
        q, k, v = _self_qkv(weights, params, layer, h, turns)
        k, v = ops.concatenate([past_k, k], axis=2), ops.concatenate([past_v, v], axis=2)
        grown.append((k, v))
        x = x + _attend(weights, f"{layer}.self_attention.o", q, k, v, bias=future)
        h = _norm(weights, params, f"{layer}.cross_norm", x)
        q = _heads(params, _dense(weights, f"{layer}.cross_attention.q", h))
        x = x + _attend(weights, f"{layer}.cross_attention.o", q, *encoded.cross[i], bias=encoded.padding)
        h = _norm(weights, params, f"{layer}.mlp_norm", x)
        value, gate = ops.split(_dense(weights, f"{layer}.mlp.fc1", h), 2, axis=-1)
        x = x + _dense(weights, f"{layer}.mlp.fc2", value * ops.silu(gate))
    return _dense(weights, "decoder.head", _norm(weights, params, "decoder.norm", x)), tuple(grown)


def _dense(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Product with a kernel over the last axis, and its bias where there is one.

    Flat on purpose: TensorFlow turns a product of rank 3 with rank 2 into a slow batched one.
    """
    kernel = weights[f"{name}.kernel"]
    n_batch, n_steps, n_in = ops.shape(x)
    y = ops.matmul(ops.reshape(x, (-1, n_in)), kernel)
    if f"{name}.bias" in weights:
        y = y + weights[f"{name}.bias"]
    return ops.reshape(y, (n_batch, n_steps, kernel.shape[1]))


def _norm(weights: Weights, params: MoonshineParams, name: str, x: Tensor) -> Tensor:
    centred = x - ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    return centred * ops.rsqrt(variance + params.norm_epsilon) * weights[f"{name}.scale"]


def _group_norm(weights: Weights, params: MoonshineParams, x: Tensor, n_valid: Tensor) -> Tensor:
    """One group: mean and variance over the valid windows of all channels of a row."""
    n_windows, n_channels = ops.shape(x)[1:]
    is_valid = ops.cast(ops.arange(n_windows) < n_valid[:, None], x.dtype)[:, :, None]
    n_values = ops.cast(n_valid * n_channels, x.dtype)[:, None, None]
    mean = ops.sum(x * is_valid, axis=(1, 2), keepdims=True) / n_values
    centred = x - mean
    variance = ops.sum(ops.square(centred) * is_valid, axis=(1, 2), keepdims=True) / n_values
    normal = centred * ops.rsqrt(variance + params.norm_epsilon)
    return normal * weights["encoder.group_norm.scale"] + weights["encoder.group_norm.bias"]


def _rotary(params: MoonshineParams, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine by which queries and keys turn, each (n_steps, 1, head_size).

    Neighbouring dimensions turn together; those beyond rotary_size stand still.

    Source: Su et al., "RoFormer", arXiv:2104.09864.
    """
    n_pairs = params.rotary_size // 2
    speeds = params.rotary_base ** -(np.arange(n_pairs, dtype=np.float32) / n_pairs)
    angles = ops.cast(positions, "float32")[:, None] * np.repeat(speeds, 2)  # (n_steps, rotary_size)
    still = ((0, 0), (0, params.hidden_size // params.n_heads - params.rotary_size))
    signs = np.tile(np.array([-1, 1], np.float32), n_pairs)
    return ops.pad(ops.cos(angles), still, constant_values=1)[:, None], ops.pad(ops.sin(angles) * signs, still)[:, None]


def _self_qkv(
    weights: Weights, params: MoonshineParams, layer: str, x: Tensor, turns: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Turned queries and keys, and values, each (n_batch, n_heads, n_steps, head_size)."""
    n_batch, n_steps, _ = ops.shape(x)
    head_size = params.hidden_size // params.n_heads
    qkv = ops.reshape(
        _dense(weights, f"{layer}.self_attention.qkv", x), (n_batch, n_steps, 3 * params.n_heads, head_size)
    )
    qk, v = qkv[:, :, : 2 * params.n_heads], qkv[:, :, 2 * params.n_heads :]
    cosine, sine = turns
    pairs = ops.reshape(qk, (n_batch, n_steps, -1, head_size // 2, 2))
    swapped = ops.reshape(ops.flip(pairs, axis=-1), (n_batch, n_steps, -1, head_size))
    qk = ops.transpose(qk * cosine + swapped * sine, (0, 2, 1, 3))
    return qk[:, : params.n_heads], qk[:, params.n_heads :], ops.transpose(v, (0, 2, 1, 3))


def _heads(params: MoonshineParams, x: Tensor) -> Tensor:
    """(n_batch, n_steps, n * head_size) to (n_batch, n, n_steps, head_size)."""
    n_batch, n_steps, _ = ops.shape(x)
    head_size = params.hidden_size // params.n_heads
    return ops.transpose(ops.reshape(x, (n_batch, n_steps, -1, head_size)), (0, 2, 1, 3))


def _attend(weights: Weights, name: str, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None) -> Tensor:
    """Attention of all heads, joined by the output product: (n_batch, n_steps, hidden_size)."""
    logits = ops.matmul(q, ops.swapaxes(k, 2, 3))
    if bias is not None:
        logits = logits + bias
    mixed = ops.transpose(ops.matmul(ops.softmax(logits), v), (0, 2, 1, 3))
    n_batch, n_steps, n_heads, head_size = ops.shape(mixed)
    return _dense(weights, name, ops.reshape(mixed, (n_batch, n_steps, n_heads * head_size)))
