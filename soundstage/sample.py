"""The clip to try Soundstage with: a reading, and sounds between and beside it, with the truth about both.

Licence: the reading is `two_cities.wav` of the Python package moonshine-voice (MIT licence, Moonshine AI); its text
is the opening of "A Tale of Two Cities" by Charles Dickens, 1859, in the public domain. It is read from the installed
package and is no part of Soundstage. Every other sound is computed here, under the licence of Soundstage.
"""

from __future__ import annotations

import math
import wave
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from soundstage.commands.outputs import atomic_file
from soundstage.types import Region

Floats = NDArray[np.float64]
Generator = Callable[[float, np.random.Generator], Floats]
"""Duration in seconds and random numbers to float64 (n_samples,) at SAMPLE_RATE_HZ, with a peak of 1."""

SAMPLE_RATE_HZ = 48_000
"""As production delivers it, and as the reading was recorded."""
SEED = 1859

LICENCE = (
    "Reading: two_cities.wav of the package moonshine-voice, MIT licence, Moonshine AI; text by Charles Dickens,"
    " public domain. Sounds: computed by Soundstage, Apache-2.0."
)

_DISTRIBUTION = "moonshine-voice"
_READING = "moonshine_voice/assets/two_cities.wav"


class SpeechMissing(RuntimeError):
    """The package that the reading comes from is not installed."""


# Sounds


def door_knocks(duration_s: float, rng: np.random.Generator) -> Floats:
    """Four knocks on a wooden door, again and again."""
    modes_hz = np.array([[95.0], [148.0], [233.0], [310.0], [487.0]])
    decays_s = np.array([[0.045], [0.038], [0.030], [0.024], [0.016]])
    weights = np.array([0.7, 1.0, 0.9, 0.5, 0.2])
    t = _times(0.3)
    samples = _silence(duration_s)
    for start_s in np.arange(0.1, duration_s - 0.8, 1.96):
        for i in range(4):
            # No two knocks ring alike, nor in time: else it would be a drum.
            tuned_hz = modes_hz * rng.uniform(0.94, 1.06, modes_hz.shape)
            phases = rng.uniform(0, 2 * np.pi, modes_hz.shape)
            rings = weights @ (np.sin(2 * np.pi * tuned_hz * t + phases) * np.exp(-t / decays_s))
            thump = _filtered(rng.standard_normal(len(t)) * np.exp(-t / 0.02), "lowpass", 700)
            knock = 0.2 * _normalised(rings) + 0.8 * _normalised(thump)
            _add(samples, rng.uniform(0.7, 1.0) * knock, start_s + 0.19 * i + rng.uniform(-0.03, 0.03))
    return _normalised(_reverberant(samples, rng, decay_s=0.1, wet=0.3))


def alarm_clock(duration_s: float, rng: np.random.Generator) -> Floats:
    """Four beeps a second of a digital alarm clock, with a pause after every four."""
    t = _times(duration_s)
    tone = sum(np.sin(2 * np.pi * 2048 * k * t) / k for k in (1, 3, 5, 7))
    beat = np.mod(t, 1.0)
    is_on = (beat < 0.5) & (np.mod(beat, 0.125) < 0.0625)
    envelope = _filtered(is_on.astype(np.float64), "lowpass", 400)
    return _normalised(_reverberant(tone * envelope, rng, decay_s=0.15, wet=0.1))


def siren(duration_s: float, rng: np.random.Generator) -> Floats:
    """A siren that wails up and down."""
    t = _times(duration_s)
    sweep = 0.5 - 0.5 * np.cos(2 * np.pi * t / 3.2)
    pitch_hz = 450 * (800 / 450) ** sweep
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    tone = _normalised(sum((np.sin(k * phase) / k for k in range(1, 6)), np.zeros_like(t)))
    street = _filtered(rng.standard_normal(len(t)), "lowpass", 800)
    return _normalised(_faded(_reverberant(tone, rng, decay_s=0.6, wet=0.35) + 0.05 * street, 0.1))


def car_horn(duration_s: float, rng: np.random.Generator) -> Floats:
    """Short blasts of a car's two-tone horn, in a street."""
    t = _times(duration_s)
    tone = np.zeros_like(t)
    for pitch_hz in (405.0, 508.0):
        # Without a little unrest in its pitch it would be an organ.
        unrest = np.cumsum(_filtered(rng.standard_normal(len(t)), "lowpass", 30)) * 40 / SAMPLE_RATE_HZ
        phase = 2 * np.pi * pitch_hz * t + unrest
        for k in range(1, 16):
            tone += np.sin(k * phase + rng.uniform(0, 2 * np.pi)) / k**0.7
    voiced = _normalised(_filtered(tone, "bandpass", (300, 5000)))
    is_on = np.mod(t, 0.9) < 0.35
    blasts = _reverberant(voiced * _filtered(is_on.astype(np.float64), "lowpass", 40), rng, decay_s=0.4, wet=0.3)
    street = _normalised(_filtered(rng.standard_normal(len(t)), "lowpass", 1200))
    return _normalised(_faded(blasts + 0.1 * street, 0.05))


