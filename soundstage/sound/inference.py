"""The network of soundstage.sound.model as it serves: a TensorFlow graph that holds its weights.

Written out rather than taken from Keras, whose dense layers come between a product and its bias and activation: here
oneDNN runs each convolution with both in one pass, and arranges constant weights once. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from soundstage.models.runtime import multiplies_bfloat16
from soundstage.sound.model import BLOCKS, SoundParams, combined

Floats = NDArray[np.float32]


def forward(
    weights: Mapping[str, tf.Tensor], log_mel: tf.Tensor, *, pointwise_dtype: tf.DType = tf.float32
) -> dict[str, tf.Tensor]:
    """One member, as soundstage.sound.model.build_network has it.

    Args:
        weights: What learnt_weights gives.
        log_mel: float32 (batch, n_frames, n_mels).
        pointwise_dtype: What the pointwise convolutions, nearly all of the work, compute in.

    Returns:
        Logits: "clip", float32 (batch, n_clip_logits), and "frames", float32 (batch, n_steps, n_labels).
    """

    def active(x: tf.Tensor, name: str) -> tf.Tensor:
        return tf.nn.relu6(tf.nn.bias_add(x, tf.cast(weights[f"{name}/bias"], x.dtype)))

    x = active(tf.nn.conv2d(log_mel[..., tf.newaxis], weights["conv/kernel"], 2, "SAME"), "conv")
    for i, (stride, _) in enumerate(BLOCKS, start=1):
        kernel = weights[f"depthwise_{i}/kernel"]
        x = active(tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), "SAME"), f"depthwise_{i}")
        kernel = tf.cast(weights[f"pointwise_{i}/kernel"], pointwise_dtype)[tf.newaxis, tf.newaxis]
        x = tf.cast(x, pointwise_dtype)
        x = tf.cast(active(tf.nn.conv2d(x, kernel, 1, "SAME"), f"pointwise_{i}"), tf.float32)
    # (batch, n_steps, 2, 1024) -> (batch, n_steps, 1024)
    steps = tf.reduce_mean(x, axis=2)
    pooled = tf.concat([tf.reduce_mean(steps, axis=1), tf.reduce_max(steps, axis=1)], axis=1)
    return {
        "clip": tf.matmul(pooled, weights["clip/kernel"]) + weights["clip/bias"],
        "frames": tf.matmul(steps, weights["frames/kernel"]) + weights["frames/bias"],
    }


class SoundNetworks:
    """All members as one function, so that a batch pays once for being handed to TensorFlow.

    Args:
        members: What learnt_weights gives of each.
        params: Of the model.
    """

    def __init__(self, members: Sequence[Mapping[str, Floats]], params: SoundParams) -> None:
        dtype = tf.bfloat16 if multiplies_bfloat16() else tf.float32

        def run(*log_mels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            answers = [
                forward({name: tf.constant(array) for name, array in own.items()}, log_mel, pointwise_dtype=dtype)
                for own, log_mel in zip(members, log_mels, strict=True)
            ]
            return combined(answers, params)

        spec = tf.TensorSpec((None, None, params.features.n_mels), tf.float32)
        self._run: Callable[..., tuple[tf.Tensor, tf.Tensor]] = tf.function(run).get_concrete_function(
            *[spec] * len(members)
        )

    def __call__(self, log_mels: Sequence[Floats]) -> tuple[Floats, Floats]:
        """Scores of windows and of their steps, as soundstage.sound.model.combined describes them.

        Args:
            log_mels: float32 (batch, n_frames, n_mels), as each member sees the windows.
        """
        clip, frames = self._run(*map(tf.constant, log_mels))
        return clip.numpy(), frames.numpy()
