"""Requests whose vector makes states that are not finite: found, kept back, and nothing of theirs stays."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from server.engine.steering_conditions import SlotView
from server.engine.steering_guard import StateGuard, StepCheck
from server.engine.withheld import without_tokens_of
from steering_kernels import TokenRows

#: Of four tokens, in blocks of two.
SLOTS = [6, 7, 20, 3]


def checked(
    state: torch.Tensor, rows: list[int], spans: list[tuple[str, int, int]]
) -> tuple[StateGuard, torch.Tensor]:
    """Run one step, and return its guard."""
    guard = StateGuard(8, torch.device("cpu"))
    of_tokens = TokenRows.allocate(8, "cpu")
    of_tokens.assign(torch.tensor(rows, dtype=torch.int32))
    guard.begin_step(spans)
    hidden = torch.zeros_like(state)
    guard.after_last_layer(hidden, state, of_tokens)
    view = SlotView(torch.zeros(1, 1, dtype=torch.int32), 2, torch.tensor(SLOTS))
    guard.end_step({0: view})
    return guard, hidden


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_steered_token_that_is_not_finite_is_found_with_its_slots(value: float, dtype: torch.dtype) -> None:
    state = torch.ones(4, 3, dtype=dtype)
    state[2, 1] = value
    guard, _ = checked(state, [1, 2, 2, 0], [("a", 0, 1), ("b", 1, 3)])
    (broken,) = guard.take_broken()
    assert (broken.req_id, broken.slots[0].tolist()) == ("b", [20])
    assert guard.take_broken() == []


def test_the_sum_of_two_large_tensors_counts_not_each_of_them() -> None:
    guard = StateGuard(8, torch.device("cpu"))
    rows = TokenRows.allocate(8, "cpu")
    rows.assign(torch.ones(1, dtype=torch.int32))
    guard.begin_step([("a", 0, 1)])
    half = torch.full((1, 3), 40_000.0, dtype=torch.float16)
    guard.after_last_layer(half, half.clone(), rows)
    guard.end_step({0: SlotView(torch.zeros(1, 1, dtype=torch.int32), 2, torch.tensor(SLOTS))})
    assert [broken.req_id for broken in guard.take_broken()] == ["a"]


def test_what_the_base_model_breaks_by_itself_is_none_of_a_vectors() -> None:
    state = torch.full((4, 3), float("nan"))
    state[1] = 1
    guard, _ = checked(state, [0, 1, 0, 0], [("a", 1, 2)])
    assert guard.take_broken() == []


def test_a_finite_step_has_nothing_to_read() -> None:
    guard, _ = checked(torch.ones(4, 3), [1, 1, 1, 1], [("a", 0, 4)])
    assert guard.latest is None


def test_blocks_that_a_request_has_lost_are_not_written_to() -> None:
    """They are another request's by then."""
    guard, _ = checked(torch.full((4, 3), float("nan")), [1, 1, 1, 1], [("a", 0, 2), ("b", 2, 4)])
    guard.note_gone({"a", "ended-earlier"})
    assert [broken.req_id for broken in guard.take_broken()] == ["b"]


class Later(AsyncModelRunnerOutput):
    def get_output(self) -> ModelRunnerOutput:
        return ModelRunnerOutput(["a", "b"], {"a": 0, "b": 1}, [[1], [2]])


def test_tokens_of_a_step_that_is_read_later_are_kept_back_by_its_own_flags() -> None:
    waited: list[bool] = []
    event: Any = SimpleNamespace(query=lambda: False, synchronize=lambda: waited.append(True))
    check = StepCheck((("a", 0, 1), ("b", 1, 2)), torch.tensor([False, True]), {}, event)
    left = without_tokens_of(set(), Later(), check)
    assert isinstance(left, AsyncModelRunnerOutput)
    assert not waited
    assert left.get_output().sampled_token_ids == [[1], []]
    assert waited
