"""Routes that a follower lets the leader answer, and the leader's end of that.

What is asked about the whole server, or changes it, is asked of the leader: the ``/v1/patches`` routes, the
metrics, and the description of the API. The request is passed on unchanged, with the caller's address beside
it, since the policy may ask for it; the socket lies where only this server's user can write to it.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import NotInStep, PolicyPatchError
from server.policy.connection import RELAYED

#: Beside paths below ``/v1/patches/``.
_RELAYED_PATHS = frozenset({"/v1/patches", "/metrics", "/openapi.json"})

_PATCHES_PREFIX = "/v1/patches/"

#: Answered by 503 where this process may not decide. ``/health`` says only that it is alive: who is out of
#: step gets back into it, and would not by being started again.
_HEALTH_PATHS = frozenset({"/ping"})

_ENDS_HEADER = b"x-policypatch-ends"

#: What the policy knows a peer by: no address, and not the Unix socket on which requests are passed on.
_NO_CALLER = {"client": None, "server": ("leader", 1)}

#: Belong to one connection, not to the request.
_HOP_HEADERS = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te"})


class Relay:
    """Sits around a follower's app."""

    def __init__(self, app: ASGIApp, address: Path, is_in_step: Callable[[], bool]) -> None:
        self._app = app
        self._is_in_step = is_in_step
        self._client = httpx.AsyncClient(
            # A connection for each: one that was idle may be closed just as the next request is sent.
            transport=httpx.AsyncHTTPTransport(
                uds=str(address), limits=httpx.Limits(max_keepalive_connections=0)
            ),
            timeout=httpx.Timeout(None, connect=5.0),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in _HEALTH_PATHS and not self._is_in_step():
            await _refuse(NotInStep("this process does not know yet what serves now"), send)
        elif path in _RELAYED_PATHS or path.startswith(_PATCHES_PREFIX):
            await self._relay(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(k, v) for k, v in scope["headers"] if k not in _HOP_HEADERS and k != _ENDS_HEADER]
        ends = {end: scope.get(end) for end in ("client", "server")}
        headers.append((_ENDS_HEADER, json.dumps(ends).encode("ascii")))
        target = scope.get("raw_path") or scope["path"].encode()
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        url = httpx.URL("http://leader").copy_with(raw_path=target)
        has_body = any(k in (b"content-length", b"transfer-encoding") for k, _ in scope["headers"])
        content = _body(receive) if has_body else None
        request = httpx.Request(scope["method"], url, headers=headers, content=content)
        try:
            answer = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            await _refuse(NotInStep(f"the leading process does not answer: {type(error).__name__}"), send)
            return
        async with contextlib.aclosing(answer):
            kept = [(k.lower(), v) for k, v in answer.headers.raw if k.lower() not in _HOP_HEADERS]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
            async for chunk in answer.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class FromFollowers:
    """Sits around the leader's app where followers pass requests on, and restores their client's address."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            ends = next((json.loads(v) for k, v in scope["headers"] if k == _ENDS_HEADER), _NO_CALLER)
            headers = [(k, v) for k, v in scope["headers"] if k != _ENDS_HEADER]
            known = {end: tuple(value) if value else None for end, value in ends.items()}
            scope = {**scope, **known, "headers": headers, RELAYED: True}
        await self._app(scope, receive, send)


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise httpx.ReadError("the client went away")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _refuse(error: PolicyPatchError, send: Send) -> None:
    body = json.dumps(error.body()).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode("ascii")),
        *((name.lower().encode("ascii"), value.encode("ascii")) for name, value in error.headers().items()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
