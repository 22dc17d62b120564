"""Speech model: fine-tuning and evaluation."""

RECORDINGS_NAME = "recordings.txt"
"""Of a fine-tuned model's folder: the split and name of each recording, a line each, with a tab between."""
