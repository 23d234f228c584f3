"""The weight patches of one worker: found, written and taken back, in a network laid out as vLLM's."""

import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, RowParallelLinear, UnquantizedLinearMethod

from patches.kinds.delta import ChangedTensor, DeltaBody, packed_positions
from server.engine.delta_store import DeltaStore
from server.engine.weight_places import Places

Q, K, DOWN = (
    f"model.layers.0.{word}.weight" for word in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
)


class Linear(LinearBase):
    """What is asked of vLLM's linear layers, without their distributed state."""

    def __init__(self, weight: torch.Tensor, *sizes: int) -> None:
        nn.Module.__init__(self)
        self.tp_rank, self.tp_size = 0, 1
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.quant_method = UnquantizedLinearMethod.__new__(UnquantizedLinearMethod)
        if sizes:
            self.output_partition_sizes = list(sizes)


class RowLinear(Linear, RowParallelLinear):
    """One whose inputs are split over ranks."""


@pytest.fixture
def checkpoint(tmp_path: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {Q: (8, 8), K: (4, 8), "model.layers.0.self_attn.v_proj.weight": (4, 8), DOWN: (8, 16)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    return tensors


@pytest.fixture
def network(checkpoint: dict[str, torch.Tensor]) -> nn.Module:
    q, k, v, down = (tensor.clone() for tensor in checkpoint.values())
    layer = nn.Module()
    layer.self_attn, layer.mlp = nn.Module(), nn.Module()
    layer.self_attn.qkv_proj = Linear(torch.cat([q, k, v]), 8, 4, 4)
    layer.mlp.down_proj = Linear(down)
    root = nn.Module()
    root.model = nn.Module()
    root.model.layers = nn.ModuleList([layer])
    return root


@pytest.fixture
def store(network: nn.Module, tmp_path: Path) -> DeltaStore:
    return DeltaStore(Places(network), tmp_path, torch.float32, torch.device("cpu"))


def sent(
    store: DeltaStore, digest: str, body: DeltaBody, positions: dict[str, list[int]], value: float
) -> None:
    parts: dict[str, list[torch.Tensor]] = {"values": [], "indices": [], "mask": []}
    for tensor in body.tensors:
        chosen = torch.tensor(positions[tensor.name])
        parts["mask" if tensor.is_masked else "indices"].append(packed_positions(tensor, chosen))
        parts["values"].append(torch.full((len(chosen),), value))
    blob = safetensors.torch.save({name: torch.cat(part) for name, part in parts.items() if part})
    store.load(digest, blob, False, body.document())
    deadline = time.monotonic() + 30
    while store.loaded(digest) is None:
        assert time.monotonic() < deadline


BODY = DeltaBody((ChangedTensor(DOWN, (8, 16), 3), ChangedTensor(K, (4, 8), 2), ChangedTensor(Q, (8, 8), 5)))
POSITIONS = {DOWN: [0, 17, 127], K: [3, 31], Q: [0, 1, 2, 3, 63]}


def held(network: Any) -> dict[str, torch.Tensor]:
    """What the network holds, as the checkpoint lays it out."""
    layer = network.model.layers[0]
    q, k, _ = torch.split(layer.self_attn.qkv_proj.weight, [8, 4, 4])
    return {Q: q, K: k, DOWN: layer.mlp.down_proj.weight}


def test_what_is_written_is_the_patch_and_comes_back_to_the_last_bit(
    store: DeltaStore, network: nn.Module, checkpoint: dict[str, torch.Tensor]
) -> None:
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    sent(store, "a", BODY, POSITIONS, 5.0)
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())
    assert store.write("a") == ("a", 10)
    for name, tensor in held(network).items():
        expected = checkpoint[name].clone()
        expected.view(-1)[POSITIONS[name]] = 5.0
        assert torch.equal(tensor, expected)
    assert store.write(None) == (None, 0)
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())


