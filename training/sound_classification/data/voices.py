"""Speech: recordings of a folder, and sentences spoken by espeak-ng in many voices."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from soundstage.types import SAMPLE_RATE
from training.data import BadFolder, read_clip, read_meta

_LANGUAGES = (
    "en-us",
    "en-gb",
    "en-gb-scotland",
    "de",
    "fr-fr",
    "es",
    "it",
    "nl",
    "pl",
    "ru",
    "pt-br",
    "sv",
    "tr",
    "hi",
)
_VARIANTS = ("m1", "m2", "m3", "m5", "m7", "f1", "f2", "f3", "f4", "f5", "croak", "whisper", "whisperf", "klatt2")

SENTENCES = (
    "The night train to the coast leaves from platform nine in twenty minutes.",
    "Could you hand me the other microphone, please? This one hums.",
    "We walked along the river until the rain had stopped.",
    "Nobody expected the orchestra to begin without its conductor.",
    "First chop the onions, then let them fry slowly in plenty of butter.",
    "In nineteen eighty four the bridge was closed for the whole summer.",
    "Quiet on set! Roll sound, roll camera, and whenever you are ready.",
    "She laughed, put down the letter, and asked what it could possibly mean.",
    "Temperatures will fall below zero over most of the country tonight.",
    "I never said that he had taken the key; I said that it was gone.",
)
"""What is said where there are no transcripts."""


def spoken(sentences: list[str], n_samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Sentences spoken by espeak-ng, each in another language's sounds, voice, pitch and rate.

    Args:
        sentences: What to say.
        n_samples: Stop once so much is spoken.
        rng: Chooses.

    Returns:
        float32 (n_samples,) at 16 kHz; empty where espeak-ng is not installed.
    """
    program = shutil.which("espeak-ng")
    if program is None or not n_samples:
        return np.zeros(0, np.float32)
    pieces: list[NDArray[np.float32]] = []
    while sum(map(len, pieces)) < n_samples:
        voice = f"{rng.choice(_LANGUAGES)}+{rng.choice(_VARIANTS)}"
        command = [program, "--stdout", "-v", voice, "-s", str(rng.integers(120, 220)), "-p", str(rng.integers(20, 80))]
        answer = subprocess.run([*command, str(rng.choice(sentences))], check=True, capture_output=True)
        # the length in the header of a piped file is not true
        with wave.open(io.BytesIO(answer.stdout)) as file:
            rate = file.getframerate()
        samples = np.frombuffer(answer.stdout[44 : len(answer.stdout) // 2 * 2], "<i2").astype(np.float32) / 32768
        pieces.append(np.asarray(soxr.resample(samples, rate, SAMPLE_RATE), np.float32))
    return np.concatenate(pieces)[:n_samples]


def recorded(folder: Path, held_out: float) -> tuple[NDArray[np.float32], NDArray[np.float32], list[str]]:
    """The recordings of a folder, end to end.

    Args:
        folder: Its meta.csv has the columns filename and transcript.
        held_out: Share of the files, the last ones, that is not for training.

    Returns:
        float32 (n_samples,) at 16 kHz for training, the same for testing, and the transcripts of the former.

    Raises:
        BadFolder: As in read_meta and read_clip; or nothing would be left for training.
    """
    rows = read_meta(folder, ["transcript"])
    n_train = round(len(rows) * (1 - held_out))
    if not n_train:
        raise BadFolder(f"{folder} holds too few recordings to keep some for testing")
    clips = [read_clip(row.path) for row in rows]
    train, test = clips[:n_train], clips[n_train:] or [np.zeros(0, np.float32)]
    return np.concatenate(train), np.concatenate(test), [row.values["transcript"] for row in rows[:n_train]]
