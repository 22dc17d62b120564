"""Soundscapes whose events are known: labelled clips and speech, laid over a background by chance."""

from __future__ import annotations

import wave
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from soundstage.sound.model import SPEECH
from soundstage.types import SAMPLE_RATE, SoundEvent
from training.data import BadFolder, Row, read_clip, read_meta

Samples = NDArray[np.float32]

DURATION_S = 10.0
BACKGROUNDS = ("engine", "rain", "sea_waves", "washing_machine", "wind")
"""Sounds that may last through a whole soundscape; noise of three colours beside them."""
NOISE = "noise"
NOISE_SHARE = 0.4
"""Of all soundscapes have noise as their background, which no label stands for."""
BACKGROUND_DBFS = (-55.0, -35.0)
MAX_EVENTS = 4
MAX_POLYPHONY = 2
"""Foreground events at once."""
SNR_DB = (0.0, 25.0)
"""Level of an event's active part above the background."""
EVENT_S = (0.3, 4.0)
SPEECH_SHARE = 0.15
REPEAT_SHARE = 0.25
"""Of all events sound once more after a pause, so that joining everything does not pay."""
REPEAT_GAP_S = (0.5, 2.5)

LEVEL_HOP = 80
"""Samples from level to level, 5 ms."""
LEVEL_WINDOW = 4
"""Hops that one level covers."""
ACTIVE_DB = -20.0
"""Of the loudest moment of a clip: above it the clip is active."""
FLOOR_DBFS = -60.0
CLEAR_DB = -10.0
"""A stretch whose loudest moment stays below it, of the clip's, may be handling noise and is left out."""
BRIDGE_S = 0.25
"""A shorter lull inside a sound belongs to it."""
FADE_S = 0.01
LOOP_FADE_S = 0.25
STEADY_SHARE = 0.9
"""A background must be active for so much of its clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A clip and where it sounds.

    Attributes:
        label: What it is.
        samples: float32 (n_samples,) at 16 kHz. Read-only.
        stretches: First sample, and the one after the last, of each stretch in which it is active.
    """

    label: str
    samples: Samples
    stretches: tuple[tuple[int, int], ...]

    @property
    def active_share(self) -> float:
        """How much of the clip is active."""
        return sum(end - start for start, end in self.stretches) / max(1, len(self.samples))


@dataclass(frozen=True, slots=True, kw_only=True)
class Soundscape:
    """A mix and what is in it.

    Attributes:
        samples: float32 (n_samples,) at 16 kHz, within [-1, 1]. Read-only.
        background: Label of what lasts throughout, or "noise".
        events: The foreground, in order of their start; score 1.
        seed: It was drawn from.
    """

    samples: Samples
    background: str
    events: tuple[SoundEvent, ...]
    seed: int


