"""Isolation (invariant 2): K/V written under one patch never reaches another, nor the base model.

Sixteen patches and the base model answer the same prompts in one batch. What each of them answers there has
to be what it answers alone; a block shared between two of them would show. The model is tiny and in float32,
so that answers are exact and servers of several kinds can be tried.
"""

import itertools
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patches.format import Patch
from server.engine.placeholder import placeholder_token_id

pytestmark = [pytest.mark.e2e, pytest.mark.server("tiny", "own", why="caching off, and a tiny token budget")]

MAX_LOGPROB_GAP = 1e-4
NUM_TOKENS = 24

#: flags of each kind of server; the last one cuts every prompt into chunks.
SERVERS = [
    pytest.param(
        [], id="prefix-caching", marks=pytest.mark.feature("prefix caching, asynchronous scheduling")
    ),
    pytest.param(
        ["--no-enable-prefix-caching"], id="no-prefix-caching", marks=pytest.mark.feature("no prefix caching")
    ),
    pytest.param(
        ["--max-num-batched-tokens", "32", "--max-num-seqs", "16"],
        id="tiny-token-budget",
        marks=pytest.mark.feature("chunked prefill"),
    ),
]

#: Less than, exactly, and more than one and two blocks of 32.
LENGTHS = [48, 64, 33, 32, 48, 5, 64, 48]

#: The longer ones fill blocks of their own behind the prefix.
PROMPTS = [[100 + 7 * i, 200 + i, 300] + [400 + i] * (30 * i) for i in range(4)]


@pytest.fixture(scope="module")
def patches(tiny_patches: Any) -> list[Patch]:
    """Sixteen patches of fifteen names: the first two are versions of one."""
    names = ["isolated-0", *(f"isolated-{i}" for i in range(15))]
    return [
        tiny_patches.of_random_embeddings(name, LENGTHS[i % 8], seed=i, version=f"1.{i}.0")
        for i, name in enumerate(names)
    ]


@pytest.fixture(scope="module")
def selections(patches: list[Patch]) -> list[str | None]:
    """Header values: each patch by version, and none for the base model."""
    return [None, *(f"{patch.manifest.name}@{patch.manifest.version}" for patch in patches)]


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, start_module_server: Any, tiny_model: Any, patches: list[Patch]
) -> Iterator[Any]:
    if not request.param:
        tiny_server = request.getfixturevalue("tiny_server")
        install(tiny_server, patches)
        yield tiny_server
        return
    started = start_module_server(tiny_model, "--dtype", "float32", "--max-model-len", "512", *request.param)
    started.wait_ready()
    install(started, patches)
    yield started
    assert started.terminate() == 0


def install(server: Any, patches: list[Patch]) -> None:
    for patch in patches:
        server.install(patch, wait=patch is patches[-1])


@pytest.fixture(scope="module")
def tokens_before(server: Any) -> dict[str, float]:
    """How many prefix tokens were shared and written before these tests."""
    return {way: server.metric(f"policy_patch_{way}_tokens_total") for way in ("shared", "injected")}


Key = tuple[str | None, int]


@pytest.fixture(scope="module")
def alone(server: Any, tokens_before: dict[str, float], selections: list[str | None]) -> dict[Key, Any]:
    """(selection, prompt) -> the answer of a server that does nothing else, and finds nothing cached."""
    return {
        (patch, i): server.ask(PROMPTS[i], patch=patch, max_tokens=NUM_TOKENS, cache_salt=uuid.uuid4().hex)
        for patch, i in itertools.product(selections, range(len(PROMPTS)))
    }


def assert_same(got: Any, expected: Any) -> None:
    assert got.token_ids == expected.token_ids
    assert got.logprob_gap(expected) < MAX_LOGPROB_GAP
    assert got.digest == expected.digest


def test_patches_answer_differently(alone: dict[Key, Any], selections: list[str | None]) -> None:
    """Else the tests below would prove nothing."""
    for i in range(len(PROMPTS)):
        first = [alone[patch, i].logprobs[0] for patch in selections]
        assert all(one != other for one, other in itertools.combinations(first, 2))


