"""What happens to a recording on its way: rooms and lossy codecs, on samples, once and kept."""

from __future__ import annotations

import numpy as np

from training.acoustics import Samples, coded, in_room, room
from training.sound_classification.config import VariantConfig


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
        samples = in_room(samples, response)
    if config.codecs and rng.random() < config.codec:
        samples = coded(samples, str(rng.choice(config.codecs)), rng.uniform(*config.codec_kbps))
    return samples
