"""What happens to a recording on its way: noise, rooms, lossy codecs, telephone lines; on samples at 16 kHz."""

from __future__ import annotations

import io

import av
import numpy as np
import scipy.signal
import soxr
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from soundstage.audio.resample import decode_mono
from soundstage.params import Limits
from soundstage.types import SAMPLE_RATE, EncodedAudio

Samples = NDArray[np.float32]

TELEPHONE_HZ = (300.0, 3400.0)
"""What a telephone line lets pass. Source: ITU-T G.712."""
_TELEPHONE_RATE = 8_000
_CODECS = {
    "opus": ("ogg", "libopus", "audio/ogg"),
    "mp3": ("mp3", "libmp3lame", "audio/mpeg"),
    "aac": ("adts", "aac", "audio/aac"),
    "mulaw": ("wav", "pcm_mulaw", "audio/wav"),
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


def in_room(samples: Samples, response: Samples) -> Samples:
    """What is heard of samples (n_samples,) in a room with this response, as long as they are."""
    heard: Samples = scipy.signal.oaconvolve(samples, response)[: len(samples)].astype(np.float32)
    return heard


def coded(samples: Samples, codec: str, kbps: float, sample_rate: int = SAMPLE_RATE) -> Samples:
    """Encoded and decoded again.

    Args:
        samples: float32 (n_samples,) at 16 kHz.
        codec: "opus", "mp3", "aac", or "mulaw" (G.711, which has one bit rate).
        kbps: Bit rate; codecs take the nearest that they have.
        sample_rate: Hz, of what the codec is given.

    Returns:
        float32 of the same length, at 16 kHz.
    """
    muxer, name, media_type = _CODECS[codec]
    peak = max(1.0, float(np.abs(samples).max(initial=0.0)))
    given = samples / np.float32(peak)
    if sample_rate != SAMPLE_RATE:
        given = np.asarray(soxr.resample(given, SAMPLE_RATE, sample_rate), np.float32)
    data = io.BytesIO()
    with av.open(data, "w", format=muxer) as container:
        stream = container.add_stream(name, rate=sample_rate, layout="mono")
        assert isinstance(stream, AudioStream)
        stream.bit_rate = round(kbps * 1000)
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=sample_rate)
        for start in range(0, len(given), _BLOCK):
            block = np.ascontiguousarray(given[np.newaxis, start : start + _BLOCK])
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
            frame.sample_rate = sample_rate
            for converted in resampler.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    heard = decode_mono(EncodedAudio(data=data.getvalue(), media_type=media_type), Limits()).samples * np.float32(peak)
    return np.pad(heard[: len(samples)], (0, max(0, len(samples) - len(heard))))


def telephone(samples: Samples, codec: str, kbps: float) -> Samples:
    """Through a telephone line: 300 to 3400 Hz, and a codec at 8 kHz; arguments as for `coded`."""
    band = scipy.signal.butter(4, TELEPHONE_HZ, "bandpass", fs=SAMPLE_RATE, output="sos")
    return coded(scipy.signal.sosfilt(band, samples).astype(np.float32), codec, kbps, _TELEPHONE_RATE)


def noise(rng: np.random.Generator, n_samples: int, slope: float) -> Samples:
    """Noise whose power falls with frequency: by a slope of 0 it is white, 1 pink, 2 brown.

    Args:
        rng: Of the noise.
        n_samples: At 16 kHz.
        slope: Power is proportional to frequency ** -slope, from 20 Hz on.

    Returns:
        float32 (n_samples,), mean square of 1.
    """
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    hz = np.fft.rfftfreq(n_samples, 1 / SAMPLE_RATE)
    made = np.fft.irfft(spectrum * np.maximum(hz, 20.0) ** (-slope / 2), n_samples)
    return np.asarray(made / np.sqrt(np.mean(np.square(made)) + 1e-12), np.float32)


def with_noise(samples: Samples, added: Samples, snr_db: float) -> Samples:
    """Both together.

    Args:
        samples: Speech, float32 (n_samples,). Its level is that of its louder half, so that pauses do not count.
        added: Noise, as long, mean square of 1.
        snr_db: Level of the speech above the noise.
    """
    return np.asarray(samples + added * np.float32(speech_level(samples) * 10 ** (-snr_db / 20)), np.float32)


def speech_level(samples: Samples) -> float:
    """Root mean square of the louder half of pieces of 20 ms."""
    n_piece = SAMPLE_RATE // 50
    n_whole = max(1, len(samples) // n_piece) * n_piece
    powers = np.sort(np.mean(np.square(np.resize(samples, n_whole).reshape(-1, n_piece)), axis=1))
    return float(np.sqrt(powers[len(powers) // 2 :].mean()))


def faster(samples: Samples, speed: float) -> Samples:
    """Played so many times as fast, higher in proportion: float32 (round(n_samples / speed),), or one off."""
    return np.asarray(soxr.resample(samples, SAMPLE_RATE * speed, SAMPLE_RATE), np.float32)
