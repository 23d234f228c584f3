"""Orders that schemathesis makes up from the OpenAPI of the admin app, as an operator: no 5xx, no hang."""

import asyncio
from typing import Any

import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case

from tests.server.stand import Stand

MAX_SECONDS = 20
OPERATIONS = {
    "put /v1/patches/{name}/{version}",
    "delete /v1/patches/{name}/{version}",
    "delete /v1/patches/{name}",
    "post /v1/patches/{name}/activate",
    "post /v1/patches/{name}/rollback",
    "get /v1/patches/{name}/history",
}


async def test_no_made_up_order_breaks_the_server(admin: Any, stand: Stand) -> None:
    loop = asyncio.get_running_loop()
    seen: dict[str, set[int]] = {}

    def send(case: Case) -> httpx.Response:
        made = requests.Request(**case.as_transport_kwargs(base_url="http://admin")).prepare()
        headers = {k: v for k, v in made.headers.items() if k.lower() != "authorization"}
        order = admin.client.request(made.method, made.url, headers=headers, content=made.body)
        return asyncio.run_coroutine_threadsafe(order, loop).result(MAX_SECONDS)

    def fuzz(document: dict[str, Any]) -> None:
        for result in schemathesis.openapi.from_dict(document).get_all_operations():
            operation = result.ok()
            fuzz_one(operation, send, seen.setdefault(f"{operation.method} {operation.path}", set()))

    document = (await admin.client.get("/openapi.json")).json()
    # Names that are there make more of an order than those that are not.
    for path, item in document["paths"].items():
        for parameter in (p for operation in item.values() for p in operation.get("parameters", ())):
            if parameter["in"] == "path":
                parameter["examples"] = {
                    "there": {"value": "pirate" if parameter["name"] == "name" else "1.0.0"}
                }
        assert path.startswith("/v1/patches")
    for version in ("1.0.0", "1.1.0"):
        assert (await admin.put(stand.bytes(version=version), f"pirate/{version}")).status_code == 201
    await asyncio.to_thread(fuzz, document)
    assert {*seen} >= OPERATIONS
    assert {operation: bad for operation, got in seen.items() if (bad := {s for s in got if s >= 500})} == {}
    # Some were carried out and some refused for what they ask, so they got past the key.
    assert {200, 400, 404} <= set().union(*seen.values())


def fuzz_one(operation: Any, send: Any, statuses: set[int]) -> None:
    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def ask(case: Case) -> None:
        statuses.add(send(case).status_code)

    ask()
