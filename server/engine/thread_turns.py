"""Threads of this process compute, however busy its event loop is.

Python hands its lock over on request only after a thread has waited for 5 ms without a break, and each time
the loop lets go of the lock for a moment, in order to look at its sockets, those 5 ms begin anew. A loop that
always has work takes the lock back before a sleeping thread has woken up. So on a machine with free cores, a
thread that reads a small patch waited for more than 20 s beside a loop in which every turn took 0.4 ms.

Here the loop itself steps aside: where what it handed to a thread is not over soon, it sleeps for a moment.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

#: Seconds that a thread has, and then again between two turns, before the loop steps aside for it.
PATIENCE_S = 0.02

#: Seconds for which it does: enough for a thread to wake up, and to read a small patch.
TURN_S = 0.001

#: Of the time that the oldest thread has taken: one that takes long waits for a disk and needs few turns.
_PATIENCE_SHARE = 0.01


def take_turns() -> None:
    """Make the running event loop step aside for what ``asyncio.to_thread`` hands to threads."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(TurnTakingExecutor(loop))


class TurnTakingExecutor(ThreadPoolExecutor):
    """The threads of one event loop, whose own thread alone submits."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, step_aside: Callable[[float], None] = time.sleep
    ) -> None:
        super().__init__(thread_name_prefix="asyncio")
        self._loop = loop
        self._step_aside = step_aside
        #: What was submitted and may not be over, and when it was; the oldest first.
        self._jobs: list[tuple[Future[Any], float]] = []
        self._next_turn: asyncio.TimerHandle | None = None

    @property
    def is_watching(self) -> bool:
        """Whether the loop will look again whether a thread needs a turn."""
        return self._next_turn is not None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See ``Executor.submit``."""
        future = super().submit(fn, *args, **kwargs)
        self._jobs.append((future, self._loop.time()))
        if self._next_turn is None:
            self._next_turn = self._loop.call_later(PATIENCE_S, self._take_turn)
        return future

    def _take_turn(self) -> None:
        self._next_turn = None
        self._jobs = [job for job in self._jobs if not job[0].done()]
        if not self._jobs:
            return
        self._step_aside(TURN_S)
        wait_s = pause_s(self._loop.time() - self._jobs[0][1])
        self._next_turn = self._loop.call_later(wait_s, self._take_turn)


def pause_s(age_s: float) -> float:
    """Return the seconds until the next turn of threads of which the oldest has taken ``age_s``."""
    return max(PATIENCE_S, _PATIENCE_SHARE * age_s)
