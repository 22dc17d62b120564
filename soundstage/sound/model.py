"""The sound classifier: YAMNet's body on windows of up to 5 s, and two heads on what it found over time.

The body is MobileNet v1 as YAMNet uses it, with the batch normalisation folded into its convolutions. It turns a
window into steps of 0.32 s. One head sees mean and maximum over all of them and says what the window holds; the other
sees each step alone and says when it is heard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray
from pydantic import Field, model_validator

from soundstage.audio.features import n_frames
from soundstage.errors import ModelError
from soundstage.params import EventParams, FeatureParams, Params

SPEECH, MUSIC, SILENCE = "speech", "music", "silence"
EXTRA_LABELS = (SPEECH, MUSIC, SILENCE)
"""What is heard beside, under or instead of the sounds; each independent of all others. Silence is the last label."""

STEP_FRAMES = 32
"""Frames to a step: the body halves the time axis five times."""
LEVEL_S = 0.25
"""Over which the level is smoothed where the level of a window is judged."""
MEDIAN_LEVEL = 3.0
"""Mean mel magnitude of the loudest quarter of a second of a clip of ESC-50; half of them are louder."""
N_CONV = 32
"""Width of the first convolution."""
N_EMBEDDING = 1024
"""Width of the last one: what the heads see of each step."""

BLOCKS = (
    (1, 64),
    (2, 128),
    (1, 128),
    (2, 256),
    (1, 256),
    (2, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (2, 1024),
    (1, 1024),
)
"""Stride of the depthwise and width of the pointwise convolution of each block."""

LAYER_NAMES = ("conv", *(f"{kind}_{i}" for i in range(1, 14) for kind in ("depthwise", "pointwise")))
"""The 27 convolutions in their order, which is also that of YAMNet's TFLite file."""
HEAD_NAMES = ("clip", "frames")
_SCALE = "_scale"
"""Ends the name of what the codes of a matrix are multiplied by, one for each output."""
_N_BITS = 6
"""Of a code. Six lose nothing that could be measured, five half a point of accuracy."""
_MAX_CODE = 2 ** (_N_BITS - 1) - 1


class LevelRange(Params):
    """How loud windows are when a network sees them: the mean mel magnitude of their loudest quarter of a second.

    Brought to one level, a quiet recording looks as it did in training; left as it is, it tells how loud such things
    are recorded. Networks of both kinds know more together than two of one.
    """

    lowest: float = Field(MEDIAN_LEVEL, gt=0)
    """What is fainter is brought here."""
    highest: float | None = Field(MEDIAN_LEVEL, gt=0)
    """What is louder is brought here; None leaves it as it is."""
    max_gain: float = Field(20.0, ge=1)
    """At most so much louder, so that silence stays silence."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.highest is not None and self.highest < self.lowest:
            raise ValueError(f"highest {self.highest} must not lie below lowest {self.lowest}")
        return self

    def gain(self, loudest: float) -> float:
        """What a window is multiplied by."""
        if loudest < self.lowest:
            return min(self.max_gain, self.lowest / max(loudest, 1e-9))
        return 1.0 if self.highest is None else min(1.0, self.highest / loudest)


class SoundParams(Params):
    """What the classifier was trained with; saved beside its weights.

    Attributes:
        sounds: What it knows beside speech, music and silence.
        is_exclusive: A clip holds one of the sounds or none of them; else any number of them.
        window_s: Seconds of audio that the body sees at once, at most.
        level_ranges: One for each network; `combined` says how they agree. Their weights are named
            "member_0/conv/kernel" and so on.
        whole_members: Places of the networks that were taught nothing but which sound a window holds, and say no more.
        events: How its frame scores become events.
    """

    features: FeatureParams = FeatureParams()
    sounds: tuple[str, ...] = Field(min_length=1)
    is_exclusive: bool = True
    window_s: float = Field(5.0, gt=0)
    level_ranges: tuple[LevelRange, ...] = Field((LevelRange(),), min_length=1)
    whole_members: tuple[int, ...] = ()
    events: EventParams = EventParams()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not set(self.whole_members) < set(range(self.n_members)):
            raise ValueError(f"whole_members {self.whole_members} must be some, not all, of {self.n_members} networks")
        return self

    @property
    def n_members(self) -> int:
        """Networks that listen together."""
        return len(self.level_ranges)

    @property
    def labels(self) -> tuple[str, ...]:
        """What scores are given for, in their order."""
        return (*self.sounds, *EXTRA_LABELS)

    @property
    def n_clip_logits(self) -> int:
        """Outputs of the head for windows: the sounds, none of them if they exclude one another, and the others."""
        return len(self.labels) + self.is_exclusive

    @property
    def n_window_samples(self) -> int:
        """Length of a window."""
        return round(self.window_s * self.features.sample_rate)

    @property
    def n_window_frames(self) -> int:
        """Spectrogram frames of a window."""
        return n_frames(self.n_window_samples, self.features)

    @property
    def n_window_steps(self) -> int:
        """Steps of the body's map of a window."""
        return math.ceil(self.n_window_frames / STEP_FRAMES)

    @property
    def n_step_samples(self) -> int:
        """Samples from step to step."""
        return STEP_FRAMES * self.features.hop_length

    @property
    def step_s(self) -> float:
        """Seconds from step to step."""
        return self.n_step_samples / self.features.sample_rate