def active_stretches(samples: Samples) -> tuple[tuple[int, int], ...]:
    """Where a clip sounds, by its energy: above -20 dB of its loudest 20 ms, lulls under 0.25 s bridged.

    A stretch that nowhere comes within 10 dB of the loudest 20 ms does not count.

    Args:
        samples: float32 (n_samples,) at 16 kHz.

    Returns:
        First sample, and the one after the last, of each stretch; none where all lies below -60 dBFS.
    """
    n_hops = len(samples) // LEVEL_HOP
    power = np.square(samples[: n_hops * LEVEL_HOP].astype(np.float64)).reshape(n_hops, LEVEL_HOP).mean(axis=1)
    power = np.convolve(power, np.full(LEVEL_WINDOW, 1 / LEVEL_WINDOW), "same") if n_hops >= LEVEL_WINDOW else power
    loudest = power.max(initial=0.0)
    threshold = max(loudest * 10 ** (ACTIVE_DB / 10), 10 ** (FLOOR_DBFS / 10))
    stretches: list[tuple[int, int]] = []
    for hop in np.flatnonzero(power >= threshold).tolist():
        start, end = hop * LEVEL_HOP, (hop + 1) * LEVEL_HOP
        if stretches and start - stretches[-1][1] <= BRIDGE_S * SAMPLE_RATE:
            start = stretches.pop()[0]
        stretches.append((start, end))
    clear = loudest * 10 ** (CLEAR_DB / 10)
    return tuple(
        (start, end) for start, end in stretches if power[start // LEVEL_HOP : end // LEVEL_HOP].max() >= clear
    )


def recording_of(row: Row) -> str:
    """What the clips of one recording share: ESC-50 names them fold-recording-take."""
    return "-".join(row.values["filename"].split("-")[:2])


def load_sources(
    data: Path, speech: Path, *, folds: Collection[int], part: int = 0, n_parts: int = 1, speech_share: float = 0.2
) -> tuple[Source, ...]:
    """Decode the clips that soundscapes are made of.

    Args:
        data: Folder of labelled clips, laid out as ESC-50.
        speech: Folder of recorded speech.
        folds: Clips of these folds.
        part: Which part of them, counted from 0: the recordings of each label are dealt out in turn.
        n_parts: Into how many parts; no recording is in two of them.
        speech_share: Of the speech, only the last files; the sound model is trained on the first four fifths.

    Raises:
        BadFolder: A folder cannot be used, or holds nothing of these folds.
    """
    rows = [row for row in read_meta(data, ["fold", "category"]) if int(row.values["fold"]) in folds]
    if not rows:
        raise BadFolder(f"{data} holds no clip of folds {sorted(folds)}")
    spoken = read_meta(speech, [])
    spoken = spoken[len(spoken) - max(n_parts, round(len(spoken) * speech_share)) :][part::n_parts]
    recordings: dict[str, list[str]] = {}
    for row in rows:
        own = recordings.setdefault(row.values["category"], [])
        if recording_of(row) not in own:
            own.append(recording_of(row))
    chosen = [
        (row.values["category"], row.path)
        for row in rows
        if recordings[row.values["category"]].index(recording_of(row)) % n_parts == part
    ]
    sources = []
    for label, path in [*chosen, *((SPEECH, row.path) for row in spoken)]:
        samples = read_clip(path)
        samples.setflags(write=False)
        stretches = active_stretches(samples)
        if stretches:
            sources.append(Source(label=label, samples=samples, stretches=stretches))
    return tuple(sources)


class Composer:
    """Draws soundscapes; the same seed gives the same one.

    Args:
        sources: Clips of every kind, of which those that last make backgrounds too.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._by_label: dict[str, list[Source]] = {}
        for source in sources:
            self._by_label.setdefault(source.label, []).append(source)
        self._sounds = sorted(label for label in self._by_label if label != SPEECH)
        self._steady: Mapping[str, list[Source]] = {
            label: steady
            for label in BACKGROUNDS
            if (steady := [own for own in self._by_label.get(label, ()) if own.active_share >= STEADY_SHARE])
        }

    def compose(self, seed: int) -> Soundscape:
        """A background of 10 s and one to four events over it, each 0 to 25 dB louder."""
        rng = np.random.default_rng(seed)
        n_samples = round(DURATION_S * SAMPLE_RATE)
        label, background = self._background(n_samples, rng)
        mixed = background * np.float32(10 ** (rng.uniform(*BACKGROUND_DBFS) / 20) / _rms(background))
        background_rms = _rms(mixed)
        placed: list[tuple[str, int, int]] = []
        n_events = int(rng.integers(1, MAX_EVENTS + 1))
        while len(placed) < n_events:
            own_label, own = self._foreground(label, rng)
            own = own * np.float32(background_rms * 10 ** (rng.uniform(*SNR_DB) / 20) / _rms(own))
            start = int(rng.integers(0, n_samples - len(own)))
            while _fits(placed, own_label, start, start + len(own)):
                mixed[start : start + len(own)] += own
                placed.append((own_label, start, start + len(own)))
                start += len(own) + round(rng.uniform(*REPEAT_GAP_S) * SAMPLE_RATE)
                if len(placed) == n_events or start + len(own) > n_samples or rng.random() >= REPEAT_SHARE:
                    break
        mixed /= np.float32(max(1.0, np.abs(mixed).max()))
        mixed.setflags(write=False)
        events = [
            SoundEvent(label=name, score=1.0, start_s=start / SAMPLE_RATE, end_s=end / SAMPLE_RATE)
            for name, start, end in sorted(placed, key=lambda event: event[1:])
        ]
        return Soundscape(samples=mixed, background=label, events=tuple(events), seed=seed)

    def _background(self, n_samples: int, rng: np.random.Generator) -> tuple[str, Samples]:
        if not self._steady or rng.random() < NOISE_SHARE:
            spectrum = np.fft.rfft(rng.standard_normal(n_samples))
            tilt = float(rng.choice((0.0, 0.5, 1.0)))  # white, pink, brown
            shape = np.arange(len(spectrum), dtype=np.float64).clip(n_samples * 30 / SAMPLE_RATE) ** -tilt
            return NOISE, np.fft.irfft(spectrum * shape, n_samples).astype(np.float32)
        label = str(rng.choice(sorted(self._steady)))
        clip = self._steady[label][int(rng.integers(len(self._steady[label])))]
        first, last = clip.stretches[0][0], clip.stretches[-1][1]
        return label, _looped(clip.samples[first:last], n_samples)

    def _foreground(self, background: str, rng: np.random.Generator) -> tuple[str, Samples]:
        """One active stretch of a clip that is not of the background's kind, cut to what is heard as one event."""
        if SPEECH in self._by_label and (rng.random() < SPEECH_SHARE or not self._sounds):
            label = SPEECH
        else:
            label = str(rng.choice([name for name in self._sounds if name != background]))
        clip = self._by_label[label][int(rng.integers(len(self._by_label[label])))]
        start, end = clip.stretches[int(rng.integers(len(clip.stretches)))]
        shortest, longest = (round(seconds * SAMPLE_RATE) for seconds in EVENT_S)
        if end - start > longest:
            length = int(rng.integers(SAMPLE_RATE, longest + 1))
            start += int(rng.integers(0, end - start - length + 1))
            end = start + length
        # what is shorter rings out as it does in its clip
        own = clip.samples[start : max(end, start + shortest)].copy()
        own = np.pad(own, (0, max(0, shortest - len(own))))
        n_fade = round(FADE_S * SAMPLE_RATE)
        ramp = np.linspace(0, 1, n_fade, dtype=np.float32)
        own[:n_fade] *= ramp
        own[-n_fade:] *= ramp[::-1]
        return label, own


def _rms(samples: Samples) -> float:
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean()))


