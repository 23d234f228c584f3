"""Answers ``/metrics`` for the whole server: in a thread, gzipped and with exemplars where the scraper asks.

Invariants: a page is never older than the request for it; the event loop only takes the numbers; scrapes
that come together share a page; and however many come, putting pages into words takes no more than
``CPU_SHARE`` of one core for long.
"""

import asyncio
import gzip
import time
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.metrics.patches import PatchMetrics
from server.metrics.use_text import use_text

#: Of one core, in the long run.
CPU_SHARE = 0.05

#: Seconds of one core that may be spent at once after a quiet time.
MAX_CREDIT_S = 0.25

#: Asks every other process for its figures.
Others = Callable[[], Awaitable[list[dict[str, Any]]]]

#: Of a page in OpenMetrics.
_END = b"# EOF\n"

#: Content type and whether it is gzipped.
_Kind = tuple[str, bool]


async def no_others() -> list[dict[str, Any]]:
    """Return the figures of the others where there are none."""
    return []


class MetricsPage:
    """Sits around the app."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: PatchMetrics,
        registry: CollectorRegistry,
        others: Others = no_others,
    ) -> None:
        self._app = app
        self._pages = Pages(metrics, registry, others)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        is_ours = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        if not is_ours or scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/") != "/metrics":
            await self._app(scope, receive, send)
            return
        page = await self._pages.page(Headers(scope=scope))
        await page(scope, receive, send)


class Pages:
    """Puts the metrics into words, for one registry."""

    def __init__(self, metrics: PatchMetrics, registry: CollectorRegistry, others: Others) -> None:
        self._metrics = metrics
        self._registry = registry
        self._others = others
        #: Pages that were asked for and whose numbers were not taken yet.
        self._coming: dict[_Kind, asyncio.Task[Response]] = {}
        self._turn = asyncio.Lock()
        self._credit_s = MAX_CREDIT_S
        self._paid_s = time.monotonic()

    async def page(self, headers: Headers) -> Response:
        """Return the page as a scraper with these ``headers`` wants it, of this moment or a later one."""
        accept = _with_colons(headers.get("accept", ""))
        kind = choose_encoder(accept)[1], "gzip" in headers.get("accept-encoding", "")
        task = self._coming.get(kind)
        if task is None:
            task = self._coming[kind] = asyncio.create_task(self._render(kind, accept))
        # A scraper that goes away takes nothing from the others that wait.
        return await asyncio.shield(task)

    async def _render(self, kind: _Kind, accept: str) -> Response:
        try:
            async with self._turn:
                await self._wait_for_credit()
                del self._coming[kind]
                self._metrics.others = await self._others()
                self._metrics.catalog_collector.freeze()
                try:
                    body, used_s = await asyncio.to_thread(self._encode, accept, is_gzipped=kind[1])
                finally:
                    self._metrics.catalog_collector.thaw()
                self._credit_s -= used_s
        finally:
            if self._coming.get(kind) is asyncio.current_task():
                del self._coming[kind]
        headers = {"content-type": kind[0], "vary": "accept, accept-encoding"}
        return Response(body, headers=headers | ({"content-encoding": "gzip"} if kind[1] else {}))

    async def _wait_for_credit(self) -> None:
        self._earn()
        if self._credit_s < 0:
            await asyncio.sleep(-self._credit_s / CPU_SHARE)
            self._earn()

    def _earn(self) -> None:
        now_s = time.monotonic()
        self._credit_s = min(MAX_CREDIT_S, self._credit_s + (now_s - self._paid_s) * CPU_SHARE)
        self._paid_s = now_s

    def _encode(self, accept: str, *, is_gzipped: bool) -> tuple[bytes, float]:
        started_s = time.thread_time()
        encode, content_type = choose_encoder(accept)
        is_openmetrics = content_type.startswith("application/openmetrics-text")
        body = encode(self._registry).removesuffix(_END)
        body += use_text(self._metrics.uses(), is_openmetrics=is_openmetrics).encode("utf-8")
        body += _END if is_openmetrics else b""
        # The fastest level takes a tenth off the time that a page takes, and leaves a tenth of its bytes.
        body = gzip.compress(body, 1) if is_gzipped else body
        return body, time.thread_time() - started_s


def _with_colons(accept: str) -> str:
    """Return an ``Accept`` header that keeps the names of metrics as they are.

    Prometheus 2 says nothing of escaping, and the encoder of OpenMetrics then takes the colon of ``vllm:``
    for a character that has to be replaced.
    """
    return ",".join(
        f"{part};escaping=allow-utf-8" if "openmetrics" in part and "escaping" not in part else part
        for part in accept.split(",")
    )
