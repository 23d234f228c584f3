"""Requests against a real app with everything in place, and an engine that tells its patch."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from server.errors import PatchNotReady

HEADER = "x-policy-patch"
DIGEST_HEADER = "x-policy-patch-digest"


def error_code(response: Any) -> tuple[int, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


async def test_a_named_patch_answers_and_is_named(stand: Any) -> None:
    patch = await stand.load("pirate", "1.2.0")
    response = await stand.chat("pirate")
    assert response.json() == {"tokens": [patch.digest] * 3}
    assert response.headers[HEADER] == "pirate@1.2.0"
    assert response.headers[DIGEST_HEADER] == patch.digest


async def test_the_base_answers_where_nothing_is_named_and_says_so(stand: Any) -> None:
    await stand.load()
    response = await stand.chat()
    assert response.json() == {"tokens": ["base"] * 3}
    assert response.headers[HEADER] == "none"
    assert DIGEST_HEADER not in response.headers


async def test_a_stream_names_its_patch_too(stand: Any, open_stream: Callable[..., Any]) -> None:
    patch = await stand.load()
    stream = open_stream("pirate")
    status, headers = await stream.start()
    assert (status, headers[HEADER], headers[DIGEST_HEADER]) == (200, "pirate@1.0.0", patch.digest)
    assert headers["content-type"].startswith("text/event-stream")
    assert await stream.rest() == f"data: {patch.digest}\n\n" * 3 + "data: [DONE]\n\n"


async def test_a_base_stream_is_named_none(stand: Any, open_stream: Callable[..., Any]) -> None:
    stream = open_stream()
    assert (await stream.start())[1][HEADER] == "none"
    assert "base" in await stream.rest()


@pytest.mark.parametrize("pin", ["@1.0.0", "@sha256"])
async def test_a_pinned_version_answers_although_another_is_active(stand: Any, pin: str) -> None:
    old = await stand.load("pirate", "1.0.0", fill=1.0)
    await stand.load("pirate", "2.0.0", fill=2.0)
    reference = "pirate@" + (old.digest[:19] if pin == "@sha256" else "1.0.0")
    assert (await stand.chat(reference)).headers[DIGEST_HEADER] == old.digest


async def test_a_composition_answers_where_it_was_prepared(stand: Any) -> None:
    parts = [await stand.load("toxicity", fill=1.0), await stand.load("bias", fill=2.0)]
    components = [{"name": p.name, "version": p.version, "digest": p.digest} for p in parts]
    origin = {"method": "compose", "components": components}
    both = await stand.load("both", origin=origin, fill=3.0)
    response = await stand.chat("toxicity, bias")
    assert response.json() == {"tokens": [both.digest] * 3}
    assert response.headers[HEADER] == "both@1.0.0"
    assert error_code(await stand.chat("bias, toxicity")) == (400, "composition_not_prepared")


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"", (400, "malformed_patch_name")),
        (b"Pirate", (400, "malformed_patch_name")),
        (b"x" * 10_000, (400, "malformed_patch_name")),
        ("piräte".encode(), (400, "malformed_patch_name")),
        (b"pirate\x01", (400, "malformed_patch_name")),
        (b"pirate,,pirate", (400, "malformed_patch_name")),
        (b"unknown", (404, "patch_not_found")),
        (b"pirate@9.9.9", (404, "patch_not_found")),
        (b"pirate,pirate", (400, "composition_not_prepared")),
    ],
)
async def test_a_header_that_cannot_be_honoured_is_refused_and_never_reaches_the_engine(
    stand: Any, header: bytes, expected: tuple[int, str], is_stream: bool
) -> None:
    await stand.load()
    response = await stand.chat(header, stream=is_stream)
    assert error_code(response) == expected
    assert response.json()["error"]["param"] == "X-Policy-Patch"
    assert HEADER not in response.headers
    assert stand.engine.decisions == []


async def test_two_header_lines_are_refused_even_where_they_agree(stand: Any) -> None:
    await stand.load()
    headers = [("X-Policy-Patch", "pirate"), ("x-policy-patch", "pirate")]
    response = await stand.client.post("/v1/chat/completions", headers=headers, json={})
    assert error_code(response) == (400, "malformed_patch_name")


@pytest.mark.parametrize("name", ["X-Policy-Patch", "x-policy-patch", "X-POLICY-PATCH"])
async def test_the_header_name_may_be_in_any_case(stand: Any, name: str) -> None:
    await stand.load()
    response = await stand.client.post("/v1/chat/completions", headers={name: "pirate"}, json={})
    assert response.headers[HEADER] == "pirate@1.0.0"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_alias_selects_a_patch(stand: Any, is_stream: bool) -> None:
    patch = await stand.load()
    response = await stand.chat(model="demo:pirate", stream=is_stream)
    assert response.headers[HEADER] == "pirate@1.0.0"
    assert patch.digest in response.text


async def test_the_header_wins_over_the_alias(stand: Any) -> None:
    await stand.load("pirate")
    await stand.load("sailor")
    assert (await stand.chat("sailor", model="demo:pirate")).headers[HEADER] == "sailor@1.0.0"
    assert (await stand.chat("none", model="demo:pirate")).headers[HEADER] == "none"
    assert (await stand.chat("sailor", model="demo:unknown")).headers[HEADER] == "sailor@1.0.0"


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("demo:unknown", (404, "patch_not_found")),
        ("demo:Pirate", (400, "malformed_patch_name")),
        ("demo:", (400, "malformed_patch_name")),
        ("demo:" + "x" * 10_000, (400, "malformed_patch_name")),
        ("demo:a,b", (404, "patch_not_found")),
    ],
)
async def test_an_alias_that_cannot_be_honoured_is_refused(
    stand: Any, model: str, expected: tuple[int, str], is_stream: bool
) -> None:
    response = await stand.chat(model=model, stream=is_stream)
    assert error_code(response) == expected
    assert response.json()["error"]["param"] == "model"
    assert stand.engine.decisions == []


async def test_a_malformed_header_is_refused_although_an_alias_is_fine(stand: Any) -> None:
    await stand.load()
    assert error_code(await stand.chat("Pirate", model="demo:pirate"))[0] == 400


async def test_a_default_patch_answers_where_nothing_is_named(
    stand: Any, open_stream: Callable[..., Any]
) -> None:
    patch = await stand.load()
    stand.use(default_patch="pirate")
    response = await stand.chat()
    assert (response.headers[HEADER], response.json()) == ("pirate@1.0.0", {"tokens": [patch.digest] * 3})
    stream = open_stream()
    assert (await stream.start())[1][HEADER] == "pirate@1.0.0"
    assert patch.digest in await stream.rest()


async def test_none_opts_out_of_a_default_patch(stand: Any) -> None:
    await stand.load()
    stand.use(default_patch="pirate")
    assert (await stand.chat("none")).headers[HEADER] == "none"
    assert (await stand.chat(model="demo:none")).headers[HEADER] == "none"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_none_is_forbidden_where_a_patch_is_required(stand: Any, is_stream: bool) -> None:
    await stand.load()
    stand.use(default_patch="pirate", require_patch=True)
    assert error_code(await stand.chat("none", stream=is_stream)) == (403, "patch_forbidden")
    assert error_code(await stand.chat(model="demo:none", stream=is_stream)) == (403, "patch_forbidden")
    assert stand.engine.decisions == []
    assert (await stand.chat(stream=is_stream)).headers[HEADER] == "pirate@1.0.0"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_required_patch_without_a_default_has_to_be_named(stand: Any, is_stream: bool) -> None:
    await stand.load()
    stand.use(require_patch=True)
    assert error_code(await stand.chat(stream=is_stream)) == (403, "patch_forbidden")
    assert (await stand.chat("pirate", stream=is_stream)).status_code == 200


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_missing_default_patch_is_503_and_never_the_base(stand: Any, is_stream: bool) -> None:
    stand.use(default_patch="gone")
    response = await stand.chat(stream=is_stream)
    assert error_code(response) == (503, "patch_not_ready")
    assert response.headers["retry-after"] == "1"
    assert "base" not in response.text


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/completions/render", "/v1/unheard/of", "/tokenize"])
async def test_a_named_patch_is_refused_on_routes_that_do_not_generate(stand: Any, path: str) -> None:
    await stand.load()
    assert error_code(await stand.post(path, "pirate")) == (400, "unsupported_with_patch")
    assert error_code(await stand.post(path, "Pirate")) == (400, "malformed_patch_name")


async def test_an_alias_is_refused_on_routes_that_do_not_generate(stand: Any) -> None:
    await stand.load()
    response = await stand.post("/v1/embeddings", model="demo:pirate")
    assert error_code(response) == (400, "unsupported_with_patch")


async def test_a_default_patch_leaves_routes_alone_that_do_not_generate(stand: Any) -> None:
    await stand.load()
    stand.use(default_patch="pirate")
    response = await stand.post("/v1/embeddings")
    assert (response.status_code, response.headers[HEADER]) == (200, "none")
    assert (await stand.post("/v1/completions/render")).status_code == 200
    response = await stand.post("/invocations")
    assert (response.status_code, response.headers[HEADER]) == (200, "none")


async def test_a_required_patch_closes_routes_that_run_the_model_without_it(stand: Any) -> None:
    await stand.load()
    stand.use(default_patch="pirate", require_patch=True)
    for path in ("/v1/embeddings", "/invocations"):
        assert error_code(await stand.post(path)) == (400, "unsupported_with_patch")
    assert (await stand.post("/v1/completions/render")).status_code == 200


async def test_encoding_behind_a_generating_route_is_refused_with_a_patch(stand: Any) -> None:
    await stand.load()
    assert error_code(await stand.post("/invocations", "pirate")) == (400, "unsupported_with_patch")


async def test_reading_and_cancelling_ignore_the_header_that_a_client_always_sends(stand: Any) -> None:
    stand.use(default_patch="gone", require_patch=True)
    response = await stand.client.get("/v1/models", headers={"X-Policy-Patch": "Odd Case"})
    assert response.status_code == 200
    assert HEADER not in response.headers
    assert (await stand.post("/v1/responses/r1/cancel", "pirate")).status_code == 200


async def test_an_answer_that_the_patch_had_no_part_in_is_withheld(stand: Any) -> None:
    """A route that answers around the engine client would otherwise be a silent base answer."""
    await stand.load()
    response = await stand.chat("pirate", ignores_patch=True)
    assert error_code(response) == (500, "patch_not_applied")
    assert "base" not in response.text
    assert (await stand.chat(ignores_patch=True)).json() == {"text": "base"}


async def test_an_error_of_the_route_still_names_the_selected_patch(stand: Any) -> None:
    patch = await stand.load()
    response = await stand.chat("pirate", breaks=True)
    assert response.status_code == 500
    assert response.headers[DIGEST_HEADER] == patch.digest
    assert error_code(response) == (500, "internal_error")
    response = await stand.chat("pirate", model="no-such-model")
    assert (response.status_code, response.headers[HEADER]) == (404, "pirate@1.0.0")


async def test_an_apps_own_handler_for_exceptions_is_used_and_named(stand: Any) -> None:
    async def handle(request: Any, error: Exception) -> Any:
        from fastapi.responses import JSONResponse

        return JSONResponse({"handled": str(error)}, 500)

    stand.app.add_exception_handler(Exception, handle)
    await stand.load()
    response = await stand.chat("pirate", breaks=True)
    assert response.json() == {"handled": "a bug in the route"}
    assert response.headers[HEADER] == "pirate@1.0.0"


async def test_a_refusal_before_the_first_chunk_of_a_stream_has_its_own_status(stand: Any) -> None:
    """vLLM's streams turn exceptions into a chunk under status 200; the middleware knows better."""
    await stand.load()
    stand.engine.fails_after, stand.engine.failure = 0, PatchNotReady("lost on the way")
    response = await stand.chat("pirate", stream=True)
    assert error_code(response) == (503, "patch_not_ready")
    assert response.headers["retry-after"] == "1"
    assert response.headers[HEADER] == "pirate@1.0.0"
    assert in_flight(stand) == 0


