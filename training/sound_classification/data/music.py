"""Music: pieces that this module composes by chance, played by fluidsynth with a General MIDI sound font."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data import read_clip

SOUND_FONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
"""Debian's fluid-soundfont-gm: Fluid R3 by Frank Wen, MIT licence."""

_TICKS = 480
"""To a quarter note."""
_DRUM_CHANNEL = 9
_PROGRESSIONS = ((0, 4, 5, 3), (0, 5, 3, 4), (5, 3, 0, 4), (0, 3, 4, 4), (1, 4, 0, 0), (0, 0, 3, 4), (0, 2, 3, 4))
_MAJOR, _MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
_LEADS = (
    0,
    4,
    6,
    11,
    12,
    16,
    19,
    21,
    22,
    24,
    25,
    26,
    27,
    29,
    30,
    40,
    42,
    46,
    52,
    56,
    57,
    60,
    65,
    66,
    68,
    71,
    73,
    80,
    81,
)
_CHORDS = (0, 1, 4, 5, 16, 18, 24, 25, 27, 29, 44, 48, 49, 50, 52, 61, 88, 89, 90, 91)
_BASSES = (32, 33, 34, 35, 36, 38, 39, 43, 58)


def _variable_length(value: int) -> bytes:
    data = [value & 0x7F]
    while value := value >> 7:
        data.append(value & 0x7F | 0x80)
    return bytes(reversed(data))


class _Song:
    """Notes by time; written as a MIDI file of one track."""

    def __init__(self, tempo_bpm: float) -> None:
        microseconds = round(60e6 / tempo_bpm)
        self._events = [(0, b"\xff\x51\x03" + microseconds.to_bytes(3, "big"))]

    def program(self, channel: int, program: int) -> None:
        self._events.append((0, bytes([0xC0 | channel, program])))

    def note(self, channel: int, beat: float, beats: float, pitch: int, velocity: int) -> None:
        pitch, velocity = int(np.clip(pitch, 0, 127)), int(np.clip(velocity, 1, 127))
        self._events.append((round(beat * _TICKS), bytes([0x90 | channel, pitch, velocity])))
        self._events.append((round((beat + beats) * _TICKS) - 1, bytes([0x80 | channel, pitch, 0])))

    def midi(self) -> bytes:
        """The file. Source: Standard MIDI Files 1.0, format 0."""
        track, now = b"", 0
        for tick, message in sorted(self._events):
            track += _variable_length(max(0, tick - now)) + message
            now = max(now, tick)
        track += b"\x00\xff\x2f\x00"
        return b"MThd" + struct.pack(">IHHH", 6, 0, 1, _TICKS) + b"MTrk" + struct.pack(">I", len(track)) + track


