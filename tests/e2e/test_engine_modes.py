"""Fidelity in other modes of the engine: parallel ranks, speculation, schedulers, and under a hot swap.

Each mode runs the tiny model in float32. A patch made from tokens has to answer as these tokens do in front
of the prompt, on the same server; learned embeddings as in transformers. Speculation must not change a
greedy answer either, so the same reference holds.
"""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.format import Patch

pytestmark = [pytest.mark.e2e, pytest.mark.server("own", why="each mode is a flag")]

MAX_LOGPROB_GAP = 1e-4
NUM_TOKENS = 24
#: Two blocks of 32 and a tail.
POLICY_IDS = [(37 * i) % 40000 + 10 for i in range(75)]
NUM_VIRTUAL_TOKENS = 48
#: Within a block, and over the next one.
PROMPTS = [[(91 * i + 7 * j) % 40000 + 10 for i in range(length)] for j, length in enumerate([1, 9, 40, 130])]
#: Answers of so few tokens repeat themselves, so that speculation has something to guess.
FEW_IDS = [100, 101, 102]
NGRAMS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            ["--tensor-parallel-size", "2"],
            id="tp2",
            marks=pytest.mark.feature("tensor parallelism, 2 ranks"),
        ),
        pytest.param(
            ["--pipeline-parallel-size", "2"],
            id="pp2",
            marks=pytest.mark.feature("pipeline parallelism, 2 stages"),
        ),
        pytest.param(
            ["--speculative-config", json.dumps(NGRAMS), "--no-async-scheduling"],
            id="ngram",
            marks=pytest.mark.feature("n-gram speculation, asynchronous scheduling off"),
        ),
    ],
)
def server(request: pytest.FixtureRequest, start_module_server: Any, tiny_model: Path) -> Iterator[Any]:
    started = start_module_server(tiny_model, "--dtype", "float32", "--max-model-len", "512", *request.param)
    started.wait_ready()
    yield started
    assert started.terminate() == 0


def references(patch: Patch, tiny_patches: Any, generate: Any, **options: Any) -> list[Any]:
    """The answers of transformers to the prompts behind a patch's embeddings."""
    network = tiny_patches.model.network
    assert patch.embeddings is not None
    answers = []
    for prompt in PROMPTS:
        user = network.get_input_embeddings()(torch.tensor([prompt]))
        inputs = torch.cat([patch.embeddings[None], user], dim=1)
        answers += generate(network, [prompt], NUM_TOKENS, inputs_embeds=inputs, **options)
    return answers


def requests(patch: str | None, prompts: list[list[int]] = PROMPTS, **options: Any) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "patch": patch, "max_tokens": NUM_TOKENS, **options} for prompt in prompts]


def assert_same(got: list[Any], expected: list[Any]) -> None:
    for answer, reference in zip(got, expected, strict=True):
        assert answer.token_ids == reference.token_ids
        assert answer.logprob_gap(reference) < MAX_LOGPROB_GAP


def test_a_patch_answers_as_the_tokens_it_was_made_from(server: Any, tiny_patches: Any) -> None:
    server.install(tiny_patches.of_token_ids("policy", POLICY_IDS))
    text = server.ask_together(requests(None, [POLICY_IDS + prompt for prompt in PROMPTS]))
    for _ in ("cold", "warm"):
        assert_same(server.ask_together(requests("policy")), text)
    bare = server.ask_together(requests(None))
    assert all(one.logprobs[0] != other.logprobs[0] for one, other in zip(bare, text, strict=True))


def test_learned_embeddings_answer_as_in_transformers(server: Any, tiny_patches: Any, generate: Any) -> None:
    patch = tiny_patches.of_random_embeddings("learned", NUM_VIRTUAL_TOKENS, seed=1)
    server.install(patch)
    expected = references(patch, tiny_patches, generate)
    for _ in ("cold", "warm"):
        assert_same(server.ask_together(requests("learned")), expected)


def test_answers_that_repeat_themselves_are_those_of_transformers(
    server: Any, tiny_patches: Any, generate: Any, request: pytest.FixtureRequest
) -> None:
    patch = tiny_patches.of_random_embeddings("few", NUM_VIRTUAL_TOKENS, seed=4)
    server.install(patch)
    expected = references(patch, tiny_patches, generate, prefix_allowed_tokens_fn=lambda batch, ids: FEW_IDS)
    for _ in ("cold", "warm"):
        answers = server.ask_together(requests("few", allowed_token_ids=FEW_IDS, ignore_eos=True))
        assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    if "ngram" in request.node.name:
        # Else nothing was guessed rightly, and nothing shown.
        assert server.metric("vllm:spec_decode_num_accepted_tokens_total") > 0


def wait_until(holds: Any, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.feature("hot swap")
def test_versions_do_not_mix_when_a_file_is_replaced(server: Any, tiny_patches: Any, generate: Any) -> None:
    """Two files take turns while requests run; each answer is that of the digest in its header."""
    versions = [tiny_patches.of_random_embeddings("hot", NUM_VIRTUAL_TOKENS, seed=k) for k in (2, 3)]
    expected = {patch.digest: references(patch, tiny_patches, generate) for patch in versions}
    server.install(versions[0])
    is_over = threading.Event()
    answers: list[tuple[int, Any]] = []

    def keep_asking(i: int) -> None:
        while not is_over.is_set():
            answers.append((i, server.ask(**requests("hot")[i])))

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        clients = [pool.submit(keep_asking, i) for i in range(len(PROMPTS))]
        try:
            for k in (1, 0, 1):
                server.install(versions[k])
                # Whatever the machine's pace, the next file comes while this one is being used.
                wait_until(lambda digest=versions[k].digest: answers[-1:] and answers[-1][1].digest == digest)
        finally:
            is_over.set()
        for client in clients:
            client.result()
    assert {answer.digest for _, answer in answers} == set(expected)
    for i, answer in answers:
        assert_same([answer], [expected[answer.digest][i]])
