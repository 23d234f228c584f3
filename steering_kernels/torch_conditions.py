"""Conditions in torch, for CPUs, where the host sees the step: requests and rows, one after the other.

Work falls only where a prompt is computed, so decode steps pass here for the stored flags alone.
"""

import torch

from steering_kernels.conditions import MET, NOT_MET, ConditionTable, ScoreLedger
from steering_kernels.plan import span_of
from steering_kernels.step import StepRequests, TokenRows


def score_tokens_torch(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    rows: TokenRows,
    table: ConditionTable,
    ledger: ScoreLedger,
    slots: torch.Tensor,
    layer: int,
) -> None:
    """See ``score_tokens_``."""
    if rows.is_idle:
        return
    grouping = rows.grouping(len(hidden))
    for row in grouping.distinct:
        condition = table.conditions[row]
        if condition is None or not any(layer in probe.layers for probe in condition.probes):
            continue
        tokens, _ = grouping.of_rows([row])
        span = span_of(tokens)
        state = _chosen(hidden, tokens, span).float()
        if residual is not None:
            state = state + _chosen(residual, tokens, span)
        token_slots = _chosen(slots, tokens, span)
        for i, probe in enumerate(condition.probes):
            if layer in probe.layers:
                # Multiplied out and summed: a matrix product's order depends on how many rows it has.
                score = (state * table.vectors[layer, row, i]).sum(-1)
                if layer != probe.layers[0]:
                    score += ledger.scores[token_slots, i]
                ledger.scores[token_slots, i] = score


def _chosen(tensor: torch.Tensor, tokens: torch.Tensor, span: tuple[int, int] | None) -> torch.Tensor:
    return tensor[span[0] : span[1]] if span is not None else tensor.index_select(0, tokens)


def read_flags_torch(
    requests: StepRequests, table: ConditionTable, ledger: ScoreLedger, rows: TokenRows
) -> None:
    """See ``read_flags_``."""
    if requests.is_idle:
        return
    query_start, start, row, _, stop = requests.host.long()
    stops, is_conditional = stop[:-1], row[:-1] > 0
    is_answering = is_conditional & (start[:-1] >= stops)
    last = torch.where(is_answering, stops - 1, 0)
    blocks = requests.block_table[: len(last)].gather(1, (last // requests.block_size)[:, None])[:, 0]
    slots = torch.where(is_answering, blocks * requests.block_size + last % requests.block_size, 0)
    acts = is_answering & (ledger.flags[slots] == MET) & (table.rules[row[:-1], 1] == 0)
    lengths = query_start.diff().clamp_min_(0)
    num_tokens = int(lengths.sum())
    value = torch.where(acts, row[:-1], 0).int().repeat_interleave(lengths)
    chosen = is_conditional.repeat_interleave(lengths)
    rows.tensor[:num_tokens].copy_(torch.where(chosen, value, rows.tensor[:num_tokens]))
    rows.touch()


def decide_torch(
    requests: StepRequests, table: ConditionTable, ledger: ScoreLedger, rows: TokenRows, layer: int
) -> None:
    """See ``decide_``."""
    for request, row in requests.conditional:
        condition = table.conditions[row]
        if condition is None or condition.last_layer != layer:
            continue
        query_start, start, _, first, stop = requests.host[:, request].tolist()
        query_stop = int(requests.host[0, request + 1])
        token = query_start + stop - 1 - start
        if not query_start <= token < query_stop:
            continue
        slots = _slots(requests, request, first, stop)
        scores = ledger.scores[slots]
        pooled = scores.mean(0)
        num_met = 0
        for i, probe in enumerate(condition.probes):
            if probe.pool == "last":
                pooled[i] = scores[-probe.num_tokens :, i].mean()
            pooled[i] += probe.bias
            num_met += int(pooled[i] > probe.threshold)
        is_finite = bool(pooled[: len(condition.probes)].isfinite().all())
        is_met = not is_finite or num_met >= condition.num_needed
        pooled[len(condition.probes) :] = float("nan")
        ledger.pooled[slots[-1]] = pooled
        ledger.flags[slots[-1]] = MET if is_met else NOT_MET
        rows.tensor[token:query_stop] = row if is_met and not condition.is_shadow else 0
        rows.touch()


def _slots(requests: StepRequests, request: int, first: int, stop: int) -> torch.Tensor:
    positions = torch.arange(first, stop)
    blocks = requests.block_table[request].index_select(0, positions // requests.block_size)
    return blocks.long() * requests.block_size + positions % requests.block_size
