"""Hears what is in audio and when: waveforms to frame scores and tags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from soundstage.errors import ModelError, SampleRateMismatch
from soundstage.models.registry import ModelCard, ModelFolder
from soundstage.models.runtime import limit_threads
from soundstage.sound.model import (
    N_EMBEDDING,
    SoundParams,
    build_body,
    member_weights,
    scores_from_logits,
    set_body_weights,
    window_features,
)
from soundstage.types import FrameScores, Waveform

Floats = NDArray[np.float32]

_BATCH_SIZES = (1, 2, 4, 8)
"""Windows that go through the body together: a few shapes, all known after warming up, and bounded memory."""


@dataclass(frozen=True, slots=True)
class _Window:
    """5 s of one waveform.

    Attributes:
        first_sample: Where it starts in the waveform.
        first_step: The same in steps, rounded.
    """

    first_sample: int
    first_step: int


class SoundListener:
    """The sound classifier, ready to listen.

    Args:
        folder: Of the registry, kind "sound".
        n_threads: For TensorFlow; None leaves the choice to it.

    Raises:
        ModelError: The folder holds another kind of model, or weights that do not fit.
    """

    def __init__(self, folder: ModelFolder, *, n_threads: int | None = None) -> None:
        if folder.card.kind != "sound":
            raise ModelError(f"{folder.card.name} is a {folder.card.kind} model, not one for sounds")
        if n_threads is not None:
            limit_threads(n_threads)
        self.card: ModelCard = folder.card
        self.params = folder.params(SoundParams)
        weights = folder.weights()
        members = [member_weights(weights, i) for i in range(self.params.n_members)]
        bodies = [build_body(self.params) for _ in members]
        for body, own in zip(bodies, members, strict=True):
            set_body_weights(body, own)
        try:
            kernels, biases = (
                [own[f"head/{part}"].astype(np.float32) for own in members] for part in ("kernel", "bias")
            )
        except KeyError as e:
            raise ModelError(f"{folder.path} has no weights {e}") from e
        if any(kernel.shape != (2 * N_EMBEDDING, self.params.n_logits) for kernel in kernels):
            raise ModelError(f"a head in {folder.path} is not one for these labels")
        self._heads = list(zip(kernels, biases, strict=True))

        def maps_of(log_mel: tf.Tensor) -> tf.Tensor:
            return tf.stack([body(log_mel) for body in bodies], axis=2)

        self._run_bodies = tf.function(maps_of, jit_compile=False)  # XLA's grouped convolution is 8 times slower

    def warm_up(self) -> None:
        """Run once in each shape, so that the first request does not pay for it.

        Raises:
            RuntimeError: The output is not finite.
        """
        silence = Waveform(samples=np.zeros(self.params.n_window_samples, np.float32))
        for size in _BATCH_SIZES:
            if not np.isfinite(self.listen([silence] * size)[0].scores).all():
                raise RuntimeError(f"{self.card.name} {self.card.version} gives scores that are not finite")

    def listen(self, waveforms: Sequence[Waveform]) -> list[FrameScores]:
        """Scores over time and for the whole of each waveform; the same whatever else is in the batch.

        Args:
            waveforms: 16 kHz, of any length.

        Returns:
            One for each waveform: a frame every 0.32 s from its start on, each looking at what lies within 0.96 s of
            it and inside the waveform. A tag is the highest score of its label in any window of 5 s.

        Raises:
            SampleRateMismatch: A waveform has another rate than the model.
        """
        for waveform in waveforms:
            if waveform.sample_rate != self.params.features.sample_rate:
                raise SampleRateMismatch(
                    f"the waveform has {waveform.sample_rate} Hz, the model {self.params.features.sample_rate} Hz"
                )
        windows = [self._windows(len(waveform.samples)) for waveform in waveforms]
        pieces = [
            waveform.samples[window.first_sample : window.first_sample + self.params.n_window_samples]
            for waveform, own in zip(waveforms, windows, strict=True)
            for window in own
        ]
        maps = self._maps(pieces)
        results, n_done = [], 0
        for waveform, own in zip(waveforms, windows, strict=True):
            results.append(self._scores(waveform, own, maps[n_done : n_done + len(own)]))
            n_done += len(own)
        return results

    def _windows(self, n_samples: int) -> list[_Window]:
        """Windows that share their last step with the next one's first; the last one ends with the waveform."""
        if n_samples == 0:
            return []
        hop_steps = self.params.n_window_steps - 1
        step = round(self.params.step_s * self.params.features.sample_rate)
        windows, first_step = [], 0
        while first_step * step + self.params.n_window_samples < n_samples:
            windows.append(_Window(first_step * step, first_step))
            first_step += hop_steps
        last_sample = max(0, n_samples - self.params.n_window_samples)
        windows.append(_Window(last_sample, round(last_sample / step)))
        return windows

    def _maps(self, pieces: Sequence[Floats]) -> Floats:
        """The bodies' maps: float32 (n_pieces, n_window_steps, n_members, 1024)."""
        params = self.params
        maps = np.empty((len(pieces), params.n_window_steps, params.n_members, N_EMBEDDING), np.float32)
        for start in range(0, len(pieces), _BATCH_SIZES[-1]):
            part = pieces[start : start + _BATCH_SIZES[-1]]
            size = next(size for size in _BATCH_SIZES if size >= len(part))
            batch = np.zeros((size, params.n_window_frames, params.features.n_mels), np.float32)
            for i, samples in enumerate(part):
                padded = np.pad(samples, (0, params.n_window_samples - len(samples)))
                batch[i] = window_features(padded, params)
            maps[start : start + len(part)] = self._run_bodies(tf.convert_to_tensor(batch)).numpy()[: len(part)]
        return maps

    def _scores(self, waveform: Waveform, windows: Sequence[_Window], maps: Floats) -> FrameScores:
        """Join the maps of one waveform and run the head over them."""
        params = self.params
        n_classes = len(params.labels)
        frames, tags = np.zeros((0, n_classes), np.float32), np.zeros(n_classes, np.float32)
        if windows:
            tags = self._head(maps).max(axis=0)
            n_steps = max(1, min(windows[-1].first_step + params.n_window_steps, self._n_steps(waveform)))
            joined = np.empty((windows[-1].first_step + params.n_window_steps, *maps.shape[2:]), np.float32)
            for window, steps in reversed(list(zip(windows, maps, strict=True))):
                # the last step of a window sees less than a whole one: the next window knows better
                n_kept = params.n_window_steps - (window is not windows[-1])
                joined[window.first_step : window.first_step + n_kept] = steps[:n_kept]
            joined = joined[:n_steps]
            half = params.n_frame_steps // 2
            centres = range(math.floor(waveform.duration_s / params.step_s) + 1)
            stretches = [joined[max(0, min(centre - half, n_steps - 1)) : centre + half] for centre in centres]
            frames = np.concatenate([self._head(stretch[np.newaxis]) for stretch in stretches])
        return FrameScores(
            scores=frames,
            labels=params.labels,
            start_s=waveform.start_s,
            hop_s=params.step_s,
            window_s=params.step_s * params.n_frame_steps,
            tags=tags,
        )

    def _n_steps(self, waveform: Waveform) -> int:
        return math.ceil(waveform.duration_s / self.params.step_s)

    def _head(self, maps: Floats) -> Floats:
        """Scores (n, n_classes) of maps (n, n_steps, n_members, 1024), pooled over all their steps."""
        pooled = np.concatenate([maps.mean(axis=1), maps.max(axis=1)], axis=-1)  # (n, n_members, 2048)
        logits = [pooled[:, i] @ kernel + bias for i, (kernel, bias) in enumerate(self._heads)]
        scores: Floats = np.mean([scores_from_logits(own, self.params) for own in logits], axis=0)
        return scores