def levels(mel: NDArray[np.float32], params: FeatureParams) -> NDArray[np.float32]:
    """Mean mel magnitude, smoothed over LEVEL_S.

    Args:
        mel: float32 (n_frames, n_mels), before the logarithm.
        params: What it was made with.

    Returns:
        float32 (n_frames,).
    """
    width = round(LEVEL_S * params.sample_rate / params.hop_length)
    return np.convolve(mel.mean(axis=1), np.full(width, 1 / width, np.float32), "same")


def levelled(mel: NDArray[np.float32], level_range: LevelRange, params: FeatureParams) -> NDArray[np.float32]:
    """What the body sees of one window: the logarithm, after the loudest moment is brought into a range.

    Args:
        mel: float32 (n_frames, n_mels), magnitudes of one window.
        level_range: Of the network.
        params: What it was made with.

    Returns:
        float32 (n_frames, n_mels).
    """
    gain = level_range.gain(float(levels(mel, params).max()))
    result: NDArray[np.float32] = np.log(mel * np.float32(gain) + np.float32(params.log_offset))
    return result


def build_network(params: SoundParams, *, pointwise_dtype: str = "float32", dropout: float = 0.0) -> keras.Model:
    """One member, untrained; soundstage.sound.inference has what serves.

    The activation is ReLU6: the ranges in YAMNet's own file end at 6.

    Args:
        params: Its shape.
        pointwise_dtype: "mixed_bfloat16" makes training steps 1.5 times faster on CPUs that have it.
        dropout: Share of what the heads see that is left out in training.

    Returns:
        log-mel (batch, n_frames, n_mels) of any length to a dictionary of logits: "clip", (batch, n_clip_logits), and
        "frames", (batch, n_steps, n_labels).

    Source: MobileNet v1, arXiv:1704.04861; github.com/tensorflow/models, research/audioset/yamnet/yamnet.py.
    """
    names = iter(LAYER_NAMES)
    log_mel = keras.Input((None, params.features.n_mels), name="log_mel")
    x = layers.Reshape((-1, params.features.n_mels, 1))(log_mel)
    x = layers.Conv2D(N_CONV, 3, strides=2, padding="same", name=next(names))(x)
    x = layers.ReLU(6.0)(x)
    for stride, width in BLOCKS:
        x = layers.DepthwiseConv2D(3, strides=stride, padding="same", name=next(names))(x)
        x = layers.ReLU(6.0)(x)
        x = layers.Dense(width, name=next(names), dtype=pointwise_dtype)(x)  # a convolution of 1 x 1
        x = layers.ReLU(6.0)(x)
    # (batch, n_steps, 2, 1024) -> (batch, n_steps, 1024)
    steps = keras.ops.mean(x, axis=2)
    pooled = keras.ops.concatenate([keras.ops.mean(steps, axis=1), keras.ops.max(steps, axis=1)], axis=1)
    clip = layers.Dense(params.n_clip_logits, name="clip")(layers.Dropout(dropout)(pooled))
    frames = layers.Dense(len(params.labels), name="frames")(layers.Dropout(dropout)(steps))
    return keras.Model(log_mel, {"clip": clip, "frames": frames}, name="sounds")


def network_weights(network: keras.Model) -> dict[str, NDArray[np.float32]]:
    """Kernels and biases by name, such as "pointwise_3/kernel"."""
    arrays: dict[str, NDArray[np.float32]] = {}
    for name in (*LAYER_NAMES, *HEAD_NAMES):
        kernel, bias = network.get_layer(name).get_weights()
        arrays |= {f"{name}/kernel": kernel, f"{name}/bias": bias}
    return arrays


def set_network_weights(
    network: keras.Model, weights: Mapping[str, NDArray[np.float32]], names: Sequence[str] = LAYER_NAMES + HEAD_NAMES
) -> None:
    """Fill the named layers.

    Raises:
        KeyError: An array is missing.
        ValueError: An array is of another shape.
    """
    for name in names:
        network.get_layer(name).set_weights([weights[f"{name}/{part}"] for part in ("kernel", "bias")])


