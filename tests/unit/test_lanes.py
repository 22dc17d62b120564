"""Live speech goes before files, and files do not starve; with work that is known, no Ray runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.lanes import Lane, LiveQueue, Turns, slices


class Desk:
    """Notes who had a turn; each lasts until it is told to go on."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.served: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    def ask(self, name: str, lane: Lane) -> asyncio.Task[None]:
        async def have_a_turn() -> None:
            async with self.turns.turn(lane):
                self.served.append(name)
                await asyncio.sleep(0)

        self.tasks.append(asyncio.create_task(have_a_turn()))
        return self.tasks[-1]


async def test_finals_go_before_hypotheses_and_both_before_files() -> None:
    desk = Desk(Turns())
    async with desk.turns.turn(Lane.BULK):
        for name, lane in [
            ("file 1", Lane.BULK),
            ("hypothesis", Lane.HYPOTHESIS),
            ("final 1", Lane.FINAL),
            ("file 2", Lane.BULK),
            ("final 2", Lane.FINAL),
        ]:
            desk.ask(name, lane)
        await asyncio.sleep(0)
    await asyncio.gather(*desk.tasks)
    assert desk.served == ["final 1", "final 2", "hypothesis", "file 1", "file 2"]


async def test_files_that_waited_long_go_before_hypotheses_but_not_before_finals() -> None:
    desk = Desk(Turns(patience_s=0.0))
    async with desk.turns.turn(Lane.BULK):
        for name, lane in [("file", Lane.BULK), ("hypothesis", Lane.HYPOTHESIS), ("final", Lane.FINAL)]:
            desk.ask(name, lane)
        await asyncio.sleep(0.001)
    await asyncio.gather(*desk.tasks)
    assert desk.served == ["final", "file", "hypothesis"]


async def test_whoever_leaves_the_queue_holds_nobody_up() -> None:
    desk = Desk(Turns())
    async with desk.turns.turn(Lane.BULK):
        leaver = desk.ask("leaver", Lane.FINAL)
        desk.ask("next", Lane.FINAL)
        await asyncio.sleep(0)
        leaver.cancel()
    # The first is called when the turn ends, and leaves in the same moment.
    late = desk.ask("late", Lane.BULK)
    await asyncio.wait_for(asyncio.gather(desk.tasks[1], late), 5)
    assert desk.served == ["next", "late"]
    async with asyncio.timeout(5), desk.turns.turn(Lane.BULK):
        pass


async def test_one_who_leaves_when_called_passes_the_turn_on() -> None:
    desk = Desk(Turns())
    async with desk.turns.turn(Lane.BULK):
        leaver = desk.ask("leaver", Lane.FINAL)
        await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.wait_for(desk.ask("next", Lane.BULK), 5)
    assert desk.served == ["next"]


async def double(items: Sequence[int]) -> list[int]:
    return [2 * item for item in items]


async def test_what_waits_together_is_run_together() -> None:
    turns = Turns()
    batches: list[list[int]] = []

    async def run(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        return await double(items)

    queue: LiveQueue[int, int] = LiveQueue(turns, run, max_batch_s=10.0)
    async with turns.turn(Lane.BULK):
        asked = [asyncio.create_task(queue.ask(i, 4.0, is_final=i % 2 == 0)) for i in range(6)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*asked) == [0, 2, 4, 6, 8, 10]
    assert batches == [[0, 2], [4], [1, 3], [5]]


async def test_a_final_waits_for_few_hypotheses_only() -> None:
    turns, asked = Turns(), list[asyncio.Task[int | None]]()
    batches: list[list[int]] = []

    async def run(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        if len(batches) == 1:
            asked.append(asyncio.create_task(queue.ask(9, 4.0, is_final=True)))
            for _ in range(3):  # until it waits for its turn
                await asyncio.sleep(0)
        return list(items)

    queue: LiveQueue[int, int] = LiveQueue(turns, run, max_batch_s=20.0, max_hypotheses_s=8.0)
    await asyncio.gather(*(queue.ask(i, 4.0, is_final=False) for i in range(4)))
    assert await asked[0] == 9
    assert batches == [[0, 1], [9], [2, 3]]


async def test_hypotheses_that_waited_too_long_are_dropped_and_finals_never() -> None:
    turns = Turns()
    queue: LiveQueue[int, int] = LiveQueue(turns, double, max_wait_s=0.0)
    async with turns.turn(Lane.BULK):
        hypothesis = asyncio.create_task(queue.ask(1, 4.0, is_final=False))
        final = asyncio.create_task(queue.ask(2, 4.0, is_final=True))
        await asyncio.sleep(0.001)
    assert await hypothesis is None
    assert await final == 4


async def test_a_batch_that_fails_fails_those_who_asked_and_the_next_one_runs() -> None:
    async def run(items: Sequence[int]) -> list[int]:
        if 1 in items:
            raise ValueError("one")
        return await double(items)

    queue: LiveQueue[int, int] = LiveQueue(Turns(), run)
    with pytest.raises(ValueError, match="one"):
        await queue.ask(1, 4.0, is_final=True)
    assert await queue.ask(2, 4.0, is_final=True) == 4


async def test_what_nobody_waits_for_any_more_is_not_run() -> None:
    turns = Turns()
    run_items: list[int] = []

    async def run(items: Sequence[int]) -> list[int]:
        run_items.extend(items)
        return await double(items)

    queue: LiveQueue[int, int] = LiveQueue(turns, run)
    async with turns.turn(Lane.BULK):
        gone = asyncio.create_task(queue.ask(1, 4.0, is_final=True))
        here = asyncio.create_task(queue.ask(2, 4.0, is_final=True))
        await asyncio.sleep(0)
        gone.cancel()
    assert await here == 4
    assert run_items == [2]


@given(st.lists(st.floats(0.0, 30.0), max_size=40), st.floats(1.0, 60.0))
def test_slices_hold_each_item_once_and_no_more_than_they_may(sizes_s: list[float], max_s: float) -> None:
    parts = slices(sizes_s, max_s)
    assert sorted(i for part in parts for i in part) == list(range(len(sizes_s)))
    assert all(len(part) == 1 or sum(sizes_s[i] for i in part) <= max_s + 1e-6 for part in parts)
    longest_first = [sizes_s[i] for part in parts for i in part]
    assert longest_first == sorted(sizes_s, reverse=True)
