"""What a live stream tells, and what it asks of the models.

Times are in seconds of the stream. Every value is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from soundstage.pipeline import DEFAULT_MIN_SCORE, AnalysisOptions
from soundstage.speech.hints import Hints
from soundstage.types import Caption, FrameScores, Segment, Waveform


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions(AnalysisOptions):
    """What a client wants to know of a stream.

    Attributes:
        partials: Tell what is being said before its end is known.
        captions: Tell what to show: speech, and sounds in brackets where sounds are asked for.
        min_score: Sounds that score less are left out.
    """

    partials: bool = True
    captions: bool = True
    min_score: float = DEFAULT_MIN_SCORE


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscribeJob:
    """Audio that the speech model is to write down.

    Attributes:
        number: Of the job in its stream.
        is_final: The result is for good; else it is a hypothesis, which may be dropped where the model is busy.
        waveform: At most 30 s.
        hints: Names that it may hold.
        draft: What its text may begin with. What is written does not depend on it, but how fast.
    """

    number: int
    is_final: bool
    waveform: Waveform
    hints: Hints = ()
    draft: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenJob:
    """Audio that the sound model is to score.

    Attributes:
        number: Of the job in its stream.
        is_final: The result is for good; else it is a first look, which may be dropped where the model is busy.
        waveform: At most 30 s.
    """

    number: int
    is_final: bool
    waveform: Waveform


Job = TranscribeJob | ListenJob
Answer = Segment | FrameScores | None
"""Of a TranscribeJob: what was said, or None for nothing. Of a ListenJob: scores; None where the job was dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """What is being said, as far as it is known; the next one of the same utterance replaces it.

    Attributes:
        utterance: 0 for the first of the stream.
        committed: Words that two successive hypotheses agree on; no later partial takes them back.
        tentative: What follows them for now.
    """

    utterance: int
    start_s: float
    end_s: float
    committed: str
    tentative: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """What was said between two pauses, for good."""

    utterance: int
    segment: Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """Something heard.

    Attributes:
        sound: The same number in every event about one sound.
        state: It "started"; it "ended"; it is "confirmed" with the times and the score that the whole context gives,
            which are those of the same audio as a file; or it is "withdrawn", since with more context it is none.
            The last of a sound is one of the latter two.
        end_s: None while it sounds.
    """

    sound: int
    state: Literal["started", "ended", "confirmed", "withdrawn"]
    label: str
    score: float
    start_s: float
    end_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelReading:
    """How loud the last second was.

    Attributes:
        momentary_lufs: Loudest 400 ms in it; None for silence.
        short_term_lufs: Of the last 3 s; None for silence.
        sample_peak_dbfs: None for digital silence.

    Source: EBU Tech 3341.
    """

    start_s: float
    end_s: float
    momentary_lufs: float | None
    short_term_lufs: float | None
    sample_peak_dbfs: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCaption:
    """A caption that is ready to show.

    Attributes:
        is_sound: It tells of a sound, not of speech.
    """

    caption: Caption
    is_sound: bool


LiveEvent = Partial | Final | Sound | LevelReading | LiveCaption
