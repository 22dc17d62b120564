"""How weights are learnt: the network with its loss, frozen and low-rank weights, and what it writes meanwhile.

Keras does the work on whichever backend it runs (TensorFlow, JAX).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from soundstage.params import MoonshineParams
from training.acoustics import Samples
from training.config import BadConfig
from training.runs import Arrays, schedule
from training.voice_recognition import network
from training.voice_recognition.config import LearningConfig
from training.voice_recognition.recordings import N_SILENCE, max_tokens, padded

_N_STEPS = 32
"""Tokens are written in rows of a multiple of it, so that few shapes have to be compiled."""


class Speech(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """The weights of the model: frozen, learning, or learning in a low rank.

    Args:
        start: As stored in the model folder.
        learning: Says which is which.
        seed: Of the low-rank factors.

    Raises:
        BadConfig: A pattern of frozen weights fits none, or nothing is left to learn.
    """

    def __init__(self, start: Mapping[str, NDArray[Any]], learning: LearningConfig, *, seed: int) -> None:
        super().__init__(name="speech")
        idle = [pattern for pattern in learning.frozen if not any(fnmatchcase(name, pattern) for name in start)]
        if idle:
            raise BadConfig(f"learning.frozen: no weight is called {', '.join(idle)}; names are such as {min(start)}")
        rank = learning.lora_rank
        self._low_rank_scale = learning.lora_alpha / max(rank, 1)
        self._stored: dict[str, Any] = {}
        self._factors: dict[str, tuple[Any, Any]] = {}
        initializer = keras.initializers.RandomNormal(stddev=0.02, seed=seed)
        for name, array in sorted(start.items()):
            is_free = not any(fnmatchcase(name, pattern) for pattern in learning.frozen)
            is_low_rank = is_free and rank > 0 and name.endswith("kernel") and array.ndim == 2
            path = name.replace(".", "_")
            self._stored[name] = self.add_weight(
                shape=array.shape, initializer="zeros", trainable=is_free and rank == 0, name=path
            )
            self._stored[name].assign(array.astype(np.float32))
            if is_low_rank:
                self._factors[name] = (
                    self.add_weight(shape=(array.shape[0], rank), initializer=initializer, name=f"{path}_in"),
                    self.add_weight(shape=(rank, array.shape[1]), initializer="zeros", name=f"{path}_out"),
                )
        if not self.trainable_variables:
            raise BadConfig("learning.frozen leaves nothing to learn")
        self.built = True

    def weights_now(self) -> dict[str, Any]:
        """By the names of the model folder, low-rank updates included."""
        arrays = {name: ops.convert_to_tensor(variable) for name, variable in self._stored.items()}
        for name, (into, out) in self._factors.items():
            arrays[name] = arrays[name] + ops.matmul(into, out) * self._low_rank_scale
        return arrays

    def arrays(self) -> Arrays:
        """The same, as they are stored."""
        arrays = {name: np.array(variable.numpy()) for name, variable in self._stored.items()}
        for name, (into, out) in self._factors.items():
            arrays[name] += into.numpy() @ out.numpy() * self._low_rank_scale
        return arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Be these weights, without updates."""
        for name, variable in self._stored.items():
            variable.assign(arrays[name].astype(np.float32))
        for _, out in self._factors.values():
            out.assign(np.zeros(out.shape, np.float32))


class Learner(keras.Model):  # type: ignore[misc]
    """Predicts each token of a transcript from those before it: inputs and targets as in `recordings.Batch`."""

    def __init__(self, speech: Speech, params: MoonshineParams, learning: LearningConfig) -> None:
        super().__init__(name="learner")
        self.speech, self._params, self._smoothing = speech, params, learning.label_smoothing
        self.built = True

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """Logits float32 (n_batch, n_tokens, vocabulary_size)."""
        weights = self.speech.weights_now()
        heard = network.encode(weights, self._params, inputs["samples"], inputs["n_samples"])
        return network.decode(weights, self._params, inputs["token_ids"], heard)[0]

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Mean over the tokens, each clip's end among them."""
        is_token = ops.cast(y >= 0, "float32")
        logprobs = ops.log_softmax(y_pred)
        right = ops.take_along_axis(logprobs, ops.maximum(y, 0)[:, :, None], axis=-1)[:, :, 0]
        loss = -(1 - self._smoothing) * right
        if self._smoothing:
            loss = loss - self._smoothing * ops.mean(logprobs, axis=-1)
        return ops.sum(loss * is_token) / ops.sum(is_token)


