"""Vectors on a small network of torch: which token is whose, and what the self-test at start finds."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn
from vllm.config import CompilationMode

from server.engine import steering_rows
from server.engine.plan import SteeredRequest, StepPlan
from server.engine.steering_hooks import config_problem, install, model_problem
from server.engine.steering_rows import SteeringRank, watch_steps
from server.engine.steering_selftest import find_problem

NUM_LAYERS, HIDDEN_SIZE, NUM_SLOTS = 3, 8, 2
STEERING = {
    "site": "residual",
    "scale": "absolute",
    "strength": 1.0,
    "opposed_gain": 0,
    "renormalise": False,
    "tokens": "all",
}


class Layer(nn.Module):
    """Adds a constant to a stream of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Identity()

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mlp(torch.ones_like(hidden)), hidden + residual


class Network(nn.Module):
    """What vLLM's classes have, as far as hooks are concerned."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(Layer() for _ in range(NUM_LAYERS))
        self.model.norm = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = torch.zeros_like(x)
        for layer in self.model.layers:
            x, residual = layer(x, residual)
        return self.model.norm(x + residual)


class Runner:
    """A model runner of the first version, as far as it is watched."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.max_num_tokens = 16
        self.input_batch = SimpleNamespace(req_ids=["a", "b", "c"])

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled: Any) -> str:
        return "prepared"

    def _dummy_run(self, num_tokens: int) -> tuple[torch.Tensor, None]:
        return self.network(torch.ones(num_tokens, HIDDEN_SIZE)), None


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        steering_rows, "get_pp_group", lambda: SimpleNamespace(is_last_rank=True, world_size=1)
    )
    monkeypatch.setattr(steering_rows, "get_tp_group", lambda: SimpleNamespace(rank_in_group=0))


class Stand:
    """A network with hooks, and its runner."""

    def __init__(self) -> None:
        self.network = Network()
        self.config = SimpleNamespace(
            model_config=SimpleNamespace(
                get_total_num_hidden_layers=lambda: NUM_LAYERS,
                get_hidden_size=lambda: HIDDEN_SIZE,
                model="toy",
                quantization=None,
            ),
            compilation_config=SimpleNamespace(cudagraph_capture_sizes=None, mode=CompilationMode.NONE),
            scheduler_config=SimpleNamespace(max_num_batched_tokens=16),
            parallel_config=SimpleNamespace(use_sequence_parallel_moe=False),
            speculative_config=None,
        )
        self.rank = SteeringRank(self.config, self.network, torch.device("cpu"), NUM_SLOTS)  # type: ignore[arg-type]
        self.runner = Runner(self.network)

    def hook(self) -> None:
        install(self.network, self.rank, self.config)  # type: ignore[arg-type]
        watch_steps(self.runner, self.rank)

    def step(self, counts: list[int], **steered: SteeredRequest) -> list[int]:
        """Prepare a step, run it, and return which of its tokens were changed, by position."""
        output = SimpleNamespace(
            kv_connector_metadata=StepPlan(steered=steered), finished_req_ids=set(), preempted_req_ids=None
        )
        assert self.runner._prepare_inputs(output, np.array(counts)) == "prepared"
        x = torch.ones(sum(counts), HIDDEN_SIZE)
        change = self.network(x) - (x + NUM_LAYERS)
        return change.abs().sum(-1).nonzero().flatten().tolist()


@pytest.fixture
def stand() -> Stand:
    made = Stand()
    made.hook()
    for name, layer in (("v", 0), ("w", 2)):
        vector = torch.zeros(NUM_LAYERS, HIDDEN_SIZE)
        vector[layer] = 1
        made.rank.store.load(name, save({"vector": vector}), False, {"steering": STEERING})
    return made


def test_tokens_are_steered_in_the_order_of_the_batch(stand: Stand) -> None:
    # Request b begins at its prefix's end; of c only the last prompt token and what follows.
    changed = stand.step(
        [2, 3, 4],
        b=SteeredRequest("v", num_prefix=1, num_prompt=4, start=1),
        c=SteeredRequest("w", num_prefix=0, num_prompt=9, start=6, from_answer=True),
    )
    assert changed == [2, 3, 4, 7, 8]
    assert stand.rank.take_counts() == {"v": 3, "w": 2}


def test_nothing_is_left_of_a_step_in_the_next(stand: Stand) -> None:
    assert stand.step([1, 1, 1], a=SteeredRequest("v", 0, 1, 0)) == [0]
    assert stand.step([1, 1, 1]) == []
    assert stand.step([4, 4, 4], c=SteeredRequest("v", 0, 8, 4)) == [8, 9, 10, 11]


