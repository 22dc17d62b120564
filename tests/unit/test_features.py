"""The front end is exactly what its sources compute."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from soundstage.audio.features import log_mel, mel_filterbank, mel_spectrogram, n_frames
from soundstage.errors import SampleRateMismatch
from soundstage.params import FeatureParams
from soundstage.types import Waveform

YAMNET = FeatureParams()
LIBROSA = FeatureParams(mel_interpolation="hz")


def tones_and_noise(n_samples: int = 16_000) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    t = np.arange(n_samples) / 16_000
    return (0.3 * np.sin(2 * np.pi * 440 * t) + 0.05 * rng.standard_normal(n_samples)).astype(np.float32)


def test_it_is_what_yamnet_was_trained_with() -> None:
    samples = tones_and_noise()
    mel = tf.signal.linear_to_mel_weight_matrix(64, 257, 16_000, 125.0, 7500.0)
    magnitudes = tf.abs(tf.signal.stft(samples, 400, 160, 512))
    expected = tf.math.log(magnitudes @ mel + 0.001).numpy()

    result = log_mel(Waveform(samples=samples), YAMNET)

    assert result.dtype == np.float32
    assert result.shape == (98, 64)
    np.testing.assert_allclose(result, expected, atol=2e-4)
    np.testing.assert_allclose(mel_filterbank(YAMNET), mel.numpy(), atol=1e-5)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("win_length", [400, 512])
def test_it_is_what_librosa_computes(power: float, win_length: int) -> None:
    samples = tones_and_noise()
    params = LIBROSA.model_copy(update={"power": power, "win_length": win_length})
    spectrum = np.abs(librosa.stft(samples, n_fft=512, hop_length=160, win_length=win_length, center=False)) ** power
    bank = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=64, fmin=125, fmax=7500, htk=True, norm=None)
    expected = np.log(bank @ spectrum + 0.001).T

    result = log_mel(Waveform(samples=samples), params)

    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, atol=1e-4)
    np.testing.assert_allclose(mel_filterbank(params), bank.T, atol=1e-6)


@pytest.mark.parametrize(("n_samples", "expected"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (80_000, 498)])
def test_only_whole_frames_count(n_samples: int, expected: int) -> None:
    waveform = Waveform(samples=np.zeros(n_samples, np.float32))
    assert log_mel(waveform, YAMNET).shape == (expected, 64)
    assert n_frames(n_samples, YAMNET) == expected


def test_silence_is_the_logarithm_of_the_offset() -> None:
    result = log_mel(Waveform(samples=np.zeros(1_600, np.float32)), YAMNET)
    np.testing.assert_allclose(result, np.log(0.001), rtol=1e-6)


def test_twice_as_loud_is_twice_the_magnitude() -> None:
    samples = tones_and_noise(4_000)
    np.testing.assert_allclose(
        mel_spectrogram(2 * samples, YAMNET), 2 * mel_spectrogram(samples, YAMNET), rtol=1e-4, atol=1e-5
    )


def test_another_rate_is_refused() -> None:
    with pytest.raises(SampleRateMismatch, match="44100 Hz"):
        log_mel(Waveform(samples=np.zeros(1_000, np.float32), sample_rate=44_100), YAMNET)
