"""Keeps the KV-cache blocks of chosen prefixes from being evicted while they are in use every now and then.

Runs in the scheduler's process, on its thread, on the block pool that vLLM hands to connectors. A pin is one
more reference on each whole block of a prefix that the prefix cache holds, as any request would have: such a
block is never given to another request. The first request of a prefix that ends well sets the pin.

Invariants: pinned blocks never exceed the share of the pool that was allowed, and always leave room for the
longest request that the model takes, or that request would wait for ever; a pin that no request has renewed
for ``IDLE_S`` goes with the next step; what the prefix cache no longer finds is not kept.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.v1.core.kv_cache_utils import resolve_block_hashes

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.request import Request

#: Keys of the connector's extra configuration: the share of the KV cache, and the names of the patches.
PINNED_SHARE_KEY = "pinned_share"
PINNED_NAMES_KEY = "pinned_names"

#: A prefix that was not used for so long is not hot. Replaced versions let go of their blocks by it too.
IDLE_S = 600.0

#: After a reset of the prefix cache, which waits until no block is held, nothing is pinned for so long.
PAUSE_S = 10.0


@dataclass(slots=True)
class _Pin:
    blocks: "list[KVCacheBlock]"
    used_s: float


class BlockPins:
    """Holds references; see the module."""

    def __init__(
        self,
        pool: "BlockPool",
        block_sizes: Sequence[int],
        *,
        share: float,
        max_model_len: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._block_sizes = block_sizes
        self._clock = clock
        # Of the longest request, and a block ahead, in each group of layers.
        num_needed = sum(-(-max_model_len // size) + 1 for size in block_sizes)
        # vLLM keeps one block for itself.
        num_blocks = pool.num_gpu_blocks - 1
        #: No more than so many blocks are ever pinned.
        self.limit = max(0, min(int(share * num_blocks), num_blocks - num_needed))
        #: Chained hash of a prefix's last whole block -> its blocks, least recently used first.
        self._pins: OrderedDict[bytes, _Pin] = OrderedDict()
        self._paused_until_s = float("-inf")

    @property
    def num_blocks(self) -> int:
        """How many blocks are pinned."""
        return sum(len(pin.blocks) for pin in self._pins.values())

    def keep(self, request: "Request", num_tokens: int) -> None:
        """Pin the whole blocks of a request's first ``num_tokens`` tokens, or renew their pin.

        Others, least recently used first, make room for them; a prefix too long for all the room gets none.
        """
        now_s = self._clock()
        key = self._key(request, num_tokens)
        if key is None or now_s < self._paused_until_s:
            return
        # What another request brought into the cache since then may have taken the place of these.
        self._release(key)
        blocks = self._cached(request, num_tokens)
        if not blocks or len(blocks) > self.limit:
            return
        while self.num_blocks + len(blocks) > self.limit:
            self._release(next(iter(self._pins)))
        self._pool.touch(blocks)
        self._pins[key] = _Pin(blocks, now_s)

    def expire(self) -> None:
        """Release what was not used for long. Costs nothing where nothing is due."""
        oldest = next(iter(self._pins.items()), None)
        if oldest is not None and self._clock() - oldest[1].used_s > IDLE_S:
            self._release(oldest[0])

    def release_all(self) -> None:
        """Release everything, and pin nothing for ``PAUSE_S``: somebody wants the cache empty."""
        self._paused_until_s = self._clock() + PAUSE_S
        for key in list(self._pins):
            self._release(key)

    def _release(self, key: bytes) -> None:
        pin = self._pins.pop(key, None)
        if pin is not None:
            # The last block first: what it continues is no use without it, but not the other way round.
            self._pool.free_blocks(reversed(pin.blocks))

    def _key(self, request: "Request", num_tokens: int) -> bytes | None:
        num_hashes = num_tokens // self._pool.hash_block_size
        # Without a prefix cache there are no hashes.
        return (
            bytes(request.block_hashes[num_hashes - 1])
            if 0 < num_hashes <= len(request.block_hashes)
            else None
        )

    def _cached(self, request: "Request", num_tokens: int) -> "list[KVCacheBlock]":
        """Find the blocks; sliding-window groups keep only those near the prefix's end."""
        found: list[KVCacheBlock] = []
        for group, block_size in enumerate(self._block_sizes):
            hashes = resolve_block_hashes(request.block_hashes, self._pool.hash_block_size, block_size)
            for i in range(num_tokens // block_size):
                found += self._pool.get_cached_block(hashes[i], [group]) or []
        return found
