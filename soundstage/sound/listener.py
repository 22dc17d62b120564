"""Hears what is in audio and when: waveforms to frame scores and tags."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from soundstage.audio.features import mel_spectrogram, n_frames
from soundstage.errors import ModelError, SampleRateMismatch
from soundstage.models.registry import ModelCard, ModelFolder
from soundstage.models.runtime import limit_threads
from soundstage.sound.edges import scores_with_edges
from soundstage.sound.model import (
    STEP_FRAMES,
    SoundParams,
    build_network,
    combined,
    learnt_weights,
    levelled,
    member_weights,
    set_network_weights,
)
from soundstage.types import FrameScores, Waveform

Floats = NDArray[np.float32]

_BATCH_SIZES = (1, 2, 4, 8, 16)
"""Windows that go through a network together: a few shapes, all known after warming up, and bounded memory."""
EDGE_STEPS = 1
"""Steps at the edge of a window that the neighbouring window knows better, since it hears what is beyond them."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a waveform that the networks see at once.

    Attributes:
        first_sample: Where it starts in the waveform.
        n_samples: How long it is.
        first_step: Its first step, counted from the start of the waveform.
        first_kept, end_kept: The steps, counted in the same way, that are taken from this window.
    """

    first_sample: int
    n_samples: int
    first_step: int
    first_kept: int
    end_kept: int


@dataclass(frozen=True, slots=True)
class _Heard:
    """What the networks say of one window: scores (n_labels,) and (n_steps, n_labels); and its level (n_frames,)."""

    clip: Floats
    frames: Floats
    level: Floats


def windows_of(n_samples: int, params: SoundParams) -> list[Window]:
    """Windows that cover a waveform and overlap by two steps; a last, shorter rest is seen with what is before it.

    What is longer than a window by less than a step is one window all the same: a clip of 5 s, decoded, often is.

    Args:
        n_samples: Length of the waveform.
        params: Of the model.
    """
    if n_samples == 0:
        return []
    step, n_steps = params.n_step_samples, math.ceil(n_samples / params.n_step_samples)
    if n_samples < params.n_window_samples + step:
        return [Window(0, n_samples, 0, 0, n_steps)]
    hop_steps = params.n_window_steps - 2 * EDGE_STEPS
    starts = [0]
    while starts[-1] * step + params.n_window_samples < n_samples:
        starts.append(starts[-1] + hop_steps)
    # the last window ends where the waveform does, or less than a step before; it starts at a step of the first
    starts[-1] = math.ceil((n_samples - params.n_window_samples) / step)
    edges = [0, *(start + EDGE_STEPS for start in starts[1:]), n_steps]
    return [
        Window(start * step, min(params.n_window_samples, n_samples - start * step), start, first, end)
        for start, first, end in zip(starts, edges, edges[1:], strict=False)
    ]


def _scores(
    members: Sequence[Mapping[str, Floats]], params: SoundParams
) -> Callable[[Sequence[Floats]], tuple[Floats, Floats]]:
    """From log-mel windows, float32 (batch, n_frames, n_mels), as each member sees them, to what combined gives."""
    if keras.backend.backend() == "tensorflow":
        from soundstage.sound.inference import SoundNetworks  # noqa: PLC0415  # see below

        return SoundNetworks(members, params)
    # Where models are trained on another backend, TensorFlow need not be installed.
    networks = [build_network(params) for _ in members]
    for network, weights in zip(networks, members, strict=True):
        set_network_weights(network, weights)

    def scores(log_mels: Sequence[Floats]) -> tuple[Floats, Floats]:
        seen = zip(networks, log_mels, strict=True)
        clip, frames = combined([network.predict_on_batch(log_mel) for network, log_mel in seen], params)
        return np.asarray(clip, np.float32), np.asarray(frames, np.float32)

    return scores


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
        members = [learnt_weights(member_weights(weights, i), self.params) for i in range(self.params.n_members)]
        self._scores = _scores(members, self.params)

    def warm_up(self) -> None:
        """Run once in each shape, so that the first request does not pay for it.

        Raises:
            RuntimeError: The output is not finite.
        """
        self.probe()
        for size in _BATCH_SIZES:
            self._probe(self.params.n_window_samples, size)

    def probe(self) -> None:
        """Run once on the shortest waveform there is a step for.

        Raises:
            RuntimeError: The output is not finite.
        """
        self._probe(self.params.n_step_samples, 1)

    def _probe(self, n_samples: int, size: int) -> None:
        silence = Waveform(samples=np.zeros(n_samples, np.float32))
        if not np.isfinite(self.listen([silence] * size)[0].scores).all():
            raise RuntimeError(f"{self.card.name} {self.card.version} gives scores that are not finite")

    def listen(self, waveforms: Sequence[Waveform]) -> list[FrameScores]:
        """Scores over time and for the whole of each waveform; the same whatever else is in the batch.

        Args:
            waveforms: 16 kHz, of any length.

        Returns:
            One for each waveform: a frame for each step of 0.32 s from its start on, the last one perhaps beyond its
            end. A tag is the highest score of its label in any window of 5 s.

        Raises:
            SampleRateMismatch: A waveform has another rate than the model.
        """
        for waveform in waveforms:
            if waveform.sample_rate != self.params.features.sample_rate:
                raise SampleRateMismatch(
                    f"the waveform has {waveform.sample_rate} Hz, the model {self.params.features.sample_rate} Hz"
                )
        windows = [windows_of(len(waveform.samples), self.params) for waveform in waveforms]
        pieces = [
            waveform.samples[window.first_sample : window.first_sample + window.n_samples]
            for waveform, own in zip(waveforms, windows, strict=True)
            for window in own
        ]
        heard = iter(self._hear(pieces))
        return [
            self._joined(waveform, own, [next(heard) for _ in own])
            for waveform, own in zip(waveforms, windows, strict=True)
        ]

    def _hear(self, pieces: Sequence[Floats]) -> list[_Heard]:
        """What the networks say on average of each piece."""
        results: dict[int, _Heard] = {}
        # pieces of one length share a batch, so that no piece hears padding
        by_length: dict[int, list[int]] = {}
        for i, piece in enumerate(pieces):
            by_length.setdefault(len(piece), []).append(i)
        for indices in by_length.values():
            for start in range(0, len(indices), _BATCH_SIZES[-1]):
                part = indices[start : start + _BATCH_SIZES[-1]]
                size = next(size for size in _BATCH_SIZES if size >= len(part))
                mels = [self._mel(pieces[i]) for i in part]
                mels += [np.zeros_like(mels[0])] * (size - len(part))
                clip, frames = self._scores(
                    [
                        np.stack([levelled(mel, own, self.params.features) for mel in mels])
                        for own in self.params.level_ranges
                    ]
                )
                results |= {i: _Heard(clip[row], frames[row], mels[row].mean(axis=1)) for row, i in enumerate(part)}
        return [results[i] for i in range(len(pieces))]

    def _mel(self, samples: Floats) -> Floats:
        """Mel spectrogram of a window; one that does not fill a step is filled up with silence."""
        n_missing = max(0, self.params.n_step_samples - len(samples))
        return mel_spectrogram(np.pad(samples, (0, n_missing)), self.params.features)

    def _joined(self, waveform: Waveform, windows: Sequence[Window], heard: Sequence[_Heard]) -> FrameScores:
        """Put the windows of one waveform together."""
        params = self.params
        n_steps = windows[-1].end_kept if windows else 0
        scores = np.zeros((n_steps, len(params.labels)), np.float32)
        tags = np.zeros(len(params.labels), np.float32)
        level = np.zeros(n_frames(len(waveform.samples), params.features), np.float32)
        for window, own in zip(windows, heard, strict=True):
            # spectrogram frames need more than a hop of audio: a rest shorter than that has no step of its own
            steps = np.arange(window.first_kept, window.end_kept) - window.first_step
            scores[window.first_kept : window.end_kept] = own.frames[np.minimum(steps, len(own.frames) - 1)]
            tags = np.maximum(tags, own.clip)
            known = level[window.first_step * STEP_FRAMES :][: len(own.level)]
            known[:] = own.level[: len(known)]  # what was filled up with silence has no level
        return scores_with_edges(waveform, scores, tags, level, params)
