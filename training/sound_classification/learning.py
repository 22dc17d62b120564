"""How weights are learnt: the network with its losses, the optimizer, and a run that can be broken off and go on.

Keras does the work on whichever backend it runs (TensorFlow, JAX).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from soundstage.models.runtime import multiplies_bfloat16
from soundstage.sound.model import (
    HEAD_NAMES,
    LAYER_NAMES,
    SoundParams,
    build_network,
    network_weights,
    set_network_weights,
)
from training.runs import Arrays, Progress, Run, schedule
from training.sound_classification.config import Config, LearningConfig, LossConfig
from training.sound_classification.data.examples import Mixer
from training.sound_classification.model.yamnet import Yamnet

_TEACHER_HEAD = "yamnet"
_TEACHER_START = -3.0
"""Bias of the teacher's head: few of the 521 are heard at once."""


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
    precision = learning.precision
    if precision == "auto":
        precision = "mixed_bfloat16" if multiplies_bfloat16() else "float32"
    network = build_network(params, pointwise_dtype=precision, dropout=learning.dropout)
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
    rates = schedule(n_steps, warm_up=learning.warm_up, final=learning.final_rate)
    classifier.compile(
        TwoRateAdamW(rates, learning, is_head),
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


def learn(run: Run, classifier: Classifier, mixer: Mixer, n_steps: int, *, checkpoint_steps: int) -> Iterator[Progress]:
    """Train to the end from where the run is, reporting after each step.

    Args:
        run: Keeps what is learnt.
        classifier: At its start.
        mixer: Gives each step its windows.
        n_steps: In all.
        checkpoint_steps: After how many steps a checkpoint is written.

    Raises:
        Diverged: The loss or a weight is not finite.
        OSError: The disk refuses; the last checkpoint stays.
        WrongRun: The folder holds another run.
    """

    def batch(step: int) -> tuple[Any, Any]:
        mixed = mixer.batch(step)
        return mixed.log_mel, mixed.targets

    yield from run.steps(classifier, batch, n_steps, checkpoint_steps=checkpoint_steps)
    run.finish(_averaged(classifier), n_steps)


def _averaged(classifier: Classifier) -> Arrays:
    """The averages of the weights, by the names of the model folder."""
    for variable, average in zip(classifier.trainable_variables, classifier.optimizer.averages, strict=True):
        variable.assign(average)
    return network_weights(classifier)
