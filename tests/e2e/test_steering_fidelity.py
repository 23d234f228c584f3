"""Vectors on real engines, in float32: each token as in transformers with hooks, and no other token touched.

Each engine runs a random model of its architecture in a batch of requests with vectors of all forms and
requests without; transformers are teacher-forced on its tokens. The server is not part of this.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests import steering_oracle
from tests.e2e.preload import Preload, import_environment, run_process

pytestmark = [pytest.mark.e2e, pytest.mark.server("own", why="engines of other architectures and modes")]

MAX_LOGPROB_GAP = 1e-4
NUM_TOKENS = 16
NUM_LAYERS, HIDDEN_SIZE = 4, 128
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",
    # The engine and its worker in one process; servers have them apart.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
GEMMA = {"query_pre_attn_scalar": 32, "sliding_window": 48}
#: Class of the model's configuration in transformers, and what its defaults would make too large or small.
ARCHITECTURES = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "gemma2": ("Gemma2Config", {"head_dim": 32, **GEMMA}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 32, **GEMMA}),
}
#: Strong enough to change every answer.
FORMS = {
    "paper": {
        "site": "residual",
        "scale": "absolute",
        "strength": 6.0,
        "opposed_gain": 0,
        "renormalise": True,
    },
    "authors": {"site": "mlp", "scale": "relative", "strength": 0.8, "opposed_gain": 1, "renormalise": True},
    "plain": {
        "site": "residual",
        "scale": "absolute",
        "strength": 6.0,
        "opposed_gain": 0,
        "renormalise": False,
    },
    "bare": {"site": "mlp", "scale": "relative", "strength": 0.5, "opposed_gain": 0, "renormalise": False},
}
#: Vector, and the tokens that it acts on; ``None`` is a request without.
PLAN: list[tuple[str | None, str]] = [
    *(("paper", "all"), (None, ""), ("authors", "all"), ("paper", "answer"), (None, "")),
    *(("plain", "answer"), ("authors", "answer"), ("plain", "all"), ("bare", "answer"), (None, "")),
]
#: Within a block of 32, at its ends, and over several.
PROMPTS = [
    [(91 * i + 7 * j) % 500 + 5 for i in range(length)]
    for j, length in enumerate([5, 40, 17, 33, 64, 9, 65, 31, 50, 1])
]

RunEngine = Callable[..., dict[str, Any]]


def vectors() -> dict[str, torch.Tensor]:
    """Return one vector a form, of unit rows; one has a layer that it leaves alone."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for name in FORMS:
        rows = torch.randn(NUM_LAYERS, HIDDEN_SIZE, generator=generator)
        made[name] = rows / rows.norm(dim=1, keepdim=True)
    made["paper"][1] = 0
    return made


VECTORS = vectors()


def digest_of(name: str, tokens: str) -> str:
    return f"sha256:{name}-{tokens}"


