"""Messages of WS /v1/stream, both ways. Times in seconds of the stream, rounded to a millisecond; scores in [0, 1].

docs/asyncapi.yaml is written from these models: `python -m deployments.api.asyncapi`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from deployments.api.schemas import Body, Decibels, LevelsBody, Milliseconds, Score, SegmentBody
from soundstage.errors import ServiceError
from soundstage.live.decode import Encoding
from soundstage.live.events import Final, LevelReading, LiveCaption, LiveEvent, Partial, Sound
from soundstage.pipeline import Task
from soundstage.speech.profanity import Profanity

# From the client


class ClientMessage(BaseModel):
    """Base of what a client sends; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StartMessage(ClientMessage):
    """Opens a stream; the first message of a connection, with `type` or without."""

    type: Literal["start"] = "start"
    encoding: Encoding = Field(description="Of the binary messages; opus comes in Ogg or WebM.")
    sample_rate: int | None = Field(None, gt=0, description="Hz. PCM needs it.")
    n_channels: int | None = Field(None, gt=0, description="Of PCM, interleaved; 1 if left out.")
    language: str | None = Field(None, description="ISO 639-1; only en so far.")
    tasks: tuple[Task, ...] = Field(tuple(Task), description="What to listen for; all if left out.")
    partials: bool = Field(True, description="Tell what is being said before its end is known.")
    captions: bool = Field(True, description="Tell what to show: speech, and sounds in brackets.")
    min_score: float | None = Field(None, ge=0, le=1, description="Leave out sounds that score less.")
    hints: tuple[str, ...] = Field((), description="Names and words that may be said.")
    profanity: Profanity = Field("keep", description="mask leaves the first letter of swear words alone.")
    token: str | None = Field(None, description="The API key, where no Authorization header can be sent.", repr=False)


class ResumeMessage(ClientMessage):
    """Goes on with a stream whose connection broke; the first message of the new connection."""

    type: Literal["resume"]
    stream_id: str
    last_seq: int = Field(ge=0, description="Of the last event that arrived; 0 for none.")
    token: str | None = Field(None, description="As in start.", repr=False)


class FlushMessage(ClientMessage):
    """What is being said ends here."""

    type: Literal["flush"]


class EndMessage(ClientMessage):
    """The audio has ended; what is left comes, then `done`."""

    type: Literal["end"]


FirstMessage = Annotated[
    Annotated[StartMessage, Tag("start")] | Annotated[ResumeMessage, Tag("resume")],
    Discriminator(lambda value: value.get("type", "start") if isinstance(value, dict) else None),
]
ControlMessage = Annotated[FlushMessage | EndMessage, Field(discriminator="type")]

_FIRST: TypeAdapter[StartMessage | ResumeMessage] = TypeAdapter(FirstMessage)
_CONTROL: TypeAdapter[FlushMessage | EndMessage] = TypeAdapter(ControlMessage)


# From the server


