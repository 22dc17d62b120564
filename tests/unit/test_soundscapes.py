"""Soundscapes with known events, and what is learned from them."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from soundstage.errors import ModelError
from soundstage.params import EventParams
from soundstage.types import SAMPLE_RATE, FrameScores, SoundEvent
from training.sound_classification import tune_events
from training.sound_classification.data.soundscapes import (
    DURATION_S,
    EVENT_S,
    SNR_DB,
    Composer,
    Source,
    active_stretches,
    load_sources,
    write,
)
from training.sound_classification.measure import over_seeds

RATE = SAMPLE_RATE
LABELS = ("dog", "rain", "speech")


def source(label: str, seconds: float, *, before_s: float = 1.0, seed: int = 0) -> Source:
    """Silence, a burst of noise, silence."""
    burst = np.random.default_rng(seed).standard_normal(round(seconds * RATE)).astype(np.float32) * np.float32(0.1)
    samples = np.concatenate([np.zeros(round(before_s * RATE), np.float32), burst, np.zeros(RATE, np.float32)])
    return Source(label=label, samples=samples, stretches=active_stretches(samples))


@pytest.fixture
def composer() -> Composer:
    lasting = source("rain", 5.0, before_s=0.0)
    lasting = Source(label="rain", samples=lasting.samples[: 5 * RATE], stretches=((0, 5 * RATE),))
    return Composer([source("dog", 0.6), source("speech", 6.0), source("cat", 2.0), lasting])


def rms(samples: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean()))


def test_a_clip_is_active_where_it_sounds() -> None:
    (stretch,) = active_stretches(source("dog", 0.6).samples)
    assert stretch[0] == pytest.approx(RATE, abs=RATE * 0.02)
    assert stretch[1] == pytest.approx(1.6 * RATE, abs=RATE * 0.02)


def test_short_lulls_are_part_of_a_sound_and_long_ones_part_two() -> None:
    burst = source("dog", 0.5, before_s=0.0).samples[: RATE // 2]
    for lull_s, n_stretches in ((0.15, 1), (0.6, 2)):
        samples = np.concatenate([burst, np.zeros(round(lull_s * RATE), np.float32), burst])
        assert len(active_stretches(samples)) == n_stretches


def test_digital_silence_and_handling_noise_are_no_sounds() -> None:
    assert active_stretches(np.zeros(RATE, np.float32)) == ()
    burst = source("dog", 0.5, before_s=0.0).samples[: RATE // 2]
    samples = np.concatenate([burst * np.float32(0.2), np.zeros(RATE, np.float32), burst])
    (stretch,) = active_stretches(samples)
    assert stretch[0] > RATE


def test_the_same_seed_gives_the_same_soundscape_and_another_gives_another(composer: Composer) -> None:
    first, again, other = (composer.compose(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.events == again.events
    assert not np.array_equal(first.samples, other.samples)


def test_every_soundscape_is_as_it_says(composer: Composer) -> None:
    scapes = [composer.compose(seed) for seed in range(60)]
    for scape in scapes:
        assert len(scape.samples) == DURATION_S * RATE
        assert np.abs(scape.samples).max() <= 1
        assert 1 <= len(scape.events) <= 4
        for event in scape.events:
            assert event.label != scape.background
            assert EVENT_S[0] - 1e-4 <= event.end_s - event.start_s <= EVENT_S[1] + 1e-4
        for time_s in np.arange(0, DURATION_S, 0.01):
            assert sum(event.start_s <= time_s < event.end_s for event in scape.events) <= 2
    assert {scape.background for scape in scapes} == {"rain", "noise"}
    assert {event.label for scape in scapes for event in scape.events} == {"dog", "speech", "cat", "rain"}
    assert any(len({event.label for event in scape.events}) < len(scape.events) for scape in scapes)


def test_an_event_is_where_and_as_loud_as_it_says(composer: Composer) -> None:
    n_measured = 0
    for seed in range(100):
        scape = composer.compose(seed)
        if len(scape.events) != 1 or scape.background == "rain":
            continue
        (event,) = scape.events
        start, end = round(event.start_s * RATE), round(event.end_s * RATE)
        rest = rms(np.concatenate([scape.samples[:start], scape.samples[end:]]))
        inside = scape.samples[start:end]
        snr_db = 10 * np.log10(max(rms(inside) ** 2 - rest**2, 1e-12) / rest**2)
        assert SNR_DB[0] - 1.5 <= snr_db <= SNR_DB[1] + 1.5
        n_measured += 1
    assert n_measured > 3


def test_a_soundscape_can_be_listened_to_with_its_labels(composer: Composer, tmp_path: Path) -> None:
    scape = composer.compose(3)
    path = write(scape, tmp_path)
    with wave.open(str(path), "rb") as file:
        assert (file.getframerate(), file.getnframes()) == (RATE, len(scape.samples))
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    np.testing.assert_allclose(samples, scape.samples, atol=1e-4)
    lines = [line.split("\t") for line in path.with_suffix(".txt").read_text().splitlines()]
    assert [label for _, _, label in lines] == [own.label for own in scape.events]
    assert [float(start) for start, _, _ in lines] == pytest.approx([own.start_s for own in scape.events], abs=1e-4)


def test_no_recording_is_in_both_parts_of_a_fold(tmp_path: Path) -> None:
    for folder, rows in {
        "clips": [f"{fold}-{recording}-{take}" for fold in (1, 2) for recording in (10, 11, 12, 13) for take in "AB"],
        "speech": [f"said-{i:02d}" for i in range(20)],
    }.items():
        (tmp_path / folder).mkdir()
        lines = ["filename,fold,category"]
        for i, name in enumerate(rows):
            samples = source("dog", 0.2, seed=1000 * len(rows) + i).samples
            with wave.open(str(tmp_path / folder / f"{name}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(RATE)
                file.writeframes((samples * 32767).round().astype("<i2").tobytes())
            lines.append(f"{name}.wav,{name[0]},dog")
        (tmp_path / folder / "meta.csv").write_text("\n".join(lines) + "\n")

    def told(part: int, folds: list[int]) -> list[Source]:
        return list(load_sources(tmp_path / "clips", tmp_path / "speech", folds=folds, part=part, n_parts=2))

    for part in (0, 1):
        own = told(part, [2])
        assert [clip.label for clip in own] == ["dog"] * 4 + ["speech"] * 2  # the last fifth of the speech, half of it
    first, second = ({clip.samples.tobytes() for clip in told(part, [1])} for part in (0, 1))
    assert len(first) == len(second) == 6
    assert not first & second


def event(label: str, start_s: float, end_s: float) -> SoundEvent:
    return SoundEvent(label=label, score=1.0, start_s=start_s, end_s=end_s)


def listened(events: list[SoundEvent], rng: np.random.Generator) -> tune_events.Heard:
    """What a listener scores whose windows answer late, and who hears rain in everything."""
    times_s = 0.16 + 0.32 * np.arange(31)
    scores = rng.uniform(0, 0.3, (31, len(LABELS)))
    scores[:, 1] = rng.uniform(0.3, 0.8, 31)
    for own in events:
        scores[(times_s > own.start_s + 0.4) & (times_s < own.end_s + 0.4), LABELS.index(own.label)] = 0.9
    frames = FrameScores(
        scores=scores.astype(np.float32),
        labels=LABELS,
        start_s=0.16,
        hop_s=0.32,
        window_s=0.32,
        tags=np.ones(len(LABELS), np.float32),
    )
    return tune_events.Heard(scores=frames, events=tuple(events), background="noise")


def test_learning_finds_the_delay_of_a_listener_and_the_label_it_overhears() -> None:
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(2):
        part = []
        for _ in range(25):
            start_s = float(rng.uniform(0.5, 7))
            part.append(listened([event(str(rng.choice(LABELS)), start_s, start_s + 2.0)], rng))
        parts.append(part)
    before = tune_events.figures_of(parts[1], EventParams())
    params, figures = tune_events.learn(*parts)
    assert figures["event_f1"] > 0.95 > before["event_f1"] + 0.3
    assert params.response_s > 0.4
    assert params.of("rain").on_score > 0.75


def test_figures_are_those_of_sed_eval() -> None:
    sound_events = pytest.importorskip("benchmarks.sound_events")
    rng = np.random.default_rng(1)
    heard = []
    for _ in range(40):
        starts_s = rng.uniform(0, 8, 3)
        truth = [event(label, float(s), float(s + 1.5)) for label, s in zip(LABELS, starts_s, strict=True)]
        heard.append(listened(truth[: rng.integers(1, 4)], rng))
    params = EventParams(on_score=0.6, off_score=0.3, response_s=0.5, release_s=0.6, max_gap_s=0.0)
    theirs, ours = sound_events.sed_figures(heard, params), tune_events.figures_of(heard, params)
    assert 0.2 < ours["event_f1"] < 0.9
    for name in ("event_f1", "segment_f1"):
        assert ours[name] == pytest.approx(theirs[name], abs=0.001)


def test_figures_of_several_seeds_are_means_with_deviations() -> None:
    assert over_seeds({"event_f1": [0.5]}) == {"event_f1": 0.5}
    assert over_seeds({"event_f1": [0.5, 0.7]}) == {"event_f1": 0.6, "event_f1_std": 0.1414}


def test_seeds_are_those_that_every_fold_has(tmp_path: Path) -> None:
    for place in ("without-fold-1/0", "without-fold-1/1", "without-fold-2/1", "without-fold-2/2"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "model.json").touch()
    assert tune_events.tested_seeds(tmp_path, [1, 2]) == ["1"]
    with pytest.raises(ModelError, match="no models without-fold-1 and without-fold-3 of one seed"):
        tune_events.tested_seeds(tmp_path, [1, 3])