def rain(duration_s: float, rng: np.random.Generator) -> Floats:
    """Steady rain: the hiss of far drops, and near ones, of which the larger ring lower and longer."""
    n_samples = round(duration_s * SAMPLE_RATE_HZ)
    n_drops = round(1000 * duration_s)  # of each size
    t = _times(0.03)
    near = np.zeros(n_samples)
    for size in range(6):
        drops = np.zeros(n_samples)
        drops[rng.integers(0, n_samples, n_drops)] = rng.lognormal(0.0, 1.0, n_drops)
        pitch_hz = 1500 * 2 ** (size / 2)
        ringing = rng.standard_normal(len(t)) * np.exp(-t / (0.002 / 2 ** (size / 3)))
        splash = _filtered(ringing, "bandpass", (0.6 * pitch_hz, min(1.8 * pitch_hz, 16_000)))
        near += np.asarray(signal.fftconvolve(drops, splash / np.linalg.norm(splash)))[:n_samples]
    far = _filtered(rng.standard_normal(n_samples), "bandpass", (400, 9000))
    return _normalised(_faded(far / far.std() + near / near.std(), 0.3))


def _times(duration_s: float) -> Floats:
    return np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ


def _silence(duration_s: float) -> Floats:
    return np.zeros(round(duration_s * SAMPLE_RATE_HZ))


def _add(samples: Floats, part: Floats, start_s: float) -> None:
    """Add a part in place, as far as it fits."""
    first = max(0, round(start_s * SAMPLE_RATE_HZ))
    n_samples = max(0, min(len(part), len(samples) - first))
    samples[first : first + n_samples] += part[:n_samples]


def _filtered(samples: Floats, kind: str, cutoff_hz: float | tuple[float, float]) -> Floats:
    sections = signal.butter(2, cutoff_hz, kind, fs=SAMPLE_RATE_HZ, output="sos")
    return np.asarray(signal.sosfilt(sections, samples))


def _reverberant(samples: Floats, rng: np.random.Generator, *, decay_s: float, wet: float) -> Floats:
    """In a room: convolved with noise that falls by 60 dB in about seven times decay_s."""
    t = _times(5 * decay_s)
    room = rng.standard_normal(len(t)) * np.exp(-t / decay_s)
    room = _filtered(room, "lowpass", 6000)
    room /= math.sqrt(float(np.sum(room**2)))
    return samples + wet * np.asarray(signal.fftconvolve(samples, room))[: len(samples)]


def _faded(samples: Floats, fade_s: float) -> Floats:
    """With a linear fade at both ends."""
    n_fade = round(fade_s * SAMPLE_RATE_HZ)
    ramp = np.minimum(1.0, np.arange(len(samples)) / n_fade)
    return samples * ramp * ramp[::-1]


def _normalised(samples: Floats) -> Floats:
    return samples / float(np.abs(samples).max())


