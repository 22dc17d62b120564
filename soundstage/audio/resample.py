"""Any number of channels at any rate to the 16 kHz mono that the models hear."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy.signal import lfilter

from soundstage.audio.decode import decode
from soundstage.errors import SampleRateMismatch
from soundstage.params import Limits
from soundstage.types import SAMPLE_RATE, AudioBlock, EncodedAudio, Waveform

_FRAME_S = 0.02
_RELEASE_S = 0.4
_POLARITY_CORRELATION = -0.8
_SURROUND_PRIOR = (0.5, 0.5, 1.0, 0.1, 0.5, 0.5, 0.5, 0.5)
"""Of six or eight channels: L, R, C, LFE and the surrounds. Dialogue is in the centre and no words are in the low
frequency effects; the others are at -6 dB, close to the downmix of ITU-R BS.775-4. None is zero: they may be tracks."""


class Downmix:
    """Channels to one, by gain sharing.

    The gain of each channel is its share of the level of all, so the one microphone that somebody speaks into comes
    through at full level however many others are silent, equal channels keep their level, and the gains never add up
    to more than one: nothing clips that did not before. Gains rise within 20 ms and fall with a time constant of
    0.4 s. The second channel of a stereo pair is turned round while it is the opposite of the first, which otherwise
    would cancel it. Levels are taken over frames of 20 ms from the start of the stream, so the result does not depend
    on the sizes of the blocks.

    Source: D. W. Dugan, "Automatic microphone mixing", J. Audio Eng. Soc. 23 (1975).
    """

    def __init__(self, sample_rate: int, n_channels: int) -> None:
        self._frame_length = round(_FRAME_S * sample_rate)
        self._n_pairs = n_channels // 2
        self._prior = np.array(_SURROUND_PRIOR[:n_channels] if n_channels in (6, 8) else [1.0] * n_channels)
        self._rest = np.empty((0, n_channels), np.float32)
        self._gains = self._prior / self._prior.sum()
        self._is_first = True
        self._state = np.zeros((1, n_channels + self._n_pairs))
        self._decay = float(np.exp(-_FRAME_S / _RELEASE_S))

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mix on: float32 (n_samples, n_channels) to float32 (n_samples,), as far as frames are whole."""
        if samples.shape[1] == 1:
            return samples[:, 0]
        samples = np.concatenate([self._rest, samples])
        n_frames = len(samples) // self._frame_length
        n_whole = n_frames * self._frame_length
        self._rest = samples[n_whole:]
        if not n_frames:
            return np.empty(0, np.float32)
        frames = samples[:n_whole].reshape(n_frames, self._frame_length, -1)
        gains = self._gains_after(frames)
        before = np.concatenate([self._gains[None], gains[:-1]])
        self._gains = gains[-1]
        # From the gains of the frame before to its own within each frame.
        start = np.einsum("fnc,fc->fn", frames, before.astype(np.float32))
        end = np.einsum("fnc,fc->fn", frames, gains.astype(np.float32))
        ramp = (np.arange(1, self._frame_length + 1) / self._frame_length).astype(np.float32)
        mixed: NDArray[np.float32] = (start + ramp * (end - start)).reshape(-1)
        return mixed

    def finish(self) -> NDArray[np.float32]:
        """The last part of a frame."""
        rest, self._rest = self._rest, self._rest[:0]
        mixed: NDArray[np.float32] = rest @ self._gains.astype(np.float32)
        return mixed

    def _gains_after(self, frames: NDArray[np.float32]) -> NDArray[np.float64]:
        """Gains at the end of each frame, (n_frames, n_channels); frames are (n_frames, frame_length, n_channels)."""
        n_channels = frames.shape[2]
        powers = np.einsum("fnc,fnc->fc", frames, frames, dtype=np.float64)
        first, second = frames[:, :, 0 : 2 * self._n_pairs : 2], frames[:, :, 1 : 2 * self._n_pairs : 2]
        cross = np.einsum("fnp,fnp->fp", first, second, dtype=np.float64)
        values = np.concatenate([powers, cross], axis=1)
        if self._is_first:
            self._state = self._decay * values[:1]
        smooth, self._state = lfilter([1 - self._decay], [1, -self._decay], values, axis=0, zi=self._state)
        levels = np.sqrt(np.maximum(smooth[:, :n_channels], powers)) + 1e-9
        shares = self._prior * levels
        gains: NDArray[np.float64] = shares / shares.sum(axis=1, keepdims=True)
        norm = np.sqrt(smooth[:, 0 : 2 * self._n_pairs : 2] * smooth[:, 1 : 2 * self._n_pairs : 2])
        opposite = smooth[:, n_channels:] < _POLARITY_CORRELATION * norm
        gains[:, 1 : 2 * self._n_pairs : 2] *= np.where(opposite, -1.0, 1.0)
        if self._is_first:
            self._gains, self._is_first = gains[0], False
        return gains


class Resampler:
    """One stream of blocks to 16 kHz mono.

    The same stream in other blocks gives the same samples, round(n_samples * 16000 / sample_rate) in all.
    """

    def __init__(self) -> None:
        self._format: tuple[int, int] | None = None

    def push(self, block: AudioBlock) -> NDArray[np.float32]:
        """Take in the next block.

        Returns:
            float32 (n_samples,), 16 kHz: what is complete.

        Raises:
            SampleRateMismatch: The block has another rate or other channels than the first.
        """
        source_format = (block.sample_rate, block.samples.shape[1])
        if self._format is None:
            self._format = source_format
            self._downmix = Downmix(*source_format)
            self._stream = soxr.ResampleStream(block.sample_rate, SAMPLE_RATE, 1, dtype="float32")
        if source_format != self._format:
            raise SampleRateMismatch(f"the stream began with {self._format} (Hz, channels), not with {source_format}")
        return self._resample(self._downmix.push(block.samples), is_last=False)

    def finish(self) -> NDArray[np.float32]:
        """What the filter still holds; float32 (n_samples,), 16 kHz."""
        if self._format is None:
            return np.empty(0, np.float32)
        return self._resample(self._downmix.finish(), is_last=True)

    def _resample(self, samples: NDArray[np.float32], *, is_last: bool) -> NDArray[np.float32]:
        resampled: NDArray[np.float32] = self._stream.resample_chunk(np.ascontiguousarray(samples), last=is_last)
        return resampled


def decode_mono(source: EncodedAudio | Path | BinaryIO, limits: Limits) -> Waveform:
    """A whole source at 16 kHz mono, for clips that fit into memory; raises as open_audio does."""
    resampler = Resampler()
    parts = [resampler.push(block) for block in decode(source, limits)]
    return Waveform(samples=np.concatenate([*parts, resampler.finish()]))
