"""The listener with random weights: shapes, times, and that nothing depends on the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from soundstage.errors import ModelError, SampleRateMismatch
from soundstage.models.registry import ModelCard, ModelFolder, write_folder
from soundstage.params import FeatureParams
from soundstage.sound.listener import SoundListener
from soundstage.sound.model import (
    N_EMBEDDING,
    SoundParams,
    body_weights,
    build_body,
    member_name,
    scores_from_logits,
    set_body_weights,
    window_features,
)
from soundstage.types import Waveform

PARAMS = SoundParams(sounds=("dog", "rain", "siren"))


def random_folder(registry: Path, *, kind: str = "sound", n_logits: int = PARAMS.n_logits) -> ModelFolder:
    rng = np.random.default_rng(0)
    weights = body_weights(build_body(PARAMS))
    for name in weights:
        if name.endswith("kernel"):
            n_inputs = 9 if name.startswith("depthwise") else int(np.prod(weights[name].shape[:-1]))
            weights[name] = rng.normal(0, np.sqrt(2 / n_inputs), weights[name].shape).astype(np.float32)
    head = rng.standard_normal((2 * N_EMBEDDING, n_logits)).astype(np.float32) * np.float32(0.1)
    card = ModelCard.model_validate(
        {"name": "random", "version": "1", "kind": kind, "description": "", "licence": "", "source": ""}
    )
    return write_folder(
        registry,
        card,
        params=PARAMS,
        weights={
            member_name(0, name): array
            for name, array in {
                **weights,
                "head/kernel": head,
                "head/bias": np.zeros(n_logits, np.float32),
            }.items()
        },
        readme="",
    )


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> SoundListener:
    return SoundListener(random_folder(tmp_path_factory.mktemp("registry")))


def noise(duration_s: float, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    n_samples = round(duration_s * 16_000)
    swell = 0.02 + 0.2 * np.abs(np.sin(np.arange(n_samples) / 9_000 + seed))
    return (swell * rng.standard_normal(n_samples)).astype(np.float32)


@pytest.mark.parametrize("duration_s", [0.01, 0.3, 1.0, 4.99, 5.0, 5.02, 7.3, 9.8, 30.0])
def test_frames_cover_the_waveform_and_stay_inside(listener: SoundListener, duration_s: float) -> None:
    waveform = Waveform(samples=noise(duration_s), start_s=12.0)
    result = listener.listen([waveform])[0]
    assert result.labels == ("dog", "rain", "siren", "speech", "music", "silence")
    assert result.scores.shape[1] == len(result.tags) == 6
    last_s = result.start_s + (len(result.scores) - 1) * result.hop_s
    assert result.start_s == 12.0
    assert waveform.end_s - result.hop_s < last_s <= waveform.end_s
    assert np.isfinite(result.scores).all()
    assert ((result.tags >= 0) & (result.tags <= 1)).all()


def test_results_do_not_depend_on_the_batch(listener: SoundListener) -> None:
    waveforms = [
        Waveform(samples=noise(duration_s, seed)) for seed, duration_s in enumerate((3.0, 30.0, 0.2, 5.0, 12.34))
    ]
    together = listener.listen(waveforms)
    for waveform, result in zip(waveforms, together, strict=True):
        alone = listener.listen([waveform])[0]
        np.testing.assert_allclose(result.scores, alone.scores, atol=1e-6)
        np.testing.assert_allclose(result.tags, alone.tags, atol=1e-6)


def test_a_quiet_recording_scores_like_a_loud_one(listener: SoundListener) -> None:
    samples = noise(5.0)
    loud, quiet = listener.listen([Waveform(samples=samples), Waveform(samples=samples * np.float32(0.1))])
    np.testing.assert_allclose(loud.tags, quiet.tags, atol=1e-3)


def test_silence_is_not_turned_up_without_end() -> None:
    dither = np.random.default_rng(0).standard_normal(80_000).astype(np.float32) * np.float32(1 / 65_536)
    assert window_features(dither, PARAMS).max() < -1.0
    np.testing.assert_allclose(window_features(np.zeros(80_000, np.float32), PARAMS), np.log(0.001), rtol=1e-5)


def test_nothing_to_hear_is_no_error(listener: SoundListener) -> None:
    assert listener.listen([]) == []
    result = listener.listen([Waveform(samples=np.zeros(0, np.float32))])[0]
    assert len(result.scores) == 0
    assert not result.tags.any()


def test_frames_of_a_long_waveform_agree_with_those_of_a_part(listener: SoundListener) -> None:
    """Windows are cut at other places in the part, so that only what lies well inside must be nearly the same."""
    samples = np.clip(noise(20.0), -0.2, 0.2)
    hop = round(listener.params.step_s * 16_000)
    whole = listener.listen([Waveform(samples=samples)])[0].scores
    part = listener.listen([Waveform(samples=samples[10 * hop :])])[0].scores
    difference = np.abs(whole[20:50] - part[10:40])
    assert float(difference.mean()) < 0.1


def test_another_rate_is_refused(listener: SoundListener) -> None:
    with pytest.raises(SampleRateMismatch, match="8000"):
        listener.listen([Waveform(samples=np.zeros(8_000, np.float32), sample_rate=8_000)])


def test_a_model_of_another_kind_or_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="speech model"):
        SoundListener(random_folder(tmp_path / "a", kind="speech"))
    with pytest.raises(ModelError, match="head"):
        SoundListener(random_folder(tmp_path / "b", n_logits=4))
    with pytest.raises(ModelError, match="do not fit"):
        set_body_weights(build_body(PARAMS), {})


def test_warming_up_works(listener: SoundListener) -> None:
    listener.warm_up()


def test_activations_end_at_six() -> None:
    body = build_body(PARAMS)
    features = np.full((1, PARAMS.n_window_frames, PARAMS.features.n_mels), 1e6, np.float32)
    assert float(np.max(body(features))) <= 6.0


def test_scores_of_sounds_share_one_and_the_others_stand_alone() -> None:
    logits = np.array([[5.0, 0.0, 0.0, 0.0, 3.0, 3.0, -3.0]], np.float32)  # dog, rain, siren, none | extras
    scores = scores_from_logits(logits, PARAMS)[0]
    assert scores[:3].sum() < 1.0
    assert scores[0] > 0.9
    assert scores[3] == scores[4] == pytest.approx(0.9526, abs=1e-3)
    none_of_them = scores_from_logits(np.array([[0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0]], np.float32), PARAMS)[0]
    assert none_of_them[:3].max() < 0.01


def test_a_window_is_five_seconds_in_sixteen_steps() -> None:
    assert (PARAMS.n_window_samples, PARAMS.n_window_frames, PARAMS.n_window_steps) == (80_000, 498, 16)
    assert PARAMS.features == FeatureParams()
    assert build_body(PARAMS).output_shape == (None, 16, 1024)
