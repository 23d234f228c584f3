"""Conditions on real engines, in float32: decided as in transformers, however a prompt is computed.

Half of the prompts are above the threshold. Where the condition is not met, and in shadow mode, the answer is
the base's own, to the last bit.
"""

import statistics
from typing import Any

import pytest
import torch

from tests import steering_oracle
from tests.e2e.preload import Preload
from tests.e2e.steering_engines import (
    HIDDEN_SIZE,
    NUM_LAYERS,
    NUM_TOKENS,
    PROMPTS,
    Engines,
    assert_as_expected,
    network_of,
)

pytestmark = [pytest.mark.e2e, pytest.mark.server("own", why="engines in several modes, without a server")]

MAX_SCORE_GAP = 1e-4
STEERING = {
    "site": "residual",
    "scale": "absolute",
    "strength": 6.0,
    "opposed_gain": 0,
    "renormalise": False,
    "tokens": "answer",
}
LIVE, SHADOW, EVERY = "sha256:live", "sha256:shadow", "sha256:every"
#: Met by no prompt.
OUT_OF_REACH = 1e4
NGRAMS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}


class Case:
    """A vector behind three probes, and what transformers say of each prompt."""

    def __init__(self, network: Any) -> None:
        generator = torch.Generator().manual_seed(3)
        self.network = network
        self.vector = torch.randn(NUM_LAYERS, HIDDEN_SIZE, generator=generator)
        self.vector /= self.vector.norm(dim=1, keepdim=True)
        self.vector[:2] = 0
        self.probes = torch.randn(4, HIDDEN_SIZE, generator=generator) / HIDDEN_SIZE**0.5
        self.scores = [self._scores_of(prompt) for prompt in PROMPTS]
        threshold = statistics.median(scores[0] for scores in self.scores)
        self.is_met = [scores[0] > threshold for scores in self.scores]
        self.margins = [scores[0] - threshold for scores in self.scores]
        # Nothing hangs on the last digit.
        assert min(map(abs, self.margins)) > 10 * MAX_SCORE_GAP
        self.condition: dict[str, Any] = {
            "probes": [
                {"layers": [0, 1], "pool": "mean", "bias": 0.25, "threshold": threshold},
                {"layers": [1], "pool": "last", "bias": 0.0, "threshold": OUT_OF_REACH},
                {"layers": [0], "pool": "last", "num_tokens": 5, "bias": -0.5, "threshold": OUT_OF_REACH},
            ],
            "combine": "any",
            "shadow": False,
        }

    def _scores_of(self, prompt: list[int]) -> list[float]:
        with torch.no_grad():
            states = self.network(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        first, second = states[1][0], states[2][0]
        tokens = first @ self.probes[0] + second @ self.probes[1]
        return [
            0.25 + float(tokens.mean()),
            float(second[-1] @ self.probes[2]),
            -0.5 + float((first[-5:] @ self.probes[3]).mean()),
        ]

    def vectors(self) -> dict[str, Any]:
        tensors = {"vector": self.vector, "probes": self.probes}
        conditions = {
            LIVE: self.condition,
            SHADOW: self.condition | {"shadow": True},
            EVERY: self.condition | {"combine": "all"},
        }
        return {
            digest: ({"steering": STEERING, "condition": condition}, tensors)
            for digest, condition in conditions.items()
        }

    def expected(self, prompt: list[int], answer: list[int], *, is_steered: bool) -> torch.Tensor:
        if not is_steered:
            return steering_oracle.logprobs(self.network, prompt, answer)
        with steering_oracle.hooks(self.network, self.vector, STEERING, len(prompt) - 1):
            return steering_oracle.logprobs(self.network, prompt, answer)


@pytest.fixture(scope="module")
def engines(preload: Preload | None, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory.mktemp("engines"), preload)


@pytest.fixture(scope="module")
def case(engines: Engines) -> Case:
    return Case(network_of(engines.model("llama")))


def requests(digest: str | None, prompts: list[list[int]] = PROMPTS) -> list[dict[str, Any]]:
    how = {} if digest is None else {"digest": digest, "from_answer": True, "is_conditional": True}
    return [{"prompt": prompt, "max_tokens": NUM_TOKENS, **how} for prompt in prompts]


def assert_decided(case: Case, answers: list[dict[str, Any]]) -> None:
    """Hold the answers to ``requests(LIVE)`` against transformers."""
    for i, answer in enumerate(answers):
        is_met, acts, margin, scores = answer["params"]["policy_patch_condition"]
        assert (is_met, acts) == (case.is_met[i], case.is_met[i])
        assert scores == pytest.approx(case.scores[i], abs=MAX_SCORE_GAP)
        assert margin == pytest.approx(case.margins[i], abs=MAX_SCORE_GAP)
        assert_as_expected(case.expected(PROMPTS[i], answer["token_ids"], is_steered=is_met), answer)


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param({"max_num_batched_tokens": 16, "enable_chunked_prefill": True}, id="chunks"),
        pytest.param({"num_gpu_blocks_override": 10}, id="preemption"),
        pytest.param({"speculative_config": NGRAMS}, id="ngram"),
    ],
)
def test_a_condition_is_decided_as_in_transformers(
    engines: Engines, case: Case, engine: dict[str, Any]
) -> None:
    rounds = [requests(LIVE), requests(LIVE)]
    result = engines.run(engines.model("llama"), rounds, engine=engine, vectors=case.vectors())
    cold, warm = result["rounds"]
    assert_decided(case, cold)
    # Blocks of the prompt come from the prefix cache, and their scores from the ledger.
    assert_decided(case, warm)
    if "num_gpu_blocks_override" in engine:
        assert result["num_preemptions"] > 0
    else:
        assert sum(answer["num_cached"] for answer in warm) > 0


def test_ranks_and_processes_decide_alike(engines: Engines, case: Case) -> None:
    """Two ranks of tensor parallelism, in processes of their own."""
    apart = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    engine = {"tensor_parallel_size": 2}
    model = engines.model("llama")
    vectors = case.vectors()
    result = engines.run(model, [requests(LIVE)], engine=engine, environment=apart, vectors=vectors)
    assert_decided(case, result["rounds"][0])


def test_where_nothing_is_steered_the_answer_is_the_bases_to_the_last_bit(
    engines: Engines, case: Case
) -> None:
    model, vectors = engines.model("llama"), case.vectors()
    plain = engines.run(model, [requests(None)], is_steered=False)["rounds"][0]
    rounds = [requests(digest) for digest in (LIVE, SHADOW, EVERY)]
    live, shadow, every = engines.run(model, rounds, vectors=vectors)["rounds"]
    for i, base in enumerate(plain):
        answer = {"token_ids": base["token_ids"], "logprobs": base["logprobs"]}
        decided = [answers[i]["params"]["policy_patch_condition"][:2] for answers in (live, shadow, every)]
        # All probes together are never met; a shadow counts and steers nothing.
        assert decided == [[case.is_met[i]] * 2, [case.is_met[i], False], [False, False]]
        for answers in (shadow, every) if case.is_met[i] else (live, shadow, every):
            assert {key: answers[i][key] for key in answer} == answer
        if case.is_met[i]:
            assert live[i]["logprobs"] != base["logprobs"]
