"""The operations as Triton kernels, a launch each: a program for every token, or for every request.

All that a program needs lies at fixed addresses on the device, so launches can be captured into graphs and
replayed for other steps. A token without a row costs its program one load. Imports triton, hence to be
imported lazily (``dispatch`` does).
"""

import torch
import triton
import triton.language as tl

from steering_kernels.conditions import (
    MAX_PROBES,
    MET,
    NOT_MET,
    OPENS,
    UNUSED,
    ConditionTable,
    ScoreLedger,
)
from steering_kernels.layout import SITES, TINY, SteeringTable
from steering_kernels.step import StepRequests, TokenRows

#: Slots that one program reads at a time when it pools a prompt's scores.
POOL_TILE = 256

#: What ``tl.sum`` adds with. It is called without ``tl.sum``, which can't be interpreted where triton was
#: imported before the interpreter was asked for.
_add = tl.standard._sum_combine

_TINY = tl.constexpr(TINY)
_PROBES = tl.constexpr(MAX_PROBES)
_UNUSED, _OPENS = tl.constexpr(UNUSED), tl.constexpr(OPENS)
_MET, _NOT_MET = tl.constexpr(MET), tl.constexpr(NOT_MET)


# Tables of norms are aligned in some layers only, and one kernel has to do for all.
@triton.jit(do_not_specialize_on_alignment=["stream_norms_ptr", "output_norms_ptr"])
def _steer_kernel(
    hidden_ptr,  # [T, d]
    residual_ptr,  # [T, d]; not read where only the MLP's site is served
    rows_ptr,  # [T] int32
    vectors_ptr,  # [R, d] float32, of this layer
    parameters_ptr,  # [R, 4] float32
    stream_norms_ptr,  # [R] float32, of this layer
    output_norms_ptr,  # [R] float32, of this layer
    hidden_stride,
    residual_stride,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_STREAM: tl.constexpr,
    HAS_OUTPUT: tl.constexpr,
):
    token = tl.program_id(0)
    row = tl.load(rows_ptr + token)
    if row == 0:
        return
    # A row acts at one of the sites, so one of the lengths is 0.
    length = 0.0
    if HAS_OUTPUT:
        length += tl.load(output_norms_ptr + row)
    stream_length = 0.0
    if HAS_STREAM:
        stream_length += tl.load(stream_norms_ptr + row)
        length += stream_length
    if length == 0:
        return
    absolute = tl.load(parameters_ptr + row * 4)
    relative = tl.load(parameters_ptr + row * 4 + 1)
    opposed_gain = tl.load(parameters_ptr + row * 4 + 2)
    is_renormalised = tl.load(parameters_ptr + row * 4 + 3)

    dims = tl.arange(0, TILE)
    mask = dims < SIZE
    is_stream = tl.full([TILE], 0.0, tl.float32) + stream_length > 0
    hidden = hidden_ptr + token.to(tl.int64) * hidden_stride + dims
    residual = residual_ptr + token.to(tl.int64) * residual_stride + dims
    x = tl.load(hidden, mask=mask, other=0.0).to(tl.float32)
    if HAS_STREAM:
        x += tl.load(residual, mask=mask & is_stream, other=0.0).to(tl.float32)
    v = tl.load(vectors_ptr + row.to(tl.int64) * SIZE + dims, mask=mask, other=0.0)

    norm = tl.sqrt(tl.reduce(x * x, 0, _add))
    cosine = tl.reduce(x * v, 0, _add) / tl.maximum(norm * length, _TINY)
    step = (absolute + relative * norm) * (1.0 + opposed_gain * tl.maximum(0.0, -cosine))
    u = x + step * v
    if is_renormalised != 0:
        u *= norm / tl.maximum(tl.sqrt(tl.reduce(u * u, 0, _add)), _TINY)
    if HAS_STREAM:
        tl.store(residual, u.to(residual_ptr.dtype.element_ty), mask=mask & is_stream)
        u = tl.where(is_stream, 0.0, u)
    tl.store(hidden, u.to(hidden_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _score_kernel(
    hidden_ptr,  # [T, d]
    residual_ptr,  # [T, d]; not read where there is none
    rows_ptr,  # [T] int32
    vectors_ptr,  # [R, P, d] float32, of this layer
    uses_ptr,  # [R, P] int32, of this layer
    slots_ptr,  # [T] int64
    scores_ptr,  # [num_slots, P] float32
    hidden_stride,
    residual_stride,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    token = tl.program_id(0)
    row = tl.load(rows_ptr + token).to(tl.int64)
    if row == 0:
        return
    if tl.reduce(tl.load(uses_ptr + row * _PROBES + tl.arange(0, _PROBES)), 0, _add) == _UNUSED:
        return
    dims = tl.arange(0, TILE)
    mask = dims < SIZE
    x = tl.load(hidden_ptr + token.to(tl.int64) * hidden_stride + dims, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual = residual_ptr + token.to(tl.int64) * residual_stride + dims
        x += tl.load(residual, mask=mask, other=0.0).to(tl.float32)
    score_ptr = scores_ptr + tl.load(slots_ptr + token) * _PROBES
    for probe in tl.static_range(_PROBES):
        use = tl.load(uses_ptr + row * _PROBES + probe)
        if use != _UNUSED:
            w = tl.load(vectors_ptr + (row * _PROBES + probe) * SIZE + dims, mask=mask, other=0.0)
            score = tl.reduce(x * w, 0, _add)
            if use != _OPENS:
                score += tl.load(score_ptr + probe)
            tl.store(score_ptr + probe, score)


@triton.jit
def _slot(block_table_ptr, position, block_size):
    return tl.load(block_table_ptr + position // block_size).to(tl.int64) * block_size + position % block_size


@triton.jit
def _write_rows(rows_ptr, first, stop, row, TILE: tl.constexpr):
    for start in range(first, stop, TILE):
        tokens = start + tl.arange(0, TILE)
        tl.store(rows_ptr + tokens, tl.full([TILE], 0, tl.int32) + row, mask=tokens < stop)


@triton.jit
def _read_flags_kernel(
    fields_ptr,  # [5, fields_stride] int32
    block_table_ptr,  # [max_num_reqs, max_blocks] int32
    rules_ptr,  # [R, 3] int32
    flags_ptr,  # [num_slots] int8
    rows_ptr,  # [capacity] int32
    fields_stride,
    block_table_stride,
    block_size,
    TILE: tl.constexpr,
):
    request = tl.program_id(0)
    row = tl.load(fields_ptr + 2 * fields_stride + request)
    if row == 0:
        return
    first_token, stop_token = tl.load(fields_ptr + request), tl.load(fields_ptr + request + 1)
    start = tl.load(fields_ptr + fields_stride + request)
    stop = tl.load(fields_ptr + 4 * fields_stride + request)
    acting = row * 0
    if start >= stop:
        blocks = block_table_ptr + request.to(tl.int64) * block_table_stride
        flag = tl.load(flags_ptr + _slot(blocks, stop - 1, block_size))
        if (flag == _MET) & (tl.load(rules_ptr + row * 3 + 1) == 0):
            acting = row
    _write_rows(rows_ptr, first_token, stop_token, acting, TILE)


@triton.jit(do_not_specialize=["layer"])
def _decide_kernel(
    fields_ptr,  # [5, fields_stride] int32
    block_table_ptr,  # [max_num_reqs, max_blocks] int32
    settings_ptr,  # [R, P, 3] float32
    rules_ptr,  # [R, 3] int32
    scores_ptr,  # [num_slots, P] float32
    pooled_ptr,  # [num_slots, P] float32
    flags_ptr,  # [num_slots] int8
    rows_ptr,  # [capacity] int32
    layer,
    fields_stride,
    block_table_stride,
    block_size,
    TILE: tl.constexpr,
):
    request = tl.program_id(0)
    row = tl.load(fields_ptr + 2 * fields_stride + request)
    if row == 0:
        return
    if tl.load(rules_ptr + row * 3 + 2) != layer:
        return
    num_needed, is_shadow = tl.load(rules_ptr + row * 3), tl.load(rules_ptr + row * 3 + 1)
    if num_needed == 0:
        return
    first_token, stop_token = tl.load(fields_ptr + request), tl.load(fields_ptr + request + 1)
    start = tl.load(fields_ptr + fields_stride + request)
    first = tl.load(fields_ptr + 3 * fields_stride + request)
    stop = tl.load(fields_ptr + 4 * fields_stride + request)
    token = first_token + stop - 1 - start
    if (token < first_token) | (token >= stop_token):
        return

    blocks = block_table_ptr + request.to(tl.int64) * block_table_stride
    probes = tl.arange(0, _PROBES)
    setting = settings_ptr + (row * _PROBES + probes) * 3
    num_last = tl.load(setting).to(tl.int32)
    starts = tl.maximum(first, stop - num_last)
    # A column of the tile is summed over the whole prompt first, so the order depends on its length alone.
    sums = tl.full([TILE, _PROBES], 0, tl.float32)
    for begin in range(first, stop, TILE):
        positions = begin + tl.arange(0, TILE)
        is_prompt = positions < stop
        block = tl.load(blocks + positions // block_size, mask=is_prompt, other=0).to(tl.int64)
        slots = block * block_size + positions % block_size
        places = slots[:, None] * _PROBES + probes[None, :]
        counts = is_prompt[:, None] & (positions[:, None] >= starts[None, :])
        sums += tl.load(scores_ptr + places, mask=counts, other=0.0)
    last = _slot(blocks, stop - 1, block_size) * _PROBES + probes
    # Where there is no probe nothing counts, and nothing is divided by.
    num_counted = tl.maximum(stop - starts, 1).to(tl.float32)
    pooled = tl.reduce(sums, 0, _add) / num_counted + tl.load(setting + 1)
    pooled = tl.where(num_last == 0, float("nan"), pooled)
    # NaN, a probe that is not there, is above nothing; one that is there has to have a finite score.
    num_met = tl.reduce((pooled > tl.load(setting + 2)).to(tl.int32), 0, _add)
    is_broken = (num_last != 0) & ((pooled != pooled) | (tl.abs(pooled) == float("inf")))
    is_met = (num_met >= num_needed) | (tl.reduce(is_broken.to(tl.int32), 0, _add) > 0)
    tl.store(pooled_ptr + last, pooled)
    tl.store(flags_ptr + _slot(blocks, stop - 1, block_size), tl.where(is_met, _MET, _NOT_MET).to(tl.int8))
    _write_rows(rows_ptr, token, stop_token, tl.where(is_met & (is_shadow == 0), row, 0), TILE)


def steer_residual_triton(
    hidden: torch.Tensor, residual: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int
) -> None:
    """See ``steer_residual_``."""
    _steer(hidden, residual, rows, table, layer, has_output=False)


def steer_output_triton(output: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int) -> None:
    """See ``steer_output_``."""
    _steer(output, None, rows, table, layer, has_output=True)


def steer_layer_triton(
    hidden: torch.Tensor, residual: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int
) -> None:
    """See ``steer_layer_``."""
    _steer(hidden, residual, rows, table, layer, has_output=True)


def _steer(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    rows: TokenRows,
    table: SteeringTable,
    layer: int,
    *,
    has_output: bool,
) -> None:
    num_tokens, size = hidden.shape
    if num_tokens == 0:
        return
    second = hidden if residual is None else residual
    tile = triton.next_power_of_2(size)
    _steer_kernel[(num_tokens,)](
        hidden,
        second,
        rows.tensor,
        table.vectors[layer],
        table.parameters,
        table.norms[SITES.index("residual"), layer],
        table.norms[SITES.index("mlp"), layer],
        hidden.stride(0),
        second.stride(0),
        SIZE=size,
        TILE=tile,
        HAS_STREAM=residual is not None,
        HAS_OUTPUT=has_output,
        num_warps=_num_warps(tile),
    )


def score_tokens_triton(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    rows: TokenRows,
    table: ConditionTable,
    ledger: ScoreLedger,
    slots: torch.Tensor,
    layer: int,
) -> None:
    """See ``score_tokens_``."""
    num_tokens, size = hidden.shape
    if num_tokens == 0:
        return
    second = hidden if residual is None else residual
    tile = triton.next_power_of_2(size)
    _score_kernel[(num_tokens,)](
        hidden,
        second,
        rows.tensor,
        table.vectors[layer],
        table.uses[layer],
        slots,
        ledger.scores,
        hidden.stride(0),
        second.stride(0),
        SIZE=size,
        TILE=tile,
        HAS_RESIDUAL=residual is not None,
        num_warps=_num_warps(tile),
    )


def _num_warps(tile: int) -> int:
    """Return warps enough that a thread holds 16 numbers of a row: two wide loads of bfloat16."""
    return max(1, min(16, tile // 512))


def read_flags_triton(
    requests: StepRequests, table: ConditionTable, ledger: ScoreLedger, rows: TokenRows
) -> None:
    """See ``read_flags_``."""
    _read_flags_kernel[(requests.max_num_reqs,)](
        requests.fields,
        requests.block_table,
        table.rules,
        ledger.flags,
        rows.tensor,
        requests.fields.stride(0),
        requests.block_table.stride(0),
        requests.block_size,
        TILE=POOL_TILE,
        num_warps=1,
    )
    rows.touch()


def decide_triton(
    requests: StepRequests, table: ConditionTable, ledger: ScoreLedger, rows: TokenRows, layer: int
) -> None:
    """See ``decide_``."""
    _decide_kernel[(requests.max_num_reqs,)](
        requests.fields,
        requests.block_table,
        table.settings,
        table.rules,
        ledger.scores,
        ledger.pooled,
        ledger.flags,
        rows.tensor,
        layer,
        requests.fields.stride(0),
        requests.block_table.stride(0),
        requests.block_size,
        TILE=POOL_TILE,
        num_warps=4,
    )
    rows.touch()
