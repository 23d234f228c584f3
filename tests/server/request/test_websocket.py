"""Realtime input can't carry a patch: such connections are refused before they are accepted."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.server.stand import Stand


async def connect(
    stand: Stand, *headers: bytes, extensions: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Open a connection to a route that accepts everything; gives what the server answers."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = {
        "type": "websocket",
        "path": "/v1/realtime",
        "raw_path": b"/v1/realtime",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"x-policy-patch", value) for value in headers],
        "subprotocols": [],
        "extensions": extensions,
    }
    await stand.app(scope, receive, send)
    return sent


@pytest.fixture(autouse=True)
def route(stand: Stand) -> None:
    @stand.app.websocket("/v1/realtime")
    async def realtime(websocket: Any) -> None:
        await websocket.accept()
        stand.engine.decisions.append(stand.gate.selection())
        await websocket.close()

    # FastAPI reads annotations as the protocol to inject; `Any` would be a query parameter.
    from fastapi import WebSocket

    realtime.__annotations__["websocket"] = WebSocket
    stand.app.router.routes.pop()
    stand.app.websocket("/v1/realtime")(realtime)


@pytest.mark.parametrize(
    ("headers", "policy"),
    [
        ([b"pirate"], {}),
        ([b"unknown"], {}),
        ([b"Pirate"], {}),
        ([b"pirate", b"none"], {}),
        ([], {"default_patch": "pirate"}),
        ([], {"require_patch": True}),
        ([b"none"], {"require_patch": True}),
    ],
)
async def test_a_connection_that_has_a_patch_is_refused(
    stand: Stand, headers: list[bytes], policy: dict[str, Any]
) -> None:
    await stand.load()
    stand.use(**policy)
    (message,) = await connect(stand, *headers)
    assert (message["type"], message["code"]) == ("websocket.close", 1008)
    assert stand.engine.decisions == []


async def test_the_refusal_is_an_error_object_where_the_server_can_send_one(stand: Stand) -> None:
    start, body = await connect(stand, b"pirate", extensions={"websocket.http.response": {}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 400)
    assert json.loads(body["body"])["error"]["code"] == "unsupported_with_patch"


@pytest.mark.parametrize(
    ("headers", "policy"), [([], {}), ([b"none"], {}), ([b"none"], {"default_patch": "pirate"})]
)
async def test_a_connection_without_a_patch_is_served_by_the_base(
    stand: Stand, headers: list[bytes], policy: dict[str, Any]
) -> None:
    await stand.load()
    stand.use(**policy)
    events: list[Any] = []
    stand.decider.audit = SimpleNamespace(record=events.append)
    sent = await connect(stand, *headers)
    assert sent[0]["type"] == "websocket.accept"
    decision = "allowed" if headers else "defaulted"
    assert [(event.decision, event.status) for event in events] == [(decision, 101)]
    assert [decision.patch for decision in stand.engine.decisions] == [None]
