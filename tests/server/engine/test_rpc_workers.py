"""Every worker of every data-parallel rank has its say."""

from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch

from server.engine.client import PatchedAsyncLLM
from server.engine.rpc_workers import RpcWorkers
from server.memory.payload import Payload
from server.memory.residency import ResidencyError

PAYLOAD = Payload("d", "prefix", {"kv": torch.zeros(1, 2, 4, 1, 2)}, {"num_virtual_tokens": 4})


class Ranks:
    """Two engines of one worker each."""

    def __init__(self) -> None:
        self.shapes = [[1, 2, 4, 1, 2], [1, 2, 4, 1, 2]]
        self.asked: list[tuple[Any, ...]] = []

    async def call_utility_all_async(self, *call: Any) -> list[list[Any]]:
        self.asked.append(call)
        return [
            [{"digest": "d", "layout": {"kv": (shape, "float32")}, "nbytes": 10}] for shape in self.shapes
        ]


@pytest.fixture
def ranks() -> Ranks:
    return Ranks()


@pytest.fixture
def residency(ranks: Ranks) -> RpcWorkers:
    engine = SimpleNamespace(engine_core=ranks)
    engine.ask_workers = MethodType(PatchedAsyncLLM.ask_workers, engine)
    return RpcWorkers(engine)


async def test_bytes_of_all_ranks_are_added_up(ranks: Ranks, residency: RpcWorkers) -> None:
    assert await residency.check(PAYLOAD) == 20
    (call,) = ranks.asked
    assert call == (
        "collective_rpc",
        "policy_patch_check",
        120.0,
        ("d", "prefix", PAYLOAD.layout, {"num_virtual_tokens": 4}),
        None,
    )


async def test_one_rank_that_confirms_something_else_is_enough_to_refuse(
    ranks: Ranks, residency: RpcWorkers
) -> None:
    ranks.shapes[1] = [1, 2, 3, 1, 2]
    with pytest.raises(ResidencyError, match="expected every worker to confirm"):
        await residency.check(PAYLOAD)


async def test_patches_of_one_form_are_judged_once(ranks: Ranks, residency: RpcWorkers) -> None:
    again = Payload("e", PAYLOAD.kind, {"kv": torch.ones(1, 2, 4, 1, 2)}, PAYLOAD.facts)
    assert [await residency.check(payload) for payload in (PAYLOAD, again)] == [20, 20]
    assert len(ranks.asked) == 1


@pytest.mark.parametrize(
    "other",
    [
        Payload("d", "prefix", {"kv": torch.zeros(1, 2, 5, 1, 2)}, {"num_virtual_tokens": 5}),
        Payload("d", "prefix", {"kv": torch.zeros(1, 2, 4, 1, 2)}, {"num_virtual_tokens": 3}),
        Payload("d", "steering", {"kv": torch.zeros(1, 2, 4, 1, 2)}, {"num_virtual_tokens": 4}),
    ],
)
async def test_patches_of_another_form_are_judged_anew(
    other: Payload, ranks: Ranks, residency: RpcWorkers
) -> None:
    await residency.check(PAYLOAD)
    ranks.shapes = [other.layout["kv"][0]] * 2
    await residency.check(other)
    assert len(ranks.asked) == 2


async def test_what_was_refused_is_asked_again(ranks: Ranks, residency: RpcWorkers) -> None:
    ranks.shapes[1] = [1, 2, 3, 1, 2]
    with pytest.raises(ResidencyError):
        await residency.check(PAYLOAD)
    ranks.shapes[1] = [1, 2, 4, 1, 2]
    assert await residency.check(PAYLOAD) == 20
