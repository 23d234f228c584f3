"""Weights that are learned: exactly the chosen ones, as masked AdamW would, and a weight patch of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.critical.gradient import linear_parameters
from patches.critical.scores import read_scores, write_scores
from patches.critical.selection import select
from patches.deltas.applied import at_work, changes_of
from patches.errors import ScoresError, TrainingError
from patches.format import Patch, find_problems
from patches.kinds.delta import DeltaBody
from patches.model import LoadedModel, load_model
from patches.pairs.rows import read_pairs
from patches.recipes.options import require_options
from patches.train.config import TrainConfig
from patches.train.contexts import ALONE
from patches.train.data import Encoder, encode_pairs
from patches.train.inputs import TrainInputs
from patches.train.run import TrainResult, Watch, train_patch
from patches.train.schedule import rows_of_step
from patches.train.stages import Sft
from patches.train.weights import WeightForm
from server.cli import main

Make = Callable[..., TrainInputs]

WEIGHTS = TrainConfig.of(kind="delta", steps=6, batch_size=4, share=0.02, sft_learning_rate=3e-3)


@pytest.fixture
def model(tiny_model_folder: Path) -> LoadedModel:
    """Of its own: a run changes it."""
    return load_model(tiny_model_folder)


@pytest.fixture
def scores_folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """Scores that are spread evenly; those of so small a model lie in two tensors."""
    model, generator = load_model(tiny_model_folder), torch.Generator().manual_seed(0)
    weights = linear_parameters(model.network)
    gradient = {n: torch.rand(w.shape, generator=generator) / w.detach().std() for n, w in weights.items()}
    return write_scores(tmp_path / "scores", model.base_model, gradient, weights, {}).folder


@pytest.fixture
def inputs(make_inputs: Make, scores_folder: Path) -> Make:
    def make(folder: str = "run", **parts: Any) -> TrainInputs:
        return make_inputs(folder, init_text=None, mask=scores_folder, **parts)

    return make


def trained(inputs: TrainInputs, config: TrainConfig = WEIGHTS, **options: Any) -> Patch:
    patch = train_patch(inputs, config, **options).patch
    assert patch is not None
    return patch


def losses(result: TrainResult) -> list[float]:
    return [r["loss"] for r in result.state.curves if not r.get("is_validation")]


def test_it_learns_and_gives_a_valid_weight_patch(inputs: Make) -> None:
    result = train_patch(inputs(), replace(WEIGHTS, steps=20, schedule="constant"))
    assert losses(result)[-1] < 0.9 * losses(result)[0]
    assert result.patch is not None
    body = result.patch.manifest.body
    assert isinstance(body, DeltaBody)
    origin = result.patch.manifest.origin
    assert (origin["method"], origin["config"]["share"], origin["config"]["steps"]) == ("set", 0.02, 20)
    assert origin["scores_digest"].startswith("sha256:")
    assert "num_virtual_tokens" not in origin["config"]


def test_only_chosen_weights_change_and_every_other_one_is_equal_to_the_last_bit(
    inputs: Make, model: LoadedModel, scores_folder: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    chosen = select(read_scores(scores_folder), 0.02).positions
    changes = changes_of(trained(inputs()))
    assert sum(len(change.positions) for change in changes) > 0.9 * sum(map(len, chosen.values()))
    with at_work(model.network, changes):
        for name, tensor in model.network.state_dict().items():
            differs = (tensor != before[name]).flatten().nonzero().flatten()
            assert set(differs.tolist()) <= set(chosen.get(name, torch.tensor([])).tolist())


def test_the_steps_are_those_of_masked_adamw(
    inputs: Make, model: LoadedModel, scores_folder: Path, pairs_file: Path
) -> None:
    """Done once more on the whole model: AdamW's own update, multiplied by the mask."""
    config = replace(WEIGHTS, steps=3, schedule="constant", warmup=0.0, max_grad_norm=1e9)
    changes = changes_of(trained(inputs(), config))
    network, weights = model.network, linear_parameters(model.network)
    masks = {name: torch.zeros(w.numel(), dtype=torch.bool) for name, w in weights.items()}
    for name, places in select(read_scores(scores_folder), 0.02).positions.items():
        masks[name][places] = True
    for weight in weights.values():
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights.values(), lr=config.sft_learning_rate, weight_decay=0.0)
    objective = Sft(network, encode_pairs(Encoder(model.tokenizer), read_pairs(pairs_file), 1024).train)

    class Whole:
        def patched(self, context: Any) -> None:
            return None

    for step in range(3):
        rows = rows_of_step(len(objective), 4, step, "rows:0:sft")
        optimizer.zero_grad()
        loss, _ = objective.shares(rows, Whole(), ALONE, objective.total_of(rows))  # type: ignore[arg-type]
        loss.backward()  # type: ignore[no-untyped-call]
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        optimizer.step()
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(torch.where(masks[name].view_as(weight), weight, before[name]))
    for change in changes:
        expected = weights[change.tensor.name].detach().flatten()[change.positions]
        torch.testing.assert_close(change.values, expected, atol=2e-5, rtol=1e-4)


