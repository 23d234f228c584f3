"""Moving keys: against transformers' own rotary embeddings, in each scaling that can be moved."""

from typing import Any

import pytest
import torch

from prefix_kernels import Rotary, relocate, rotary_of_parameters
from prefix_kernels.reference import relocate_reference

HEAD_SIZE = 64
PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "partial": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "linear": {"rope_type": "linear", "rope_theta": 500000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn-untruncated": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
        "original_max_position_embeddings": 2048,
    },
}


def rope_of_transformers(parameters: dict[str, Any], keys: torch.Tensor, first: int) -> torch.Tensor:
    """Rotate ``[T, H, D]`` unrotated keys at positions from ``first`` on, as a model of transformers does."""
    from transformers import GPTNeoXConfig, LlamaConfig
    from transformers.models.gpt_neox import modeling_gpt_neox
    from transformers.models.llama import modeling_llama

    positions = torch.arange(first, first + len(keys))[None]
    shape = {"hidden_size": 4 * HEAD_SIZE, "num_attention_heads": 4, "max_position_embeddings": 8192}
    x = keys.transpose(0, 1)[None]  # [1, H, T, D]
    if "partial_rotary_factor" in parameters:
        neox_config = GPTNeoXConfig(**shape, rope_parameters=dict(parameters))
        cos, sin = modeling_gpt_neox.GPTNeoXRotaryEmbedding(neox_config)(x, positions)
        rotated = modeling_gpt_neox.apply_rotary_pos_emb(x, x, cos, sin)[1]
    else:
        config = LlamaConfig(**shape, rope_parameters=dict(parameters))
        cos, sin = modeling_llama.LlamaRotaryEmbedding(config)(x, positions)
        rotated = modeling_llama.apply_rotary_pos_emb(x, x, cos, sin)[1]
    result: torch.Tensor = rotated[0].transpose(0, 1)
    return result


@pytest.mark.parametrize("shift", [1, 48, 1000])
@pytest.mark.parametrize("kind", PARAMETERS)
def test_a_moved_key_is_the_key_of_the_new_position(kind: str, shift: int) -> None:
    keys = torch.randn(7, 2, HEAD_SIZE, generator=torch.Generator().manual_seed(3))
    here = rope_of_transformers(PARAMETERS[kind], keys, 0)
    there = rope_of_transformers(PARAMETERS[kind], keys, shift)
    moved = relocate(here, shift, rotary_of_parameters(PARAMETERS[kind], HEAD_SIZE))
    # transformers takes cos and sin of float32 angles; at position 1000 those are off by up to 3e-5.
    torch.testing.assert_close(moved, there, rtol=0, atol=2e-6 + 2e-7 * shift)
    assert (here - there).abs().max() > 0.1


@pytest.mark.parametrize("kind", PARAMETERS)
def test_frequencies_are_those_of_transformers(kind: str) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=4 * HEAD_SIZE, num_attention_heads=4, max_position_embeddings=8192)
    config.rope_parameters = dict(PARAMETERS[kind])
    rope_type = PARAMETERS[kind]["rope_type"]
    if kind == "partial":
        config.head_dim = HEAD_SIZE // 2
    if rope_type == "default":
        expected, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected, _ = ROPE_INIT_FUNCTIONS[rope_type](config)
    torch.testing.assert_close(rotary_of_parameters(PARAMETERS[kind], HEAD_SIZE).inv_freq, expected)


@pytest.mark.parametrize("is_interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_fast_rotation_is_as_the_reference(lab: Any, dtype: torch.dtype, is_interleaved: bool) -> None:
    keys = torch.randn(5, 2, HEAD_SIZE, generator=torch.Generator().manual_seed(4)).to(dtype)
    rotary = Rotary(1.0 / 100 ** (torch.arange(0, 48, 2) / 48), is_interleaved)
    expected = relocate_reference(keys, 77, rotary)
    torch.testing.assert_close(relocate(keys, 77, rotary), expected, **lab.TOLERANCES[dtype])
    assert torch.equal(expected[..., 48:], keys[..., 48:])


def test_moving_there_and_back_changes_nothing() -> None:
    keys = torch.randn(5, 2, HEAD_SIZE, generator=torch.Generator().manual_seed(5))
    rotary = rotary_of_parameters(PARAMETERS["llama3"], HEAD_SIZE)
    torch.testing.assert_close(relocate(relocate(keys, 500, rotary), -500, rotary), keys, rtol=0, atol=2e-6)


def test_neighbours_are_rotated_as_complex_numbers() -> None:
    rotary = Rotary(torch.tensor([0.5, 0.01]), is_interleaved=True)
    keys = torch.randn(3, 4, generator=torch.Generator().manual_seed(6))
    turned = torch.view_as_complex(keys.view(3, 2, 2)) * torch.polar(torch.ones(2), rotary.inv_freq * 3)
    torch.testing.assert_close(relocate(keys, 3, rotary), torch.view_as_real(turned).flatten(1))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "expected one rope_theta"),
        ({"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e6}}, "one rope_theta"),
        (
            {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0},
            "rope_type: expected one of default, .*'dynamic'",
        ),
        ({"rope_theta": 1e4, "rope_type": "longrope"}, "'longrope'"),
        ({"rope_theta": 1e4, "partial_rotary_factor": 1.5}, "an even rotary_dim up to 64, got 96"),
    ],
)
def test_rotations_that_cannot_be_moved_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rotary_of_parameters(parameters, HEAD_SIZE)
