"""Threads get their turn beside an event loop that always has work."""

import asyncio
import threading

from server.engine.thread_turns import PATIENCE_S, TurnTakingExecutor, pause_s, take_turns
from tests.server.stand import until


async def test_the_loop_steps_aside_for_a_thread_that_is_not_done_soon() -> None:
    turn = threading.Event()
    executor = TurnTakingExecutor(loop := asyncio.get_running_loop(), lambda seconds: turn.set())
    loop.set_default_executor(executor)
    assert await asyncio.to_thread(turn.wait, 30)
    await until(lambda: not executor.is_watching)


async def test_the_loop_steps_aside_for_nothing_once_its_threads_are_done() -> None:
    turns: list[float] = []
    executor = TurnTakingExecutor(loop := asyncio.get_running_loop(), turns.append)
    loop.set_default_executor(executor)
    assert await asyncio.to_thread(int, "7") == 7
    await until(lambda: not executor.is_watching)
    assert not turns


async def test_every_thread_of_the_loop_takes_turns() -> None:
    take_turns()
    loop = asyncio.get_running_loop()
    assert isinstance(loop._default_executor, TurnTakingExecutor)  # type: ignore[attr-defined]
    assert (await asyncio.to_thread(threading.current_thread)).name.startswith("asyncio")


def test_a_thread_that_takes_long_gets_fewer_turns() -> None:
    assert pause_s(0.5) == pause_s(0.0) == PATIENCE_S
    assert pause_s(60.0) == 0.6
