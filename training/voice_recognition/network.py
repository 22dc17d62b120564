"""The speech model as it is trained: Moonshine over its stored weights, with gradients by Keras's backend.

The same computation as soundstage/speech/model.py, which folds the norms into the kernels and uses TensorFlow's own
operations for speed. Here every stored weight is a variable, and TensorFlow and JAX can both take the gradients. A
test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from keras import ops

from soundstage.params import MoonshineParams
from soundstage.speech.shapes import HOP_LENGTH, n_frames_of

Tensor: TypeAlias = Any
Weights: TypeAlias = Mapping[str, Tensor]
"""By the names of the model folder."""
Cache: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""For each decoder layer keys and values of all steps that there will be, (n_batch, n_heads, n_steps, head_size)."""

_MASKED = -1e9


class Heard(NamedTuple):
    """What the decoder reads of a batch: keys and values of each layer, and float32 (n_batch, 1, 1, n_frames)."""

    cross: Cache
    padding: Tensor


def encode(weights: Weights, params: MoonshineParams, samples: Tensor, n_samples: Tensor) -> Heard:
    """Hear a batch of waveforms.

    Args:
        weights: As stored.
        params: Of the same model.
        samples: float32 (n_batch, n_padded), 16 kHz mono; n_padded as from `soundstage.speech.shapes.pad_length`.
        n_samples: int32 (n_batch,); what follows in a row is padding, and counts for nothing.
    """
    x = _front_end(weights, params, samples, n_samples)
    n_frames = ops.shape(x)[1]
    is_padding = ops.arange(n_frames) >= n_frames_of(n_samples)[:, None]
    padding = ops.cast(is_padding, "float32")[:, None, None, :] * _MASKED
    turns = _turns(params, ops.arange(n_frames))
    for i in range(params.n_encoder_layers):
        layer = f"encoder.layers.{i}"
        q, k, v = _self_qkv(weights, params, layer, x, turns)
        x = x + _attend(weights, params, f"{layer}.self_attention", (q, k, v), bias=padding)
        h = _gelu(_dense(weights, f"{layer}.mlp.fc1", _norm(weights, params, f"{layer}.mlp_norm", x)))
        x = x + _dense(weights, f"{layer}.mlp.fc2", h)
    x = _norm(weights, params, "encoder.norm", x)
    attentions = (f"decoder.layers.{i}.cross_attention" for i in range(params.n_decoder_layers))
    cross = tuple((_heads(weights, params, f"{a}.k", x), _heads(weights, params, f"{a}.v", x)) for a in attentions)
    return Heard(cross, padding)


