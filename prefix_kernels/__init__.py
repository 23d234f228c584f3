"""Tensor code for prefixes: where a prefix's K/V goes in a paged cache, and which part of it a rank holds.

Torch only; no vLLM and no patch files here. Axis names: L layers, N virtual tokens, H_kv KV heads of the
whole model, h_kv KV heads of one tensor-parallel rank, D head size.
"""

from prefix_kernels.shard import rank_heads, shard_prefix_kv
from prefix_kernels.slots import slot_mapping_of_span

__all__ = ["rank_heads", "shard_prefix_kv", "slot_mapping_of_span"]
