"""The door: nobody is inside while weights change, and everybody gets in afterwards."""

import asyncio

import pytest

from server.catalog.door import Door, StillInside


async def test_a_closed_door_waits_for_those_inside_and_keeps_others_out() -> None:
    door = Door()
    inside = await door.enter()
    order: list[str] = []

    async def change() -> None:
        async with door.closed(30):
            order.append("changed")

    async def enter() -> None:
        await door.enter()
        order.append("entered")

    changing = asyncio.create_task(change())
    await asyncio.sleep(0)
    entering = asyncio.create_task(enter())
    for _ in range(5):
        await asyncio.sleep(0)
    assert (order, door.num_inside) == ([], 1)
    inside.leave()
    await asyncio.gather(changing, entering)
    assert order == ["changed", "entered"]


async def test_a_wait_that_takes_too_long_opens_the_door_again() -> None:
    door = Door()
    inside = await door.enter()
    with pytest.raises(StillInside, match="1"):
        async with door.closed(0.01):
            raise AssertionError("somebody is inside")
    await door.enter()
    inside.leave()
    assert door.num_inside == 1


async def test_leaving_twice_counts_once() -> None:
    door = Door()
    first, _ = await door.enter(), await door.enter()
    first.leave()
    first.leave()
    assert door.num_inside == 1


async def test_who_left_comes_back_only_where_nothing_changes() -> None:
    door = Door()
    left = await door.enter()
    left.leave()
    again = door.try_enter_again(left)
    assert again is not None
    again.leave()
    async with door.closed(30):
        assert door.try_enter_again(left) is None


async def test_a_change_that_fails_opens_the_door() -> None:
    door = Door()
    with pytest.raises(RuntimeError):
        async with door.closed(30):
            raise RuntimeError
    assert (await door.enter()).is_current
