"""Sends a refusal over ASGI, in the shape that clients of the route know."""

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from starlette.types import Message, Scope, Send

from server.errors import PolicyPatchError

#: WebSocket close code for a policy violation (RFC 6455).
_CLOSE_POLICY_VIOLATION = 1008

#: What Anthropic's API calls the kinds of error, by status.
_ANTHROPIC_TYPES: Mapping[int, str] = MappingProxyType(
    {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
    }
)


def refusal_body(error: PolicyPatchError, path: str) -> dict[str, Any]:
    """Return the body for clients of ``path``: OpenAI's error object, or Anthropic's on its routes."""
    body = error.body()
    if not path.startswith("/v1/messages"):
        return body
    kind = _ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {**body["error"], "type": kind}}


async def send_refusal(
    error: PolicyPatchError, path: str, extra: Iterable[tuple[bytes, bytes]], send: Send
) -> None:
    """Answer with ``error`` and the headers ``extra``; to be called before anything else was sent."""
    start, body = _messages(error, path, extra)
    await send(start)
    await send({"type": "http.response.body", "body": body})


async def refuse_websocket(error: PolicyPatchError, scope: Scope, send: Send) -> None:
    """Close a connection that was not accepted yet, with an HTTP answer where the server can send one."""
    extensions: dict[str, Any] = scope.get("extensions") or {}
    if "websocket.http.response" not in extensions:
        await send(
            {"type": "websocket.close", "code": _CLOSE_POLICY_VIOLATION, "reason": error.message[:120]}
        )
        return
    start, body = _messages(error, scope["path"], ())
    await send({**start, "type": "websocket.http.response.start"})
    await send({"type": "websocket.http.response.body", "body": body})


def _messages(
    error: PolicyPatchError, path: str, extra: Iterable[tuple[bytes, bytes]]
) -> tuple[Message, bytes]:
    body = json.dumps(refusal_body(error, path)).encode()
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode("ascii")),
        *((name.lower().encode("ascii"), value.encode("ascii")) for name, value in error.headers().items()),
        *extra,
    ]
    return {"type": "http.response.start", "status": error.status, "headers": headers}, body
