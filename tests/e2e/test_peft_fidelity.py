"""Fidelity of PEFT adapters: imported by `policypatch compile --peft` and served, they answer as PEFT does.

The reference is PEFT's own `generate` on the folder that PEFT itself saved.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    CartridgeConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
    initialize_kv_prefix_from_text,
)

from patches.format import read_patch
from patches.model import LoadedModel, load_model
from server.cli import main

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("demo"),
    pytest.mark.feature("adapters imported from PEFT"),
    # PEFT says so of the ids that transformers makes for its own loop; with embeddings it numbers anew.
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
]

MAX_LOGPROB_GAP = 1e-4
NUM_TOKENS = 16

TEXT = """\
The harbour master writes everything down: the names of the ships, their cargo, the weather, and \
what the gulls had for breakfast. He is friendly to everybody who asks him a question, and he \
answers in whole sentences, except on Sundays, when he rows out to the lighthouse to play chess with \
its keeper."""

#: Of one length each, so that PEFT can take them as one batch without padding.
PROMPTS = [
    "The capital of France is",
    "My dog likes to eat",
    "Write a poem about rain",
    "A ship is larger than",
]


def like_embeddings(adapter: Any, model: LoadedModel) -> None:
    """Learned embeddings are about as large as those of tokens."""
    weight = adapter.prompt_encoder["default"].embedding.weight.data
    weight.copy_(torch.randn(weight.shape) * model.network.get_input_embeddings().weight.std())


def like_read_text(adapter: Any, model: LoadedModel) -> None:
    """Learned K/V is about what the model computes for text."""
    encoder = adapter.prompt_encoder["default"]
    num_tokens = encoder.embedding.weight.shape[0]
    ids = torch.tensor([model.tokenizer(TEXT)["input_ids"][:num_tokens]])
    with torch.no_grad():
        cache = model.network(ids, use_cache=True).past_key_values
    pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    # [L, 2, H, N, D] -> [N, L·2·H·D], PEFT's order.
    rows = torch.stack(pairs).permute(3, 0, 1, 2, 4).reshape(num_tokens, -1)
    encoder.embedding.weight.data.copy_(rows + 0.05 * rows.std() * torch.randn(rows.shape))


def from_text(adapter: Any, model: LoadedModel) -> None:
    """As PEFT itself initializes a Cartridge, then as training might have moved it."""
    initialize_kv_prefix_from_text(adapter, model.tokenizer, text=TEXT)
    weight = adapter.prompt_encoder["default"].trainable_embedding.data
    weight.add_(0.05 * weight.std() * torch.randn(weight.shape))


def as_constructed(adapter: Any, model: LoadedModel) -> None:
    """Random layers behind a reparametrisation."""


def common(num_tokens: int) -> dict[str, Any]:
    return {"task_type": "CAUSAL_LM", "num_virtual_tokens": num_tokens}


#: name -> PEFT's configuration, and what gives the adapter its weights.
ADAPTERS: dict[str, tuple[Any, Callable[[Any, LoadedModel], None]]] = {
    "prompt-tuning": (PromptTuningConfig(**common(20)), like_embeddings),
    "p-tuning": (PromptEncoderConfig(encoder_hidden_size=64, **common(16)), as_constructed),
    "prefix-tuning": (PrefixTuningConfig(**common(33)), like_read_text),
    "prefix-tuning-projected": (
        PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=64, **common(16)),
        as_constructed,
    ),
    "cartridge": (CartridgeConfig(num_frozen_tokens=1, **common(48)), from_text),
}


@pytest.fixture(scope="module")
def model(demo_model: Path) -> LoadedModel:
    """A copy of this module's own: PEFT writes into the model that it wraps."""
    return load_model(demo_model, dtype="float32")


@pytest.fixture(scope="module")
def prompts(model: LoadedModel) -> list[list[int]]:
    assert model.tokenizer is not None
    return [model.tokenizer(prompt)["input_ids"][:4] for prompt in PROMPTS]


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest, model: LoadedModel, tmp_path: Path) -> tuple[str, Path]:
    """Name and folder of a saved adapter."""
    config, fill = ADAPTERS[request.param]
    torch.manual_seed(0)
    made = get_peft_model(model.network, config)
    fill(made, model)
    made.save_pretrained(str(tmp_path / "adapter"))
    return request.param, tmp_path / "adapter"


def test_an_imported_adapter_is_served_as_peft_generates(
    adapter: tuple[str, Path],
    model: LoadedModel,
    prompts: list[list[int]],
    shared_server: Any,
    demo_model: Path,
    generate: Any,
) -> None:
    name, folder = adapter
    label = ["--name", name, "--version", "1.0.0", "--dtype", "float32", "-o", str(shared_server.patches)]
    assert main(["compile", "--model", str(demo_model), "--peft", str(folder), *label]) == 0
    patch = read_patch(shared_server.patches / f"{name}-1.0.0.safetensors")
    shared_server.wait_for_digest(name, patch.digest)
    requests = [{"prompt": ids, "patch": name, "max_tokens": NUM_TOKENS} for ids in prompts]
    answers = shared_server.ask_together(requests)
    unpatched = shared_server.ask_together([{**request, "patch": None} for request in requests])
    expected = generate(PeftModel.from_pretrained(model.network, str(folder)).eval(), prompts, NUM_TOKENS)
    for answer, reference in zip(answers, expected, strict=True):
        assert answer.token_ids == reference.token_ids
        assert answer.logprob_gap(reference) < MAX_LOGPROB_GAP
    assert [a.logprobs[0] for a in answers] != [a.logprobs[0] for a in unpatched]
