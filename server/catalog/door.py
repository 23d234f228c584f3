"""The door that requests pass on their way in, and that is closed while weights change.

Invariant: whoever is inside entered under the weights that are written now, and while the door is closed and
no one is inside, nothing of a request runs anywhere. A request is inside from before anything is decided for
it until its HTTP exchange and every generation of it are over, so that it sees one set of weights.

Event loop thread only.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from server.versions.view import ServedPatch


class StillInside(Exception):
    """Requests were still running when the time to wait for them was over."""

    def __init__(self, num_inside: int) -> None:
        super().__init__(num_inside)
        self.num_inside = num_inside


class Passage:
    """One request inside."""

    __slots__ = ("_door", "weights")

    def __init__(self, door: "Door") -> None:
        self._door: Door | None = door
        #: The weight patch that is written while it is inside; ``None`` for the model's own weights.
        self.weights = door.weights

    def leave(self) -> None:
        """Leave, once and for all; leaving twice is nothing."""
        door, self._door = self._door, None
        if door is not None:
            door.left()

    @property
    def is_current(self) -> bool:
        """Whether it has not left, and what is written is what it entered under."""
        return self._door is not None and self.weights == self._door.weights


class Door:
    """What requests enter by, except while weights change."""

    def __init__(self) -> None:
        #: The weight patch that is written; changed only while the door is closed and no one is inside.
        self.weights: ServedPatch | None = None
        self._num_inside = 0
        self._may_enter = asyncio.Event()
        self._may_enter.set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def is_open(self) -> bool:
        """Whether requests may enter."""
        return self._may_enter.is_set()

    @property
    def num_inside(self) -> int:
        """How many requests are inside."""
        return self._num_inside

    async def enter(self) -> Passage:
        """Enter as soon as the door is open."""
        while not self._may_enter.is_set():
            await self._may_enter.wait()
        return self._let_in()

    def try_enter_again(self, left: Passage) -> Passage | None:
        """Enter anew for what a request left undone, where nothing changed since; ``None``: it may not."""
        if not self._may_enter.is_set() or left.weights != self.weights:
            return None
        return self._let_in()

    def _let_in(self) -> Passage:
        self._num_inside += 1
        self._is_empty.clear()
        return Passage(self)

    def left(self) -> None:
        """Note that a request left; ``Passage.leave`` calls this."""
        self._num_inside -= 1
        if not self._num_inside:
            self._is_empty.set()

    @asynccontextmanager
    async def closed(self, timeout_s: float) -> AsyncIterator[None]:
        """Close the door and wait until no one is inside; opened again at the end of the context.

        Raises:
            StillInside: Someone was after ``timeout_s``; the door is open again.
        """
        try:
            if num_inside := await self.close(timeout_s):
                raise StillInside(num_inside)
            yield
        finally:
            self.open()

    async def close(self, timeout_s: float) -> int:
        """Keep requests out, wait until none is inside, and return how many are all the same."""
        self._may_enter.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_empty.wait()
        except TimeoutError:
            pass
        return self._num_inside

    def open(self) -> None:
        """Have requests enter again."""
        self._may_enter.set()


@asynccontextmanager
async def together(*closings: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
    """Enter all of these at a time, and leave all; where one can't be entered, raise what it raised."""
    async with AsyncExitStack() as entered:

        async def enter(closing: AbstractAsyncContextManager[None]) -> None:
            await closing.__aenter__()
            entered.push_async_exit(closing)

        tasks = [asyncio.ensure_future(enter(closing)) for closing in closings]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        yield
