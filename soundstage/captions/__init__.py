"""Segments and events to caption files and cue lists."""
