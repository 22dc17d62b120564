"""Frozen parameters: limits of what is accepted, and how audio is cut and looked at.

Each number lives here once. Those that belong to a trained model are saved beside its weights and read back from
there.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from soundstage.types import SAMPLE_RATE


class Params(BaseModel):
    """Base of all parameters: frozen, and a misspelt name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(Params):
    """What one request may bring. Checked while reading, not after."""

    max_upload_bytes: int = Field(512 * 1024**2, gt=0)
    max_duration_s: float = Field(4 * 3600.0, gt=0)
    max_channels: int = Field(64, gt=0)
    min_sample_rate: int = Field(8_000, gt=0)
    max_sample_rate: int = Field(192_000, gt=0)


class VoiceActivityParams(Params):
    """How frame probabilities become speech regions.

    Source: Silero's reference iterator (github.com/snakers4/silero-vad, utils_vad.py, get_speech_timestamps).
    """

    threshold: float = Field(0.5, ge=0, le=1)
    """A frame at or above it starts speech."""
    release_threshold: float = Field(0.35, ge=0, le=1)
    """Below it for min_silence_s, speech ends."""
    min_speech_s: float = Field(0.25, ge=0)
    min_silence_s: float = Field(0.6, ge=0)
    """A shorter pause stays inside its region."""
    padding_s: float = Field(0.2, ge=0)
    """Added on both sides, as far as the neighbour allows."""


class ChunkParams(Params):
    """How a stream is cut.

    Source: Moonshine was trained on at most 30 s (arXiv:2410.15608).
    """

    max_duration_s: float = Field(30.0, gt=1)
    min_duration_s: float = Field(20.0, gt=0)
    """Once a chunk is this long, it ends at the next silence."""
    max_region_s: float = Field(15.0, gt=1)
    """Longer speech is cut where the voice is least certain."""


class LevelParams(Params):
    """What counts as silence in the level report."""

    silence_dbfs: float = Field(-60.0, lt=0)
    min_silence_s: float = Field(2.0, gt=0)


class FeatureParams(Params):
    """Log-mel spectrogram, in librosa's terms.

    The defaults are YAMNet's front end. Source: github.com/tensorflow/models, research/audioset/yamnet/features.py.
    """

    sample_rate: int = SAMPLE_RATE
    n_fft: int = 512
    win_length: int = 400
    hop_length: int = 160
    n_mels: int = 64
    fmin_hz: float = 125.0
    fmax_hz: float = 7500.0
    power: float = 1.0
    log_offset: float = 0.001
    mel_interpolation: Literal["hz", "mel"] = "mel"
    """Triangles are straight in hertz (librosa) or in mel (tf.signal, which YAMNet was trained with)."""
