"""Speech to text, batched by seconds of audio."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from ray import serve

from deployments.answers import Transcripts
from deployments.model_stage import ModelStage
from deployments.resources import n_assigned_cores
from deployments.settings import BatchConfig, VoiceConfig
from deployments.shadow import is_same_text
from soundstage.models.registry import ModelFolder
from soundstage.speech.hints import Hints
from soundstage.speech.transcriber import Transcriber
from soundstage.types import Segment, Waveform

Regions = tuple[Waveform, ...]
Speech = tuple[Regions, Hints]
"""The speech regions of a chunk, and what they may hold."""
Segments = list[Segment | None]


def audio_seconds(items: Sequence[Speech]) -> int:
    """Size of a batch: seconds of speech, rounded up."""
    return math.ceil(sum(region.duration_s for regions, _ in items for region in regions))


class VoiceRecognizer(ModelStage[Transcriber, VoiceConfig, Speech, Segments]):
    """Writes down what is said in the speech regions of a chunk."""

    config_type = VoiceConfig

    def _load(self, folder: ModelFolder, config: VoiceConfig) -> Transcriber:
        return Transcriber(folder, config.decoding, n_threads=n_assigned_cores())

    @staticmethod
    def _run(model: Transcriber, request: Speech) -> Segments:
        regions, hints = request
        return model.transcribe(regions, [hints] * len(regions))

    @staticmethod
    def _agree(one: Segments, other: Segments) -> bool:
        return is_same_text(one, other)

    async def transcribe(self, regions: Regions, hints: Hints = ()) -> Transcripts:
        """One entry for each region, in order."""
        start_s = time.perf_counter()
        async with self._slot.request():
            self._meter.steps.observe("queue", time.perf_counter() - start_s)
            answer: Transcripts = await self._batch((regions, hints))
        self._shadow.offer((regions, hints))
        return replace(answer, spent_s=time.perf_counter() - start_s)

    @serve.batch(
        max_batch_size=BatchConfig().max_batch_s,
        batch_wait_timeout_s=BatchConfig().wait_s,
        batch_size_fn=audio_seconds,
    )
    async def _batch(self, items: list[Speech]) -> list[Transcripts]:
        version = self._slot.version
        flat = [region for regions, _ in items for region in regions]
        hints = [hints for regions, hints in items for _ in regions]
        with self._meter.batch(sum(region.duration_s for region in flat)):
            written = await self._slot.run_batch(lambda model: model.transcribe(flat, hints))
        self._meter.scores(version[1], (math.exp(segment.avg_logprob) for segment in written if segment is not None))
        segments = iter(written)
        return [Transcripts(tuple(next(segments) for _ in regions), version) for regions, _ in items]
