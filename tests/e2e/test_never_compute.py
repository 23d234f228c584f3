"""Invariant 1 on the real server: a prefix position is never computed, whatever happens to the request."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from patches.format import Patch

pytestmark = [pytest.mark.e2e, pytest.mark.server("tiny", "own", why="few blocks, small batches")]

PROMPTS = [[100 + 7 * i, 200 + i, 300, 17 + i, 900 - i] for i in range(12)]
NUM_TOKENS = 64


def _answer(server: Any, prompt: list[int], patch: str | None, **body: Any) -> list[str]:
    response = server.complete(
        prompt, patch=patch, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0, **body
    )
    assert response.status_code == 200, response.text
    tokens: list[str] = response.json()["choices"][0]["logprobs"]["tokens"]
    assert len(tokens) == NUM_TOKENS
    return tokens


def _answers(server: Any, patch: str, **body: Any) -> list[list[str]]:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda prompt: _answer(server, prompt, patch, **body), PROMPTS))


@pytest.fixture(scope="module")
def random_patch(tiny_patches: Any) -> Patch:
    """45 virtual tokens: with blocks of 32, one block to share and a tail to write."""
    return tiny_patches.of_random_embeddings("random", 45)


@pytest.fixture(scope="module")
def server(tiny_server: Any, random_patch: Patch) -> Any:
    """The tiny server, with a patch; its development routes can reset caches and reach the workers."""
    tiny_server.install(random_patch)
    return tiny_server


@pytest.fixture(scope="module")
def expected(server: Any) -> list[list[str]]:
    """Each prompt's answer under the patch, alone."""
    answers = [_answer(server, prompt, "random") for prompt in PROMPTS]
    assert answers != [_answer(server, prompt, None) for prompt in PROMPTS]
    return answers


def _rpc(server: Any, method: str, *args: Any) -> Any:
    response = server.client.post("/collective_rpc", json={"method": method, "args": list(args)})
    assert response.status_code == 200, response.text
    return response.json()


def test_preempted_requests_get_their_prefix_back(
    start_module_server: Any, tiny_model: Any, random_patch: Patch, expected: list[list[str]]
) -> None:
    # 12 requests of 45 + 5 + 64 tokens need 48 blocks; 20 make them push each other out.
    small = start_module_server(
        tiny_model, "--dtype", "float32", "--max-model-len", "512", "--num-gpu-blocks-override", "20"
    )
    small.wait_ready()
    small.install(random_patch)
    assert _answers(small, "random") == expected
    assert small.metric("vllm:num_preemptions_total") > 0


def test_a_tiny_token_budget_does_not_chunk_the_prefix(
    start_module_server: Any, tiny_model: Any, random_patch: Patch, expected: list[list[str]]
) -> None:
    chunked = start_module_server(
        tiny_model,
        *("--dtype", "float32", "--max-model-len", "512"),
        *("--max-num-batched-tokens", "16", "--max-num-seqs", "16", "--enable-chunked-prefill"),
    )
    chunked.wait_ready()
    chunked.install(random_patch)
    assert _answers(chunked, "random") == expected


def test_resetting_the_prefix_cache_under_running_requests_changes_no_answer(
    server: Any, expected: list[list[str]]
) -> None:
    done = threading.Event()
    num_resets = 0

    def reset_until_done() -> None:
        nonlocal num_resets
        with server.new_client() as client:
            while not done.is_set():
                client.post(
                    "/reset_prefix_cache", params={"reset_running_requests": "true"}
                ).raise_for_status()
                num_resets += 1

    resetter = threading.Thread(target=reset_until_done)
    resetter.start()
    try:
        answers = _answers(server, "random")
    finally:
        done.set()
        resetter.join()
    assert answers == expected
    assert num_resets > 1


@pytest.mark.parametrize("body", [{"prompt_logprobs": 1}, {"echo": True, "logprobs": 1}], ids=["own", "echo"])
def test_prompt_logprobs_with_a_patch_are_refused(server: Any, body: dict[str, Any]) -> None:
    response = server.complete(PROMPTS[0], patch="random", **body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["code"] == "unsupported_with_patch"
    assert "prompt_logprobs" in error["message"]
    assert server.complete(PROMPTS[0], **body).status_code == 200


def test_a_prefix_that_is_missing_on_the_worker_fails_the_request_and_nothing_else(
    server: Any, tiny_patches: Any, expected: list[list[str]]
) -> None:
    lost = tiny_patches.of_random_embeddings("lost", 45, seed=1)
    path = server.install(lost)
    reference = _answer(server, PROMPTS[1], "lost", cache_salt="apart")
    # Behind the catalog's back, as a worker would lose it that was restarted.
    _rpc(server, "policy_patch_unload", lost.digest)
    response = server.complete(PROMPTS[1], patch="lost")
    assert response.status_code == 500, response.text
    assert "error" in response.json()
    with server.client.stream(
        "POST",
        "/v1/completions",
        json={"model": "base", "prompt": PROMPTS[2], "stream": True},
        headers={"X-Policy-Patch": "lost"},
    ) as stream:
        events = [line for line in stream.iter_lines() if line]
    assert any('"error"' in event for event in events), events
    assert not any('"text"' in event for event in events), events
    assert _answers(server, "random") == expected
    # Loaded again, the same content is right: the failed requests left nothing behind in the prefix cache.
    path.unlink()
    server.wait_for_digest("lost", None)
    server.install(lost)
    assert _answer(server, PROMPTS[1], "lost") == reference


@pytest.mark.parametrize(
    "body",
    [
        {"kv_transfer_params": {"policy_patch": ["sha256:" + "0" * 64, 4]}},
        {"vllm_xargs": {"kv_transfer_params": '{"policy_patch": ["sha256:00", 4]}'}},
    ],
    ids=["field", "xargs"],
)
def test_callers_cannot_speak_to_the_connector(server: Any, body: dict[str, Any]) -> None:
    for patch in (None, "random"):
        response = server.complete(PROMPTS[0], patch=patch, **body)
        assert response.status_code == 400, response.text
        assert "kv_transfer_params" in response.json()["error"]["message"]