def stored_weights(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.generic]]:
    """Weights as a model folder keeps them, in a fifth of the bytes.

    Matrices, which are nearly all of them, become 6-bit codes, packed into bytes, with a scale for each output,
    "pointwise_3/kernel_scale"; the rest becomes float16.

    Args:
        weights: What network_weights gives.

    Source: per-channel symmetric quantisation, arXiv:1806.08342, section 2.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, array in weights.items():
        if array.ndim != 2:
            arrays[name] = array.astype(np.float16)
            continue
        scale = np.maximum(np.abs(array).max(axis=0), np.finfo(np.float32).tiny) / _MAX_CODE
        arrays[name] = _packed(np.rint(array / scale).astype(np.int8))
        arrays[name + _SCALE] = scale.astype(np.float32)
    return arrays


def learnt_weights(stored: Mapping[str, NDArray[np.generic]], params: SoundParams) -> dict[str, NDArray[np.float32]]:
    """Weights as they are computed with: float32, whatever they are stored as.

    Raises:
        ModelError: An array is missing or of another shape.
    """
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, shape in weight_shapes(params).items():
        try:
            found = stored[name]
            if found.dtype == np.uint8:
                array = _unpacked(found.astype(np.uint8), shape) * stored[name + _SCALE].astype(np.float32)
            else:
                array = found.astype(np.float32)
        except (KeyError, ValueError) as e:
            raise ModelError(f"the weights do not fit the sound model: {e}") from e
        if array.shape != shape:
            raise ModelError(f"the weights do not fit the sound model: {name} is {array.shape}, not {shape}")
        arrays[name] = array
    return arrays


def _packed(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Codes one after another, each from 0 on and without its first two bits: uint8 (ceil(codes.size * 6 / 8),)."""
    from_zero = (codes + _MAX_CODE).astype(np.uint8).reshape(-1, 1)
    return np.packbits(np.unpackbits(from_zero, axis=1)[:, -_N_BITS:])


def _unpacked(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What has been packed, as float32.

    Raises:
        ValueError: There are fewer codes, or more.
    """
    n_bits = math.prod(shape) * _N_BITS
    if packed.size != math.ceil(n_bits / 8):
        raise ValueError(f"{packed.size} bytes of codes do not make a matrix of {shape}")
    bits = np.unpackbits(packed)[:n_bits].reshape(-1, _N_BITS)
    from_zero = bits @ (1 << np.arange(_N_BITS - 1, -1, -1, dtype=np.uint8))
    return from_zero.reshape(shape).astype(np.float32) - np.float32(_MAX_CODE)


def weight_shapes(params: SoundParams) -> dict[str, tuple[int, ...]]:
    """Of the arrays of a member, by name."""
    kernels: list[tuple[int, ...]] = [(3, 3, 1, N_CONV)]
    n_inputs = N_CONV
    for _, width in BLOCKS:
        kernels += [(3, 3, n_inputs, 1), (n_inputs, width)]
        n_inputs = width
    kernels += [(2 * N_EMBEDDING, params.n_clip_logits), (N_EMBEDDING, len(params.labels))]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, kernel in zip(LAYER_NAMES + HEAD_NAMES, kernels, strict=True):
        n_outputs = kernel[-2] if name.startswith("depthwise") else kernel[-1]
        shapes |= {f"{name}/kernel": kernel, f"{name}/bias": (n_outputs,)}
    return shapes


def member_name(member: int, name: str) -> str:
    """What an array of a member is called in the model folder."""
    return f"member_{member}/{name}"


def member_weights(weights: Mapping[str, NDArray[np.generic]], member: int) -> dict[str, NDArray[np.generic]]:
    """The arrays of one member, by their own names."""
    prefix = member_name(member, "")
    return {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}


def combined(answers: Sequence[Mapping[str, Any]], params: SoundParams) -> tuple[Any, Any]:
    """Scores of windows from what the members say of them.

    Which of the sounds a window holds, all members say. Whether it holds one, when, and whether there is speech, music
    or silence, those say that were taught it. A window that holds nothing is silent in all of its steps: of a step
    alone that cannot be said, since a pause between sounds is as quiet.

    Args:
        answers: Of each member, the logits that build_network describes.
        params: The frozen parameters saved beside the weights.

    Returns:
        Tensors of Keras's backend, in [0, 1]: of windows, (batch, n_labels), where sounds that exclude one another have
        at most 1 together and all others stand alone; and of steps, (batch, n_steps, n_labels), where all stand alone.
    """
    ops, n_sounds = keras.ops, len(params.sounds)
    taught = [answer for i, answer in enumerate(answers) if i not in params.whole_members]
    if params.is_exclusive:
        which = _mean([ops.softmax(answer["clip"][:, :n_sounds]) for answer in answers])
        is_none = _mean([ops.softmax(answer["clip"][:, : n_sounds + 1])[:, -1:] for answer in taught])
        sounds = which * (1 - is_none)
    else:
        sounds = _mean([ops.sigmoid(answer["clip"][:, :n_sounds]) for answer in answers])
    extras = _mean([ops.sigmoid(answer["clip"][:, -len(EXTRA_LABELS) :]) for answer in taught])
    clip = ops.concatenate([sounds, extras], axis=-1)
    frames = _mean([ops.sigmoid(answer["frames"]) for answer in taught])
    silent = ops.maximum(frames[..., -1:], clip[:, None, -1:])
    return clip, ops.concatenate([frames[..., :-1], silent], axis=-1)


def _mean(parts: Sequence[Any]) -> Any:
    return sum(parts[1:], parts[0]) / len(parts)
