"""Slots of a paged KV cache, counted over the whole cache: ``slot = block_id * block_size + offset``."""

from collections.abc import Sequence

import torch


def slot_mapping_of_span(block_ids: Sequence[int], first: int, stop: int, block_size: int) -> torch.Tensor:
    """Return the slots of a request's token positions ``[first, stop)``.

    Args:
        block_ids: the request's blocks from the one that holds position ``first`` on; more may follow.
        first: first token position; need not be block-aligned.
        stop: one past the last token position.
        block_size: tokens in a block.

    Returns:
        ``[stop - first]``, int64, on the CPU.

    Raises:
        ValueError: the blocks do not reach to ``stop``.

    Semantics: with ``p = first + i``,
    ``out[i] = block_ids[p // block_size - first // block_size] * block_size + p % block_size``.
    """
    num_blocks = -(-stop // block_size) - first // block_size if stop > first else 0
    if num_blocks > len(block_ids):
        raise ValueError(
            f"block_ids: expected {num_blocks} blocks for [{first}, {stop}), got {len(block_ids)}"
        )
    positions = torch.arange(first, max(first, stop), dtype=torch.long)
    blocks = torch.tensor(block_ids[:num_blocks] or [0], dtype=torch.long)
    return blocks[positions // block_size - first // block_size] * block_size + positions % block_size
