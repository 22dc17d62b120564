"""Levels as EBU R 128 asks for them, on the test signals of EBU Tech 3341 and 3342."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from soundstage.audio.levels import LevelMeter
from soundstage.errors import SampleRateMismatch
from soundstage.params import LevelParams
from soundstage.types import AudioBlock, Levels, Region

RATE = 48_000


def sine(
    duration_s: float, dbfs: float, *, n_channels: int = 2, rate: int = RATE, hz: float = 1_000, phase: float = 0.0
) -> NDArray[np.float32]:
    t = np.arange(round(duration_s * rate)) / rate
    mono = 10 ** (dbfs / 20) * np.sin(2 * np.pi * hz * t + phase)
    return np.repeat(mono.astype(np.float32)[:, None], n_channels, axis=1)


def measured(samples: NDArray[np.float32], rate: int = RATE, n_block: int = 24_000) -> Levels:
    meter = LevelMeter(LevelParams())
    for i in range(0, len(samples), n_block):
        meter.push(AudioBlock(samples=samples[i : i + n_block].copy(), sample_rate=rate))
    return meter.result()


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("dbfs", [-23.0, -33.0])
def test_tech_3341_cases_1_and_2_stereo_sine(dbfs: float, rate: int) -> None:
    assert measured(sine(20, dbfs, rate=rate), rate).integrated_lufs == pytest.approx(dbfs, abs=0.1)


@pytest.mark.parametrize(
    "parts",
    [
        [(10, -36), (60, -23), (10, -36)],
        [(10, -72), (10, -36), (60, -23), (10, -36), (10, -72)],
        [(20, -26), (20.1, -20), (20, -26)],
    ],
    ids=["case 3", "case 4", "case 5"],
)
def test_tech_3341_gating(parts: list[tuple[float, float]]) -> None:
    samples = np.concatenate([sine(*part) for part in parts])
    assert measured(samples).integrated_lufs == pytest.approx(-23.0, abs=0.1)


def test_tech_3341_case_6_surround() -> None:
    samples = sine(20, 0, n_channels=6) * (10 ** (np.array([-28, -28, -24, -200, -30, -30]) / 20)).astype(np.float32)
    assert measured(samples).integrated_lufs == pytest.approx(-23.0, abs=0.1)


@pytest.mark.parametrize(
    ("levels_dbfs", "range_lu"), [((-20, -30), 10), ((-20, -15), 5), ((-40, -20), 20), ((-50, -35, -20, -35, -50), 15)]
)
def test_tech_3342_loudness_range(levels_dbfs: tuple[float, ...], range_lu: float) -> None:
    samples = np.concatenate([sine(20, dbfs) for dbfs in levels_dbfs])
    assert measured(samples).loudness_range_lu == pytest.approx(range_lu, abs=1)


@pytest.mark.parametrize(("divisor", "phase_degrees"), [(4, 0), (4, 45), (6, 60), (8, 67.5)])
def test_tech_3341_cases_15_to_18_true_peak(divisor: int, phase_degrees: float) -> None:
    samples = sine(1, -6, hz=RATE / divisor, phase=np.radians(phase_degrees))
    fade = np.minimum(1, np.arange(RATE) / 4_800)
    samples *= np.minimum(fade, fade[::-1]).astype(np.float32)[:, None]
    assert -6.4 <= (measured(samples).true_peak_dbtp or 0) <= -5.8


def test_a_peak_between_the_samples_is_above_the_sample_peak() -> None:
    levels = measured(sine(1, 0, hz=RATE / 4, phase=np.pi / 4))
    assert levels.sample_peak_dbfs == pytest.approx(-3.01, abs=0.01)
    assert (levels.true_peak_dbtp or -9) > -0.3


def test_a_peak_in_the_last_instant_counts() -> None:
    samples = sine(1.05, -40)
    samples[-5] = 0.5
    levels = measured(samples)
    assert levels.sample_peak_dbfs == pytest.approx(-6.02, abs=0.01)
    assert (levels.true_peak_dbtp or -99) >= -6.03


@pytest.mark.parametrize("n_channels", [1, 3, 8, 64])
def test_channels_without_a_weight_count_as_one_each(n_channels: int) -> None:
    expected = -23.0 + 10 * np.log10(n_channels / 2)
    assert measured(sine(5, -23, n_channels=n_channels)).integrated_lufs == pytest.approx(expected, abs=0.1)


def test_blocks_of_any_size_give_the_same_levels() -> None:
    rng = np.random.default_rng(0)
    samples = np.clip(rng.standard_normal((4 * RATE + 311, 2)) * 0.5, -1, 1).astype(np.float32)
    samples[RATE : RATE + 2 * RATE + 10] = 0
    whole = measured(samples, n_block=len(samples))
    assert whole.n_clipped_samples > 0
    assert len(whole.silence) == 1
    for n_block in (17, 509, 44_100):
        assert measured(samples, n_block=n_block) == whole


def test_clipping_is_runs_at_full_scale_in_any_channel() -> None:
    samples = sine(1, -20)
    samples[100:103, 0] = 1.0
    samples[200, 0] = 1.0  # a single sample touches full scale and is no clipping
    samples[300:302, 1] = -1.0
    samples[400:405, 1] = 32767 / 32768
    assert measured(samples).n_clipped_samples == 3 + 2 + 5


def test_silence_is_reported_with_its_times() -> None:
    samples = sine(9, -20)
    samples[2 * RATE : 5 * RATE] *= 1e-4
    samples[6 * RATE : 7 * RATE] = 0  # shorter than two seconds
    samples[7 * RATE - 10 :] *= 1e-5
    (first, last) = measured(samples).silence
    assert (first.start_s, first.end_s) == pytest.approx((2, 5), abs=0.001)
    assert (last.start_s, last.end_s) == pytest.approx((6, 9), abs=0.001)


def test_digital_silence_has_no_level() -> None:
    levels = measured(np.zeros((5 * RATE, 2), np.float32))
    assert (
        levels.integrated_lufs is levels.loudness_range_lu is levels.true_peak_dbtp is levels.sample_peak_dbfs is None
    )
    assert levels.silence == (Region(start_s=0.0, end_s=5.0),)


def test_a_clip_too_short_for_loudness_still_has_peaks() -> None:
    levels = measured(sine(0.05, -3))
    assert levels.integrated_lufs is None
    assert levels.true_peak_dbtp == pytest.approx(-3.0, abs=0.2)


def test_a_change_of_format_is_a_bug_of_the_caller() -> None:
    meter = LevelMeter(LevelParams())
    with pytest.raises(ValueError, match="no audio"):
        meter.result()
    meter.push(AudioBlock(samples=sine(0.1, -3), sample_rate=RATE))
    with pytest.raises(SampleRateMismatch):
        meter.push(AudioBlock(samples=sine(0.1, -3), sample_rate=44_100))
