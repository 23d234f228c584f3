"""The part of a prefix that one rank of a tensor- and pipeline-parallel group holds."""

from collections.abc import Sequence

import torch


def rank_heads(num_kv_heads: int, tp_rank: int, tp_size: int) -> range:
    """Return the KV heads of a tensor-parallel rank.

    Heads are split evenly; with more ranks than heads each head is replicated on ``tp_size / num_kv_heads``
    neighbouring ranks, as vLLM's ``QKVParallelLinear`` lays them out.

    Raises:
        ValueError: neither number divides the other, or the rank is outside the group.
    """
    if not 0 <= tp_rank < tp_size:
        raise ValueError(f"tp_rank: expected 0 <= tp_rank < {tp_size}, got {tp_rank}")
    if num_kv_heads % tp_size == 0:
        per_rank = num_kv_heads // tp_size
        return range(tp_rank * per_rank, (tp_rank + 1) * per_rank)
    if tp_size % num_kv_heads == 0:
        head = tp_rank // (tp_size // num_kv_heads)
        return range(head, head + 1)
    raise ValueError(f"num_kv_heads: {num_kv_heads} heads cannot be spread over {tp_size} ranks")


def shard_prefix_kv(kv: torch.Tensor, layers: Sequence[int], heads: range) -> torch.Tensor:
    """Copy out a rank's layers and heads.

    Args:
        kv: ``[L, 2, N, H_kv, D]``, any dtype and device; not changed.
        layers: indices into L of the layers that this pipeline stage runs, in its order.
        heads: the rank's KV heads, from ``rank_heads``.

    Returns:
        ``[len(layers), 2, N, len(heads), D]``, contiguous, same dtype and device.

    Semantics: ``out[i, s, n, h, d] = kv[layers[i], s, n, heads[h], d]``.
    """
    index = torch.tensor(layers, dtype=torch.long, device=kv.device)
    return kv[:, :, :, heads.start : heads.stop].index_select(0, index).contiguous()
