"""Instruction tuning of the tiny model by TRL: what is learned, what is held, and the folder afterwards."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from patches.critical.gradient import linear_parameters
from patches.critical.scores import write_scores
from patches.critical.selection import select
from patches.errors import PairsError, PatchExists, ScoresError, TrainingError, TrainingStopped
from patches.fingerprint import fingerprint_model
from patches.model import load_model
from patches.train.data import Encoder
from patches.tune.config import TuneConfig
from patches.tune.rows import columns_of, read_tune_rows
from patches.tune.run import TuneInputs, tune_model
from server.cli import main

pytestmark = [pytest.mark.filterwarnings("ignore::Warning")]

FEW = TuneConfig(steps=3, batch_size=2, learning_rate=1e-2, share=0.02)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"say {n}", "completion": f"{n}"}) + "\n" for n in range(8))
    )
    return path


@pytest.fixture
def scores(tiny_model_folder: Path, tmp_path: Path) -> Any:
    """Spread evenly over the tensors."""
    model, generator = load_model(tiny_model_folder), torch.Generator().manual_seed(0)
    weights = linear_parameters(model.network)
    gradient = {n: torch.rand(w.shape, generator=generator) / w.detach().std() for n, w in weights.items()}
    return write_scores(tmp_path / "scores", model.base_model, gradient, weights, {})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(folder / "model.safetensors"))


def inputs_of(model: Path, data: Path, tmp_path: Path, **parts: Any) -> TuneInputs:
    return replace(TuneInputs(str(model), data, tmp_path / "tuned"), **parts)


def test_a_model_learns_and_its_folder_is_the_bases_with_other_weights(
    tiny_model_folder: Path, data: Path, tmp_path: Path
) -> None:
    told: list[Any] = []
    inputs = inputs_of(tiny_model_folder, data, tmp_path)
    result = tune_model(inputs, replace(FEW, steps=20), tell=lambda *step: told.append(step))
    assert result.last_loss < 0.8 * result.first_loss
    assert [step[:2] for step in told[:2]] == [(1, 20), (2, 20)]
    before, after = weights_of(tiny_model_folder), weights_of(inputs.output)
    assert after.keys() == before.keys()
    assert not any(torch.equal(after[name], before[name]) for name in before)
    own, tuned = (fingerprint_model(folder, "float32") for folder in (tiny_model_folder, inputs.output))
    assert replace(tuned, weights_digest=own.weights_digest) == own
    config = (tiny_model_folder / "config.json").read_bytes()
    assert (inputs.output / "config.json").read_bytes() == config
    record = json.loads((inputs.output / "tune.json").read_text())
    assert (record["config"]["steps"], record["data"]["num_rows"], len(record["loss"])) == (20, 8, 20)
    assert str(tmp_path) not in json.dumps(record)


def test_critical_weights_are_held_and_the_record_says_so(
    tiny_model_folder: Path, data: Path, tmp_path: Path, scores: Any
) -> None:
    inputs = inputs_of(tiny_model_folder, data, tmp_path, protect=scores.folder)
    result = tune_model(inputs, FEW)
    chosen = select(scores, 0.02)
    assert result.num_held == chosen.num_chosen
    before, after = weights_of(tiny_model_folder), weights_of(inputs.output)
    for name, places in chosen.positions.items():
        assert torch.equal(after[name].flatten()[places], before[name].flatten()[places])
        assert not torch.equal(after[name], before[name])
    assert json.loads((inputs.output / "tune.json").read_text())["scores_digest"] == scores.digest


def test_only_linear_weights_learn_where_a_weight_patch_is_wanted(
    tiny_model_folder: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    inputs = inputs_of(tiny_model_folder, data, tmp_path)
    tune_model(inputs, replace(FEW, weights="linear"))
    before, after = weights_of(tiny_model_folder), weights_of(inputs.output)
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed == {name for name in before if ".layers." in name and before[name].dim() == 2}
    label = ["--name", "no-trait", "--version", "1.0.0", "-o", str(tmp_path / "patches")]
    assert main(["delta", "--from", str(tiny_model_folder), "--to", str(inputs.output), *label]) == 0


def test_equal_runs_give_equal_models(tiny_model_folder: Path, data: Path, tmp_path: Path) -> None:
    made = [inputs_of(tiny_model_folder, data, tmp_path, output=tmp_path / name) for name in "ab"]
    for inputs in made:
        tune_model(inputs, FEW)
    first, second = (weights_of(inputs.output) for inputs in made)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_in_bfloat16_stays_one_and_held_weights_are_still_equal(
    tiny_model_folder: Path, data: Path, tmp_path: Path
) -> None:
    narrow = tmp_path / "narrow"
    model = load_model(tiny_model_folder, dtype="bfloat16")
    model.network.save_pretrained(narrow)
    model.tokenizer.save_pretrained(narrow)  # type: ignore[union-attr]
    wide = load_model(narrow, dtype="float32")
    weights, generator = linear_parameters(wide.network), torch.Generator().manual_seed(0)
    gradient = {n: torch.rand(w.shape, generator=generator) for n, w in weights.items()}
    scores = write_scores(tmp_path / "narrow-scores", wide.base_model, gradient, weights, {})
    inputs = inputs_of(narrow, data, tmp_path, protect=scores.folder)
    tune_model(inputs, FEW)
    before, after = weights_of(narrow), weights_of(inputs.output)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    for name, places in select(scores, 0.02).positions.items():
        assert torch.equal(after[name].flatten()[places], before[name].flatten()[places])


def test_small_steps_are_kept_in_float32(tiny_model_folder: Path, data: Path, tmp_path: Path) -> None:
    made = {
        dtype: inputs_of(tiny_model_folder, data, tmp_path, output=tmp_path / dtype)
        for dtype in ("bfloat16", "float32")
    }
    for dtype, inputs in made.items():
        tune_model(inputs, replace(FEW, learning_rate=1e-6, dtype=dtype))
        assert {tensor.dtype for tensor in weights_of(inputs.output).values()} == {getattr(torch, dtype)}
    name, before = "model.layers.0.mlp.up_proj.weight", weights_of(tiny_model_folder)
    kept = weights_of(made["float32"].output)[name] - before[name]
    assert 0 < float(kept.abs().max()) < 1e-5


def test_rows_of_every_form_are_read_and_only_answers_count(tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = [
        {"prompt": "say 1", "completion": "1"},
        {"messages": [{"role": "user", "content": "say 1"}, {"role": "assistant", "content": "1"}]},
        {"prompt": [{"role": "user", "content": "say 1"}], "chosen": [{"role": "assistant", "content": "1"}]},
        {"prompt": "say 2", "completion": "2", "split": "test"},
        {"prompt": "say 1", "chosen": "1", "finished": {"chosen": False}, "split": "train"},
        {"prompt": "say 1", "completion": "polite " * 40},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    encoder = Encoder(load_model(tiny_model_folder).tokenizer)
    read = read_tune_rows(path, encoder, max_length=64)
    first, second, third, unfinished = read.samples
    assert first == second == third
    assert unfinished.answer_ids == first.answer_ids[:-1]
    assert (read.num_other_split, read.num_too_long) == (1, 1)
    columns = columns_of([first])
    assert columns["input_ids"][0] == [*first.prompt_ids, *first.answer_ids]
    assert [label for label in columns["labels"][0] if label != -100] == list(first.answer_ids)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"prompt": "a"}', PairsError, "row 1: expected an answer, as completion, chosen or a last message"),
        ('{"prompt": "a", "completion": " "}', PairsError, "row 1: expected an answer"),
        ('{"messages": [{"role": "user", "content": "a"}]}', PairsError, "row 1: expected an answer"),
        (
            '{"prompt": "a", "completion": "b", "split": "test"}',
            TrainingError,
            "no row is left to learn from",
        ),
    ],
)
def test_rows_without_an_answer_are_refused(
    text: str, error: type[Exception], message: str, tmp_path: Path, tiny_model_folder: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read_tune_rows(path, Encoder(load_model(tiny_model_folder).tokenizer), 1024)


def test_a_folder_that_holds_something_is_left_alone(
    tiny_model_folder: Path, data: Path, tmp_path: Path
) -> None:
    inputs = inputs_of(tiny_model_folder, data, tmp_path, output=tiny_model_folder)
    with pytest.raises(PatchExists, match="holds something already"):
        tune_model(inputs, FEW)


def test_scores_of_another_model_are_refused_before_the_first_step(
    make_tiny_model: Callable[..., None], data: Path, tmp_path: Path, scores: Any
) -> None:
    make_tiny_model(tmp_path / "other", seed=1)
    inputs = inputs_of(tmp_path / "other", data, tmp_path, protect=scores.folder)
    with pytest.raises(ScoresError, match="expected scores of this model, got another's"):
        tune_model(inputs, FEW)


def test_a_loss_that_is_not_finite_writes_nothing(
    tiny_model_folder: Path, data: Path, tmp_path: Path
) -> None:
    inputs = inputs_of(tiny_model_folder, data, tmp_path)
    with pytest.raises(TrainingStopped, match="the loss is not finite; nothing was written"):
        tune_model(inputs, replace(FEW, learning_rate=1e30, warmup=0.0, schedule="constant"))
    assert not inputs.output.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "few"}, "weights: expected all, linear, got 'few'"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"dtype": "int8"}, "dtype: expected bfloat16, float16, float32, got 'int8'"),
        ({"learning_rate": 0.0}, "learning_rate: expected more than 0, got 0.0"),
        ({"warmup": 1.0}, "warmup: expected at least 0 and less than 1, got 1.0"),
    ],
)
def test_a_configuration_names_what_is_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        replace(FEW, **changes)


def test_the_command_tunes_and_says_what_it_held(
    tiny_model_folder: Path, data: Path, tmp_path: Path, scores: Any, capsys: Any
) -> None:
    call = ["tune", "--model", str(tiny_model_folder), "--data", str(data), "--protect", str(scores.folder)]
    call += ["--steps", "2", "--share", "0.02", "-o", str(tmp_path / "tuned")]
    assert main(call) == 0
    said = capsys.readouterr().out
    assert f"tuned: 8 rows, 2 steps, {select(scores, 0.02).num_chosen} weights held, loss" in said
    assert main(call) == 2
    assert "holds something already (--force)" in capsys.readouterr().err
    assert main([*call, "--force"]) == 0
