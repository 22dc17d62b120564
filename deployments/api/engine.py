"""What the HTTP API needs of the graph behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol, TypeVar

from deployments.answers import LiveAnswer, ServedModel
from soundstage.errors import DeadlineExceeded
from soundstage.live.events import Job
from soundstage.pipeline import AnalysisCollector, AnalysisOptions
from soundstage.types import Analysis, ChunkAnalysis, ClipSummary, EncodedAudio

ItemT = TypeVar("ItemT")


class Engine(Protocol):
    """Analyses audio; the serving graph is one."""

    def analyze(self, audio: EncodedAudio, options: AnalysisOptions) -> AsyncIterator[ChunkAnalysis | ClipSummary]:
        """Each chunk as it is done, in order, then the summary.

        Raises:
            ServiceError: As the error table says.
        """
        ...

    async def run(self, job: Job) -> LiveAnswer:
        """Have a model do a job of a live stream, before all work for files.

        Raises:
            ServiceError: As the error table says.
        """
        ...

    async def models(self) -> list[ServedModel]:
        """What each replica of the model stages serves.

        Raises:
            Overloaded: A stage has no replica that answers.
        """
        ...


async def before(items: AsyncIterator[ItemT], deadline_s: float) -> AsyncIterator[ItemT]:
    """The items that come before a deadline.

    Args:
        items: Closed when the deadline passes or the consumer stops.
        deadline_s: By the clock of the running loop.

    Raises:
        DeadlineExceeded: The next item did not come in time.
    """
    try:
        while True:
            try:
                async with asyncio.timeout_at(deadline_s):
                    item = await anext(items)
            except StopAsyncIteration:
                return
            except TimeoutError as e:
                raise DeadlineExceeded("the request took longer than it may; send shorter audio or try later") from e
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


async def collect(
    parts: AsyncIterator[ChunkAnalysis | ClipSummary], *, request_id: str, language: str | None
) -> tuple[Analysis, ClipSummary]:
    """The whole analysis and the summary, once the last part is there."""
    collector = AnalysisCollector()
    summary: ClipSummary | None = None
    async for part in parts:
        if isinstance(part, ClipSummary):
            summary = part
        else:
            collector.push(part)
    assert summary is not None, "an engine ends with the summary"
    return collector.finish(summary, request_id=request_id, language=language), summary
