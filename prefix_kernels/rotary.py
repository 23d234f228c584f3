"""Rotary position embedding as far as moving keys needs it: angles per position.

A key that is stored after RoPE at position p becomes the key at p + s by one more rotation, by the angles of
s. A scaling of cos and sin (yarn's attention factor) is in the stored key already and stays.
Scalings whose angles depend on the length of the sequence (dynamic NTK, longrope) cannot be moved this way.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

#: Decoders that rotate the keys of every layer, and do nothing else to them that depends on position; tests
#: hold each of them against transformers.
MOVABLE_ARCHITECTURES = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)

Frequencies = Callable[[torch.Tensor, Mapping[str, Any], float], torch.Tensor]


@dataclass(frozen=True)
class Rotary:
    """How a model rotates its keys, the same in every layer."""

    #: ``[rotary_dim / 2]`` float32 on the CPU: radians per position.
    inv_freq: torch.Tensor
    #: Pairs are neighbours (2i, 2i + 1), as in GPT-J; else halves (i, i + rotary_dim / 2), as in GPT-NeoX and
    #: Llama.
    is_interleaved: bool = False

    @property
    def rotary_dim(self) -> int:
        """The first so many elements of a head are rotated; the rest carries no position."""
        return 2 * len(self.inv_freq)

    def cos_sin(self, shift: int) -> torch.Tensor:
        """Return ``[2, rotary_dim / 2]`` float32: cos and sin of the angles of ``shift`` positions.

        Computed in float64: in float32 the angle itself is off by 1e-4 at some thousand positions.
        """
        angles = self.inv_freq.double() * shift
        return torch.stack([angles.cos(), angles.sin()]).float()


def rotary_of_parameters(parameters: Mapping[str, Any], head_size: int) -> Rotary:
    """Read the rotary parameters of a model's configuration (``rope_parameters`` in transformers' words).

    Args:
        parameters: ``rope_theta``, ``rope_type`` ("default" where missing), ``partial_rotary_factor`` and
        what
            the type needs; flat, so the same for all layers.
        head_size: D.

    Raises:
        ValueError: no rotation, one per kind of layer, or a type whose angles depend on the sequence's
        length.
    """
    if "rope_theta" not in parameters:
        raise ValueError(f"rope: expected one rope_theta for all layers, got {sorted(parameters)}")
    rope_type = parameters.get("rope_type", "default")
    if rope_type not in SCALINGS:
        raise ValueError(f"rope_type: expected one of {', '.join(SCALINGS)}, got {rope_type!r}")
    rotary_dim = int(head_size * float(parameters.get("partial_rotary_factor", 1.0)))
    if rotary_dim % 2 or not 0 < rotary_dim <= head_size:
        raise ValueError(
            f"partial_rotary_factor: expected an even rotary_dim up to {head_size}, got {rotary_dim}"
        )
    theta = float(parameters["rope_theta"])
    inv_freq = 1.0 / theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    return Rotary(SCALINGS[rope_type](inv_freq, parameters, theta))


def _default(inv_freq: torch.Tensor, parameters: Mapping[str, Any], theta: float) -> torch.Tensor:
    return inv_freq


def _linear(inv_freq: torch.Tensor, parameters: Mapping[str, Any], theta: float) -> torch.Tensor:
    return inv_freq / float(parameters["factor"])


def _llama3(inv_freq: torch.Tensor, parameters: Mapping[str, Any], theta: float) -> torch.Tensor:
    """Long wavelengths are stretched by the factor, short ones kept, those in between interpolated."""
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    turns = float(parameters["original_max_position_embeddings"]) * inv_freq / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return inv_freq * kept + inv_freq / float(parameters["factor"]) * (1 - kept)


def _yarn(inv_freq: torch.Tensor, parameters: Mapping[str, Any], theta: float) -> torch.Tensor:
    """A linear ramp over the dimensions, between those that turn often and those that hardly turn."""
    half = len(inv_freq)
    length = float(parameters["original_max_position_embeddings"])

    def dimension(num_turns: float) -> float:
        return half * math.log(length / (num_turns * 2 * math.pi)) / math.log(theta)

    low = dimension(float(parameters.get("beta_fast") or 32))
    high = dimension(float(parameters.get("beta_slow") or 1))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    if low == high:
        high += 0.001
    stretched = ((torch.arange(half, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return inv_freq * (1 - stretched) + inv_freq / float(parameters["factor"]) * stretched


#: ``rope_type`` -> from unscaled frequencies to the model's.
SCALINGS: dict[str, Frequencies] = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