class ServerMessage(Body):
    """Base of what the server sends.

    `seq` counts the messages of a stream: 1, 2, 3 and so on, over all of its connections.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    seq: int | None = None


class ReadyMessage(ServerMessage):
    """The stream is open: send audio, from this byte on. After a resumption, `seq` is null."""

    type: Literal["ready"] = "ready"
    stream_id: str
    received_s: Milliseconds
    """Audio that was taken."""
    received_bytes: int
    """Bytes that were taken; after a resumption, send on from here."""
    resume_within_s: float
    """How long the stream is kept after its connection breaks."""
    models: dict[str, str]
    """Name to version of those that are served now."""


class PartialMessage(ServerMessage):
    """What is being said, so far. The next one of the same utterance replaces it, and the final one ends it."""

    type: Literal["partial"] = "partial"
    utterance: int
    start_s: Milliseconds
    end_s: Milliseconds
    committed: str
    """Words that no later partial takes back."""
    tentative: str
    """What follows them for now."""
    text: str
    """Both."""


class FinalMessage(SegmentBody, ServerMessage):
    """What was said between two pauses, for good."""

    type: Literal["final"] = "final"
    utterance: int


class SoundMessage(ServerMessage):
    """Something heard: it started, it ended, and it is confirmed or withdrawn once its whole context is known."""

    type: Literal["sound"] = "sound"
    sound: int
    state: Literal["started", "ended", "confirmed", "withdrawn"]
    label: str
    score: Score
    start_s: Milliseconds
    end_s: Milliseconds | None


class LevelsMessage(ServerMessage):
    """How loud the last second was."""

    type: Literal["levels"] = "levels"
    start_s: Milliseconds
    end_s: Milliseconds
    momentary_lufs: Decibels | None
    short_term_lufs: Decibels | None
    sample_peak_dbfs: Decibels | None


class CaptionMessage(ServerMessage):
    """What to show, and when."""

    type: Literal["caption"] = "caption"
    start_s: Milliseconds
    end_s: Milliseconds
    lines: tuple[str, ...]
    is_sound: bool


WarningCode = Literal["slow_reader", "silent_client", "lagging", "audio_ahead", "draining", "odd_length"]


class WarningMessage(ServerMessage):
    """Something to know, and perhaps to do; the stream goes on."""

    type: Literal["warning"] = "warning"
    code: WarningCode
    message: str


class ErrorMessage(ServerMessage):
    """Why the connection is closed next; `seq` is null."""

    type: Literal["error"] = "error"
    code: str
    message: str


class DoneMessage(ServerMessage):
    """All was told; the connection is closed next."""

    type: Literal["done"] = "done"
    duration_s: Milliseconds
    n_finals: int
    n_words: int
    n_sounds: int
    levels: LevelsBody | None
    """Of the whole stream."""
    models: dict[str, str]
    """Name to version of each model that answered."""


ANY_SERVER_MESSAGE: tuple[type[ServerMessage], ...] = (
    ReadyMessage,
    PartialMessage,
    FinalMessage,
    SoundMessage,
    LevelsMessage,
    CaptionMessage,
    WarningMessage,
    ErrorMessage,
    DoneMessage,
)


def parse_first(text: str) -> StartMessage | ResumeMessage:
    """The first message of a connection.

    Raises:
        ValidationError: It is none.
    """
    return _FIRST.validate_json(text)


def parse_control(text: str) -> FlushMessage | EndMessage:
    """A later text message.

    Raises:
        ValidationError: It is none.
    """
    return _CONTROL.validate_json(text)


def told(error: ValidationError) -> str:
    """What is wrong with a message, in one line, without what it held: that may be a key."""
    problems = []
    for problem in error.errors(include_input=False, include_url=False):
        place = ".".join(str(part) for part in problem["loc"] if part not in _TYPES)
        problems.append(f"{place}: {problem['msg']}" if place else problem["msg"])
    return "; ".join(problems)


_TYPES = frozenset({"start", "resume", "flush", "end"})


def message_of(event: LiveEvent) -> ServerMessage:
    """What the client is told of an event."""
    match event:
        case Partial():
            return PartialMessage(
                utterance=event.utterance,
                start_s=event.start_s,
                end_s=event.end_s,
                committed=event.committed,
                tentative=event.tentative,
                text=" ".join(filter(None, (event.committed, event.tentative))),
            )
        case Final():
            body = SegmentBody.model_validate(event.segment)
            return FinalMessage(utterance=event.utterance, **dict(body))
        case Sound():
            return SoundMessage.model_validate(event)
        case LevelReading():
            return LevelsMessage.model_validate(event)
        case LiveCaption():
            caption = event.caption
            return CaptionMessage(
                start_s=caption.start_s, end_s=caption.end_s, lines=caption.lines, is_sound=event.is_sound
            )


def error_message(error: ServiceError) -> ErrorMessage:
    """What the client is told of an error; a bug of ours is not explained to strangers."""
    message = error.detail if error.code != ServiceError.code else "something went wrong on our side; it was logged"
    return ErrorMessage(code=error.code, message=message)
