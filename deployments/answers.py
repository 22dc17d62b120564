"""What the model stages answer: results, and which model gave them."""

from __future__ import annotations

from dataclasses import dataclass

from soundstage.types import FrameScores, Segment

ModelVersion = tuple[str, str]
"""Name and version."""


@dataclass(frozen=True, slots=True)
class Transcripts:
    """One entry for each region; None where nothing believable was said."""

    segments: tuple[Segment | None, ...]
    model: ModelVersion


@dataclass(frozen=True, slots=True)
class Scores:
    """What one chunk sounds like."""

    scores: FrameScores
    model: ModelVersion
