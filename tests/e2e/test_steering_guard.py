"""Vectors that leave the range of a dtype, on real engines: their requests fail, and nobody else notices.

No file may hold such vectors; here the workers get them without one. A cache of a few blocks has each block
written by one request after the other.
"""

from typing import Any

import pytest
import torch

from tests.e2e.preload import Preload
from tests.e2e.steering_engines import HIDDEN_SIZE, NUM_LAYERS, NUM_TOKENS, PROMPTS, Engines, digest_of

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("own", why="vectors that no file may hold"),
]

FORM = {"site": "residual", "scale": "absolute", "opposed_gain": 0, "renormalise": False}
#: A step of one layer, in the middle of the model, of which the next layers make NaN.
TOO_LONG = {"float32": 3.4e38, "float16": 6.5e4}
OTHER = [[(53 * i + 11 * j) % 500 + 5 for i in range(5 + 9 * j)] for j in range(8)]
MAX_GAP = {"float32": 1e-4, "float16": 2e-2}


def asked(prompts: list[list[int]], name: str | None = None, tokens: str = "all") -> list[dict[str, Any]]:
    how = {} if name is None else {"digest": digest_of(name, tokens), "from_answer": tokens == "answer"}
    return [{"prompt": prompt, "max_tokens": NUM_TOKENS, **how} for prompt in prompts]


def facts(strength: float, tokens: str) -> dict[str, Any]:
    return {"steering": FORM | {"strength": strength, "tokens": tokens}}


@pytest.fixture(scope="module")
def engines(preload: Preload | None, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory.mktemp("engines"), preload)


def assert_alike(answers: list[Any], expected: list[Any], max_gap: float) -> None:
    for answer, other in zip(answers, expected, strict=True):
        assert answer["token_ids"] == other["token_ids"]
        for step, of_other in zip(answer["logprobs"], other["logprobs"], strict=True):
            both = step.keys() & of_other.keys()
            assert max(abs(step[i] - of_other[i]) for i in both) < max_gap


@pytest.mark.parametrize("dtype", TOO_LONG)
def test_states_that_are_not_finite_fail_their_request_and_reach_no_other(
    engines: Engines, dtype: str
) -> None:
    vector = torch.zeros(NUM_LAYERS, HIDDEN_SIZE)
    vector[1:3] = 1
    vectors: Any = {
        digest_of("long", tokens): (facts(TOO_LONG[dtype], tokens), {"vector": vector})
        for tokens in ("all", "answer")
    }
    vectors[digest_of("short", "all")] = facts(1e-3, "all"), {"vector": vector}
    broken = [*asked(PROMPTS[:5], "long"), *asked(PROMPTS[5:], "long", "answer")]
    beside = asked(PROMPTS, "short")
    rounds = [[*broken, *beside], asked(OTHER), [*broken, *asked(OTHER)], beside]
    engine = {"num_gpu_blocks_override": 14, "dtype": dtype}
    model = engines.model("llama")
    first, second, third, fourth = engines.run(model, rounds, engine=engine, vectors=vectors)["rounds"]
    for answer in (*first[: len(broken)], *third[: len(broken)]):
        assert (answer["token_ids"], answer["finish_reason"]) == ([], "error")
    plain = engines.run(model, [asked(OTHER)], engine={"dtype": dtype}, is_steered=False)["rounds"][0]
    assert_alike(second, plain, MAX_GAP[dtype])
    assert_alike(third[len(broken) :], plain, MAX_GAP[dtype])
    assert_alike(first[len(broken) :], fourth, MAX_GAP[dtype])
    assert all(len(answer["token_ids"]) == NUM_TOKENS for answer in fourth)


def test_a_score_that_is_not_finite_fails_its_request_unless_it_steers_nothing(engines: Engines) -> None:
    vector = torch.zeros(NUM_LAYERS, HIDDEN_SIZE)
    vector[2:] = 1e-3
    probe: dict[str, Any] = {"layers": [0], "pool": "mean", "bias": 0.0, "threshold": 0.0}
    vectors: Any = {}
    for name, is_shadow in (("live", False), ("shadow", True)):
        condition = {"probes": [probe], "combine": "all", "shadow": is_shadow}
        how = {**facts(1.0, "answer"), "condition": condition}
        # Too large for any file: what it makes of a state is infinite, or NaN.
        tensors = {"vector": vector, "probes": torch.full((1, HIDDEN_SIZE), -3.4e38)}
        vectors[digest_of(name, "answer")] = how, tensors
    conditional = {"is_conditional": True}
    live, shadow = (
        [request | conditional for request in asked(PROMPTS, name, "answer")] for name in ("live", "shadow")
    )
    model = engines.model("llama")
    got = engines.run(model, [live, shadow, asked(PROMPTS)], vectors=vectors)["rounds"]
    for answer in got[0]:
        assert (answer["token_ids"], answer["finish_reason"]) == ([], "error")
    assert_alike(got[1], got[2], MAX_GAP["float32"])
    assert all((answer["params"] or {}).get("policy_patch_condition") is None for answer in got[1])