def test_the_patch_does_what_the_loop_saw(inputs: Make, model: LoadedModel, pairs_file: Path) -> None:
    """The loss of the last validation, computed again under the patch in another model."""
    result = train_patch(inputs(), WEIGHTS)
    seen = [r["loss"] for r in result.state.curves if r.get("is_validation")][-1]
    assert result.patch is not None
    pairs = encode_pairs(Encoder(model.tokenizer), read_pairs(pairs_file), 1024)
    objective = Sft(model.network, pairs.validation)
    rows = range(len(objective))
    form = WeightForm(model.network, select(read_scores(inputs().mask), 0.02))  # type: ignore[arg-type]
    learned = form.learned(form.start())
    with torch.no_grad():
        before, _ = objective.shares(rows, learned, ALONE, objective.total_of(rows))
        again = learned.frozen(result.state.values)
        found, _ = objective.shares(rows, again, ALONE, objective.total_of(rows))
        learned.unpatched(ALONE)
    assert float(found) == pytest.approx(seen, abs=1e-4)
    assert float(before) != pytest.approx(seen, abs=1e-3)


def test_switched_off_the_model_is_its_own_to_the_last_bit(model: LoadedModel, scores_folder: Path) -> None:
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    form = WeightForm(model.network, select(read_scores(scores_folder), 0.02))
    learned = form.learned(torch.randn(len(form.start())))
    learned.patched(ALONE)
    assert not all(torch.equal(before[n], t) for n, t in model.network.state_dict().items())
    learned.unpatched(ALONE)
    assert all(torch.equal(before[n], t) for n, t in model.network.state_dict().items())
    assert not any(p.requires_grad for p in model.network.parameters())


