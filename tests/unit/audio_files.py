"""Audio in every accepted container, written with PyAV when a test asks for it."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from numpy.typing import NDArray

CONTAINERS: dict[str, tuple[str, str, int]] = {
    # name: FFmpeg's muxer, codec, rate in hertz
    "wav": ("wav", "pcm_s16le", 48_000),
    "wav_24_bit": ("wav", "pcm_s24le", 48_000),
    "wav_float": ("wav", "pcm_f32le", 44_100),
    "wav_8_bit": ("wav", "pcm_u8", 22_050),
    "rf64": ("wav", "pcm_s16le", 48_000),
    "w64": ("w64", "pcm_s16le", 48_000),
    "aiff": ("aiff", "pcm_s16be", 44_100),
    "caf": ("caf", "pcm_s16be", 44_100),
    "flac": ("flac", "flac", 48_000),
    "mp3": ("mp3", "libmp3lame", 44_100),
    "ogg_vorbis": ("ogg", "vorbis", 48_000),
    "ogg_opus": ("ogg", "libopus", 48_000),
    "adts": ("adts", "aac", 44_100),
    "m4a": ("ipod", "aac", 44_100),
    "mp4": ("mp4", "aac", 48_000),
    "mov": ("mov", "pcm_s16le", 48_000),
    "mkv": ("matroska", "flac", 48_000),
    "webm": ("webm", "libopus", 48_000),
    "mxf": ("mxf", "pcm_s16le", 48_000),
}
"""What the service promises to read."""

LOSSLESS = ("wav", "wav_24_bit", "wav_float", "rf64", "w64", "aiff", "caf", "flac", "mov", "mkv", "mxf")
WITH_VIDEO = ("mp4", "mov", "mkv", "webm", "mxf")

_VIDEO_CODECS = {"mp4": "mpeg4", "mov": "mpeg4", "mkv": "mpeg4", "webm": "libvpx", "mxf": "mpeg2video"}
_MUXER_OPTIONS = {"rf64": {"rf64": "always"}}
_FRAME_RATE = 25


def tone(
    duration_s: float, sample_rate: int, *, n_channels: int = 1, frequency_hz: float = 440.0, peak: float = 0.5
) -> NDArray[np.float32]:
    """A sine, float32 (n_samples, n_channels), the same in each channel."""
    t = np.arange(round(duration_s * sample_rate)) / sample_rate
    mono = peak * np.sin(2 * np.pi * frequency_hz * t)
    return np.repeat(mono.astype(np.float32)[:, None], n_channels, axis=1)


def encode(
    name: str,
    samples: NDArray[np.float32],
    *,
    sample_rate: int | None = None,
    video: bool = False,
    audio_start_s: float = 0.0,
    metadata: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """Samples, float32 (n_samples, n_channels), as a file of the named kind.

    Args:
        name: A key of CONTAINERS.
        samples: In [-1, 1].
        sample_rate: Hz; that of CONTAINERS where not given.
        video: Adds a black picture at 25 frames a second, as long as the audio.
        audio_start_s: How much later than the picture the audio begins.
        metadata: Of the container.
        options: Of the muxer.
    """
    muxer, codec, usual_rate = CONTAINERS[name]
    sample_rate = sample_rate or usual_rate
    n_channels = samples.shape[1]
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}.get(n_channels, f"{n_channels} channels")
    muxer_options = _MUXER_OPTIONS.get(name, {}) | (options or {})
    with (
        tempfile.NamedTemporaryFile() as file,  # by name: moving the index to the front reads the file again
        av.open(file.name, "w", format=muxer, options=muxer_options) as container,
    ):
        container.metadata.update(metadata or {})
        picture = None
        if video or name == "mxf":  # FFmpeg writes no MXF without a picture
            picture = cast(VideoStream, container.add_stream(_VIDEO_CODECS[name], rate=_FRAME_RATE))
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        audio = cast(AudioStream, container.add_stream(codec, rate=sample_rate, layout=layout))
        if codec == "vorbis":
            audio.codec_context.options = {"strict": "experimental"}
        if picture is not None:
            n_frames = max(1, round((audio_start_s + len(samples) / sample_rate) * _FRAME_RATE))
            for i in range(n_frames):
                image = av.VideoFrame.from_ndarray(np.zeros((72, 64), np.uint8), format="yuv420p")
                image.pts, image.time_base = i, Fraction(1, _FRAME_RATE)
                container.mux(picture.encode(image))
            container.mux(picture.encode(None))
        resampler = av.AudioResampler(format=audio.format.name, layout=layout, rate=sample_rate)
        for start in range(0, len(samples), 4096):
            block = np.ascontiguousarray(samples[start : start + 4096]).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
            frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
            frame.pts = start + round(audio_start_s * sample_rate)
            for converted in resampler.resample(frame):
                container.mux(audio.encode(converted))
        container.mux(audio.encode(None))
        container.close()
        return Path(file.name).read_bytes()
