"""The body is YAMNet's: layer by layer against the file that Google published."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from soundstage.audio.features import log_mel
from soundstage.sound.model import LAYER_NAMES, SoundParams, build_network, set_network_weights
from soundstage.types import Waveform
from training.data import read_clip, read_meta
from training.sound_classification.model.yamnet import N_INPUT, NotYamnet, Yamnet

pytestmark = pytest.mark.shared_data

PATCH = SoundParams(sounds=("any",), window_s=N_INPUT / 16_000)


@pytest.fixture(scope="module")
def yamnet(shared_data: Path) -> Yamnet:
    return Yamnet(shared_data / "yamnet" / "yamnet.tflite")


@pytest.fixture(scope="module")
def clips(shared_data: Path) -> list[NDArray[np.float32]]:
    """The loudest second of a clip of each of 10 classes."""
    rows = {row.values["category"]: row for row in read_meta(shared_data / "esc50", ["category"])}
    found = []
    for category in sorted(rows)[::5]:
        samples = read_clip(rows[category].path)
        middle = int(np.argmax(np.convolve(samples**2, np.ones(1_600), "same")))
        start = int(np.clip(middle - N_INPUT // 2, 0, len(samples) - N_INPUT))
        found.append(samples[start : start + N_INPUT])
    return found


def test_each_layer_is_within_one_step_of_the_quantised_one(yamnet: Yamnet, clips: list[NDArray[np.float32]]) -> None:
    network = build_network(PATCH)
    set_network_weights(network, yamnet.weights(), LAYER_NAMES)
    for samples in clips[:3]:
        yamnet.scores(samples)
        for name, given, expected, step in yamnet.layers():
            result = np.clip(np.asarray(network.get_layer(name)(given)), 0.0, 6.0)
            assert np.abs(result - expected).max() <= step, name


def test_embeddings_point_the_same_way(yamnet: Yamnet, clips: list[NDArray[np.float32]]) -> None:
    network = build_network(PATCH)
    set_network_weights(network, yamnet.weights(), LAYER_NAMES)
    body = keras.Model(network.input, network.get_layer("frames").input)
    cosines = []
    for samples in clips:
        yamnet.scores(samples)
        expected = yamnet.embedding()
        features = log_mel(Waveform(samples=samples), PATCH.features)
        result = np.asarray(body(features[np.newaxis])).mean(axis=(0, 1))
        cosines.append(result @ expected / np.linalg.norm(result) / np.linalg.norm(expected))
    assert min(cosines) > 0.99


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "no.tflite"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(NotYamnet, match=r"no\.tflite"):
        Yamnet(file)
