"""What tests of steering on engines without a server share: models, forms, requests, and the oracle."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests import steering_oracle
from tests.e2e.preload import Preload, import_environment, run_process

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
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 48}
#: Class of the model's configuration in transformers, and what its defaults would make too large or small.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "gemma2": ("Gemma2Config", _GEMMA),
    "gemma3": ("Gemma3TextConfig", _GEMMA),
}
_ABSOLUTE = {"scale": "absolute", "strength": 6.0, "opposed_gain": 0}
#: Strong enough to change every answer.
FORMS: dict[str, dict[str, Any]] = {
    "paper": {"site": "residual", **_ABSOLUTE, "renormalise": True},
    "authors": {"site": "mlp", "scale": "relative", "strength": 0.8, "opposed_gain": 1, "renormalise": True},
    "plain": {"site": "residual", **_ABSOLUTE, "renormalise": False},
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


def save_model(folder: Path, architecture: str) -> Path:
    """Write a random model of an architecture."""
    import transformers

    name, more = ARCHITECTURES[architecture]
    config = getattr(transformers, name)(
        **{"vocab_size": 512, "hidden_size": HIDDEN_SIZE, "intermediate_size": 192},
        **{"num_hidden_layers": NUM_LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"max_position_embeddings": 1024, "initializer_range": 0.15, "dtype": "float32"},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        **more,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def network_of(folder: Path) -> Any:
    """Return the model in transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def _vectors() -> dict[str, torch.Tensor]:
    """Return one vector a form, of unit rows; one has a layer that it leaves alone."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for name in FORMS:
        rows = torch.randn(NUM_LAYERS, HIDDEN_SIZE, generator=generator)
        made[name] = rows / rows.norm(dim=1, keepdim=True)
    made["paper"][1] = 0
    return made


VECTORS = _vectors()


def digest_of(name: str, tokens: str) -> str:
    """Return what stands for a digest."""
    return f"sha256:{name}-{tokens}"


def requests() -> list[dict[str, Any]]:
    """Return the requests of the plan."""
    made = []
    for prompt, (name, tokens) in zip(PROMPTS, PLAN, strict=True):
        request: dict[str, Any] = {"prompt": prompt, "max_tokens": NUM_TOKENS}
        if name is not None:
            request |= {"digest": digest_of(name, tokens), "from_answer": tokens == "answer"}
        made.append(request)
    return made


class Engines:
    """Runs engines that have the vectors of the plan, and others that a test brings."""

    def __init__(self, folder: Path, preload: Preload | None) -> None:
        self._folder = folder
        self._preload = preload
        self._models: dict[str, Path] = {}

    def model(self, architecture: str) -> Path:
        """Return a random model of an architecture."""
        if architecture not in self._models:
            self._models[architecture] = save_model(self._folder / architecture, architecture)
        return self._models[architecture]

    def run(
        self,
        model: Path,
        rounds: list[list[dict[str, Any]]],
        *,
        is_steered: bool = True,
        engine: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        vectors: Mapping[str, tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Send rounds of requests to an engine of its own, and return what it wrote down.

        Args:
            model: Folder of the model.
            rounds: The requests of a round are sent at once.
            is_steered: Whether the engine has our workers.
            engine: Arguments of vLLM's ``LLM``.
            environment: Variables beside those of ``ENVIRONMENT``.
            vectors: Digest -> facts and tensors; by default those of the plan.
            more: Of the job, see ``steered_engine``.
        """
        loaded = {} if not is_steered else _of_plan() if vectors is None else vectors
        job = self._folder / f"job-{len(list(self._folder.glob('*.json')))}.json"
        tensors, result = job.with_suffix(".safetensors"), job.with_suffix(".result")
        parts = ((digest, *item) for digest, (_, held) in loaded.items() for item in held.items())
        save_file({f"{digest}/{name}": tensor.clone() for digest, name, tensor in parts}, tensors)
        document = {"model": str(model), "rounds": rounds, "engine": engine or {}, "tensors": str(tensors)}
        facts = {digest: facts for digest, (facts, _) in loaded.items()}
        job.write_text(json.dumps(document | {"vectors": facts, "is_steered": is_steered} | more))
        imported = {} if self._preload is None else import_environment()
        done = run_process(
            ["tests.e2e.steered_engine", str(job), str(result)],
            job.with_suffix(""),
            env=os.environ | ENVIRONMENT | imported | (environment or {}),
            preload=self._preload,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        written: dict[str, Any] = json.loads(result.read_text())
        return written


def _of_plan() -> dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    pairs = {(name, tokens) for name, tokens in PLAN if name is not None}
    return {
        digest_of(name, tokens): ({"steering": FORMS[name] | {"tokens": tokens}}, {"vector": VECTORS[name]})
        for name, tokens in sorted(pairs)
    }


def assert_as_expected(expected: torch.Tensor, answer: Mapping[str, Any]) -> None:
    """Hold one answer against log-probabilities ``[tokens, vocabulary]`` of transformers."""
    assert expected.argmax(dim=-1).tolist() == answer["token_ids"]
    for step, row in zip(answer["logprobs"], expected, strict=True):
        assert all(abs(value - float(row[int(i)])) < MAX_LOGPROB_GAP for i, value in step.items())


def assert_as_in_transformers(
    network: Any, answers: list[dict[str, Any]], *, without: Collection[str] = ()
) -> None:
    """Hold the answers to ``requests()`` against transformers, but for those of the digests ``without``."""
    for prompt, (name, tokens), answer in zip(PROMPTS, PLAN, answers, strict=True):
        if name is not None and digest_of(name, tokens) in without:
            continue
        ids = answer["token_ids"]
        assert len(ids) == NUM_TOKENS
        bare = expected = steering_oracle.logprobs(network, prompt, ids)
        if name is not None:
            first = len(prompt) - 1 if tokens == "answer" else 0
            with steering_oracle.hooks(network, VECTORS[name], FORMS[name], first):
                expected = steering_oracle.logprobs(network, prompt, ids)
            # Else nothing is shown.
            assert (expected - bare).abs().max() > 0.5
        assert_as_expected(expected, answer)
