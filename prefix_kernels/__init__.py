"""Tensor code for prefixes: writing them into paged KV caches, moving keys, and which part a rank holds.

Torch and Triton only; no vLLM and no patch files here. Axis names: L layers, N virtual tokens, H_kv KV heads
of the whole model, h_kv KV heads of one tensor-parallel rank, D head size, B blocks, T tokens of one step's
writes.
"""

from prefix_kernels.dispatch import Choice, Implementation, choose_implementation, write_prefix_kv
from prefix_kernels.layout import LayerCache, PagedCaches, PrefixWrite
from prefix_kernels.rotary import MOVABLE_ARCHITECTURES, Rotary, rotary_of_parameters
from prefix_kernels.shard import rank_heads, shard_prefix_kv
from prefix_kernels.slots import slot_mapping_of_span
from prefix_kernels.torch_ops import joined, moved, relocate

__all__ = [
    "MOVABLE_ARCHITECTURES",
    "Choice",
    "Implementation",
    "LayerCache",
    "PagedCaches",
    "PrefixWrite",
    "Rotary",
    "choose_implementation",
    "joined",
    "moved",
    "rank_heads",
    "relocate",
    "rotary_of_parameters",
    "shard_prefix_kv",
    "slot_mapping_of_span",
    "write_prefix_kv",
]
