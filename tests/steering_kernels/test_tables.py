"""What may be put into the tables, and what the refusals say."""

from typing import Any

import pytest
import torch

from steering_kernels import ConditionTable, Form, Probe, ScoreLedger, SteeringTable
from steering_kernels.checks import check_states

RELATIVE = Form("residual", relative=0.05)


def test_a_vector_is_kept_at_its_row_and_its_length_at_its_site_only(lab: Any) -> None:
    table = lab.table([])
    vector = 3 * lab.vector(1)
    vector[1] = 0
    table.put(2, vector, Form("mlp", 0.5, 0.25, 1.0, False))
    assert torch.equal(table.vectors[:, 2], vector)
    assert table.parameters[2].tolist() == [0.5, 0.25, 1.0, 0.0]
    torch.testing.assert_close(table.norms[1, :, 2], torch.tensor([3.0, 0.0, 3.0]))
    assert not table.norms[0].any()
    assert not table.vectors[:, [0, 1, 3]].any()


def test_a_row_that_is_filled_anew_forgets_the_site_it_acted_at(lab: Any) -> None:
    table = lab.table([RELATIVE])
    table.put(1, lab.vector(2), Form("mlp", relative=0.05))
    assert not table.norms[0].any()
    table.clear(1)
    assert not table.norms.any()
    assert not table.vectors.any()
    assert table.forms[1] is None


def test_a_vector_whose_squares_underflow_is_no_zero_vector(lab: Any) -> None:
    table = lab.table([])
    table.put(1, lab.vector(1) * 1e-25, RELATIVE)
    assert table.norms[0, :, 1].all()


@pytest.mark.parametrize("row", [-1, 0, 6])
def test_row_zero_and_rows_that_are_not_there_are_refused(lab: Any, row: int) -> None:
    table, conditions = lab.table([]), lab.conditions({})
    probe = (Probe((0,)),)
    for call in (
        lambda: table.put(row, lab.vector(1), RELATIVE),
        lambda: table.clear(row),
        lambda: conditions.put(row, lab.vector(1, 1), probe, 1, False),
        lambda: conditions.clear(row),
    ):
        with pytest.raises(ValueError, match=f"row: expected 1 to 5, got {row}"):
            call()


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (torch.zeros(2, 64), r"vector: expected \[3, 64\] torch.float32, got \[2, 64\]"),
        (torch.zeros(3, 64, dtype=torch.float64), "got .* torch.float64"),
        (torch.full((3, 64), float("inf")), "vector: expected finite values"),
        (torch.full((3, 64), float("nan")), "vector: expected finite values"),
    ],
    ids=["shape", "dtype", "infinite", "nan"],
)
def test_a_vector_that_does_not_fit_is_refused_and_changes_nothing(
    lab: Any, vector: torch.Tensor, message: str
) -> None:
    table = lab.table([RELATIVE])
    before = table.vectors.clone()
    with pytest.raises(ValueError, match=message):
        table.put(1, vector, RELATIVE)
    assert torch.equal(table.vectors, before)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (Form("attention", relative=0.1), "form.site: expected one of residual, mlp, got 'attention'"),  # type: ignore[arg-type]
        (Form("mlp", absolute=float("nan")), "form: expected finite parameters"),
        (Form("mlp", opposed_gain=-1.0), "form.opposed_gain: expected 0 or more, got -1.0"),
    ],
    ids=["site", "nan", "gain"],
)
def test_a_form_that_no_kernel_knows_is_refused(lab: Any, form: Form, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lab.table([]).put(1, lab.vector(1), form)


@pytest.mark.parametrize(
    ("probes", "num_rows", "num_needed", "message"),
    [
        ((), 0, 1, "probes: expected 1 to 4, got 0"),
        ((Probe((0,)),) * 5, 5, 1, "probes: expected 1 to 4, got 5"),
        ((Probe((2, 1)),), 2, 1, r"probes\[0\].layers: expected rising numbers from 0 to 2, got \[2, 1\]"),
        ((Probe((0,)), Probe((3,))), 2, 1, r"probes\[1\].layers: .* got \[3\]"),
        ((Probe(()),), 0, 1, r"probes\[0\].layers"),
        ((Probe((0, 1)),), 3, 1, r"vectors: expected \[2, 64\] torch.float32, got \[3, 64\]"),
        ((Probe((0,)),), 1, 2, "num_needed: expected 1 to 1, got 2"),
        ((Probe((0,)),), 1, 0, "num_needed: expected 1 to 1, got 0"),
    ],
    ids=["none", "many", "falling", "absent", "empty", "vectors", "needed", "needless"],
)
def test_a_condition_that_does_not_fit_is_refused(
    lab: Any, probes: tuple[Probe, ...], num_rows: int, num_needed: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lab.conditions({}).put(1, torch.ones(num_rows, lab.SIZE), probes, num_needed, False)


def test_tables_say_how_large_they_are_and_want_a_size() -> None:
    assert SteeringTable.allocate(2, 3, 16, "cpu").nbytes == 4 * (2 * 3 * 16 + 3 * 4 + 2 * 2 * 3)
    assert ConditionTable.allocate(2, 3, 16, "cpu").nbytes == 4 * (2 * 3 * 4 * 17 + 3 * 4 * 3 + 3 * 3)
    assert ScoreLedger.allocate(10, "cpu").nbytes == 10 * 33
    for call in (
        lambda: SteeringTable.allocate(0, 3, 16, "cpu"),
        lambda: ConditionTable.allocate(2, 0, 16, "cpu"),
        lambda: ScoreLedger.allocate(0, "cpu"),
    ):
        with pytest.raises(ValueError, match="expected 1 or more, got 0"):
            call()


@pytest.mark.parametrize(
    ("hidden", "residual", "rows", "message"),
    [
        (torch.zeros(2, 32), None, [1, 1], r"hidden: expected \[T, 64\]"),
        (torch.zeros(2, 64, dtype=torch.float64), None, [1, 1], "hidden: .*float64"),
        (torch.zeros(64, 2).t(), None, [1, 1], "hidden: expected the last axis contiguous"),
        (torch.zeros(2, 64), torch.zeros(3, 64), [1, 1], r"residual: expected \[2, 64\]"),
        (torch.zeros(2, 64), torch.zeros(2, 64).bfloat16(), [1, 1], "residual: .*bfloat16"),
        (torch.zeros(2, 64), None, [1], "rows: expected at least 2, got 1"),
        (torch.zeros(2, 64), None, [1, 6], "rows: expected 0 to 5, got 1 to 6"),
    ],
    ids=["size", "dtype", "strides", "residual", "residual-dtype", "short", "row"],
)
def test_a_layer_that_does_not_fit_the_tables_is_found_by_the_check(
    hidden: torch.Tensor, residual: torch.Tensor | None, rows: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_states(hidden, residual, 64, 6, torch.tensor(rows, dtype=torch.int32))
    check_states(torch.zeros(2, 64), torch.zeros(2, 64), 64, 6, torch.tensor([0, 5], dtype=torch.int32))
