"""Bodies of requests and responses. Times in seconds, rounded to a millisecond; scores in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deployments.answers import ServedModel
from soundstage.captions.formats import FORMATS
from soundstage.speech.profanity import Profanity
from soundstage.types import Analysis, ChunkAnalysis, JsonObject, Levels, PcmEncoding, Segment, SoundEvent, Tag

Milliseconds = Annotated[float, AfterValidator(lambda value: round(value, 3))]
Score = Annotated[float, AfterValidator(lambda value: round(value, 4)), Field(ge=0, le=1)]
Decibels = Annotated[float, AfterValidator(lambda value: round(value, 2))]

RESPONSE_FORMATS = ("json", "ndjson", *FORMATS)
DOCUMENT_FORMATS = ("json", *FORMATS)
"""What the last line of NDJSON may carry."""


_EXAMPLE: JsonObject = {
    "request_id": "5f0c7a34",
    "duration_s": 9.2,
    "language": "en",
    "text": "Is anybody home?",
    "segments": [
        {
            "start_s": 1.1,
            "end_s": 2.6,
            "text": "Is anybody home?",
            "words": [
                {"text": "Is", "start_s": 1.28, "end_s": 1.43, "confidence": 0.9731},
                {"text": "anybody", "start_s": 1.43, "end_s": 1.98, "confidence": 0.9902},
                {"text": "home?", "start_s": 1.98, "end_s": 2.41, "confidence": 0.9975},
            ],
            "avg_logprob": -0.21,
            "no_speech_prob": 0.02,
            "is_retried": False,
        }
    ],
    "events": [{"label": "dog", "score": 0.97, "start_s": 3.2, "end_s": 4.8}],
    "tags": [{"label": "dog", "score": 0.97}, {"label": "speech", "score": 0.95}],
    "levels": {
        "integrated_lufs": -23.1,
        "loudness_range_lu": 4.2,
        "true_peak_dbtp": -3.4,
        "sample_peak_dbfs": -3.6,
        "n_clipped_samples": 0,
        "silence": [],
        "n_channels": 2,
        "sample_rate": 48000,
    },
    "models": {"moonshine-tiny-en": "1.0.0", "soundstage-sounds": "1.0.0"},
}


class Body(BaseModel):
    """Base of all bodies: read from our own frozen types, unknown names refused."""

    model_config = ConfigDict(from_attributes=True, extra="forbid", frozen=True)


BodyT = TypeVar("BodyT", bound=Body)


class WordBody(Body):
    """One spoken word."""

    text: str
    start_s: Milliseconds
    end_s: Milliseconds
    confidence: Score


class SegmentBody(Body):
    """Speech between two pauses."""

    start_s: Milliseconds
    end_s: Milliseconds
    text: str
    words: tuple[WordBody, ...]
    avg_logprob: Annotated[float, AfterValidator(lambda value: round(value, 4))]
    no_speech_prob: Score
    is_retried: bool


class EventBody(Body):
    """Something heard, with its times."""

    label: str
    score: Score
    start_s: Milliseconds
    end_s: Milliseconds


class TagBody(Body):
    """What the clip holds."""

    label: str
    score: Score


class RegionBody(Body):
    """A stretch of the clip."""

    start_s: Milliseconds
    end_s: Milliseconds


class LevelsBody(Body):
    """How loud the source is: EBU R 128, true peak, clipping and silence."""

    integrated_lufs: Decibels | None
    loudness_range_lu: Decibels | None
    true_peak_dbtp: Decibels | None
    sample_peak_dbfs: Decibels | None
    n_clipped_samples: int
    silence: tuple[RegionBody, ...]
    n_channels: int
    sample_rate: int


class AnalysisBody(Body):
    """The answer of POST /v1/analyze in JSON."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    request_id: str
    duration_s: Milliseconds
    language: str
    text: str
    segments: tuple[SegmentBody, ...]
    events: tuple[EventBody, ...]
    tags: tuple[TagBody, ...]
    levels: LevelsBody | None
    models: dict[str, str]
    """Name to version."""

    @classmethod
    def of(cls, analysis: Analysis) -> AnalysisBody:
        """The body of an analysis."""
        return cls(
            request_id=analysis.request_id,
            duration_s=analysis.duration_s,
            language=analysis.language,
            text=analysis.text,
            segments=_each(SegmentBody, analysis.segments),
            events=_each(EventBody, analysis.events),
            tags=_each(TagBody, analysis.tags),
            levels=levels_body(analysis.levels),
            models=dict(analysis.model_versions),
        )


class ChunkBody(Body):
    """A line of NDJSON: what one chunk of the clip gave."""

    type: Literal["chunk"] = "chunk"
    index: int
    is_last: bool
    start_s: Milliseconds
    end_s: Milliseconds
    segments: tuple[SegmentBody, ...]
    events: tuple[EventBody, ...]
    tags: tuple[TagBody, ...]

    @classmethod
    def of(cls, chunk: ChunkAnalysis) -> ChunkBody:
        """The line of a chunk."""
        return cls(
            index=chunk.index,
            is_last=chunk.is_last,
            start_s=chunk.start_s,
            end_s=chunk.end_s,
            segments=_each(SegmentBody, chunk.segments),
            events=_each(EventBody, chunk.events),
            tags=_each(TagBody, chunk.tags),
        )


