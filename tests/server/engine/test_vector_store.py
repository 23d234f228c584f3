"""The vectors of one worker: what fits, and which of them have a row of the table."""

from typing import Any

import pytest
import torch
from safetensors.torch import save

from server.engine.vector_store import ModelShape, VectorStore
from steering_kernels import ConditionTable, SteeringTable

NUM_LAYERS, HIDDEN_SIZE, NUM_SLOTS = 4, 8, 2
#: Of a pipeline's second stage.
LAYERS = [2, 3]
STEERING = {
    "site": "residual",
    "scale": "relative",
    "strength": 0.5,
    "opposed_gain": 0,
    "renormalise": True,
    "tokens": "answer",
}
FACTS: dict[str, Any] = {"steering": STEERING}
CONDITION = {
    "probes": [{"layers": [0, 1], "pool": "mean", "bias": 0.0, "threshold": 0.0}],
    "combine": "any",
    "shadow": False,
}


class Stand:
    """A store with the tables that it fills."""

    def __init__(self) -> None:
        self.table = SteeringTable.allocate(len(LAYERS), NUM_SLOTS + 1, HIDDEN_SIZE, "cpu")
        self.conditions = ConditionTable.allocate(len(LAYERS), NUM_SLOTS + 1, HIDDEN_SIZE, "cpu")
        shape = ModelShape(NUM_LAYERS, HIDDEN_SIZE, LAYERS)
        self.store = VectorStore(shape, self.table, self.conditions, NUM_SLOTS)

    def load(self, *names: str) -> None:
        for name in names:
            self.store.load(name, save({"vector": vector_of(name)}), False, FACTS)

    def held(self, row: int) -> torch.Tensor:
        return self.table.vectors[:, row]


def vector_of(name: str) -> torch.Tensor:
    return torch.full((NUM_LAYERS, HIDDEN_SIZE), float(ord(name[0]) - 96)) + torch.arange(NUM_LAYERS)[:, None]


@pytest.fixture
def stand() -> Stand:
    return Stand()


def test_a_row_holds_the_layers_of_this_rank(stand: Stand) -> None:
    stand.load("a")
    (row,) = stand.store.bring(["a"]).values()
    assert row > 0
    assert torch.equal(stand.held(row), vector_of("a")[LAYERS])


def test_the_vector_used_longest_ago_gives_up_its_row(stand: Stand) -> None:
    stand.load("a", "b", "c")
    before = stand.store.bring(["a", "b"])
    stand.store.bring(["a"])
    assert stand.store.bring(["c"]) == {"c": before["b"]}
    assert stand.store.in_slots() == ["a", "c"]
    assert torch.equal(stand.held(before["b"]), vector_of("c")[LAYERS])


def test_a_row_that_the_step_needs_is_never_given_away(stand: Stand) -> None:
    """The one too many is missing, so its requests fail; no other vector acts in its place."""
    stand.load("a", "b", "c")
    before = stand.store.bring(["a", "b"])
    assert stand.store.bring(["c", "a", "b"]) == before


def test_a_vector_that_was_dropped_has_no_row(stand: Stand) -> None:
    stand.load("a", "b")
    stand.store.bring(["a", "b"])
    assert stand.store.unload("a") == len(LAYERS) * HIDDEN_SIZE * 4
    assert list(stand.store.bring(["a", "b"])) == ["b"]
    assert stand.store.unload("a") == 0


@pytest.mark.parametrize(
    "layout",
    [
        {"vector": ([NUM_LAYERS - 1, HIDDEN_SIZE], "float32")},
        {"vector": ([NUM_LAYERS, HIDDEN_SIZE + 1], "float32")},
        {"vector": ([NUM_LAYERS, HIDDEN_SIZE], "bfloat16")},
        {},
    ],
    ids=["layers", "size", "dtype", "none"],
)
def test_a_vector_of_another_model_is_refused(stand: Stand, layout: Any) -> None:
    with pytest.raises(ValueError, match=r"vector: expected \[4, 8\] float32, got"):
        stand.store.check("a", layout, FACTS)


def test_a_condition_is_refused_with_the_reason_where_none_can_be_decided(stand: Stand) -> None:
    layout = {"vector": ([NUM_LAYERS, HIDDEN_SIZE], "float32"), "probes": ([2, HIDDEN_SIZE], "float32")}
    stand.store.condition_problem = "pipeline stages"
    with pytest.raises(ValueError, match="cannot be served here: pipeline stages"):
        stand.store.check("a", layout, FACTS | {"condition": CONDITION})
    assert stand.store.check("a", layout, FACTS)["digest"] == "a"


def test_a_condition_comes_and_goes_with_the_row_of_its_vector(stand: Stand) -> None:
    stand.store.condition_problem = None
    tensors = {"vector": vector_of("a"), "probes": torch.ones(2, HIDDEN_SIZE)}
    stand.store.load("a", save(tensors), False, FACTS | {"condition": CONDITION})
    row = stand.store.bring(["a"])["a"]
    held = stand.conditions.conditions[row]
    assert held is not None
    assert held.probes[0].layers == (0, 1)
    stand.load("b", "c")
    stand.store.bring(["b", "c"])
    assert stand.conditions.conditions == [None] * (NUM_SLOTS + 1)