async def test_a_refusal_after_the_first_chunk_stays_in_the_stream(stand: Any) -> None:
    await stand.load()
    stand.engine.fails_after, stand.engine.failure = 1, PatchNotReady("lost on the way")
    response = await stand.chat("pirate", stream=True)
    assert response.status_code == 200
    assert "lost on the way" in response.text


async def test_a_refusal_that_a_route_made_something_else_of_is_restored(stand: Any) -> None:
    await stand.load()
    stand.engine.fails_after, stand.engine.failure = 2, PatchNotReady("lost on the way")
    assert error_code(await stand.chat("pirate")) == (503, "patch_not_ready")


async def test_requests_in_flight_keep_their_version_while_it_is_replaced(
    stand: Any, open_stream: Callable[..., Any]
) -> None:
    old = await stand.load(fill=1.0)
    stand.engine.may_go_on.clear()
    first = open_stream("pirate")
    await first.start()
    assert old.digest in await first.chunk()
    new = await stand.load(fill=2.0)
    second = open_stream("pirate")
    assert (await second.start())[1][DIGEST_HEADER] == new.digest
    stand.engine.may_go_on.set()
    assert new.digest not in await first.rest()
    assert old.digest not in await second.rest()
    await stand.catalog.drained()
    assert list(stand.residency.resident) == [new.digest]


