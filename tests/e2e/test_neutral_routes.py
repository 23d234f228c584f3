"""A patch that a client names with every request, by header or by alias, is the same thing on each route.

Routes that touch no model let it through; routes that generate answer under it.
"""

from typing import Any

import httpx
import pytest

from patches.headers import PATCH_HEADER

pytestmark = [pytest.mark.e2e, pytest.mark.server("demo")]

PATCH = "untouched"
MESSAGES = [{"role": "user", "content": "Hello there."}]

#: Route -> its body, less the model.
BODIES: dict[str, dict[str, Any]] = {
    "/tokenize": {"prompt": "Hello there."},
    "/detokenize": {"tokens": [100, 200]},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/ping": {},
}
#: Those that generate.
GENERATING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/chat/completions/batch": {"messages": [MESSAGES, MESSAGES], "max_tokens": 4},
    "/v1/completions": {"prompt": ["Hello", "there"], "max_tokens": 4},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/responses": {"input": "Hello there.", "max_output_tokens": 4},
    "/invocations": {"messages": MESSAGES, "max_tokens": 4},
}


@pytest.fixture(scope="module")
def server(shared_server: Any, demo_patches: Any) -> Any:
    """The shared server with a patch."""
    shared_server.install(demo_patches.of_random_embeddings(PATCH, 16))
    return shared_server


def test_a_server_that_serves_says_that_it_is_ready(server: Any) -> None:
    assert server.client.get("/ready").json() == {"ready": True}


def post(server: Any, route: str, *, header: str | None = None, model: str = "base") -> httpx.Response:
    headers = {} if header is None else {PATCH_HEADER: header}
    answer: httpx.Response = server.client.post(
        route, json={"model": model, **(BODIES | GENERATING)[route]}, headers=headers
    )
    return answer


@pytest.mark.parametrize("route", BODIES)
def test_header_and_alias_get_what_the_base_gets_and_no_patch_is_claimed(server: Any, route: str) -> None:
    base = post(server, route)
    assert base.status_code == 200, base.text
    before = server.metric("policy_patch_requests_total", patch=PATCH)
    for named in (post(server, route, header=PATCH), post(server, route, model=f"base:{PATCH}")):
        assert (named.status_code, named.content) == (200, base.content)
        assert PATCH_HEADER not in named.headers
    assert server.metric("policy_patch_requests_total", patch=PATCH) == before


@pytest.mark.parametrize("route", GENERATING)
def test_header_and_alias_are_answered_by_the_same_patch_on_each_route_that_generates(
    server: Any, route: str
) -> None:
    base, by_header, by_alias = (
        post(server, route, header=header, model=model)
        for header, model in ((None, "base"), (PATCH, "base"), (None, f"base:{PATCH}"))
    )
    assert (base.status_code, base.headers[PATCH_HEADER]) == (200, "none"), base.text
    for named in (by_header, by_alias):
        assert (named.status_code, named.headers[PATCH_HEADER]) == (200, f"{PATCH}@1.0.0"), named.text
    assert by_alias.json()["model"] == f"base:{PATCH}"


def test_a_redirect_and_a_faulty_body_claim_no_patch_and_count_for_none(server: Any) -> None:
    headers = {PATCH_HEADER: PATCH}
    before = server.metric("policy_patch_requests_total", patch=PATCH)
    redirect = server.client.post("/v1/chat/completions/", json={}, headers=headers)
    faulty = server.client.post("/v1/chat/completions", content=b"[" * 60_000, headers=headers)
    assert (redirect.status_code, faulty.status_code) == (307, 400)
    for response in (redirect, faulty):
        assert PATCH_HEADER not in response.headers
    assert server.metric("policy_patch_requests_total", patch=PATCH) == before


def test_an_unknown_path_is_not_found_whatever_patch_is_named(server: Any) -> None:
    response = server.client.post("/v1/chat/completion", json={}, headers={PATCH_HEADER: PATCH})
    assert response.status_code == 404


def test_a_refusal_of_messages_has_the_shape_of_that_api(server: Any) -> None:
    body = {"model": "base", "max_tokens": 4, "messages": MESSAGES}
    response = server.client.post("/v1/messages", json=body, headers={PATCH_HEADER: "nowhere"})
    assert response.status_code == 404
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == "not_found_error"


def test_an_answer_names_the_model_that_was_asked_for(server: Any) -> None:
    body = {"messages": MESSAGES, "prompt": "Hello", "max_tokens": 2, "temperature": 0}
    for route, field in (("/v1/chat/completions", "prompt"), ("/v1/completions", "messages")):
        sent = {key: value for key, value in body.items() if key != field}
        for model, header in (("base", PATCH), (f"base:{PATCH}", None)):
            headers = {} if header is None else {PATCH_HEADER: header}
            answer = server.client.post(route, json={**sent, "model": model}, headers=headers)
            assert (answer.status_code, answer.json()["model"]) == (200, model)
            assert answer.headers[PATCH_HEADER].startswith(f"{PATCH}@")
