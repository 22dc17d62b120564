"""Conditions under which speech is recognised, made from clean recordings: the same each time."""

from __future__ import annotations

import zlib
from enum import StrEnum

import numpy as np

from training.acoustics import Samples, in_room, noise, room, telephone, with_noise

_ROOM_S = 0.7
"""Reverberation time of a large, bare room."""
_FAR_DIRECT_DB = -3.0
"""As heard from several metres: the room is louder than the voice itself."""
_FAR_SNR_DB = 20.0


class Condition(StrEnum):
    """How a recording sounds. Noise is pink; its level is that below the speech."""

    CLEAN = "clean"
    NOISE_10_DB = "noise_10_db"
    NOISE_0_DB = "noise_0_db"
    TELEPHONE = "telephone"
    """300 to 3400 Hz, G.711 at 8 kHz."""
    FAR_FIELD = "far_field"
    """A reverberation time of 0.7 s, the room 3 dB above the voice, noise at 20 dB."""
    NOISY_TELEPHONE = "noisy_telephone"
    """Noise at 0 to 5 dB, by the recording, then the telephone line."""


def heard_in(condition: Condition, samples: Samples, name: str) -> Samples:
    """A recording in a condition.

    Args:
        condition: Which.
        samples: float32 (n_samples,) at 16 kHz.
        name: Of the recording: the noise is another for each, and always the same for one.

    Returns:
        float32 of the same length.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    match condition:
        case Condition.CLEAN:
            return samples
        case Condition.NOISE_10_DB:
            return _noisy(rng, samples, 10.0)
        case Condition.NOISE_0_DB:
            return _noisy(rng, samples, 0.0)
        case Condition.TELEPHONE:
            return telephone(samples, "mulaw", 64)
        case Condition.FAR_FIELD:
            return _noisy(rng, in_room(samples, room(rng, _ROOM_S, _FAR_DIRECT_DB)), _FAR_SNR_DB)
        case Condition.NOISY_TELEPHONE:
            return telephone(_noisy(rng, samples, rng.uniform(0.0, 5.0)), "mulaw", 64)


def _noisy(rng: np.random.Generator, samples: Samples, snr_db: float) -> Samples:
    return with_noise(samples, noise(rng, len(samples), slope=1.0), snr_db)
