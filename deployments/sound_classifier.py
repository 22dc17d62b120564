"""Sounds to scores, batched by seconds of audio."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from ray import serve

from deployments.answers import Scores
from deployments.model_stage import ModelStage
from deployments.resources import n_assigned_cores
from deployments.settings import BatchConfig, SoundConfig
from deployments.shadow import is_same_top_tag
from soundstage.models.registry import ModelFolder
from soundstage.sound.listener import SoundListener
from soundstage.sound.remote import RemoteSoundListener
from soundstage.types import FrameScores, Waveform


def audio_seconds(items: Sequence[Waveform]) -> int:
    """Size of a batch: seconds of audio, rounded up."""
    return math.ceil(sum(waveform.duration_s for waveform in items))


AnyListener = SoundListener | RemoteSoundListener


class SoundClassifier(ModelStage[AnyListener, SoundConfig, Waveform, FrameScores]):
    """Scores what is heard in a chunk."""

    config_type = SoundConfig

    def _load(self, folder: ModelFolder, config: SoundConfig) -> AnyListener:
        if config.remote is not None:
            return RemoteSoundListener(folder, config.remote)
        return SoundListener(folder, n_threads=n_assigned_cores())

    @staticmethod
    def _run_all(model: AnyListener, requests: Sequence[Waveform]) -> list[FrameScores]:
        return model.listen(requests)

    @staticmethod
    def _size_s(request: Waveform) -> float:
        return request.duration_s

    @staticmethod
    def _agree(one: FrameScores, other: FrameScores) -> bool:
        return is_same_top_tag(one, other)

    async def listen(self, waveform: Waveform) -> Scores:
        """Frame scores and tags of one chunk."""
        start_s = time.perf_counter()
        async with self._slot.request():
            self._meter.steps.observe("queue", time.perf_counter() - start_s)
            answer: Scores = await self._batch(waveform)
        self._shadow.offer(waveform)
        return replace(answer, spent_s=time.perf_counter() - start_s)

    async def listen_live(self, waveform: Waveform, is_final: bool) -> Scores | None:
        """Frame scores of one waveform of a live stream; None where a first look waited too long."""
        start_s = time.perf_counter()
        answer = await self._ask_live(waveform, is_final=is_final)
        if answer is None:
            return None
        scores, model = answer
        version = (model.card.name, model.card.version)
        if is_final:
            self._meter.scores(version[1], [float(scores.tags.max())])
        return Scores(scores, version, model.params.events, time.perf_counter() - start_s)

    @serve.batch(
        max_batch_size=BatchConfig().max_batch_s,
        batch_wait_timeout_s=BatchConfig().wait_s,
        batch_size_fn=audio_seconds,
    )
    async def _batch(self, items: list[Waveform]) -> list[Scores]:
        version, events = self._slot.version, self._slot.model.params.events
        heard = await self._run_files(items, [waveform.duration_s for waveform in items], self._run_all)
        self._meter.scores(version[1], (float(scores.tags.max()) for scores in heard))
        return [Scores(scores, version, events) for scores in heard]
