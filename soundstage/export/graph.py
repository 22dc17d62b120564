"""What the graph of every exported model has: weights as variables, and words about itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from soundstage.export import Precision
from soundstage.models.registry import ModelFolder

Tensors: TypeAlias = dict[str, tf.Tensor]

METADATA = "metadata"


class WarmUp(NamedTuple):
    """A request that a server runs before it takes any other.

    Attributes:
        signature: Which one it calls.
        inputs: By name.
    """

    signature: str
    inputs: Tensors


class ServedGraph:
    """One model as TensorFlow functions that stand alone.

    Attributes:
        signatures: Traced functions by name, "serving_default" and "metadata" among them.
        variables: The weights that they read.
    """

    def __init__(self, folder: ModelFolder, **facts: object) -> None:
        """Trace what every model has.

        Args:
            folder: Of the registry.
            facts: What a client has to know besides model card and parameters; JSON values by key.
        """
        texts = {
            "card": folder.card.model_dump(exclude={"files"}),
            "labels": folder.card.labels,
            **facts,
        }
        self.signatures: dict[str, Callable[..., Tensors]] = {METADATA: _metadata(texts)}
        self.variables: list[tf.Variable] = []

    def warm_ups(self) -> Iterator[WarmUp]:
        """A request for each signature and shape that is worth having run; all outputs are finite."""
        yield WarmUp(METADATA, {"key": tf.constant(["card"])})

    def store(self, array: NDArray[Any], precision: Precision) -> tf.Variable:
        """A new weight as it is written; biases and scales are small, so that they stay float32."""
        dtype = np.float16 if precision == "float16" and array.ndim > 1 else np.float32
        self.variables.append(tf.Variable(array.astype(dtype), trainable=False))
        return self.variables[-1]


def _metadata(texts: Mapping[str, object]) -> Callable[..., Tensors]:
    """Signature from key to JSON text; a signature without inputs could not be called over REST."""
    keys = tf.constant(list(texts))
    values = tf.constant([json.dumps(text, ensure_ascii=False) for text in texts.values()])

    def metadata(key: tf.Tensor) -> Tensors:
        is_key = key[:, tf.newaxis] == keys  # (n_batch, n_keys)
        value = tf.gather(values, tf.argmax(is_key, axis=1))
        return {"value": tf.where(tf.reduce_any(is_key, axis=1), value, "")}

    return traced(metadata, key=tf.TensorSpec((None,), tf.string))


def traced(function: Callable[..., Tensors], **inputs: tf.TensorSpec) -> Callable[..., Tensors]:
    """A signature: the function, traced once for inputs of these names, types and shapes."""
    specs = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in inputs.items()]
    concrete: Callable[..., Tensors] = tf.function(function, input_signature=specs).get_concrete_function()
    return concrete


def computed(variable: tf.Variable) -> tf.Tensor:
    """A weight as the graph computes with it."""
    return tf.cast(variable, tf.float32)