async def test_a_removed_patch_is_drained_and_takes_no_new_requests(
    stand: Any, open_stream: Callable[..., Any]
) -> None:
    patch = await stand.load()
    stand.engine.may_go_on.clear()
    stream = open_stream("pirate")
    await stream.start()
    await stand.catalog.forget_file(stand.folder / "pirate-1.0.0.safetensors")
    assert error_code(await stand.chat("pirate"))[0] == 404
    card = (await stand.client.get("/v1/patches/pirate")).json()
    assert [(v["state"], v["in_flight"]) for v in card["versions"]] == [("draining", 1)]
    stand.engine.may_go_on.set()
    assert (await stream.rest()).count(patch.digest) == 3
    await stand.catalog.drained()
    assert (await stand.client.get("/v1/patches/pirate")).status_code == 404


async def test_a_patch_that_is_replaced_between_decision_and_generation_still_answers(stand: Any) -> None:
    """The decision itself keeps the tensors: no request fails because a swap came in between."""
    old = await stand.load(fill=1.0)
    real = stand.engine.generate
    swapped: list[Any] = []

    def swap_first() -> Any:
        swapped.append(asyncio.ensure_future(stand.load(fill=2.0)))
        return slow(real())

    async def slow(tokens: Any) -> Any:
        await asyncio.wait(swapped)
        async for token in tokens:
            yield token

    stand.engine.generate = swap_first
    response = await stand.chat("pirate")
    assert response.json() == {"tokens": [old.digest] * 3}
    await stand.catalog.drained()
    assert old.digest not in stand.residency.resident


