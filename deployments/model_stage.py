"""What both model stages share: a model that can be exchanged while it serves, and a thread that runs it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

from deployments.answers import ModelVersion
from deployments.settings import ModelConfig
from soundstage.models import registry
from soundstage.models.registry import ModelCard, ModelFolder

_log = logging.getLogger(__name__)


class ServableModel(Protocol):
    """What a stage needs of a model."""

    @property
    def card(self) -> ModelCard:
        """Which model this is."""
        ...

    def warm_up(self) -> None:
        """Run once on made-up input, so that the first request does not wait for tracing.

        Raises:
            RuntimeError: The output is not finite.
        """
        ...


ModelT = TypeVar("ModelT", bound=ServableModel)
ConfigT = TypeVar("ConfigT", bound=ModelConfig)
ResultT = TypeVar("ResultT")


class ModelSlot(Generic[ModelT]):
    """Holds the model that serves; exchanges it only for one that loads and runs.

    TensorFlow runs in one thread: a batch uses all of the replica's cores, so a second one beside it gains nothing
    and would take its memory.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._model: ModelT | None = None
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def model(self) -> ModelT:
        """The model that serves."""
        assert self._model is not None, "reconfigure runs before the first request"
        return self._model

    @property
    def version(self) -> ModelVersion:
        """Its name and version."""
        return (self.model.card.name, self.model.card.version)

    async def put(self, name: str, version: str | None, load: Callable[[ModelFolder], ModelT]) -> None:
        """Load a model beside the one that serves, warm it up, then exchange them.

        Raises:
            Exception: It cannot be loaded and none is serving. If one is, it stays and the reason is logged.
        """
        try:
            model = await asyncio.get_running_loop().run_in_executor(None, _loaded, name, version, load)
        except Exception:
            if self._model is None:
                raise
            _log.exception("model %s %s cannot be served; %s %s stays", name, version or "(newest)", *self.version)
            return
        self._model = model

    async def idle(self) -> None:
        """Wait until no batch runs; requests call this before they enter Serve's batch queue.

        Serve closes a batch as soon as its short wait is over, and lets it queue for the model behind the one that
        runs: under load each request would be a batch of its own. Those that wait here enter the queue together
        when the model is free, so batches grow with the load and a lone request waits for nobody.
        """
        await self._is_idle.wait()

    async def run_batch(self, work: Callable[[ModelT], ResultT]) -> ResultT:
        """Run a batch on the model that serves, off the event loop."""
        self._is_idle.clear()
        try:
            return await self.run(work)
        finally:
            self._is_idle.set()

    async def run(self, work: Callable[[ModelT], ResultT]) -> ResultT:
        """Run something on the model that serves, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self.model)


class ModelStage(Generic[ModelT, ConfigT]):
    """A deployment around one model; a subclass says how to load it and how to run a batch."""

    config_type: type[ConfigT]

    def __init__(self) -> None:
        self._slot: ModelSlot[ModelT] = ModelSlot()

    def _load(self, folder: ModelFolder, config: ConfigT) -> ModelT:
        raise NotImplementedError

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over a model version, thresholds and batch sizes while serving."""
        config = self.config_type.model_validate(user_config)
        await self._slot.put(config.model, config.version, lambda folder: self._load(folder, config))
        batch: Any = self._batch  # type: ignore[attr-defined]  # of the subclass, by serve.batch
        batch.set_max_batch_size(config.batch.max_batch_s)
        batch.set_batch_wait_timeout_s(config.batch.wait_s)

    async def check_health(self) -> None:
        """Run the model.

        Raises:
            RuntimeError: Its output is not finite.
        """
        await self._slot.run(lambda model: model.warm_up())

    async def served_model(self) -> ModelCard:
        """The model that serves."""
        return self._slot.model.card


def _loaded(name: str, version: str | None, load: Callable[[ModelFolder], ModelT]) -> ModelT:
    model = load(registry.find(name, version))
    model.warm_up()
    return model
