"""Two data-parallel ranks behind two front ends: each rank holds every patch, and answers with it.

vLLM balances requests over the ranks; the header `X-data-parallel-rank` asks for one.
"""

import contextlib
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("own", why="two ranks; it is killed"),
    pytest.mark.feature("two data-parallel ranks"),
]

MAX_LOGPROB_GAP = 1e-4
NUM_TOKENS = 12
POLICY = list(range(1000, 1040))
PROMPT = list(range(300, 340))


@pytest.fixture(scope="module")
def server(start_module_server: Any, tiny_model: Any) -> Iterator[Any]:
    flags = ["--dtype", "float32", "--max-model-len", "512", "--preload", "--keep-previous", "0"]
    started = start_module_server(tiny_model, *flags, "--data-parallel-size", "2", "--api-server-count", "2")
    started.wait_ready()
    yield started
    started.terminate()


def ask_rank(server: Any, rank: int, patch: str | None = None) -> Any:
    """Ask one rank, whose prefix cache holds the prompt under no salt that was used before."""
    headers, salt = {"X-data-parallel-rank": str(rank)}, uuid.uuid4().hex
    return server.ask(PROMPT, patch=patch, max_tokens=NUM_TOKENS, headers=headers, cache_salt=salt)


def test_every_rank_answers_as_transformers_does(server: Any, tiny_patches: Any, generate: Any) -> None:
    patch = tiny_patches.of_token_ids("spread", POLICY)
    server.install(patch)
    (expected,) = generate(tiny_patches.model.network, [[*POLICY, *PROMPT]], NUM_TOKENS)
    (base,) = generate(tiny_patches.model.network, [PROMPT], NUM_TOKENS)
    assert expected.logprobs[0] != base.logprobs[0]
    for rank in (0, 1):
        answer = ask_rank(server, rank, "spread")
        assert answer.digest == patch.digest
        assert answer.logprob_gap(expected) < MAX_LOGPROB_GAP
        assert ask_rank(server, rank).logprob_gap(base) < MAX_LOGPROB_GAP


def test_every_rank_has_its_say_and_its_share(server: Any, tiny_patches: Any) -> None:
    """A patch is booked with the bytes of all ranks, and a swap reaches each of them."""
    (one, other) = (tiny_patches.of_token_ids("moved", POLICY[i:], version=f"1.{i}.0") for i in (0, 1))
    server.install(one)
    (version,) = server.client.get("/v1/patches/moved").json()["versions"]
    assert version["nbytes"] == 2 * one.kv.numel() * one.kv.element_size()
    before = [ask_rank(server, rank, "moved") for rank in (0, 1)]
    server.install(other)
    after = [ask_rank(server, rank, "moved") for rank in (0, 1)]
    assert {answer.digest for answer in before} == {one.digest}
    assert {answer.digest for answer in after} == {other.digest}
    assert before[0].logprob_gap(before[1]) == after[0].logprob_gap(after[1]) == 0
    assert before[0].logprobs[0] != after[0].logprobs[0]


def test_metrics_add_up_both_ranks(server: Any) -> None:
    """Each rank wrote its own copy of each prefix; the slots of both are counted, and each request once."""
    for name, num_asked in (("spread", 2), ("moved", 4), ("none", 2)):
        assert server.metric("policy_patch_requests_total", patch=name, outcome="ok") == num_asked
        assert server.metric("policy_patch_time_to_first_token_seconds_count", patch=name) == num_asked
        assert server.metric("policy_patch_prompt_tokens_total", patch=name) == num_asked * len(PROMPT)
        assert server.metric("policy_patch_generation_tokens_total", patch=name) == num_asked * NUM_TOKENS
        gaps = server.metric("policy_patch_inter_token_latency_seconds_count", patch=name)
        assert gaps == num_asked * (NUM_TOKENS - 1)
    assert server.metric("policy_patch_build_info") == 1
    assert server.metric("policy_patch_front_ends", state="in_step") == 2
    written = server.metric("policy_patch_injected_tokens_total")
    assert written >= 2 * (40 + 40 + 39)
    assert server.metric("policy_patch_tier_loads_total", tier="device") == 2 * 3


def test_where_the_leading_process_dies_nobody_answers_and_the_server_ends(server: Any) -> None:
    # The log says it under any title: that of a process can't be set everywhere.
    first = re.search(r"\(ApiServer_0 pid=(\d+)\)", server.log.read_text(encoding="utf-8", errors="replace"))
    assert first is not None
    leader = psutil.Process(int(first[1]))
    leader.kill()
    psutil.wait_procs([leader], 10)
    # What the other process notices takes it a turn of its event loop.
    time.sleep(0.5)
    with contextlib.suppress(httpx.TransportError):
        for _ in range(3):
            assert server.complete(PROMPT, patch="spread").status_code == 503
    assert server.process.wait(90) == 1
