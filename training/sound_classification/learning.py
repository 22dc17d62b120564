"""The training loop: every layer of the body and the head, from YAMNet's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import Field

from soundstage.params import Params
from soundstage.sound.model import N_EMBEDDING, SoundParams, body_weights, build_body, set_body_weights
from training.sound_classification.data.examples import Batch, Mixer

Arrays = dict[str, NDArray[np.float32]]


class LearningParams(Params):
    """How it learns. The defaults were found by cross-validation, see README.md."""

    n_epochs: int = Field(12, gt=0)
    head_from_yamnet: bool = False
    """The head starts from YAMNet's rows for the labels that AudioSet has, else by chance."""
    balanced: bool = False
    """Each class is heard equally often, however many clips it has."""
    batch_size: int = Field(32, gt=0)
    body_rate: float = 2e-4
    head_rate: float = 1e-3
    warm_up_share: float = 0.08
    final_rate_share: float = 0.02
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    dropout: float = 0.3
    average: float = Field(0.99, ge=0, lt=1)
    """Of the exponential moving average of the weights, which is what is kept."""
    extra_loss_weight: float = 0.5


MEMBERS = (LearningParams(), LearningParams(n_epochs=16, head_from_yamnet=True, balanced=True))
"""The model is the mean of what these two say: they err differently, which is worth more than either's own tuning."""


@dataclass(frozen=True, slots=True)
class Progress:
    """After each step."""

    step: int
    n_steps: int
    loss: float


