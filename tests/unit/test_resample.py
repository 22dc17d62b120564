"""Whatever the channels, what is said reaches the models at its level, and blocks do not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from soundstage.audio.resample import Resampler, decode_mono
from soundstage.errors import SampleRateMismatch
from soundstage.params import Limits
from soundstage.types import AudioBlock
from tests.unit.audio_files import tone

RATE = 48_000


def resampled(samples: NDArray[np.float32], sample_rate: int = RATE, n_block: int = 24_000) -> NDArray[np.float32]:
    resampler = Resampler()
    parts = [
        resampler.push(AudioBlock(samples=samples[i : i + n_block].copy(), sample_rate=sample_rate))
        for i in range(0, len(samples), n_block)
    ]
    return np.concatenate([*parts, resampler.finish()])


def level_db(samples: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    inner = samples[2_000:-2_000]
    return float(20 * np.log10(np.sqrt(np.mean(inner**2)) / np.sqrt(np.mean(reference**2)) + 1e-9))


def noise(n_samples: int, n_channels: int, seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((n_samples, n_channels)) * 0.1).astype(np.float32)


@pytest.mark.parametrize("n_channels", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("sample_rate", [8_000, 11_025, 16_000, 44_100, 48_000])
def test_blocks_of_any_size_give_the_same_samples(sample_rate: int, n_channels: int) -> None:
    samples = noise(sample_rate + 137, n_channels) * np.linspace(0, 1, n_channels, dtype=np.float32)
    whole = resampled(samples, sample_rate, len(samples))
    assert len(whole) == round(len(samples) * 16_000 / sample_rate)
    for n_block in (17, 509, 44_100):
        assert np.array_equal(resampled(samples, sample_rate, n_block), whole)


@pytest.mark.parametrize("channel", range(8))
def test_one_voice_among_silent_channels_keeps_its_level(channel: int) -> None:
    voice = tone(2.0, RATE)
    samples = noise(len(voice), 8) * 1e-3
    samples[:, channel] += voice[:, 0]
    assert level_db(resampled(samples), voice) == pytest.approx(0, abs=0.5)


def test_a_voice_that_moves_to_another_channel_is_heard_at_once() -> None:
    voice = tone(4.0, RATE)
    samples = np.zeros((len(voice), 4), np.float32)
    samples[: 2 * RATE, 0] = voice[: 2 * RATE, 0]
    samples[2 * RATE :, 3] = voice[2 * RATE :, 0]
    after = resampled(samples)[2 * 16_000 + 800 : 2 * 16_000 + 4_000]
    assert level_db(np.tile(after, 3), voice) > -7


@pytest.mark.parametrize("n_channels", [1, 2, 6, 8])
def test_equal_channels_keep_their_level(n_channels: int) -> None:
    samples = tone(2.0, RATE, n_channels=n_channels)
    assert level_db(resampled(samples), samples) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("scale", [-1.0, -0.7])
def test_stereo_of_opposite_polarity_does_not_vanish(scale: float) -> None:
    samples = tone(2.0, RATE, n_channels=2) * np.array([1.0, scale], np.float32)
    assert level_db(resampled(samples), samples[:, :1]) > -1.5


def test_independent_stereo_is_averaged() -> None:
    samples = noise(2 * RATE, 2)
    expected = resampled(samples.mean(axis=1, keepdims=True))
    error = resampled(samples) - expected
    assert np.sqrt(np.mean(error[4_000:] ** 2)) < 0.1 * np.sqrt(np.mean(expected**2))


def test_mixing_never_clips() -> None:
    samples = np.sign(noise(RATE, 6))
    mixed = resampled(np.repeat(samples, 30, axis=0)[: 2 * RATE], 16_000)  # at 16 kHz nothing is filtered
    assert np.abs(mixed).max() <= 1.0 + 1e-6


def test_silence_stays_silence() -> None:
    for n_channels in (1, 2, 8):
        assert not resampled(np.zeros((RATE, n_channels), np.float32)).any()


def test_a_tone_above_half_the_rate_does_not_fold_back() -> None:
    assert level_db(resampled(tone(1.0, RATE, frequency_hz=10_000)), tone(1.0, RATE)) < -80


def test_a_change_of_format_is_a_bug_of_the_caller() -> None:
    resampler = Resampler()
    resampler.push(AudioBlock(samples=noise(100, 2), sample_rate=RATE))
    with pytest.raises(SampleRateMismatch):
        resampler.push(AudioBlock(samples=noise(100, 1), sample_rate=RATE))


@pytest.mark.shared_data
def test_a_real_sentence_keeps_its_length(shared_data: Path) -> None:
    clip = min((shared_data / "ljspeech/audio").glob("*.flac"))
    waveform = decode_mono(clip, Limits())
    assert waveform.sample_rate == 16_000
    assert waveform.duration_s > 1
    assert 0.05 < np.abs(waveform.samples).max() <= 1.1
