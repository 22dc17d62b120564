"""The sound classifier as TensorFlow Serving runs it: the same answers as SoundListener's, computed elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from soundstage.audio.features import mel_spectrogram, n_frames
from soundstage.errors import DeadlineExceeded, ModelError, Overloaded, SampleRateMismatch
from soundstage.export.saved_model import serving_version
from soundstage.models.registry import ModelCard, ModelFolder
from soundstage.params import RemoteModelParams
from soundstage.sound.edges import scores_with_edges
from soundstage.sound.model import SoundParams
from soundstage.types import FrameScores, Waveform

_BUSY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


class RemoteSoundListener:
    """A sound model of the registry whose network runs in TensorFlow Serving.

    The server is asked for the version of the folder, by the integer that `soundstage models export` gives it: a
    version that is promoted before the server has it is refused, and the one before goes on serving.

    Args:
        folder: Of the registry, kind "sound"; its weights are not read.
        remote: Where the server is.

    Raises:
        ModelError: The folder holds another kind of model, a version without an integer, or certificates are missing.
    """

    def __init__(self, folder: ModelFolder, remote: RemoteModelParams) -> None:
        if folder.card.kind != "sound":
            raise ModelError(f"{folder.card.name} is a {folder.card.kind} model, not one for sounds")
        self.card: ModelCard = folder.card
        self.params = folder.params(SoundParams)
        self._remote = remote
        self._version = serving_version(folder.card.version)
        self._stub = PredictionServiceStub(_channel(remote))

    def warm_up(self) -> None:
        """Ask the server for the model's card, and run the model once.

        Raises:
            ModelError: The server has another model under this name.
            ServiceError: The server does not answer.
            RuntimeError: The output is not finite.
        """
        answer = self._answer(self._call(self._request("metadata", key=np.array([b"card"]))))
        served = ModelCard.model_validate_json(tf.make_ndarray(answer.outputs["value"])[0])
        if (served.name, served.version, served.labels) != (self.card.name, self.card.version, self.card.labels):
            raise ModelError(
                f"{self._remote.target} serves {served.name} {served.version} as {self.card.name} {self.card.version}; "
                "export and deploy the same model there"
            )
        self.probe()

    def probe(self) -> None:
        """Run once on the shortest waveform there is a step for.

        Raises:
            RuntimeError: The output is not finite, or the server does not answer.
        """
        silence = Waveform(samples=np.zeros(self.params.n_step_samples, np.float32))
        try:
            scores = self.listen([silence])[0].scores
        except (Overloaded, DeadlineExceeded) as e:
            raise RuntimeError(e.detail) from e
        if not np.isfinite(scores).all():
            raise RuntimeError(f"{self.card.name} {self.card.version} gives scores that are not finite")

    def listen(self, waveforms: Sequence[Waveform]) -> list[FrameScores]:
        """Scores over time and for the whole of each waveform; as SoundListener.listen, within 1e-4.

        Waveforms of one length share a request, so that none hears padding; all requests run at once.

        Raises:
            SampleRateMismatch: A waveform has another rate than the model.
            Overloaded: The server is not there, or full.
            DeadlineExceeded: It does not answer in time.
            ModelError: It refuses the request.
        """
        by_length: dict[int, list[int]] = {}
        for i, waveform in enumerate(waveforms):
            if waveform.sample_rate != self.params.features.sample_rate:
                raise SampleRateMismatch(
                    f"the waveform has {waveform.sample_rate} Hz, the model {self.params.features.sample_rate} Hz"
                )
            by_length.setdefault(len(waveform.samples), []).append(i)
        calls = [
            (indices, self._call(self._request(waveform=np.stack([waveforms[i].samples for i in indices]))))
            for indices in by_length.values()
        ]
        heard: dict[int, FrameScores] = {}
        for indices, call in calls:
            outputs = self._answer(call).outputs
            scores, tags = tf.make_ndarray(outputs["frame_scores"]), tf.make_ndarray(outputs["tags"])
            heard |= {i: self._joined(waveforms[i], scores[row], tags[row]) for row, i in enumerate(indices)}
        return [heard[i] for i in range(len(waveforms))]

    def _request(self, signature_name: str = "serving_default", **inputs: NDArray[Any]) -> PredictRequest:
        request = PredictRequest(inputs={name: tf.make_tensor_proto(array) for name, array in inputs.items()})
        request.model_spec.name = self.card.name
        request.model_spec.version.value = self._version
        request.model_spec.signature_name = signature_name
        return request

    def _call(self, request: PredictRequest) -> Any:
        return self._stub.Predict.future(request, timeout=self._remote.deadline_s)

    def _answer(self, call: Any) -> Any:
        try:
            return call.result()
        except grpc.RpcError as e:
            detail = f"TensorFlow Serving at {self._remote.target}: {e.code().name}, {e.details()}"
            if e.code() in _BUSY:
                raise Overloaded(detail) from e
            if e.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineExceeded(detail) from e
            raise ModelError(detail) from e

    def _joined(self, waveform: Waveform, scores: NDArray[np.float32], tags: NDArray[np.float32]) -> FrameScores:
        """With the edges of the level, which the graph leaves to its caller."""
        params = self.params
        level = np.zeros(n_frames(len(waveform.samples), params.features), np.float32)
        if len(waveform.samples):
            n_missing = max(0, params.n_step_samples - len(waveform.samples))
            mel = mel_spectrogram(np.pad(waveform.samples, (0, n_missing)), params.features)
            level[:] = mel.mean(axis=1)[: len(level)]  # what was filled up with silence has no level
        return scores_with_edges(waveform, scores, tags, level, params)


def _channel(remote: RemoteModelParams) -> grpc.Channel:
    options = [
        ("grpc.max_receive_message_length", remote.max_answer_bytes),
        ("grpc.lb_policy_name", "round_robin"),
    ]
    if remote.ca_file is None:
        return grpc.insecure_channel(remote.target, options)
    try:
        credentials = grpc.ssl_channel_credentials(remote.ca_file.read_bytes())
    except OSError as e:
        raise ModelError(f"the certificates of {remote.target} cannot be read: {e}") from e
    return grpc.secure_channel(remote.target, credentials, options)
