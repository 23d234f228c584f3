"""What a step is told stays where it is, outlives no step, and is copied only where it changed."""

from typing import Any

import pytest
import torch

from steering_kernels import Form, StepRequests, TokenRows


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_a_shorter_step_leaves_no_row_of_a_longer_one(lab: Any) -> None:
    rows = lab.rows([1, 2, 3, 1, 2])
    address = rows.tensor.data_ptr()
    rows.assign(int32(3, 0))
    assert rows.tensor[:6].tolist() == [3, 0, 0, 0, 0, 0]
    rows.assign(int32(0, 0, 0))
    assert not rows.tensor.any()
    assert rows.is_idle
    rows.assign(int32(4, 4))
    rows.clear()
    assert not rows.tensor.any()
    assert rows.tensor.data_ptr() == address


def test_rows_that_are_as_they_were_are_not_copied_again(lab: Any) -> None:
    rows = lab.rows([1, 2, 0])
    rows.tensor[0] = 5  # stands for what a copy would undo
    rows.assign(int32(1, 2, 0))
    assert rows.tensor[0] == 5
    rows.assign(int32(1, 2, 1))
    assert rows.tensor[:3].tolist() == [1, 2, 1]


def test_rows_that_an_operation_set_do_not_outlive_their_step(lab: Any) -> None:
    rows = lab.rows([])
    rows.assign(int32(0, 0, 0), is_conditional=True)
    assert not rows.is_idle
    rows.tensor[1:3] = 4
    rows.assign(int32(0, 0, 0), is_conditional=True)
    assert not rows.tensor.any()
    rows.tensor[1:3] = 4
    rows.clear()
    assert not rows.tensor.any()
    assert rows.is_idle


def test_a_caller_may_reuse_its_buffer_at_once(lab: Any) -> None:
    buffer = int32(1, 2)
    rows = TokenRows.allocate(4, "cpu")
    rows.assign(buffer)
    buffer.zero_()
    rows.assign(buffer)
    assert not rows.tensor.any()


def test_the_plan_of_a_step_holds_as_long_as_rows_and_vectors_do(lab: Any) -> None:
    table = lab.table([Form("mlp", relative=0.1)] * 2, zero_layers=[1])
    rows = lab.rows([1, 2, 0, 1])
    plan = rows.plan(table, 4)
    found = plan.move(1, 0)
    rows.assign(int32(1, 2, 0, 1), is_conditional=True)
    rows.touch()
    assert rows.plan(table, 4) is plan
    assert plan.move(1, 0) is found
    assert plan.move(1, 2).move is found.move
    assert plan.move(0, 0) is None
    assert plan.move(1, 1).move.tokens.tolist() == [0, 3]
    table.put(2, lab.vector(7), Form("mlp", relative=0.1))
    assert rows.plan(table, 4).move(1, 1).move.tokens.tolist() == [0, 1, 3]
    rows.tensor[2] = 2
    rows.touch()
    assert rows.plan(table, 4).move(1, 1).move.span == (0, 4)
    assert rows.plan(table, 2).move(1, 1).move.span == (0, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.ones(3, dtype=torch.int64), "values: expected one axis of int32 on the CPU"),
        (torch.ones(1, 3, dtype=torch.int32), "values: expected one axis of int32 on the CPU"),
        (torch.ones(65, dtype=torch.int32), "values: expected at most 64, got 65"),
        (int32(1, -1), "values: expected 0 to .*, got -1 to 1"),
    ],
    ids=["dtype", "axes", "long", "negative"],
)
def test_rows_that_do_not_fit_are_refused(lab: Any, values: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lab.rows([]).assign(values)


def test_a_step_without_conditions_clears_the_requests_of_the_one_before(lab: Any) -> None:
    value = {"num": 2, "start": 0, "row": 1, "first": 0, "stop": 2}
    requests = lab.requests([value, value])
    assert not requests.is_idle
    address = requests.fields.data_ptr()
    lab.assign(requests, [value])
    assert requests.fields[2].tolist() == [1, 0, 0, 0, 0]
    lab.assign(requests, [value | {"row": 0}])
    assert requests.is_idle
    assert not requests.fields.any()
    assert requests.fields.data_ptr() == address


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([int32(0, 2), int32(0, 0), int32(1), int32(0), int32(2)], r"start: expected \[1\] torch.int32"),
        ([int32(0, 2).long(), int32(0), int32(1), int32(0), int32(2)], "query_start: .*int64"),
        ([int32(*range(6)), *[int32(*[1] * 5)] * 4], "query_start: expected 1 to 5, got 6"),
        ([int32(0, 2), int32(-1), int32(1), int32(0), int32(2)], "expected 0 or more, got -1"),
    ],
    ids=["length", "dtype", "many", "negative"],
)
def test_requests_that_do_not_fit_are_refused(lab: Any, columns: list[torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lab.requests([]).assign(*columns)


def test_a_block_table_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"block_table: expected \[4, max_blocks\] torch.int32"):
        StepRequests.allocate(4, torch.zeros(4, 2), 16, "cpu")
