"""What the model stages answer: results, which model gave them, and how the stage stands."""

from __future__ import annotations

from dataclasses import dataclass

from soundstage.live.events import Answer
from soundstage.models.registry import ModelCard
from soundstage.params import EventParams
from soundstage.types import FrameScores, Segment

ModelVersion = tuple[str, str]
"""Name and version."""


@dataclass(frozen=True, slots=True)
class Transcripts:
    """One entry for each region; None where nothing believable was said.

    Attributes:
        spent_s: Inside the stage, queue and model; the rest of a call's time is the way there and back.
    """

    segments: tuple[Segment | None, ...]
    model: ModelVersion
    spent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Scores:
    """What one chunk sounds like.

    Attributes:
        events: How the model's scores become events.
        spent_s: Inside the stage, queue and model; the rest of a call's time is the way there and back.
    """

    scores: FrameScores
    model: ModelVersion
    events: EventParams
    spent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LiveAnswer:
    """What a model gave for a job of a live stream.

    Attributes:
        answer: None for nothing said, and for a job that was dropped.
        model: That answered; None where the job was dropped.
        events: How the model's scores become events; None for speech.
    """

    answer: Answer
    model: ModelVersion | None
    events: EventParams | None = None

    @property
    def is_dropped(self) -> bool:
        """The job waited too long; it was no final one."""
        return self.model is None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was asked for and is not done.

    Attributes:
        version: That was wanted; an alias where it could not be looked up, None where the configuration is wrong.
        reason: For the operator.
    """

    version: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class CandidateState:
    """The model that a replica tries out on a share of its requests.

    Attributes:
        version: That is loaded; None for none.
        share: Of the requests.
        refused: Why it is not the one that is wanted.
    """

    version: str | None
    share: float
    refused: Refusal | None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What one replica really serves.

    Attributes:
        card: Of the model that answers.
        refused: Why it is not the one that is wanted.
        candidate: None where none is tried out.
    """

    card: ModelCard
    refused: Refusal | None = None
    candidate: CandidateState | None = None
