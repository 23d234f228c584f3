"""Around everything: gives each request its id and its trace, and writes a line on it where that is wanted.

The line holds no text of a prompt or an answer: it has no field for them. It goes through ``logging``, with
its values as fields of the record, so that vLLM's JSON formatter writes them out.
"""

import logging
import time
from collections.abc import Awaitable, Collection
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.policy.connection import RELAYED
from server.request.exchange import REQUEST_ID_HEADER, Exchange, request_id_of, with_exchange
from server.request.trace import PREFIX, NoTracing, Tracing

logger = logging.getLogger(__name__)

#: Of a path; it is the only text of a client in a line, beside the id.
_MAX_PATH_LENGTH = 256

SPAN = "policypatch.request"


class AccessLog:
    """Sits around the app."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        is_written: bool,
        tracing: Tracing | None = None,
        excluded: Collection[str] = (),
    ) -> None:
        """Make one.

        Args:
            app: What answers.
            is_written: Whether there is a line for each request.
            tracing: Begins traces.
            excluded: Paths without a line and without a span, such as those of health checks.
        """
        self._app = app
        self._is_written = is_written
        self._tracing: Tracing = tracing or NoTracing()
        self._excluded = frozenset(excluded)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket") or RELAYED in scope:
            await self._app(scope, receive, send)
            return
        exchange = Exchange(request_id_of(scope["headers"]))
        is_told = scope["path"] not in self._excluded
        if is_told and scope["type"] == "http":
            exchange.trace = self._tracing.begin(scope["headers"], SPAN)
        status = 0
        id_header = (REQUEST_ID_HEADER, exchange.request_id.encode("ascii"))

        # Not a coroutine of its own: most of what passes are the chunks of streams, one with each token.
        def answer(message: Message) -> Awaitable[None]:
            nonlocal status
            kind = message["type"]
            if kind == "http.response.body":
                pass
            elif kind == "websocket.accept":
                status = HTTPStatus.SWITCHING_PROTOCOLS
            elif kind.endswith("http.response.start"):
                status = message["status"]
                headers = [line for line in message["headers"] if line[0].lower() != REQUEST_ID_HEADER]
                message = {**message, "headers": [*headers, id_header]}
            return send(message)

        try:
            await self._app(with_exchange(scope, exchange), receive, answer)
        finally:
            end = partial(self._end, scope, exchange, status, is_told=is_told)
            request = exchange.request
            if request is not None and request.judge_later is not None:
                request.ended_later = end
            else:
                end()

    def _end(self, scope: Scope, exchange: Exchange, status: int, *, is_told: bool) -> None:
        if not is_told or not (self._is_written or exchange.trace.is_told):
            return
        known = facts(exchange, status)
        exchange.trace.end(
            {f"{PREFIX}{key}": value for key, value in known.items()}
            | {"http.response.status_code": status, "http.request_id": exchange.request_id},
            has_failed=known["outcome"] == "server_error",
        )
        if self._is_written:
            path = scope["path"]
            line: dict[str, Any] = {
                "request_id": exchange.request_id,
                "method": scope.get("method", "WEBSOCKET"),
                "path": path if len(path) <= _MAX_PATH_LENGTH else f"{path[: _MAX_PATH_LENGTH - 1]}…",
                "status": status,
                **known,
                "duration_s": round(time.monotonic() - exchange.started_s, 6),
            }
            if exchange.trace.trace_id is not None:
                line["trace_id"] = exchange.trace.trace_id
            logger.info("%s %s %d", line["method"], line["path"], status, extra=line)


def facts(exchange: Exchange, status: int) -> dict[str, Any]:
    """Return what is known of a request at its end, by the names of the fields in a line."""
    request = exchange.request
    if request is None:
        return {"outcome": _outcome(status)}
    known: dict[str, Any] = request.known() | {"outcome": request.outcome or _outcome(status)}
    if not request.reached_engine:
        # Decided, and not answered by it.
        known = {key: value for key, value in known.items() if key in ("caller", "outcome")}
    if request.error is not None:
        known["code"] = request.error.code
    known |= request.decided
    if request.num_generated_tokens:
        known["prompt_tokens"] = request.num_prompt_tokens
        known["generation_tokens"] = request.num_generated_tokens
    if request.first_token_s is not None:
        known["first_token_s"] = round(request.first_token_s, 6)
    return known


def _outcome(status: int) -> str:
    if not status:
        return "cancelled"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    return "client_error" if status >= HTTPStatus.BAD_REQUEST else "ok"
