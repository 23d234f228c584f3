"""The scheduler's orders to the workers for one step: which prefixes to write into which blocks."""

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

from server.engine.claim import PrefixPart


@dataclass(frozen=True, slots=True)
class BlockSpan:
    """Token positions ``[first, N)`` of a prefix in the blocks of one KV-cache group.

    ``first`` differs between groups: sliding-window groups hold no blocks for positions behind their window.
    """

    first: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrefixLoad:
    """Write one prefix, from the first missing position to its end, for one request."""

    request_id: str
    digest: str
    num_tokens: int
    spans: tuple[BlockSpan, ...]
    #: The resident prefixes that it consists of, in order; their lengths add up to ``num_tokens``.
    parts: tuple[PrefixPart, ...]

    @property
    def block_ids(self) -> frozenset[int]:
        """All blocks that the load writes to."""
        return frozenset(block_id for span in self.spans for block_id in span.block_ids)


@dataclass(slots=True)
class StepPlan(KVConnectorMetadata):
    """Everything for one step.

    ``unbacked_block_ids`` are blocks of requests that would run although their prefix is not in place. The
    worker reports them as failed loads, which is the one way to make vLLM fail just those requests.
    """

    loads: list[PrefixLoad] = field(default_factory=list)
    unbacked_block_ids: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.loads or self.unbacked_block_ids)
