"""Which token of a step is steered by which vector: the worker's half of steering.

The scheduler side says who is steered (``plan``); in which order requests stand in the batch is known only
inside the model runner, in the one method that prepares a step's inputs. That method is wrapped. Nothing is
remembered of a request from one step to the next, so that preemption, resumption, aborts and chunked prefill
need no code here.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from vllm.distributed.parallel_state import get_pp_group, get_tp_group

from server.engine.plan import SteeredRequest, StepPlan
from server.engine.steering_conditions import Conditions, Decided, SlotView, lasting_group, slot_view
from server.engine.steering_guard import Span, StateGuard
from server.engine.steering_hooks import has_own_mlp_hook, layers_of
from server.engine.steering_report import SteeringReport
from server.engine.vector_store import ModelShape, VectorStore
from server.engine.withheld import without_tokens_of
from steering_kernels import (
    ConditionTable,
    Form,
    SteeringTable,
    TokenRows,
    steer_layer_,
    steer_output_,
    steer_residual_,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger(__name__)


class SteeringRank:
    """Steers the tokens of one rank; what the hooks call (``steering_hooks.Acting``)."""

    def __init__(
        self, config: "VllmConfig", network: nn.Module, device: torch.device, num_slots: int
    ) -> None:
        layers = list(layers_of(network))
        model = config.model_config
        shape = ModelShape(model.get_total_num_hidden_layers(), model.get_hidden_size(), layers)
        self._first_layer, self._num_layers = layers[0], len(layers)
        self._hidden_size = shape.hidden_size
        self._seen: list[torch.Tensor] | None = None
        # One call a layer where that does both.
        self._steer = steer_residual_ if has_own_mlp_hook(network) else steer_layer_
        self._table = SteeringTable.allocate(len(layers), num_slots + 1, shape.hidden_size, device)
        self._rows = TokenRows.allocate(_max_tokens(config), device)
        self._condition_table = ConditionTable.allocate(len(layers), num_slots + 1, shape.hidden_size, device)
        self._conditions: Conditions | None = None
        self.store = VectorStore(shape, self._table, self._condition_table, num_slots)
        self._guard = StateGuard(len(self._rows.tensor), device)
        self._views: dict[int, SlotView] = {}
        self._clear: Callable[[Mapping[int, torch.Tensor]], None] = lambda slots: None
        #: Live requests that must not answer.
        self.failed: set[str] = set()
        self._report = SteeringReport()
        #: Whether what this rank samples is what the scheduler gets.
        self._is_heard = get_pp_group().is_last_rank and get_tp_group().rank_in_group == 0
        self.is_last_stage: bool = get_pp_group().is_last_rank
        #: Whether the vector acts on a request of the last steps whose condition was decided.
        self._acts: dict[str, bool] = {}
        #: Digest -> tokens steered since ``take_counts``.
        self._counts: dict[str, int] = {}

    def bind_caches(
        self,
        runner: Any,
        kv_cache_config: "KVCacheConfig",
        clear: Callable[[Mapping[int, torch.Tensor]], None],
    ) -> None:
        """Make what conditions need, once the model runner has its caches.

        Args:
            runner: vLLM's model runner.
            kv_cache_config: Of its caches.
            clear: Writes zeros over the K/V in slots, by KV-cache group.
        """
        self._clear = clear
        self._views = {i: slot_view(runner, i) for i in range(len(kv_cache_config.kv_cache_groups))}
        group = lasting_group(kv_cache_config)
        if get_pp_group().world_size > 1:
            self.store.condition_problem = "pipeline stages would each know a part of its score"
        elif group is None:
            self.store.condition_problem = "no layer of this model keeps the whole prompt in its cache"
        else:
            view = self._views[group]
            num_slots = (
                kv_cache_config.num_blocks * kv_cache_config.kv_cache_groups[group].kv_cache_spec.block_size
            )
            self._conditions = Conditions(self._condition_table, view, num_slots, len(self._rows.tensor))
            self.store.condition_problem = None

    def begin_step(
        self, scheduler_output: "SchedulerOutput", req_ids: Sequence[str], num_scheduled: np.ndarray
    ) -> None:
        """Set the row of the table that steers each token of the step.

        Args:
            scheduler_output: Of the step, with its plan.
            req_ids: In the order in which they stand in the batch.
            num_scheduled: Tokens of each of them.
        """
        plan = cast(StepPlan | None, scheduler_output.kv_connector_metadata)
        if plan is None:
            # The runner warms up with requests of its own, which the scheduler has not seen.
            self.end_steps()
            return
        self.failed -= scheduler_output.finished_req_ids
        self._guard.note_gone(
            {*scheduler_output.finished_req_ids, *(scheduler_output.preempted_req_ids or ())}
        )
        self._acts = {req_id: acts for req_id, acts in self._acts.items() if req_id in plan.steered}
        if not plan.steered:
            self.end_steps()
            return
        row_of = self.store.bring({request.digest: None for request in plan.steered.values()})
        rows = np.zeros(int(num_scheduled.sum()), np.int32)
        spans: list[Span] = []
        conditional: list[tuple[str, SteeredRequest | None, int]] = []
        stop = 0
        for req_id, num_tokens in zip(req_ids, num_scheduled.tolist(), strict=True):
            begin, stop = stop, stop + num_tokens
            request = plan.steered.get(req_id)
            row = 0 if request is None else row_of.get(request.digest, 0)
            if row:
                spans.append((req_id, begin, stop))
            if request is None:
                pass
            elif not row or req_id in self.failed:
                row = 0
                self._fail(req_id, f"vector {request.digest} is not on the device")
            elif request.is_conditional:
                conditional.append((req_id, request, row))
                if self._acts.get(req_id):
                    self._count(request.digest, num_tokens)
                continue
            else:
                begin += max(0, request.first - request.start)
                if begin < stop:
                    rows[begin:stop] = row
                    self._count(request.digest, stop - begin)
            conditional.append((req_id, None, 0))
        self._guard.begin_step(spans)
        is_conditional = any(row for _, _, row in conditional)
        self._rows.assign(torch.from_numpy(rows), is_conditional=is_conditional)
        if self._conditions is not None:
            if is_conditional:
                self._conditions.begin_step(conditional, num_scheduled, self.store.conditions())
            else:
                self._conditions.end_steps()

    def read_flags(self) -> None:
        """Set the rows of requests that were decided earlier, once the step's block tables are in place."""
        if self._conditions is not None and not self._conditions.is_idle:
            self._conditions.read_flags(self._rows)

    def end_steps(self) -> None:
        """Steer nothing in the forward passes that follow."""
        self._rows.clear()
        self._guard.begin_step(())
        if self._conditions is not None:
            self._conditions.end_steps()

    def _count(self, digest: str, num_tokens: int) -> None:
        if num_tokens:
            self._counts[digest] = self._counts.get(digest, 0) + num_tokens

    def _fail(self, req_id: str, problem: str, block_id: int | None = None) -> None:
        """Keep back all tokens of a request from now on, and have it ended.

        Args:
            req_id: The request.
            problem: Why.
            block_id: The first block of its that is wrong; None for all.

        Raises:
            RuntimeError: what this rank samples is not what the scheduler gets, so nothing can be kept back.
                The engine ends, as it does where ranks do not agree on anything else.
        """
        if not self._is_heard:
            raise RuntimeError(f"request {req_id}: {problem}")
        if req_id not in self._report.failed:
            logger.error("request %s: %s: failing it", req_id, problem)
        self.failed.add(req_id)
        self._report.failed.setdefault(req_id, block_id)

    @contextlib.contextmanager
    def rehearsal(self, num_tokens: int) -> Iterator[list[torch.Tensor]]:
        """Steer the first tokens of the forward passes within by a vector of no patch.

        Yields:
            The streams behind this rank's last layer, as far as Python sees the passes.
        """
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(self._num_layers, self._hidden_size, generator=generator)
        vector /= vector.norm(dim=1, keepdim=True)
        # Seen in any dtype, whether the stream is long or, as behind a padding token, nothing at all.
        form = Form("residual", absolute=1.0, relative=0.1, is_renormalised=False)
        self._table.put(1, vector, form)
        self._rows.assign(torch.ones(num_tokens, dtype=torch.int32))
        seen: list[torch.Tensor] = []
        self._seen = seen
        try:
            yield seen
        finally:
            self._seen = None
            self._rows.clear()
            self._table.clear(1)

    def after_layer(self, layer_idx: int, hidden: torch.Tensor, residual: torch.Tensor) -> None:
        """See ``Acting.after_layer``."""
        layer = layer_idx - self._first_layer
        if self._conditions is not None:
            self._conditions.after_layer(layer, hidden, residual, self._rows)
        self._steer(hidden, residual, self._rows, self._table, layer)
        if layer == self._num_layers - 1:
            self._guard.after_last_layer(hidden, residual, self._rows)
            if self._seen is not None:
                self._seen.append(hidden + residual)

    def after_mlp(self, layer_idx: int, output: torch.Tensor) -> None:
        """See ``Acting.after_mlp``."""
        steer_output_(output, self._rows, self._table, layer_idx - self._first_layer)

    def take_counts(self) -> dict[str, int]:
        """Return the tokens steered since the last call, by digest; one rank of several counts."""
        taken, self._counts = self._counts, {}
        return taken if self._is_heard else {}

    def take_report(self) -> SteeringReport | None:
        """Return what the scheduler side has to know since the last call, after the layers have run."""
        for decided in self._conditions.take_decided() if self._conditions is not None else ():
            if decided.outcome is None:
                self._undecided(decided)
                continue
            self._report.outcomes[decided.req_id] = decided.outcome
            self._acts[decided.req_id] = decided.outcome.acts
            self._count(decided.digest, decided.num_steered)
        self._guard.end_step(self._views)
        self._take_broken()
        taken, self._report = self._report, SteeringReport()
        return taken or None

    def _undecided(self, decided: Decided) -> None:
        """Fail a request with a score that is not finite: nothing says whether the vector is to act."""
        problem = f"the condition of {decided.digest} has a score that is not finite"
        if decided.is_shadow:
            logger.error("request %s: %s: it is not counted", decided.req_id, problem)
        elif self._is_heard:
            self._fail(decided.req_id, problem, decided.block_id)

    def _take_broken(self) -> None:
        """Fail the requests whose states are not finite, and take what they wrote out of the caches."""
        for broken in self._guard.take_broken():
            self._clear(broken.slots)
            if self._is_heard:
                group = min(broken.slots)
                first = int(broken.slots[group][0]) // self._views[group].block_size
                self._fail(broken.req_id, "its vector has made states that are not finite", first)

    def without_failed(self, output: Any) -> Any:
        """Return what was sampled in a step without the tokens of requests that must not answer."""
        check = self._guard.latest
        if check is None and not self.failed:
            return output
        return without_tokens_of(self.failed, output, check)


