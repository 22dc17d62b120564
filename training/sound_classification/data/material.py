"""Everything that examples are mixed from, decoded once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from soundstage.types import SAMPLE_RATE
from training.data import BadFolder, read_clip, read_meta
from training.sound_classification.data.music import played
from training.sound_classification.data.voices import recorded, spoken
from training.sound_classification.model.yamnet import MUSIC_ROWS, N_INPUT, SPEECH_ROWS, Yamnet

FREE_LICENCE = "CC0 or CC-BY"
"""Value of the column `licence` that allows a trained model to be used for everything."""
TEACHER_HOP = round(0.48 * SAMPLE_RATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Decoded clips and what goes over, under and between them. All at 16 kHz.

    Attributes:
        clips: float16 (n_clips, n_window_samples).
        names: File name of each clip.
        folds: Fold of each clip.
        categories: Label of each clip.
        licences: Licence of each clip.
        teacher: float32 (n_clips, n_patches, 2), YAMNet's scores for speech and music, patch by patch.
        speech: float32 (n_samples,), for training.
        speech_test: The same, never trained on.
        music: float32 (n_samples,), for training.
        music_test: The same, never trained on.
    """

    clips: NDArray[np.float16]
    names: NDArray[np.str_]
    folds: NDArray[np.int64]
    categories: NDArray[np.str_]
    licences: NDArray[np.str_]
    teacher: NDArray[np.float32]
    speech: NDArray[np.float32]
    speech_test: NDArray[np.float32]
    music: NDArray[np.float32]
    music_test: NDArray[np.float32]


def fit(samples: NDArray[np.float32], n_samples: int) -> NDArray[np.float32]:
    """Cut or padded with zeros to a length."""
    return np.pad(samples[:n_samples], (0, max(0, n_samples - len(samples))))


def _teach(yamnet: Yamnet, clip: NDArray[np.float32]) -> NDArray[np.float32]:
    starts = range(0, len(clip) - N_INPUT + 1, TEACHER_HOP)
    scores = np.stack([yamnet.scores(clip[start : start + N_INPUT]) for start in starts])
    return np.stack([scores[:, SPEECH_ROWS].max(axis=1), scores[:, MUSIC_ROWS].max(axis=1)], axis=1)


def load(
    data: Path,
    speech: Path,
    yamnet: Path,
    cache: Path,
    *,
    n_window_samples: int,
    seconds: float = 1800.0,
    on_clip: Callable[[int, int], None] = lambda _done, _of: None,
) -> Material:
    """Decode, compose and let the teacher listen; or read all that back from the cache.

    Args:
        data: Folder of labelled clips, laid out as ESC-50: meta.csv with filename, fold, category and licence.
        speech: Folder of recorded speech: meta.csv with filename and transcript; a file of another name is taken
            as speech too.
        yamnet: TFLite file.
        cache: Folder; made where it does not exist.
        n_window_samples: Clips are cut or padded to it.
        seconds: How much speech is synthesised, and how much music.
        on_clip: Told how many clips are done, of how many.

    Raises:
        BadFolder: A folder cannot be used.
    """
    rows = read_meta(data, ["fold", "category", "licence"])
    key = hashlib.sha256(f"{data.resolve()} {speech.resolve()} {n_window_samples} {seconds}".encode())
    key.update((data / "meta.csv").read_bytes())
    key.update((speech / "meta.csv").read_bytes() if (speech / "meta.csv").is_file() else b"")
    kept = cache / f"material-{key.hexdigest()[:16]}.npz"
    if kept.is_file():
        with np.load(kept) as arrays:
            return Material(**{field.name: arrays[field.name] for field in fields(Material)})

    try:
        folds = np.array([int(row.values["fold"]) for row in rows])
    except ValueError as e:
        raise BadFolder(f"{data / 'meta.csv'}: column fold must hold whole numbers, {e}") from e
    teacher = Yamnet(yamnet)
    rng = np.random.default_rng(0)
    clips, taught = [], []
    for i, row in enumerate(rows):
        clip = fit(read_clip(row.path), n_window_samples)
        clips.append(clip.astype(np.float16))
        taught.append(_teach(teacher, clip))
        on_clip(i + 1, len(rows))
    speech_train, speech_test, sentences = recorded(speech, held_out=0.2)
    n_made = round(seconds * SAMPLE_RATE)
    music = played(round(n_made * 1.2), rng)
    material = Material(
        clips=np.stack(clips),
        names=np.array([row.values["filename"] for row in rows]),
        folds=folds,
        categories=np.array([row.values["category"] for row in rows]),
        licences=np.array([row.values["licence"] for row in rows]),
        teacher=np.stack(taught).astype(np.float32),
        speech=np.concatenate([speech_train, spoken(sentences, n_made, rng)]),
        speech_test=speech_test,
        music=music[:n_made],
        music_test=music[n_made:],
    )
    cache.mkdir(parents=True, exist_ok=True)
    scratch = kept.with_suffix(".part.npz")
    np.savez(scratch, **{field.name: getattr(material, field.name) for field in fields(Material)})
    scratch.rename(kept)
    return material
