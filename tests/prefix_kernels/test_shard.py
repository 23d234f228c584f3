"""Which heads and layers of a prefix a rank holds."""

import pytest
import torch

from prefix_kernels import rank_heads, shard_prefix_kv


def _prefix(
    num_layers: int = 4, num_tokens: int = 3, num_kv_heads: int = 6, head_size: int = 2
) -> torch.Tensor:
    shape = (num_layers, 2, num_tokens, num_kv_heads, head_size)
    return torch.arange(torch.tensor(shape).prod().item(), dtype=torch.float32).reshape(shape)


@pytest.mark.parametrize(("num_kv_heads", "tp_size"), [(6, 1), (6, 2), (6, 3), (6, 6), (1, 1)])
def test_ranks_split_the_heads_without_gap_or_overlap(num_kv_heads: int, tp_size: int) -> None:
    heads = [head for rank in range(tp_size) for head in rank_heads(num_kv_heads, rank, tp_size)]
    assert heads == list(range(num_kv_heads))


def test_with_more_ranks_than_heads_neighbours_share_a_head() -> None:
    assert [list(rank_heads(2, rank, 4)) for rank in range(4)] == [[0], [0], [1], [1]]


def test_multi_query_attention_gives_its_head_to_every_rank() -> None:
    assert [list(rank_heads(1, rank, 3)) for rank in range(3)] == [[0], [0], [0]]


@pytest.mark.parametrize(("num_kv_heads", "rank", "tp_size"), [(3, 0, 2), (4, 2, 2), (4, -1, 2)])
def test_impossible_splits_are_refused(num_kv_heads: int, rank: int, tp_size: int) -> None:
    with pytest.raises(ValueError, match=r"num_kv_heads|tp_rank"):
        rank_heads(num_kv_heads, rank, tp_size)


def test_a_shard_holds_the_named_layers_in_their_order() -> None:
    kv = _prefix()
    shard = shard_prefix_kv(kv, [3, 1], range(2, 4))
    assert shard.is_contiguous()
    assert torch.equal(shard[0], kv[3, :, :, 2:4])
    assert torch.equal(shard[1], kv[1, :, :, 2:4])


def test_a_shard_does_not_alias_the_prefix() -> None:
    kv = _prefix()
    shard = shard_prefix_kv(kv, [0, 1, 2, 3], range(0, 6))
    shard.zero_()
    assert kv.abs().sum() > 0
