"""Tables, states and steps to try the operations on, in torch and in Triton: on a GPU or its interpreter."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch

from steering_kernels import (
    ConditionTable,
    Form,
    Probe,
    ScoreLedger,
    SteeringTable,
    StepRequests,
    TokenRows,
    torch_conditions,
    torch_ops,
)

SIZE = 64
NUM_LAYERS = 3
NUM_ROWS = 6
BLOCK = 4
MAX_TOKENS = 64

#: How far an operation may be from the oracle, by the dtype of the states: the one table. Arithmetic is
#: float32 throughout; a narrower dtype adds one rounding, which may fall to the other side.
TOLERANCES = {
    torch.float32: {"rtol": 3e-6, "atol": 3e-6},
    torch.float16: {"rtol": 2**-10, "atol": 3e-6},
    torch.bfloat16: {"rtol": 2**-7, "atol": 3e-6},
}


@dataclass(frozen=True)
class Ops:
    """The operations of one implementation, and where they run."""

    device: torch.device
    steer_residual: Any
    steer_output: Any
    steer_layer: Any
    score_tokens: Any
    read_flags: Any
    decide: Any


@pytest.fixture(scope="session")
def triton_ops() -> Iterator[ModuleType]:
    """``steering_kernels.triton_ops``, made for the interpreter where there is no GPU."""
    pytest.importorskip("triton", exc_type=ImportError)
    if torch.cuda.is_available():
        yield importlib.import_module("steering_kernels.triton_ops")
        return
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRITON_INTERPRET", "1")
        # Nothing else in this process may have made the kernels for real.
        patched.delitem(sys.modules, "steering_kernels.triton_ops", raising=False)
        yield importlib.import_module("steering_kernels.triton_ops")


@pytest.fixture(params=["torch", "triton"])
def ops(request: pytest.FixtureRequest) -> Ops:
    if request.param == "torch":
        steers, conditions = torch_ops, torch_conditions
        device = torch.device("cpu")
    else:
        steers = conditions = request.getfixturevalue("triton_ops")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = {
        "steer_residual": steers,
        "steer_output": steers,
        "steer_layer": steers,
        "score_tokens": conditions,
        "read_flags": conditions,
        "decide": conditions,
    }
    return Ops(device, **{name: getattr(module, f"{name}_{request.param}") for name, module in names.items()})


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an operation reads before it has written it shows: fresh memory is NaN."""

    def empty_like(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
        return torch.full_like(tensor, float("nan"), **options)

    monkeypatch.setattr(torch, "empty_like", empty_like)


class Lab:
    """What every test of this folder does, as one fixture: test modules import nothing of each other."""

    SIZE = SIZE
    NUM_LAYERS = NUM_LAYERS
    BLOCK = BLOCK
    TOLERANCES = TOLERANCES

    @staticmethod
    def vector(seed: int, num_layers: int = NUM_LAYERS, size: int = SIZE) -> torch.Tensor:
        """Rows of length 1."""
        values = torch.randn(num_layers, size, generator=torch.Generator().manual_seed(seed))
        return torch.nn.functional.normalize(values)

    @classmethod
    def table(
        cls, forms: Sequence[Form], *, zero_layers: Sequence[int] = (), device: torch.device | None = None
    ) -> SteeringTable:
        """A table with a vector for each form, from row 1 on; the last one leaves ``zero_layers`` alone."""
        table = SteeringTable.allocate(NUM_LAYERS, NUM_ROWS, SIZE, device or "cpu")
        for row, form in enumerate(forms, start=1):
            vector = cls.vector(row)
            if row == len(forms):
                vector[list(zero_layers)] = 0
            table.put(row, vector, form)
        return table

    @staticmethod
    def rows(values: Sequence[int], device: torch.device | None = None) -> TokenRows:
        rows = TokenRows.allocate(MAX_TOKENS, device or "cpu")
        rows.assign(torch.tensor(values, dtype=torch.int32))
        return rows

    @staticmethod
    def states(num_tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
        """``[T, d]`` with a few large numbers, as hidden states have them."""
        states = torch.randn(num_tokens, SIZE, generator=torch.Generator().manual_seed(100 + seed))
        states[:, 3] *= 30
        return states.to(dtype)

    @classmethod
    def conditions(
        cls,
        rows: dict[int, tuple[Sequence[Probe], int, bool]],
        device: torch.device | None = None,
    ) -> ConditionTable:
        """A table with these probes, needed numbers and shadows."""
        table = ConditionTable.allocate(NUM_LAYERS, NUM_ROWS, SIZE, device or "cpu")
        for row, (probes, num_needed, is_shadow) in rows.items():
            vectors = cls.vector(50 + row, sum(len(probe.layers) for probe in probes))
            table.put(row, vectors, probes, num_needed, is_shadow)
        return table

    @staticmethod
    def ledger(device: torch.device | None = None) -> ScoreLedger:
        return ScoreLedger.allocate(32 * BLOCK, device or "cpu")

    @staticmethod
    def requests(
        values: Sequence[dict[str, int]], device: torch.device | None = None, seed: int = 0
    ) -> StepRequests:
        """Requests of ``num`` tokens each, in blocks that lie anywhere."""
        blocks = torch.randperm(32, generator=torch.Generator().manual_seed(seed)).int().view(4, 8)
        requests = StepRequests.allocate(4, blocks.to(device or "cpu"), BLOCK, device or "cpu")
        Lab.assign(requests, values)
        return requests

    @staticmethod
    def assign(requests: StepRequests, values: Sequence[dict[str, int]]) -> None:
        starts = torch.tensor([0, *(value["num"] for value in values)]).cumsum(0)
        requests.assign(
            starts.int(),
            *(
                torch.tensor([value[name] for value in values], dtype=torch.int32)
                for name in ("start", "row", "first", "stop")
            ),
        )

    @staticmethod
    def slots(requests: StepRequests, request: int, first: int, stop: int) -> torch.Tensor:
        positions = torch.arange(first, stop)
        blocks = requests.block_table[request].cpu()[positions // BLOCK]
        return blocks.long() * BLOCK + positions % BLOCK


@pytest.fixture(scope="session")
def lab() -> type[Lab]:
    return Lab
