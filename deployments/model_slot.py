"""A model that can be exchanged while it serves, and the thread that runs it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

from deployments.answers import ModelVersion, Refusal
from deployments.lanes import Turns
from soundstage.models import registry
from soundstage.models.registry import STABLE, ModelCard, ModelFolder, ModelSources

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

    def probe(self) -> None:
        """Run once on as little as possible, to see that it still works.

        Raises:
            RuntimeError: The output is not finite.
        """
        ...


ModelT = TypeVar("ModelT", bound=ServableModel)
ResultT = TypeVar("ResultT")


class ModelSlot(Generic[ModelT]):
    """Holds a model; exchanges it only for one that loads and runs.

    TensorFlow runs in one thread: a batch uses all of the replica's cores, so a second one beside it gains nothing
    and would take its memory.

    Attributes:
        loaded: The model; None before the first.
        turns: Who runs it next.
        refused: Why it is not the one that is wanted; None where it is.
    """

    def __init__(self, sources: ModelSources) -> None:
        self.loaded: ModelT | None = None
        self.refused: Refusal | None = None
        self._sources = sources
        self._loaded_with: object = None
        self.turns = Turns()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._n_requests = 0
        self._is_quiet = asyncio.Event()
        self._is_quiet.set()

    @property
    def model(self) -> ModelT:
        """The model that serves."""
        assert self.loaded is not None, "a model is put before the first request"
        return self.loaded

    @property
    def version(self) -> ModelVersion:
        """Its name and version."""
        return (self.model.card.name, self.model.card.version)

    async def put(
        self, name: str, version: str | None, load: Callable[[ModelFolder], ModelT], *, settings: object = None
    ) -> bool:
        """Load a model beside the one that is here, warm it up, then exchange them.

        Args:
            name: Of the model.
            version: A version or an alias, as for `registry.find`.
            load: Makes the model.
            settings: What `load` makes of it beside its version; the same model with the same settings stays.

        Returns:
            Whether the wanted model is here. If not, the one that was stays, and `refused` says why.
        """
        loop = asyncio.get_running_loop()
        wanted = version or STABLE
        try:
            wanted = await loop.run_in_executor(None, registry.resolve, name, version, self._sources)
            if self.loaded is None or self.version != (name, wanted) or self._loaded_with != settings:
                self.loaded = await loop.run_in_executor(None, _loaded, name, wanted, self._sources, load)
                self._loaded_with = settings
        except Exception as e:  # noqa: BLE001  # a model may fail in any way, and none may end the one that serves
            refusal = Refusal(wanted, str(e))
            if refusal != self.refused:
                _log.exception("%s %s cannot be served", name, wanted)
            self.refused = refusal
            return False
        self.refused = None
        return True

    def clear(self) -> None:
        """Let go of the model."""
        self.loaded, self.refused = None, None

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Around one request of a file: waits until no batch runs, before it enters Serve's batch queue.

        Serve closes a batch as soon as its short wait is over, and lets it queue for the model behind the one that
        runs: under load each request would be a batch of its own. Those that wait here enter the queue together
        when the model is free, so batches grow with the load and a lone request waits for nobody.
        """
        async with self.live_request():
            await self._is_idle.wait()
            yield

    @asynccontextmanager
    async def live_request(self) -> AsyncIterator[None]:
        """Around one request of a live stream, which waits in a queue of its own."""
        self._n_requests += 1
        self._is_quiet.clear()
        try:
            yield
        finally:
            self._n_requests -= 1
            if not self._n_requests:
                self._is_quiet.set()

    async def quiet(self) -> None:
        """Wait until no request is here."""
        await self._is_quiet.wait()

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[None]:
        """Around a batch of files, whose parts run one after the other."""
        self._is_idle.clear()
        try:
            yield
        finally:
            self._is_idle.set()

    async def run(self, work: Callable[[ModelT], ResultT], model: ModelT | None = None) -> ResultT:
        """Run something off the event loop, on the model that serves or on one that did when a batch began."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, model or self.model)


def _loaded(name: str, version: str, sources: ModelSources, load: Callable[[ModelFolder], ModelT]) -> ModelT:
    model = load(registry.find(name, version, sources))
    model.warm_up()
    return model
