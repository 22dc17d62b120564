"""From encoded audio to an Analysis, as a stream of chunks.

Reading, order and assembly are here, once, for the command line, for training and for the serving graph; who runs
the models, and where, is the caller's matter.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from soundstage.audio.chunks import Chunker
from soundstage.audio.decode import open_audio
from soundstage.audio.levels import LevelMeter
from soundstage.audio.resample import Resampler
from soundstage.errors import InvalidRequest
from soundstage.models import registry
from soundstage.params import ChunkParams, EventParams, LevelParams, Limits, Params, SpanParams, VoiceActivityParams
from soundstage.sound.events import EventTracker
from soundstage.speech.hints import Hints
from soundstage.speech.profanity import Profanity, masked
from soundstage.speech.spans import Heard, in_context, own_segments
from soundstage.types import (
    Analysis,
    Chunk,
    ChunkAnalysis,
    ClipSummary,
    EncodedAudio,
    FrameScores,
    Segment,
    SoundEvent,
    Tag,
    Waveform,
)

if TYPE_CHECKING:
    from soundstage.sound.listener import SoundListener
    from soundstage.speech.transcriber import Transcriber

SPEECH_MODEL = "moonshine-tiny-en"
SOUND_MODEL = "soundstage-sounds"
"""Names in the registry of the models that are used unless others are named."""

DEFAULT_MIN_SCORE = 0.3
"""Tags and events that score less are left out unless they are asked for."""

LANGUAGES = ("en",)
"""ISO 639-1 codes of the languages that the speech model writes."""


class Task(StrEnum):
    """What can be asked for."""

    SPEECH = "speech"
    SOUNDS = "sounds"
    LEVELS = "levels"


ALL_TASKS = frozenset(Task)


class ReadingParams(Params):
    """How a clip is read and cut."""

    limits: Limits = Limits()
    chunks: ChunkParams = ChunkParams()
    voice_activity: VoiceActivityParams = VoiceActivityParams()
    levels: LevelParams = LevelParams()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisOptions:
    """What a client wants to know.

    Attributes:
        tasks: At least one.
        language: ISO 639-1; None leaves it to the model.
        hints: Names and words that the clip may hold, see soundstage.speech.hints.
        profanity: "mask" leaves the first letter of swear words alone.

    Raises:
        InvalidRequest: No task, or a language that the model does not write.
    """

    tasks: frozenset[Task] = ALL_TASKS
    language: str | None = None
    hints: Hints = ()
    profanity: Profanity = "keep"

    def __post_init__(self) -> None:
        if not self.tasks:
            raise InvalidRequest(f"no task given; choose from {', '.join(Task)}")
        if self.language is not None and self.language not in LANGUAGES:
            raise InvalidRequest(
                f"language {self.language!r} is not supported; leave it out or use {', '.join(LANGUAGES)}"
            )


def parse_tasks(text: str) -> frozenset[Task]:
    """Read a comma-separated list of tasks.

    Raises:
        InvalidRequest: A name is not a task.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    try:
        return frozenset(Task(name) for name in names)
    except ValueError as e:
        raise InvalidRequest(f"tasks={text!r}: choose from {', '.join(Task)}, separated by commas") from e