def test_gradients_of_whole_tensors_are_let_go(model: LoadedModel, scores_folder: Path) -> None:
    form = WeightForm(model.network, select(read_scores(scores_folder), 0.02))
    learned = form.learned(form.start())
    learned.patched(ALONE)
    model.network(torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert all(p.grad is None for p in model.network.parameters())
    assert learned.values.grad is not None
    assert bool(learned.values.grad.any())


def test_a_resumed_run_equals_an_uninterrupted_one(inputs: Make, benign_file: Path) -> None:
    config = replace(WEIGHTS, stages=("sft", "dpo"), steps=4)
    whole = trained(inputs("whole", benign=benign_file), config)
    seen: list[Any] = []
    watch = Watch(lambda r: seen.append(r) if "grad_norm" in r else None, lambda: len(seen) >= 3)
    parts = inputs("parts", benign=benign_file)
    assert train_patch(parts, config, watch=watch).patch is None
    assert trained(parts, config, is_resumed=True).digest == whole.digest


def test_other_scores_are_another_run(inputs: Make, scores_folder: Path) -> None:
    train_patch(inputs(), WEIGHTS, watch=Watch(should_stop=lambda: True))
    path = scores_folder / "scores.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(TrainingError, match="belongs to another configuration"):
        train_patch(inputs(), WEIGHTS, is_resumed=True)


def test_random_weights_are_as_many_to_compare_with(inputs: Make) -> None:
    top, random = (trained(inputs(side), replace(WEIGHTS, side=side)) for side in ("top", "random"))
    bodies = [patch.manifest.body for patch in (top, random)]
    assert all(isinstance(body, DeltaBody) for body in bodies)
    assert bodies[0] != bodies[1]


def test_a_weight_patch_is_for_the_dtype_that_is_served(inputs: Make) -> None:
    patch = trained(replace(inputs(), dtype="bfloat16"))
    assert patch.manifest.base_model.dtype == "bfloat16"
    assert patch.tensors["values"].dtype == torch.bfloat16


def test_steps_that_round_to_nothing_are_refused(inputs: Make) -> None:
    with pytest.raises(Exception, match="learning rate: expected one that changes weights"):
        trained(replace(inputs(), dtype="bfloat16"), replace(WEIGHTS, sft_learning_rate=1e-12))


def test_a_hundred_steps_of_sft_are_the_default() -> None:
    config = TrainConfig.of(kind="delta")
    assert (config.stages, config.steps) == (("sft",), 100)
    assert TrainConfig.of().stages == ("sft", "dpo")
    assert TrainConfig.of(kind="delta", steps=7, stages=("sft", "dpo")).steps == 7
    require_options({"kind": "delta", "share": 0.01, "steps": 50}, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "prefix"}, "share: expected it with the kind delta only, got 0.02"),
        ({"share": 0.5}, "share: expected 0 to 0.25, got 0.5"),
        ({"side": "left"}, "side: expected top, bottom, random, got left"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
    ],
)
def test_a_configuration_that_says_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        replace(WEIGHTS, **changes)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"mask": None}, "mask: expected scores with the kind delta, and only with it"),
        (
            {"compose_with": (Path("a"),)},
            "compose_with: vectors and weights are the same beside every prefix",
        ),
        ({"init_patch": Path("a")}, "init_patch: weights begin as they are in the model"),
    ],
)
def test_inputs_that_weights_have_no_use_for_are_refused(
    parts: dict[str, Any], message: str, inputs: Make
) -> None:
    with pytest.raises(TrainingError, match=message):
        trained(replace(inputs(), **parts))


def test_scores_of_another_model_are_refused(
    inputs: Make, make_tiny_model: Callable[..., None], tmp_path: Path
) -> None:
    make_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(ScoresError, match="expected scores of this model, got another's"):
        trained(replace(inputs(), model=str(tmp_path / "other")))


def test_too_much_of_one_tensor_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    gradient = {name: torch.zeros_like(w) for name, w in linear_parameters(model.network).items()}
    gradient["model.layers.0.self_attn.v_proj.weight"] += 1
    weights = linear_parameters(model.network)
    scores = write_scores(tmp_path / "one", model.base_model, gradient, weights, {})
    with pytest.raises(TrainingError, match=r"share: expected at most 25% .* got .* of .*v_proj\.weight"):
        WeightForm(model.network, select(scores, 0.02))


def test_the_command_trains_weights(
    tiny_model_folder: Path, pairs_file: Path, scores_folder: Path, tmp_path: Path
) -> None:
    words = ["train", "--model", str(tiny_model_folder), "--pairs", str(pairs_file), "--kind", "delta"]
    words += ["--mask", str(scores_folder), "--steps", "3", "--share", "0.02"]
    assert main([*words, "--name", "set-harm", "--version", "0.1.0", "-o", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "set-harm-0.1.0.safetensors"
    patch, problems = find_problems(path.read_bytes())
    assert problems == []
    assert patch is not None
    assert patch.manifest.kind == "delta"
    report = json.loads((tmp_path / "out" / "set-harm-0.1.0.training" / "report.json").read_text())
    assert report["config"]["stages"] == ["sft"]
    assert main(["verify", str(path), "--model", str(tiny_model_folder)]) == 0