async def test_a_client_that_hangs_up_frees_its_patch(stand: Any, open_stream: Callable[..., Any]) -> None:
    await stand.load()
    stand.engine.may_go_on.clear()
    stream = open_stream("pirate")
    await stream.start()
    await stream.chunk()
    assert in_flight(stand) == 1
    await stream.hang_up()
    await stand.until(lambda: stand.engine.num_running == 0)
    await stand.until(lambda: in_flight(stand) == 0)
    assert stand.value('policy_patch_requests_total{outcome="cancelled",patch="pirate"}') == 1


async def test_a_handler_that_gives_up_on_a_client_that_left_counts_as_cancelled(
    stand: Any, open_stream: Callable[..., Any], caplog: Any
) -> None:
    await stand.load()
    stream = open_stream("pirate", path="/v1/messages")
    await stand.until(lambda: in_flight(stand) == 1)
    await stream.hang_up()
    assert in_flight(stand) == 0
    assert stand.value('policy_patch_requests_total{outcome="cancelled",patch="pirate"}') == 1
    assert caplog.text == ""


def in_flight(stand: Any) -> int:
    return sum(row.num_in_flight for row in stand.catalog.residents())


@pytest.mark.parametrize("fails_after", [0, 1, 2])
async def test_an_engine_that_breaks_in_mid_stream_frees_the_patch_and_counts_as_an_error(
    stand: Any, open_stream: Callable[..., Any], fails_after: int
) -> None:
    await stand.load()
    stand.engine.fails_after = fails_after
    stream = open_stream("pirate")
    assert (await stream.start())[0] == 200
    assert json.dumps({"error": "the engine broke"}) in await stream.rest()
    assert in_flight(stand) == 0
    assert stand.value('policy_patch_requests_total{outcome="server_error",patch="pirate"}') == 1


