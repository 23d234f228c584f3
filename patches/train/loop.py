"""The loop: steps, validations, checkpoints. It owns what changes and everything that is written.

One step takes the rows that its number names, in one context, over several forward passes and processes; its
gradient is that of the mean over all rows. A value or gradient that is not finite ends the run before it is
applied. ``should_stop`` is asked between steps, so that an interrupted run loses none.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from patches.errors import TrainingStopped
from patches.train.checkpoint import RunState
from patches.train.config import TrainConfig
from patches.train.contexts import ALONE, Context, sample_context
from patches.train.learned import Learned
from patches.train.ranks import OneRank, Ranks
from patches.train.schedule import learning_rate, num_steps, rows_of_step
from patches.train.stages import Objective

#: Steps between checkpoints, apart from those at validations and at the end of a stage.
SAVE_EVERY = 25
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


@dataclass(frozen=True)
class StageWork:
    """What one stage learns from and is validated on."""

    name: str
    objective: Objective
    validation: Objective
    benign: Objective
    benign_validation: Objective


@dataclass
class Loop:
    """Runs a stage from a state to its end."""

    config: TrainConfig
    learned: Learned
    #: Gets each new checkpoint.
    save: Callable[[RunState], None]
    #: Gets each record of a step or a validation, as it comes.
    tell: Callable[[Mapping[str, Any]], None]
    should_stop: Callable[[], bool] = lambda: False
    ranks: Ranks = field(default_factory=OneRank)

    def run_stage(self, work: StageWork, state: RunState) -> RunState:
        """Take the steps of a stage that are not yet done.

        Returns:
            The state at its end, with the best values in place; or, where the run is to stop, the state so
            far.

        Raises:
            TrainingStopped: A value is not finite, or memory does not suffice.
        """
        optimizer = self._optimizer(state)
        total = self._num_steps(work)
        while state.step < total and not self._is_exhausted(state):
            if self.should_stop():
                self._save(state)
                return state
            began = time.perf_counter()
            record, num_tokens = self._step(work, state.step, total, optimizer)
            state = self._after_step(state, record, optimizer)
            seconds = time.perf_counter() - began
            self.tell(record | {"total": total, "seconds": seconds, "num_tokens": num_tokens})
            if self._is_validation_due(work, state.step, total):
                state = self._validated(work, state)
                self._save(state)
            elif state.step % SAVE_EVERY == 0:
                self._save(state)
        return self._ended(state)

    def _step(
        self, work: StageWork, step: int, total: int, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Any], int]:
        config, key = self.config, f"{self.config.seed}:{work.name}"
        peak = config.learning_rate_of(work.name)
        rate = learning_rate(step, total, peak, config.schedule, config.warmup)
        rows = rows_of_step(len(work.objective), config.rows_per_step, step, f"rows:{key}")
        context = sample_context(self.learned.num_others, f"{key}:{step}")
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        with out_of_memory_explained():
            told = self._backward(work.objective, rows, context, 1.0)
            if len(work.benign) and config.benign_weight:
                silent = rows_of_step(len(work.benign), config.benign_rows_per_step, step, f"benign:{key}")
                kl = self._backward(work.benign, silent, context, config.benign_weight)
                told["benign_kl"] = kl["loss"]
        norm = self._synchronise(told)
        record = {"stage": work.name, "step": step + 1, **{k: float(v) for k, v in told.items()}}
        record |= {"grad_norm": norm, "learning_rate": rate}
        _require_finite(record)
        optimizer.step()
        if context != ALONE:
            record["num_others"] = len(context.others)
        return record, sum(work.objective.length_of(row) for row in rows)

    def _backward(
        self, objective: Objective, rows: Sequence[int], context: Context, weight: float
    ) -> dict[str, torch.Tensor]:
        told: dict[str, torch.Tensor] = {}
        total = objective.total_of(rows)
        for part in self._parts(objective, rows):
            loss, others = objective.shares(part, self.learned, context, total)
            (loss * weight).backward()  # type: ignore[no-untyped-call]
            for name, share in {"loss": loss.detach(), **others}.items():
                told[name] = told.get(name, torch.zeros_like(share)) + share
        return told or {"loss": torch.zeros((), device=self.learned.values.device)}

    def _parts(self, objective: Objective, rows: Sequence[int]) -> list[list[int]]:
        # Rows of like length side by side need little padding.
        mine = sorted(rows, key=lambda row: (objective.length_of(row), row))[
            self.ranks.index :: self.ranks.size
        ]
        size = self.config.batch_size
        return [mine[i : i + size] for i in range(0, len(mine), size)]

    def _synchronise(self, told: dict[str, torch.Tensor]) -> float:
        values = self.learned.values
        gradient = torch.zeros_like(values) if values.grad is None else values.grad
        values.grad = self.ranks.sum(gradient)
        for name in sorted(told):
            told[name] = self.ranks.sum(told[name].float())
        return float(torch.nn.utils.clip_grad_norm_([values], self.config.max_grad_norm))

    def _after_step(
        self, state: RunState, record: dict[str, Any], optimizer: torch.optim.Optimizer
    ) -> RunState:
        moments = optimizer.state[self.learned.values]
        return replace(
            state,
            step=state.step + 1,
            values=_copy(self.learned.values),
            moments=(_copy(moments["exp_avg"]), _copy(moments["exp_avg_sq"])),
            curves=[*state.curves, record],
        )

    def _validated(self, work: StageWork, state: RunState) -> RunState:
        if not len(work.validation):
            return state
        told = self._measure(work.validation)
        total_loss = told["loss"]
        if len(work.benign_validation) and self.config.benign_weight:
            told["benign_kl"] = self._measure(work.benign_validation)["loss"]
            total_loss += self.config.benign_weight * told["benign_kl"]
        record = {"stage": work.name, "step": state.step, "is_validation": True, **told}
        _require_finite(record)
        self.tell(record)
        is_best = state.best_loss is None or total_loss < state.best_loss
        return replace(
            state,
            best_loss=total_loss if is_best else state.best_loss,
            best_values=state.values if is_best else state.best_values,
            num_worse=0 if is_best else state.num_worse + 1,
            curves=[*state.curves, record],
        )

    def _measure(self, objective: Objective) -> dict[str, float]:
        rows = list(range(len(objective)))
        total = objective.total_of(rows)
        told: dict[str, float] = {}
        with torch.no_grad(), out_of_memory_explained():
            for part in self._parts(objective, rows):
                loss, others = objective.shares(part, self.learned, ALONE, total)
                for name, share in {"loss": loss, **others}.items():
                    told[name] = told.get(name, 0.0) + float(share)
        summed = self.ranks.sum(
            torch.tensor([told[n] for n in sorted(told)], device=self.learned.values.device)
        )
        return dict(zip(sorted(told), summed.tolist(), strict=True))

    def _ended(self, state: RunState) -> RunState:
        best = state.values if state.best_values is None else state.best_values
        with torch.no_grad():
            self.learned.values.copy_(best)
        state = replace(
            state,
            values=_copy(self.learned.values),
            moments=None,
            best_values=None,
            stage_start=None,
            reference=None,
            validation_reference=None,
            best_loss=None,
            num_worse=0,
            stage_idx=state.stage_idx + 1,
            step=0,
        )
        state = replace(state, is_finished=state.stage_idx == len(self.config.stages))
        self._save(state)
        return state

    def _optimizer(self, state: RunState) -> torch.optim.Optimizer:
        values = self.learned.values
        with torch.no_grad():
            values.copy_(state.values)
        optimizer = torch.optim.Adam([values], lr=0.0)
        if state.moments is not None:
            optimizer.state[values] = {
                "step": torch.tensor(float(state.step)),
                "exp_avg": state.moments[0].to(values.device, copy=True),
                "exp_avg_sq": state.moments[1].to(values.device, copy=True),
            }
        return optimizer

    def _num_steps(self, work: StageWork) -> int:
        if self.config.steps is not None:
            return self.config.steps
        return num_steps(len(work.objective), self.config.rows_per_step, self.config.epochs_of(work.name))

    def _is_validation_due(self, work: StageWork, step: int, total: int) -> bool:
        every = self.config.validate_every or math.ceil(len(work.objective) / self.config.rows_per_step)
        return step % every == 0 or step == total

    def _is_exhausted(self, state: RunState) -> bool:
        return 0 < self.config.patience <= state.num_worse

    def _save(self, state: RunState) -> None:
        if self.ranks.index == 0:
            self.save(state)
        self.ranks.wait()


@contextmanager
def out_of_memory_explained(more: str = "; or use --compute-dtype bfloat16") -> Iterator[None]:
    """Turn an allocator's error into advice.

    Args:
        more: What else helps, where the caller has such an option.

    Raises:
        TrainingStopped: Memory did not suffice.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(text in str(error).lower() for text in _OUT_OF_MEMORY):
            raise
        raise TrainingStopped(
            "out of memory: halve --batch-size and double --accumulate, which gives the same steps; or lower "
            f"--max-length{more}"
        ) from error


def _require_finite(record: Mapping[str, Any]) -> None:
    bad = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    if bad:
        raise TrainingStopped(
            f"{record['stage']}, step {record['step']}: {', '.join(bad)} is not finite; the step was not "
            f"taken, the last checkpoint is kept: start over with a lower --{record['stage']}-learning-rate"
        )


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).clone()
