"""Folders of short synthetic clips to train on: tones, noise and sweeps, written when a test asks for them."""

from __future__ import annotations

import csv
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
LABELS = ("beep", "hiss", "sweep")


def sound(label: str, duration_s: float, seed: int) -> NDArray[np.float32]:
    """One of LABELS, different for each seed; anything else is noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(duration_s * RATE)) / RATE
    kinds = {
        "beep": np.sin(2 * np.pi * rng.uniform(450, 550) * t),
        "sweep": np.sin(2 * np.pi * (300 + rng.uniform(800, 1000) * t) * t),
    }
    samples = kinds.get(label, 0.5 * rng.standard_normal(len(t)))
    return np.asarray(rng.uniform(0.1, 0.4) * samples, np.float32)


def write_wav(path: Path, samples: NDArray[np.float32]) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes())


def write_table(folder: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "meta.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def write_folder(
    folder: Path, columns: Sequence[str], rows: Sequence[Sequence[str]], *, duration_s: float = 1.0
) -> Path:
    """A table whose first column is the file name, and a clip for each file, by what its row says of it."""
    write_table(folder, columns, rows)
    for seed, row in enumerate(rows):
        label = next((label for label in LABELS if label in row), "noise")
        write_wav(folder / row[0], sound(label, duration_s, seed))
    return folder


def tiny_clips(folder: Path, n_each: int = 8) -> Path:
    """Clips of 1 s, of each of LABELS, with the columns filename and label."""
    rows = [(f"{label}-{i}.wav", label) for label in LABELS for i in range(n_each)]
    return write_folder(folder, ("filename", "label"), rows)
