"""The listener with random weights: shapes, times, and that nothing depends on the batch."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from soundstage.audio.features import mel_spectrogram
from soundstage.errors import ModelError, SampleRateMismatch
from soundstage.models.registry import ModelCard, ModelFolder, write_folder
from soundstage.params import FeatureParams
from soundstage.sound import inference
from soundstage.sound.edges import edges
from soundstage.sound.listener import SoundListener, windows_of
from soundstage.sound.model import (
    LevelRange,
    SoundParams,
    build_network,
    combined,
    learnt_weights,
    levelled,
    levels,
    member_name,
    member_weights,
    network_weights,
    set_network_weights,
    stored_weights,
)
from soundstage.types import Waveform

PARAMS = SoundParams(sounds=("dog", "rain", "siren"))


def random_folder(
    registry: Path, *, kind: str = "sound", params: SoundParams = PARAMS, trained_with: SoundParams = PARAMS
) -> ModelFolder:
    rng = np.random.default_rng(0)
    weights = network_weights(build_network(trained_with))
    for name in weights:
        if name.endswith("kernel"):
            n_inputs = 9 if name.startswith("depthwise") else int(np.prod(weights[name].shape[:-1]))
            weights[name] = rng.normal(0, np.sqrt(2 / n_inputs), weights[name].shape).astype(np.float32)
    card = ModelCard.model_validate(
        {"name": "random", "version": "1", "kind": kind, "description": "", "licence": "", "source": ""}
    )
    named = {member_name(0, name): array for name, array in weights.items()}
    return write_folder(registry, card, params=params, weights=named, readme="")


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> SoundListener:
    return SoundListener(random_folder(tmp_path_factory.mktemp("registry")))


def test_a_fifth_of_the_bytes_hold_what_was_learnt_to_half_a_code() -> None:
    learnt = network_weights(build_network(PARAMS))
    learnt["pointwise_3/kernel"][:, 5] = 0.0
    stored = stored_weights(learnt)
    assert sum(array.nbytes for array in stored.values()) < 0.2 * sum(array.nbytes for array in learnt.values())
    for name, array in learnt_weights(stored, PARAMS).items():
        if array.ndim == 2:
            half_code = np.abs(learnt[name]).max(axis=0) / 62
            assert (np.abs(array - learnt[name]) <= half_code * (1 + 1e-3) + 1e-30).all()
        else:
            np.testing.assert_allclose(array, learnt[name], rtol=1e-3, atol=1e-7)


def test_codes_without_their_scale_are_refused() -> None:
    stored = stored_weights(network_weights(build_network(PARAMS)))
    del stored["clip/kernel_scale"]
    with pytest.raises(ModelError, match="clip/kernel_scale"):
        learnt_weights(stored, PARAMS)


@pytest.mark.parametrize("n_bytes", [-1, 1])
def test_more_or_fewer_codes_than_a_matrix_has_are_refused(n_bytes: int) -> None:
    stored = stored_weights(network_weights(build_network(PARAMS)))
    codes = stored["clip/kernel"]
    stored["clip/kernel"] = np.resize(codes, codes.size + n_bytes)
    with pytest.raises(ModelError, match="bytes of codes"):
        learnt_weights(stored, PARAMS)


@pytest.mark.parametrize("n_windows", [1, 3])
def test_what_serves_is_what_was_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_windows: int) -> None:
    weights = learnt_weights(member_weights(random_folder(tmp_path).weights(), 0), PARAMS)
    network = build_network(PARAMS)
    set_network_weights(network, weights)
    mels = [mel_spectrogram(noise(2.0, seed), PARAMS.features) for seed in range(n_windows)]
    log_mel = np.stack([levelled(mel, LevelRange(), PARAMS.features) for mel in mels])
    expected = network.predict_on_batch(log_mel)
    for multiplies, atol in ((False, 1e-5), (True, 0.03)):
        monkeypatch.setattr(inference, "multiplies_bfloat16", lambda multiplies=multiplies: multiplies)
        scores = inference.SoundNetworks([weights], PARAMS)([log_mel])
        for own, exact in zip(scores, combined([expected], PARAMS), strict=True):
            np.testing.assert_allclose(own, exact, atol=atol)


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
    ends_s = result.start_s + (np.arange(len(result.scores)) + 0.5) * result.hop_s
    assert result.start_s == pytest.approx(12.0 + result.hop_s / 2)
    assert ends_s[-1] - result.hop_s < waveform.end_s <= ends_s[-1] + 1e-6
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


def test_rises_and_falls_are_found_to_the_hundredth_of_a_second_however_quiet(listener: SoundListener) -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal(16_000 * 20).astype(np.float32) * np.float32(0.01)
    start_s, end_s = 9.413, 11.127
    samples[round(start_s * 16_000) : round(end_s * 16_000)] *= 5
    for gain in (1.0, 0.1):
        result = listener.listen([Waveform(samples=samples * np.float32(gain), start_s=100.0)])[0]
        assert result.rises_s is not None
        assert result.falls_s is not None
        step = int(start_s / result.hop_s)
        np.testing.assert_allclose(result.rises_s[step : step + 3], 100 + start_s, atol=0.02)
        step = int(end_s / result.hop_s)
        np.testing.assert_allclose(result.falls_s[step : step + 3], 100 + end_s, atol=0.02)
        assert np.isnan(result.rises_s[:20]).all()  # steady noise


def test_edges_do_not_depend_on_how_windows_are_cut(listener: SoundListener) -> None:
    for duration_s in (0.01, 0.3, 4.99, 12.34, 30.0):
        samples = noise(duration_s)
        result = listener.listen([Waveform(samples=samples)])[0]
        level = mel_spectrogram(samples, PARAMS.features).mean(axis=1)
        rises_s, falls_s = edges(level, len(result.scores), PARAMS.features)
        np.testing.assert_array_equal(result.rises_s, rises_s)
        np.testing.assert_array_equal(result.falls_s, falls_s)


def test_silence_neither_rises_nor_falls(listener: SoundListener) -> None:
    result = listener.listen([Waveform(samples=np.zeros(160_000, np.float32))])[0]
    assert result.rises_s is not None
    assert result.falls_s is not None
    assert np.isnan([result.rises_s, result.falls_s]).all()


def test_a_quiet_recording_scores_like_a_loud_one(listener: SoundListener) -> None:
    samples = noise(5.0)
    loud, quiet = listener.listen([Waveform(samples=samples), Waveform(samples=samples * np.float32(0.1))])
    np.testing.assert_allclose(loud.tags, quiet.tags, atol=1e-3)


def test_a_network_may_hear_how_loud_a_recording_is_but_not_how_faint() -> None:
    """Each window's loudest moment is brought into the network's range, and nothing more."""
    features = PARAMS.features
    mel = mel_spectrogram(noise(5.0), features)
    mel *= np.float32(1.0 / levels(mel, features).max())
    natural, even = LevelRange(lowest=0.3, highest=None), LevelRange(lowest=3.0, highest=3.0)

    def seen(gain: float, level_range: LevelRange) -> float:
        shown = np.exp(levelled(mel * np.float32(gain), level_range, features)) - features.log_offset
        return float(levels(shown.astype(np.float32), features).max())

    assert [seen(gain, natural) for gain in (0.1, 0.5, 20.0)] == pytest.approx([0.3, 0.5, 20.0], rel=1e-3)
    assert [seen(gain, even) for gain in (0.2, 0.5, 20.0)] == pytest.approx([3.0, 3.0, 3.0], rel=1e-3)
    with pytest.raises(ValueError, match="must not lie below"):
        LevelRange(lowest=1.0, highest=0.5)


def test_silence_is_not_turned_up_without_end() -> None:
    dither = np.random.default_rng(0).standard_normal(80_000).astype(np.float32) * np.float32(1 / 65_536)
    zeros = np.zeros(80_000, np.float32)
    params = PARAMS.features
    features, nothing = (levelled(mel_spectrogram(clip, params), LevelRange(), params) for clip in (dither, zeros))
    assert features.max() < -1.0
    np.testing.assert_allclose(nothing, np.log(0.001), rtol=1e-5)


def test_nothing_to_hear_is_no_error(listener: SoundListener) -> None:
    assert listener.listen([]) == []
    result = listener.listen([Waveform(samples=np.zeros(0, np.float32))])[0]
    assert len(result.scores) == 0
    assert not result.tags.any()


@settings(max_examples=300, deadline=None)
@given(n_samples=st.integers(1, 3_000_000))
def test_windows_cover_each_step_once_and_know_both_its_sides(n_samples: int) -> None:
    windows = windows_of(n_samples, PARAMS)
    assert windows[0].first_kept == 0
    assert windows[-1].end_kept == math.ceil(n_samples / PARAMS.n_step_samples)
    for window, after in itertools.pairwise(windows):
        assert window.end_kept == after.first_kept > after.first_step
        assert window.end_kept < window.first_step + PARAMS.n_window_steps
    assert len(windows) > 1 or n_samples < PARAMS.n_window_samples + PARAMS.n_step_samples
    for window in windows:
        assert window.first_sample + window.n_samples <= n_samples
        most = PARAMS.n_window_samples + (PARAMS.n_step_samples - 1 if len(windows) == 1 else 0)
        assert window.n_samples <= most
        assert window.first_kept < window.end_kept
    assert windows[-1].first_sample + windows[-1].n_samples == n_samples


def test_a_clip_of_five_seconds_and_a_little_is_one_window() -> None:
    assert len(windows_of(80_016, PARAMS)) == len(windows_of(85_119, PARAMS)) == 1
    assert len(windows_of(85_120, PARAMS)) == 2


def test_frames_of_a_long_waveform_agree_with_those_of_a_part(listener: SoundListener) -> None:
    """Windows are cut at other places in the part, so that only what lies well inside must be nearly the same."""
    samples = np.clip(noise(20.0), -0.2, 0.2)
    hop = listener.params.n_step_samples
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
    with pytest.raises(ModelError, match="do not fit"):
        SoundListener(random_folder(tmp_path / "b", trained_with=SoundParams(sounds=("dog",))))
    with pytest.raises(ModelError, match="do not fit"):
        learnt_weights({}, PARAMS)


def test_warming_up_works(listener: SoundListener) -> None:
    listener.warm_up()


def test_activations_end_at_six() -> None:
    network = build_network(PARAMS)
    body = keras.Model(network.input, network.get_layer("frames").input)
    features = np.full((1, PARAMS.n_window_frames, PARAMS.features.n_mels), 1e6, np.float32)
    assert float(np.max(body(features))) <= 6.0


def says(clip: list[float], frames: list[list[float]] | None = None) -> dict[str, NDArray[np.float32]]:
    """Logits of one window: dog, rain, siren, none of them, speech, music, silence; and of its steps."""
    return {"clip": np.array([clip], np.float32), "frames": np.array([frames or [[0.0] * 6]], np.float32)}


def test_a_window_of_silence_is_silent_in_every_step() -> None:
    steps = [[9.0, -9.0, -9.0, -9.0, -9.0, -2.0], [-9.0] * 6]
    for silence, expected in ((-9.0, [0.119, 0.0]), (3.0, [0.953, 0.953])):
        _, frames = combined([says([5.0, 0, 0, 0, -9.0, -9.0, silence], steps)], PARAMS)
        np.testing.assert_allclose(frames[0, :, -1], expected, atol=1e-3)
        np.testing.assert_allclose(frames[0, :, 0], [1.0, 0.0], atol=1e-3)
    assert PARAMS.labels[-1] == "silence"


def test_scores_of_sounds_share_one_and_the_others_stand_alone() -> None:
    scores = np.asarray(combined([says([5.0, 0.0, 0.0, 0.0, 3.0, 3.0, -3.0])], PARAMS)[0])[0]
    assert scores[:3].sum() < 1.0
    assert scores[0] > 0.9
    assert scores[3] == scores[4] == pytest.approx(0.9526, abs=1e-3)
    none_of_them = np.asarray(combined([says([0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0])], PARAMS)[0])[0]
    assert none_of_them[:3].max() < 0.01


def test_a_network_taught_whole_windows_says_which_sound_and_no_more() -> None:
    params = SoundParams(sounds=PARAMS.sounds, level_ranges=(LevelRange(), LevelRange()), whole_members=(0,))
    whole = says([9.0, 0.0, 0.0, -9.0, 9.0, 9.0, 9.0], [[9.0] * 6])
    taught = says([0.0, 0.0, 9.0, -9.0, -9.0, -9.0, -9.0], [[-9.0] * 6])
    clip, frames = (np.asarray(scores) for scores in combined([whole, taught], params))
    np.testing.assert_allclose(clip[0], [0.5, 0, 0.5, 0, 0, 0], atol=1e-3)
    np.testing.assert_allclose(frames, 0, atol=1e-3)
    nothing = says([0.0, 0.0, 0.0, 9.0, -9.0, -9.0, 9.0])
    clip, frames = (np.asarray(scores) for scores in combined([whole, nothing], params))
    assert clip[0, :3].max() < 0.01, "what none of them is, the other knows"
    assert frames[0, 0, -1] == clip[0, -1] > 0.99
    with pytest.raises(ValueError, match="whole_members"):
        SoundParams(sounds=PARAMS.sounds, whole_members=(0,))


def test_sounds_that_may_come_together_share_nothing(tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"is_exclusive": False})
    assert np.asarray(combined([says([3.0] * params.n_clip_logits)], params)[0]).min() > 0.9
    listener = SoundListener(random_folder(tmp_path, params=params, trained_with=params))
    assert listener.listen([Waveform(samples=noise(1.0))])[0].tags.shape == (6,)


def test_a_window_is_five_seconds_in_sixteen_steps() -> None:
    assert (PARAMS.n_window_samples, PARAMS.n_window_frames, PARAMS.n_window_steps) == (80_000, 498, 16)
    assert PARAMS.features == FeatureParams()
    features = np.zeros((1, PARAMS.n_window_frames, PARAMS.features.n_mels), np.float32)
    assert build_network(PARAMS)(features)["frames"].shape == (1, 16, 6)
