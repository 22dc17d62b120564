"""Decodes, cuts, and has each chunk looked at by the models, a bounded number at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments import logs
from deployments.answers import Scores, ServedModel, Transcripts
from deployments.graph_calls import call, call_all
from deployments.metrics import ClipMetrics, ContentMetrics, StepMetrics
from deployments.resources import n_assigned_cores
from deployments.settings import AppArgs, PreprocessConfig, changed
from soundstage.pipeline import AnalysisOptions, ChunkAssembler, ClipReader, Task, regions_of
from soundstage.types import SAMPLE_RATE, Chunk, ChunkAnalysis, ClipSummary, EncodedAudio

_BYTES_PER_SAMPLE = 4
_log = logging.getLogger(__name__)


class Preprocessor:
    """One clip at a time for each ongoing request; keeps nothing between them."""

    def __init__(self, args: AppArgs, voice: DeploymentHandle[Any], sounds: DeploymentHandle[Any]) -> None:
        logs.take_over()
        self._args = args
        self._voice = voice
        self._sounds = sounds
        self._config: PreprocessConfig | None = None
        self._steps = StepMetrics(type(self).__name__)
        self._clips = ClipMetrics()
        self._content = ContentMetrics("file")
        # Decoding blocks: as many clips decode at once as there are cores for it, the others wait their turn.
        self._decoders = ThreadPoolExecutor(n_assigned_cores(), thread_name_prefix="decode")

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over new thresholds; clips that are under way keep the old ones."""
        self._config = changed(self._config, PreprocessConfig, user_config)

    def check_health(self) -> None:
        """Decode, cut and find no speech in a second of silence.

        Raises:
            RuntimeError: It gave something else.
        """
        silence = EncodedAudio(
            data=bytes(2 * SAMPLE_RATE), media_type="audio/pcm", sample_rate=SAMPLE_RATE, n_channels=1
        )
        chunks = list(ClipReader(silence, self._args.reading, AnalysisOptions(tasks=frozenset({Task.SPEECH}))).chunks())
        if len(chunks) != 1 or chunks[0].speech:
            raise RuntimeError(f"a second of silence gave {chunks}")

    async def models(self) -> list[ServedModel]:
        """What each replica of both stages serves.

        Raises:
            Overloaded: A stage has no replica that answers.
        """
        timeout_s = self._args.deadlines.probe_s
        voice, sounds = await asyncio.gather(
            *(call_all(stage, "served_model", timeout_s=timeout_s) for stage in (self._voice, self._sounds))
        )
        return [*voice, *sounds]

    async def analyze(
        self, audio: EncodedAudio, options: AnalysisOptions
    ) -> AsyncIterator[ChunkAnalysis | ClipSummary]:
        """Each chunk as it is done, in order, then the summary.

        Raises:
            ServiceError: As the error table says.
        """
        start_s = time.perf_counter()
        reader = ClipReader(audio, self._args.reading, options)
        assembler = ChunkAssembler((self._config or PreprocessConfig()).events, options.profanity)
        versions: dict[str, str] = {}
        pending: deque[asyncio.Task[_Heard]] = deque()
        async with contextlib.aclosing(self._chunks(reader)) as chunks:
            try:
                async for chunk in chunks:
                    pending.append(asyncio.create_task(self._hear(chunk, options)))
                    while len(pending) >= self._args.max_chunks_in_flight or (pending and pending[0].done()):
                        yield self._counted((await pending.popleft()).assemble(assembler, versions))
                while pending:
                    yield self._counted((await pending.popleft()).assemble(assembler, versions))
            finally:
                for task in pending:
                    task.cancel()
        summary = replace(reader.summary, model_versions=tuple(sorted(versions.items())))
        self._ended(summary, time.perf_counter() - start_s)
        yield summary

    def _ended(self, summary: ClipSummary, seconds: float) -> None:
        """Count and log a clip that was analysed."""
        self._clips.done(audio_s=summary.duration_s, seconds=seconds)
        if summary.levels is not None:
            self._content.levels(summary.levels)
        models = [f"{name}@{version}" for name, version in summary.model_versions]
        fields = {
            "event.action": "clip",
            "event.duration": round(seconds * 1e9),
            "soundstage.audio_seconds": round(summary.duration_s, 3),
            "soundstage.models": models,
        }
        message = "%.1f s of audio in %.3f s by %s"
        _log.info(message, summary.duration_s, seconds, ", ".join(models) or "no model", extra=fields)

    def _counted(self, analysis: ChunkAnalysis) -> ChunkAnalysis:
        self._content.chunk(analysis)
        return analysis

    async def _chunks(self, reader: ClipReader) -> AsyncGenerator[Chunk, None]:
        """The reader's chunks, read in a thread of their own."""
        loop = asyncio.get_running_loop()
        chunks = reader.chunks()
        try:
            while (chunk := await loop.run_in_executor(self._decoders, self._decode_next, chunks)) is not None:
                yield chunk
        finally:
            # A thread may still be inside the generator when the client leaves; closing waits its turn behind it.
            await asyncio.shield(loop.run_in_executor(self._decoders, chunks.close))

    def _decode_next(self, chunks: Iterator[Chunk]) -> Chunk | None:
        with self._steps.timed("decode"):
            return next(chunks, None)

    async def _hear(self, chunk: Chunk, options: AnalysisOptions) -> _Heard:
        """Both models at once."""
        regions = tuple(regions_of(chunk)) if Task.SPEECH in options.tasks else ()
        speech, sounds = await asyncio.gather(
            self._ask(self._voice, "transcribe", regions, options.hints, n_samples=sum(len(r.samples) for r in regions))
            if regions
            else _nothing(),
            self._ask(self._sounds, "listen", chunk.waveform, n_samples=len(chunk.waveform.samples))
            if Task.SOUNDS in options.tasks
            else _nothing(),
        )
        return _Heard(chunk, speech, sounds)

    async def _ask(self, stage: DeploymentHandle[Any], method: str, *payload: object, n_samples: int) -> Any:
        start_s = time.perf_counter()
        answer = await call(
            stage,
            method,
            *payload,
            n_bytes=n_samples * _BYTES_PER_SAMPLE,
            max_inline_bytes=self._args.max_inline_bytes,
            timeout_s=self._args.deadlines.chunk_s,
        )
        self._steps.observe("network", time.perf_counter() - start_s - answer.spent_s)
        return answer


async def _nothing() -> None:
    """Stands for a stage that was not asked."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """What the models gave for a chunk."""

    chunk: Chunk
    speech: Transcripts | None
    sounds: Scores | None

    def assemble(self, assembler: ChunkAssembler, versions: dict[str, str]) -> ChunkAnalysis:
        versions.update(answer.model for answer in (self.speech, self.sounds) if answer is not None)
        return assembler.push(
            self.chunk,
            self.speech.segments if self.speech is not None else None,
            self.sounds.scores if self.sounds is not None else None,
            self.sounds.events if self.sounds is not None else None,
        )
