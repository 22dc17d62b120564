"""Who goes first at a model: what ends live speech, then what is still being said, then files."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Lane(IntEnum):
    """Lower ones go first."""

    FINAL = 0
    """Of a live stream, for good."""
    HYPOTHESIS = 1
    """Of a live stream; a newer one replaces it soon."""
    BULK = 2
    """Of a file."""


class Turns:
    """Lets one after the other at a model, by lane and then by arrival.

    Bulk work that has waited for `patience_s` goes before hypotheses: those come again, and files must not starve.

    Args:
        patience_s: Of bulk work.
    """

    def __init__(self, patience_s: float = 2.0) -> None:
        self._patience_s = patience_s
        self._is_taken = False
        self._waiting: dict[Lane, deque[tuple[float, asyncio.Future[None]]]] = {lane: deque() for lane in Lane}

    @asynccontextmanager
    async def turn(self, lane: Lane) -> AsyncIterator[None]:
        """Around work that no other may run beside."""
        await self._enter(lane)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, lane: Lane) -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        loop = asyncio.get_running_loop()
        called: asyncio.Future[None] = loop.create_future()
        self._waiting[lane].append((loop.time(), called))
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():
                self._leave()  # it was called just before it left
            raise

    def _leave(self) -> None:
        for queue in self._waiting.values():
            while queue and queue[0][1].done():
                queue.popleft()
        lane = self._next_lane()
        if lane is None:
            self._is_taken = False
        else:
            self._waiting[lane].popleft()[1].set_result(None)

    def _next_lane(self) -> Lane | None:
        present = [lane for lane in Lane if self._waiting[lane]]
        if not present:
            return None
        if present[0] is Lane.HYPOTHESIS and Lane.BULK in present:
            since_s, _ = self._waiting[Lane.BULK][0]
            if asyncio.get_running_loop().time() - since_s > self._patience_s:
                return Lane.BULK
        return present[0]


@dataclass(slots=True)
class _Asked(Generic[ItemT, ResultT]):
    item: ItemT
    size_s: float
    since_s: float
    answer: asyncio.Future[ResultT | None] = field(repr=False)


class LiveQueue(Generic[ItemT, ResultT]):
    """Requests of live streams on their way to a model.

    A batch is put together at the moment when the model is free, of all that waits then: a lone request waits for
    nobody, and batches grow with the number of streams.

    Args:
        turns: Of the model.
        run: Runs the model on a batch; it has its turn.
        max_batch_s: Audio in one batch of finals; a longer request is a batch of its own.
        max_hypotheses_s: The same of hypotheses, for which a final that is asked for meanwhile has to wait.
        max_wait_s: Hypotheses that have waited longer are dropped.
    """

    RECENT_S = 120.0

    def __init__(
        self,
        turns: Turns,
        run: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT]]],
        *,
        max_batch_s: float = 20.0,
        max_hypotheses_s: float = 8.0,
        max_wait_s: float = 1.0,
    ) -> None:
        self._turns = turns
        self._run = run
        self._max_batch_s = {Lane.FINAL: max_batch_s, Lane.HYPOTHESIS: max_hypotheses_s}
        self._max_wait_s = max_wait_s
        self._asked: dict[Lane, deque[_Asked[ItemT, ResultT]]] = {Lane.FINAL: deque(), Lane.HYPOTHESIS: deque()}
        self._workers: dict[Lane, asyncio.Task[None]] = {}
        self._last_s = float("-inf")

    @property
    def is_in_use(self) -> bool:
        """Whether a live stream has asked lately."""
        return asyncio.get_running_loop().time() - self._last_s < self.RECENT_S

    async def ask(self, item: ItemT, size_s: float, *, is_final: bool) -> ResultT | None:
        """The model's result; None for a hypothesis that was dropped.

        Args:
            item: For `run`.
            size_s: Audio in it.
            is_final: It is never dropped.
        """
        loop = asyncio.get_running_loop()
        self._last_s = loop.time()
        lane = Lane.FINAL if is_final else Lane.HYPOTHESIS
        asked: _Asked[ItemT, ResultT] = _Asked(item, size_s, self._last_s, loop.create_future())
        self._asked[lane].append(asked)
        worker = self._workers.get(lane)
        if worker is None or worker.done():
            self._workers[lane] = asyncio.create_task(self._work(lane))
        return await asked.answer

    async def _work(self, lane: Lane) -> None:
        while self._asked[lane]:
            async with self._turns.turn(lane):
                batch = self._take(lane)
                if batch:
                    await self._answer(batch)

    def _take(self, lane: Lane) -> list[_Asked[ItemT, ResultT]]:
        """The next batch; what waited too long, or for whom nobody waits any more, is left out."""
        now_s = asyncio.get_running_loop().time()
        queue = self._asked[lane]
        batch: list[_Asked[ItemT, ResultT]] = []
        batch_s = 0.0
        while queue and (not batch or batch_s + queue[0].size_s <= self._max_batch_s[lane]):
            asked = queue.popleft()
            if asked.answer.done():
                continue
            if lane is Lane.HYPOTHESIS and now_s - asked.since_s > self._max_wait_s:
                asked.answer.set_result(None)
                continue
            batch.append(asked)
            batch_s += asked.size_s
        return batch

    async def _answer(self, batch: Sequence[_Asked[ItemT, ResultT]]) -> None:
        try:
            results = await self._run([asked.item for asked in batch])
        except Exception as e:  # noqa: BLE001  # whatever it is, it belongs to those who asked
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_exception(e)
            return
        for asked, result in zip(batch, results, strict=True):
            if not asked.answer.done():
                asked.answer.set_result(result)


def slices(sizes_s: Sequence[float], max_s: float) -> list[list[int]]:
    """Indices of a batch in parts of like length, the longest first, each at most `max_s` unless it is a single one."""
    parts: list[list[int]] = []
    room_s = 0.0
    for i in sorted(range(len(sizes_s)), key=lambda i: -sizes_s[i]):
        if not parts or sizes_s[i] > room_s:
            parts.append([])
            room_s = max_s
        parts[-1].append(i)
        room_s -= sizes_s[i]
    return parts
