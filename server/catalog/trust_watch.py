"""Keeps trust and catalog in line with the keys and the list of revocations while the server runs."""

import asyncio
import contextlib
import logging
from types import TracebackType

from server.catalog.catalog import Catalog
from server.metrics.patches import PatchMetrics
from server.trust.trust import Trust

logger = logging.getLogger(__name__)

#: Seconds between looks. Keys and list are read in full each time: they are small.
CHECK_S = 1.0


class TrustWatch:
    """Looks once in a while; an async context manager, entered once at start-up."""

    def __init__(
        self, trust: Trust, catalog: Catalog, metrics: PatchMetrics, *, check_s: float = CHECK_S
    ) -> None:
        self._trust = trust
        self._catalog = catalog
        self._metrics = metrics
        self._check_s = check_s
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "TrustWatch":
        self._metrics.control.set_trust_readable(True)
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._task is not None:
            await self._task

    async def look(self) -> None:
        """Look once, and bring the catalog in line."""
        has_changed = await asyncio.to_thread(self._trust.refresh)
        is_saved = await asyncio.to_thread(self._trust.save)
        self._metrics.control.set_trust_readable(is_saved and not self._trust.problems)
        if has_changed:
            await self._catalog.recheck()

    async def _watch(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._check_s)
            try:
                await self.look()
            except Exception:
                # Nothing may end the watch: a revocation would go unnoticed for the rest of the process.
                logger.exception("looking at keys and revocations failed, going on")