def requests() -> list[dict[str, Any]]:
    made = []
    for prompt, (name, tokens) in zip(PROMPTS, PLAN, strict=True):
        request: dict[str, Any] = {"prompt": prompt, "max_tokens": NUM_TOKENS}
        if name is not None:
            request |= {"digest": digest_of(name, tokens), "from_answer": tokens == "answer"}
        made.append(request)
    return made


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make, once each, a random model of an architecture."""
    import transformers

    folders: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in folders:
            name, more = ARCHITECTURES[architecture]
            config = getattr(transformers, name)(
                **{"vocab_size": 512, "hidden_size": HIDDEN_SIZE, "intermediate_size": 192},
                **{"num_hidden_layers": NUM_LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2},
                **{"max_position_embeddings": 1024, "initializer_range": 0.15, "dtype": "float32"},
                **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
                **more,
            )
            torch.manual_seed(0)
            folders[architecture] = tmp_path_factory.mktemp(architecture)
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folders[architecture])
        return folders[architecture]

    return make


@pytest.fixture(scope="module")
def run_engine(preload: Preload | None, tmp_path_factory: pytest.TempPathFactory) -> RunEngine:
    """Run one engine with all vectors, and give back what it printed."""
    folder = tmp_path_factory.mktemp("engines")
    tensors = folder / "vectors.safetensors"
    pairs = {(name, tokens) for name, tokens in PLAN if name is not None}
    save_file({f"{digest_of(*pair)}/vector": VECTORS[pair[0]].clone() for pair in pairs}, tensors)
    facts = {
        digest_of(name, tokens): {"steering": FORMS[name] | {"tokens": tokens}, "condition": None}
        for name, tokens in sorted(pairs)
    }

    def run(
        model: Path,
        rounds: list[list[dict[str, Any]]],
        *,
        is_steered: bool = True,
        engine: dict[str, Any] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        number = len(list(folder.glob("*.json")))
        job = folder / f"job-{number}.json"
        vectors = facts if is_steered else {}
        result = job.with_suffix(".result")
        document = {"model": str(model), "rounds": rounds, "engine": engine or {}, "tensors": str(tensors)}
        job.write_text(json.dumps(document | {"vectors": vectors, "is_steered": is_steered} | more))
        done = run_process(
            ["tests.e2e.steered_engine", str(job), str(result)],
            job.with_suffix(""),
            env=os.environ | ENVIRONMENT | ({} if preload is None else import_environment()),
            preload=preload,
        )
        assert done.returncode == 0, done.stderr[-6000:]
        written: dict[str, Any] = json.loads(result.read_text())
        return written

    return run


def network_of(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def assert_as_in_transformers(network: Any, answers: list[dict[str, Any]]) -> None:
    """Hold the answers to ``requests()`` against transformers."""
    for prompt, (name, tokens), answer in zip(PROMPTS, PLAN, answers, strict=True):
        ids = answer["token_ids"]
        assert len(ids) == NUM_TOKENS
        bare = expected = steering_oracle.logprobs(network, prompt, ids)
        if name is not None:
            first = len(prompt) - 1 if tokens == "answer" else 0
            with steering_oracle.hooks(network, VECTORS[name], FORMS[name], first):
                expected = steering_oracle.logprobs(network, prompt, ids)
            # Else nothing is shown.
            assert (expected - bare).abs().max() > 0.5
        assert expected.argmax(dim=-1).tolist() == ids, (name, tokens)
        for step, row in zip(answer["logprobs"], expected, strict=True):
            assert all(abs(value - float(row[int(i)])) < MAX_LOGPROB_GAP for i, value in step.items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_token_is_steered_as_in_transformers(
    run_engine: RunEngine, model_of: Callable[[str], Path], architecture: str
) -> None:
    model = model_of(architecture)
    result = run_engine(model, [requests(), requests()])
    cold, warm = result["rounds"]
    network = network_of(model)
    assert_as_in_transformers(network, cold)
    assert_as_in_transformers(network, warm)
    assert sum(answer["num_cached"] for answer in warm) > 0


def test_rows_without_a_vector_keep_every_bit(run_engine: RunEngine, model_of: Callable[[str], Path]) -> None:
    """Against an engine that has none of this."""
    model = model_of("llama")
    steered = run_engine(model, [requests()])["rounds"][0]
    bare = [{key: request[key] for key in ("prompt", "max_tokens")} for request in requests()]
    plain = run_engine(model, [bare], is_steered=False)["rounds"][0]
    for (name, _), one, other in zip(PLAN, steered, plain, strict=True):
        assert (one == other) == (name is None)


def test_a_vector_that_a_worker_has_lost_fails_its_requests_and_no_other(
    run_engine: RunEngine, model_of: Callable[[str], Path]
) -> None:
    model = model_of("llama")
    lost = digest_of("paper", "all")
    answers = run_engine(model, [requests()], lost=[lost])["rounds"][0]
    expected = run_engine(model, [requests()])["rounds"][0]
    for request, answer, other in zip(requests(), answers, expected, strict=True):
        if request.get("digest") == lost:
            # Not even the first token, which was computed without the vector.
            assert (answer["token_ids"], answer["finish_reason"]) == ([], "error")
        else:
            assert answer == other
