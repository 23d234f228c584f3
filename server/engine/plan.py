"""The scheduler's orders to the workers for one step: prefixes to write into blocks, and who is steered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

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
    #: By which a span of the write joins the request's trace; ``None`` where it is in none.
    trace_headers: Mapping[str, str] | None = None

    @property
    def block_ids(self) -> frozenset[int]:
        """All blocks that the load writes to."""
        return frozenset(block_id for span in self.spans for block_id in span.block_ids)


class SteeredRequest(NamedTuple):
    """A vector acts on a request, as far as this step computes it. Positions count the prefix in front."""

    digest: str
    #: Tokens of the prefix; none of them is ever computed.
    num_prefix: int
    #: Tokens of prefix and prompt.
    num_prompt: int
    #: Position of the first token that this step computes.
    start: int
    #: The vector acts from the last prompt token on.
    from_answer: bool = False
    is_conditional: bool = False

    @property
    def first(self) -> int:
        """Position of the first token that is steered."""
        return self.num_prompt - 1 if self.from_answer else self.num_prefix


@dataclass(slots=True)
class StepPlan(KVConnectorMetadata):
    """Everything for one step.

    ``steered`` are requests of this step on which a vector acts, by their ids. ``unbacked_block_ids`` are
    blocks of requests that would run although their prefix is not in place, or their vector was not. The
    worker reports them as failed loads, which is the one way to make vLLM fail just those requests.
    """

    loads: list[PrefixLoad] = field(default_factory=list)
    unbacked_block_ids: set[int] = field(default_factory=set)
    steered: dict[str, SteeredRequest] = field(default_factory=dict)

    def __bool__(self) -> bool:
        # Not who is steered: where this is true, vLLM calls the connector in every layer.
        return bool(self.loads or self.unbacked_block_ids)
