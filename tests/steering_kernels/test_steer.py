"""Steering moves the tokens of a row as the formula says, and leaves every other bit as it was."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from steering_kernels import Form
from steering_kernels.layout import SITES
from steering_kernels.reference import (
    steer_output_reference,
    steer_residual_reference,
    steered_reference,
)

#: The paper's, the authors' and the plain one; then strengths together, and ones that weaken.
FORMS = {
    "paper": {"absolute": 0.12},
    "authors": {"relative": 0.3, "opposed_gain": 1.0},
    "plain": {"absolute": 4.0, "is_renormalised": False},
    "relative": {"relative": 0.05},
    "authors-plain": {"relative": 0.3, "opposed_gain": 2.0, "is_renormalised": False},
    "both": {"absolute": -2.0, "relative": 0.2, "opposed_gain": 0.5},
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def steered(
    ops: Any, lab: Any, site: str, states: torch.Tensor, rows: list[int], table: Any, layer: int = 1
) -> SimpleNamespace:
    """What an operation makes of states, as the sum that the next layer reads; and the two tensors."""
    step = lab.rows(rows, ops.device)
    if site == "mlp":
        output = states.to(ops.device, copy=True)
        ops.steer_output(output, step, table, layer)
        return SimpleNamespace(sum=output.cpu(), hidden=None, residual=output.cpu())
    hidden = lab.states(len(states), states.dtype, seed=9).to(ops.device)
    residual = states.to(ops.device, copy=True)
    ops.steer_residual(hidden, residual, step, table, layer)
    return SimpleNamespace(sum=(hidden + residual).cpu(), hidden=hidden.cpu(), residual=residual.cpu())


def expected(
    lab: Any, site: str, states: torch.Tensor, rows: list[int], table: Any, layer: int = 1
) -> SimpleNamespace:
    step = lab.rows(rows)
    if site == "mlp":
        output = states.clone()
        steer_output_reference(output, step, table, layer)
        return SimpleNamespace(sum=output, hidden=None, residual=output)
    hidden, residual = lab.states(len(states), states.dtype, seed=9), states.clone()
    steer_residual_reference(hidden, residual, step, table, layer)
    return SimpleNamespace(sum=hidden + residual, hidden=hidden, residual=residual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("site", SITES)
def test_a_steered_token_is_what_the_formula_says(
    ops: Any, lab: Any, site: str, form: dict[str, Any], dtype: torch.dtype
) -> None:
    forms = [Form(site, **form)]
    states, rows = lab.states(7, dtype), [1] * 7
    result = steered(ops, lab, site, states, rows, lab.table(forms, device=ops.device))
    oracle = expected(lab, site, states, rows, lab.table(forms))
    torch.testing.assert_close(result.residual, oracle.residual, **lab.TOLERANCES[dtype])
    if site == "residual":
        assert not result.hidden.any()


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 7, 33])
@pytest.mark.parametrize("pattern", [[1], [0, 1], [1, 0, 2, 3, 4]], ids=str)
@pytest.mark.parametrize("site", SITES)
def test_each_token_of_a_mixed_step_has_its_own_vector_and_form(
    ops: Any, lab: Any, site: str, pattern: list[int], num_tokens: int
) -> None:
    forms = [Form(site, **form) for form in list(FORMS.values())[:4]]
    states, rows = lab.states(num_tokens), (pattern * num_tokens)[:num_tokens]
    result = steered(ops, lab, site, states, rows, lab.table(forms, device=ops.device))
    oracle = expected(lab, site, states, rows, lab.table(forms))
    torch.testing.assert_close(result.sum, oracle.sum, **lab.TOLERANCES[torch.float32])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("site", SITES)
def test_a_token_that_is_not_steered_keeps_its_bits_in_both_tensors(
    ops: Any, lab: Any, site: str, dtype: torch.dtype
) -> None:
    # Row 2 leaves layer 1 alone, row 3 acts at the other site, row 4 is not filled; 1 is what moves.
    other = SITES[1 - SITES.index(site)]
    forms = [Form(site, relative=0.5), Form(other, relative=0.5), Form(site, relative=0.5)]
    table = lab.table(forms, zero_layers=[1], device=ops.device)
    rows = [0, 1, 2, 3, 4, 1, 0, 3]
    states, hidden = lab.states(8, dtype), lab.states(8, dtype, seed=9)
    states[0, 0] = float("nan")
    result = steered(ops, lab, site, states, rows, table)
    for token, row in enumerate(rows):
        is_same = torch.equal(result.residual[token].view(torch.uint8), states[token].view(torch.uint8))
        assert is_same == (row != 1), token
        if site == "residual" and row != 1:
            assert torch.equal(result.hidden[token], hidden[token])


@pytest.mark.parametrize("site", SITES)
def test_a_step_in_which_nothing_acts_at_this_layer_changes_nothing(ops: Any, lab: Any, site: str) -> None:
    table = lab.table([Form(site, relative=0.5)], zero_layers=[1], device=ops.device)
    states = lab.states(5)
    assert torch.equal(steered(ops, lab, site, states, [1] * 5, table, 1).residual, states)
    assert not torch.equal(steered(ops, lab, site, states, [1] * 5, table, 2).residual, states)


@pytest.mark.parametrize(
    ("site", "dtype"), [("residual", torch.float32), ("residual", torch.bfloat16), ("mlp", torch.float32)]
)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_token_has_the_same_bits_whatever_else_is_in_the_step(
    ops: Any, lab: Any, site: str, form: dict[str, Any], dtype: torch.dtype
) -> None:
    forms = [Form(site, **form), Form(site, absolute=1.0), *(Form(site, **f) for f in FORMS.values())]
    table = lab.table(forms[:5], device=ops.device)
    states = lab.states(33, dtype)
    alone = [steered(ops, lab, site, states[:n], [1] * n, table).sum[0] for n in (1, 2, 33)]
    beside = [
        steered(ops, lab, site, states, [1, *others], table).sum[0]
        for others in ([0] * 32, [0, 1] * 16, [2] * 32, [3, 0, 4, 5] * 8)
    ]
    assert all(torch.equal(other, alone[0]) for other in [*alone, *beside])


@pytest.mark.parametrize("site", SITES)
def test_rows_of_a_wider_tensor_are_steered_in_place_and_the_rest_of_it_is_not_touched(
    ops: Any, lab: Any, site: str
) -> None:
    table = lab.table([Form(site, relative=0.3)], device=ops.device)
    wide = torch.full((2, 6, 2 * lab.SIZE), float("nan"), device=ops.device)
    views = wide[:, :, : lab.SIZE]
    states = torch.stack([lab.states(6), lab.states(6, seed=9)]).to(ops.device)
    views.copy_(states)
    step = lab.rows([1, 0, 1, 1, 0, 1], ops.device)
    if site == "mlp":
        ops.steer_output(views[0], step, table, 1)
    else:
        ops.steer_residual(views[1], views[0], step, table, 1)
    narrow = steered(ops, lab, site, states[0], [1, 0, 1, 1, 0, 1], table)
    assert torch.equal(views[0].cpu(), narrow.residual)
    assert wide[:, :, lab.SIZE :].isnan().all()


def test_an_opposed_token_is_moved_further_and_others_are_not(ops: Any, lab: Any) -> None:
    table = lab.table([Form("mlp", relative=0.2, opposed_gain=1.0, is_renormalised=False)], device=ops.device)
    vector = lab.vector(1)[1]
    across = torch.nn.functional.normalize(lab.states(1)[0] - (lab.states(1)[0] @ vector) * vector, dim=0)
    # Both of length 5, so a step is 1; a cosine of -0.6 makes it 1.6.
    states = torch.stack([3 * vector + 4 * across, -3 * vector + 4 * across])
    moved = steered(ops, lab, "mlp", states, [1, 1], table).sum
    torch.testing.assert_close(moved @ vector, torch.tensor([4.0, -1.4]))


@pytest.mark.parametrize("site", SITES)
def test_a_renormalised_token_keeps_its_length(ops: Any, lab: Any, site: str) -> None:
    table = lab.table([Form(site, relative=0.5, opposed_gain=1.0)], device=ops.device)
    states = lab.states(9)
    before = states if site == "mlp" else states + lab.states(9, seed=9)
    after = steered(ops, lab, site, states, [1] * 9, table).sum
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1))
    assert not torch.allclose(after, before, rtol=0.05)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_no_state_becomes_nan_where_a_length_is_zero(
    ops: Any, lab: Any, gain: float, dtype: torch.dtype
) -> None:
    # A token of zeros; and one that the vector takes to zero exactly, which has no direction to be kept.
    table = lab.table([Form("mlp", absolute=2.0, opposed_gain=gain)], device=ops.device)
    vector = torch.zeros(lab.NUM_LAYERS, lab.SIZE)
    vector[:, 5] = 1.0
    table.put(2, vector, Form("mlp", relative=1 / (1 + gain), opposed_gain=gain))
    states = torch.stack([torch.zeros(lab.SIZE), vector[0] * -8, vector[0] * 8]).to(dtype)
    result = steered(ops, lab, "mlp", states, [1, 2, 2], table).sum
    assert not result[:2].any()
    torch.testing.assert_close(result[2], states[2])


def test_what_is_added_without_renormalising_is_the_vector(ops: Any, lab: Any) -> None:
    table = lab.table([Form("mlp", absolute=3.0, is_renormalised=False)], device=ops.device)
    states = torch.zeros(2, lab.SIZE)
    result = steered(ops, lab, "mlp", states, [1, 0], table).sum
    torch.testing.assert_close(result[0], 3 * lab.vector(1)[1])
    assert not result[1].any()


def test_the_oracle_agrees_with_the_formula_written_out(lab: Any) -> None:
    table = lab.table([Form("mlp", relative=0.5, opposed_gain=1.0)])
    vector = torch.zeros(lab.NUM_LAYERS, lab.SIZE)
    vector[:, 0] = 1.0
    table.put(1, vector, Form("mlp", relative=0.5, opposed_gain=1.0))
    state = torch.zeros(lab.SIZE, dtype=torch.float64)
    state[:2] = torch.tensor([-3.0, 4.0])
    # |x| = 5, cos = -0.6, so the step is 0.5 * 5 * 1.6 = 4 and u = (1, 4); then |x| / |u| = 5 / sqrt(17).
    moved = steered_reference(state, 1, table, SITES.index("mlp"), 1)
    assert moved is not None
    torch.testing.assert_close(moved[:2], torch.tensor([1.0, 4.0], dtype=torch.float64) * 5 / math.sqrt(17))
    assert steered_reference(state, 1, table, SITES.index("residual"), 1) is None


def test_a_vector_put_into_a_row_acts_from_the_next_layer_on(ops: Any, lab: Any) -> None:
    table = lab.table([Form("mlp", relative=0.5)], device=ops.device)
    step, states = lab.rows([1, 1], ops.device), lab.states(2)
    results = []
    for seed in (1, 2):
        table.put(1, lab.vector(seed), Form("mlp", relative=0.5))
        output = states.to(ops.device, copy=True)
        ops.steer_output(output, step, table, 1)
        results.append(output.cpu())
    assert not torch.allclose(*results)
    table.clear(1)
    output = states.to(ops.device, copy=True)
    ops.steer_output(output, step, table, 1)
    assert torch.equal(output.cpu(), states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_sites_at_once_are_what_each_is_by_itself(ops: Any, lab: Any, dtype: torch.dtype) -> None:
    forms = [Form("residual", **FORMS["authors"]), Form("mlp", **FORMS["authors"])]
    table = lab.table(forms, device=ops.device)
    step = lab.rows([1, 2, 0, 2, 1, 1, 2], ops.device)
    pairs = []
    for operations in ((ops.steer_layer,), (ops.steer_residual, None)):
        hidden = lab.states(7, dtype, seed=9).to(ops.device)
        residual = lab.states(7, dtype).to(ops.device)
        for operation in operations:
            if operation is None:
                ops.steer_output(hidden, step, table, 1)
            else:
                operation(hidden, residual, step, table, 1)
        pairs.append((hidden.cpu(), residual.cpu()))
    assert torch.equal(pairs[0][0], pairs[1][0])
    assert torch.equal(pairs[0][1], pairs[1][1])
    assert not pairs[0][0][0].any()
    assert pairs[0][0][1].any()
