"""More patches in use than memory is allowed to hold: right answers, no error, and the figures say so."""

import itertools
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from patches.format import Patch

pytestmark = [pytest.mark.e2e, pytest.mark.server("own", why="little memory for patches")]

NUM_PATCHES = 6
NUM_VIRTUAL_TOKENS = 40
#: Two layers, K and V, two heads of 32, float32.
PATCH_BYTES = 2 * 2 * NUM_VIRTUAL_TOKENS * 2 * 32 * 4
NUM_DEVICE_SLOTS = 2
NUM_HOSTED = 3
NUM_TOKENS = 16
#: Of 32 tokens, so a patch has one whole block; few enough to be flooded.
NUM_BLOCKS = 64
PROMPTS = [[100 + 7 * i, 200 + i, 300, 17 + i] for i in range(4)]


@pytest.fixture(scope="module")
def patches(tiny_patches: Any) -> list[Patch]:
    return [
        tiny_patches.of_random_embeddings(f"tier-{i}", NUM_VIRTUAL_TOKENS, seed=i) for i in range(NUM_PATCHES)
    ]


@pytest.fixture(scope="module")
def server(start_module_server: Any, tiny_model: Any, patches: list[Patch]) -> Iterator[Any]:
    started = start_module_server(
        tiny_model,
        *("--dtype", "float32", "--max-model-len", "256"),
        *("--patch-device-memory", str(NUM_DEVICE_SLOTS * PATCH_BYTES)),
        *("--patch-host-memory", str(NUM_HOSTED * PATCH_BYTES)),
        *("--pin-patch", "tier-0"),
        *("--pin-blocks", "tier-0", "--num-gpu-blocks-override", str(NUM_BLOCKS)),
        env={"VLLM_SERVER_DEV_MODE": "1"},
    )
    started.wait_ready()
    for patch in patches:
        started.install(patch, wait=patch is patches[-1])
    yield started
    assert started.terminate() == 0


@pytest.fixture(scope="module")
def expected(patches: list[Patch], tiny_patches: Any, generate: Any) -> dict[tuple[int, int], list[int]]:
    """(patch, prompt) -> token ids, by transformers."""
    network = tiny_patches.model.network
    user = network.get_input_embeddings()(torch.tensor(PROMPTS))
    answers = {}
    for k, patch in enumerate(patches):
        assert patch.embeddings is not None
        inputs = torch.cat([patch.embeddings.expand(len(PROMPTS), -1, -1), user], dim=1)
        for i, answer in enumerate(generate(network, PROMPTS, NUM_TOKENS, inputs_embeds=inputs)):
            answers[k, i] = answer.token_ids
    return answers


def tier(server: Any, what: str, name: str) -> float:
    return float(server.metric(f"policy_patch_tier_{what}", tier=name))


def test_only_the_pinned_patch_is_loaded_before_a_request(server: Any) -> None:
    cards = server.client.get("/v1/patches").json()["data"]
    tiers = {card["name"]: card["versions"][0]["tier"] for card in cards}
    assert tiers == {f"tier-{i}": "disk" if i else "memory" for i in range(NUM_PATCHES)}
    assert tier(server, "loads_total", "host") == 1
    assert tier(server, "bytes", "host") == PATCH_BYTES


@pytest.mark.feature("more patches than memory holds")
@pytest.mark.parametrize("salt", ["own", None])
def test_more_patches_than_memory_holds_are_answered_rightly(
    server: Any, expected: dict[tuple[int, int], list[int]], salt: str | None
) -> None:
    # With a salt of its own no request finds its prefix in the KV cache: each needs the tensors.
    keys = [*itertools.product(range(NUM_PATCHES), range(len(PROMPTS)))] * 2
    requests: list[dict[str, Any]] = [
        {"prompt": PROMPTS[i], "patch": f"tier-{k}", "max_tokens": NUM_TOKENS} for k, i in keys
    ]
    for request in requests if salt is not None else ():
        request["cache_salt"] = uuid.uuid4().hex
    answers = server.ask_together(requests, num_threads=16)
    assert [answer.token_ids for answer in answers] == [expected[key] for key in keys]


def test_one_after_the_other_every_patch_is_brought_in_and_makes_room(
    server: Any, expected: dict[tuple[int, int], list[int]]
) -> None:
    for _, k in itertools.product(range(2), range(NUM_PATCHES)):
        answer = server.ask(PROMPTS[0], patch=f"tier-{k}", max_tokens=NUM_TOKENS, cache_salt=uuid.uuid4().hex)
        assert answer.token_ids == expected[k, 0]
    assert tier(server, "evictions_total", "device") >= NUM_PATCHES
    assert tier(server, "evictions_total", "host") >= NUM_PATCHES
    assert tier(server, "limit_bytes", "device") == NUM_DEVICE_SLOTS * PATCH_BYTES
    assert 0 < tier(server, "bytes", "device") <= NUM_DEVICE_SLOTS * PATCH_BYTES
    # What many requests at once held beyond the bound goes a moment after the last answer.
    within_s = time.monotonic() + 30
    while tier(server, "bytes", "host") > NUM_HOSTED * PATCH_BYTES and time.monotonic() < within_s:
        time.sleep(0.05)
    assert 0 < tier(server, "bytes", "host") <= NUM_HOSTED * PATCH_BYTES
    assert server.metric("policy_patch_requests_total", outcome="server_error") == 0
    assert server.metric("policy_patch_rejected_requests_total") == 0
    # The pinned one never had to be read again.
    card = server.client.get("/v1/patches/tier-0").json()
    assert card["versions"][0]["tier"] == "memory"


def num_written(server: Any, name: str) -> float:
    """Ask under a patch, and return how many of its tokens had to be written for it."""
    before = server.metric("policy_patch_injected_tokens_total", patch=name)
    server.ask(PROMPTS[0], patch=name, max_tokens=1)
    return float(server.metric("policy_patch_injected_tokens_total", patch=name) - before)


@pytest.mark.feature("blocks pinned in the KV cache")
def test_pinned_blocks_survive_what_evicts_those_of_others(server: Any) -> None:
    tail = NUM_VIRTUAL_TOKENS - 32
    for name in ("tier-0", "tier-1"):
        server.ask(PROMPTS[0], patch=name, max_tokens=1)
        assert num_written(server, name) == tail
    assert server.metric("policy_patch_pinned_blocks") == 1
    assert server.metric("policy_patch_pinned_blocks_limit") == (NUM_BLOCKS - 1) // 10
    flood = [{"prompt": [5000 + i] + [7] * 200, "max_tokens": 1} for i in range(NUM_BLOCKS // 2)]
    server.ask_together(flood, num_threads=16)
    assert num_written(server, "tier-1") == NUM_VIRTUAL_TOKENS
    assert num_written(server, "tier-0") == tail


@pytest.mark.feature("blocks pinned in the KV cache")
def test_pinned_blocks_do_not_keep_the_prefix_cache_from_being_reset(server: Any) -> None:
    answer = server.client.post("/reset_prefix_cache")
    assert answer.json() == {"success": True}
    # With the next step's figures.
    assert num_written(server, "tier-0") == NUM_VIRTUAL_TOKENS
    assert server.metric("policy_patch_pinned_blocks") == 0