class ClipReader:
    """Encoded audio as a stream of chunks; take `chunks` once, then read `summary`.

    Memory does not grow with the length of the clip. Iterating blocks: keep it off an event loop.

    Args:
        source: Bytes in memory, or a path.
        params: How the clip is read and cut.
        options: A level report is made where it is asked for.
    """

    def __init__(self, source: EncodedAudio | Path, params: ReadingParams, options: AnalysisOptions) -> None:
        self._source = source
        self._params = params
        self._options = options
        self._summary: ClipSummary | None = None

    @property
    def summary(self) -> ClipSummary:
        """What is known once the last chunk was read."""
        assert self._summary is not None, "the summary is known after the last chunk"
        return self._summary

    def chunks(self) -> Generator[Chunk, None, None]:
        """The chunks, in order; closing the generator lets go of the source.

        Raises:
            ServiceError: The audio is unusable, unsupported or too large.
        """
        n_samples = 0
        meter: LevelMeter | None = None
        resampler: Resampler | None = None
        # Voice activity runs even where speech was not asked for: a clip is cut the same whatever is asked of it.
        chunker = Chunker(self._params.chunks, self._params.voice_activity)
        with open_audio(self._source, self._params.limits) as audio:
            for block in audio.blocks:
                if resampler is None:
                    resampler = Resampler()
                    if Task.LEVELS in self._options.tasks:
                        meter = LevelMeter(self._params.levels)
                if meter is not None:
                    meter.push(block)
                samples = resampler.push(block)
                n_samples += len(samples)
                yield from chunker.push(samples)
            info = audio.info
        tail = resampler.finish() if resampler is not None else np.zeros(0, np.float32)
        n_samples += len(tail)
        yield from chunker.push(tail)
        last = chunker.finish()
        self._summary = ClipSummary(
            duration_s=n_samples / Waveform(samples=tail).sample_rate,
            levels=meter.result() if meter is not None else None,
            start_timecode=info.start_timecode,
            time_reference_s=info.time_reference_s,
            frame_rate=info.frame_rate,
        )
        yield from last


def regions_of(chunk: Chunk) -> list[Waveform]:
    """The stretches of a chunk in which somebody speaks, short pauses included, as waveforms in stream time.

    Where speech was cut, they reach beyond the cut.
    """
    return [chunk.heard.between(heard.start_s, heard.end_s) for heard in _in_context(chunk)]


def _in_context(chunk: Chunk) -> list[Heard]:
    return in_context(chunk, SpanParams(), ChunkParams().context_s)


@dataclass(slots=True)
class ChunkAssembler:
    """Turns what the models gave for each chunk, in order, into ChunkAnalyses; holds events that are still sounding.

    Attributes:
        events: How scores become events, whatever the model says; None for what each model was given.
        profanity: What becomes of swear words.
    """

    events: EventParams | None = None
    profanity: Profanity = "keep"
    tracker: EventTracker = field(init=False, default_factory=lambda: EventTracker(EventParams()))

    def push(
        self,
        chunk: Chunk,
        segments: Sequence[Segment | None] | None,
        scores: FrameScores | None,
        model_events: EventParams | None = None,
    ) -> ChunkAnalysis:
        """The analysis of the next chunk.

        Args:
            chunk: The chunk after the one pushed before.
            segments: Of each of `regions_of`; None where speech was not asked for.
            scores: None where sounds were not asked for.
            model_events: Of the model that gave the scores. It may be exchanged in the middle of a clip; what sounds
                then goes on.
        """
        events: list[SoundEvent] = []
        tags: tuple[Tag, ...] = ()
        end_s = chunk.waveform.end_s
        if scores is not None:
            self.tracker.params = self.events or model_events or self.tracker.params
            # the last frame may reach beyond the end
            events = [
                replace(event, start_s=min(event.start_s, end_s), end_s=min(event.end_s, end_s))
                for event in self.tracker.push(scores, is_last=chunk.is_last)
            ]
            tags = rank_tags(zip(scores.labels, scores.tags.tolist(), strict=True))
        believed = (
            [
                part
                for segment, heard in zip(segments, _in_context(chunk), strict=True)
                if segment is not None
                for part in own_segments(segment, heard)
            ]
            if segments is not None
            else []
        )
        return ChunkAnalysis(
            index=chunk.index,
            is_last=chunk.is_last,
            start_s=chunk.waveform.start_s,
            end_s=end_s,
            segments=tuple(masked(segment) if self.profanity == "mask" else segment for segment in believed),
            events=tuple(events),
            tags=tags,
        )


def without_faint(part: ChunkAnalysis, min_score: float) -> ChunkAnalysis:
    """The chunk without tags and events that score less."""
    return replace(
        part,
        events=tuple(event for event in part.events if event.score >= min_score),
        tags=tuple(tag for tag in part.tags if tag.score >= min_score),
    )


def rank_tags(scores: Iterable[tuple[str, float]]) -> tuple[Tag, ...]:
    """Tags by falling score, then by name."""
    ranked = sorted(scores, key=lambda item: (-item[1], item[0]))
    return tuple(Tag(label=label, score=min(1.0, max(0.0, score))) for label, score in ranked)


