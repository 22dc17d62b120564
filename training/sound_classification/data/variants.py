"""What happens to a recording on its way: rooms and lossy codecs, on samples, once and kept."""

from __future__ import annotations

import io

import av
import numpy as np
import scipy.signal
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from soundstage.audio.resample import decode_mono
from soundstage.params import Limits
from soundstage.types import SAMPLE_RATE, EncodedAudio
from training.sound_classification.config import VariantConfig

Samples = NDArray[np.float32]

_CODECS = {
    "opus": ("ogg", "libopus", "audio/ogg"),
    "mp3": ("mp3", "libmp3lame", "audio/mpeg"),
    "aac": ("adts", "aac", "audio/aac"),
}
"""FFmpeg's muxer and codec, and the media type."""
_BLOCK = 4096


def room(rng: np.random.Generator, reverberation_s: float, direct_db: float) -> Samples:
    """Response of a room that there is not: one direct sound, then noise that dies away.

    Args:
        rng: Of the noise.
        reverberation_s: Time in which it falls by 60 dB.
        direct_db: Level of the direct sound above all that follows.

    Returns:
        float32 (n_samples,) at 16 kHz, energy of 1, beginning with the direct sound.

    Source: J. A. Moorer, "About This Reverberation Business", Computer Music Journal 3 (1979).
    """
    t = np.arange(1, max(2, round(reverberation_s * SAMPLE_RATE))) / SAMPLE_RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / reverberation_s)
    tail[: round(rng.uniform(0.002, 0.02) * SAMPLE_RATE)] = 0  # the first wall is some metres away
    tail *= 10 ** (-direct_db / 20) / max(float(np.linalg.norm(tail)), 1e-9)
    response = np.concatenate([[1.0], tail])
    return np.asarray(response / np.linalg.norm(response), np.float32)


def coded(samples: Samples, codec: str, kbps: float) -> Samples:
    """Encoded and decoded again.

    Args:
        samples: float32 (n_samples,) at 16 kHz.
        codec: "opus", "mp3" or "aac".
        kbps: Bit rate; codecs take the nearest that they have.

    Returns:
        float32 of the same length.
    """
    muxer, name, media_type = _CODECS[codec]
    data = io.BytesIO()
    with av.open(data, "w", format=muxer) as container:
        stream = container.add_stream(name, rate=SAMPLE_RATE, layout="mono")
        assert isinstance(stream, AudioStream)
        stream.bit_rate = round(kbps * 1000)
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=SAMPLE_RATE)
        peak = max(1.0, float(np.abs(samples).max(initial=0.0)))
        for start in range(0, len(samples), _BLOCK):
            block = np.ascontiguousarray(samples[np.newaxis, start : start + _BLOCK] / peak)
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            for converted in resampler.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    heard = decode_mono(EncodedAudio(data=data.getvalue(), media_type=media_type), Limits()).samples * np.float32(peak)
    return np.pad(heard[: len(samples)], (0, max(0, len(samples) - len(heard))))


def varied(samples: Samples, config: VariantConfig, rng: np.random.Generator) -> Samples:
    """One copy of a clip: in a room, through a codec, or both.

    Args:
        samples: float32 (n_samples,) at 16 kHz.
        config: How often and how much of each.
        rng: Chooses.

    Returns:
        float32 of the same length.
    """
    if rng.random() < config.reverberation:
        response = room(rng, rng.uniform(*config.reverberation_s), rng.uniform(*config.direct_db))
        samples = scipy.signal.oaconvolve(samples, response)[: len(samples)].astype(np.float32)
    if config.codecs and rng.random() < config.codec:
        samples = coded(samples, str(rng.choice(config.codecs)), rng.uniform(*config.codec_kbps))
    return samples
