"""Speech model: evaluation."""
