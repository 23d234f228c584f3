"""Pins on vLLM's own block pool: bounded, renewed by use, and gone when they should be."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHash

from server.engine.block_pins import IDLE_S, PAUSE_S, BlockPins

BLOCK = 4
#: One is vLLM's own.
NUM_BLOCKS = 33


class Stand:
    """A pool, and requests that leave their blocks in the prefix cache."""

    def __init__(self, share: float = 0.25, max_model_len: int = 40, groups: int = 1) -> None:
        self.pool = BlockPool(NUM_BLOCKS, enable_caching=True, hash_block_size=BLOCK)
        self.now_s = 0.0
        sizes = [BLOCK] * groups
        self.pins = BlockPins(
            self.pool, sizes, share=share, max_model_len=max_model_len, clock=lambda: self.now_s
        )
        self.groups = range(groups)

    def request(self, name: str, num_tokens: int) -> Any:
        hashes = [BlockHash(f"{name}-{i}".encode()) for i in range(num_tokens // BLOCK)]
        return SimpleNamespace(request_id=name, block_hashes=hashes)

    def serve(self, name: str, num_tokens: int) -> Any:
        """Let a request compute its tokens, and end; its blocks are in the cache afterwards."""
        request, held = self.request(name, num_tokens), []
        for group in self.groups:
            if self.pool.get_cached_block(request.block_hashes[0], [group]) is None:
                blocks = self.pool.get_new_blocks(num_tokens // BLOCK)
                self.pool.cache_full_blocks(request, blocks, 0, num_tokens // BLOCK, BLOCK, group)
                held += blocks
        self.pins.keep(request, num_tokens)
        self.pool.free_blocks(reversed(held))
        return request

    def flood(self) -> None:
        """Use every block that is free for something else."""
        self.pool.free_blocks(self.pool.get_new_blocks(self.pool.get_num_free_blocks()))

    def num_cached(self, request: Any) -> int:
        return sum(self.pool.get_cached_block(h, list(self.groups)) is not None for h in request.block_hashes)


def test_pinned_blocks_survive_when_everything_else_is_evicted() -> None:
    stand = Stand()
    pinned = stand.serve("a", 8)
    stand.flood()
    assert stand.num_cached(pinned) == 2
    assert stand.pins.num_blocks == 2
    stand.pins.release_all()
    stand.flood()
    assert stand.num_cached(pinned) == 0


def test_the_share_is_never_exceeded_and_the_least_recently_used_makes_room() -> None:
    stand = Stand(share=0.25)
    assert stand.pins.limit == 8
    for name in ("a", "b", "c"):
        stand.serve(name, 12)
        assert stand.pins.num_blocks <= stand.pins.limit
    stand.flood()
    assert [stand.num_cached(stand.request(name, 12)) for name in ("a", "b", "c")] == [0, 3, 3]


def test_a_use_renews_a_pin() -> None:
    stand = Stand(share=0.25)
    for name in ("a", "b", "a", "c"):
        stand.serve(name, 12)
    stand.flood()
    assert [stand.num_cached(stand.request(name, 12)) for name in ("a", "b", "c")] == [3, 0, 3]


def test_a_prefix_longer_than_the_share_is_not_pinned_and_displaces_nothing() -> None:
    stand = Stand(share=0.25)
    stand.serve("a", 8)
    stand.serve("long", 40)
    assert stand.pins.num_blocks == 2


@pytest.mark.parametrize(("max_model_len", "limit"), [(40, 16), (80, 11), (120, 1), (124, 0), (400, 0)])
def test_the_longest_request_always_fits(max_model_len: int, limit: int) -> None:
    """Else it would wait for ever."""
    stand = Stand(share=0.5, max_model_len=max_model_len)
    assert stand.pins.limit == limit


def test_a_pin_that_nobody_renews_expires() -> None:
    stand = Stand()
    stand.serve("a", 8)
    stand.now_s = IDLE_S / 2
    stand.serve("b", 8)
    stand.now_s = IDLE_S + 1
    stand.pins.expire()
    stand.flood()
    assert [stand.num_cached(stand.request(name, 8)) for name in ("a", "b")] == [0, 2]


def test_a_reset_of_the_cache_works_once_everything_is_let_go() -> None:
    stand = Stand()
    stand.serve("a", 8)
    assert not stand.pool.reset_prefix_cache()
    stand.pins.release_all()
    # A request that ends in between must not undo it.
    stand.serve("a", 8)
    assert stand.pool.reset_prefix_cache()
    stand.now_s = PAUSE_S
    stand.serve("a", 8)
    assert stand.pins.num_blocks == 2


def test_every_group_of_layers_is_pinned_and_what_a_window_left_out_is_not() -> None:
    stand = Stand(groups=2)
    request = stand.request("a", 12)
    full, window = stand.pool.get_new_blocks(3), stand.pool.get_new_blocks(3)
    stand.pool.cache_full_blocks(request, full, 0, 3, BLOCK, 0)
    stand.pool.cache_full_blocks(request, window, 0, 3, BLOCK, 1, block_mask=[False, False, True])
    stand.pins.keep(request, 12)
    stand.pool.free_blocks([*full, *window])
    assert stand.pins.num_blocks == 4


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_less_than_a_block_is_nothing_to_pin(num_tokens: int) -> None:
    stand = Stand()
    stand.pins.keep(stand.request("a", 8), num_tokens)
    assert stand.pins.num_blocks == 0


def test_without_a_prefix_cache_nothing_is_pinned() -> None:
    stand = Stand()
    stand.pins.keep(SimpleNamespace(block_hashes=[]), 8)
    assert stand.pins.num_blocks == 0