@dataclass(frozen=True, slots=True, kw_only=True)
class _Harmony:
    """Key and scale; steps of the scale become pitches."""

    key: int
    scale: tuple[int, ...]

    def pitch(self, step: int) -> int:
        return self.key + 12 * (step // 7) + self.scale[step % 7]


_Chord = tuple[int, ...]


def _lead(song: _Song, harmony: _Harmony, chords: list[_Chord], rng: np.random.Generator) -> None:
    rhythm = float(rng.choice((0.5, 0.5, 1.0, 0.25, 2.0)))
    step, beat = int(rng.integers(0, 7)), 0.0
    while beat < len(chords) * 4:
        length = rhythm * int(rng.choice((1, 1, 2)))
        step = int(np.clip(step + rng.integers(-2, 3), -2, 12))
        if rng.random() < 0.88:
            song.note(0, beat, length, harmony.pitch(step) + 12, int(rng.integers(70, 110)))
        beat += length


def _pads(song: _Song, harmony: _Harmony, chords: list[_Chord], rng: np.random.Generator) -> None:
    for bar, chord in enumerate(chords):
        for beat in (0, 2) if rng.random() < 0.5 else (0,):
            for step in chord:
                beats = 2.0 if rng.random() < 0.3 else 3.9 - beat
                song.note(1, bar * 4 + beat, beats, harmony.pitch(step), int(rng.integers(55, 85)))


def _arpeggio(song: _Song, harmony: _Harmony, chords: list[_Chord], rng: np.random.Generator) -> None:
    for bar, chord in enumerate(chords):
        for eighth in range(8):
            pitch = harmony.pitch(chord[eighth % 3]) + 12
            song.note(2, bar * 4 + eighth / 2, 0.5, pitch, int(rng.integers(50, 80)))


def _bass(song: _Song, harmony: _Harmony, chords: list[_Chord], rng: np.random.Generator) -> None:
    for bar, chord in enumerate(chords):
        for eighth in range(0, 8, int(rng.choice((1, 2, 4)))):
            song.note(3, bar * 4 + eighth / 2, 0.5, harmony.pitch(chord[0]) - 24, int(rng.integers(75, 105)))


def _drums(song: _Song, _harmony: _Harmony, chords: list[_Chord], rng: np.random.Generator) -> None:
    for eighth in range(8 * len(chords)):
        beat = eighth / 2
        if eighth % 4 == 0 or rng.random() < 0.12:
            song.note(_DRUM_CHANNEL, beat, 0.25, 36, 105)
        if eighth % 4 == 2:
            song.note(_DRUM_CHANNEL, beat, 0.25, int(rng.choice((38, 40, 39))), 100)
        if rng.random() < 0.85:
            song.note(_DRUM_CHANNEL, beat, 0.25, int(rng.choice((42, 42, 46, 51))), int(rng.integers(50, 90)))


_PARTS = ((_lead, 0.7), (_pads, 0.65), (_arpeggio, 0.3), (_bass, 0.6), (_drums, 0.55))
"""How often each plays."""


def compose(rng: np.random.Generator, *, tempo_bpm: float, n_bars: int) -> bytes:
    """A piece of four beats to the bar: any of melody, chords, arpeggio, bass line and drums.

    Args:
        rng: Chooses key, scale, progression, instruments, parts and notes.
        tempo_bpm: Beats a minute.
        n_bars: Length.

    Returns:
        A MIDI file.
    """
    song = _Song(tempo_bpm)
    harmony = _Harmony(key=int(rng.integers(48, 60)), scale=_MAJOR if rng.random() < 0.6 else _MINOR)
    roots = _PROGRESSIONS[int(rng.integers(len(_PROGRESSIONS)))]
    chords: list[_Chord] = []
    for bar in range(n_bars):
        root = roots[bar % len(roots)]
        chords.append((root, root + 2, root + 4, *((root + 6,) if rng.random() < 0.2 else ())))
    for channel, instruments in enumerate((_LEADS, _CHORDS, _LEADS, _BASSES)):
        song.program(channel, int(rng.choice(instruments)))
    for part in [part for part, share in _PARTS if rng.random() < share] or [_lead]:
        part(song, harmony, chords, rng)
    return song.midi()


def played(n_samples: int, rng: np.random.Generator, sound_font: Path = SOUND_FONT) -> NDArray[np.float32]:
    """Pieces of about 20 s each, end to end.

    Args:
        n_samples: How much, at 16 kHz.
        rng: Composes.
        sound_font: SoundFont 2 file with the General MIDI instruments.

    Returns:
        float32 (n_samples,); empty where fluidsynth or the sound font is not installed.
    """
    program = shutil.which("fluidsynth")
    if program is None or not sound_font.is_file() or not n_samples:
        return np.zeros(0, np.float32)
    pieces: list[NDArray[np.float32]] = []
    with tempfile.TemporaryDirectory() as scratch:
        score, sound = Path(scratch) / "piece.mid", Path(scratch) / "piece.wav"
        while sum(map(len, pieces)) < n_samples:
            tempo_bpm = float(rng.uniform(60, 170))
            score.write_bytes(compose(rng, tempo_bpm=tempo_bpm, n_bars=max(2, round(20 / (240 / tempo_bpm)))))
            command = [program, "-ni", "-q", "-g", "0.6", "-r", "32000", "-F", str(sound), str(sound_font), str(score)]
            subprocess.run(command, check=True, capture_output=True)
            pieces.append(read_clip(sound))
    return np.concatenate(pieces)[:n_samples]
