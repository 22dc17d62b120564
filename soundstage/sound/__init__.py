"""Sounds to labels with times: the model, its front end, and events from frame scores."""
