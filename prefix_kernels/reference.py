"""The operations in plain torch and float32, one token at a time: what the fast ones are tested against."""

from collections.abc import Sequence

import torch

from prefix_kernels.checks import check_caches, check_writes
from prefix_kernels.layout import FP8_DTYPES, LayerCache, PagedCaches, PrefixWrite
from prefix_kernels.rotary import Rotary


def write_prefix_kv_reference(
    caches: PagedCaches, writes: Sequence[PrefixWrite], rotary: Rotary | None = None
) -> None:
    """See ``write_prefix_kv``."""
    check_caches(caches)
    check_writes(caches, writes, rotary)
    for write in writes:
        for row, layer in enumerate(caches.layers):
            if layer.group != write.group:
                continue
            for i, slot in enumerate(write.slots.tolist()):
                key, value = write.kv[row, :, write.first + i]
                if write.shift:
                    assert rotary is not None
                    key = relocate_reference(key, write.shift, rotary)
                _store(layer, slot, key, value)


def _store(layer: LayerCache, slot: int, key: torch.Tensor, value: torch.Tensor) -> None:
    block_size, head_size = layer.kv.shape[2], layer.kv.shape[3] // 2
    target = layer.kv[slot // block_size, :, slot % block_size]
    target[:, :head_size] = quantized(key, layer.k_scale, layer.kv.dtype)
    target[:, head_size:] = quantized(value, layer.v_scale, layer.kv.dtype)


def quantized(x: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Return ``x / scale`` in ``dtype``, saturated as hardware does for fp8; a plain cast for others."""
    if dtype not in FP8_DTYPES:
        return x.to(dtype)
    assert scale is not None
    limit = torch.finfo(dtype).max
    return (x.float() / scale).clamp(-limit, limit).to(dtype)


def relocate_reference(keys: torch.Tensor, shift: int, rotary: Rotary) -> torch.Tensor:
    """See ``relocate``; pair by pair."""
    cos, sin = rotary.cos_sin(shift).to(keys.device)
    out = keys.float().clone()
    half = rotary.rotary_dim // 2
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if rotary.is_interleaved else (i, i + half)
        x, y = keys[..., a].float(), keys[..., b].float()
        out[..., a] = x * cos[i] - y * sin[i]
        out[..., b] = y * cos[i] + x * sin[i]
    return out.to(keys.dtype)
