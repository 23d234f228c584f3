"""The moves in torch, for CPUs: as few calls as the form allows, on the tokens that are steered only.

A decode step moves a few rows of a few thousand numbers, so a call costs more than its arithmetic. The usual
form (relative, renormalised) takes eight on float32. Whatever else a step holds, a token gets the same bits:
every path does the same roundings in the same order.
"""

import torch

from steering_kernels.layout import SITES, TINY, SteeringTable
from steering_kernels.plan import Move
from steering_kernels.step import TokenRows

_RESIDUAL, _MLP = SITES.index("residual"), SITES.index("mlp")


def steer_residual_torch(
    hidden: torch.Tensor, residual: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int
) -> None:
    """See ``steer_residual_``."""
    move = rows.move(table, _RESIDUAL, layer, len(hidden))
    if move is None:
        return
    vectors, norms = table.vectors[layer], table.norms[_RESIDUAL, layer]
    if move.span is None:
        state = hidden.index_select(0, move.tokens).float()
        state.add_(residual.index_select(0, move.tokens))
        _steer(state, vectors, norms, move, torch.empty_like(state), state)
        residual.index_copy_(0, move.tokens, state.to(residual.dtype))
        hidden.index_fill_(0, move.tokens, 0)
        return
    first, stop = move.span
    if stop - first < len(hidden):
        hidden, residual = hidden[first:stop], residual[first:stop]
    if hidden.dtype == torch.float32:
        # What the two tensors hold is not needed once they are added up, so they are the scratch, too.
        _steer(residual.add_(hidden), vectors, norms, move, hidden, residual)
    else:
        state = hidden.float().add_(residual)
        _steer(state, vectors, norms, move, torch.empty_like(state), residual)
    hidden.zero_()


def steer_output_torch(output: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int) -> None:
    """See ``steer_output_``."""
    move = rows.move(table, _MLP, layer, len(output))
    if move is None:
        return
    vectors, norms = table.vectors[layer], table.norms[_MLP, layer]
    if move.span is None:
        state = output.index_select(0, move.tokens).float()
        _steer(state, vectors, norms, move, torch.empty_like(state), state)
        output.index_copy_(0, move.tokens, state.to(output.dtype))
        return
    first, stop = move.span
    output = output[first:stop]
    state = output.float()
    _steer(state, vectors, norms, move, torch.empty_like(state), output)


def steer_layer_torch(
    hidden: torch.Tensor, residual: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int
) -> None:
    """See ``steer_layer_``."""
    steer_output_torch(hidden, rows, table, layer)
    steer_residual_torch(hidden, residual, rows, table, layer)


def _steer(
    state: torch.Tensor,
    vectors: torch.Tensor,
    norms: torch.Tensor,
    move: Move,
    scratch: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Move ``state``, ``[n, d]`` float32, by its rows' vectors of one layer.

    ``scratch`` is of the same kind and lost; ``out`` is ``state``, or of the model's dtype.
    """
    vector = vectors[move.row] if move.row is not None else vectors.index_select(0, move.token_rows)
    norm = torch.linalg.vector_norm(state, 2, -1, True) if move.needs_norm else None
    target = scratch if move.is_renormalised else out
    if norm is None:
        torch.addcmul(state, move.absolute, vector, out=target)
    elif move.plain_relative is not None:
        torch.addcmul(state, norm, vector, value=move.plain_relative, out=target)
    else:
        length = torch.addcmul(move.absolute, norm, move.relative)
        if move.needs_cosine:
            length.mul_(_gain(state, norm, vector, norms, move))
        torch.addcmul(state, length, vector, out=target)
    if move.is_renormalised:
        assert norm is not None
        norm.div_(torch.linalg.vector_norm(target, 2, -1, True).clamp_min_(TINY))
        if move.changes_length is not None:
            norm.masked_fill_(move.changes_length, 1)
        torch.mul(target, norm, out=out)


def _gain(
    state: torch.Tensor, norm: torch.Tensor, vector: torch.Tensor, norms: torch.Tensor, move: Move
) -> torch.Tensor:
    length = norms[move.row] if move.row is not None else norms.index_select(0, move.token_rows)[:, None]
    # Multiplied out and summed row by row: the order within a matrix product depends on how many rows it has.
    cosine = (state * vector).sum(-1, True).div_((norm * length).clamp_min_(TINY))
    return cosine.neg_().clamp_min_(0).mul_(move.opposed_gain).add_(1)
