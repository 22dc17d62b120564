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
Speech = tuple[Regions, Hints, str]
"""The speech regions of a chunk, what they may hold, and what the text of the first one may begin with."""
Segments = list[Segment | None]


def audio_seconds(items: Sequence[Speech]) -> int:
    """Size of a batch: seconds of speech, rounded up."""
    return math.ceil(sum(region.duration_s for regions, _, _ in items for region in regions))


class VoiceRecognizer(ModelStage[Transcriber, VoiceConfig, Speech, Segments]):
    """Writes down what is said in the speech regions of a chunk."""

    config_type = VoiceConfig

    def _load(self, folder: ModelFolder, config: VoiceConfig) -> Transcriber:
        return Transcriber(folder, config.decoding, n_threads=n_assigned_cores())

    @staticmethod
    def _run_all(model: Transcriber, requests: Sequence[Speech]) -> list[Segments]:
        segments = iter(_written(model, _flat(requests)))
        return [[next(segments) for _ in regions] for regions, _, _ in requests]

    @staticmethod
    def _size_s(request: Speech) -> float:
        return sum(region.duration_s for region in request[0])

    @staticmethod
    def _agree(one: Segments, other: Segments) -> bool:
        return is_same_text(one, other)

    async def transcribe(self, regions: Regions, hints: Hints = ()) -> Transcripts:
        """One entry for each region, in order."""
        start_s = time.perf_counter()
        async with self._slot.request():
            self._meter.steps.observe("queue", time.perf_counter() - start_s)
            answer: Transcripts = await self._batch((regions, hints, ""))
        self._shadow.offer((regions, hints, ""))
        return replace(answer, spent_s=time.perf_counter() - start_s)

    async def transcribe_live(self, waveform: Waveform, hints: Hints, draft: str, is_final: bool) -> Transcripts | None:
        """What is said in one waveform of a live stream; None where a hypothesis waited too long."""
        start_s = time.perf_counter()
        answer = await self._ask_live(((waveform,), hints, draft), is_final=is_final)
        if answer is None:
            return None
        (segment,), model = answer
        version = (model.card.name, model.card.version)
        if is_final and segment is not None:
            self._meter.scores(version[1], [math.exp(segment.avg_logprob)])
        return Transcripts((segment,), version, time.perf_counter() - start_s)

    @serve.batch(
        max_batch_size=BatchConfig().max_batch_s,
        batch_wait_timeout_s=BatchConfig().wait_s,
        batch_size_fn=audio_seconds,
    )
    async def _batch(self, items: list[Speech]) -> list[Transcripts]:
        version, flat = self._slot.version, _flat(items)
        written = await self._run_files(flat, [region.duration_s for region, _, _ in flat], _written)
        self._meter.scores(version[1], (math.exp(segment.avg_logprob) for segment in written if segment is not None))
        segments = iter(written)
        return [Transcripts(tuple(next(segments) for _ in regions), version) for regions, _, _ in items]


def _flat(items: Sequence[Speech]) -> list[tuple[Waveform, Hints, str]]:
    return [(region, hints, "" if i else draft) for regions, hints, draft in items for i, region in enumerate(regions)]


def _written(model: Transcriber, items: Sequence[tuple[Waveform, Hints, str]]) -> Segments:
    regions, hints, drafts = (list(each) for each in zip(*items, strict=True)) if items else ([], [], [])
    return model.transcribe(regions, hints, drafts if any(drafts) else None)
