"""Writes prefixes into the KV caches of one worker, by the fastest way that is right for them.

The fused write of ``prefix_kernels`` serves caches whose layout it describes, on CUDA. Everything else goes
through the attention backend's own op, one call a layer: right for every layout and quantization, and what
the fused write is held against once, when the caches are bound. So a release of vLLM that lays its caches out
anew costs speed here, never an answer.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from vllm.model_executor.layers.attention import Attention

from prefix_kernels import (
    Choice,
    LayerCache,
    PagedCaches,
    PrefixWrite,
    Rotary,
    choose_implementation,
    joined,
    moved,
    write_prefix_kv,
)

logger = logging.getLogger(__name__)

#: Backends whose caches are [B, h_kv, block, 2 * D], K and V side by side, unpacked.
PLAIN_BACKENDS = frozenset({"FLASH_ATTN", "FLASHINFER", "FLEX_ATTENTION", "TRITON_ATTN"})

#: vLLM's names of cache dtypes -> what the caches store; other names are quantizations that only the backend
#: knows.
CACHE_DTYPES: dict[str, torch.dtype | None] = {
    **dict.fromkeys(("auto", "bfloat16", "float16", "half", "float32", "float")),
    **dict.fromkeys(("fp8", "fp8_e4m3"), torch.float8_e4m3fn),
    "fp8_e5m2": torch.float8_e5m2,
}


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """One attention layer of this rank: its place among the rank's layers, and its KV-cache group."""

    row: int
    group: int
    layer: Attention


class CacheWriter:
    """The caches of one rank and the way to write them; made whenever caches are bound."""

    def __init__(self, layers: Sequence[CachedLayer], dtype: torch.dtype) -> None:
        self._layers = tuple(layers)
        self._dtype = dtype
        self._caches = describe_caches(layers)
        #: How prefixes are written, and why so; fixed for the life of the caches.
        self.choice = choose_implementation(self._caches, has_backend_op=True)
        if self.choice.implementation != "backend":
            problem = self._difference(dtype)
            if problem is not None:
                self.choice = Choice("backend", problem)
        logger.info("prefixes are written by %s: %s", self.choice.implementation, self.choice.reason)

    def write(self, writes: Sequence[PrefixWrite], rotary: Rotary | None = None) -> None:
        """Write on the current stream; see ``prefix_kernels.write_prefix_kv``."""
        if self.choice.implementation == "backend":
            self._write_by_backend(moved(writes, rotary))
        else:
            assert self._caches is not None
            write_prefix_kv(self._caches, writes, rotary, implementation=self.choice.implementation)

    def clear(self, slots: Mapping[int, torch.Tensor]) -> None:
        """Write zeros into slots, by KV-cache group; by the backend's own op, as it hardly ever happens."""
        for cached in self._layers:
            if (chosen := slots.get(cached.group)) is not None:
                layer = cached.layer
                shape = (len(chosen), layer.num_kv_heads, layer.head_size)
                zeros = torch.zeros(shape, dtype=self._dtype, device=chosen.device)
                layer.impl.do_kv_cache_update(layer, zeros, zeros, layer.kv_cache, chosen)

    def _write_by_backend(self, writes: Sequence[PrefixWrite]) -> None:
        for group in {cached.group for cached in self._layers}:
            chosen = [write for write in writes if write.group == group and len(write.slots)]
            if not chosen:
                continue
            device = chosen[0].kv.device
            slots = torch.cat([write.slots for write in chosen]).to(device, non_blocking=True)
            for cached in self._layers:
                if cached.group == group:
                    layer = cached.layer
                    key, value = joined(chosen, cached.row)
                    layer.impl.do_kv_cache_update(layer, key, value, layer.kv_cache, slots)

    def _difference(self, dtype: torch.dtype) -> str | None:
        """Write the same by both ways into the null block; say how the results differ, None where they don't.

        vLLM keeps the first block for itself and never reads it; while caches are bound, nothing is served.
        """
        assert self._caches is not None
        caches, choice = self._caches, self.choice
        shape = (len(self._layers), 2, 2, caches.num_kv_heads, caches.head_size)
        kv = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(caches.device, dtype)
        slots = torch.tensor([1, caches.block_size - 1])
        writes = [PrefixWrite(kv, 0, slots, group) for group in range(len(caches.group_layers))]
        blocks = [layer.kv[0].view(torch.uint8) for layer in caches.layers]
        before = [block.clone() for block in blocks]
        try:
            self._write_by_backend(writes)
            expected = [block.clone() for block in blocks]
            _restore(blocks, before)
            self.write(writes)
            if all(torch.equal(old, new) for old, new in zip(before, expected, strict=True)):
                return "the backend's own op wrote nothing that could be compared"
            if not all(torch.equal(a, b) for a, b in zip(blocks, expected, strict=True)):
                return f"{choice.implementation} would write otherwise than the attention backend does"
        except Exception as error:
            logger.exception(
                "writing prefixes by %s failed; the attention backend does it", choice.implementation
            )
            return f"{choice.implementation} failed: {type(error).__name__}"
        finally:
            _restore(blocks, before)
        return None


def _restore(blocks: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> None:
    for block, old in zip(blocks, before, strict=True):
        block.copy_(old)


def describe_caches(layers: Sequence[CachedLayer]) -> PagedCaches | None:
    """Describe the bound caches for the fused write; None where they are not plain, or not alike."""
    described = [_describe(cached) for cached in layers]
    found = tuple(layer for layer in described if layer is not None)
    if not found or len(found) < len(layers):
        return None
    if len({(layer.kv.shape[1:], layer.kv.dtype, layer.kv.device) for layer in found}) > 1:
        return None
    return PagedCaches(found)


def _describe(cached: CachedLayer) -> LayerCache | None:
    layer = cached.layer
    kv = layer.kv_cache
    if layer.attn_backend.get_name() not in PLAIN_BACKENDS or layer.kv_cache_dtype not in CACHE_DTYPES:
        return None
    if kv.ndim != 4 or kv.shape[1] != layer.num_kv_heads or kv.shape[3] != 2 * layer.head_size:
        return None
    stored = CACHE_DTYPES[layer.kv_cache_dtype]
    if stored is None:
        return LayerCache(kv, cached.group)
    return LayerCache(kv.view(stored), cached.group, layer._k_scale, layer._v_scale)
