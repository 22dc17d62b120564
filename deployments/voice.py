"""Speech to text, batched by seconds of audio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ray import serve

from deployments.answers import Transcripts
from deployments.model_stage import ModelSlot
from deployments.resources import n_assigned_cores
from deployments.settings import BatchConfig, VoiceConfig
from soundstage.models.registry import ModelCard, ModelFolder
from soundstage.speech.transcriber import Transcriber
from soundstage.types import Waveform

Regions = tuple[Waveform, ...]


def audio_seconds(items: Sequence[Regions]) -> int:
    """Size of a batch: seconds of speech, rounded up."""
    return math.ceil(sum(region.duration_s for regions in items for region in regions))


class VoiceRecognizer:
    """Writes down what is said in the speech regions of a chunk."""

    def __init__(self) -> None:
        self._slot: ModelSlot[Transcriber] = ModelSlot()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over a model version, thresholds and batch sizes while serving."""
        config = VoiceConfig.model_validate(user_config)

        def load(folder: ModelFolder) -> Transcriber:
            return Transcriber(folder, config.decoding, n_threads=n_assigned_cores())

        await self._slot.put(config.model, config.version, load)
        self._batch.set_max_batch_size(config.batch.max_batch_s)  # type: ignore[attr-defined]
        self._batch.set_batch_wait_timeout_s(config.batch.wait_s)  # type: ignore[attr-defined]

    async def check_health(self) -> None:
        """Run the model.

        Raises:
            RuntimeError: Its output is not finite.
        """
        await self._slot.run(Transcriber.warm_up)

    async def served_model(self) -> ModelCard:
        """The model that serves."""
        return self._slot.model.card

    async def transcribe(self, regions: Regions) -> Transcripts:
        """One entry for each region, in order."""
        await self._slot.idle()
        return await self._batch(regions)

    @serve.batch(
        max_batch_size=BatchConfig().max_batch_s,
        batch_wait_timeout_s=BatchConfig().wait_s,
        batch_size_fn=audio_seconds,
    )
    async def _batch(self, items: list[Regions]) -> list[Transcripts]:
        version = self._slot.version
        flat = [region for regions in items for region in regions]
        segments = iter(await self._slot.run_batch(lambda model: model.transcribe(flat)))
        return [Transcripts(tuple(next(segments) for _ in regions), version) for regions in items]