# The clip


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedSound:
    """A sound of the clip.

    Attributes:
        label: As the sound model calls it.
        start_s: In the clip.
        end_s: In the clip.
        gain_db: Peak, dBFS, before the whole is brought to its loudness.
        pan: From -1, left, to 1, right.
        generator: Makes it.
    """

    label: str
    start_s: float
    end_s: float
    gain_db: float
    pan: float
    generator: Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedSpeech:
    """A part of the reading in the clip.

    Attributes:
        text: What is read.
        source: Where it lies in the reading.
        start_s: Where it begins in the clip.
    """

    text: str
    source: Region
    start_s: float

    @property
    def end_s(self) -> float:
        """Where it ends in the clip."""
        return self.start_s + self.source.duration_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is in the clip and when."""

    duration_s: float
    speech: tuple[PlacedSpeech, ...]
    sounds: tuple[PlacedSound, ...]

    @property
    def text(self) -> str:
        """All that is said."""
        return " ".join(part.text for part in self.speech)


TRUTH = Truth(
    duration_s=40.0,
    speech=(
        PlacedSpeech(
            text="It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of"
            " foolishness,",
            source=Region(start_s=1.1, end_s=8.1),
            start_s=5.0,
        ),
        PlacedSpeech(
            text="it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the"
            " season of Darkness,",
            source=Region(start_s=8.7, end_s=16.8),
            start_s=17.0,
        ),
    ),
    sounds=(
        PlacedSound(label="car_horn", start_s=0.5, end_s=4.5, gain_db=-9, pan=-0.5, generator=car_horn),
        PlacedSound(label="door_knock", start_s=12.5, end_s=15.6, gain_db=-6, pan=0.4, generator=door_knocks),
        PlacedSound(label="rain", start_s=22.5, end_s=30.5, gain_db=-22, pan=0.0, generator=rain),
        PlacedSound(label="clock_alarm", start_s=31.0, end_s=34.5, gain_db=-12, pan=-0.2, generator=alarm_clock),
        PlacedSound(label="siren", start_s=35.0, end_s=39.5, gain_db=-10, pan=0.2, generator=siren),
    ),
)
"""The clip, by its script."""

_SPEECH_GAIN_DB = 13.0
"""The reading was recorded at -36 dBFS on average."""
_MIX_GAIN_DB = -1.9
"""Brings the whole to -23 LUFS, as EBU R 128 wants it."""
_ROOM_TONE_DBFS = -72.0
"""Noise under all of it: digital silence would be heard as a cut."""


def mix() -> tuple[NDArray[np.float32], Truth]:
    """The clip, the same on every machine.

    Returns:
        float32 (n_samples, 2) at SAMPLE_RATE_HZ, and what is in it.

    Raises:
        SpeechMissing: The package that holds the reading is not installed.
    """
    rng = np.random.default_rng(SEED)
    n_samples = round(TRUTH.duration_s * SAMPLE_RATE_HZ)
    left_right = rng.standard_normal((2, n_samples)) * _ratio(_ROOM_TONE_DBFS)
    reading = _reading()
    for part in TRUTH.speech:
        first, last = (round(time_s * SAMPLE_RATE_HZ) for time_s in (part.source.start_s, part.source.end_s))
        spoken = _faded(reading[first:last], 0.02) * _ratio(_SPEECH_GAIN_DB)
        for channel in left_right:
            _add(channel, spoken, part.start_s)
    for i, sound in enumerate(TRUTH.sounds):
        # Each has its own random numbers, so that one may change without the others.
        samples = sound.generator(sound.end_s - sound.start_s, np.random.default_rng((SEED, i)))
        samples = samples * _ratio(sound.gain_db)
        angle = (1 + sound.pan) * math.pi / 4
        for channel, gain in zip(left_right, (math.cos(angle), math.sin(angle)), strict=True):
            _add(channel, samples * gain, sound.start_s)
    return np.ascontiguousarray(left_right.T * _ratio(_MIX_GAIN_DB), np.float32), TRUTH


def write(path: Path) -> Truth:
    """Write the clip as 48 kHz, 16 bit, stereo WAV, whole or not at all.

    Raises:
        SpeechMissing: The package that holds the reading is not installed.
        OSError: The disk refuses.
    """
    samples, truth = mix()
    pcm = np.round(np.clip(samples, -1.0, 1.0) * 32767).astype("<i2")
    with atomic_file(path) as file, wave.open(file, "wb") as wav:
        wav.setnchannels(2)
        wav.setsampwidth(2)
        wav.setframerate(SAMPLE_RATE_HZ)
        wav.writeframes(pcm.tobytes())
    return truth


def reading_path() -> Path:
    """The file of the reading. The package is not imported: it loads native audio libraries.

    Raises:
        SpeechMissing: The package is not installed.
    """
    try:
        return Path(str(distribution(_DISTRIBUTION).locate_file(_READING)))
    except PackageNotFoundError as e:
        raise SpeechMissing(
            f"the reading comes with {_DISTRIBUTION}; install soundstage with the extra `weights`"
        ) from e


def _reading() -> Floats:
    """The whole reading, float64 (n_samples,)."""
    try:
        with wave.open(str(reading_path())) as wav:
            assert (wav.getframerate(), wav.getnchannels(), wav.getsampwidth()) == (SAMPLE_RATE_HZ, 1, 2)
            return np.frombuffer(wav.readframes(wav.getnframes()), "<i2") / 32768
    except (OSError, wave.Error) as e:
        raise SpeechMissing(
            f"the reading comes with the package {_DISTRIBUTION}, which cannot be read ({e}); install soundstage with"
            " the extra `weights`"
        ) from e


def _ratio(level_db: float) -> float:
    return float(10 ** (level_db / 20))
