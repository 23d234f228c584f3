"""How much of which memory patches may take; what flags of ``policypatch serve`` say about it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TierOptions:
    """How much of which memory patches may take."""

    #: Bytes on each device.
    device_bytes: int = 1 << 30
    #: Bytes of host memory, added up over all workers.
    host_bytes: int = 4 << 30
    #: Names of patches that stay in host memory, and whose device slots are the last to be given up.
    pinned: frozenset[str] = frozenset()
    #: Fill host memory at start, instead of with the first request of each patch.
    is_preloaded: bool = False
    #: Names of patches whose blocks stay in the KV cache while they are used.
    pinned_blocks: frozenset[str] = frozenset()
    #: The share of the KV cache that such blocks may take.
    pinned_blocks_share: float = 0.1
