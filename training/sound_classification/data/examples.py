"""Labelled windows, mixed anew in each step from spectrograms.

Magnitudes are added as if the parts had random phases against each other; that costs a tenth of mixing samples and
transforming the mix. Everything that is drawn for a step follows from the seed and the number of the step, so that a
run that goes on after a break sees what it would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soundstage.audio.features import mel_spectrogram, n_frames
from soundstage.sound.model import MEDIAN_LEVEL, MUSIC, SILENCE, SPEECH, STEP_FRAMES, SoundParams, levelled, levels
from training.sound_classification.config import Config
from training.sound_classification.data.material import Backgrounds, Clips, Spectrogram
from training.sound_classification.data.table import Clip

Floats = NDArray[np.float32]

_DB_TO_LOG = np.log(10) / 20
_EDGE_FRAMES = 20
"""The loudest part of a clip is at least so far from the edges of a short window."""
_QUIET_DB = (-110.0, -53.0)
"""Level of silence, of which some is digital."""
_HISS_DB = (-45.0, 6.0)
"""Level of noise that is no sound; 0 dB is the median level of clips."""
_TILT = (-2.2, 1.2)
"""Colours of noise, from brown to blue: how much the logarithm of its magnitude rises from the middle of the bands."""
_WHITE_S = 60.0
_FAINTEST = 1e-6
_WITHOUT_SOUNDS, _SCENE = -1, -2
"""Windows that are no clip's, in place of its place in the table."""
_STEADY, _ACTIVE, _SPOKEN = 0.35, 0.126, 0.2
"""In scenes: what lies under others is above this share of its loudest quarter of a second nearly always; a stretch
ends where it falls below (-18 dB); and so often it is speech."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step sees.

    Attributes:
        log_mel: float32 (batch, n_frames, n_mels).
        sounds: float32 (batch, n_sounds), and one more for none of them where they exclude one another.
        sound_weights: float32 (batch,), 0 for scenes, which are asked for their steps alone.
        extras: float32 (batch, 3), speech, music, silence.
        frames: float32 (batch, n_steps, n_labels).
        frame_weights: The same, 0 where it is not known.
    """

    log_mel: Floats
    sounds: Floats
    sound_weights: Floats
    extras: Floats
    frames: Floats
    frame_weights: Floats

    @property
    def targets(self) -> dict[str, Floats]:
        """All but log_mel, by name."""
        return {
            "sounds": self.sounds,
            "sound_weights": self.sound_weights,
            "extras": self.extras,
            "frames": self.frames,
            "frame_weights": self.frame_weights,
        }


@dataclass(slots=True)
class _Part:
    """One source of a window.

    Attributes:
        mel: float32 (n_frames, n_mels).
        level: float32 (n_frames,).
        times: For each label that is known with its times, which frames hold it.
        untimed: Labels of which only the presence is known.
        recorded: The loudest level of the clip as it was recorded.
        share: In a mix of clips.
        unknown: Labels that may be heard in it or not.
    """

    mel: Floats
    level: Floats
    times: dict[int, NDArray[np.bool_]]
    untimed: tuple[int, ...]
    recorded: float = MEDIAN_LEVEL
    share: float = 1.0
    unknown: tuple[int, ...] = ()