async def test_a_background_response_keeps_its_patch_after_its_http_answer(stand: Any) -> None:
    old = await stand.load(fill=1.0)
    stand.engine.may_go_on.clear()
    response = await stand.post("/v1/responses", "pirate")
    assert response.json() == {"status": "queued"}
    assert response.headers[DIGEST_HEADER] == old.digest
    await stand.until(lambda: stand.engine.num_running)
    await stand.load(fill=2.0)
    assert old.digest in stand.residency.resident
    stand.engine.may_go_on.set()
    assert await stand.app.state.background == [old.digest] * 3
    await stand.catalog.drained()
    assert old.digest not in stand.residency.resident


async def test_many_mixed_requests_each_get_their_own(stand: Any) -> None:
    patches = {f"p{i}": await stand.load(f"p{i}", fill=float(i)) for i in range(16)}
    wanted = [None, *patches] * 8
    answers = await asyncio.gather(*(stand.chat(name) for name in wanted))
    for name, answer in zip(wanted, answers, strict=True):
        expected = "base" if name is None else patches[name].digest
        assert answer.json() == {"tokens": [expected] * 3}
        assert answer.headers[HEADER] == ("none" if name is None else f"{name}@1.0.0")
    assert in_flight(stand) == 0


async def test_a_hundred_swaps_under_load_fail_no_request_and_mix_no_versions(stand: Any) -> None:
    stop = asyncio.Event()
    await stand.load(fill=0.0)

    async def ask() -> int:
        count = 0
        while not stop.is_set():
            response = await stand.chat("pirate", stream=count % 2 == 0)
            digest = response.headers[DIGEST_HEADER]
            assert response.status_code == 200
            assert response.text.count("sha256:") == response.text.count(digest) == 3
            count += 1
        return count

    clients = [asyncio.create_task(ask()) for _ in range(8)]
    for number in range(1, 101):
        await stand.load(fill=float(number))
    stop.set()
    counts = await asyncio.gather(*clients)
    await stand.catalog.drained()
    assert all(counts)
    assert len(stand.residency.resident) == 1
    assert in_flight(stand) == 0


async def test_a_path_below_a_root_path_is_the_same_route(stand: Any) -> None:
    await stand.load()
    stand.app.root_path = "/api"
    response = await stand.client.post(
        "/api/v1/chat/completions", headers={"X-Policy-Patch": "pirate"}, json={}
    )
    assert response.headers[HEADER] == "pirate@1.0.0"


async def test_a_redirect_to_the_route_without_slash_is_left_alone(stand: Any) -> None:
    await stand.load()
    response = await stand.post("/v1/chat/completions/", "pirate")
    assert response.status_code == 307


async def test_a_stream_of_the_base_begins_before_its_first_token(
    stand: Any, open_stream: Callable[..., Any]
) -> None:
    """Nothing is held back where there is no patch."""
    stand.engine.num_tokens = 2
    stand.engine.may_start.clear()
    stream = open_stream()
    assert (await stream.start())[1][HEADER] == "none"
    stand.engine.may_start.set()
    assert "base" in await stream.rest()


async def test_a_stream_that_nobody_asked_the_gate_about_gets_the_default_or_nothing(stand: Any) -> None:
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
    assert error_code(response) == (500, "patch_not_applied")


async def test_a_refusal_by_the_engine_that_is_no_patch_error_counts_by_its_status(stand: Any) -> None:
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
