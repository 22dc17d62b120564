"""How weights are learnt: the network with its losses, the optimizer, and a run that can be broken off and go on.

Keras does the work on whichever backend it runs (TensorFlow, JAX).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from soundstage.sound.model import (
    HEAD_NAMES,
    LAYER_NAMES,
    SoundParams,
    build_network,
    network_weights,
    set_network_weights,
)
from training.sound_classification.config import Config, LearningConfig, LossConfig
from training.sound_classification.data.examples import Mixer
from training.sound_classification.model.yamnet import Yamnet

Arrays = dict[str, NDArray[np.float32]]

_TEACHER_HEAD = "yamnet"
_TEACHER_START = -3.0
"""Bias of the teacher's head: few of the 521 are heard at once."""


class Diverged(RuntimeError):
    """The loss is no number any more; the message says when, and where the last good weights are."""


class WrongRun(ValueError):
    """A folder holds another run than the one that is to go on."""


@keras.saving.register_keras_serializable("soundstage")
class TwoRateAdamW(keras.optimizers.Adam):  # type: ignore[misc]  # Keras has no types
    """AdamW with a rate for the body and one for the heads, and averages of all weights.

    The body's gradients are clipped by their norm. The average is exponential, short at first:
    min(average, (1 + n) / (10 + n)) of what it was before step n.

    Args:
        learning_rate: Schedule of the share of both rates.
        config: The recipe's part.
        is_head: For each variable in the order of the trainable ones.

    Source: arXiv:1711.05101 (AdamW); TensorFlow's ExponentialMovingAverage for the ramp.
    """

    def __init__(self, learning_rate: Any, config: LearningConfig, is_head: list[bool]) -> None:
        super().__init__(learning_rate, beta_2=config.beta_2)
        self._config, self._is_head = config, is_head
        self.averages: list[Any] = []

    def build(self, variables: list[Any]) -> None:
        """Make the averages, which start as the weights are."""
        if self.built:
            return
        super().build(variables)
        self.averages = self.add_optimizer_variables(variables, "average", initializer="zeros")
        for average, variable in zip(self.averages, variables, strict=True):
            average.assign(np.array(variable.numpy()))  # a copy: JAX would share the buffer

    def apply(self, grads: list[Any], trainable_variables: list[Any] | None = None) -> None:
        """Clip, then step."""
        squares = [keras.ops.sum(keras.ops.square(g)) for g, head in zip(grads, self._is_head, strict=True) if not head]
        if squares:
            norm = keras.ops.sqrt(sum(squares))
            scale = self._config.clip_norm / keras.ops.maximum(norm, self._config.clip_norm)
            grads = [g if head else g * scale for g, head in zip(grads, self._is_head, strict=True)]
        super().apply(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One variable: Adam, decay, average."""
        index = self._get_variable_index(variable)
        own = self._config.head_rate if self._is_head[index] else self._config.body_rate
        rate = keras.ops.cast(learning_rate, variable.dtype) * own
        self.assign_sub(variable, variable * (rate * self._config.weight_decay))
        super().update_step(gradient, variable, rate)
        n_done = keras.ops.cast(self.iterations + 1, variable.dtype)
        kept = keras.ops.minimum(self._config.average, (1 + n_done) / (10 + n_done))
        average = self.averages[index]
        self.assign_sub(average, (1 - kept) * (average - variable))


class Classifier(keras.Model):  # type: ignore[misc]
    """The network as it is trained: with its losses, and with YAMNet beside it where it teaches."""

    def arrange(self, params: SoundParams, loss: LossConfig) -> None:
        """Say what the losses are; has to come before compiling.

        Args:
            params: Of the network.
            loss: Weights of the parts.
        """
        self._params, self._weights_of_loss = params, loss
        self._parts = {name: keras.metrics.Mean(name=name) for name in ("sounds", "extras", "steps")}

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Mean over the windows of what is said of each window, and over its steps."""
        ops = keras.ops
        n_sounds = y["sounds"].shape[-1]
        said = ops.cast(y_pred["clip"], "float32")
        if self._params.is_exclusive:
            sounds = ops.categorical_crossentropy(y["sounds"], said[:, :n_sounds], from_logits=True)
        else:
            sounds = ops.sum(_independent(y["sounds"], said[:, :n_sounds]), axis=-1)
        sounds = ops.mean(y["sound_weights"] * sounds)
        extras = ops.mean(ops.sum(_independent(y["extras"], said[:, n_sounds:]), axis=-1))
        in_steps = ops.sum(y["frame_weights"] * _independent(y["frames"], ops.cast(y_pred["frames"], "float32")))
        steps = in_steps / (ops.sum(ops.max(y["frame_weights"], axis=-1)) + 1e-6)
        total = sounds + self._weights_of_loss.extras * extras + self._weights_of_loss.frames * steps
        if _TEACHER_HEAD in y_pred:
            taught = _independent(ops.stop_gradient(y_pred["teacher"]), y_pred[_TEACHER_HEAD])
            total += self._weights_of_loss.yamnet * ops.mean(ops.sum(taught, axis=-1))
        for name, value in (("sounds", sounds), ("extras", extras), ("steps", steps)):
            self._parts[name].update_state(value)
        return total


def _independent(targets: Any, logits: Any) -> Any:
    return keras.ops.binary_crossentropy(targets, logits, from_logits=True)


def build_classifier(
    params: SoundParams,
    config: Config,
    yamnet: Yamnet | None,
    *,
    n_steps: int,
    seed: int,
    start: Arrays | None = None,
) -> Classifier:
    """The network at its start, ready to be trained.

    Args:
        params: Of the model.
        config: The recipe.
        yamnet: Where the body starts, and what teaches it; None starts by chance.
        n_steps: Of the whole run, for the schedule.
        seed: Of heads, dropout, and a start by chance.
        start: What has been learnt before, heads included, in place of all that.
    """
    keras.utils.set_random_seed(seed)
    learning = config.learning
    network = build_network(params, pointwise_dtype=learning.precision, dropout=learning.dropout)
    # rare things are not heard, until there is a reason
    network.get_layer("frames").bias.assign(np.full(len(params.labels), -2.0, np.float32))
    if start is not None:
        set_network_weights(network, start)
    else:
        body = yamnet.weights() if yamnet is not None and learning.start == "yamnet" else _by_chance(network, seed)
        set_network_weights(network, body, LAYER_NAMES)
    outputs = dict(network.output)
    if config.loss.yamnet:
        if yamnet is None:
            raise ValueError("without its file, YAMNet cannot teach")
        bias = keras.initializers.Constant(_TEACHER_START)
        head = keras.layers.Dense(len(yamnet.classifier()[1]), name=_TEACHER_HEAD, bias_initializer=bias)
        outputs |= {
            _TEACHER_HEAD: head(network.get_layer("clip").input),
            "teacher": _teacher(params, yamnet)(network.input),
        }
    classifier = Classifier(network.input, outputs, name="classifier")
    n_frozen = 0 if not learning.frozen_blocks else 1 + 2 * learning.frozen_blocks
    for name in LAYER_NAMES[:n_frozen]:
        classifier.get_layer(name).trainable = False
    classifier.arrange(params, config.loss)
    heads = {*HEAD_NAMES, _TEACHER_HEAD}
    is_head = [variable.path.split("/")[-2] in heads for variable in classifier.trainable_variables]
    classifier.compile(
        TwoRateAdamW(_schedule(learning, n_steps), learning, is_head),
        # XLA's grouped convolution is 8 times slower than oneDNN's; JAX has nothing else
        jit_compile=keras.backend.backend() != "tensorflow",
    )
    classifier.optimizer.build(classifier.trainable_variables)
    return classifier


def _by_chance(network: keras.Model, seed: int) -> Arrays:
    """A start for the body under which signals keep their size from layer to layer.

    Source: He et al., "Delving Deep into Rectifiers", arXiv:1502.01852.
    """
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for name in LAYER_NAMES:
        kernel, bias = network.get_layer(name).get_weights()
        # of a depthwise convolution each output sees one input
        n_inputs = kernel[..., 0, 0].size if name.startswith("depthwise") else kernel[..., 0].size
        kernel = rng.normal(0, np.sqrt(2 / n_inputs), kernel.shape).astype(np.float32)
        arrays |= {f"{name}/kernel": kernel, f"{name}/bias": bias}
    return arrays


def _teacher(params: SoundParams, yamnet: Yamnet) -> keras.Model:
    """YAMNet itself: log-mel of any length to the scores of its 521 classes."""
    network = build_network(params)
    set_network_weights(network, yamnet.weights(), LAYER_NAMES)
    kernel, bias = yamnet.classifier()
    last = keras.layers.Dense(len(bias), activation="sigmoid", name="classes")
    scores = last(keras.ops.mean(network.get_layer("frames").input, axis=1))
    last.set_weights([kernel, bias])
    teacher = keras.Model(network.input, scores, name="teacher")
    teacher.trainable = False
    return teacher


def _schedule(learning: LearningConfig, n_steps: int) -> Any:
    """Share of both rates: linear warm-up, then cosine."""
    n_warm_up = round(learning.warm_up * n_steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0 if n_warm_up else 1.0,
        max(1, n_steps - n_warm_up),
        alpha=learning.final_rate,
        warmup_target=1.0 if n_warm_up else None,
        warmup_steps=n_warm_up,
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """After each step.

    Attributes:
        losses: The whole, under "loss", and its parts.
    """

    step: int
    n_steps: int
    losses: dict[str, float]


class Run:
    """One network's training, in a folder from which it goes on after a break of any kind.

    Args:
        folder: Holds checkpoint.safetensors while it runs, and weights.safetensors when it is done.
        fingerprint: Of the recipe and the data. A folder that holds another is refused.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self._fingerprint = folder, fingerprint
        self._checkpoint, self._result = folder / "checkpoint.safetensors", folder / "weights.safetensors"

    @property
    def is_done(self) -> bool:
        """Whether the weights are there.

        Raises:
            WrongRun: They are those of another run.
        """
        return self._read(self._result) is not None

    @property
    def n_done(self) -> int:
        """Steps up to the last checkpoint.

        Raises:
            WrongRun: It is one of another run.
        """
        found = self._read(self._checkpoint)
        return 0 if found is None else found[1]

    def weights(self) -> Arrays:
        """What has been learnt, by the names of the model folder.

        Raises:
            WrongRun: The folder holds another run, or no end of it.
        """
        found = self._read(self._result)
        if found is None:
            raise WrongRun(f"{self.folder} holds no finished run")
        return found[0]

    def train(self, classifier: Classifier, mixer: Mixer, n_steps: int, *, checkpoint_steps: int) -> Iterator[Progress]:
        """Go on from the last checkpoint to the end, reporting after each step.

        Args:
            classifier: At its start.
            mixer: Gives each step its windows.
            n_steps: In all.
            checkpoint_steps: After how many steps a checkpoint is written.

        Raises:
            Diverged: The loss or a weight is not finite.
            OSError: The disk refuses; the last checkpoint stays.
            WrongRun: The folder holds another run.
        """
        variables = {f"{i:03d}": v for i, v in enumerate(classifier.variables + classifier.optimizer.variables)}
        first = self._restore(variables)
        for step in range(first, n_steps):
            batch = mixer.batch(step)
            losses = classifier.train_on_batch(batch.log_mel, batch.targets, return_dict=True)
            losses = {name: float(value) for name, value in losses.items()}
            if not np.isfinite(losses["loss"]):
                raise self._diverged(f"the loss is {losses['loss']} at step {step + 1} of {n_steps}")
            if (step + 1) % checkpoint_steps == 0 and step + 1 < n_steps:
                arrays = {name: variable.numpy() for name, variable in variables.items()}
                if not all(np.isfinite(array).all() for array in arrays.values()):
                    raise self._diverged(f"weights are no numbers any more after step {step + 1} of {n_steps}")
                self._write(self._checkpoint, arrays, step + 1)
            yield Progress(step + 1, n_steps, losses)
        weights = _averaged(classifier)
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise self._diverged(f"weights are no numbers any more after step {n_steps}, the last one")
        self._write(self._result, weights, n_steps)
        self._checkpoint.unlink(missing_ok=True)

    def _diverged(self, what: str) -> Diverged:
        is_kept = self._checkpoint.exists()
        kept = f"The last good weights are in {self._checkpoint}" if is_kept else "No checkpoint had been written"
        return Diverged(
            f"{what} of {self.folder}: the rates are too high, or the numbers too coarse (learning.precision). {kept}"
        )

    def _restore(self, variables: Mapping[str, Any]) -> int:
        """Fill the variables from the checkpoint; the number of steps that are done."""
        found = self._read(self._checkpoint)
        if found is None:
            return 0
        arrays, step = found
        if arrays.keys() != variables.keys():
            raise WrongRun(f"{self._checkpoint} was written by another version; remove it to start again")
        for name, variable in variables.items():
            variable.assign(arrays[name])
        return step

    def _read(self, path: Path) -> tuple[Arrays, int] | None:
        if not path.exists():
            return None
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata()
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError as e:
            raise WrongRun(f"{path} is damaged; remove it to start again: {e}") from e
        if about["fingerprint"] != self._fingerprint:
            raise WrongRun(
                f"{path} is of a run with another recipe or other clips: name another folder with --runs, or remove it"
            )
        return arrays, int(about["step"])

    def _write(self, path: Path, arrays: Mapping[str, NDArray[Any]], step: int) -> None:
        """Whole or not at all."""
        about = {"fingerprint": self._fingerprint, "step": str(step)}
        write_whole(path, save({k: np.asarray(v, order="C") for k, v in arrays.items()}, about))


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file so that there is the old one or the new one, but never a part.

    Raises:
        OSError: The disk refuses; it names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    try:
        with scratch.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as e:
        scratch.unlink(missing_ok=True)
        raise OSError(e.errno, os.strerror(e.errno or 0), str(path)) from e


def _averaged(classifier: Classifier) -> Arrays:
    """The averages of the weights, by the names of the model folder."""
    for variable, average in zip(classifier.trainable_variables, classifier.optimizer.averages, strict=True):
        variable.assign(average)
    return network_weights(classifier)


def fingerprint(*parts: object) -> str:
    """Of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
