"""TensorFlow Serving's settings, parsed by its own messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from soundstage.export.saved_model import serving_version
from soundstage.models.registry import ModelSources, resolve
from soundstage.pipeline import SOUND_MODEL, SPEECH_MODEL
from soundstage.speech import weights

FOLDER = Path(__file__).parents[2] / "cluster" / "tensorflow_serving"
FIELDS = descriptor_pb2.FieldDescriptorProto

# The package has no messages of these two files. Source: github.com/tensorflow/serving, in tensorflow_serving/:
# servables/tensorflow/session_bundle_config.proto and config/monitoring_config.proto
INT64 = ".google.protobuf.Int64Value"
MESSAGES = {
    "BatchingParameters": [
        ("max_batch_size", 1, INT64),
        ("batch_timeout_micros", 2, INT64),
        ("max_enqueued_batches", 3, INT64),
        ("num_batch_threads", 4, INT64),
        ("pad_variable_length_inputs", 7, FIELDS.TYPE_BOOL),
    ],
    "PrometheusConfig": [("enable", 1, FIELDS.TYPE_BOOL), ("path", 2, FIELDS.TYPE_STRING)],
    "MonitoringConfig": [("prometheus_config", 1, ".published.PrometheusConfig")],
}


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="published.proto", package="published", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            added = message.field.add(name=field, number=number, label=FIELDS.LABEL_OPTIONAL)
            if isinstance(kind, str):
                added.type, added.type_name = FIELDS.TYPE_MESSAGE, kind
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"published.{name}")) for name in MESSAGES}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    config = text_format.Parse((FOLDER / "models.config").read_text(), ModelServerConfig())
    return {model.name: model for model in config.model_config_list.config}


def test_it_serves_the_models_that_ship_under_both_labels(models: dict[str, Any]) -> None:
    assert set(models) == {SOUND_MODEL, SPEECH_MODEL}
    nowhere = ModelSources(cache_dir=Path("/nowhere"), registry=None)
    versions = {SOUND_MODEL: resolve(SOUND_MODEL, None, nowhere), SPEECH_MODEL: weights.VERSION}
    for name, model in models.items():
        assert model.model_platform == "tensorflow"
        assert model.base_path == f"/models/{name}", "where the export puts it"
        assert list(model.model_version_policy.specific.versions) == [serving_version(versions[name])]
        assert set(model.version_labels) == {"stable", "canary"}
        assert set(model.version_labels.values()) <= set(model.model_version_policy.specific.versions)


def test_batches_are_bounded_and_nothing_hears_padding(published: dict[str, Any]) -> None:
    text = (FOLDER / "batching_parameters.txt").read_text()
    parameters = text_format.Parse(text, published["BatchingParameters"]())
    assert parameters.pad_variable_length_inputs is False
    assert parameters.max_batch_size.value > 1
    assert parameters.max_enqueued_batches.value > 0


def test_prometheus_finds_its_figures(published: dict[str, Any]) -> None:
    config = text_format.Parse((FOLDER / "monitoring.config").read_text(), published["MonitoringConfig"]())
    assert config.prometheus_config.enable
    assert config.prometheus_config.path.startswith("/monitoring")


def test_a_misspelt_setting_is_an_error(published: dict[str, Any]) -> None:
    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batchsize { value: 3 }", published["BatchingParameters"]())
    with pytest.raises(text_format.ParseError):
        text_format.Parse('model_config_list { config { nmae: "x" } }', ModelServerConfig())
