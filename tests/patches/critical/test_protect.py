"""Weights that are held while an optimizer changes the rest."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.critical.protect import protect
from patches.critical.scores import read_scores
from patches.critical.selection import select
from patches.errors import ScoresError
from patches.model import LoadedModel

OPTIMIZERS: list[Callable[..., torch.optim.Optimizer]] = [
    lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1),
    lambda weights: torch.optim.SGD(weights, lr=1e-1, momentum=0.9),
    lambda weights: torch.optim.Adafactor(weights, lr=1e-2),
]


def steps(network: Any, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        network(torch.tensor([[5, 6, 7, 8]]), labels=torch.tensor([[5, 6, 7, 8]])).loss.backward()
        optimizer.step()


def state_of(network: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


@pytest.mark.parametrize("make", OPTIMIZERS, ids=["adamw", "sgd", "adafactor"])
def test_critical_weights_stay_to_the_last_bit_and_all_others_learn_as_without_it(
    make: Callable[..., torch.optim.Optimizer], model: LoadedModel, scores_folder: Path
) -> None:
    """One step, in which an unprotected twin begins from the same weights."""
    network, twin = model.network.requires_grad_(True), copy.deepcopy(model.network)
    before = state_of(network)
    optimizer = make(network.parameters())
    protection = protect(optimizer, network, scores_folder, 0.02)
    steps(network, optimizer, 1)
    steps(twin, make(twin.parameters()), 1)
    chosen, after, expected = select(read_scores(scores_folder), 0.02), state_of(network), state_of(twin)
    assert protection.num_held == chosen.num_chosen
    assert protection.changed() == []
    for name, weight in after.items():
        held = torch.zeros(weight.numel(), dtype=torch.bool)
        held[chosen.positions.get(name, torch.tensor([], dtype=torch.long))] = True
        assert torch.equal(weight.flatten()[held], before[name].flatten()[held])
        assert torch.equal(weight.flatten()[~held], expected[name].flatten()[~held])
        assert not torch.equal(weight, before[name])


def test_they_stay_through_many_steps_until_they_are_released(
    model: LoadedModel, scores_folder: Path
) -> None:
    network = model.network.requires_grad_(True)
    optimizer = OPTIMIZERS[0](network.parameters())
    protection = protect(optimizer, network, read_scores(scores_folder), 0.02)
    steps(network, optimizer, 5)
    assert protection.changed() == []
    protection.release()
    steps(network, optimizer, 1)
    assert len(protection.changed()) == len(select(read_scores(scores_folder), 0.02).positions)


def test_a_lora_adapter_is_refused_with_the_reason(model: LoadedModel, scores_folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    network = get_peft_model(model.network, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    weights = [p for p in network.parameters() if p.requires_grad]
    with pytest.raises(
        ScoresError, match="expected full tuning, got a LoRA adapter, which adds to every weight"
    ):
        protect(torch.optim.AdamW(weights), network, scores_folder)


def test_an_optimizer_that_trains_none_of_them_is_refused(model: LoadedModel, scores_folder: Path) -> None:
    network = model.network.requires_grad_(True)
    with pytest.raises(ScoresError, match="optimizer: expected one that trains the weights to protect"):
        protect(torch.optim.AdamW([network.lm_head.weight]), network, scores_folder)


def test_a_model_without_such_weights_is_refused(
    model: LoadedModel, scores_folder: Path, make_tiny_model: Callable[..., None], tmp_path: Path
) -> None:
    network = model.network.requires_grad_(True)
    wrapped = torch.nn.ModuleDict({"inner": network})
    optimizer = torch.optim.AdamW(network.parameters())
    with pytest.raises(ScoresError, match=r"got none named model\.layers.* more; give the model itself"):
        protect(optimizer, wrapped, scores_folder)
    with torch.no_grad():
        network.model.layers[0].self_attn.q_proj.weight.data = torch.zeros(8, 8)
        for module in network.model.layers[0].self_attn.children():
            module.weight.data = torch.zeros(8, 8)
    with pytest.raises(ScoresError, match="expected weights in the shapes that the scores have"):
        protect(optimizer, network, scores_folder, 0.25)