class Learner:
    """One run.

    Args:
        params: Of the model.
        learning: How it learns.
        start: Weights to start from: of the body alone, such as YAMNet's, or of the head too.
        seed: Of the head, dropout included.
    """

    def __init__(
        self, params: SoundParams, learning: LearningParams, start: Mapping[str, NDArray[np.generic]], seed: int
    ) -> None:
        keras.utils.set_random_seed(seed)
        self._params, self._learning = params, learning
        self._body = build_body(params)
        set_body_weights(self._body, start)
        self._head = keras.layers.Dense(params.n_logits, name="head")
        self._head.build((None, 2 * N_EMBEDDING))
        if "head/kernel" in start:
            self._head.set_weights([start["head/kernel"], start["head/bias"]])
        self._dropout = keras.layers.Dropout(learning.dropout, seed=seed)
        self._body_variables = self._body.trainable_variables
        self._head_variables = self._head.trainable_variables
        self._averages = [tf.Variable(v.value, trainable=False) for v in self._body_variables + self._head_variables]
        self._n_updates = tf.Variable(0.0, trainable=False)
        self._optimizers = []
        for variables in (self._body_variables, self._head_variables):
            optimizer = keras.optimizers.AdamW(0.0, weight_decay=learning.weight_decay, beta_2=0.98)
            optimizer.build(variables)
            self._optimizers.append(optimizer)
        self._step = tf.function(self._take_step, jit_compile=False)  # XLA's grouped convolution is 8 times slower

    def _take_step(self, batch: tuple[Any, ...]) -> Any:
        log_mel, steps, sound, sound_weight, extra, extra_weight = batch
        n_exclusive = len(self._params.sounds) + 1
        with tf.GradientTape() as tape:
            pooled = pool_steps(self._body(log_mel, training=True), steps)
            logits = self._head(self._dropout(pooled, training=True))
            exclusive = tf.nn.sparse_softmax_cross_entropy_with_logits(sound, logits[:, :n_exclusive])
            independent = tf.nn.sigmoid_cross_entropy_with_logits(extra, logits[:, n_exclusive:])
            loss = tf.reduce_mean(exclusive * sound_weight)
            loss += self._learning.extra_loss_weight * tf.reduce_mean(tf.reduce_sum(independent * extra_weight, axis=1))
        variables = [v.value for v in self._body_variables + self._head_variables]
        gradients = tape.gradient(loss, variables)
        n_body = len(self._body_variables)
        clipped, _ = tf.clip_by_global_norm(gradients[:n_body], self._learning.clip_norm)
        self._optimizers[0].apply(clipped, self._body_variables)
        self._optimizers[1].apply(gradients[n_body:], self._head_variables)
        self._n_updates.assign_add(1.0)
        decay = tf.minimum(self._learning.average, (1 + self._n_updates) / (10 + self._n_updates))
        for average, variable in zip(self._averages, variables, strict=True):
            average.assign(decay * average + (1 - decay) * variable)
        return loss

    def _rate(self, step: int, n_steps: int) -> float:
        """Share of the full learning rate: linear warm-up, then cosine."""
        n_warm_up = max(1, round(self._learning.warm_up_share * n_steps))
        if step < n_warm_up:
            return (step + 1) / n_warm_up
        done = (step - n_warm_up) / max(1, n_steps - n_warm_up)
        final = self._learning.final_rate_share
        return final + (1 - final) * 0.5 * (1 + float(np.cos(np.pi * done)))

    def learn(self, mixer: Mixer) -> Iterator[Progress]:
        """Train, reporting after each step."""
        size = self._learning.batch_size
        n_steps = self._learning.n_epochs * (mixer.n_windows() // size)
        step = 0
        for _ in range(self._learning.n_epochs):
            for batch in mixer.batches(size):
                share = self._rate(step, n_steps)
                self._optimizers[0].learning_rate = self._learning.body_rate * share
                self._optimizers[1].learning_rate = self._learning.head_rate * share
                loss = self._step(as_tensors(batch))
                step += 1
                yield Progress(step, n_steps, float(loss))

    def weights(self) -> Arrays:
        """The averaged weights, by the names of the model folder."""
        kept = [v.numpy() for v in self._body_variables + self._head_variables]
        try:
            self._assign([average.numpy() for average in self._averages])
            kernel, bias = (v.numpy() for v in self._head_variables)
            return {**body_weights(self._body), "head/kernel": kernel, "head/bias": bias}
        finally:
            self._assign(kept)

    def _assign(self, values: list[NDArray[np.float32]]) -> None:
        for variable, value in zip(self._body_variables + self._head_variables, values, strict=True):
            variable.assign(value)


def pool_steps(maps: Any, steps: Any) -> Any:
    """Mean and maximum over the chosen steps: (batch, n_steps, 1024) to (batch, 2048).

    The maps are not negative, so that zeros in place of what is not chosen leave the maximum as it is.
    """
    chosen = maps * steps[:, :, tf.newaxis]
    mean = tf.reduce_sum(chosen, axis=1) / tf.reduce_sum(steps, axis=1, keepdims=True)
    return tf.concat([mean, tf.reduce_max(chosen, axis=1)], axis=1)


def as_tensors(batch: Batch) -> tuple[Any, ...]:
    """The arrays of a batch, in the order of the training step."""
    arrays = (batch.log_mel, batch.steps, batch.sound, batch.sound_weight, batch.extra, batch.extra_weight)
    return tuple(tf.convert_to_tensor(array) for array in arrays)


def window_logits(
    params: SoundParams,
    weights: Mapping[str, NDArray[np.generic]],
    features: NDArray[np.float32],
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Logits of whole windows.

    Args:
        params: Of the model.
        weights: As from Learner.weights.
        features: float32 (n_windows, n_frames, n_mels).
        on_batch: Called after each.

    Returns:
        float32 (n_windows, n_logits).
    """
    body = build_body(params)
    set_body_weights(body, weights)
    run = tf.function(body, jit_compile=False, reduce_retracing=True)
    pooled = []
    for start in range(0, len(features), 16):
        maps = run(tf.convert_to_tensor(features[start : start + 16])).numpy()
        pooled.append(np.concatenate([maps.mean(axis=1), maps.max(axis=1)], axis=1))
        on_batch()
    kernel, bias = (weights[f"head/{part}"].astype(np.float32) for part in ("kernel", "bias"))
    return (np.concatenate(pooled) @ kernel + bias).astype(np.float32)