def test_a_step_that_no_scheduler_planned_is_steered_by_nothing(stand: Stand) -> None:
    """As those of vLLM's second model runner, which warms up with requests of its own."""
    assert stand.step([2, 2, 2], a=SteeredRequest("v", 0, 1, 0)) == [0, 1]
    output = SimpleNamespace(kv_connector_metadata=None, finished_req_ids=set())
    assert stand.runner._prepare_inputs(output, np.array([2, 2, 2])) == "prepared"
    x = torch.ones(6, HIDDEN_SIZE)
    assert torch.equal(stand.network(x), x + NUM_LAYERS)


def test_a_chunk_before_the_last_prompt_token_is_left_alone(stand: Stand) -> None:
    chunk = SteeredRequest("v", num_prefix=0, num_prompt=9, start=0, from_answer=True)
    assert stand.step([8, 1, 1], a=chunk) == []
    assert stand.step([1, 1, 1], a=chunk._replace(start=8)) == [0]


def test_a_request_without_its_vector_is_reported_in_each_step_until_it_ends(stand: Stand) -> None:
    lost = SteeredRequest("lost", 0, 2, 0)
    assert stand.step([2, 1, 1], a=lost) == []
    report = stand.rank.take_report()
    assert report is not None
    assert set(report.failed) == stand.rank.failed == {"a"}
    # Even if the vector comes meanwhile: what was computed without it is wrong.
    stand.rank.store.load(
        "lost", save({"vector": torch.ones(NUM_LAYERS, HIDDEN_SIZE)}), False, {"steering": STEERING}
    )
    stand.step([1, 1, 1], a=lost._replace(start=2))
    assert stand.rank.failed == {"a"}
    output = SimpleNamespace(kv_connector_metadata=StepPlan(), finished_req_ids={"a"}, preempted_req_ids=None)
    stand.runner._prepare_inputs(output, np.array([1, 1, 1]))
    assert stand.rank.failed == set()


def test_a_rank_that_is_not_heard_ends_the_engine_instead(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand.rank, "_is_heard", False)
    with pytest.raises(RuntimeError, match="request a: vector lost is not on the device"):
        stand.step([1, 1, 1], a=SteeredRequest("lost", 0, 1, 0))


def test_the_self_test_passes_where_vectors_act() -> None:
    stand = Stand()
    stand.hook()
    assert find_problem(stand.rank, stand.runner, stand.network) is None
    assert stand.step([1, 1, 1]) == []


def test_the_self_test_finds_that_hooks_are_missing() -> None:
    """As in a compiled graph of an earlier start."""
    stand = Stand()
    assert "change its tokens" in str(find_problem(stand.rank, stand.runner, stand.network))


def test_the_self_test_finds_tokens_that_reach_others() -> None:
    stand = Stand()
    stand.hook()
    stand.network.model.layers[1].register_forward_hook(lambda layer, x, y: (y[0], y[1] + y[1].mean(0)))
    assert "leave other tokens alone" in str(find_problem(stand.rank, stand.runner, stand.network))


def test_the_self_test_finds_a_model_that_ends_otherwise() -> None:
    """Which returns the whole stream beside an old one, say."""
    stand = Stand()
    stand.hook()
    stand.network.model.layers[-1].register_forward_hook(lambda layer, x, y: (y[0] + 0.5 * y[1], y[1]))
    assert "the stream of its last layer" in str(find_problem(stand.rank, stand.runner, stand.network))


def test_a_network_that_no_test_knows_is_refused_by_its_name() -> None:
    assert "expected one of Gemma2ForCausalLM" in str(model_problem(Network()))
    # The name alone is no proof.
    assert model_problem(type("LlamaForCausalLM", (Network,), {})()) is not None


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("model_config", {"quantization": "awq"}, "toy is quantised (awq)"),
        ("parallel_config", {"use_sequence_parallel_moe": True}, "sequence parallelism"),
        ("speculative_config", {"enable_adaptive_verification": True}, "adaptive verification"),
    ],
)
def test_configurations_that_spread_tokens_are_refused(
    part: str, changes: dict[str, Any], reason: str
) -> None:
    config = Stand().config
    setattr(config, part, SimpleNamespace(**{**vars(getattr(config, part) or SimpleNamespace()), **changes}))
    assert reason in str(config_problem(config))  # type: ignore[arg-type]


def test_an_ordinary_configuration_is_served() -> None:
    assert config_problem(Stand().config) is None  # type: ignore[arg-type]
