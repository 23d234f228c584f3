"""Prefixes side by side, each with the K/V that it was made with: a joined composition.

Nothing is computed anew: a later part's keys are rotated to the positions where it now lies, and no part has
read another. ``patches.compose`` is the other form, in which each part reads those before it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from patches.errors import ComposeError
from prefix_kernels import MOVABLE_ARCHITECTURES, Rotary, relocate, rotary_of_parameters


def rotary_of_network(network: Any, head_size: int) -> Rotary:
    """Read the rotation that moves the keys of a transformers model.

    Args:
        network: The model.
        head_size: D.

    Raises:
        ComposeError: Its keys can't be moved by one rotation.
    """
    architecture = type(network).__name__
    if architecture not in MOVABLE_ARCHITECTURES:
        known = ", ".join(sorted(MOVABLE_ARCHITECTURES))
        raise ComposeError(f"architecture: keys can be moved for {known}; got {architecture}")
    try:
        return rotary_of_parameters(network.config.rope_parameters, head_size)
    except (ValueError, KeyError) as error:
        raise ComposeError(f"the keys of this model can't be moved: {error}") from error


def join_kv(parts: Sequence[torch.Tensor], rotary: Rotary) -> torch.Tensor:
    """Lay prefixes one behind the other, differentiably.

    Args:
        parts: ``[L, 2, N_i, H_kv, D]`` each, keys after RoPE at positions 0 … N_i-1; at least one.
        rotary: The model's rotation.

    Returns:
        ``[L, 2, N, H_kv, D]``, N the sum; the parts' common dtype.
    """
    laid: list[torch.Tensor] = []
    num_before = 0
    for part in parts:
        keys, values = part.unbind(1)
        laid.append(torch.stack([relocate(keys, num_before, rotary), values], 1) if num_before else part)
        num_before += part.shape[2]
    return laid[0] if len(laid) == 1 else torch.cat(laid, dim=2)
