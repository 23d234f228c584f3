"""Vectors on real engines, in float32: each token as in transformers with hooks, and no other token touched.

Each engine runs a random model of its architecture in a batch of requests with vectors of all forms and
requests without; transformers are teacher-forced on its tokens. The server is not part of this.
"""

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests import steering_oracle
from tests.e2e.preload import Preload
from tests.e2e.steering_engines import (
    ARCHITECTURES,
    FORMS,
    PLAN,
    PROMPTS,
    VECTORS,
    Engines,
    assert_as_in_transformers,
    digest_of,
    network_of,
    requests,
)

pytestmark = [pytest.mark.e2e, pytest.mark.server("own", why="engines of other architectures and modes")]

NGRAMS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
#: Engine and worker in processes of their own, as servers have them.
APART = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


@pytest.fixture(scope="module")
def engines(preload: Preload | None, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory.mktemp("engines"), preload)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_token_is_steered_as_in_transformers(engines: Engines, architecture: str) -> None:
    model = engines.model(architecture)
    cold, warm = engines.run(model, [requests(), requests()])["rounds"]
    network = network_of(model)
    assert_as_in_transformers(network, cold)
    assert_as_in_transformers(network, warm)
    assert sum(answer["num_cached"] for answer in warm) > 0


def test_rows_without_a_vector_keep_every_bit(engines: Engines) -> None:
    """Against an engine that has none of this."""
    model = engines.model("llama")
    steered = engines.run(model, [requests()])["rounds"][0]
    bare = [{key: request[key] for key in ("prompt", "max_tokens")} for request in requests()]
    plain = engines.run(model, [bare], is_steered=False)["rounds"][0]
    for (name, _), one, other in zip(PLAN, steered, plain, strict=True):
        assert (one == other) == (name is None)


@pytest.mark.parametrize(
    ("engine", "options", "environment"),
    [
        pytest.param({"max_num_batched_tokens": 16, "enable_chunked_prefill": True}, {}, {}, id="chunks"),
        # Nine blocks for ten requests of up to three.
        pytest.param({"num_gpu_blocks_override": 10}, {}, {}, id="preemption"),
        # Seven vectors: most of their requests wait for others to end.
        pytest.param({}, {"steering_slots": 2}, {}, id="two-slots"),
        pytest.param({"speculative_config": NGRAMS}, {}, {}, id="ngram"),
        pytest.param({"tensor_parallel_size": 2}, {}, APART, id="tp2"),
        # Traced, as the launcher has it; see `cpu_defaults.TRACED`.
        pytest.param(
            {
                "pipeline_parallel_size": 2,
                "enforce_eager": False,
                "compilation_config": {"mode": 2, "backend": "eager"},
            },
            {},
            APART,
            id="pp2-traced",
        ),
        pytest.param({"enforce_eager": False}, {}, {}, id="compiled"),
    ],
)
def test_modes_of_the_engine_change_no_token(
    engines: Engines, engine: dict[str, Any], options: dict[str, Any], environment: dict[str, str]
) -> None:
    model = engines.model("llama")
    result = engines.run(
        model, [requests(), requests()], engine=engine, environment=environment, options=options
    )
    network = network_of(model)
    for answers in result["rounds"]:
        assert_as_in_transformers(network, answers)
    if "num_gpu_blocks_override" in engine:
        assert result["num_preemptions"] > 0


def gaps(network: Any, answers: list[dict[str, Any]], exact: Any) -> tuple[list[float], list[float]]:
    """Return how far from ``exact`` steered log-probabilities are: the engine's, and those of ``network``."""
    ours, theirs = [], []
    for prompt, (name, tokens), answer in zip(PROMPTS, PLAN, answers, strict=True):
        if name is None:
            continue
        rows = []
        for model in (network, exact):
            first = len(prompt) - 1 if tokens == "answer" else 0
            with steering_oracle.hooks(model, VECTORS[name], FORMS[name], first):
                rows.append(steering_oracle.logprobs(model, prompt, answer["token_ids"]))
        for step, rounded, row in zip(answer["logprobs"], *rows, strict=True):
            ours += [abs(value - float(row[int(i)])) for i, value in step.items()]
            theirs += [abs(float(rounded[int(i)] - row[int(i)])) for i in step]
    return ours, theirs


def test_in_bfloat16_a_vector_is_off_by_what_the_model_is_off_by(engines: Engines) -> None:
    """Transformers in bfloat16 are the yardstick: both are held against float32 on the same weights."""
    model = engines.model("llama")
    answers = engines.run(model, [requests()], engine={"dtype": "bfloat16"})["rounds"][0]
    rounded = network_of(model).to(torch.bfloat16)
    exact = network_of(model).to(torch.bfloat16).float()
    ours, theirs = gaps(rounded, answers, exact)
    assert statistics.median(ours) < 1.25 * statistics.median(theirs)
    assert max(ours) < 2 * max(theirs)
    # Else vectors that do nothing would pass, too.
    unsteered = steering_oracle.logprobs(exact, PROMPTS[0], answers[0]["token_ids"])
    top = {int(i): value for i, value in answers[0]["logprobs"][0].items()}
    assert max(abs(value - float(unsteered[0, i])) for i, value in top.items()) > max(ours)


def test_a_vector_acts_on_what_a_lora_adapter_makes_of_the_model(engines: Engines, tmp_path: Path) -> None:
    model = engines.model("llama")
    torch.manual_seed(2)
    # Random instead of zero: an adapter that changes nothing would prove nothing.
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    adapted = get_peft_model(network_of(model), config)
    adapted.save_pretrained(str(tmp_path))
    engine = {"enable_lora": True, "max_lora_rank": 8}
    answers = engines.run(model, [requests()], engine=engine, adapter=str(tmp_path))["rounds"][0]
    assert_as_in_transformers(adapted.base_model.model, answers)


def test_a_vector_that_a_worker_has_lost_fails_its_requests_and_no_other(engines: Engines) -> None:
    model = engines.model("llama")
    lost = digest_of("paper", "all")
    answers = engines.run(model, [requests()], lost=[lost], environment=APART)["rounds"][0]
    failed = [
        answer for request, answer in zip(requests(), answers, strict=True) if request.get("digest") == lost
    ]
    # Not even the first token, which was computed without the vector.
    assert [(answer["token_ids"], answer["finish_reason"]) for answer in failed] == [([], "error")]
    assert_as_in_transformers(network_of(model), answers, without={lost})
