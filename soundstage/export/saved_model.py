"""Model folders of the registry to folders that TensorFlow Serving loads.

`<output>/<name>/<integer version>/` holds saved_model.pb, variables/, and under assets.extra/ what the graph itself
does not read: the requests that warm a server up (tf_serving_warmup_requests), and the card, parameters, licence and
other small files of the model.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto

from soundstage.errors import ModelError
from soundstage.export import Precision
from soundstage.export.graph import ServedGraph, WarmUp
from soundstage.export.sound import SoundGraph
from soundstage.export.speech import SpeechGraph
from soundstage.models import registry
from soundstage.models.registry import ModelFolder

EXTRA_DIR = "assets.extra"
WARM_UP_NAME = "tf_serving_warmup_requests"
"""Source: github.com/tensorflow/serving, tensorflow_serving/servables/tensorflow/saved_model_warmup_util.cc."""

OnProgress = Callable[[str], None]
_GRAPHS: dict[registry.ModelKind, Callable[[ModelFolder, Precision], ServedGraph]] = {
    "sound": SoundGraph,
    "speech": SpeechGraph,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        serving_version: The integer that TensorFlow Serving knows the version by.
        signatures: Their names.
        duration_s: How long it took.
    """

    name: str
    version: str
    serving_version: int
    path: str
    precision: Precision
    signatures: tuple[str, ...]
    size_bytes: int
    duration_s: float


def serving_version(version: str) -> int:
    """The integer of a version: 1.12.3 is 1 012 003, so that newer versions have higher integers.

    Raises:
        ModelError: The version is not three numbers, the second and third below 1,000.
    """
    match = re.fullmatch(r"(\d{1,9})\.(\d{1,3})\.(\d{1,3})", version)
    if match is None:
        raise ModelError(
            f"version {version!r} has no integer for TensorFlow Serving: it must be MAJOR.MINOR.PATCH, the last two "
            "below 1000"
        )
    major, minor, patch = map(int, match.groups())
    return (major * 1000 + minor) * 1000 + patch


def export(folder: ModelFolder, output: Path, *, precision: Precision, on_progress: OnProgress) -> Exported:
    """Write a model for TensorFlow Serving, whole or not at all.

    What was written is loaded and answers its warm-up requests before it appears under its name.

    Args:
        folder: Of the registry.
        output: TensorFlow Serving's folder of models; made where it does not exist.
        precision: In which the weights are stored.
        on_progress: Told what happens next.

    Raises:
        ModelError: The folder exists, the version has no integer, or the model does not fit its parameters or gives
            values that are not finite.
        OSError: The disk refuses; nothing is left behind.
    """
    started_s = time.monotonic()
    version = serving_version(folder.card.version)
    target = output / folder.card.name / str(version)
    if target.exists():
        # A server does not read a version again, so that a changed one would not be served.
        raise ModelError(f"{target} is there already; remove it, or export to another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A server takes only folders that are named by an integer.
    scratch = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=target.parent))
    try:
        on_progress("building the graph")
        graph = _GRAPHS[folder.card.kind](folder, precision)
        on_progress("writing")
        warm_ups = list(graph.warm_ups())
        _write(scratch, graph, warm_ups, folder)
        on_progress("checking what was written")
        _check(scratch, warm_ups)
        scratch.chmod(0o755)  # the server may run as another user
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Exported(
        name=folder.card.name,
        version=folder.card.version,
        serving_version=version,
        path=str(target),
        precision=precision,
        signatures=tuple(sorted(graph.signatures)),
        size_bytes=sum(file.stat().st_size for file in target.rglob("*") if file.is_file()),
        duration_s=round(time.monotonic() - started_s, 1),
    )


def _write(path: Path, graph: ServedGraph, warm_ups: Iterable[WarmUp], folder: ModelFolder) -> None:
    module = tf.Module()
    module.weights = graph.variables
    try:
        tf.saved_model.save(module, str(path), signatures=graph.signatures)
    except tf.errors.OpError as e:
        raise OSError(f"TensorFlow cannot write {path}: {e.message}") from e
    extra = path / EXTRA_DIR
    extra.mkdir()
    for name in {registry.CARD_NAME, *folder.card.files} - {registry.WEIGHTS_NAME}:
        shutil.copyfile(folder.path / name, extra / name)
    _write_warm_ups(extra / WARM_UP_NAME, folder.card.name, warm_ups)


def _write_warm_ups(path: Path, name: str, warm_ups: Iterable[WarmUp]) -> None:
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2  # noqa: PLC0415  # exporting alone needs it
    except ImportError as e:
        raise ModelError(
            "tensorflow-serving-api is missing; install Soundstage with its extra: pip install 'soundstage[export]'"
        ) from e
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in warm_ups:
            request = predict_pb2.PredictRequest(
                model_spec={"name": name, "signature_name": signature},
                inputs={key: _tensor_proto(value) for key, value in inputs.items()},
            )
            log = prediction_log_pb2.PredictionLog(predict_log={"request": request})
            writer.write(log.SerializeToString())


def _tensor_proto(tensor: tf.Tensor) -> TensorProto:
    """A tensor as a message; silence and the like take no room, since one value stands for all."""
    array = tensor.numpy()
    if array.size and (array == array.flat[0]).all():
        array = array.flat[0]
    return tf.make_tensor_proto(array, tensor.dtype, tensor.shape)


def _check(path: Path, warm_ups: Iterable[WarmUp]) -> None:
    signatures = tf.saved_model.load(str(path)).signatures
    for signature, inputs in warm_ups:
        for name, value in signatures[signature](**inputs).items():
            if value.dtype.is_floating and not np.isfinite(value.numpy()).all():
                raise ModelError(f"the exported graph gives values that are not finite: {signature}, {name}")
