"""How well a model hears labelled clips: raw audio through the listener that serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from soundstage.sound.listener import SoundListener
from soundstage.sound.model import MUSIC, SILENCE, SPEECH
from soundstage.types import SAMPLE_RATE, Waveform
from training.data import read_clip
from training.sound_classification.data.table import Clip

Samples = NDArray[np.float32]

QUIET_DB = -20.0
LATE_S = 1.0
SHORT_S = 2.0
SHORT_HOP_S = 0.25
LOUDEST_S = 0.25
"""A short window counts if it holds this much around the loudest moment."""
_N_TOGETHER = 16
_FOUND = 0.5


def scores_of(listener: SoundListener, pieces: Sequence[Samples]) -> Samples:
    """Tags of pieces at 16 kHz: float32 (n_pieces, n_labels)."""
    tags = []
    for start in range(0, len(pieces), _N_TOGETHER):
        together = [Waveform(samples=samples) for samples in pieces[start : start + _N_TOGETHER]]
        tags += [heard.tags for heard in listener.listen(together)]
    return np.array(tags, np.float32).reshape(len(pieces), len(listener.params.labels))


def quiet(samples: Samples) -> Samples:
    """20 dB quieter."""
    return np.asarray(samples * 10 ** (QUIET_DB / 20), np.float32)


def late(samples: Samples) -> Samples:
    """As long as before, with what happens in it 1 s later."""
    n = min(len(samples), round(LATE_S * SAMPLE_RATE))
    return np.concatenate([np.zeros(n, np.float32), samples])[: len(samples)]


def short_windows(samples: Samples) -> list[Samples]:
    """All windows of 2 s, every 0.25 s, that hold the loudest quarter of a second; a shorter clip whole."""
    n, hop, loudest = (round(s * SAMPLE_RATE) for s in (SHORT_S, SHORT_HOP_S, LOUDEST_S))
    if len(samples) <= n:
        return [samples]
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    peak = int(np.argmax(energy[loudest:] - energy[:-loudest]))
    starts = range(0, len(samples) - n + 1, hop)
    found = [samples[s : s + n] for s in starts if s <= peak and peak + loudest <= s + n]
    start = int(np.clip(peak + loudest // 2 - n // 2, 0, len(samples) - n))
    return found or [samples[start : start + n]]


def recognition(
    listener: SoundListener, clips: Sequence[Clip], *, on_clip: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """How often the best-scored of the model's sounds is one of the clip's labels.

    Args:
        listener: The model.
        clips: Not trained on.
        on_clip: Called after each.

    Returns:
        "top1" of the clips as they are, "top1_quiet" 20 dB quieter, "top1_late" with events 1 s later, "top1_2s" for
        windows of 2 s that hold the loudest moment; and where clips have several labels, "mean_average_precision".
        Speech, music and silence compete only where they are labels of the clips.
    """
    labels = listener.params.labels
    truths = [clip.labels for clip in clips]
    competing = np.isin(labels, (*listener.params.sounds, *{label for own in truths for label in own}))
    figures: dict[str, list[float]] = {name: [] for name in ("top1", "top1_quiet", "top1_late", "top1_2s")}
    scores = []
    for part in _parts(clips):
        samples = [read_clip(clip.path) for clip in part]
        groups: dict[str, list[list[Samples]]] = {
            "top1": [[own] for own in samples],
            "top1_quiet": [[quiet(own)] for own in samples],
            "top1_late": [[late(own)] for own in samples],
            "top1_2s": [short_windows(own) for own in samples],
        }
        for name, pieces in groups.items():
            heard = scores_of(listener, [piece for own in pieces for piece in own])
            if name == "top1":
                scores.append(heard)
            best = np.array(labels)[np.where(competing, heard, -1.0).argmax(axis=1)]
            ends = np.cumsum([len(own) for own in pieces])
            for clip, own in zip(part, np.split(best, ends[:-1]), strict=True):
                figures[name].append(float(np.isin(own, clip.labels).mean()))
        for _ in part:
            on_clip()
    result = {name: float(np.mean(values)) for name, values in figures.items()}
    if any(len(own) > 1 for own in truths):
        result["mean_average_precision"] = _mean_average_precision(np.concatenate(scores), labels, truths)
    return result


def _parts(clips: Sequence[Clip]) -> Iterator[Sequence[Clip]]:
    for start in range(0, len(clips), _N_TOGETHER):
        yield clips[start : start + _N_TOGETHER]


def _mean_average_precision(scores: Samples, labels: Sequence[str], truths: Sequence[Sequence[str]]) -> float:
    """Mean over the labels of the precision at the rank of each of their clips."""
    precisions = []
    for column, label in enumerate(labels):
        is_true = np.array([label in own for own in truths])
        if is_true.any():
            ranked = is_true[np.argsort(-scores[:, column], kind="stable")]
            precisions.append(float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked].mean()))
    return float(np.mean(precisions))


def behaviour(listener: SoundListener, speech: Samples, music: Samples) -> dict[str, float]:
    """What is heard in speech, music and silence that was not trained on.

    Args:
        listener: The model.
        speech: float32 (n_samples,) at 16 kHz, cut into windows; may be empty.
        music: The same.

    Returns:
        For each, the share of windows in which it scores at least 0.5, and for speech and music the share in which
        any sound does, wrongly.
    """
    params = listener.params
    n, n_sounds = params.n_window_samples, len(params.sounds)
    figures = {}
    for label, source in ((SPEECH, speech), (MUSIC, music)):
        if len(source) >= n:
            scores = scores_of(listener, list(source[: len(source) // n * n].reshape(-1, n)))
            figures[f"{label}_found"] = float((scores[:, params.labels.index(label)] >= _FOUND).mean())
            figures[f"{label}_with_false_sound"] = float((scores[:, :n_sounds] >= _FOUND).any(axis=1).mean())
    noise = np.random.default_rng(1).standard_normal((8, n)).astype(np.float32)
    gains = 10.0 ** (np.array([-np.inf, -100, -96, -90, -86, -82, -78, -74], np.float32) / 20)
    scores = scores_of(listener, list(noise * gains[:, np.newaxis]))
    figures[f"{SILENCE}_found"] = float((scores[:, params.labels.index(SILENCE)] >= _FOUND).mean())
    return figures


def over_seeds(figures: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Means of figures that several seeds gave; where there are several, "_std": their standard deviations."""
    found: dict[str, float] = {}
    for name, by_seed in figures.items():
        found[name] = round(float(np.mean(by_seed)), 4)
        if len(by_seed) > 1:
            found[f"{name}_std"] = round(float(np.std(by_seed, ddof=1)), 4)
    return found
