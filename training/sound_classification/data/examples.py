"""Labelled windows, mixed anew in each epoch: clips alone, under speech, under music, and everything without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soundstage.audio.features import mel_spectrogram
from soundstage.sound.model import EXTRA_LABELS, STEP_FRAMES, SoundParams, levels, window_features
from soundstage.types import SAMPLE_RATE
from training.sound_classification.data.material import TEACHER_HOP, Material
from training.sound_classification.model.yamnet import N_INPUT

Samples = NDArray[np.float32]

MIXED_SHARE, SPEECH_SHARE, MUSIC_SHARE, BOTH_SHARE, SILENCE_SHARE = 0.3, 0.12, 0.12, 0.04, 0.06
"""Windows of each kind for every clip that is heard alone."""
STRETCH_SHARE = 0.4
"""Of all windows are pooled over a part of their time, so that 2 s are enough to hear a sound."""
MIN_STRETCH_STEPS = 6
SILENT_LEVEL = 0.015
"""Mean mel magnitude below which a stretch counts as silence: about -70 dBFS of white noise."""
PRESENT, ABSENT = 0.18, 0.01
"""A sound is in a stretch that reaches -15 dB of its loudest quarter second, not in one below -40 dB; between them
nothing is learnt about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one training step sees.

    Attributes:
        log_mel: float32 (batch, n_frames, n_mels).
        steps: float32 (batch, n_steps), 1 for those that are pooled.
        sound: int32 (batch,), class; the last one is none of them.
        sound_weight: float32 (batch,).
        extra: float32 (batch, 3), speech, music, silence.
        extra_weight: float32 (batch, 3).
    """

    log_mel: NDArray[np.float32]
    steps: NDArray[np.float32]
    sound: NDArray[np.int32]
    sound_weight: NDArray[np.float32]
    extra: NDArray[np.float32]
    extra_weight: NDArray[np.float32]


_ALONE, _MIXED, _SPEECH, _MUSIC, _BOTH, _SILENCE = range(6)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """What one window is mixed from, each float32 (n_window_samples,) or absent.

    Attributes:
        index: Of the clip.
        shift: By how many samples the clip is rotated.
    """

    clip: Samples | None
    speech: Samples | None
    music: Samples | None
    noise: Samples
    index: int
    shift: int

    def mixed(self) -> Samples:
        return np.asarray(sum((s for s in (self.clip, self.speech, self.music) if s is not None), self.noise))


def _loudest(samples: Samples) -> float:
    """RMS of the loudest quarter of a second."""
    blocks = samples[: len(samples) // 4000 * 4000].reshape(-1, 4000)
    return float(np.sqrt(np.square(blocks).mean(axis=1).max()))


class Mixer:
    """Mixes windows from material; all chance comes from one generator.

    Args:
        material: Where from.
        chosen: Indexes of the clips that may be used.
        params: Of the model.
        seed: Of the generator.
        balanced: Each class is heard equally often.
    """

    def __init__(
        self, material: Material, chosen: NDArray[np.int64], params: SoundParams, seed: int, *, balanced: bool = False
    ) -> None:
        self._material, self._chosen, self._params = material, chosen, params
        self._rng = np.random.default_rng(seed)
        self._n = params.n_window_samples
        self._classes = {label: i for i, label in enumerate(params.sounds)}
        labels = material.categories[chosen]
        self._classes_of_clips = [chosen[labels == label] for label in np.unique(labels)] if balanced else [chosen]
        self._n_each = round(len(chosen) / len(self._classes_of_clips))
        counts = [self._n_each * len(self._classes_of_clips)]
        counts += [round(len(chosen) * share) for share in (MIXED_SHARE, SPEECH_SHARE, MUSIC_SHARE, BOTH_SHARE)]
        counts += [round(len(chosen) * SILENCE_SHARE)]
        if not len(material.music):
            counts[_MUSIC] = counts[_BOTH] = 0
        self._kinds = np.repeat((_ALONE, _MIXED, _SPEECH, _MUSIC, _BOTH, _SILENCE), counts)

    def _balanced(self) -> NDArray[np.int64]:
        """As many clips of each class: where licences leave few, they come again; where many, some wait an epoch."""
        parts = [np.resize(self._rng.permutation(clips), self._n_each) for clips in self._classes_of_clips]
        return np.concatenate(parts)

    def n_windows(self) -> int:
        """Windows of an epoch."""
        return len(self._kinds)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """One epoch of full batches: each clip alone once, the rest drawn by chance."""
        order = self._rng.permutation(len(self._kinds))
        alone = iter(self._rng.permutation(self._balanced()))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            windows = [self._window(int(self._kinds[i]), alone) for i in order[start : start + batch_size]]
            log_mel, steps, sound, sound_weight, extra, extra_weight = zip(*windows, strict=True)
            yield Batch(
                log_mel=np.stack(log_mel),
                steps=np.stack(steps),
                sound=np.array(sound, np.int32),
                sound_weight=np.array(sound_weight, np.float32),
                extra=np.array(extra, np.float32),
                extra_weight=np.array(extra_weight, np.float32),
            )

    def _cut(self, source: Samples) -> Samples:
        """A window of the source, resampled by up to 12 %, sometimes filling only a part."""
        rng = self._rng
        speed = rng.uniform(0.88, 1.12)
        n_source = int(self._n * speed) + 2
        start = int(rng.integers(0, max(1, len(source) - n_source)))
        piece = source[start : start + n_source]
        where = np.minimum(np.arange(self._n) * speed, len(piece) - 1)
        samples = np.interp(where, np.arange(len(piece)), piece).astype(np.float32)
        if rng.random() < 0.3:
            first, last = np.sort(rng.integers(0, self._n, 2))
            if last - first > 2 * SAMPLE_RATE:
                samples[:first] = 0
                samples[last:] = 0
        return np.asarray(samples * 10 ** rng.uniform(-1.0, 0.3), np.float32)

    def _quiet(self) -> Samples:
        """Digital silence, or noise and hum below -72 dBFS."""
        rng = self._rng
        if rng.random() < 0.3:
            return np.zeros(self._n, np.float32)
        noise = rng.standard_normal(self._n)
        if rng.random() < 0.4:
            noise = np.convolve(noise, np.ones(int(rng.integers(2, 40))), "same")
        if rng.random() < 0.2:
            noise += np.sin(2 * np.pi * rng.choice((50, 60, 100, 120)) * np.arange(self._n) / SAMPLE_RATE)
        return np.asarray(noise / noise.std() * 10 ** (rng.uniform(-105, -72) / 20), np.float32)

    def _step_levels(self, samples: Samples) -> Samples:
        mel = mel_spectrogram(samples, self._params.features)
        level = levels(mel, self._params.features)
        n_steps = self._params.n_window_steps
        steps = np.pad(level, (0, n_steps * STEP_FRAMES - len(level))).reshape(n_steps, -1)
        return np.asarray(steps.max(axis=1))

    def _present(self, source: Samples | None, stretch: slice) -> tuple[float, float]:
        """Whether a source sounds in a stretch, and the weight of that."""
        if source is None:
            return 0.0, 1.0
        level = self._step_levels(source)
        here = level[stretch].max()
        if here >= max(PRESENT * level.max(), SILENT_LEVEL):
            return 1.0, 1.0
        return 0.0, float(here <= max(ABSENT * level.max(), SILENT_LEVEL))

    def _sources(self, kind: int, alone: Iterator[np.int64]) -> _Sources:
        """What sounds in a window of a kind, each at its level in the mix."""
        rng, material = self._rng, self._material
        clip = speech = music = None
        index, shift = -1, 0
        if kind in {_ALONE, _MIXED}:
            index = (
                int(next(alone))
                if kind == _ALONE
                else int(rng.choice(self._classes_of_clips[int(rng.integers(len(self._classes_of_clips)))]))
            )
            shift = int(rng.integers(self._n))
            clip = np.roll(material.clips[index].astype(np.float32), shift)
        has_music = len(material.music) > 0
        if kind in {_SPEECH, _BOTH} or (kind == _MIXED and (not has_music or rng.random() < 0.6)):
            speech = self._cut(material.speech)
        if kind in {_MUSIC, _BOTH} or (kind == _MIXED and speech is None):
            music = self._cut(material.music)
        if speech is not None and music is not None:
            music *= _loudest(speech) / max(_loudest(music), 1e-5) * 10 ** (rng.uniform(-20, 5) / 20)
        under = speech if speech is not None else music
        if clip is not None and under is not None:
            under *= _loudest(clip) / max(_loudest(under), 1e-5) * 10 ** (rng.uniform(-15, 5) / 20)
        noise = np.zeros(self._n, np.float32) if kind == _ALONE else self._quiet()
        if kind in {_SPEECH, _MUSIC, _BOTH} and rng.random() < 0.5:
            noise *= np.float32(10 ** rng.uniform(0, 1.2))  # a room's
        return _Sources(clip=clip, speech=speech, music=music, noise=noise, index=index, shift=shift)

    def _stretch(self) -> slice:
        """The steps that are pooled: mostly all."""
        rng, n_steps = self._rng, self._params.n_window_steps
        if rng.random() >= STRETCH_SHARE:
            return slice(0, n_steps)
        length = int(rng.integers(MIN_STRETCH_STEPS, n_steps))
        first = int(rng.integers(0, n_steps - length + 1))
        return slice(first, first + length)

    def _window(
        self, kind: int, alone: Iterator[np.int64]
    ) -> tuple[Samples, Samples, int, float, list[float], list[float]]:
        """One example: the fields of a batch without its first axis."""
        sources, stretch = self._sources(kind, alone), self._stretch()
        mixed = sources.mixed()
        steps = np.zeros(self._params.n_window_steps, np.float32)
        steps[stretch] = 1
        features = window_features(mixed, self._params)
        none = len(self._params.sounds)
        if self._step_levels(mixed)[stretch].max() < SILENT_LEVEL:
            return features, steps, none, 1.0, [0.0, 0.0, 1.0], [1.0] * len(EXTRA_LABELS)
        present, sound_weight = self._present(sources.clip, stretch)
        sound = self._classes[str(self._material.categories[sources.index])] if present else none
        extra, extra_weight = [], []
        for source, taught in zip((sources.speech, sources.music), self._taught(sources, stretch), strict=True):
            target, weight = self._present(source, stretch)
            extra.append(max(target, taught))
            extra_weight.append(weight)
        return features, steps, sound, sound_weight, [*extra, 0.0], [*extra_weight, 1.0]

    def _taught(self, sources: _Sources, stretch: slice) -> tuple[float, float]:
        """YAMNet's scores for speech and music over the stretch of a shifted clip."""
        if sources.clip is None:
            return 0.0, 0.0
        scores = self._material.teacher[sources.index]
        middles = (np.arange(len(scores)) * TEACHER_HOP + N_INPUT / 2 + sources.shift) % self._n / SAMPLE_RATE
        step_s = self._params.step_s
        inside = scores[(middles >= stretch.start * step_s) & (middles <= stretch.stop * step_s)]
        if not len(inside):
            return 0.0, 0.0
        return float(inside[:, 0].max()), float(inside[:, 1].max())
