"""What both model stages share: taking over models, thresholds and batch sizes while they serve."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from deployments import logs
from deployments.answers import Refusal, ServedModel
from deployments.metrics import StageMetrics
from deployments.model_slot import ModelSlot, ModelT
from deployments.settings import ModelConfig
from deployments.shadow import InputT, OutputT, Shadow
from soundstage.errors import ModelError
from soundstage.models.registry import ModelFolder, ModelSources, told

MAX_FOLLOW_S = 600.0
"""Between attempts at a model that is refused again and again."""

_log = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", bound=ModelConfig)


class ModelStage(Generic[ModelT, ConfigT, InputT, OutputT]):
    """A deployment around one model; a subclass says how to load it, how to run a batch, and what agreement is.

    Args:
        sources: Where models come from.
    """

    config_type: type[ConfigT]

    def __init__(self, sources: ModelSources) -> None:
        logs.take_over()
        self._slot: ModelSlot[ModelT] = ModelSlot(sources)
        self._meter = StageMetrics(type(self).__name__)
        self._shadow: Shadow[ModelT, InputT, OutputT] = Shadow(
            self._slot, sources, run=self._run, agree=self._agree, meter=self._meter
        )
        self._config_refused: Refusal | None = None
        self._follower: asyncio.Task[None] | None = None
        self._reconfiguring = asyncio.Lock()

    def _load(self, folder: ModelFolder, config: ConfigT) -> ModelT:
        raise NotImplementedError

    @staticmethod
    def _run(model: ModelT, request: InputT) -> OutputT:
        raise NotImplementedError

    @staticmethod
    def _agree(one: OutputT, other: OutputT) -> bool:
        raise NotImplementedError

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over a model version, thresholds and batch sizes while serving.

        Raises:
            ValidationError: The configuration is wrong, and there was none before.
            ModelError: The model cannot be loaded, and there is none that serves.
        """
        async with self._reconfiguring:
            try:
                config = self.config_type.model_validate(user_config)
            except ValidationError as e:
                # Serve would end a replica that refuses its configuration, and start others that refuse it too.
                if self._slot.loaded is None:
                    raise
                self._config_refused = Refusal(None, f"user_config: {told(e)}")
                _log.error("%s; the last one stays", self._config_refused.reason)
                self._meter.show(self._state)
                return
            self._config_refused = None
            self.stop_following()
            is_done = await self._take(config)
            batch: Any = self._batch  # type: ignore[attr-defined]  # of the subclass, by serve.batch
            batch.set_max_batch_size(config.batch.max_batch_s)
            batch.set_batch_wait_timeout_s(config.batch.wait_s)
            self._follower = asyncio.create_task(self._follow(config, is_done=is_done))

    def stop_following(self) -> None:
        """Let aliases be."""
        if self._follower is not None:
            self._follower.cancel()

    async def _take(self, config: ConfigT) -> bool:
        """Load what the configuration stands for now; returns whether all of it is here."""
        is_done = await self._put(self._slot, config, config.version)
        if self._slot.loaded is None:
            assert self._slot.refused is not None
            raise ModelError(self._slot.refused.reason)
        if config.shadow is not None:
            is_done &= await self._put(self._shadow.slot, config, config.shadow.version)
        self._shadow.configure(config.shadow)
        self._meter.show(self._state)
        return is_done

    async def _put(self, slot: ModelSlot[ModelT], config: ConfigT, version: str | None) -> bool:
        settings = config.model_dump(exclude={"version", "batch", "shadow", "follow_s"})
        return await slot.put(config.model, version, lambda folder: self._load(folder, config), settings=settings)

    async def _follow(self, config: ConfigT, *, is_done: bool) -> None:
        """Look aliases up again and again, and try again what was refused, ever more seldom."""
        wait_s = config.follow_s
        while True:
            wait_s = config.follow_s if is_done else min(2 * wait_s, MAX_FOLLOW_S)
            await asyncio.sleep(wait_s)
            is_done = await self._take(config)

    async def check_health(self) -> None:
        """Run the model.

        Raises:
            RuntimeError: Its output is not finite.
        """
        await self._slot.run(lambda model: model.probe())
        # Ray forgets a gauge that is not set anew within 20 s or so.
        self._meter.show(self._state)

    async def served_model(self) -> ServedModel:
        """What is really served, and what was refused."""
        return self._state

    @property
    def _state(self) -> ServedModel:
        refused = self._config_refused or self._slot.refused
        return ServedModel(self._slot.model.card, refused=refused, candidate=self._shadow.state)
