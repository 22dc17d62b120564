"""Tries a candidate model out on live requests, of which no client notices anything."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from deployments.answers import CandidateState
from deployments.model_slot import ModelSlot, ModelT
from deployments.settings import ShadowConfig
from soundstage.models.registry import ModelSources
from soundstage.types import FrameScores, Segment

MAX_WAITING = 8
"""Requests that wait to be compared; at 30 s of audio each they hold at most 16 MB."""

_log = logging.getLogger(__name__)

InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")


class ShadowMeter(Protocol):
    """What is counted; versions are those of the model that serves and of the candidate."""

    def compared(self, version: str, candidate: str, *, agreed: bool, served_s: float, candidate_s: float) -> None:
        """Both models have answered, after so many seconds each."""
        ...

    def dropped(self, version: str, candidate: str) -> None:
        """A request was left out since too many wait."""
        ...

    def failed(self, version: str, candidate: str) -> None:
        """The candidate, or the comparison, broke."""
        ...


class Shadow(Generic[ModelT, InputT, OutputT]):
    """Runs a candidate on a share of the requests, each after its own answer and while no other is here.

    Both models run on the request alone, in a thread of their own, now one first and now the other, so that their
    times can be compared. A request that comes meanwhile shares the cores with that one run, and waits for nothing.

    Args:
        served: The model that answers.
        sources: Where candidates come from.
        run: Runs a model on one request.
        agree: Whether two results are the same for a person.
        meter: Counts.
    """

    def __init__(
        self,
        served: ModelSlot[ModelT],
        sources: ModelSources,
        *,
        run: Callable[[ModelT, InputT], OutputT],
        agree: Callable[[OutputT, OutputT], bool],
        meter: ShadowMeter,
    ) -> None:
        self.slot: ModelSlot[ModelT] = ModelSlot(sources)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._candidate_first = False
        self._config: ShadowConfig | None = None
        self._served = served
        self._run = run
        self._agree = agree
        self._meter = meter
        self._due = 0.0
        self._waiting: deque[InputT] = deque()
        self._worker: asyncio.Task[None] | None = None

    def configure(self, config: ShadowConfig | None) -> None:
        """Take over the share; None ends it and lets go of the candidate."""
        self._config = config
        if config is None:
            self.slot.clear()
            self._waiting.clear()

    @property
    def state(self) -> CandidateState | None:
        """What is tried out."""
        if self._config is None:
            return None
        loaded = self.slot.loaded
        return CandidateState(
            loaded.card.version if loaded is not None else None, self._config.share, self.slot.refused
        )

    def offer(self, request: InputT) -> None:
        """A request that was answered; takes no time."""
        if self._config is None or self.slot.loaded is None or self.slot.version == self._served.version:
            return
        self._due += self._config.share
        if self._due < 1:
            return
        self._due -= 1
        if len(self._waiting) >= MAX_WAITING:
            self._meter.dropped(self._served.version[1], self.slot.version[1])
            return
        self._waiting.append(request)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._compare_all())

    async def _compare_all(self) -> None:
        while self._waiting:
            await self._served.quiet()
            if self._waiting and self.slot.loaded is not None:
                await self._compare(self._waiting.popleft(), self.slot.loaded)

    async def _compare(self, request: InputT, candidate: ModelT) -> None:
        served = self._served.model
        versions = served.card.version, candidate.card.version
        self._candidate_first = not self._candidate_first
        try:
            if self._candidate_first:
                other, candidate_s = await self._timed(candidate, request)
                one, served_s = await self._timed(served, request)
            else:
                one, served_s = await self._timed(served, request)
                other, candidate_s = await self._timed(candidate, request)
            agreed = self._agree(one, other)
        except Exception:  # noqa: BLE001  # a candidate may break in any way, and no client may notice
            _log.exception("candidate %s failed", versions[1])
            self._meter.failed(*versions)
        else:
            self._meter.compared(*versions, agreed=agreed, served_s=served_s, candidate_s=candidate_s)

    async def _timed(self, model: ModelT, request: InputT) -> tuple[OutputT, float]:
        """The result and the seconds it took, once no request is here."""

        def run() -> tuple[OutputT, float]:
            start_s = time.perf_counter()
            result = self._run(model, request)
            return result, time.perf_counter() - start_s

        await self._served.quiet()
        return await asyncio.get_running_loop().run_in_executor(self._thread, run)


def is_same_text(one: Sequence[Segment | None], other: Sequence[Segment | None]) -> bool:
    """Whether the same words were written, whatever their case and punctuation."""
    return _words(one) == _words(other)


def _words(segments: Sequence[Segment | None]) -> list[str]:
    text = " ".join(segment.text for segment in segments if segment is not None)
    return re.sub(r"[^\w\s]", "", text.lower()).split()


def is_same_top_tag(one: FrameScores, other: FrameScores) -> bool:
    """Whether the same sound scores highest in the whole clip."""
    return one.labels[one.tags.argmax()] == other.labels[other.tags.argmax()]