@pytest.mark.parametrize("salt", [None, "shared", "own"])
def test_answers_in_a_mixed_batch_equal_answers_alone(
    server: Any, alone: dict[Key, Any], salt: str | None
) -> None:
    requests: list[dict[str, Any]] = [
        {"prompt": PROMPTS[i], "patch": patch, "max_tokens": NUM_TOKENS} for patch, i in alone
    ]
    for request in requests if salt is not None else ():
        request["cache_salt"] = uuid.uuid4().hex if salt == "own" else salt
    # The same requests again find what the first ones left in the cache.
    for _ in ("cold", "warm"):
        for answer, expected in zip(server.ask_together(requests), alone.values(), strict=True):
            assert_same(answer, expected)


def test_learned_embeddings_answer_as_in_transformers(
    server: Any, alone: dict[Key, Any], patches: list[Patch], tiny_patches: Any, generate: Any
) -> None:
    network = tiny_patches.model.network
    for patch, i in itertools.product(patches[1:5], range(len(PROMPTS))):
        assert patch.embeddings is not None
        user = network.get_input_embeddings()(torch.tensor([PROMPTS[i]]))
        inputs = torch.cat([patch.embeddings[None], user], dim=1)
        (expected,) = generate(network, [PROMPTS[i]], NUM_TOKENS, inputs_embeds=inputs)
        answer = alone[f"{patch.manifest.name}@{patch.manifest.version}", i]
        assert answer.token_ids == expected.token_ids
        assert answer.logprob_gap(expected) < MAX_LOGPROB_GAP


@pytest.fixture(scope="module")
def placeholder_id(demo_fp32: Any) -> int:
    """What stands in the engine for a prefix position."""
    tokenizer = demo_fp32.tokenizer
    return placeholder_token_id(SimpleNamespace(get_vocab_size=lambda: len(tokenizer)), tokenizer)


def test_no_salt_of_a_caller_reaches_the_kv_of_a_patch(
    server: Any, alone: dict[Key, Any], patches: list[Patch], placeholder_id: int
) -> None:
    patch = patches[-1]
    reference = f"{patch.manifest.name}@{patch.manifest.version}"
    forged = [placeholder_id] * patch.manifest.num_virtual_tokens + PROMPTS[3]
    own = server.ask(forged, max_tokens=NUM_TOKENS, cache_salt=uuid.uuid4().hex)
    # Under the patch, K/V for exactly these ids is cached now.
    for salt in (None, "s"):
        body = {} if salt is None else {"cache_salt": salt}
        assert_same(
            server.ask(PROMPTS[3], patch=reference, max_tokens=NUM_TOKENS, **body), alone[reference, 3]
        )
    for salt in (
        f"patch:{patch.digest}",
        f"patch:{patch.digest}:s",
        f"caller:patch:{patch.digest}",
        patch.digest,
    ):
        assert_same(server.ask(forged, max_tokens=NUM_TOKENS, cache_salt=salt), own)
    assert_same(server.ask(forged, max_tokens=NUM_TOKENS), own)


def test_no_salt_of_a_caller_plants_kv_for_a_patch(
    server: Any, alone: dict[Key, Any], patches: list[Patch], placeholder_id: int
) -> None:
    patch = patches[-1]
    reference = f"{patch.manifest.name}@{patch.manifest.version}"
    forged = [placeholder_id] * patch.manifest.num_virtual_tokens + PROMPTS[3]
    fresh = uuid.uuid4().hex
    for salt in (f"patch:{patch.digest}:{fresh}", fresh):
        server.ask(forged, max_tokens=NUM_TOKENS, cache_salt=salt)
        answer = server.ask(PROMPTS[3], patch=reference, max_tokens=NUM_TOKENS, cache_salt=fresh)
        assert_same(answer, alone[reference, 3])


def test_the_prefix_cache_was_used_where_there_is_one(
    server: Any, alone: dict[Key, Any], tokens_before: dict[str, float], request: pytest.FixtureRequest
) -> None:
    """The answers above came out of shared blocks, not of K/V written anew for each request."""
    has_cache = "no-prefix-caching" not in request.node.name
    num = {way: server.metric(f"policy_patch_{way}_tokens_total") - n for way, n in tokens_before.items()}
    assert (num["shared"] > 0) == has_cache
    assert num["injected"] > 0
