"""The operations in plain torch and float64, one token at a time: what the fast ones are tested against."""

import math

import torch

from steering_kernels.conditions import MET, NOT_MET, ConditionTable, ScoreLedger
from steering_kernels.layout import SITES, SteeringTable
from steering_kernels.step import StepRequests, TokenRows


def steered_reference(
    state: torch.Tensor, row: int, table: SteeringTable, site: int, layer: int
) -> torch.Tensor | None:
    """Return a token's state, ``[d]`` float64, as the row moves it; None where the row leaves it alone."""
    form = table.forms[row]
    vector = table.vectors[layer, row].double()
    if form is None or SITES.index(form.site) != site or not vector.any():
        return None
    norm, length = state.norm(), vector.norm()
    cosine = state @ vector / (norm * length) if norm else torch.zeros_like(norm)
    gain = 1 + form.opposed_gain * max(0.0, -float(cosine))
    moved: torch.Tensor = state + (form.absolute + form.relative * norm) * gain * vector
    if form.is_renormalised and moved.norm():
        moved = moved * norm / moved.norm()
    return moved


def steer_residual_reference(
    hidden: torch.Tensor, residual: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int
) -> None:
    """See ``steer_residual_``."""
    for token, row in enumerate(rows.tensor[: len(hidden)].tolist()):
        state = hidden[token].double() + residual[token].double()
        moved = steered_reference(state, row, table, SITES.index("residual"), layer)
        if moved is not None:
            residual[token], hidden[token] = moved.to(residual.dtype), 0


def steer_output_reference(output: torch.Tensor, rows: TokenRows, table: SteeringTable, layer: int) -> None:
    """See ``steer_output_``."""
    for token, row in enumerate(rows.tensor[: len(output)].tolist()):
        moved = steered_reference(output[token].double(), row, table, SITES.index("mlp"), layer)
        if moved is not None:
            output[token] = moved.to(output.dtype)


def score_tokens_reference(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    rows: TokenRows,
    table: ConditionTable,
    ledger: ScoreLedger,
    slots: torch.Tensor,
    layer: int,
) -> None:
    """See ``score_tokens_``."""
    for token, row in enumerate(rows.tensor[: len(hidden)].tolist()):
        condition = table.conditions[row]
        state = hidden[token].double()
        if residual is not None:
            state = state + residual[token].double()
        for i, probe in enumerate(condition.probes if condition else ()):
            if layer in probe.layers:
                before = 0.0 if layer == probe.layers[0] else float(ledger.scores[slots[token], i])
                ledger.scores[slots[token], i] = before + float(state @ table.vectors[layer, row, i].double())


def read_flags_reference(
    requests: StepRequests, table: ConditionTable, ledger: ScoreLedger, rows: TokenRows
) -> None:
    """See ``read_flags_``."""
    query_start, starts, request_rows, _, stops = requests.host.tolist()
    for request, row in enumerate(request_rows):
        if row:
            is_answering = starts[request] >= stops[request]
            slot = _slot(requests, request, stops[request] - 1)
            acts = is_answering and int(ledger.flags[slot]) == MET and not int(table.rules[row, 1])
            rows.tensor[query_start[request] : query_start[request + 1]] = row if acts else 0
    rows.touch()


def decide_reference(
    requests: StepRequests, table: ConditionTable, ledger: ScoreLedger, rows: TokenRows, layer: int
) -> None:
    """See ``decide_``."""
    query_start, starts, request_rows, firsts, stops = requests.host.tolist()
    for request, row in enumerate(request_rows):
        condition = table.conditions[row]
        token = query_start[request] + stops[request] - 1 - starts[request]
        if condition is None or condition.last_layer != layer:
            continue
        if not query_start[request] <= token < query_start[request + 1]:
            continue
        slots = [_slot(requests, request, i) for i in range(firsts[request], stops[request])]
        met, is_finite = [], True
        for i, probe in enumerate(condition.probes):
            scores = ledger.scores[slots, i].double()
            score = probe.bias + float(scores[-probe.num_last :].mean())
            ledger.pooled[slots[-1], i] = score
            met.append(score > probe.threshold)
            is_finite = is_finite and math.isfinite(score)
        is_met = not is_finite or sum(met) >= condition.num_needed
        ledger.flags[slots[-1]] = MET if is_met else NOT_MET
        acts = is_met and not condition.is_shadow
        rows.tensor[token : query_start[request + 1]] = row if acts else 0
    rows.touch()


def _slot(requests: StepRequests, request: int, position: int) -> int:
    block = int(requests.block_table[request, position // requests.block_size])
    return block * requests.block_size + position % requests.block_size