@dataclass(slots=True)
class AnalysisCollector:
    """Gathers the ChunkAnalyses of one clip, in order, into its Analysis."""

    segments: list[Segment] = field(default_factory=list)
    events: list[SoundEvent] = field(default_factory=list)
    best_scores: dict[str, float] = field(default_factory=dict)

    def push(self, part: ChunkAnalysis) -> None:
        """Add the next chunk; a tag of the clip scores what it scored where it was clearest."""
        self.segments.extend(part.segments)
        self.events.extend(part.events)
        for tag in part.tags:
            self.best_scores[tag.label] = max(tag.score, self.best_scores.get(tag.label, 0.0))

    def finish(self, summary: ClipSummary, *, request_id: str, language: str | None = None) -> Analysis:
        """The analysis of the whole clip."""
        return Analysis(
            request_id=request_id,
            duration_s=summary.duration_s,
            language=language or LANGUAGES[0],
            segments=tuple(self.segments),
            events=tuple(sorted(self.events, key=lambda event: (event.start_s, event.end_s, event.label))),
            tags=rank_tags(self.best_scores.items()),
            levels=summary.levels,
            model_versions=summary.model_versions,
        )


class Pipeline:
    """Everything in one process, without Ray: for the command line, evaluation and benchmarks.

    Args:
        transcriber: None leaves speech out.
        listener: None leaves sounds out.
        reading: How clips are read and cut.
        events: How frame scores become events; None for what the model was given beside its weights.
    """

    def __init__(
        self,
        transcriber: Transcriber | None,
        listener: SoundListener | None,
        *,
        reading: ReadingParams | None = None,
        events: EventParams | None = None,
    ) -> None:
        self._transcriber = transcriber
        self._listener = listener
        self._reading = reading or ReadingParams()
        self._events = events or (listener.params.events if listener is not None else EventParams())
        self._model_versions = tuple(
            (model.card.name, model.card.version) for model in (transcriber, listener) if model is not None
        )

    @classmethod
    def load(
        cls, tasks: frozenset[Task] = ALL_TASKS, *, n_threads: int | None = None, reading: ReadingParams | None = None
    ) -> Self:
        """Load the default models that these tasks need.

        Raises:
            ModelError: A model is missing or damaged.
        """
        # Imported here, since TensorFlow takes seconds to load and a client of a running service has no need of it.
        from soundstage.sound.listener import SoundListener  # noqa: PLC0415
        from soundstage.speech.transcriber import Transcriber  # noqa: PLC0415

        return cls(
            Transcriber(registry.find(SPEECH_MODEL), n_threads=n_threads) if Task.SPEECH in tasks else None,
            SoundListener(registry.find(SOUND_MODEL), n_threads=n_threads) if Task.SOUNDS in tasks else None,
            reading=reading,
        )

    def stream(self, source: EncodedAudio | Path, options: AnalysisOptions) -> Iterator[ChunkAnalysis | ClipSummary]:
        """Each chunk as it is done, then the summary.

        Raises:
            ServiceError: As the error table says.
        """
        reader = ClipReader(source, self._reading, options)
        speech = self._transcriber if Task.SPEECH in options.tasks else None
        sounds = self._listener if Task.SOUNDS in options.tasks else None
        assembler = ChunkAssembler(self._events, options.profanity)
        for chunk in reader.chunks():
            regions = regions_of(chunk)
            segments = speech.transcribe(regions, [options.hints] * len(regions)) if speech is not None else None
            scores = sounds.listen([chunk.waveform])[0] if sounds is not None else None
            yield assembler.push(chunk, segments, scores)
        yield replace(reader.summary, model_versions=self._model_versions)

    def analyze(
        self, source: EncodedAudio | Path, options: AnalysisOptions | None = None, *, request_id: str = ""
    ) -> Analysis:
        """The whole clip at once.

        Raises:
            ServiceError: As the error table says.
        """
        options = options or AnalysisOptions()
        collector = AnalysisCollector()
        summary: ClipSummary | None = None
        for part in self.stream(source, options):
            if isinstance(part, ClipSummary):
                summary = part
            else:
                collector.push(part)
        assert summary is not None
        return collector.finish(summary, request_id=request_id, language=options.language)
