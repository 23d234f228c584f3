"""The operations, and which implementation carries them out: the only place that chooses.

========  =================================================================================================
triton    CUDA: one launch an operation, a program a token or a request; or Triton's interpreter
torch     CPU: the host sorts the step's tokens once, then each layer takes a few calls
========  =================================================================================================

All of them change tensors in place and return None. On CUDA none waits for the device or looks at a value on
the host, so they can be captured into graphs, and always launch; on a CPU an idle step returns at once.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Literal

import torch

from steering_kernels import torch_conditions, torch_ops
from steering_kernels.conditions import ConditionTable, ScoreLedger
from steering_kernels.layout import SteeringTable
from steering_kernels.step import StepRequests, TokenRows

Implementation = Literal["triton", "torch"]


@dataclass(frozen=True, slots=True)
class Choice:
    """An implementation, and why it."""

    implementation: Implementation
    reason: str


def choose_implementation(device: torch.device) -> Choice:
    """Choose for a device.

    Raises:
        ValueError: no implementation serves it; the message says why.
    """
    if device.type == "cpu":
        return Choice("torch", "on a CPU the host sorts tokens once a step")
    if device.type != "cuda":
        raise ValueError(f"device: expected cpu or cuda, got {device.type}; steering runs on no other")
    if importlib.util.find_spec("triton") is None:
        raise ValueError("device: expected Triton to be installed for steering on CUDA, got none; install it")
    return Choice("triton", "one launch an operation")


def steer_residual_(
    hidden: torch.Tensor, residual: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int
) -> None:
    """Steer what comes out of a layer, for models that keep the residual stream as the sum of two tensors.

    Args:
        hidden: ``[T, d]``, bfloat16, float16 or float32, last axis contiguous. Changed.
        residual: the same kind. Changed.
        rows: of the step's tokens, T or more.
        table: the vectors.
        layer: index of the layer in the table.

    Semantics: for each token ``t`` whose row acts here, with ``x = hidden[t] + residual[t]`` in float32:
    ``residual[t]`` becomes what the row's ``Form`` makes of ``x``, rounded once, and ``hidden[t]`` becomes 0.
    Every other token keeps its bits in both.
    """
    if hidden.device.type == "cpu":
        torch_ops.steer_residual_torch(hidden, residual, rows, table, layer)
    else:
        _triton_ops().steer_residual_triton(hidden, residual, rows, table, layer)


def steer_output_(output: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int) -> None:
    """Steer one tensor, what comes out of a layer's MLP.

    Args:
        output: ``[T, d]``, bfloat16, float16 or float32, last axis contiguous. Changed.
        rows: of the step's tokens, T or more.
        table: the vectors.
        layer: index of the layer in the table.

    Semantics: for each token ``t`` whose row acts here ``output[t]`` becomes what the row's ``Form`` makes of
    it, in float32, rounded once. Every other token keeps its bits.
    """
    if output.device.type == "cpu":
        torch_ops.steer_output_torch(output, rows, table, layer)
    else:
        _triton_ops().steer_output_triton(output, rows, table, layer)


def steer_layer_(
    hidden: torch.Tensor, residual: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int
) -> None:
    """Do both, for models in which what a layer's MLP returns leaves the layer as ``hidden``: one launch.

    Args and semantics are those of ``steer_residual_`` for rows that act on the residual stream, and those of
    ``steer_output_`` on ``hidden`` for rows that act on the MLP. Not for models that have a norm in between.
    """
    if hidden.device.type == "cpu":
        torch_ops.steer_layer_torch(hidden, residual, rows, table, layer)
    else:
        _triton_ops().steer_layer_triton(hidden, residual, rows, table, layer)


def score_tokens_(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    rows: TokenRows,
    table: ConditionTable,
    ledger: ScoreLedger,
    slots: torch.Tensor,
    layer: int,
) -> None:
    """Add a layer's part to the scores of prompt tokens.

    Args:
        hidden: ``[T, d]``, bfloat16, float16 or float32, last axis contiguous. Not changed.
        residual: the same kind, or None where ``hidden`` is the whole stream. Not changed.
        rows: the condition of each token; 0 for tokens that are no part of a conditional request's prompt.
        table: the conditions.
        ledger: ``scores`` is changed.
        slots: ``[T]`` int64, slots of the KV cache; read where the row is not 0.
        layer: index of the layer in the table.

    Semantics: for each token ``t`` with a row and each probe ``p`` of it that reads this layer, with ``x`` in
    float32: ``ledger.scores[slots[t], p]`` becomes, or grows by where it is not the probe's first layer,
    ``x @ table.vectors[layer, row, p]``. A token's bits depend on its own state alone.
    """
    if hidden.device.type == "cpu":
        torch_conditions.score_tokens_torch(hidden, residual, rows, table, ledger, slots, layer)
    else:
        _triton_ops().score_tokens_triton(hidden, residual, rows, table, ledger, slots, layer)


def read_flags_(requests: StepRequests, table: ConditionTable, ledger: ScoreLedger, rows: TokenRows) -> None:
    """Set the rows of conditional requests by what was decided in earlier steps; once a step, before a layer.

    Args:
        requests: of the step.
        table: the conditions.
        ledger: read only.
        rows: of steering, assigned before. Changed.

    Semantics: all tokens of a conditional request get its row where the step begins after the prompt, the
    flag at the slot of the prompt's last token is ``MET`` and the condition is no shadow; else they get 0.
    """
    if rows.tensor.device.type == "cpu":
        torch_conditions.read_flags_torch(requests, table, ledger, rows)
    else:
        _triton_ops().read_flags_triton(requests, table, ledger, rows)


def decide_(
    requests: StepRequests, table: ConditionTable, ledger: ScoreLedger, rows: TokenRows, layer: int
) -> None:
    """Decide for the requests whose prompt ends in this step, after ``score_tokens_`` of the same layer.

    Args:
        requests: of the step.
        table: the conditions; a request's is decided after the last layer that one of its probes reads.
        ledger: ``pooled`` and ``flags`` are changed.
        rows: of steering. Changed.
        layer: index of the layer in the table.

    Semantics: a probe's score is its bias plus the mean of ``ledger.scores`` over the slots of the prompt, or
    of its last few tokens. At the slot of the last one ``ledger.pooled`` becomes the scores, NaN where
    there is no probe, and ``ledger.flags`` ``MET`` where enough of them are above their thresholds, or where
    one is not finite: that a prompt is unknown is no reason to leave it alone. Else it becomes ``NOT_MET``.
    The request's tokens of this step from its prompt's last on get its row where it is met and no shadow,
    else 0. The bits depend on the prompt's scores alone, not on what else is in the step.
    """
    if rows.tensor.device.type == "cpu":
        torch_conditions.decide_torch(requests, table, ledger, rows, layer)
    else:
        _triton_ops().decide_triton(requests, table, ledger, rows, layer)


@cache
def _triton_ops() -> ModuleType:
    return importlib.import_module("steering_kernels.triton_ops")
