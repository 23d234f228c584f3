"""How many distinct vectors may be in flight, and who waits."""

import asyncio
from collections.abc import Iterable

import pytest

from server.memory.vector_slots import PATIENCE_S, VectorSlots


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def ask(slots: VectorSlots, digests: Iterable[str]) -> list["asyncio.Task[None]"]:
    tasks = [asyncio.create_task(slots.acquire(digest)) for digest in digests]
    await asyncio.sleep(0)
    return tasks


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def done(tasks: Iterable["asyncio.Task[None]"]) -> list[bool]:
    return [task.done() for task in tasks]


async def test_requests_of_one_vector_share_a_row() -> None:
    slots = VectorSlots(1)
    assert done(await ask(slots, "aaa")) == [True] * 3
    assert slots.num_held == 1


async def test_a_vector_without_a_row_waits_until_the_last_request_of_another_is_over() -> None:
    slots = VectorSlots(2)
    waiting = (await ask(slots, "aabc"))[3]
    slots.release("a")
    await settled()
    assert not waiting.done()
    slots.release("a")
    await settled()
    assert waiting.done()
    assert (slots.num_held, slots.num_waiting) == (2, 0)


async def test_those_that_wait_go_in_their_order_and_equal_ones_together() -> None:
    slots = VectorSlots(1)
    tasks = await ask(slots, "abcb")
    slots.release("a")
    await settled()
    assert done(tasks) == [True, True, False, True]
    slots.release("b")
    slots.release("b")
    await settled()
    assert done(tasks) == [True] * 4


async def test_a_vector_that_is_always_in_use_does_not_starve_the_others() -> None:
    clock = Clock()
    slots = VectorSlots(1, clock)
    first, waiting = await ask(slots, "ab")
    assert done(await ask(slots, "a")) == [True], "its row is there, and the other has not waited long"
    clock.now_s = PATIENCE_S + 0.1
    (late,) = await ask(slots, "a")
    assert not late.done()
    slots.release("a")
    slots.release("a")
    await settled()
    assert done([first, waiting, late]) == [True, True, False]


@pytest.mark.parametrize("is_admitted", [False, True])
async def test_a_request_that_goes_away_leaves_no_row_behind(is_admitted: bool) -> None:
    slots = VectorSlots(1)
    _, gone, behind = await ask(slots, "abc")
    if is_admitted:
        slots.release("a")
    gone.cancel()
    await settled()
    if not is_admitted:
        slots.release("a")
    await settled()
    assert gone.cancelled()
    assert behind.done()
    assert slots.num_held == 1
