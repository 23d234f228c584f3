"""Vectors that are learned: what the loop makes of them, and that the patch does what the loop saw."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.errors import CompileError, ModelUnusable, TrainingError
from patches.format import Patch, find_problems, make_patch, read_patch, write_patch
from patches.kinds.steering import Steering, SteeringBody
from patches.label import Label
from patches.model import LoadedModel, load_model
from patches.steer.batch import SteeredRow, steered
from patches.steer.vector import acting_layers, vector_of
from patches.train.config import TrainConfig
from patches.train.contexts import ALONE
from patches.train.data import Sample
from patches.train.forward import answer_logits
from patches.train.inputs import TrainInputs
from patches.train.run import TrainResult, Watch, train_patch
from patches.train.vectors import bounded, layers_to_learn, vector_form, vector_of_values
from server.cli import main

Make = Callable[..., TrainInputs]

VECTORS = TrainConfig(
    kind="steering",
    layers="1",
    strength=0.8,
    batch_size=4,
    sft_epochs=2,
    dpo_epochs=2,
    sft_learning_rate=0.05,
)


@pytest.fixture
def model(tiny_model_folder: Path) -> LoadedModel:
    """Of its own: hooks of a run stay in a network."""
    return load_model(tiny_model_folder)


def losses(result: TrainResult, stage: str) -> list[float]:
    curves = result.state.curves
    return [r["loss"] for r in curves if r["stage"] == stage and not r.get("is_validation")]


def trained(inputs: TrainInputs, config: TrainConfig, **options: Any) -> Patch:
    patch = train_patch(inputs, config, **options).patch
    assert patch is not None
    return patch


def test_both_stages_learn_and_give_a_valid_patch(make_inputs: Make) -> None:
    config = replace(VECTORS, sft_epochs=15, dpo_epochs=5, schedule="constant", patience=0)
    result = train_patch(make_inputs(init_text=None), config)
    sft, dpo = losses(result, "sft"), losses(result, "dpo")
    assert sft[-1] < 0.9 * sft[0]
    assert dpo[-1] < dpo[0]
    patch = result.patch
    assert patch is not None
    assert patch.manifest.body == SteeringBody(Steering("residual", "relative", 0.8, tokens="answer"))
    assert acting_layers(patch.tensors["vector"]) == {1}
    assert float(patch.tensors["vector"].norm(dim=1).max()) <= 1 + 1e-6
    config_told = patch.manifest.origin["config"]
    assert (config_told["kind"], config_told["layers"]) == ("steering", "1")
    assert "num_virtual_tokens" not in config_told


@pytest.mark.parametrize("site", ["residual", "mlp"])
def test_the_patch_does_what_the_loop_saw(model: LoadedModel, site: str) -> None:
    """Rows laid over each other, one of which answers with what another one asks."""
    config = replace(VECTORS, layers="0-1", site=site)
    form = vector_form(model, config, None)
    values = torch.randn(2, model.base_model.hidden_size, generator=torch.Generator().manual_seed(1))
    samples = [Sample((5, 6), (7, 8, 9)), Sample((5, 6, 7), (8, 10)), Sample((11,), (5, 6))]
    learned = form.learned(values)
    learned.patched(ALONE)
    seen = answer_logits(model.network, None, samples)
    learned.unpatched(ALONE)
    plain = answer_logits(model.network, None, samples)
    body = SteeringBody(config.steering)
    manifest = Label("v", "1.0.0").manifest(model.base_model, body, {"method": "trained"})
    acting = vector_of(make_patch(manifest, {"vector": vector_of_values(values, [0, 1], 2)}))
    own, start = load_model_of(model), 0
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.answer_ids]])
        with torch.no_grad(), steered(own, [SteeredRow(acting, len(sample.prompt_ids))]):
            logits = own(ids).logits[0, len(sample.prompt_ids) - 1 : -1]
        end = start + len(sample.answer_ids)
        torch.testing.assert_close(seen.logits[start:end], logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(plain.logits[start:end], logits, atol=1e-2)
        start = end


def load_model_of(model: LoadedModel) -> Any:
    import copy

    network = copy.deepcopy(model.network)
    for module in network.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module._forward_hooks_with_kwargs.clear()
        module._forward_pre_hooks_with_kwargs.clear()
    return network


def test_a_vector_is_for_the_dtype_that_is_served_and_loads_no_model_for_that(
    make_inputs: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patches.train.run.load_model", lambda *args, **options: pytest.fail("loaded again"))
    config = replace(VECTORS, stages=("sft",), dpo_reference="none", sft_epochs=1)
    patch = trained(replace(make_inputs(init_text=None), dtype="bfloat16"), config)
    assert patch.manifest.base_model.dtype == "bfloat16"
    assert patch.tensors["vector"].dtype == torch.float32


def test_rows_are_cut_to_length_one_and_shorter_ones_stay() -> None:
    assert bounded(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])).tolist() == [
        [pytest.approx(0.6), pytest.approx(0.8)],
        [pytest.approx(0.3), pytest.approx(0.4)],
        [0, 0],
    ]


def test_the_last_third_learns_where_no_layer_is_named() -> None:
    config = replace(VECTORS, layers=None)
    assert layers_to_learn(config, 30) == list(range(20, 30))
    assert layers_to_learn(config, 2) == [1]


def test_a_resumed_run_equals_an_uninterrupted_one(make_inputs: Make, benign_file: Path) -> None:
    whole = trained(make_inputs("whole", init_text=None, benign=benign_file), VECTORS)
    seen: list[Any] = []
    watch = Watch(lambda r: seen.append(r) if "grad_norm" in r else None, lambda: len(seen) >= 3)
    parts = make_inputs("parts", init_text=None, benign=benign_file)
    assert train_patch(parts, VECTORS, watch=watch).patch is None
    assert trained(parts, VECTORS, is_resumed=True).digest == whole.digest


def test_a_run_continues_from_a_vector(make_inputs: Make, model: LoadedModel, tmp_path: Path) -> None:
    vector = torch.zeros(2, model.base_model.hidden_size)
    vector[1, 3] = 0.5
    body = SteeringBody(Steering("residual", "relative", 0.1))
    manifest = Label("first", "1.0.0").manifest(model.base_model, body, {"method": "icv"})
    path = write_patch(make_patch(manifest, {"vector": vector}), tmp_path)
    still = replace(VECTORS, sft_learning_rate=1e-12, stages=("sft",), dpo_reference="none")
    made = trained(make_inputs(init_text=None, init_patch=path), still)
    torch.testing.assert_close(made.tensors["vector"], vector)
    assert made.manifest.origin["init_patch_digest"] == read_patch(path).digest
    with pytest.raises(TrainingError, match="init_patch: acts on layers 1, expected some of 0"):
        trained(make_inputs(init_text=None, init_patch=path), replace(still, layers="0"))


def test_benign_rows_hold_a_vector_back(make_inputs: Make, benign_file: Path) -> None:
    config = replace(VECTORS, sft_epochs=10, stages=("sft",), dpo_reference="none", patience=0)
    told: list[Any] = []
    trained(
        make_inputs(init_text=None, benign=benign_file),
        replace(config, benign_weight=1.0),
        watch=Watch(told.append),
    )
    assert told[-1].get("benign_kl", 0) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "prefix"}, "layers: expected it with the kind steering only, got 1"),
        ({"strength": 2.0}, "strength: expected more than 0, at most 1, got 2.0"),
        ({"site": "head"}, "site: expected residual or mlp, got head"),
    ],
)
def test_a_configuration_that_says_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        replace(VECTORS, **changes)


def test_layers_that_are_not_there_are_refused(make_inputs: Make) -> None:
    with pytest.raises(CompileError, match="layers: expected 0 to 1"):
        trained(make_inputs(init_text=None), replace(VECTORS, layers="5"))


def test_a_model_that_cannot_be_steered_is_refused_before_the_first_step(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patches.steer.network.ARCHITECTURES", frozenset({"Qwen3ForCausalLM"}))
    with pytest.raises(ModelUnusable, match="got LlamaForCausalLM"):
        vector_form(model, VECTORS, None)


def test_vectors_are_not_learned_among_prefixes(make_inputs: Make, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="compose_with: vectors and weights are the same"):
        trained(make_inputs(init_text=None, compose_with=(tmp_path / "a.safetensors",)), VECTORS)


def test_the_command_trains_a_vector(tiny_model_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    words = ["train", "--model", str(tiny_model_folder), "--pairs", str(pairs_file), "--kind", "steering"]
    words += ["--layers", "1", "--strength", "0.5", "--stages", "sft", "--sft-epochs", "1"]
    assert main([*words, "--name", "decline", "--version", "0.1.0", "-o", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "decline-0.1.0.safetensors"
    patch, problems = find_problems(path.read_bytes())
    assert problems == []
    assert patch is not None
    assert patch.manifest.kind == "steering"
    report = json.loads((tmp_path / "out" / "decline-0.1.0.training" / "report.json").read_text())
    assert report["config"]["strength"] == 0.5