class _Writer(keras.Model):  # type: ignore[misc]
    """Writes waveforms down in rows of one length."""

    def __init__(self, speech: Speech, params: MoonshineParams, n_steps: int) -> None:
        super().__init__(name=f"writer_{n_steps}")
        self.speech, self._params, self._n_steps = speech, params, n_steps
        self.built = True

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """Token numbers int32 (n_batch, n_steps)."""
        return network.write(self.speech.weights_now(), self._params, **inputs, n_steps=self._n_steps)


def build_learner(
    start: Mapping[str, NDArray[Any]], params: MoonshineParams, learning: LearningConfig, *, n_steps: int, seed: int
) -> Learner:
    """The network at its start, ready to be trained.

    Args:
        start: Weights as stored.
        params: Of the same model.
        learning: The recipe's part.
        n_steps: Of the whole run, for the schedule.
        seed: Of what is left to chance.

    Raises:
        BadConfig: The recipe's names of weights do not fit.
    """
    learner = Learner(Speech(start, learning, seed=seed), params, learning)
    rates = schedule(n_steps, warm_up=learning.warm_up, final=learning.final_rate, rate=learning.rate)
    optimizer = keras.optimizers.AdamW(rates, weight_decay=learning.weight_decay, global_clipnorm=learning.clip_norm)
    # shapes differ from batch to batch, and XLA compiles each for long; JAX has nothing else
    learner.compile(optimizer, jit_compile=keras.backend.backend() != "tensorflow")
    optimizer.build(learner.trainable_variables)
    return learner


class Writer:
    """Writes with the weights as they are now, like the service does with a region of speech.

    Args:
        speech: The weights.
        params: Of the same model.
        batch_size: Rows that are written together.
    """

    def __init__(self, speech: Speech, params: MoonshineParams, *, batch_size: int) -> None:
        self._speech, self._params, self._batch_size = speech, params, batch_size
        self._writers: dict[int, _Writer] = {}

    def write(
        self, waveforms: Sequence[Samples], on_batch: Callable[[int], None] = lambda _n: None
    ) -> list[tuple[int, ...]]:
        """Tokens of each waveform, without the special ones; the same whatever else there is.

        Args:
            waveforms: Each float32 (n_samples,) at 16 kHz.
            on_batch: Told how many more are done.
        """
        found: list[tuple[int, ...]] = [()] * len(waveforms)
        order = sorted(range(len(waveforms)), key=lambda i: -len(waveforms[i]))
        for first in range(0, len(order), self._batch_size):
            chosen = order[first : first + self._batch_size]
            filled = [*chosen, *chosen[:1] * (self._batch_size - len(chosen))]  # one shape for the last batch too
            samples, n_samples = padded([waveforms[i] for i in filled])
            limits = np.array([max_tokens(int(n) - 2 * N_SILENCE) for n in n_samples], np.int32)
            n_steps = -(-int(limits.max()) // _N_STEPS) * _N_STEPS
            if n_steps not in self._writers:
                self._writers[n_steps] = _Writer(self._speech, self._params, n_steps)
                self._writers[n_steps].compile(jit_compile=keras.backend.backend() != "tensorflow")
            inputs = {"samples": samples, "n_samples": n_samples, "max_tokens": limits}
            rows = self._writers[n_steps].predict_on_batch(inputs)
            for i, row in zip(chosen, np.asarray(rows), strict=False):
                ends = np.flatnonzero(row == self._params.end_token_id)
                found[i] = tuple(row[: ends[0] if len(ends) else len(row)].tolist())
            on_batch(len(chosen))
        return found