class Mixer:
    """Mixes windows; a step's batch is the same whenever it is asked for.

    Args:
        table: All clips, in the order of the spectrograms.
        chosen: Places in the table of the clips that may be used.
        clips: The spectrograms.
        backgrounds: What may be under them.
        params: Of the model.
        config: The recipe.
        seed: Of all chance.
    """

    def __init__(
        self,
        table: tuple[Clip, ...],
        chosen: NDArray[np.int64],
        clips: Clips,
        backgrounds: Backgrounds,
        *,
        params: SoundParams,
        config: Config,
        seed: int,
    ) -> None:
        self._table, self._chosen, self._clips, self._seed = table, chosen, clips, seed
        self._params, self._config, self._augmentation = params, config, config.augmentation
        self._places = {label: i for i, label in enumerate(params.labels)}
        self._n_sounds = len(params.sounds)
        self._n_frames = params.n_window_frames
        self._frames_per_s = params.features.sample_rate / params.features.hop_length
        n_short = n_frames(round(config.augmentation.short_s * params.features.sample_rate), params.features)
        self._n_short_frames = min(n_short, self._n_frames)
        sources = ((SPEECH, backgrounds.speech), (MUSIC, backgrounds.music))
        self._backgrounds = {label: source for label, source in sources if len(source.level) > self._n_frames}
        n_others = [
            round(len(chosen) * of) for of in (self._augmentation.without_sounds, self._augmentation.soundscapes)
        ]
        self._kinds = np.concatenate([chosen, np.repeat((_WITHOUT_SOUNDS, _SCENE), n_others)])
        self._steady = [int(place) for place in chosen if self._is_steady(int(place))]
        self._order_of: tuple[int, NDArray[np.int64]] = (-1, chosen)

    @property
    def n_epoch_steps(self) -> int:
        """Steps in which each clip is heard once; a rest that does not fill a batch is left out."""
        return max(1, len(self._kinds) // self._config.learning.batch_size)

    def batch(self, step: int) -> Batch:
        """What a step of the run sees."""
        epoch, position = divmod(step, self.n_epoch_steps)
        if self._order_of[0] != epoch:
            shuffle = np.random.default_rng([self._seed, epoch])
            self._order_of = (epoch, shuffle.permutation(self._kinds))
        size = self._config.learning.batch_size
        rng = np.random.default_rng([self._seed, epoch, position])
        is_short = rng.random() < self._augmentation.short_windows
        # a set smaller than a batch is heard several times
        places = np.resize(self._order_of[1][position * size : (position + 1) * size], size)
        windows = [self._window(rng, int(place), is_short=is_short) for place in places]
        return Batch(*(np.stack(parts) for parts in zip(*windows, strict=True)))

    def _window(self, rng: np.random.Generator, place: int, *, is_short: bool) -> tuple[Floats | np.float32, ...]:
        """One window: the fields of a batch without its first axis."""
        augmentation = self._augmentation
        if place == _SCENE:
            parts, mel = self._scene(rng)
            mel *= self._loudness(rng, parts[-1])
        elif place >= 0:
            parts = self._clip_parts(rng, place)
            mel = parts[0].mel * np.float32(parts[0].share)
            for part in parts[1:]:
                mel += part.mel * np.float32(part.share)
            if self._backgrounds and rng.random() < augmentation.background:
                under = self._background(rng, self._one_background(rng))
                mel += under.mel * _gain(rng.uniform(*augmentation.background_db))
                parts.append(under)
            mel *= self._loudness(rng, parts[0])
            if rng.random() < augmentation.noise:
                mel += self._noise(rng, rng.uniform(*augmentation.noise_db))
        else:
            parts, mel = self._without_sounds(rng)
        span = slice(0, len(mel))
        if is_short:
            first = self._short_start(rng, parts)
            span = slice(first, first + self._n_short_frames)
        log_mel = self._disturbed(rng, levelled(mel[span], self._config.level, self._params.features))
        sounds, *others = self._targets(parts, span)
        return (log_mel, sounds, np.float32(place != _SCENE), *others)

    def _loudness(self, rng: np.random.Generator, part: _Part) -> np.float32:
        """How loud a window is, of which this part is the loudest, before the network's level range is applied."""
        # Where every window is brought to one level, only noise and the logarithm's offset tell the difference.
        loudest = part.recorded if self._config.level.highest is None else MEDIAN_LEVEL
        is_changed = rng.random() < self._augmentation.gain
        return np.float32(loudest) * (_gain(rng.uniform(*self._augmentation.gain_db)) if is_changed else np.float32(1))

    def _clip_parts(self, rng: np.random.Generator, place: int) -> list[_Part]:
        """A clip, or two that share a window; each as loud as the other where it is loudest."""
        first = self._clip_part(rng, place)
        if rng.random() >= self._augmentation.mixup:
            return [first]
        second = self._clip_part(rng, int(rng.choice(self._chosen)))
        first.share = float(rng.beta(self._augmentation.mixup_alpha, self._augmentation.mixup_alpha))
        second.share = 1 - first.share
        return [first, second]

    def _clip_part(self, rng: np.random.Generator, place: int) -> _Part:
        """A clip, cut or padded to the window, brought to a loudest level of 1."""
        variants = self._augmentation.variants
        use_variant = self._clips.n_variants and rng.random() < variants.share
        variant = int(rng.integers(1, self._clips.n_variants + 1)) if use_variant else 0
        heard, clip = self._clips[place, variant], self._table[place]
        n_clip, n = len(heard.level), self._n_frames
        times: dict[int, NDArray[np.bool_]] = {}
        frames_per_s = self._frames_per_s
        untimed = []
        for item in clip.heard:
            label = self._places[item.label]
            if item.start_s is None or item.end_s is None:
                untimed.append(label)
                continue
            active = times.setdefault(label, np.zeros(n_clip, np.bool_))
            active[round(item.start_s * frames_per_s) : max(1, round(item.end_s * frames_per_s))] = True
        first = self._cut_start(rng, heard, times) if n_clip > n else 0
        # a window of a longer clip with times lies anywhere already
        may_shift = (n_clip <= n or not times) and rng.random() < self._augmentation.time_shift
        shift = int(rng.integers(n)) if may_shift else 0

        def fitted(values: NDArray[Any]) -> NDArray[Any]:
            values = values[first : first + n]
            values = np.pad(values, [(0, n - len(values))] + [(0, 0)] * (values.ndim - 1))
            return np.roll(values, shift, axis=0) if shift else values

        level = fitted(heard.level)
        recorded = max(float(level.max()), _FAINTEST)
        scale = np.float32(1 / recorded)
        return _Part(
            mel=fitted(heard.mel).astype(np.float32) * scale,
            level=level * scale,
            times={label: fitted(active) for label, active in times.items()},
            untimed=tuple(dict.fromkeys(untimed)),
            recorded=recorded,
        )

    def _cut_start(self, rng: np.random.Generator, heard: Spectrogram, times: dict[int, NDArray[np.bool_]]) -> int:
        """Where a window starts in a longer clip: around something loud, or anywhere if the times are known."""
        n_starts = len(heard.level) - self._n_frames
        if times and rng.random() < 0.5:
            return int(rng.integers(n_starts + 1))
        active = np.any(list(times.values()), axis=0) if times else None
        if active is None or not active.any():
            active = heard.level >= self._config.targets.present * heard.level.max()
        middle = int(rng.choice(np.flatnonzero(active)))
        return int(np.clip(middle - rng.integers(self._n_frames), 0, n_starts))

    def _short_start(self, rng: np.random.Generator, parts: list[_Part]) -> int:
        """Where a short window starts: so that it holds the loudest part of a clip without times."""
        last = self._n_frames - self._n_short_frames
        clip = parts[0] if parts else None
        if clip is None or not clip.untimed or clip.untimed[0] >= self._n_sounds:
            return int(rng.integers(last + 1))
        peak = int(clip.level.argmax())
        lowest = int(np.clip(peak - self._n_short_frames + _EDGE_FRAMES, 0, last))
        highest = int(np.clip(peak - _EDGE_FRAMES, lowest, last))
        return int(rng.integers(lowest, highest + 1))

    def _one_background(self, rng: np.random.Generator) -> str:
        label = SPEECH if rng.random() < self._augmentation.background_speech else MUSIC
        return label if label in self._backgrounds else next(iter(self._backgrounds))

    def _background(self, rng: np.random.Generator, label: str) -> _Part:
        """A window of speech or music, brought to a loudest level of 1."""
        source = self._backgrounds[label]
        first = int(rng.integers(len(source.level) - self._n_frames))
        span = slice(first, first + self._n_frames)
        level = source.level[span]
        scale = np.float32(1 / max(float(level.max()), 1e-3))
        return _Part(source.mel[span].astype(np.float32) * scale, level * scale, {}, (self._places[label],))

    @cached_property
    def _white(self) -> Floats:
        """White noise of mean 1, (n_frames, n_mels), for recipes that have noise.

        Of samples: magnitudes drawn one by one are rougher than those of wide bands, and real noise remains rain.
        """
        white_s = max(_WHITE_S, 2 * self._params.window_s)
        n_samples = round(white_s * self._params.features.sample_rate)
        samples = np.random.default_rng(self._seed).standard_normal(n_samples, np.float32)
        mel = mel_spectrogram(samples, self._params.features)
        return np.asarray(mel / mel.mean(), np.float32)

    def _noise(self, rng: np.random.Generator, level_db: float) -> Floats:
        """Magnitudes of white noise; 0 dB is the median level of clips."""
        first = int(rng.integers(len(self._white) - self._n_frames))
        values = self._white[first : first + self._n_frames]
        return np.asarray(values * np.float32(MEDIAN_LEVEL) * _gain(level_db), np.float32)

    def _coloured_noise(self, rng: np.random.Generator) -> _Part:
        """Steady noise, brought to a loudest level of 1."""
        colour = np.exp(rng.uniform(*_TILT) * np.linspace(-1, 1, self._params.features.n_mels))
        noise = self._noise(rng, 0.0) * colour.astype(np.float32)
        level = np.ones(self._n_frames, np.float32)
        return _Part(noise / levels(noise, self._params.features).max(), level, {}, ())

    def _without_sounds(self, rng: np.random.Generator) -> tuple[list[_Part], Floats]:
        """Silence, noise, speech, music, or speech over music; silence or noise where there is neither."""
        kind = rng.random()
        mel = np.zeros((self._n_frames, self._params.features.n_mels), np.float32)
        silent, hissing = self._augmentation.silent, self._augmentation.hissing
        if silent <= kind < silent + hissing:
            noise = self._coloured_noise(rng)
            return [noise], noise.mel * np.float32(MEDIAN_LEVEL) * _gain(rng.uniform(*_HISS_DB))
        if not self._backgrounds or kind < silent:
            if rng.random() < 0.7:
                mel = self._noise(rng, rng.uniform(*_QUIET_DB))
            always = np.ones(self._n_frames, np.bool_)
            return [_Part(mel, mel.mean(axis=1), {self._places[SILENCE]: always}, ())], mel
        chosen = [self._one_background(rng)]
        if len(self._backgrounds) > 1 and rng.random() < 0.2:
            chosen = [SPEECH, MUSIC]
        parts = [self._background(rng, label) for label in chosen]
        level_db = rng.uniform(-20, 6)
        for part in parts:
            mel += part.mel * np.float32(MEDIAN_LEVEL) * _gain(level_db)
            level_db += rng.uniform(-20, 5)
        return parts, mel

    def _is_steady(self, place: int) -> bool:
        """Whether a clip sounds all the time, so that it can lie under others."""
        level = self._clips[place, 0].level
        return len(level) >= self._n_frames and float((level > _STEADY * level.max()).mean()) > 0.9

    def _scene(self, rng: np.random.Generator) -> tuple[list[_Part], Floats]:
        """Stretches of clips and speech over a steady clip, or over noise of some colour."""
        augmentation = self._augmentation
        if self._steady and rng.random() < 0.5:
            under = self._clip_part(rng, int(rng.choice(self._steady)))
            under.untimed, under.unknown = (), under.untimed
        else:
            under = self._coloured_noise(rng)
        parts, mel = [under], under.mel.copy()
        for _ in range(int(rng.integers(augmentation.scene_events[0], augmentation.scene_events[1] + 1))):
            is_speech = SPEECH in self._backgrounds and rng.random() < _SPOKEN
            part = self._background(rng, SPEECH) if is_speech else self._clip_part(rng, int(rng.choice(self._chosen)))
            n_most = round(rng.uniform(*augmentation.scene_event_s) * self._frames_per_s)
            stretch = self._stretch(rng, part, n_most)
            placed = self._placed(rng, part, stretch)
            mel += placed.mel * _gain(rng.uniform(*augmentation.scene_event_db))
            parts.append(placed)
        return parts, mel

    def _stretch(self, rng: np.random.Generator, part: _Part, n_most: int) -> slice:
        """A part of what sounds without a break, from its start on or from anywhere in it."""
        active = part.level >= _ACTIVE * part.level.max()
        edges = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(np.int8), [0]])))
        first, end = edges.reshape(-1, 2)[int(rng.integers(len(edges) // 2))]
        length = int(min(end - first, n_most))
        if rng.random() < 0.5:
            first += int(rng.integers(end - first - length + 1))
        return slice(int(first), int(first) + length)

    def _placed(self, rng: np.random.Generator, part: _Part, stretch: slice) -> _Part:
        """A stretch of a part at another time, silence around it; it may reach beyond the window."""
        n, length = self._n_frames, stretch.stop - stretch.start
        at = int(rng.integers(-(length // 2), n - length // 2))
        first, end = max(0, at), min(n, at + length)
        mel, level, active = np.zeros_like(part.mel), np.zeros_like(part.level), np.zeros(n, np.bool_)
        source = slice(stretch.start + first - at, stretch.start + end - at)
        scale = np.float32(1 / max(float(part.level[stretch].max()), _FAINTEST))
        mel[first:end], level[first:end], active[first:end] = part.mel[source] * scale, part.level[source] * scale, True
        times = dict.fromkeys(part.untimed, active)
        for label, heard in part.times.items():
            times[label] = np.zeros(n, np.bool_)
            times[label][first:end] = heard[source]
        return _Part(mel, level, times, (), part.recorded)

    def _disturbed(self, rng: np.random.Generator, log_mel: Floats) -> Floats:
        """Bands made louder and softer, and parts blanked."""
        augmentation = self._augmentation
        n, n_mels = log_mel.shape
        if rng.random() < augmentation.mask:
            blank = np.log(np.float32(self._params.features.log_offset))
            length = min(n, max(1, round(rng.uniform(*augmentation.mask_s) * self._frames_per_s)))
            first = int(rng.integers(n - length + 1))
            log_mel[first : first + length] = blank
            n_bands = min(n_mels, int(rng.integers(augmentation.mask_bands[0], augmentation.mask_bands[1] + 1)))
            first = int(rng.integers(n_mels - n_bands + 1))
            log_mel[:, first : first + n_bands] = blank
        if augmentation.equaliser_db:
            bands = rng.normal(0, augmentation.equaliser_db * _DB_TO_LOG, 5)
            log_mel += np.interp(np.arange(n_mels), np.linspace(0, n_mels - 1, 5), bands).astype(np.float32)
        return log_mel

    def _targets(self, parts: list[_Part], span: slice) -> tuple[Floats, Floats, Floats, Floats]:
        """Of a window: sounds, extras, frames and their weights."""
        n_sounds, n_labels = self._n_sounds, len(self._places)
        n_steps = -(-(span.stop - span.start) // STEP_FRAMES)
        frames = np.zeros((n_steps, n_labels), np.float32)
        weights = np.ones((n_steps, n_labels), np.float32)
        heard = np.zeros(n_labels, np.float32)
        unknown: list[int] = []
        for part in parts:
            found = self._part_targets(part, span, n_steps)
            unknown += part.unknown
            # a window is laid so that it holds the sound of a clip without times; the rest is heard where it is
            inside = [
                k for k, (active, _) in found.items() if (k in part.untimed and k < n_sounds) or active.max() >= 0.5
            ]
            if part.share < self._config.targets.min_mixed:
                unknown += found
                if not self._params.is_exclusive:
                    continue
            else:
                for label, (active, is_known) in found.items():
                    frames[:, label] = np.maximum(frames[:, label], active)
                    weights[:, label] = np.minimum(weights[:, label], is_known)
            for label in inside:
                is_shared = self._params.is_exclusive and label < n_sounds
                heard[label] = heard[label] + part.share if is_shared else 1.0
        weights[frames > 0] = 1
        for label in unknown:
            weights[frames[:, label] == 0, label] = 0
        if len(parts) > 1:
            heard[self._places[SILENCE]] = 0
            frames[:, self._places[SILENCE]] = 0
        sounds, extras = heard[:n_sounds], heard[n_sounds:]
        if self._params.is_exclusive:
            sounds = np.append(sounds, max(0.0, 1.0 - sounds.sum())).astype(np.float32)  # none of them
        return sounds, extras, frames, weights

    def _part_targets(self, part: _Part, span: slice, n_steps: int) -> dict[int, tuple[Floats, Floats]]:
        """For each label of a part, how much of each step holds it and whether that is known."""
        found: dict[int, tuple[Floats, Floats]] = {}
        for label, active in part.times.items():
            share = _by_step(active[span].astype(np.float32), n_steps).mean(axis=1)
            is_held = share >= self._config.targets.held
            found[label] = (is_held.astype(np.float32), (is_held | (share == 0)).astype(np.float32))
        if part.untimed:
            level = _by_step(part.level[span], n_steps).max(axis=1)
            loudest = float(part.level.max())
            is_present = level >= self._config.targets.present * loudest
            is_absent = level <= self._config.targets.absent * loudest
            # which of several labels a loud step holds is not known
            is_certain = is_present if len(part.untimed) == 1 else np.zeros_like(is_present)
            targets = (is_certain.astype(np.float32), (is_certain | is_absent).astype(np.float32))
            for label in part.untimed:
                found.setdefault(label, targets)
        return found


def _gain(level_db: float) -> np.float32:
    return np.float32(10 ** (level_db / 20))


def _by_step(values: Floats, n_steps: int) -> Floats:
    """Frames, (n_frames,), in rows of one step each, the last filled up with its last value."""
    padded = np.pad(values, (0, n_steps * STEP_FRAMES - len(values)), mode="edge")
    return padded.reshape(n_steps, STEP_FRAMES)
