"""Speech model: fine-tuning and evaluation."""
