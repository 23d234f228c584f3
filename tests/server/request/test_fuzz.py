"""Requests that schemathesis makes up, from the OpenAPI of our routes and of chat with a patch: no 5xx."""

import asyncio
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error

from server.policy.file import parse_policy
from tests.server.stand import Stand

POLICY = parse_policy(
    b"""
version: 1
required: [safety]
others: {allow: [pirate]}
tenants: {header: X-Tenant, trusted: [127.0.0.1], rules: {acme: {allow: all}}}
"""
)
MAX_SECONDS = 10

#: What vLLM's own schema leaves out: the headers that choose a patch. The body is what this app reads of it.
CHAT: dict[str, Any] = {
    "post": {
        "parameters": [
            {"name": name, "in": "header", "schema": {"type": "string", "examples": examples}}
            for name, examples in (
                ("X-Policy-Patch", ["pirate", "none", "safety, pirate", "pirate@1.0.0", "pirate@sha256:"]),
                ("X-Tenant", ["acme", "nobody"]),
                ("Authorization", ["Bearer x", "Bearer"]),
            )
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "model": {"type": "string", "pattern": "^demo(:.{0,80})?$"},
                            "stream": {"type": "boolean"},
                        },
                        "additionalProperties": False,
                    }
                }
            },
        },
        "responses": {"200": {"description": "an answer"}},
    }
}


@pytest.fixture
async def app(stand: Stand) -> Any:
    for index, name in enumerate(("safety", "pirate", "secret")):
        await stand.load(name, fill=float(index))
    stand.decider.policy = POLICY
    document = stand.app.openapi()
    document["paths"] = {path: item for path, item in document["paths"].items() if "patches" in path}
    document["paths"]["/v1/chat/completions"] = CHAT
    stand.app.openapi = lambda: document

    async def from_the_gateway(scope: Any, receive: Any, send: Any) -> None:
        # The test client calls itself "testclient", which no policy can trust.
        await stand.app({**scope, "client": ("127.0.0.1", 1)}, receive, send)

    return from_the_gateway


async def test_no_made_up_request_breaks_the_server(stand: Stand, app: Any) -> None:
    seen: dict[str, set[int]] = {}

    def fuzz() -> None:
        schema = schemathesis.openapi.from_asgi("/openapi.json", app)
        for result in schema.get_all_operations():
            operation = result.ok()
            statuses = seen.setdefault(f"{operation.method} {operation.path}", set())
            fuzz_one(operation, statuses)

    await asyncio.to_thread(fuzz)
    assert {"get /v1/patches", "get /v1/patches/{name}", "post /v1/chat/completions"} <= {*seen}
    assert {200, 404} <= seen["get /v1/patches"] | seen["get /v1/patches/{name}"]
    assert {200, 400, 403} <= seen["post /v1/chat/completions"]


def fuzz_one(operation: Any, statuses: set[int]) -> None:
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def ask(case: Case) -> None:
        response = case.call(timeout=MAX_SECONDS)
        statuses.add(response.status_code)
        case.validate_response(response, checks=[not_a_server_error])

    ask()
