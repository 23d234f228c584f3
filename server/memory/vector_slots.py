"""The bound on distinct vectors in flight: a worker's table has so many rows, and a step can't be split.

Invariant: never more than ``limit`` distinct digests are held at a time; how many requests hold each does not
matter. Whoever waits longest goes first. A digest that is held already needs no row more, so its requests
pass those that wait for one, until one of these has waited for ``PATIENCE_S``.

Only the event loop's thread calls in here.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

#: Seconds that a request may be passed by others whose vectors have a row.
PATIENCE_S = 1.0


def _future() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False, slots=True)
class _Waiter:
    digest: str
    since_s: float
    admitted: "asyncio.Future[None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class VectorSlots:
    """Counts the requests of each vector, and lets wait what there is no row for."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._held: Counter[str] = Counter()
        self._waiters: deque[_Waiter] = deque()

    @property
    def num_held(self) -> int:
        """How many rows are taken."""
        return len(self._held)

    @property
    def num_waiting(self) -> int:
        """How many requests wait for a row."""
        return len(self._waiters)

    async def acquire(self, digest: str) -> None:
        """Return once ``digest`` has a row; it keeps it until as many calls of ``release``."""
        if self._may_pass(digest):
            self._held[digest] += 1
            return
        waiter = _Waiter(digest, self._clock())
        self._waiters.append(waiter)
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                self.release(digest)
            else:
                self._waiters.remove(waiter)
                # It may have been the one that others were held up for.
                self._admit()
            raise

    def release(self, digest: str) -> None:
        """Count one user less; the last one frees the row."""
        self._held[digest] -= 1
        if not self._held[digest]:
            del self._held[digest]
            self._admit()

    def _may_pass(self, digest: str) -> bool:
        if self._waiters and (digest not in self._held or self._is_out_of_patience(self._waiters[0])):
            return False
        return digest in self._held or len(self._held) < self._limit

    def _is_out_of_patience(self, waiter: _Waiter) -> bool:
        return self._clock() - waiter.since_s > PATIENCE_S

    def _admit(self) -> None:
        waiting, self._waiters = self._waiters, deque()
        for waiter in waiting:
            # Behind the first that has to wait nobody passes but those whose vector has a row.
            if self._may_pass(waiter.digest):
                self._held[waiter.digest] += 1
                waiter.admitted.set_result(None)
            else:
                self._waiters.append(waiter)
