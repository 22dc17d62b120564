"""The sample clip is what its truth says, the same everywhere; tests/golden holds that it is heard as such."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from soundstage import cli, sample
from soundstage.pipeline import AnalysisOptions, Pipeline, Task
from soundstage.sample import SAMPLE_RATE_HZ, TRUTH, Generator, PlacedSound

GENERATORS = [sample.door_knocks, sample.alarm_clock, sample.siren, sample.car_horn, sample.rain]


def loudness_db(samples: np.ndarray, start_s: float, end_s: float) -> float:
    part = samples[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]
    return float(10 * np.log10(np.mean(part.astype(np.float64) ** 2)))


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return sample.mix()[0]


def test_the_script_fits_together() -> None:
    assert 20 <= TRUTH.duration_s <= 40
    assert len({sound.label for sound in TRUTH.sounds}) >= 3
    spans = [(part.start_s, part.end_s) for part in TRUTH.sounds] + [
        (part.start_s, part.end_s) for part in TRUTH.speech
    ]
    assert all(0 <= start_s < end_s <= TRUTH.duration_s for start_s, end_s in spans)
    assert {sound.generator for sound in TRUTH.sounds} == set(GENERATORS)
    assert TRUTH.text.startswith("It was the best of times")


def test_the_clip_is_the_same_each_time(samples: np.ndarray) -> None:
    again, truth = sample.mix()
    assert truth is TRUTH
    np.testing.assert_array_equal(again, samples)
    assert samples.shape == (round(TRUTH.duration_s * SAMPLE_RATE_HZ), 2)
    assert samples.dtype == np.float32


def test_nothing_clips_and_nothing_is_digital_silence(samples: np.ndarray) -> None:
    assert np.abs(samples).max() < 0.9
    seconds = samples.reshape(-1, SAMPLE_RATE_HZ // 10, 2)
    assert np.abs(seconds).max(axis=(1, 2)).min() > 0


@pytest.mark.parametrize("sound", TRUTH.sounds, ids=lambda sound: sound.label)
def test_each_sound_is_where_the_truth_has_it(samples: np.ndarray, sound: PlacedSound) -> None:
    during = loudness_db(samples, sound.start_s, sound.end_s)
    assert during > loudness_db(samples, 0.0, 0.5) + 20, "well above the room"
    if not any(speech.end_s > sound.start_s - 0.3 and speech.start_s < sound.start_s for speech in TRUTH.speech):
        assert during > loudness_db(samples, sound.start_s - 0.3, sound.start_s - 0.05) + 10


def test_speech_is_where_the_truth_has_it(samples: np.ndarray) -> None:
    first, second = TRUTH.speech
    assert loudness_db(samples, first.start_s, first.end_s) > loudness_db(samples, 4.6, 4.9) + 20
    assert loudness_db(samples, second.start_s, second.end_s) > loudness_db(samples, 16.6, 16.9) + 20


@pytest.mark.parametrize("generator", GENERATORS)
def test_each_sound_by_itself(generator: Generator) -> None:
    sound = generator(3.0, np.random.default_rng(5))
    assert sound.shape == (3 * SAMPLE_RATE_HZ,)
    assert np.abs(sound).max() == pytest.approx(1.0)
    np.testing.assert_array_equal(sound, generator(3.0, np.random.default_rng(5)))
    assert not np.array_equal(sound, generator(3.0, np.random.default_rng(6)))


def spectrum_peak_hz(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * SAMPLE_RATE_HZ / len(samples))


def test_the_alarm_beeps_and_pauses() -> None:
    beeps = sample.alarm_clock(4.0, np.random.default_rng(5))
    assert spectrum_peak_hz(beeps) == pytest.approx(2048, abs=20)
    assert loudness_db(beeps, 1.0, 1.5) > loudness_db(beeps, 1.8, 2.0) + 15


def test_the_siren_wails() -> None:
    wail = sample.siren(3.2, np.random.default_rng(5))
    low, high = wail[: SAMPLE_RATE_HZ // 4], wail[round(1.5 * SAMPLE_RATE_HZ) : round(1.7 * SAMPLE_RATE_HZ)]
    assert spectrum_peak_hz(low) == pytest.approx(455, abs=20)
    assert spectrum_peak_hz(high) == pytest.approx(795, abs=20)


def test_the_file_is_a_production_file(tmp_path: Path) -> None:
    path = tmp_path / "my sample.wav"
    result = CliRunner().invoke(cli.app, ["sample", str(path)])
    assert result.exit_code == 0
    assert "MIT" in result.stdout
    assert "public domain" in result.stdout
    for sound in TRUTH.sounds:
        assert sound.label in result.stdout
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (48_000, 2, 2)
        assert file.getnframes() == TRUTH.duration_s * SAMPLE_RATE_HZ
    assert list(tmp_path.iterdir()) == [path]
    levels = Pipeline(None, None).analyze(path, AnalysisOptions(tasks=frozenset({Task.LEVELS}))).levels
    assert levels is not None
    assert levels.integrated_lufs == pytest.approx(-23, abs=0.5)
    assert levels.true_peak_dbtp is not None
    assert levels.true_peak_dbtp < -1
    assert levels.n_clipped_samples == 0


def test_a_machine_without_the_reading_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_DISTRIBUTION", "no-such-package")
    result = CliRunner().invoke(cli.app, ["sample", str(tmp_path / "a.wav")])
    assert result.exit_code == 1
    assert "extra `weights`" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["sample", str(tmp_path / "none" / "a.wav")])
    assert result.exit_code == 1
    assert result.stderr.startswith("failed: ")
