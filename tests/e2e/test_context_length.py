"""What the base model takes, a patch takes: answers and prompts are cut to the room that is left."""

from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.server("demo")]

PATCH = "roomy"
#: Of the shared server.
MAX_MODEL_LEN = 2048
NUM_PREFIX_TOKENS = 48
#: What prefix and prompt leave.
ROOM = 12
PROMPT = [504 + i % 40 for i in range(MAX_MODEL_LEN - NUM_PREFIX_TOKENS - ROOM)]


@pytest.fixture(scope="module")
def server(shared_server: Any, demo_patches: Any) -> Any:
    """The shared server with a patch of 48 tokens."""
    shared_server.install(demo_patches.of_random_embeddings(PATCH, NUM_PREFIX_TOKENS))
    return shared_server


def usage_of(server: Any, prompt: Any, patch: str | None = PATCH, **body: Any) -> dict[str, int]:
    response = server.complete(prompt, patch=patch, ignore_eos=True, **body)
    assert response.status_code == 200, response.text
    usage: dict[str, int] = response.json()["usage"]
    return usage


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [
        (ROOM - 1, ROOM - 1),
        (ROOM, ROOM),
        (ROOM + 1, ROOM),
        (ROOM + 47, ROOM),
        (ROOM + 48, ROOM),
        (2048, ROOM),
    ],
)
def test_an_answer_is_cut_to_the_room_that_is_left(server: Any, max_tokens: int, expected: int) -> None:
    assert usage_of(server, PROMPT, max_tokens=max_tokens)["completion_tokens"] == expected


def test_an_answer_without_a_limit_of_its_own_fills_the_room(server: Any) -> None:
    body = {"max_completion_tokens": None, "max_tokens": None, "ignore_eos": True}
    empty = server.chat("", patch=PATCH, **body | {"max_tokens": 1}).json()["usage"]["prompt_tokens"]
    # One token each.
    text = " the" * (len(PROMPT) - empty)
    usage = server.chat(text, patch=PATCH, **body).json()["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == MAX_MODEL_LEN - NUM_PREFIX_TOKENS


def test_a_beam_search_takes_as_many_steps_as_fit(server: Any) -> None:
    usage = usage_of(server, PROMPT, max_tokens=ROOM + 20, use_beam_search=True, n=2)
    assert usage["completion_tokens"] == 2 * ROOM


@pytest.mark.parametrize("limit", [-1, MAX_MODEL_LEN - 1])
def test_a_prompt_is_truncated_to_what_fits(server: Any, limit: int) -> None:
    long = PROMPT * 2
    body = {"max_tokens": 4, "truncate_prompt_tokens": limit}
    base = usage_of(server, long, patch=None, **body)
    assert base == base | {"prompt_tokens": MAX_MODEL_LEN - 1, "completion_tokens": 1}
    patched = usage_of(server, long, **body)
    num_kept = MAX_MODEL_LEN - NUM_PREFIX_TOKENS - 1
    assert patched == patched | {"prompt_tokens": num_kept, "completion_tokens": 1}


def test_a_truncation_that_fits_is_kept(server: Any) -> None:
    assert usage_of(server, PROMPT, max_tokens=4, truncate_prompt_tokens=50)["prompt_tokens"] == 50


def test_a_prompt_that_leaves_no_room_is_refused_in_words_about_the_patch(server: Any) -> None:
    response = server.complete([*PROMPT, *range(600, 600 + ROOM)], patch=PATCH)
    assert response.status_code == 400
    assert f"the patch takes {NUM_PREFIX_TOKENS}" in response.json()["error"]["message"]


def test_a_smallest_length_beyond_the_room_is_refused_as_for_the_base(server: Any) -> None:
    for patch, room in ((PATCH, ROOM), (None, ROOM + NUM_PREFIX_TOKENS)):
        response = server.complete(PROMPT, patch=patch, max_tokens=200, min_tokens=room + 1)
        assert response.status_code == 400
        assert "min_tokens" in response.json()["error"]["message"]


def test_an_alias_is_listed_with_the_length_that_is_left(server: Any) -> None:
    lengths = {card["id"]: card["max_model_len"] for card in server.client.get("/v1/models").json()["data"]}
    assert lengths["base"] == MAX_MODEL_LEN
    assert lengths[f"base:{PATCH}"] == MAX_MODEL_LEN - NUM_PREFIX_TOKENS
