"""Where the level rises and falls: the edges of sounds, finer than the steps of the model.

A score says within a step or two when a sound begins. The level says it to the hundredth of a second, but not what
begins: so a start is looked for where the level rises most, near the step whose score rose.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from soundstage.params import FeatureParams
from soundstage.sound.model import STEP_FRAMES, SoundParams
from soundstage.types import FrameScores, Waveform

N_STEPS_BACK = 2
"""The edge of a step is looked for in the step and in so many before it: scores rise and fall up to two steps late.

Measured with event F1 on soundscapes: 0.41 without edges, 0.47 with one step back, 0.49 with two and with three. Over
boxes of 0.08 s instead of a step it is 0.45; flux over bands is no better than the level.
"""
MIN_EDGE_DB = 1.0
"""Where the level changes by less, no sound begins or ends that the level could tell of."""


def scores_with_edges(
    waveform: Waveform,
    scores: NDArray[np.float32],
    tags: NDArray[np.float32],
    level: NDArray[np.float32],
    params: SoundParams,
) -> FrameScores:
    """What a model says of each step of a waveform, with the edges of its level beside it.

    Args:
        waveform: At the rate of the model.
        scores: float32 (n_steps, n_labels), in [0, 1].
        tags: float32 (n_labels,), in [0, 1], of the whole waveform.
        level: float32 (n_frames,), mean mel magnitude of each spectrogram frame.
        params: Of the model.
    """
    rises_s, falls_s = edges(level, len(scores), params.features)
    return FrameScores(
        scores=scores,
        labels=params.labels,
        start_s=waveform.start_s + params.step_s / 2,
        hop_s=params.step_s,
        window_s=params.step_s,
        tags=tags,
        rises_s=waveform.start_s + rises_s,
        falls_s=waveform.start_s + falls_s,
    )


def edges(level: NDArray[np.float32], n_steps: int, params: FeatureParams) -> tuple[NDArray[np.float64], ...]:
    """When the level rises and when it falls most sharply near each step.

    How sharply is told by the mean level in decibels of the step that follows a frame, less that of the step before.
    What is outside of the audio is as loud as its first and last frame.

    Args:
        level: float32 (n_frames,), mean mel magnitude of each spectrogram frame.
        n_steps: Of the model.
        params: What the spectrogram was made with.

    Returns:
        Rises and falls, float64 (n_steps,), in seconds from the start of the audio; not a number where the level
        hardly changes.
    """
    level_db = 20 * np.log10(level.astype(np.float64) + params.log_offset)
    if not len(level_db):
        return np.full(n_steps, np.nan), np.full(n_steps, np.nan)
    sums = np.concatenate([[0.0], np.pad(level_db, STEP_FRAMES, mode="edge").cumsum()])
    change_db = (sums[2 * STEP_FRAMES :] - 2 * sums[STEP_FRAMES:-STEP_FRAMES] + sums[: -2 * STEP_FRAMES]) / STEP_FRAMES
    n_back = N_STEPS_BACK * STEP_FRAMES
    near_db = np.zeros(n_back + n_steps * STEP_FRAMES)
    n_known = min(len(change_db), n_steps * STEP_FRAMES)
    near_db[n_back : n_back + n_known] = change_db[:n_known]
    near_db = np.lib.stride_tricks.sliding_window_view(near_db, n_back + STEP_FRAMES)[::STEP_FRAMES]  # (n_steps, ...)
    return _sharpest_s(near_db, params), _sharpest_s(-near_db, params)


def _sharpest_s(near_db: NDArray[np.float64], params: FeatureParams) -> NDArray[np.float64]:
    """Time of the greatest value of each row, whose first column lies N_STEPS_BACK before its step."""
    best = near_db.argmax(axis=1)
    frames = (np.arange(len(near_db)) - N_STEPS_BACK) * STEP_FRAMES + best
    # half way between the middle of that frame's window and the one before
    times_s = (frames * params.hop_length + (params.win_length - params.hop_length) / 2) / params.sample_rate
    return np.where(near_db[np.arange(len(near_db)), best] >= MIN_EDGE_DB, times_s, np.nan)
