"""The moves in torch, for CPUs: as few calls as the form allows, on the tokens that are steered only.

A decode step moves a few rows of a few thousand numbers, so a call costs more than its arithmetic. The usual
form (relative, renormalised) takes eight on float32. Whatever else a step holds, a token gets the same bits:
every path does the same roundings in the same order.
"""

import torch

from steering_kernels.layout import SITES, TINY, SteeringTable
from steering_kernels.plan import LayerMove
from steering_kernels.step import TokenRows

_RESIDUAL, _MLP = SITES.index("residual"), SITES.index("mlp")


def steer_residual_torch(
    hidden: torch.Tensor, residual: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int
) -> None:
    """See ``steer_residual_``."""
    plan = rows.plan(table, len(hidden))
    if plan is not None and (found := plan.move(_RESIDUAL, layer)) is not None:
        _steer_residual(hidden, residual, found)


def steer_output_torch(output: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int) -> None:
    """See ``steer_output_``."""
    plan = rows.plan(table, len(output))
    if plan is not None and (found := plan.move(_MLP, layer)) is not None:
        _steer_output(output, found)


def steer_layer_torch(
    hidden: torch.Tensor, residual: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int
) -> None:
    """See ``steer_layer_``."""
    plan = rows.plan(table, len(hidden))
    if plan is None:
        return
    if (found := plan.move(_MLP, layer)) is not None:
        _steer_output(hidden, found)
    if (found := plan.move(_RESIDUAL, layer)) is not None:
        _steer_residual(hidden, residual, found)


def _steer_residual(hidden: torch.Tensor, residual: torch.Tensor, found: LayerMove) -> None:
    span, tokens = found.move.span, found.move.tokens
    if span is None:
        state = hidden.index_select(0, tokens).float()
        state.add_(residual.index_select(0, tokens))
        _steer(state, found, torch.empty_like(state), state)
        residual.index_copy_(0, tokens, state.to(residual.dtype))
        hidden.index_fill_(0, tokens, 0)
        return
    if span[1] - span[0] < len(hidden):
        hidden, residual = hidden[span[0] : span[1]], residual[span[0] : span[1]]
    if hidden.dtype == torch.float32:
        # What the two tensors hold is not needed once they are added up, so they are the scratch, too.
        _steer(residual.add_(hidden), found, hidden, residual)
    else:
        state = hidden.float().add_(residual)
        _steer(state, found, torch.empty_like(state), residual)
    hidden.zero_()


def _steer_output(output: torch.Tensor, found: LayerMove) -> None:
    span, tokens = found.move.span, found.move.tokens
    if span is None:
        state = output.index_select(0, tokens).float()
        _steer(state, found, torch.empty_like(state), state)
        output.index_copy_(0, tokens, state.to(output.dtype))
        return
    if span[1] - span[0] < len(output):
        output = output[span[0] : span[1]]
    state = output.float()
    _steer(state, found, torch.empty_like(state), output)


def _steer(state: torch.Tensor, found: LayerMove, scratch: torch.Tensor, out: torch.Tensor) -> None:
    """Move ``state``, ``[n, d]`` float32.

    ``scratch`` is of the same kind and lost; ``out`` is ``state``, or of the model's dtype.
    """
    move, vector = found.move, found.vector
    norm = torch.linalg.vector_norm(state, 2, -1, True) if move.needs_norm else None
    target = scratch if move.is_renormalised else out
    if norm is None:
        torch.addcmul(state, move.absolute, vector, out=target)
    elif move.plain_relative is not None:
        torch.addcmul(state, norm, vector, value=move.plain_relative, out=target)
    else:
        step = torch.addcmul(move.absolute, norm, move.relative)
        if found.length is not None:
            # Multiplied out and summed: the order within a matrix product depends on how many rows it has.
            cosine = (state * vector).sum(-1, True).div_((norm * found.length).clamp_min_(TINY))
            step.mul_(cosine.neg_().clamp_min_(0).mul_(move.opposed_gain).add_(1))
        torch.addcmul(state, step, vector, out=target)
    if move.is_renormalised:
        assert norm is not None
        norm.div_(torch.linalg.vector_norm(target, 2, -1, True).clamp_min_(TINY))
        if move.changes_length is not None:
            norm.masked_fill_(move.changes_length, 1)
        torch.mul(target, norm, out=out)
