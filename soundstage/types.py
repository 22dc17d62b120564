"""The values that pass between stages. This module imports neither Ray nor TensorFlow.

Every value is frozen and checked where it is made. Times are in seconds from the start of the stream,
sample rates in hertz, scores and probabilities in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Rate in hertz at which every model listens. Source: Moonshine and YAMNet were both trained at it."""


PcmEncoding = Literal["s16le", "s16be", "f32le"]
"""How one sample of raw PCM is written."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_span(start_s: float, end_s: float) -> None:
    _require(
        math.isfinite(start_s) and math.isfinite(end_s) and 0 <= start_s <= end_s,
        f"expected 0 <= start_s <= end_s, got {start_s} and {end_s}",
    )


def _check_unit(name: str, value: float) -> None:
    _require(0.0 <= value <= 1.0, f"{name} must lie in [0, 1], got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedAudio:
    """Audio as it arrived.

    Attributes:
        data: The bytes of the file, or interleaved samples for raw PCM.
        media_type: As sent by the client, lower case, without parameters, such as "audio/flac".
        sample_rate: Hz. Only raw PCM needs it.
        n_channels: Only raw PCM needs it.
        encoding: Of raw PCM; where it is not given, that of the media type, see soundstage.audio.decode.
    """

    data: bytes | memoryview | NDArray[np.uint8]
    media_type: str
    sample_rate: int | None = None
    n_channels: int | None = None
    encoding: PcmEncoding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioBlock:
    """A stretch of decoded audio before it is resampled.

    Attributes:
        samples: float32 (n_samples, n_channels), nominally in [-1, 1]. Read-only.
        sample_rate: Hz.
    """

    samples: NDArray[np.float32]
    sample_rate: int

    def __post_init__(self) -> None:
        _require(self.samples.ndim == 2, f"expected (n_samples, n_channels), got {self.samples.shape}")
        _require(self.samples.dtype == np.float32, f"expected float32, got {self.samples.dtype}")
        _require(self.sample_rate > 0, f"sample_rate must be positive, got {self.sample_rate}")
        self.samples.setflags(write=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waveform:
    """Mono samples and their rate; samples never travel without it.

    Attributes:
        samples: float32 (n_samples,), finite. Read-only.
        sample_rate: Hz.
        start_s: Where the first sample lies in the stream.
    """

    samples: NDArray[np.float32]
    sample_rate: int = SAMPLE_RATE
    start_s: float = 0.0

    def __post_init__(self) -> None:
        _require(self.samples.ndim == 1, f"expected (n_samples,), got {self.samples.shape}")
        _require(self.samples.dtype == np.float32, f"expected float32, got {self.samples.dtype}")
        _require(self.sample_rate > 0, f"sample_rate must be positive, got {self.sample_rate}")
        _require(self.start_s >= 0, f"start_s must not be negative, got {self.start_s}")
        self.samples.setflags(write=False)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate

    @property
    def end_s(self) -> float:
        """Where the waveform ends in the stream, in seconds."""
        return self.start_s + self.duration_s

    def between(self, start_s: float, end_s: float) -> Waveform:
        """The part between two times of the stream, clipped to what there is."""
        first = max(0, round((start_s - self.start_s) * self.sample_rate))
        last = min(len(self.samples), round((end_s - self.start_s) * self.sample_rate))
        return Waveform(
            samples=self.samples[first : max(first, last)],
            sample_rate=self.sample_rate,
            start_s=self.start_s + first / self.sample_rate,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A stretch of the stream, such as one in which somebody speaks."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        _check_span(self.start_s, self.end_s)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of the stream, cut at a silence where there is one.

    Chunks follow one another without gap or overlap: together they are the stream.

    Attributes:
        waveform: 16 kHz mono.
        heard: The waveform with some of the stream on either side, as context.
        speech: Where voice activity found speech, in stream time, in order, inside the waveform.
        index: 0 for the first chunk of a stream.
        is_last: No chunk follows.
    """

    waveform: Waveform
    heard: Waveform
    speech: tuple[Region, ...]
    index: int
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One spoken word."""

    text: str
    start_s: float
    end_s: float
    confidence: float

    def __post_init__(self) -> None:
        _check_span(self.start_s, self.end_s)
        _check_unit("confidence", self.confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Speech between two pauses.

    Attributes:
        text: What was said; never empty.
        words: Empty where word times are not known.
        avg_logprob: Mean natural logarithm of the probability of each token.
        no_speech_prob: Probability that nobody spoke here.
        is_retried: The model first wrote something that cannot be, such as one phrase over and over; this is what it
            wrote for shorter pieces.
    """

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...] = ()
    avg_logprob: float = 0.0
    no_speech_prob: float = 0.0
    is_retried: bool = False

    def __post_init__(self) -> None:
        _check_span(self.start_s, self.end_s)
        _check_unit("no_speech_prob", self.no_speech_prob)
        _require(bool(self.text.strip()), "a segment without text is no segment")


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundEvent:
    """Something heard, with its times."""

    label: str
    score: float
    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        _check_span(self.start_s, self.end_s)
        _check_unit("score", self.score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """What a whole clip holds."""

    label: str
    score: float

    def __post_init__(self) -> None:
        _check_unit("score", self.score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """How loud it is, measured on the source before any resampling.

    Attributes:
        integrated_lufs: Loudness of the whole, LUFS; None where nothing passes the gate (silence, < 0.4 s).
        loudness_range_lu: LU; None like the above.
        true_peak_dbtp: dBTP; None for digital silence.
        sample_peak_dbfs: dBFS; None for digital silence.
        n_clipped_samples: Samples in runs of two or more at full scale, over all channels.
        silence: Stretches of at least the configured length below the configured level.
        n_channels: Channels of the source.
        sample_rate: Hz, of the source.

    Source: EBU R 128 (2023), ITU-R BS.1770-5, EBU Tech 3342.
    """

    integrated_lufs: float | None
    loudness_range_lu: float | None
    true_peak_dbtp: float | None
    sample_peak_dbfs: float | None
    n_clipped_samples: int
    silence: tuple[Region, ...]
    n_channels: int
    sample_rate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """What is on screen at one time.

    Attributes:
        lines: One or two lines of text, without markup.
    """

    start_s: float
    end_s: float
    lines: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_span(self.start_s, self.end_s)
        _require(bool(self.lines) and all(self.lines), "a caption needs a line, and no line may be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkAnalysis:
    """What one chunk gave. Times are stream times.

    Attributes:
        index: Of the chunk.
        is_last: No chunk follows.
        start_s: Of the chunk.
        end_s: Of the chunk.
        segments: In order.
        events: Those that ended for certain before or in this chunk, in order of their start.
        tags: Of this chunk, highest score first.
    """

    index: int
    is_last: bool
    start_s: float
    end_s: float
    segments: tuple[Segment, ...] = ()
    events: tuple[SoundEvent, ...] = ()
    tags: tuple[Tag, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """All that was asked for about one clip.

    Attributes:
        request_id: As in the log and in the response header.
        duration_s: Of the audio.
        language: ISO 639-1.
        segments: Empty where speech was not asked for.
        events: Empty where sounds were not asked for.
        tags: Highest score first.
        levels: None where levels were not asked for.
        model_versions: Name to version of each model that took part.
    """

    request_id: str
    duration_s: float
    language: str = "en"
    segments: tuple[Segment, ...] = ()
    events: tuple[SoundEvent, ...] = ()
    tags: tuple[Tag, ...] = ()
    levels: Levels | None = None
    model_versions: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """What was said, as one text."""
        return " ".join(segment.text for segment in self.segments)


JsonObject = dict[str, Any]
"""A decoded JSON object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameScores:
    """What the sound model hears over time in one chunk.

    Attributes:
        scores: float32 (n_frames, n_classes), each in [0, 1]. Read-only.
        labels: One for each class.
        start_s: Stream time of the middle of the first frame's window.
        hop_s: From frame to frame.
        window_s: How much audio one frame looks at, centred on its time.
        tags: float32 (n_classes,), the scores of the whole chunk. Read-only.
        rises_s: float64 (n_frames,), stream time of the sharpest rise of level near each frame, not a number where
            there is none; None where the level is not known. Read-only.
        falls_s: The same of falls.
    """

    scores: NDArray[np.float32]
    labels: tuple[str, ...]
    start_s: float
    hop_s: float
    window_s: float
    tags: NDArray[np.float32]
    rises_s: NDArray[np.float64] | None = None
    falls_s: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        n_classes = len(self.labels)
        _require(
            self.scores.ndim == 2 and self.scores.shape[1] == n_classes,
            f"expected (n_frames, {n_classes}), got {self.scores.shape}",
        )
        _require(self.tags.shape == (n_classes,), f"expected ({n_classes},), got {self.tags.shape}")
        _require(self.hop_s > 0 and self.window_s > 0, "hop_s and window_s must be positive")
        self.scores.setflags(write=False)
        self.tags.setflags(write=False)
        for edges_s in (self.rises_s, self.falls_s):
            if edges_s is not None:
                _require(edges_s.shape == self.scores.shape[:1], f"expected an edge a frame, got {edges_s.shape}")
                edges_s.setflags(write=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSummary:
    """What is known of a clip once all of it was read.

    Attributes:
        duration_s: Of the audio.
        levels: None where levels were not asked for.
        start_timecode: Of the file, "HH:MM:SS:FF", where it carries one.
        time_reference_s: Seconds since midnight at its first sample, where it is a Broadcast Wave file.
        frame_rate: Frames a second of its video track or timecode, where it has one.
        model_versions: Name to version of each model that took part.
    """

    duration_s: float
    levels: Levels | None = None
    start_timecode: str | None = None
    time_reference_s: float | None = None
    frame_rate: Fraction | None = None
    model_versions: tuple[tuple[str, str], ...] = ()
