"""The operations in torch: one indexed copy per layer and side, however many prefixes there are.

Runs on every device. On a GPU it stands in where Triton is missing; the launches of 2 L copies are its cost.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from prefix_kernels.checks import check_caches, check_writes
from prefix_kernels.layout import LayerCache, PagedCaches, PrefixWrite
from prefix_kernels.reference import quantized
from prefix_kernels.rotary import Rotary


def write_prefix_kv_torch(
    caches: PagedCaches, writes: Sequence[PrefixWrite], rotary: Rotary | None = None
) -> None:
    """See ``write_prefix_kv``."""
    check_caches(caches)
    check_writes(caches, writes, rotary)
    writes = moved(writes, rotary)
    for group, rows in enumerate(caches.group_layers):
        chosen = [write for write in writes if write.group == group and len(write.slots)]
        if not chosen:
            continue
        slots = torch.cat([write.slots for write in chosen]).to(caches.device, non_blocking=True)
        blocks, offsets = slots // caches.block_size, slots % caches.block_size
        for row in rows:
            keys, values = joined(chosen, row)
            _scatter(caches.layers[row], blocks, offsets, keys, values)


def moved(writes: Sequence[PrefixWrite], rotary: Rotary | None) -> list[PrefixWrite]:
    """Return the same writes with their keys moved already, hence without shifts."""
    return [write if not write.shift else _moved(write, rotary) for write in writes]


def _moved(write: PrefixWrite, rotary: Rotary | None) -> PrefixWrite:
    assert rotary is not None
    key, value = write.kv[:, :, write.first : write.first + len(write.slots)].unbind(1)
    kv = torch.stack([relocate(key, write.shift, rotary), value], dim=1)
    return replace(write, kv=kv, first=0, shift=0)


def joined(writes: Sequence[PrefixWrite], row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return K and V of one layer for all writes, one after the other: ``[T, h_kv, D]`` each.

    Args:
        writes: at least one, without shifts. A single one, the common case, is not copied.
        row: the layer.
    """
    pieces = [w.kv[row, :, w.first : w.first + len(w.slots)] for w in writes]
    key_value = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
    return key_value[0], key_value[1]


def _scatter(
    layer: LayerCache, blocks: torch.Tensor, offsets: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> None:
    head_size = keys.shape[-1]
    paged = layer.kv.transpose(1, 2)  # [B, block, h_kv, 2 * D]
    for side, x, scale in ((0, keys, layer.k_scale), (head_size, values, layer.v_scale)):
        target = paged[..., side : side + head_size]
        stored = quantized(x, scale, target.dtype)
        if target.dtype.itemsize == 1:
            # Indexed copies are not written for fp8; its bytes are as good.
            target, stored = target.view(torch.uint8), stored.view(torch.uint8)
        target[blocks, offsets] = stored


def relocate(keys: torch.Tensor, shift: int, rotary: Rotary) -> torch.Tensor:
    """Move keys that are stored after RoPE by ``shift`` positions.

    Args:
        keys: ``[..., D]``, any float dtype, not changed; rotated in float32.
        shift: positions, backwards where negative.
        rotary: the model's rotation.

    Returns:
        A new tensor of the same shape and dtype.

    Semantics: ``relocate(rope(k, p), s) == rope(k, p + s)`` up to rounding.
    """
    cos, sin = rotary.cos_sin(shift).to(keys.device)
    head, tail = keys[..., : rotary.rotary_dim].float(), keys[..., rotary.rotary_dim :].float()
    if rotary.is_interleaved:
        x, y = head[..., 0::2], head[..., 1::2]
        head = torch.stack([x * cos - y * sin, y * cos + x * sin], dim=-1).flatten(-2)
    else:
        x, y = head.chunk(2, dim=-1)
        head = torch.cat([x * cos - y * sin, y * cos + x * sin], dim=-1)
    return torch.cat([head, tail], dim=-1).to(keys.dtype)
