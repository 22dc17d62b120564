"""The registry of models, and those of our own training."""