def _max_tokens(config: "VllmConfig") -> int:
    """Return how many tokens a forward pass has at most, padding included."""
    captured = config.compilation_config.cudagraph_capture_sizes or [0]
    return max(config.scheduler_config.max_num_batched_tokens, *captured)


def watch_steps(runner: Any, rank: SteeringRank) -> None:
    """Have the rank told of each step before its forward pass, by a model runner of vLLM's, V1 or V2."""
    if hasattr(runner, "prepare_inputs"):
        _watch_v2(runner, rank)
    else:
        _watch_v1(runner, rank)


def _watch_v1(runner: Any, rank: SteeringRank) -> None:
    prepare = runner._prepare_inputs

    def prepare_steered(scheduler_output: Any, num_scheduled: np.ndarray) -> Any:
        prepared = prepare(scheduler_output, num_scheduled)
        rank.begin_step(scheduler_output, runner.input_batch.req_ids, num_scheduled)
        rank.read_flags()
        return prepared

    runner._prepare_inputs = prepare_steered


def _watch_v2(runner: Any, rank: SteeringRank) -> None:
    prepare_inputs, prepare_attn = runner.prepare_inputs, runner.prepare_attn

    def prepare_steered(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        batch = prepare_inputs(scheduler_output, *args, **kwargs)
        rank.begin_step(scheduler_output, batch.req_ids, batch.num_scheduled_tokens)
        return batch

    def prepare_flags(*args: Any, **kwargs: Any) -> Any:
        prepared = prepare_attn(*args, **kwargs)
        rank.read_flags()
        return prepared

    runner.prepare_inputs, runner.prepare_attn = prepare_steered, prepare_flags
