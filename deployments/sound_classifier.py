"""Sounds to scores, batched by seconds of audio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ray import serve

from deployments.answers import Scores
from deployments.model_stage import ModelSlot
from deployments.resources import n_assigned_cores
from deployments.settings import BatchConfig, SoundConfig
from soundstage.models.registry import ModelCard, ModelFolder
from soundstage.sound.listener import SoundListener
from soundstage.types import Waveform


def audio_seconds(items: Sequence[Waveform]) -> int:
    """Size of a batch: seconds of audio, rounded up."""
    return math.ceil(sum(waveform.duration_s for waveform in items))


class SoundClassifier:
    """Scores what is heard in a chunk."""

    def __init__(self) -> None:
        self._slot: ModelSlot[SoundListener] = ModelSlot()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over a model version and batch sizes while serving."""
        config = SoundConfig.model_validate(user_config)

        def load(folder: ModelFolder) -> SoundListener:
            return SoundListener(folder, n_threads=n_assigned_cores())

        await self._slot.put(config.model, config.version, load)
        self._batch.set_max_batch_size(config.batch.max_batch_s)  # type: ignore[attr-defined]
        self._batch.set_batch_wait_timeout_s(config.batch.wait_s)  # type: ignore[attr-defined]

    async def check_health(self) -> None:
        """Run the model.

        Raises:
            RuntimeError: Its output is not finite.
        """
        await self._slot.run(SoundListener.warm_up)

    async def served_model(self) -> ModelCard:
        """The model that serves."""
        return self._slot.model.card

    async def listen(self, waveform: Waveform) -> Scores:
        """Frame scores and tags of one chunk."""
        await self._slot.idle()
        return await self._batch(waveform)

    @serve.batch(
        max_batch_size=BatchConfig().max_batch_s,
        batch_wait_timeout_s=BatchConfig().wait_s,
        batch_size_fn=audio_seconds,
    )
    async def _batch(self, items: list[Waveform]) -> list[Scores]:
        version = self._slot.version
        return [Scores(scores, version) for scores in await self._slot.run_batch(lambda model: model.listen(items))]