def test_another_patch_is_written_upon_the_models_own_weights(store: DeltaStore, network: nn.Module) -> None:
    other = DeltaBody((ChangedTensor(K, (4, 8), 1),))
    sent(store, "a", BODY, POSITIONS, 5.0)
    sent(store, "b", other, {K: [4]}, 7.0)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    store.write("a")
    assert store.write("b") == ("b", 1)
    assert (held(network)[K].reshape(-1)[4], (held(network)[K] == 5.0).any()) == (7.0, False)
    store.write(None)
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())


def test_a_place_that_holds_something_else_than_the_checkpoint_is_not_written(
    store: DeltaStore, network: nn.Module
) -> None:
    sent(store, "a", BODY, POSITIONS, 5.0)
    held(network)[Q].view(-1)[63] = 1.0
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    with pytest.raises(
        ValueError, match=r"q_proj\.weight: expected the model to hold what the checkpoint says"
    ):
        store.write("a")
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())
    assert store.write(None) == (None, 0)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            ChangedTensor("model.layers.1.mlp.down_proj.weight", (8, 16), 1),
            "expected the weight of a linear layer",
        ),
        (ChangedTensor("model.norm.weight", (8, 8), 1), "expected the weight of a linear layer"),
        (ChangedTensor(K, (8, 8), 1), r"expected shape \[4, 8\], got \[8, 8\]"),
    ],
)
def test_tensors_that_the_model_does_not_have_are_refused_before_anything_is_sent(
    store: DeltaStore, tensor: ChangedTensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        store.check("a", {}, DeltaBody((tensor,)).document())


def test_what_is_written_stays(store: DeltaStore) -> None:
    sent(store, "a", BODY, POSITIONS, 5.0)
    store.write("a")
    with pytest.raises(ValueError, match="take it back first"):
        store.unload("a")
    store.write(None)
    assert store.unload("a") > 0
    with pytest.raises(ValueError, match="it was not sent"):
        store.write("a")


def ranks_of(tensor: torch.Tensor, tp_size: int, num_kv_head_replicas: int) -> list[nn.Module]:
    """K's part of a fused layer, as each rank of a tensor-parallel engine holds it."""
    modules = []
    for rank in range(tp_size):
        part = torch.chunk(tensor, tp_size // num_kv_head_replicas)[rank // num_kv_head_replicas]
        layer = Linear(torch.cat([torch.zeros(3, 8), part, part]), 3, len(part), len(part))
        layer.tp_rank, layer.tp_size, layer.num_kv_head_replicas = rank, tp_size, num_kv_head_replicas
        root = nn.Module()
        root.self_attn = nn.Module()
        root.self_attn.qkv_proj = layer
        modules.append(root)
    return modules


@pytest.mark.parametrize(("tp_size", "copies"), [(1, 1), (2, 1), (4, 1), (4, 2)])
def test_every_weight_of_a_fused_layer_is_found_on_its_rank_and_counted_once(
    tp_size: int, copies: int
) -> None:
    whole = torch.arange(32.0).reshape(4, 8)
    positions = torch.tensor([0, 3, 9, 16, 31])
    num_counted = 0
    for network in ranks_of(whole, tp_size, copies):
        place = Places(network).find("self_attn.k_proj.weight", (4, 8))
        is_here, local = place.local(positions)
        assert torch.equal(place.weight[local], whole.view(-1)[positions[is_here]])
        num_counted += 0 if place.is_copy else len(local)
    assert num_counted == len(positions)


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_every_weight_of_a_layer_split_by_columns_is_found_on_its_rank(tp_size: int) -> None:
    whole = torch.arange(32.0).reshape(4, 8)
    positions = torch.tensor([0, 3, 9, 16, 31])
    num_counted = 0
    for rank in range(tp_size):
        layer = RowLinear(torch.chunk(whole, tp_size, dim=1)[rank].contiguous())
        layer.tp_rank, layer.tp_size = rank, tp_size
        network = nn.Module()
        network.o_proj = layer
        place = Places(network).find("o_proj.weight", (4, 8))
        is_here, local = place.local(positions)
        assert torch.equal(place.weight[local], whole.view(-1)[positions[is_here]])
        num_counted += len(local)
    assert num_counted == len(positions)