def _front_end(weights: Weights, params: MoonshineParams, samples: Tensor, n_samples: Tensor) -> Tensor:
    """Three convolutions with a norm after the first, over what is valid alone: (n_batch, n_frames, hidden_size)."""
    d = params.hidden_size
    kernel = weights["encoder.conv1.kernel"]
    n_width = kernel.shape[0]
    # A window of 127 samples every 64 is two neighbouring blocks of 64, without the last sample.
    blocks = ops.reshape(samples, (-1, ops.shape(samples)[1] // HOP_LENGTH, HOP_LENGTH))
    windows = ops.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=-1)[:, :, :n_width]
    n_valid = (n_samples - n_width) // HOP_LENGTH + 1
    is_valid = ops.cast(ops.arange(ops.shape(windows)[1]) < n_valid[:, None], "float32")[:, :, None]
    x = ops.tanh(_matmul(windows * is_valid, ops.reshape(kernel, (n_width, d))))  # zero where not valid
    n_values = ops.cast(n_valid * d, "float32")[:, None, None]
    mean = ops.sum(x, axis=(1, 2), keepdims=True) / n_values
    variance = ops.sum(ops.square(x - mean) * is_valid, axis=(1, 2), keepdims=True) / n_values
    x = (x - mean) * ops.rsqrt(variance + params.norm_epsilon)
    x = x * weights["encoder.group_norm.scale"] + weights["encoder.group_norm.bias"]
    for name, strides in (("conv2", 3), ("conv3", 2)):
        x = ops.conv(x, weights[f"encoder.{name}.kernel"], strides=strides, padding="valid")
        x = _gelu(x + weights[f"encoder.{name}.bias"])
    return x


def decode(
    weights: Weights,
    params: MoonshineParams,
    token_ids: Tensor,
    heard: Heard,
    *,
    cache: Cache | None = None,
    position: Tensor = 0,
) -> tuple[Tensor, Cache]:
    """Logits of the tokens that follow each given one.

    Args:
        weights: As stored.
        params: Of the same model.
        token_ids: int32 (n_batch, n_new).
        heard: Of the waveforms.
        cache: Of the tokens before, when writing one by one (n_new is 1); None: these are all.
        position: int32 (), number of tokens before.

    Returns:
        Logits float32 (n_batch, n_new, vocabulary_size), and the cache with these tokens.
    """
    n_new = ops.shape(token_ids)[1]
    turns = _turns(params, position + ops.arange(n_new))
    n_steps = n_new if cache is None else ops.shape(cache[0][0])[2]
    steps = ops.arange(n_steps)
    future = ops.cast(steps > (position + ops.arange(n_new))[:, None], "float32") * _MASKED  # (n_new, n_steps)
    x = ops.take(weights["decoder.embedding"], token_ids, axis=0)
    grown = []
    for i in range(params.n_decoder_layers):
        layer = f"decoder.layers.{i}"
        q, k, v = _self_qkv(weights, params, layer, x, turns)
        if cache is not None:
            is_now = (steps == position)[None, None, :, None]
            k, v = (ops.where(is_now, new, old) for new, old in zip((k, v), cache[i], strict=True))
        grown.append((k, v))
        x = x + _attend(weights, params, f"{layer}.self_attention", (q, k, v), bias=future)
        attention = f"{layer}.cross_attention"
        q = _heads(weights, params, f"{attention}.q", _norm(weights, params, f"{layer}.cross_norm", x))
        x = x + _attend(weights, params, attention, (q, *heard.cross[i]), bias=heard.padding)
        h = _dense(weights, f"{layer}.mlp.fc1", _norm(weights, params, f"{layer}.mlp_norm", x))
        value, gate = ops.split(h, 2, axis=-1)
        x = x + _dense(weights, f"{layer}.mlp.fc2", value * ops.silu(gate))
    x = _norm(weights, params, "decoder.norm", x)
    return _matmul(x, ops.transpose(weights["decoder.embedding"])), tuple(grown)


def write(
    weights: Weights, params: MoonshineParams, samples: Tensor, n_samples: Tensor, max_tokens: Tensor, *, n_steps: int
) -> Tensor:
    """What the model writes of each waveform, at each step the most probable token.

    Args:
        weights: As stored.
        params: Of the same model.
        samples: As for `encode`.
        n_samples: As for `encode`.
        max_tokens: int32 (n_batch,), after how many each row is cut off.
        n_steps: The most of these, known when traced.

    Returns:
        int32 (n_batch, n_steps); after its end a row holds end tokens.
    """
    heard = encode(weights, params, samples, n_samples)
    steps = ops.arange(n_steps)
    first = ops.zeros_like(max_tokens)
    nothing = ops.zeros((1, params.n_heads, n_steps, _head_shape(params)[1]), "float32")
    nothing = nothing + ops.cast(first, "float32")[:, None, None, None]
    cache = ((nothing, nothing),) * params.n_decoder_layers
    written = first[:, None] + ops.full((1, n_steps), params.end_token_id, "int32")

    def step(position: Tensor, last: Tensor, is_active: Tensor, written: Tensor, cache: Cache) -> tuple[Any, ...]:
        logits, cache = decode(weights, params, last[:, None], heard, cache=cache, position=position)
        token = ops.cast(ops.argmax(logits[:, 0], axis=-1), "int32")
        token = ops.where(is_active & (position < max_tokens), token, params.end_token_id)
        written = ops.where((steps == position)[None, :], token[:, None], written)
        return position + 1, token, token != params.end_token_id, written, cache

    start = (ops.zeros((), "int32"), first + params.start_token_id, first == 0, written, cache)
    return ops.while_loop(lambda _, __, active, *___: ops.any(active), step, start, maximum_iterations=n_steps)[3]


def _head_shape(params: MoonshineParams) -> tuple[int, int]:
    return params.n_heads, params.hidden_size // params.n_heads


def _matmul(x: Tensor, kernel: Tensor) -> Tensor:
    """Flat on purpose: TensorFlow turns a product of rank 3 with rank 2 into a slow batched one."""
    n_in, n_out = kernel.shape
    return ops.reshape(ops.matmul(ops.reshape(x, (-1, n_in)), kernel), (-1, ops.shape(x)[1], n_out))


def _dense(weights: Weights, name: str, x: Tensor) -> Tensor:
    y = _matmul(x, weights[f"{name}.kernel"])
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def _gelu(x: Tensor) -> Tensor:
    """As ops.gelu, which by itself computes erfc, at four times the cost of erf."""
    return 0.5 * x * (1 + ops.erf(x * 0.5**0.5))


def _norm(weights: Weights, params: MoonshineParams, name: str, x: Tensor) -> Tensor:
    centred = x - ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    return centred * ops.rsqrt(variance + params.norm_epsilon) * weights[f"{name}.scale"]


def _heads(weights: Weights, params: MoonshineParams, name: str, x: Tensor) -> Tensor:
    """A product, shared out among the heads: (n_batch, n_heads, n_steps, head_size)."""
    y = ops.reshape(_dense(weights, name, x), (-1, ops.shape(x)[1], *_head_shape(params)))
    return ops.transpose(y, (0, 2, 1, 3))


def _turns(params: MoonshineParams, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of what each pair of dimensions turns by, (n_steps, rotary_size / 2).

    Source: Su et al., "RoFormer", arXiv:2104.09864.
    """
    n_pairs = params.rotary_size // 2
    speeds = params.rotary_base ** -(np.arange(n_pairs, dtype=np.float32) / n_pairs)
    angles = ops.cast(positions, "float32")[:, None] * speeds
    return ops.cos(angles), ops.sin(angles)


def _turned(params: MoonshineParams, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Neighbouring dimensions turn together; those beyond rotary_size stand still."""
    cos, sin = turns
    moving, still = x[..., : params.rotary_size], x[..., params.rotary_size :]
    even, odd = moving[..., 0::2], moving[..., 1::2]
    pairs = ops.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return ops.concatenate([ops.reshape(pairs, ops.shape(moving)), still], axis=-1)


def _self_qkv(
    weights: Weights, params: MoonshineParams, layer: str, x: Tensor, turns: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    x = _norm(weights, params, f"{layer}.self_norm", x)
    q, k, v = (_heads(weights, params, f"{layer}.self_attention.{name}", x) for name in "qkv")
    return _turned(params, q, turns), _turned(params, k, turns), v


def _attend(
    weights: Weights, params: MoonshineParams, name: str, qkv: tuple[Tensor, Tensor, Tensor], *, bias: Tensor
) -> Tensor:
    """Attention of all heads, joined by the output product: (n_batch, n_steps, hidden_size)."""
    q, k, v = qkv
    n_heads, size = _head_shape(params)
    logits = ops.matmul(q, ops.swapaxes(k, 2, 3)) * size**-0.5 + bias
    mixed = ops.transpose(ops.matmul(ops.softmax(logits), v), (0, 2, 1, 3))
    return _dense(weights, f"{name}.o", ops.reshape(mixed, (-1, ops.shape(q)[2], n_heads * size)))
