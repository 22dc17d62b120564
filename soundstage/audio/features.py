"""Log-mel spectrograms, the one front end of training and serving."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.sparse import csr_array

from soundstage.errors import SampleRateMismatch
from soundstage.params import FeatureParams
from soundstage.types import Waveform


def _hz_to_mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0))


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))


@lru_cache(maxsize=8)
def mel_filterbank(params: FeatureParams) -> NDArray[np.float32]:
    """Triangular HTK mel bands.

    Args:
        params: The frozen parameters saved beside the weights.

    Returns:
        float32 (n_fft // 2 + 1, n_mels), peaks of 1. Read-only.

    Source: librosa.filters.mel(htk=True, norm=None) for "hz"; tf.signal.linear_to_mel_weight_matrix for "mel".
    """
    bins = np.linspace(0.0, params.sample_rate / 2, params.n_fft // 2 + 1)[:, np.newaxis]
    edges = np.linspace(_hz_to_mel(params.fmin_hz), _hz_to_mel(params.fmax_hz), params.n_mels + 2)
    if params.mel_interpolation == "hz":
        edges = _mel_to_hz(edges)
    else:
        bins = _hz_to_mel(bins)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bank = np.maximum(0.0, np.minimum(rising, falling))  # (n_bins, n_mels)
    if params.mel_interpolation == "mel":
        bank[0] = 0.0  # tf.signal leaves the constant part out
    result: NDArray[np.float32] = bank.astype(np.float32)
    result.setflags(write=False)
    return result


@lru_cache(maxsize=8)
def _sparse_filterbank(params: FeatureParams) -> csr_array:
    """The same, (n_mels, n_bins): nearly all zeros, and no threads of a BLAS that compete with the model's."""
    return csr_array(mel_filterbank(params).T)


@lru_cache(maxsize=8)
def frame_window(params: FeatureParams) -> NDArray[np.float32]:
    """What a frame is weighted with: float32 (frame length,).

    Periodic Hann; "hz" frames are n_fft long with the window in their middle, as librosa's are.
    """
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(params.win_length) / params.win_length)
    if params.mel_interpolation == "hz":
        before = (params.n_fft - params.win_length) // 2
        hann = np.pad(hann, (before, params.n_fft - params.win_length - before))
    return hann.astype(np.float32)


def n_frames(n_samples: int, params: FeatureParams) -> int:
    """How many whole frames fit; there is no padding at the ends."""
    return max(0, 1 + (n_samples - len(frame_window(params))) // params.hop_length)


def mel_spectrogram(samples: NDArray[np.float32], params: FeatureParams) -> NDArray[np.float32]:
    """Mel spectrogram before the logarithm.

    Args:
        samples: float32 (n_samples,) at params.sample_rate Hz.
        params: The frozen parameters saved beside the weights.

    Returns:
        float32 (n_frames, n_mels), not negative: magnitudes for params.power 1, powers for 2.

    Source: Davis & Mermelstein 1980; framing of tf.signal.stft for "mel" and of librosa.stft(center=False) for "hz".
    """
    window = frame_window(params)
    if len(samples) < len(window):
        return np.zeros((0, params.n_mels), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, len(window))
    frames = frames[:: params.hop_length] * window  # (n_frames, frame length)
    spectrum = np.abs(scipy.fft.rfft(frames, params.n_fft, axis=-1))  # stays float32
    if params.power != 1.0:
        spectrum = spectrum**params.power
    return np.ascontiguousarray((_sparse_filterbank(params) @ spectrum.T).T, np.float32)


def log_mel(waveform: Waveform, params: FeatureParams) -> NDArray[np.float32]:
    """Log-mel spectrogram of one mono waveform.

    Args:
        waveform: Mono, at params.sample_rate Hz.
        params: The frozen parameters saved beside the weights.

    Returns:
        float32 (n_frames, n_mels), natural logarithm. A waveform shorter than one frame has no frames.

    Raises:
        SampleRateMismatch: The rates differ.

    Source: Davis & Mermelstein 1980; HTK mel scale.
    """
    if waveform.sample_rate != params.sample_rate:
        raise SampleRateMismatch(f"the waveform has {waveform.sample_rate} Hz, the features {params.sample_rate} Hz")
    result: NDArray[np.float32] = np.log(mel_spectrogram(waveform.samples, params) + np.float32(params.log_offset))
    return result
