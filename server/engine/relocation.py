"""Whether, and how, this model's stored keys can be moved to other positions.

A joined composition lays a prefix behind another one, so its keys have to be rotated. That is right only
where position enters a key by one rotary embedding, the same in every layer, whose angles depend on nothing
but the position. Two things vouch for it: the architecture is one of those that tests hold against
transformers, and the rotation read from the configuration is the one in the tables of the loaded model.
Everything else is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

from prefix_kernels import MOVABLE_ARCHITECTURES, Rotary, rotary_of_parameters

#: Positions at which configuration and tables are compared, as far as the tables reach.
_PROBES = (1, 2, 17, 256, 2047)

#: Tables in bfloat16 hold a cosine to about three digits.
_TOLERANCE = 1e-2


class KeysNotMovable(ValueError):
    """Position enters the keys of this model in a way that one rotation does not undo."""


def rotary_of_model(
    architecture: str, parameters: Mapping[str, Any] | None, head_size: int, network: nn.Module
) -> Rotary:
    """Return the rotation that moves the keys of the loaded model.

    Args:
        architecture: as the model's configuration names it.
        parameters: ``rope_parameters`` of the configuration.
        head_size: D.
        network: the loaded model, or this rank's part of it.

    Raises:
        KeysNotMovable: it is not known to be right for this model.
    """
    if architecture not in MOVABLE_ARCHITECTURES:
        known = ", ".join(sorted(MOVABLE_ARCHITECTURES))
        raise KeysNotMovable(f"architecture: expected one of {known}, got {architecture}")
    try:
        rotary = rotary_of_parameters(parameters or {}, head_size)
    except (ValueError, KeyError) as error:
        raise KeysNotMovable(str(error)) from error
    tables = [module for module in network.modules() if isinstance(module, RotaryEmbeddingBase)]
    if not tables:
        raise KeysNotMovable("model: expected a rotary embedding, it has none")
    _require_same_rotation(rotary, tables)
    return rotary


def _require_same_rotation(rotary: Rotary, tables: Sequence[RotaryEmbeddingBase]) -> None:
    for table in tables:
        if table.rotary_dim != rotary.rotary_dim or not table.is_neox_style:
            raise KeysNotMovable(
                f"rotary embedding: expected halves of {rotary.rotary_dim} elements, got {table.rotary_dim} "
                f"({'halves' if table.is_neox_style else 'neighbours'})"
            )
        stored = table.cos_sin_cache.float().cpu()
        # Yarn scales cosines and sines alike; at position 0 every cosine is that scale.
        scale = float(stored[0, 0])
        for position in _PROBES:
            if position < len(stored) and not torch.allclose(
                stored[position] / scale, rotary.cos_sin(position).flatten(), atol=_TOLERANCE
            ):
                raise KeysNotMovable(f"rotary embedding: its angles at position {position} are others")
