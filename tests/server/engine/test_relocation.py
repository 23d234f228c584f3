"""Every architecture whose keys may be moved: position enters them by the rotation alone, in every layer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from prefix_kernels import MOVABLE_ARCHITECTURES, relocate, rotary_of_parameters

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "LlamaForCausalLM": LlamaConfig,
    "MistralForCausalLM": MistralConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
}
SHIFT, NUM_TOKENS = 37, 6


def test_every_architecture_that_may_be_moved_is_tried_here() -> None:
    assert set(CONFIGS) == MOVABLE_ARCHITECTURES


@pytest.mark.parametrize("architecture", CONFIGS)
def test_moved_keys_are_those_of_the_model_at_later_positions(architecture: str) -> None:
    torch.manual_seed(0)
    config = CONFIGS[architecture](**SIZES)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    assert type(network).__name__ == architecture
    ids = torch.randint(64, (1, NUM_TOKENS))

    def cache(first: int) -> Any:
        positions = torch.arange(first, first + NUM_TOKENS)[None]
        with torch.no_grad():
            return network(ids, position_ids=positions, use_cache=True).past_key_values

    rotary = rotary_of_parameters(config.rope_parameters, SIZES["head_dim"])
    for near, far in zip(cache(0).layers, cache(SHIFT).layers, strict=True):
        assert not torch.allclose(near.keys, far.keys, atol=1e-2)
        torch.testing.assert_close(relocate(near.keys, SHIFT, rotary), far.keys, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(near.values, far.values, atol=2e-5, rtol=1e-4)
