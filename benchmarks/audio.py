"""Clips from which programmes are spliced."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from soundstage.audio.resample import decode_mono
from soundstage.params import Limits
from soundstage.types import SAMPLE_RATE

Samples = NDArray[np.float32]


def rows(folder: Path) -> list[dict[str, str]]:
    """Of the table of a folder of clips, meta.csv."""
    with (folder / "meta.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def clip(path: Path) -> Samples:
    """A recording at 16 kHz."""
    return decode_mono(path, Limits()).samples


def silence(duration_s: float) -> Samples:
    """Digital."""
    return np.zeros(round(duration_s * SAMPLE_RATE), np.float32)


def level(level_db: float) -> float:
    """Root mean square of a level."""
    return float(10 ** (level_db / 20))


def leveled(samples: Samples, level_db: float) -> Samples:
    """The samples at another level."""
    rms = float(np.sqrt(np.mean(np.square(samples), dtype=np.float64)))
    return samples * np.float32(level(level_db) / max(rms, 1e-6))
