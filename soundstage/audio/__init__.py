"""From bytes to features, one file a stage: decode, resample, levels, voice activity, chunks, features."""
