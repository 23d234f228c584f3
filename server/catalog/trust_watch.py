"""Keeps trust and catalog in line with the keys and the list of revocations while the server runs."""

import asyncio
from typing import Self

from server.catalog.catalog import Catalog
from server.metrics.patches import PatchMetrics
from server.trust.trust import Trust
from server.watcher import Watcher

#: Seconds between looks. Keys and list are read in full each time: they are small.
CHECK_S = 1.0


class TrustWatch(Watcher):
    """Looks at intervals; entered once at start-up."""

    def __init__(
        self, trust: Trust, catalog: Catalog, metrics: PatchMetrics, *, check_s: float = CHECK_S
    ) -> None:
        super().__init__("keys and revocations", every_s=check_s)
        self._trust = trust
        self._catalog = catalog
        self._metrics = metrics

    async def __aenter__(self) -> Self:
        self._metrics.control.set_trust_readable(True)
        return await super().__aenter__()

    async def look(self) -> None:
        """Look once, and bring the catalog in line."""
        has_changed = await asyncio.to_thread(self._trust.refresh)
        is_saved = await asyncio.to_thread(self._trust.save)
        self._metrics.control.set_trust_readable(is_saved and not self._trust.problems)
        if has_changed:
            await self._catalog.recheck()
