"""What leaves the server: errors with their own status, nothing that the patch had no part in."""

from collections.abc import Callable
from typing import Any

import pytest

from server.errors import PatchNotReady
from tests.server.stand import Stand

HEADER = "x-policy-patch"
DIGEST_HEADER = "x-policy-patch-digest"


async def test_an_answer_that_the_patch_had_no_part_in_is_withheld(stand: Stand) -> None:
    """A route that answers around the engine client would otherwise be a silent base answer."""
    await stand.load()
    response = await stand.chat("pirate", ignores_patch=True)
    assert stand.code(response) == (500, "patch_not_applied")
    assert "base" not in response.text
    assert (await stand.chat(ignores_patch=True)).json() == {"text": "base"}


async def test_an_error_of_the_route_before_the_engine_was_asked_claims_no_patch(stand: Stand) -> None:
    await stand.load()
    response = await stand.chat("pirate", breaks=True)
    assert stand.code(response) == (500, "internal_error")
    assert HEADER not in response.headers
    response = await stand.chat("pirate", model="no-such-model")
    assert response.status_code == 404
    assert HEADER not in response.headers


async def test_a_refusal_has_the_shape_of_the_routes_own_api(stand: Stand) -> None:
    await stand.load()
    for header, status, kind in (
        ("unknown", 404, "not_found_error"),
        ("Odd Case", 400, "invalid_request_error"),
    ):
        response = await stand.post("/v1/messages", header)
        assert response.status_code == status
        document = response.json()
        assert (document["type"], document["error"]["type"]) == ("error", kind)
        assert document["error"]["message"]


async def test_an_error_of_the_engine_names_the_selected_patch(stand: Stand) -> None:
    patch = await stand.load()
    stand.engine.fails_after = 0
    response = await stand.chat("pirate")
    assert response.status_code == 500
    assert response.headers[DIGEST_HEADER] == patch.digest


async def test_an_apps_own_handler_for_exceptions_is_used(stand: Stand) -> None:
    async def handle(request: Any, error: Exception) -> Any:
        from fastapi.responses import JSONResponse

        return JSONResponse({"handled": str(error)}, 500)

    stand.app.add_exception_handler(Exception, handle)
    await stand.load()
    response = await stand.chat("pirate", breaks=True)
    assert response.json() == {"handled": "a bug in the route"}


async def test_a_refusal_before_the_first_chunk_of_a_stream_has_its_own_status(stand: Stand) -> None:
    """vLLM's streams turn exceptions into a chunk under status 200; the middleware knows better."""
    await stand.load()
    stand.engine.fails_after, stand.engine.failure = 0, PatchNotReady("lost on the way")
    response = await stand.chat("pirate", stream=True)
    assert stand.code(response) == (503, "patch_not_ready")
    assert response.headers["retry-after"] == "1"
    assert response.headers[HEADER] == "pirate@1.0.0"
    assert stand.in_flight() == 0


async def test_a_refusal_after_the_first_chunk_stays_in_the_stream(stand: Stand) -> None:
    await stand.load()
    stand.engine.fails_after, stand.engine.failure = 1, PatchNotReady("lost on the way")
    response = await stand.chat("pirate", stream=True)
    assert response.status_code == 200
    assert "lost on the way" in response.text


async def test_a_refusal_that_a_route_made_something_else_of_is_restored(stand: Stand) -> None:
    await stand.load()
    stand.engine.fails_after, stand.engine.failure = 2, PatchNotReady("lost on the way")
    assert stand.code(await stand.chat("pirate")) == (503, "patch_not_ready")


async def test_a_path_below_a_root_path_is_the_same_route(stand: Stand) -> None:
    await stand.load()
    stand.app.root_path = "/api"
    response = await stand.client.post(
        "/api/v1/chat/completions", headers={"X-Policy-Patch": "pirate"}, json={}
    )
    assert response.headers[HEADER] == "pirate@1.0.0"


async def test_a_redirect_to_the_route_without_slash_is_left_alone(stand: Stand) -> None:
    await stand.load()
    response = await stand.post("/v1/chat/completions/", "pirate")
    assert response.status_code == 307


async def test_a_stream_of_the_base_begins_before_its_first_token(
    stand: Stand, open_stream: Callable[..., Any]
) -> None:
    """Nothing is held back where there is no patch."""
    stand.engine.num_tokens = 2
    stand.engine.may_start.clear()
    stream = open_stream()
    assert (await stream.start())[1][HEADER] == "none"
    stand.engine.may_start.set()
    assert "base" in await stream.rest()


async def test_a_stream_that_nobody_asked_the_gate_about_gets_the_default_or_nothing(stand: Stand) -> None:
    """A route that streams around the engine client, under a default patch."""
    from fastapi.responses import StreamingResponse

    async def chunks() -> Any:
        yield "data: base\n\n"

    @stand.app.post("/v1/completions")
    async def complete() -> Any:
        return StreamingResponse(chunks(), media_type="text/event-stream")

    assert "base" in (await stand.post("/v1/completions")).text
    await stand.load()
    stand.use(default_patch="pirate")
    response = await stand.post("/v1/completions")
    assert stand.code(response) == (500, "patch_not_applied")


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_what_the_engine_client_refuses_never_reached_the_engine_and_claims_no_patch(
    stand: Stand, is_stream: bool
) -> None:
    @stand.app.exception_handler(ValueError)
    async def answer(request: Any, error: Exception) -> Any:
        from fastapi.responses import JSONResponse

        return JSONResponse({"error": {"message": str(error)}}, 400)

    await stand.load()
    stand.engine.refusal = ValueError("logit_bias: out of range")
    response = await stand.chat("pirate", stream=is_stream)
    assert response.status_code == (200 if is_stream else 400)
    assert "logit_bias: out of range" in response.text
    assert HEADER not in response.headers
    assert stand.value('policy_patch_requests_total{outcome="client_error",patch="pirate"}') == 0
    assert stand.in_flight() == 0
    stand.engine.refusal = None
    assert (await stand.chat("pirate", stream=is_stream)).headers[HEADER] == "pirate@1.0.0"


async def test_a_refusal_by_the_engine_that_is_no_patch_error_counts_by_its_status(stand: Stand) -> None:
    """vLLM checks some parameters inside the generation."""

    @stand.app.exception_handler(ValueError)
    async def answer(request: Any, error: Exception) -> Any:
        from fastapi.responses import JSONResponse

        return JSONResponse({"error": {"message": str(error)}}, 400)

    await stand.load()
    stand.engine.fails_after, stand.engine.failure = 0, ValueError("temperature is odd")
    response = await stand.chat("pirate")
    assert (response.status_code, response.headers[HEADER]) == (400, "pirate@1.0.0")
    assert stand.value('policy_patch_requests_total{outcome="client_error",patch="pirate"}') == 1
