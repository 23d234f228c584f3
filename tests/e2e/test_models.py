"""Fidelity over attention variants: a compiled prefix answers as its tokens in front of the prompt do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from patches.compile import compile_token_ids
from patches.label import Label
from patches.model import load_model

pytestmark = pytest.mark.e2e

SIZES = {
    "vocab_size": 49152,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
PREFIX = [(37 * i) % 40000 + 10 for i in range(75)]
PROMPTS = [[(91 * i + j) % 40000 + 10 for i in range(length)] for j, length in enumerate([1, 9, 40, 130])]


def _multi_query() -> Any:
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, num_key_value_heads=1, **SIZES))


def _multi_head_with_bias() -> Any:
    return Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=2, num_key_value_heads=4, **SIZES))


def _hybrid_sliding_window() -> Any:
    # A window of 32 is shorter than the prefix of 75: the sliding layers keep only its end.
    config = Gemma3TextConfig(
        num_hidden_layers=3,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=32,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        **SIZES,
    )
    return Gemma3ForCausalLM(config)


def _steps(response: Any) -> list[tuple[str, float]]:
    assert response.status_code == 200, response.text
    logprobs = response.json()["choices"][0]["logprobs"]
    return list(zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True))


@pytest.mark.parametrize("make", [_multi_query, _multi_head_with_bias, _hybrid_sliding_window])
def test_a_prefix_answers_as_its_tokens_do(
    make: Callable[[], Any], start_server: Any, demo_model: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    make().float().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(demo_model).save_pretrained(tmp_path)
    patch = compile_token_ids(load_model(tmp_path, dtype="float32"), PREFIX, Label("prefix", "1.0.0"))
    server = start_server(tmp_path, "--dtype", "float32", "--max-model-len", "512")
    server.wait_ready()
    server.install(patch)
    options = {"max_tokens": 24, "ignore_eos": True, "logprobs": 0}
    for prompt in PROMPTS:
        as_text = _steps(server.complete(PREFIX + prompt, **options))
        for _ in ("cold", "warm"):
            as_patch = _steps(server.complete(prompt, patch="prefix", **options))
            assert [token for token, _ in as_patch] == [token for token, _ in as_text]
            for (_, left), (_, right) in zip(as_patch, as_text, strict=True):
                assert left == pytest.approx(right, abs=1e-4)
    server.terminate()
