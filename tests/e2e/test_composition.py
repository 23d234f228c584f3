"""Joined composition: patches that nobody composed, one behind the other, in a server that allows it.

The reference is transformers with a cache that holds the same: each part's own K/V, the keys rotated by
transformers' own functions to where the part lies. The model is tiny and in float32, so answers are exact.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from patches.compose import compose_patches
from patches.format import Patch
from patches.label import Label

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("own", why="`--composition any`"),
    pytest.mark.feature("joined composition"),
]

MAX_LOGPROB_GAP = 1e-4
NUM_TOKENS = 16
#: Less, exactly, and more than a block of 32.
LENGTHS = {"short": 11, "block": 32, "long": 45}
PROMPTS = [[300, 17, 4000], [100 + i for i in range(40)]]
ORDERS = [
    *(", ".join(order) for order in itertools.permutations(LENGTHS, 2)),
    "short, block, long",
    "long, long",
]


@pytest.fixture(scope="module")
def parts(tiny_patches: Any) -> dict[str, Patch]:
    return {
        name: tiny_patches.of_random_embeddings(name, length, seed=length) for name, length in LENGTHS.items()
    }


@pytest.fixture(scope="module")
def server(start_module_server: Any, tiny_model: Any, parts: dict[str, Patch]) -> Iterator[Any]:
    started = start_module_server(
        tiny_model, "--composition", "joined", "--dtype", "float32", "--max-model-len", "512"
    )
    started.wait_ready()
    for patch in parts.values():
        started.install(patch)
    yield started
    assert started.terminate() == 0


def moved_cache(network: Any, parts: Sequence[Patch]) -> DynamicCache:
    """The parts' own K/V one behind the other, the keys moved as transformers rotates."""
    cache, start = DynamicCache(), 0
    for patch in parts:
        assert patch.kv is not None
        num_tokens = patch.kv.shape[2]
        shift = torch.full((1, num_tokens), start)
        for layer, (key, value) in enumerate(patch.kv.transpose(2, 3)):
            cos, sin = network.model.rotary_emb(key[None], shift)
            cache.update(apply_rotary_pos_emb(key[None], key[None], cos, sin)[1], value[None], layer)
        start += num_tokens
    return cache


def reference(network: Any, parts: Sequence[Patch], prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """Greedy ids and the log probabilities of each step, by transformers."""
    cache, ids, steps, chosen = moved_cache(network, parts), torch.tensor([prompt]), [], []
    for _ in range(NUM_TOKENS):
        with torch.no_grad():
            logits = network(ids, past_key_values=cache, use_cache=True).logits[0, -1]
        steps.append(torch.log_softmax(logits.float(), dim=-1))
        chosen.append(int(logits.argmax()))
        ids = torch.tensor([chosen[-1:]])
    return chosen, torch.stack(steps)


@pytest.mark.parametrize("wish", ORDERS)
def test_parts_answer_as_their_moved_kv_does_in_transformers(
    server: Any, tiny_patches: Any, parts: dict[str, Patch], wish: str
) -> None:
    """Asked twice: first the parts are written, then their blocks are found in the cache."""
    chosen = [parts[name] for name in wish.split(", ")]
    for prompt in PROMPTS:
        expected, logprobs = reference(tiny_patches.model.network, chosen, prompt)
        for _ in ("cold", "warm"):
            answer = server.ask(prompt, patch=wish, max_tokens=NUM_TOKENS, ignore_eos=True)
            assert answer.token_ids == expected
            for step, likeliest in zip(logprobs, answer.logprobs, strict=True):
                assert all(abs(float(step[i]) - p) < MAX_LOGPROB_GAP for i, p in likeliest.items())
            assert answer.num_prompt_tokens == len(prompt)


def test_no_two_selections_share_a_block(server: Any, parts: dict[str, Patch]) -> None:
    """Mixed in one batch, cold and warm, each selection answers as it does alone and under fresh salts."""
    wishes = [None, *parts, *ORDERS]
    salted = {
        wish: server.ask(PROMPTS[1], patch=wish, max_tokens=NUM_TOKENS, cache_salt=f"alone {wish}")
        for wish in wishes
    }
    assert len({tuple(answer.logprobs[0].items()) for answer in salted.values()}) == len(wishes)
    assert len({answer.digest for answer in salted.values()}) == len(wishes)
    requests = [{"prompt": PROMPTS[1], "patch": wish, "max_tokens": NUM_TOKENS} for wish in wishes]
    for _ in ("cold", "warm"):
        for wish, answer in zip(wishes, server.ask_together(requests), strict=True):
            assert answer.token_ids == salted[wish].token_ids
            assert answer.logprob_gap(salted[wish]) < MAX_LOGPROB_GAP
            assert answer.digest == salted[wish].digest


def test_a_composition_is_cached_as_a_whole(server: Any) -> None:
    """77 tokens, of which two blocks of 32 are shared from the second request on."""
    wish, prompt = "long, block", [9, 8, 7]
    server.ask(prompt, patch=wish, max_tokens=1)
    before = server.metric("policy_patch_injected_tokens_total")
    shared = server.metric("policy_patch_shared_tokens_total", patch="long")
    server.ask(prompt, patch=wish, max_tokens=1)
    assert server.metric("policy_patch_injected_tokens_total") - before == 77 - 64
    assert server.metric("policy_patch_shared_tokens_total", patch="long") - shared == 45


def test_the_exact_form_takes_over_once_it_is_prepared(
    server: Any, tiny_patches: Any, parts: dict[str, Patch]
) -> None:
    prompt = [5, 6, 7, 8]
    before = server.complete(prompt, patch="block, short")
    assert before.headers["X-Policy-Patch-Composition"] == "joined"
    prepared = compose_patches(
        tiny_patches.model, [parts["block"], parts["short"]], Label("block.short", "1.0.0")
    )
    server.install(prepared)
    after = server.complete(prompt, patch="block, short")
    assert after.headers["X-Policy-Patch-Composition"] == "prepared"
    assert after.headers["X-Policy-Patch-Digest"] == prepared.digest
    assert server.metric("policy_patch_compositions_total", form="prepared") >= 1
