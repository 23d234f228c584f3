"""Which patch answers, and what the answer says, in a real app around an engine that tells its patch."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.server.stand import Stand

HEADER = "x-policy-patch"
DIGEST_HEADER = "x-policy-patch-digest"


async def test_a_named_patch_answers_and_is_named(stand: Stand) -> None:
    patch = await stand.load("pirate", "1.2.0")
    response = await stand.chat("pirate")
    assert response.json() == {"tokens": [patch.digest] * 3}
    assert response.headers[HEADER] == "pirate@1.2.0"
    assert response.headers[DIGEST_HEADER] == patch.digest


async def test_the_base_answers_where_nothing_is_named_and_says_so(stand: Stand) -> None:
    await stand.load()
    response = await stand.chat()
    assert response.json() == {"tokens": ["base"] * 3}
    assert response.headers[HEADER] == "none"
    assert DIGEST_HEADER not in response.headers


async def test_a_stream_names_its_patch_too(stand: Stand, open_stream: Callable[..., Any]) -> None:
    patch = await stand.load()
    stream = open_stream("pirate")
    status, headers = await stream.start()
    assert (status, headers[HEADER], headers[DIGEST_HEADER]) == (200, "pirate@1.0.0", patch.digest)
    assert headers["content-type"].startswith("text/event-stream")
    assert await stream.rest() == f"data: {patch.digest}\n\n" * 3 + "data: [DONE]\n\n"


async def test_a_base_stream_is_named_none(stand: Stand, open_stream: Callable[..., Any]) -> None:
    stream = open_stream()
    assert (await stream.start())[1][HEADER] == "none"
    assert "base" in await stream.rest()


@pytest.mark.parametrize("pin", ["@1.0.0", "@sha256"])
async def test_a_pinned_version_answers_although_another_is_active(stand: Stand, pin: str) -> None:
    old = await stand.load("pirate", "1.0.0", fill=1.0)
    await stand.load("pirate", "2.0.0", fill=2.0)
    reference = "pirate@" + (old.digest[:19] if pin == "@sha256" else "1.0.0")
    assert (await stand.chat(reference)).headers[DIGEST_HEADER] == old.digest


async def test_a_composition_answers_where_it_was_prepared(stand: Stand) -> None:
    parts = [await stand.load("toxicity", fill=1.0), await stand.load("bias", fill=2.0)]
    components = [{"name": p.name, "version": p.version, "digest": p.digest} for p in parts]
    origin = {"method": "compose", "components": components}
    both = await stand.load("both", origin=origin, fill=3.0)
    response = await stand.chat("toxicity, bias")
    assert response.json() == {"tokens": [both.digest] * 3}
    assert response.headers[HEADER] == "both@1.0.0"
    assert stand.code(await stand.chat("bias, toxicity")) == (400, "composition_not_prepared")


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
    stand: Stand, header: bytes, expected: tuple[int, str], is_stream: bool
) -> None:
    await stand.load()
    response = await stand.chat(header, stream=is_stream)
    assert stand.code(response) == expected
    assert response.json()["error"]["param"] == "X-Policy-Patch"
    assert HEADER not in response.headers
    assert stand.engine.decisions == []


async def test_two_header_lines_are_refused_even_where_they_agree(stand: Stand) -> None:
    await stand.load()
    headers = [("X-Policy-Patch", "pirate"), ("x-policy-patch", "pirate")]
    response = await stand.client.post("/v1/chat/completions", headers=headers, json={})
    assert stand.code(response) == (400, "malformed_patch_name")


@pytest.mark.parametrize("name", ["X-Policy-Patch", "x-policy-patch", "X-POLICY-PATCH"])
async def test_the_header_name_may_be_in_any_case(stand: Stand, name: str) -> None:
    await stand.load()
    response = await stand.client.post("/v1/chat/completions", headers={name: "pirate"}, json={})
    assert response.headers[HEADER] == "pirate@1.0.0"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_alias_selects_a_patch(stand: Stand, is_stream: bool) -> None:
    patch = await stand.load()
    response = await stand.chat(model="demo:pirate", stream=is_stream)
    assert response.headers[HEADER] == "pirate@1.0.0"
    assert patch.digest in response.text


async def test_the_header_wins_over_the_alias(stand: Stand) -> None:
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
    stand: Stand, model: str, expected: tuple[int, str], is_stream: bool
) -> None:
    response = await stand.chat(model=model, stream=is_stream)
    assert stand.code(response) == expected
    assert response.json()["error"]["param"] == "model"
    assert stand.engine.decisions == []


async def test_a_malformed_header_is_refused_although_an_alias_is_fine(stand: Stand) -> None:
    await stand.load()
    assert stand.code(await stand.chat("Pirate", model="demo:pirate"))[0] == 400


async def test_a_default_patch_answers_where_nothing_is_named(
    stand: Stand, open_stream: Callable[..., Any]
) -> None:
    patch = await stand.load()
    stand.use(default_patch="pirate")
    response = await stand.chat()
    assert (response.headers[HEADER], response.json()) == ("pirate@1.0.0", {"tokens": [patch.digest] * 3})
    stream = open_stream()
    assert (await stream.start())[1][HEADER] == "pirate@1.0.0"
    assert patch.digest in await stream.rest()


async def test_none_opts_out_of_a_default_patch(stand: Stand) -> None:
    await stand.load()
    stand.use(default_patch="pirate")
    assert (await stand.chat("none")).headers[HEADER] == "none"
    assert (await stand.chat(model="demo:none")).headers[HEADER] == "none"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_none_is_forbidden_where_a_patch_is_required(stand: Stand, is_stream: bool) -> None:
    await stand.load()
    stand.use(default_patch="pirate", require_patch=True)
    assert stand.code(await stand.chat("none", stream=is_stream)) == (403, "patch_forbidden")
    assert stand.code(await stand.chat(model="demo:none", stream=is_stream)) == (403, "patch_forbidden")
    assert stand.engine.decisions == []
    assert (await stand.chat(stream=is_stream)).headers[HEADER] == "pirate@1.0.0"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_required_patch_without_a_default_has_to_be_named(stand: Stand, is_stream: bool) -> None:
    await stand.load()
    stand.use(require_patch=True)
    assert stand.code(await stand.chat(stream=is_stream)) == (403, "patch_forbidden")
    assert (await stand.chat("pirate", stream=is_stream)).status_code == 200


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_missing_default_patch_is_503_and_never_the_base(stand: Stand, is_stream: bool) -> None:
    stand.use(default_patch="gone")
    response = await stand.chat(stream=is_stream)
    assert stand.code(response) == (503, "patch_not_ready")
    assert response.headers["retry-after"] == "1"
    assert "base" not in response.text


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/completions/render"])
async def test_a_named_patch_is_refused_on_routes_that_do_not_generate(stand: Stand, path: str) -> None:
    await stand.load()
    assert stand.code(await stand.post(path, "pirate")) == (400, "unsupported_with_patch")
    assert stand.code(await stand.post(path, "Pirate")) == (400, "malformed_patch_name")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/completions/render"])
async def test_an_alias_is_refused_on_routes_that_do_not_generate(stand: Stand, path: str) -> None:
    await stand.load()
    response = await stand.post(path, model="demo:pirate")
    assert stand.code(response) == (400, "unsupported_with_patch")


@pytest.mark.parametrize("named", [{"header": "pirate"}, {"model": "demo:pirate"}], ids=["header", "alias"])
async def test_a_route_that_touches_no_model_lets_both_ways_to_name_a_patch_through(
    stand: Stand, named: dict[str, str]
) -> None:
    await stand.load()
    for path in ("/tokenize", "/detokenize", "/v1/messages/count_tokens", "/ping"):
        response = await stand.post(path, **named)
        assert response.status_code == 200
        assert HEADER not in response.headers
    assert stand.value('policy_patch_requests_total{outcome="ok",patch="pirate"}') == 0


async def test_an_alias_counts_where_no_route_asks_about_the_model(stand: Stand) -> None:
    patch = await stand.load()
    await stand.load("sailor")
    for path, header, model, expected in (
        ("/invocations", None, "demo:pirate", "pirate@1.0.0"),
        ("/invocations/", "sailor", "demo:pirate", "sailor@1.0.0"),
        ("/invocations", "none", "demo:pirate", "none"),
        ("/invocations", None, "demo", "none"),
        ("/invocations", None, "anything", "none"),
    ):
        response = await stand.client.post(
            path,
            headers={"X-Policy-Patch": header} if header else {},
            json={"model": model, "prompt": "x" * (2 << 20)},
            follow_redirects=True,
        )
        assert (response.status_code, response.headers[HEADER]) == (200, expected)
    assert patch.digest in (await stand.post("/invocations", model="demo:pirate", prompt="x")).text
    refused = await stand.post("/invocations", model="demo:unknown", prompt="x")
    assert stand.code(refused) == (404, "patch_not_found")


@pytest.mark.parametrize(
    "model", ["other:pirate", "Demo:pirate", "demo :pirate", "demo\uff1apirate", ":pirate"]
)
async def test_an_alias_of_another_name_is_never_answered_by_the_base(stand: Stand, model: str) -> None:
    await stand.load()
    refused = await stand.post("/invocations", model=model, prompt="x")
    assert stand.code(refused) == (404, "patch_not_found")
    assert HEADER not in refused.headers
    # A header says what is wanted.
    answered = await stand.post("/invocations", "pirate", model=model, prompt="x")
    assert (answered.status_code, answered.headers[HEADER]) == (200, "pirate@1.0.0")


@pytest.mark.parametrize(
    ("adapter", "model", "header", "expected"),
    [
        ("", "demo:pirate", None, "pirate@1.0.0"),
        ("demo", "demo", None, "none"),
        ("demo", "demo:pirate", None, "unsupported_with_patch"),
        ("demo", "other:pirate", None, "unsupported_with_patch"),
        ("demo", "demo:pirate", "pirate", "pirate@1.0.0"),
        ("demo", "demo:pirate", "none", "none"),
    ],
)
async def test_the_name_of_an_adapter_takes_the_place_of_the_model_on_sagemaker(
    stand: Stand, adapter: str, model: str, header: str | None, expected: str
) -> None:
    """And a patch that is named there is not lost without a word."""
    await stand.load()
    headers = {"X-Amzn-SageMaker-Adapter-Identifier": adapter} | ({HEADER: header} if header else {})
    response = await stand.client.post("/invocations", headers=headers, json={"model": model, "prompt": "x"})
    given = response.headers.get(HEADER)
    assert (given or stand.code(response)[1]) == expected


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 3000 + b"1" + b"}" * 3000, b'{"n":' + b"1" * 5000 + b"}"],
)
async def test_a_body_that_is_no_json_is_the_callers_mistake_on_sagemaker(stand: Stand, body: bytes) -> None:
    for headers in ({}, {"X-Amzn-SageMaker-Adapter-Identifier": "demo"}):
        response = await stand.client.post("/invocations", content=body, headers=headers)
        assert stand.code(response) == (400, "malformed_body")
        assert response.json()["error"]["message"].startswith("body: expected JSON")


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"5", b"null", b'[{"model": "demo:pirate"}]'])
async def test_a_body_that_is_no_object_is_the_callers_mistake_on_sagemaker(
    stand: Stand, body: bytes
) -> None:
    for headers in ({}, {"X-Amzn-SageMaker-Adapter-Identifier": "demo"}):
        response = await stand.client.post("/invocations", content=body, headers=headers)
        assert stand.code(response) == (400, "malformed_body")
        assert response.json()["error"]["message"] == "body: expected a JSON object"


@pytest.mark.parametrize("model", [5, 0, True, False, 1.5, [], ["demo:pirate"], {}, {"demo": "pirate"}])
@pytest.mark.parametrize("header", [None, "pirate"])
async def test_a_model_that_is_no_text_is_the_callers_mistake_on_sagemaker(
    stand: Stand, model: Any, header: str | None
) -> None:
    await stand.load()
    refused = await stand.post("/invocations", header, model=model, prompt="x")
    assert stand.code(refused) == (400, "malformed_body")
    assert refused.json()["error"]["message"] == "model: expected a text"


async def test_a_model_that_is_left_out_is_the_served_one_on_sagemaker(stand: Stand) -> None:
    for named in ({}, {"model": None}, {"model": ""}):
        response = await stand.post("/invocations", prompt="x", **named)
        assert (response.status_code, response.headers[HEADER]) == (200, "none")


@pytest.mark.parametrize("default", [None, "pirate"])
async def test_where_a_choice_is_required_nothing_is_guessed(stand: Stand, default: str | None) -> None:
    """As behind a gateway that drops the header: the base must not answer in silence."""
    await stand.load()
    stand.use(default_patch=default, require_choice=True)
    for path in ("/v1/chat/completions", "/invocations"):
        refused = await stand.post(path, model="demo", prompt="x")
        assert refused.status_code == 403, path
        assert "a gateway may have dropped the header" in refused.text
    assert (await stand.chat("pirate")).headers[HEADER] == "pirate@1.0.0"
    assert (await stand.chat("none")).headers[HEADER] == "none"
    assert (await stand.chat(model="demo:pirate")).headers[HEADER] == "pirate@1.0.0"
    assert (await stand.chat(model="demo:none")).headers[HEADER] == "none"
    # These generate nothing.
    assert (await stand.post("/tokenize", prompt="x")).status_code == 200
    assert (await stand.post("/v1/embeddings")).status_code == 200


async def test_a_known_route_that_this_model_lacks_is_the_routers_404(stand: Stand) -> None:
    await stand.load()
    for header in ("pirate", "Odd Case", None):
        for path in ("/v1/rerank", "/classify"):
            response = await stand.post(path, header)
            assert (response.status_code, HEADER in response.headers) == (404, False)


async def test_a_path_without_a_route_is_the_routers_404_whatever_it_names(stand: Stand) -> None:
    for header in ("pirate", "Odd Case", None):
        assert (await stand.post("/v1/chat/complétions", header)).status_code == 404


async def test_a_default_patch_leaves_routes_alone_that_do_not_generate(stand: Stand) -> None:
    await stand.load()
    stand.use(default_patch="pirate")
    response = await stand.post("/v1/embeddings")
    assert (response.status_code, response.headers[HEADER]) == (200, "none")
    assert (await stand.post("/v1/completions/render")).status_code == 200
    response = await stand.post("/invocations")
    assert (response.status_code, response.headers[HEADER]) == (200, "none")


async def test_a_required_patch_closes_routes_that_run_the_model_without_it(stand: Stand) -> None:
    await stand.load()
    stand.use(default_patch="pirate", require_patch=True)
    for path in ("/v1/embeddings", "/invocations"):
        assert stand.code(await stand.post(path)) == (400, "unsupported_with_patch")
    assert (await stand.post("/v1/completions/render")).status_code == 200


async def test_encoding_behind_a_generating_route_is_refused_with_a_patch(stand: Stand) -> None:
    await stand.load()
    assert stand.code(await stand.post("/invocations", "pirate")) == (400, "unsupported_with_patch")


async def test_reading_and_cancelling_ignore_the_header_that_a_client_always_sends(stand: Stand) -> None:
    stand.use(default_patch="gone", require_patch=True)
    response = await stand.client.get("/v1/models", headers={"X-Policy-Patch": "Odd Case"})
    assert response.status_code == 200
    assert HEADER not in response.headers
    assert (await stand.post("/v1/responses/r1/cancel", "pirate")).status_code == 200