def _looped(samples: Samples, n_samples: int) -> Samples:
    """The samples again and again, each time faded into the next."""
    n_fade = min(round(LOOP_FADE_S * SAMPLE_RATE), len(samples) // 2)
    turn = np.linspace(0, np.pi / 2, n_fade, dtype=np.float32)
    loop = samples[: len(samples) - n_fade].copy()
    loop[:n_fade] = loop[:n_fade] * np.sin(turn) + samples[len(samples) - n_fade :] * np.cos(turn)
    return np.resize(loop, n_samples)


def _fits(placed: Sequence[tuple[str, int, int]], label: str, start: int, end: int) -> bool:
    """Whether an event may sound there: clearly apart from its like, and never three at once."""
    apart = round(REPEAT_GAP_S[0] * SAMPLE_RATE)
    if any(own == label and start < last + apart and first < end + apart for own, first, last in placed):
        return False
    overlapping = [(first, last) for _, first, last in placed if start < last and first < end]
    edges = [start, *(first for first, _ in overlapping if first >= start)]
    return all(sum(first <= edge < last for first, last in overlapping) < MAX_POLYPHONY for edge in edges)


def write(soundscape: Soundscape, folder: Path) -> Path:
    """Write FOLDER/SEED.wav, 16 bits, and SEED.txt beside it, a label track as Audacity imports it.

    Returns:
        The path of the WAV.

    Raises:
        OSError: The disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{soundscape.seed:06d}.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((soundscape.samples * 32767).round().astype("<i2").tobytes())
    lines = [f"{event.start_s:.4f}\t{event.end_s:.4f}\t{event.label}\n" for event in soundscape.events]
    path.with_suffix(".txt").write_text("".join(lines), encoding="utf-8")
    return path