class DocumentBody(Body):
    """The analysis as a file in one of the other formats."""

    format: str
    media_type: str
    suffix: str
    """Of the file, after its stem."""
    text: str


class SummaryBody(Body):
    """The last line of NDJSON: what is known once all was heard."""

    type: Literal["summary"] = "summary"
    request_id: str
    duration_s: Milliseconds
    language: str
    tags: tuple[TagBody, ...]
    levels: LevelsBody | None
    models: dict[str, str]
    documents: tuple[DocumentBody, ...]
    """Those that were asked for."""

    @classmethod
    def of(cls, analysis: Analysis, documents: Sequence[DocumentBody] = ()) -> SummaryBody:
        """The line that ends the stream."""
        return cls(
            request_id=analysis.request_id,
            duration_s=analysis.duration_s,
            language=analysis.language,
            tags=_each(TagBody, analysis.tags),
            levels=levels_body(analysis.levels),
            models=dict(analysis.model_versions),
            documents=tuple(documents),
        )


class ErrorDetail(Body):
    """What went wrong, for programs and for people."""

    code: str
    message: str
    request_id: str


class ErrorBody(Body):
    """Every error has this body."""

    error: ErrorDetail


class RefusalBody(Body):
    """What was asked for and is not done."""

    version: str | None
    """Null where the configuration itself is wrong."""
    reason: str


class CandidateBody(Body):
    """The model that is tried out on a share of the requests."""

    version: str | None
    """Null while none is loaded."""
    share: float
    refused: RefusalBody | None


class ModelBody(Body):
    """A version of a model that is being served; also has the fields of OpenAI's list of models."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "soundstage"
    version: str
    kind: str
    description: str
    licence: str
    source: str
    labels: tuple[str, ...]
    languages: tuple[str, ...]
    metrics: dict[str, float]
    n_replicas: int
    """That serve this version."""
    refused: RefusalBody | None
    """Why one of them does not serve what it was asked to."""
    candidate: CandidateBody | None

    @classmethod
    def of_each(cls, served: Iterable[ServedModel]) -> tuple[Self, ...]:
        """One body for each model and version, the one that most replicas serve first."""
        versions: dict[tuple[str, str], list[ServedModel]] = {}
        for replica in served:
            versions.setdefault((replica.card.name, replica.card.version), []).append(replica)
        return tuple(cls._of(replicas) for replicas in sorted(versions.values(), key=len, reverse=True))

    @classmethod
    def _of(cls, replicas: Sequence[ServedModel]) -> Self:
        card = replicas[0].card
        refusals = (replica.refused for replica in replicas if replica.refused is not None)
        candidates = [replica.candidate for replica in replicas if replica.candidate is not None]
        return cls.model_validate(
            {
                "id": card.name,
                **card.model_dump(exclude={"name", "files"}),
                "n_replicas": len(replicas),
                "refused": next(refusals, None),
                "candidate": next((each for each in candidates if each.refused), next(iter(candidates), None)),
            }
        )


class ModelListBody(Body):
    """All models that are being served."""

    object: Literal["list"] = "list"
    data: tuple[ModelBody, ...]


class StatusBody(Body):
    """The answer of the health routes."""

    status: Literal["ok", "ready"]


class AnalyzeQuery(BaseModel):
    """Parameters of POST /v1/analyze, in the query or as form fields beside the file."""

    model_config = ConfigDict(extra="forbid")

    tasks: str = Field("speech,sounds,levels", description="Any of speech, sounds, levels, separated by commas.")
    response_format: str = Field("json", description=f"One of {', '.join(RESPONSE_FORMATS)}.")
    documents: str = Field(
        "", description="With ndjson: formats, separated by commas, that its last line carries as documents."
    )
    language: str | None = Field(None, description="ISO 639-1; only en so far.")
    min_score: float | None = Field(None, ge=0, le=1, description="Leave out tags and events that score less.")
    hints: str = Field("", description="Names and words that may be said, separated by commas or line ends.")
    profanity: Profanity = Field("keep", description="mask leaves the first letter of swear words alone.")
    start_timecode: str | None = Field(
        None, description="HH:MM:SS:FF of the first frame (a ; before FF means drop frame). Else that of the file."
    )
    frame_rate: float | None = Field(None, gt=0, description="Frames a second of the timecode. Else that of the file.")
    sample_rate: int | None = Field(None, gt=0, description="Hz. Raw PCM needs it.")
    channels: int | None = Field(None, gt=0, description="Of raw PCM; 1 if left out.")
    encoding: PcmEncoding | None = Field(None, description="Of raw PCM; else that of its media type.")


def levels_body(levels: Levels | None) -> LevelsBody | None:
    """The body of a level report."""
    return None if levels is None else LevelsBody.model_validate(levels)


def _each(body: type[BodyT], values: tuple[Segment | SoundEvent | Tag, ...]) -> tuple[BodyT, ...]:
    return tuple(body.model_validate(value) for value in values)
