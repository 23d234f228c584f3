"""Whether a vector acts on a request: the worker's half of conditions.

A condition is decided at the last prompt token, between two layers of one forward pass. What each prompt
token scores is kept beside its K/V, in a ledger with one place for every slot of the cache, so the score does
not depend on how the prompt came to be computed: in chunks, from the prefix cache, or again after a
preemption.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec

from server.engine.plan import SteeredRequest
from server.engine.steering_report import Outcome
from steering_kernels import (
    MET,
    ConditionTable,
    Probe,
    ScoreLedger,
    StepRequests,
    TokenRows,
    decide_,
    read_flags_,
    score_tokens_,
)

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig


@dataclass(frozen=True, slots=True)
class HostedCondition:
    """A condition in host memory, with layers of the whole model."""

    #: ``[probe layers, d]`` float32.
    vectors: torch.Tensor
    probes: tuple[Probe, ...]
    num_needed: int
    is_shadow: bool

    @classmethod
    def of(cls, condition: Mapping[str, Any], vectors: torch.Tensor) -> "HostedCondition":
        """Read the manifest's ``condition``."""
        probes = tuple(
            Probe(
                tuple(one["layers"]),
                one["pool"],
                float(one["bias"]),
                float(one["threshold"]),
                int(one.get("num_tokens", 1)),
            )
            for one in condition["probes"]
        )
        num_needed = 1 if condition["combine"] == "any" else len(probes)
        return cls(vectors, probes, num_needed, bool(condition["shadow"]))

    def margin(self, scores: Sequence[float]) -> float:
        """Return by how much the probe that decides is above its threshold: met where that is positive."""
        above = [score - probe.threshold for score, probe in zip(scores, self.probes, strict=False)]
        return sorted(above, reverse=True)[self.num_needed - 1]


@dataclass(frozen=True, slots=True)
class SlotView:
    """Where a model runner keeps the slots of the group of layers whose tokens stay in the cache."""

    #: ``[max requests, blocks]`` int32, in the order of the step's batch.
    block_table: torch.Tensor
    block_size: int
    #: ``[max tokens]`` int64, of the step's tokens.
    slots: torch.Tensor


def lasting_group(kv_cache_config: "KVCacheConfig") -> int | None:
    """Return the first KV-cache group that keeps every token of a request, or ``None``."""
    for index, group in enumerate(kv_cache_config.kv_cache_groups):
        if isinstance(group.kv_cache_spec, FullAttentionSpec):
            return index
    return None


def slot_view(runner: Any, group: int) -> SlotView:
    """Return the view of a model runner of vLLM's, V1 or V2."""
    if hasattr(runner, "prepare_inputs"):
        tables = runner.block_tables
        return SlotView(
            tables.input_block_tables[group], tables.block_sizes[group], tables.slot_mappings[group]
        )
    table = runner.input_batch.block_table[group]
    return SlotView(table.block_table.gpu, table.block_size, table.slot_mapping.gpu)


