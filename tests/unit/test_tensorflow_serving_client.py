"""The sound classifier through TensorFlow Serving's protocol: a gRPC server with the exported graph behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

from deployments.settings import SoundConfig
from soundstage.errors import DeadlineExceeded, ModelError, Overloaded, SampleRateMismatch
from soundstage.export.saved_model import EXTRA_DIR, export
from soundstage.models.registry import ModelFolder
from soundstage.params import RemoteModelParams
from soundstage.sound import inference
from soundstage.sound.listener import SoundListener
from soundstage.sound.remote import RemoteSoundListener
from soundstage.types import Waveform
from tests.unit.test_export import PARAMS, TOLERANCE, sound_folder, waveform


class Server(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    """What TensorFlow Serving does with a Predict request, as its documentation tells.

    Source: tensorflow/serving, tensorflow_serving/apis/prediction_service.proto and predict_util.cc.
    """

    def __init__(self, model: Path) -> None:
        self.name, self.version = model.parent.name, int(model.name)
        self.signatures = tf.saved_model.load(str(model)).signatures
        self.n_requests = 0
        self.failure: tuple[grpc.StatusCode, str] | None = None

    def Predict(self, request: PredictRequest, context: grpc.ServicerContext) -> PredictResponse:  # noqa: N802
        self.n_requests += 1
        if self.failure is not None:
            context.abort(*self.failure)
        spec = request.model_spec
        if spec.name != self.name or spec.version.value != self.version:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Specific({spec.name})")
        inputs = {name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
        answer = self.signatures[spec.signature_name](**inputs)
        outputs = {name: tf.make_tensor_proto(value.numpy()) for name, value in answer.items()}
        return PredictResponse(outputs=outputs, model_spec=spec)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return sound_folder(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def exported(folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(export(folder, tmp_path_factory.mktemp("serving"), precision="float16", on_progress=print).path)


@pytest.fixture
def server(exported: Path) -> Iterator[tuple[Server, RemoteModelParams]]:
    servicer = Server(exported)
    server = grpc.server(ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, RemoteModelParams(target=f"127.0.0.1:{port}")
    server.stop(None).wait()


def test_the_server_hears_what_the_replica_would_hear(
    server: tuple[Server, RemoteModelParams], folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "multiplies_bfloat16", lambda: False)  # as the graph computes
    remote, local = RemoteSoundListener(folder, server[1]), SoundListener(folder)
    remote.warm_up()
    clips = [
        Waveform(samples=waveform(duration_s)[0], start_s=start_s)
        for duration_s, start_s in ((2.0, 0.0), (0.01, 3.0), (12.3, 7.5), (2.0, 1.0), (0.0, 0.0))
    ]
    n_before = server[0].n_requests
    answers = remote.listen(clips)
    assert server[0].n_requests - n_before == 4, "clips of one length share a request"
    for answer, expected in zip(answers, local.listen(clips), strict=True):
        np.testing.assert_allclose(answer.scores, expected.scores, atol=TOLERANCE)
        np.testing.assert_allclose(answer.tags, expected.tags, atol=TOLERANCE)
        for edges, expected_edges in ((answer.rises_s, expected.rises_s), (answer.falls_s, expected.falls_s)):
            assert edges is not None
            assert expected_edges is not None
            np.testing.assert_allclose(edges, expected_edges, atol=1e-6)
        assert (answer.labels, answer.start_s, answer.hop_s) == (expected.labels, expected.start_s, expected.hop_s)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, Overloaded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.INVALID_ARGUMENT, ModelError),
    ],
)
def test_what_the_client_is_told_when_the_server_cannot(
    server: tuple[Server, RemoteModelParams], folder: ModelFolder, status: grpc.StatusCode, error: type[Exception]
) -> None:
    server[0].failure = (status, "no")
    remote = RemoteSoundListener(folder, server[1])
    with pytest.raises(error, match=status.name):
        remote.listen([Waveform(samples=waveform(0.5)[0])])


def test_a_server_that_is_not_there_is_no_healthy_replica(folder: ModelFolder) -> None:
    remote = RemoteSoundListener(folder, RemoteModelParams(target="127.0.0.1:9"))
    with pytest.raises(RuntimeError, match="UNAVAILABLE"):
        remote.probe()


def test_a_version_that_the_server_has_not_is_not_served(
    server: tuple[Server, RemoteModelParams], tmp_path: Path
) -> None:
    newer = sound_folder(tmp_path, version="1.3.0")
    with pytest.raises(ModelError, match="NOT_FOUND"):
        RemoteSoundListener(newer, server[1]).warm_up()


def test_another_model_under_the_same_name_is_not_served(
    server: tuple[Server, RemoteModelParams], tmp_path: Path
) -> None:
    other = sound_folder(tmp_path, PARAMS.model_copy(update={"sounds": ("cat", "rain", "siren")}))
    with pytest.raises(ModelError, match="export and deploy the same model"):
        RemoteSoundListener(other, server[1]).warm_up()


def test_the_wrong_rate_is_a_bug_of_the_caller(server: tuple[Server, RemoteModelParams], folder: ModelFolder) -> None:
    with pytest.raises(SampleRateMismatch, match="8000"):
        RemoteSoundListener(folder, server[1]).listen([Waveform(samples=np.zeros(10, np.float32), sample_rate=8000)])


def test_certificates_that_are_missing_are_named(folder: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no-ca"):
        RemoteSoundListener(folder, RemoteModelParams(target="tfs:8500", ca_file=tmp_path / "no-ca"))


def test_it_is_off_unless_asked_for_and_a_card_travels_with_the_graph(exported: Path, folder: ModelFolder) -> None:
    assert SoundConfig().remote is None
    assert SoundConfig.model_validate({"remote": {"target": "tfs:8500"}}).remote == RemoteModelParams(target="tfs:8500")
    card: dict[str, Any] = json.loads((exported / EXTRA_DIR / "model.json").read_text(encoding="utf-8"))
    assert card["version"] == folder.card.version
