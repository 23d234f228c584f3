"""Scheduler side of the connector: says which tokens need no computing, and plans the writes.

Runs in the engine-core process, inside vLLM's scheduling loop. It keeps one small record per live patched
request and does constant work per request and step.
"""

import logging
from typing import TYPE_CHECKING, Any

from vllm.v1.request import RequestStatus

from server.engine.block_pins import BlockPins
from server.engine.claim import PatchClaim
from server.engine.plan import BlockSpan, PrefixLoad, StepPlan
from server.engine.stats import InjectionStats
from server.engine.steering_plan import SteeringPlan
from server.engine.steering_report import SteeringReport

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)

#: How requests end that had their prefix in place.
_GOOD_ENDS = frozenset({RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED})


class SchedulerSide:
    """Plans prefix writes.

    Life of a request: ``on_new_request`` once; ``num_matched_tokens`` and ``after_alloc`` at admission and
    again after each preemption; ``forget`` once at its end. ``build_plan`` runs once a step, after those.
    """

    def __init__(self, config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> None:
        self._steering = SteeringPlan(config, kv_cache_config)
        self._block_sizes = [group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups]
        self._claims: dict[str, PatchClaim] = {}
        self._loads: dict[str, PrefixLoad] = {}
        self._unbacked: dict[str, set[int]] = {}
        self._stats = InjectionStats()
        self._pins: BlockPins | None = None
        self._num_pinned = 0

    def bind_pool(self, pool: "BlockPool", share: float, max_model_len: int) -> None:
        """Take the KV cache's blocks, of which prefixes may keep ``share``, once they exist."""
        self._pins = BlockPins(pool, self._block_sizes, share=share, max_model_len=max_model_len)
        self._stats.record_pins(limit=self._pins.limit)

    def reset(self) -> None:
        """Hold no block any longer, so that the prefix cache can be reset."""
        if self._pins is not None:
            self._pins.release_all()

    def on_new_request(self, request: "Request") -> None:
        """Note the request's claim, before the scheduler looks at it for the first time."""
        claim = PatchClaim.from_params(request.kv_transfer_params)
        if claim is None:
            return
        self._claims[request.request_id] = claim
        self._steering.add(request, claim)
        # A request that skips the prefix cache is never offered external tokens: vLLM would then
        # compute the placeholders (invariant 1).
        request.skip_reading_prefix_cache = False

    def num_matched_tokens(self, request: "Request", num_computed_tokens: int) -> int | None:
        """Return how many tokens after ``num_computed_tokens`` the prefix provides. Has no side effect.

        ``None`` where the request has to wait, since the workers have no room for its vector.
        """
        if not self._steering.has_room(request.request_id):
            return None
        claim = self._claims.get(request.request_id)
        return 0 if claim is None else max(0, claim.num_tokens - num_computed_tokens)

    def after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        """Plan the write of the part of the prefix that the prefix cache did not hold."""
        claim = self._claims.get(request.request_id)
        if claim is None:
            return
        self._steering.admit(request.request_id)
        self._count(claim, claim.num_tokens - num_external_tokens)
        if num_external_tokens == 0:
            return
        first = claim.num_tokens - num_external_tokens
        spans = tuple(
            self._span(group_blocks, first, claim.num_tokens, block_size)
            for group_blocks, block_size in zip(blocks.blocks, self._block_sizes, strict=True)
        )
        self._loads[request.request_id] = PrefixLoad(
            request.request_id, claim.digest, claim.num_tokens, spans, claim.parts, request.trace_headers
        )

    def _count(self, claim: PatchClaim, first: int) -> None:
        """Count the positions from ``first`` on as injected, those before as shared, for each part."""
        for part in claim.parts:
            num_shared = min(max(first, 0), part.num_tokens)
            self._stats.record(part.digest, part.num_tokens - num_shared, num_shared)
            first -= part.num_tokens

    @staticmethod
    def _span(group_blocks: object, first: int, stop: int, block_size: int) -> BlockSpan:
        covering = list(group_blocks)[first // block_size : -(-stop // block_size)]  # type: ignore[call-overload]
        num_null = next((i for i, block in enumerate(covering) if not block.is_null), len(covering))
        if num_null:
            first = min(stop, (first // block_size + num_null) * block_size)
        return BlockSpan(first, tuple(block.block_id for block in covering[num_null:]))

    def build_plan(self, scheduler_output: "SchedulerOutput") -> StepPlan:
        """Return this step's plan and start the next one."""
        plan = StepPlan(loads=list(self._loads.values()), steered=self._steering.of_step(scheduler_output))
        self._loads.clear()
        if self._claims:
            self._find_unbacked(scheduler_output)
        if self._pins is not None:
            self._pins.expire()
        for block_ids in self._unbacked.values():
            plan.unbacked_block_ids |= block_ids
        return plan

    def _find_unbacked(self, scheduler_output: "SchedulerOutput") -> None:
        """Note requests about to compute positions that their prefix should fill (invariant 1).

        No known path leads here; should a new vLLM release open one, the request fails instead of answering
        from placeholders. vLLM fails a request for blocks that it counts as computed, so at the step after;
        the engine client withholds what the first step gives.
        """
        cached = scheduler_output.scheduled_cached_reqs
        admitted = [
            (new.req_id, new.num_computed_tokens, new.block_ids)
            for new in scheduler_output.scheduled_new_reqs
            if new.req_id in self._claims
        ]
        for req_id, num_computed, block_ids in (
            zip(cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True)
            if cached.resumed_req_ids
            else ()
        ):
            if req_id in cached.resumed_req_ids and req_id in self._claims:
                admitted.append((req_id, num_computed, block_ids or ()))
        for req_id, num_computed, block_ids in admitted:
            if num_computed < self._claims[req_id].num_tokens:
                logger.error(
                    "request %s is scheduled at token %d, inside its prefix of %d tokens: failing it",
                    req_id,
                    num_computed,
                    self._claims[req_id].num_tokens,
                )
                self._unbacked[req_id] = {block_id for group in block_ids for block_id in group}

    def take_report(self, report: SteeringReport) -> None:
        """Take what the workers say of steered requests, after each step."""
        for req_id, block_id in report.failed.items():
            first_id = self._steering.first_block(req_id)
            if first_id is not None:
                self._unbacked[req_id] = {first_id if block_id is None else block_id}
        for req_id, outcome in report.outcomes.items():
            digest = self._steering.decide(req_id, outcome)
            if digest is not None:
                self._stats.record_condition(digest, is_met=outcome.is_met, margin=outcome.margin)

    def forget(self, request: "Request") -> dict[str, Any] | None:
        """Drop what is kept of a finished request.

        Returns:
            What goes out with the answer: the outcome of the vector's condition, where there is one.
        """
        claim = self._claims.pop(request.request_id, None)
        if claim is not None and claim.is_pinned and self._pins and request.status in _GOOD_ENDS:
            self._pins.keep(request, claim.num_tokens)
        self._loads.pop(request.request_id, None)
        self._unbacked.pop(request.request_id, None)
        outcome = self._steering.forget(request)
        return None if outcome is None else outcome.to_params()

    def take_stats(self) -> InjectionStats:
        """Return the counts since the last call."""
        if self._pins is not None and self._pins.num_blocks != self._num_pinned:
            self._stats.record_pins(blocks=self._pins.num_blocks - self._num_pinned)
            self._num_pinned = self._pins.num_blocks
        taken, self._stats = self._stats, InjectionStats()
        return taken
