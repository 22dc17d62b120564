"""Speech to text, batched by seconds of audio."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ray import serve

from deployments.answers import Transcripts
from deployments.model_stage import ModelStage
from deployments.resources import n_assigned_cores
from deployments.settings import BatchConfig, VoiceConfig
from soundstage.models.registry import ModelFolder
from soundstage.speech.transcriber import Transcriber
from soundstage.types import Waveform

Regions = tuple[Waveform, ...]


def audio_seconds(items: Sequence[Regions]) -> int:
    """Size of a batch: seconds of speech, rounded up."""
    return math.ceil(sum(region.duration_s for regions in items for region in regions))


class VoiceRecognizer(ModelStage[Transcriber, VoiceConfig]):
    """Writes down what is said in the speech regions of a chunk."""

    config_type = VoiceConfig

    def _load(self, folder: ModelFolder, config: VoiceConfig) -> Transcriber:
        return Transcriber(folder, config.decoding, n_threads=n_assigned_cores())

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
