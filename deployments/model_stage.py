"""What both model stages share: taking over models, thresholds and batch sizes while they serve."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from deployments import logs
from deployments.answers import Refusal, ServedModel
from deployments.lanes import Lane, LiveQueue, slices
from deployments.metrics import StageMetrics
from deployments.model_slot import ModelSlot, ModelT
from deployments.settings import ModelConfig
from deployments.shadow import InputT, OutputT, Shadow
from soundstage.errors import ModelError
from soundstage.models.registry import ModelFolder, ModelSources, told

MAX_FOLLOW_S = 600.0
"""Between attempts at a model that is refused again and again."""
LIVE_SLICE_S = 5.0
"""Audio after which a batch of files lets live streams in between, as long as there are any: about one clip.

Measured on two cores without VNNI, 4 streams beside 32 clients that send files: 95 of 100 finals come within 2.96 s of
their speech with 20 s, 1.87 s with 8 s, 1.55 s with 5 s. A clip alone costs files 1.6 times what one of eight does.
"""

NICENESS = 5
"""Where there are too few cores, models let go first what everybody waits for: what reads, cuts and tells."""

_log = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", bound=ModelConfig)
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class ModelStage(Generic[ModelT, ConfigT, InputT, OutputT]):
    """A deployment around one model; a subclass says how to load it, how to run a batch, and what agreement is.

    Args:
        sources: Where models come from.
    """

    config_type: type[ConfigT]

    def __init__(self, sources: ModelSources) -> None:
        logs.take_over()
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
        self._slot: ModelSlot[ModelT] = ModelSlot(sources)
        self._meter = StageMetrics(type(self).__name__)
        self._shadow: Shadow[ModelT, InputT, OutputT] = Shadow(
            self._slot, sources, run=self._run, agree=self._agree, meter=self._meter
        )
        self._live: LiveQueue[InputT, tuple[OutputT, ModelT]] = LiveQueue(self._slot.turns, self._run_live)
        self._config_refused: Refusal | None = None
        self._follower: asyncio.Task[None] | None = None
        self._reconfiguring = asyncio.Lock()

    def _load(self, folder: ModelFolder, config: ConfigT) -> ModelT:
        raise NotImplementedError

    @staticmethod
    def _run_all(model: ModelT, requests: Sequence[InputT]) -> list[OutputT]:
        raise NotImplementedError

    @classmethod
    def _run(cls, model: ModelT, request: InputT) -> OutputT:
        return cls._run_all(model, [request])[0]

    @staticmethod
    def _size_s(request: InputT) -> float:
        """Audio in it."""
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

    async def _run_files(
        self,
        items: Sequence[ItemT],
        sizes_s: Sequence[float],
        infer: Callable[[ModelT, Sequence[ItemT]], Sequence[ResultT]],
    ) -> list[ResultT]:
        """Results of a batch of files, in order.

        While there are live streams it runs in slices, between which they are let in; what an item gives does not
        depend on what else is in its batch.
        """
        model = self._slot.model
        results: dict[int, ResultT] = {}
        async with self._slot.batch():
            for part in slices(sizes_s, LIVE_SLICE_S) if self._live.is_in_use else [list(range(len(items)))]:
                work = partial(_infer, infer, [items[i] for i in part])
                async with self._slot.turns.turn(Lane.BULK):
                    with self._meter.batch(sum(sizes_s[i] for i in part)):
                        answers = await self._slot.run(work, model)
                results.update(zip(part, answers, strict=True))
        return [results[i] for i in range(len(items))]

    async def _run_live(self, requests: Sequence[InputT]) -> list[tuple[OutputT, ModelT]]:
        """Results of a batch of requests of live streams, and who gave them; the model is free."""
        model = self._slot.model
        with self._meter.batch(sum(map(self._size_s, requests))):
            outputs = await self._slot.run(lambda model: self._run_all(model, requests), model)
        return [(output, model) for output in outputs]

    async def _ask_live(self, request: InputT, *, is_final: bool) -> tuple[OutputT, ModelT] | None:
        """The result for a live stream, before all files; None for a hypothesis that waited too long."""
        async with self._slot.live_request():
            answer = await self._live.ask(request, self._size_s(request), is_final=is_final)
        if is_final:
            self._shadow.offer(request)
        return answer

    async def check_health(self) -> None:
        """Run the model.

        Raises:
            RuntimeError: Its output is not finite.
        """
        async with self._slot.turns.turn(Lane.FINAL):
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


def _infer(
    infer: Callable[[ModelT, Sequence[ItemT]], Sequence[ResultT]], items: Sequence[ItemT], model: ModelT
) -> Sequence[ResultT]:
    return infer(model, items)
