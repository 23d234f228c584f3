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
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from patches.compile import compile_token_ids
from patches.label import Label
from patches.model import load_model

pytestmark = [pytest.mark.e2e, pytest.mark.server("own", why="models of other kinds")]

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


def _sliding_window() -> Any:
    # Shorter than the prefix of 75, whose beginning no token of the prompt sees.
    config = MistralConfig(
        num_hidden_layers=2, num_key_value_heads=2, sliding_window=32, head_dim=32, **SIZES
    )
    return MistralForCausalLM(config)


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


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_multi_query, marks=pytest.mark.feature("multi-query attention (Llama)")),
        pytest.param(_multi_head_with_bias, marks=pytest.mark.feature("multi-head attention, bias (Qwen2)")),
        pytest.param(_sliding_window, marks=pytest.mark.feature("sliding window (Mistral)")),
        pytest.param(
            _hybrid_sliding_window,
            marks=pytest.mark.feature("full attention beside sliding windows (Gemma 3)"),
        ),
    ],
)
def test_a_prefix_answers_as_its_tokens_do(
    make: Callable[[], Any], start_module_server: Any, demo_model: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    assert_faithful(make(), start_module_server, demo_model, tmp_path)


def assert_faithful(network: Any, start: Any, demo_model: Path, folder: Path, *flags: str) -> None:
    """Serve a model; a patch has to answer as the tokens that it was made from do on the same server."""
    network.float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo_model).save_pretrained(folder)
    patch = compile_token_ids(load_model(folder, dtype="float32"), PREFIX, Label("prefix", "1.0.0"))
    server = start(folder, "--dtype", "float32", "--max-model-len", "512", *flags)
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


@pytest.mark.feature("FP8 KV cache")
@pytest.mark.skipif(
    not {"avx512f", "amx_tile"} & set(Path("/proc/cpuinfo").read_text().split())
    and not torch.cuda.is_available(),
    reason="vLLM has it on CPUs with AVX-512 or AMX and on GPUs, this machine has none of them",
)
def test_a_prefix_is_quantized_as_its_tokens_are(
    start_module_server: Any, demo_model: Path, tmp_path: Path
) -> None:
    """Of one layer: its K/V depends on no other layer's attention, so nothing but the write can differ."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, num_key_value_heads=2, **SIZES))
    assert_faithful(model, start_module_server, demo_model, tmp_path, "--kv-cache-dtype", "fp8")