@dataclass(frozen=True, slots=True)
class _Decision:
    """A request whose last prompt token is in the step."""

    req_id: str
    #: Of that token, in the step's batch.
    token: int
    #: Tokens from there on, which are steered where the vector acts.
    num_tokens: int
    digest: str
    condition: HostedCondition


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision that the host has read."""

    req_id: str
    digest: str
    #: Tokens of the step that were steered by it.
    num_steered: int
    #: None where a score is not finite, so that nothing is decided.
    outcome: Outcome | None
    is_shadow: bool
    #: Of the KV cache, with the last token of the prompt.
    block_id: int


class Conditions:
    """The conditions of one rank."""

    def __init__(self, table: ConditionTable, view: SlotView, num_slots: int, max_num_tokens: int) -> None:
        device = table.device
        self._table = table
        self._view = view
        self._ledger = ScoreLedger.allocate(num_slots, device)
        self._scored = TokenRows.allocate(max_num_tokens, device)
        self._requests = StepRequests.allocate(
            len(view.block_table), view.block_table, view.block_size, device
        )
        self._decisions: list[_Decision] = []
        #: Read back, but perhaps not yet on the host.
        self._pending: list[tuple[list[_Decision], list[torch.Tensor], torch.cuda.Event | None]] = []

    @property
    def is_idle(self) -> bool:
        """Whether no request of the step has a condition."""
        return self._requests.is_idle

    def begin_step(
        self,
        order: Sequence[tuple[str, SteeredRequest | None, int]],
        counts: np.ndarray,
        hosted: Mapping[str, Any],
    ) -> None:
        """Take which tokens of a step are scored, and where decisions fall.

        Args:
            order: Id, what is planned, and row of each request of the batch; 0 for those without a condition.
            counts: Tokens of each in this step.
            hosted: Digest -> ``HostedCondition``.
        """
        self._decisions = []
        columns = np.zeros((4, len(order)), np.int32)
        scored = np.zeros(int(counts.sum()), np.int32)
        query_start = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
        for i, (req_id, request, row) in enumerate(order):
            if request is None or not row:
                continue
            begin, count, stop = int(query_start[i]), int(counts[i]), request.num_prompt
            columns[:, i] = request.start, row, request.num_prefix, stop
            num_of_prompt = min(count, max(0, stop - request.start))
            scored[begin : begin + num_of_prompt] = row
            last = stop - 1 - request.start
            if 0 <= last < count:
                condition = hosted[request.digest]
                self._decisions.append(
                    _Decision(req_id, begin + last, count - last, request.digest, condition)
                )
        self._scored.assign(torch.from_numpy(scored))
        start, row_of, first, stop_of = map(torch.from_numpy, columns)
        self._requests.assign(torch.from_numpy(query_start), start, row_of, first, stop_of)

    def end_steps(self) -> None:
        """Score and decide nothing in the forward passes that follow."""
        self._decisions = []
        self._scored.clear()
        self._requests.clear()

    def read_flags(self, rows: TokenRows) -> None:
        """Set the rows of requests that were decided in an earlier step, before the first layer."""
        read_flags_(self._requests, self._table, self._ledger, rows)

    def after_layer(self, layer: int, hidden: torch.Tensor, residual: torch.Tensor, rows: TokenRows) -> None:
        """Score the layer's tokens, and set the rows of requests that it decides."""
        slots = self._view.slots[: len(hidden)]
        score_tokens_(hidden, residual, self._scored, self._table, self._ledger, slots, layer)
        decide_(self._requests, self._table, self._ledger, rows, layer)

    def take_decided(self) -> list[Decided]:
        """Return the decisions that have reached the host, those of the step at hand on a CPU."""
        if self._decisions:
            tokens = torch.tensor([decision.token for decision in self._decisions])
            slots = self._view.slots[tokens.to(self._view.slots.device, non_blocking=True)]
            read = (self._ledger.pooled[slots], self._ledger.flags[slots], slots // self._view.block_size)
            on_host = [tensor.to("cpu", non_blocking=True) for tensor in read]
            event = None
            if self._view.slots.device.type == "cuda":
                event = torch.cuda.Event()
                event.record()
            self._pending.append((self._decisions, on_host, event))
            self._decisions = []
        decided: list[Decided] = []
        while self._pending and (self._pending[0][2] is None or self._pending[0][2].query()):
            decisions, on_host, _ = self._pending.pop(0)
            columns = (tensor.tolist() for tensor in on_host)
            decided += [_decided(*one) for one in zip(decisions, *columns, strict=True)]
        return decided


def _decided(decision: _Decision, row: list[float], flag: int, block_id: int) -> Decided:
    """Return what the ledger says of a prompt: the score of each probe, and the verdict."""
    condition = decision.condition
    scores = tuple(row[: len(condition.probes)])
    is_met, outcome = flag == MET, None
    acts = is_met and not condition.is_shadow
    if all(map(math.isfinite, scores)):
        outcome = Outcome(is_met, acts, condition.margin(scores), scores)
    num_steered = decision.num_tokens if acts else 0
    return Decided(decision.req_id, decision.digest, num_steered, outcome, condition.is_shadow, block_id)
