"""Where the parts sit in the app."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from server.app import install
from server.errors import UnsupportedWithPatch
from tests.server.stand import Stand


async def test_authentication_comes_first(stand: Stand) -> None:
    """A caller without a key learns nothing about which patches there are."""

    class Authentication:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
            else:
                await self.app(scope, receive, send)

    app = FastAPI()
    app.add_middleware(Authentication)
    install(app, catalog=stand.catalog, decider=stand.decider, metrics=stand.metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for header in ("unknown", "Odd Case"):
            response = await client.post("/v1/chat/completions", headers={"X-Policy-Patch": header})
            assert response.status_code == 401


async def test_an_app_that_serves_already_is_refused(stand: Stand) -> None:
    await stand.chat()
    with pytest.raises(RuntimeError, match="serves no request yet"):
        install(stand.app, catalog=stand.catalog, decider=stand.decider, metrics=stand.metrics)


async def test_a_refusal_that_a_route_raises_becomes_an_error_object(stand: Stand) -> None:
    @stand.app.post("/v1/completions")
    async def complete(request: Request) -> None:
        raise UnsupportedWithPatch("prompt_logprobs can't be used with a patch", param="prompt_logprobs")

    response = await stand.post("/v1/completions")
    assert response.status_code == 400
    assert response.json() == {
        "error": {
            "message": "prompt_logprobs can't be used with a patch",
            "type": "BadRequestError",
            "param": "prompt_logprobs",
            "code": "unsupported_with_patch",
        }
    }
    assert stand.value('policy_patch_rejected_requests_total{code="unsupported_with_patch"}') == 1


async def test_a_handler_for_the_builtin_error_does_not_get_in_the_way(stand: Stand) -> None:
    """vLLM registers handlers for ValueError and others, which some of our errors also are."""

    async def take_all(request: Any, error: Exception) -> Any:
        return JSONResponse({"taken": True}, 418)

    for kind in (ValueError, LookupError, Exception):
        stand.app.add_exception_handler(kind, take_all)
    response = await stand.chat(model="demo:unknown")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "patch_not_found")
