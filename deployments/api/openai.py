"""POST /v1/audio/transcriptions: the shape that OpenAI's client libraries speak.

Source: platform.openai.com/docs/api-reference/audio/createTranscription, and the types of the `openai` package.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deployments.api.schemas import Body, Milliseconds
from soundstage.errors import InvalidRequest, NotFound
from soundstage.pipeline import SPEECH_MODEL
from soundstage.types import Analysis, ChunkAnalysis, ClipSummary, Segment, Word

MODEL_ALIASES = frozenset({SPEECH_MODEL, "whisper-1"})
"""Client libraries insist on a model; "whisper-1" is what most of them send. One model answers all of them."""

RESPONSE_FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
_LANGUAGE_NAMES = {"en": "english"}
GRANULARITIES = ("segment", "word")
_GRANULARITIES = "timestamp_granularities[]"


class TranscriptionFields(BaseModel):
    """Form fields beside the file."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(SPEECH_MODEL, description=f"One of {', '.join(sorted(MODEL_ALIASES))}.")
    language: str | None = Field(None, description="ISO 639-1; only en so far.")
    response_format: str = Field("json", description=f"One of {', '.join(RESPONSE_FORMATS)}.")
    stream: bool = Field(default=False, description="Send server-sent events, text as it is recognised.")
    temperature: float = Field(0.0, ge=0, le=1, description="Accepted and without effect: decoding is greedy.")
    prompt: str | None = Field(
        None, description="Names that may be said, separated by commas; sentences are without effect."
    )
    granularities: tuple[str, ...] = Field(
        ("segment",),
        alias=_GRANULARITIES,
        description=f"Which times verbose_json has: {', '.join(GRANULARITIES)}; send the field once for each.",
    )


def parse_fields(fields: Mapping[str, str | tuple[str, ...]]) -> TranscriptionFields:
    """Check the form.

    Raises:
        InvalidRequest: A field is unknown or malformed, or times are asked for where there is no place for them.
        NotFound: The model is not served.
        ValidationError: A field has the wrong type.
    """
    parsed = TranscriptionFields.model_validate(fields)
    if parsed.model not in MODEL_ALIASES:
        raise NotFound(f"model {parsed.model!r} is not served; use one of {', '.join(sorted(MODEL_ALIASES))}")
    if parsed.response_format not in RESPONSE_FORMATS:
        raise InvalidRequest(f"response_format={parsed.response_format!r}: choose from {', '.join(RESPONSE_FORMATS)}")
    for granularity in parsed.granularities:
        if granularity not in GRANULARITIES:
            raise InvalidRequest(f"{_GRANULARITIES}={granularity!r}: choose from {', '.join(GRANULARITIES)}")
    if _GRANULARITIES in fields and (parsed.response_format != "verbose_json" or parsed.stream):
        raise InvalidRequest(f"{_GRANULARITIES} needs response_format=verbose_json, and no stream")
    return parsed


class TranscriptionSegment(Body):
    """A segment of verbose_json."""

    id: int
    seek: int = 0
    start: Milliseconds
    end: Milliseconds
    text: str
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    avg_logprob: Annotated[float, AfterValidator(lambda value: round(value, 4))]
    compression_ratio: float = 1.0
    no_speech_prob: float


class TranscriptionWord(Body):
    """A word of verbose_json."""

    word: str
    start: Milliseconds
    end: Milliseconds


def json_body(analysis: Analysis) -> dict[str, Any]:
    """The body of response_format=json."""
    return {"text": analysis.text, "usage": _usage(analysis.duration_s)}


def verbose_body(analysis: Analysis, granularities: Collection[str]) -> dict[str, Any]:
    """The body of response_format=verbose_json, with segments, words or both."""
    body = {
        "task": "transcribe",
        "language": _LANGUAGE_NAMES[analysis.language],
        "duration": round(analysis.duration_s, 3),
        "text": analysis.text,
        "usage": _usage(analysis.duration_s),
    }
    if "segment" in granularities:
        body["segments"] = [_segment(number, segment) for number, segment in enumerate(analysis.segments)]
    if "word" in granularities:
        body["words"] = [_word(word) for segment in analysis.segments for word in segment.words]
    return body


async def events(parts: AsyncIterator[ChunkAnalysis | ClipSummary]) -> AsyncIterator[str]:
    """The events of stream=true: text as it is recognised, then all of it."""
    said: list[str] = []
    async for part in parts:
        if isinstance(part, ClipSummary):
            yield json.dumps({"type": "transcript.text.done", "text": " ".join(said), "usage": _usage(part.duration_s)})
            return
        for segment in part.segments:
            yield json.dumps({"type": "transcript.text.delta", "delta": (" " if said else "") + segment.text})
            said.append(segment.text)


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    return TranscriptionSegment(
        id=number,
        start=segment.start_s,
        end=segment.end_s,
        text=segment.text,
        avg_logprob=segment.avg_logprob,
        no_speech_prob=segment.no_speech_prob,
    ).model_dump(mode="json")


def _word(word: Word) -> dict[str, Any]:
    return TranscriptionWord(word=word.text, start=word.start_s, end=word.end_s).model_dump(mode="json")


def _usage(duration_s: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(duration_s, 3)}
