"""Metrics of all processes on one page: Prometheus' shared counters, and what only each process knows."""

from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.metrics.patches import PatchMetrics


class MetricsPage:
    """Sits around the leader's app, and answers ``/metrics`` for the whole server."""

    def __init__(
        self, app: ASGIApp, metrics: PatchMetrics, others: Callable[[], Awaitable[list[dict[str, Any]]]]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._others = others
        self._registry = CollectorRegistry()
        MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]
        self._registry.register(metrics.catalog_collector)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) != "/metrics":
            await self._app(scope, receive, send)
            return
        self._metrics.others = await self._others()
        page = Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
        await page(scope, receive, send)
