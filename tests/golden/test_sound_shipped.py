"""The newest sound model that comes with the package: what it is, and what its users are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from soundstage.models import registry
from soundstage.models.registry import SHIPPED_DIR, ModelFolder, ModelSources
from soundstage.pipeline import DEFAULT_MIN_SCORE, SOUND_MODEL, Pipeline
from soundstage.sound import inference
from soundstage.sound.listener import SoundListener
from soundstage.types import EncodedAudio, SoundEvent, Waveform
from training.data import read_clip, read_meta

RATE = 16_000
MAX_WEIGHTS_BYTES = 16 * 1024**2


@pytest.fixture(scope="module")
def folder() -> ModelFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SOUNDSTAGE_REGISTRY", raising=False)
        return registry.find(SOUND_MODEL, sources=ModelSources(cache_dir=SHIPPED_DIR))


@pytest.fixture(scope="module")
def listener(folder: ModelFolder) -> SoundListener:
    return SoundListener(folder)


def heard(listener: SoundListener, samples: NDArray[np.float32]) -> list[SoundEvent]:
    """The events of an analysis that does not ask for fainter ones."""
    audio = EncodedAudio(
        data=samples.astype("<f4").tobytes(), media_type="audio/pcm", sample_rate=RATE, n_channels=1, encoding="f32le"
    )
    events = Pipeline(None, listener).analyze(audio).events
    return [event for event in events if event.score >= DEFAULT_MIN_SCORE]


def labels(events: list[SoundEvent]) -> set[str]:
    return {event.label for event in events}


def clip(shared_data: Path, category: str) -> NDArray[np.float32]:
    """The first clip of a class in which the sound is there."""
    rows = [row for row in read_meta(shared_data / "esc50", ["category", "fold"]) if row.values["category"] == category]
    return read_clip(rows[0].path)


def loudest(samples: NDArray[np.float32]) -> float:
    blocks = samples[: len(samples) // 4_000 * 4_000].reshape(-1, 4_000)
    return float(np.sqrt(np.square(blocks).mean(axis=1).max()))


def test_its_card_says_what_people_have_to_know(folder: ModelFolder) -> None:
    card = folder.card
    assert card.kind == "sound"
    assert card.licence == "Apache-2.0"
    assert len(card.labels) == 53
    assert {"dog", "crying_baby", "speech", "music", "silence"} <= set(card.labels)
    folds = [value for name, value in card.metrics.items() if name.startswith("top1_fold_")]
    assert card.metrics["top1_mean"] == pytest.approx(np.mean(folds), abs=1e-4)  # both are rounded
    assert card.metrics["top1_mean"] >= 0.92  # over three seeds
    assert 0 < card.metrics["top1_std"] <= 0.005
    assert card.metrics["top1_mean"] - min(card.metrics["top1_quiet"], card.metrics["top1_late"]) <= 0.01
    assert card.metrics["top1_2s"] >= 0.89
    assert card.metrics["soundscapes_segment_f1"] >= 0.70
    assert card.metrics["soundscapes_event_f1"] >= 0.55
    readme = (folder.path / "README.md").read_text(encoding="utf-8")
    for needed in ("CC0 or CC-BY", "Piczak", "YAMNet's weights", "LJ Speech", "Limits"):
        assert needed in readme
    assert len((folder.path / "training-clips.txt").read_text().split()) == 1_401
    assert (folder.path / "weights.safetensors").stat().st_size < MAX_WEIGHTS_BYTES


def test_silence_is_silence_and_nothing_else(listener: SoundListener) -> None:
    (event,) = heard(listener, np.zeros(60 * RATE, np.float32))
    assert event.label == "silence"
    assert event.score > 0.9
    assert event.start_s == 0
    assert event.end_s == pytest.approx(60, abs=0.5)


@pytest.mark.shared_data
def test_in_read_speech_nothing_but_speech_is_heard(listener: SoundListener, shared_data: Path) -> None:
    rows = read_meta(shared_data / "ljspeech", ["transcript"])[-58:]  # never trained on
    samples = np.concatenate([read_clip(row.path) for row in rows])
    events = heard(listener, samples)
    spoken_s = sum(event.end_s - event.start_s for event in events if event.label == "speech")
    assert spoken_s > 0.95 * len(samples) / RATE
    assert len([event for event in events if event.label not in {"speech", "silence"}]) <= 1


@pytest.mark.shared_data
@pytest.mark.parametrize("category", ["dog", "crying_baby", "siren", "clock_alarm", "rooster"])
def test_a_clear_sound_over_speech_is_found_with_the_speech(
    listener: SoundListener, shared_data: Path, category: str
) -> None:
    rows = read_meta(shared_data / "ljspeech", ["transcript"])[-20:]
    track = np.concatenate([read_clip(row.path) for row in rows])[: 25 * RATE]
    sound = clip(shared_data, category)
    sound = (sound * loudest(track) / loudest(sound) * 10 ** (5 / 20)).astype(np.float32)
    start = 10 * RATE
    track[start : start + len(sound)] += sound

    events = heard(listener, track)

    assert {category, "speech"} <= labels(events)
    first = min(event.start_s for event in events if event.label == category)
    assert 9.0 < first < 10.0 + len(sound) / RATE


@pytest.mark.shared_data
def test_a_clip_twenty_decibels_quieter_is_still_known(listener: SoundListener, shared_data: Path) -> None:
    for category in ("rooster", "siren", "church_bells"):
        samples = clip(shared_data, category)
        loud, quiet = listener.listen([Waveform(samples=samples), Waveform(samples=samples * np.float32(0.1))])
        assert loud.labels[int(loud.tags.argmax())] == category
        assert quiet.labels[int(quiet.tags.argmax())] == category


@pytest.mark.shared_data
def test_products_in_bfloat16_change_no_answer(
    folder: ModelFolder, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveforms = [
        Waveform(samples=clip(shared_data, category))
        for category in ("dog", "rain", "clapping", "helicopter", "clock_tick")
    ]
    answers = []
    for multiplies in (False, True):
        monkeypatch.setattr(inference, "multiplies_bfloat16", lambda multiplies=multiplies: multiplies)
        answers.append(SoundListener(folder).listen(waveforms))
    for exact, fast in zip(*answers, strict=True):
        assert fast.tags.argmax() == exact.tags.argmax()
        np.testing.assert_allclose(fast.tags, exact.tags, atol=0.03)
        np.testing.assert_allclose(fast.scores, exact.scores, atol=0.06)
    assert any((exact.tags != fast.tags).any() for exact, fast in zip(*answers, strict=True))
