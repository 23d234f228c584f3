"""For how long an event loop did nothing for what was due."""

import asyncio
import time


class LoopStops:
    """Watches the running event loop from now on; it looks a thousand times a second."""

    def __init__(self) -> None:
        self._longest_s = 0.0
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            self._longest_s = max(self._longest_s, time.perf_counter() - started - 0.001)

    def take(self) -> float:
        """Return the longest stop since the last call."""
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s
