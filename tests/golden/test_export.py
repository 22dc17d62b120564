"""The real models as exported: the graphs alone write and hear real recordings as the service does."""

from __future__ import annotations

import json
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from soundstage.audio.resample import decode_mono
from soundstage.export.saved_model import EXTRA_DIR, WARM_UP_NAME, export
from soundstage.models import registry
from soundstage.models.registry import ModelFolder
from soundstage.params import Limits, MoonshineParams
from soundstage.sound import inference
from soundstage.sound.listener import SoundListener
from soundstage.speech import weights
from soundstage.speech.decoding import GreedyDecoder
from soundstage.speech.transcriber import Transcriber
from soundstage.types import Waveform

pytestmark = pytest.mark.slow

PARAMS = MoonshineParams()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """As set-up writes it on a new machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDSTAGE_MODELS_DIR", str(tmp_path_factory.mktemp("cache")))
        return weights.fetch()


@pytest.fixture(scope="module")
def speech(folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(export(folder, tmp_path_factory.mktemp("serving"), precision="float32", on_progress=print).path)


@pytest.fixture(scope="module")
def signatures(speech: Path) -> Any:
    return tf.saved_model.load(str(speech)).signatures


@pytest.fixture(scope="module")
def regions() -> list[Waveform]:
    """Readings of 10.0, 3.7 and 7.6 s that come with the package of the weights."""
    assets = Path(str(distribution(weights.DISTRIBUTION).locate_file("moonshine_voice/assets")))
    two_cities = decode_mono(assets / "two_cities.wav", Limits())
    return [
        decode_mono(assets / "beckett.wav", Limits()),
        two_cities.between(13.25, 16.99),
        two_cities.between(21, 28.6),
    ]


def padded(waveforms: list[Waveform]) -> dict[str, tf.Tensor]:
    """One batch; what fills the rows up is noise, for padding has to count for nothing."""
    n_samples = [len(waveform.samples) for waveform in waveforms]
    rows = np.random.default_rng(0).normal(0, 0.3, (len(waveforms), max(n_samples))).astype(np.float32)
    for row, waveform in zip(rows, waveforms, strict=True):
        row[: len(waveform.samples)] = waveform.samples
    return {"waveform": tf.constant(rows), "n_samples": tf.constant(n_samples)}


def test_transcripts_are_those_of_the_transcriber(
    signatures: Any, folder: ModelFolder, regions: list[Waveform]
) -> None:
    answer = {key: value.numpy() for key, value in signatures["serving_default"](**padded(regions)).items()}
    segments = Transcriber(folder).transcribe(regions)
    assert [text.decode() for text in answer["text"]] == [segment and segment.text for segment in segments]
    logprobs = [segment.avg_logprob for segment in segments if segment is not None]
    # the graph computes in float32 throughout, the transcriber in bfloat16 where that changes no text
    np.testing.assert_allclose(answer["avg_logprob"], logprobs, atol=2e-3, rtol=0)
    assert answer["has_ended"].all()
    last = answer["token_ids"][np.arange(len(regions)), answer["n_tokens"] - 1]
    assert (last == PARAMS.end_token_id).all()


def test_a_client_that_loops_gets_the_tokens_of_the_decoder(
    signatures: Any, folder: ModelFolder, regions: list[Waveform]
) -> None:
    """As docs/tensorflow_serving.md tells a client to."""
    encoded = signatures["encode"](**padded(regions))
    cache = encoded.pop("cache")
    token_ids = np.full(len(regions), PARAMS.start_token_id, np.int32)
    written: list[list[int]] = [[] for _ in regions]
    for _ in range(60):
        answer = signatures["decode_step"](token_ids=tf.constant(token_ids), cache=cache, **encoded)
        cache = answer["cache"]
        token_ids = answer["logits"].numpy().argmax(axis=-1).astype(np.int32)
        for row, token in zip(written, token_ids, strict=True):
            if PARAMS.end_token_id not in row:
                row.append(int(token))
        if all(PARAMS.end_token_id in row for row in written):
            break
    decoder = GreedyDecoder(folder.weights(), PARAMS)
    expected = decoder.decode([region.samples for region in regions], [60] * len(regions))
    assert [row[:-1] for row in written] == [list(row.token_ids) for row in expected]
    assert all(len(row) > 8 for row in written)


def test_too_short_to_hold_a_word(signatures: Any) -> None:
    for n_samples in (0, 1, 700):
        rows = {"waveform": tf.zeros((2, n_samples)), "n_samples": tf.fill((2,), n_samples)}
        answer = signatures["serving_default"](**rows)
        assert np.isfinite(answer["avg_logprob"]).all()
        assert all(np.isfinite(value).all() for value in signatures["encode"](**rows).values())


def test_warm_up_requests_fit_the_signatures_and_run(speech: Path, signatures: Any) -> None:
    called = set()
    for record in tf.data.TFRecordDataset(str(speech / EXTRA_DIR / WARM_UP_NAME)).as_numpy_iterator():
        request = PredictionLog.FromString(record).predict_log.request
        called.add(request.model_spec.signature_name)
        signature = signatures[request.model_spec.signature_name]
        inputs = {key: tf.constant(tf.make_ndarray(proto)) for key, proto in request.inputs.items()}
        expected = signature.structured_input_signature[1]
        assert {key: value.dtype for key, value in inputs.items()} == {
            key: spec.dtype for key, spec in expected.items()
        }
        assert all(expected[key].shape.is_compatible_with(value.shape) for key, value in inputs.items())
        signature(**inputs)
    assert called == set(signatures) == {"serving_default", "encode", "decode_step", "metadata"}


def test_licence_and_tokenizer_go_along(speech: Path, folder: ModelFolder, signatures: Any) -> None:
    for name in ("LICENSE", "tokenizer.bin", "model.json"):
        assert (speech / EXTRA_DIR / name).read_bytes() == (folder.path / name).read_bytes()
    card, decoding = signatures["metadata"](key=tf.constant(["card", "decoding"]))["value"].numpy()
    assert json.loads(card)["licence"] == "MIT"
    assert json.loads(decoding)["min_avg_logprob"] == -0.7


@pytest.mark.parametrize("duration_s", [0.5, 2.0, 5.0, 7.6])
def test_the_shipped_sound_model_scores_a_recording_alike(
    sounds: tuple[Any, SoundListener], regions: list[Waveform], duration_s: float
) -> None:
    served, listener = sounds
    reading = regions[2].between(21, 21 + duration_s)
    answer, expected = served(waveform=tf.constant(reading.samples[np.newaxis])), listener.listen([reading])[0]
    np.testing.assert_allclose(answer["tags"][0], expected.tags, atol=1e-4, rtol=0)
    np.testing.assert_allclose(answer["frame_scores"][0], expected.scores, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The exported model as a server calls it, and the listener, which computes in float32 as the graph does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDSTAGE_MODELS_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(inference, "multiplies_bfloat16", lambda: False)
        folder = registry.find("soundstage-sounds")
        listener = SoundListener(folder)
    exported = export(folder, tmp_path_factory.mktemp("serving"), precision="float32", on_progress=print)
    return tf.saved_model.load(exported.path).signatures["serving_default"], listener
