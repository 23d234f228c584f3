"""Whole runs on the tiny model: what they learn, and that nothing but seed and data decides it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.compile import compile_text
from patches.errors import BaseModelMismatch, TrainingError
from patches.format import Patch, encode_patch, find_problems, make_patch, write_patch
from patches.label import Label
from patches.manifest import encode_manifest
from patches.model import LoadedModel
from patches.train.config import TrainConfig
from patches.train.inputs import TrainInputs
from patches.train.run import TrainResult, Watch, train_patch

Make = Callable[..., TrainInputs]


def losses(result: TrainResult, stage: str, *, is_validation: bool = False) -> list[float]:
    return [
        record["loss"]
        for record in result.state.curves
        if record["stage"] == stage and bool(record.get("is_validation")) == is_validation
    ]


def trained(inputs: TrainInputs, config: TrainConfig, **options: Any) -> Patch:
    patch = train_patch(inputs, config, **options).patch
    assert patch is not None
    return patch


def stop_after(num_steps: int) -> Watch:
    """Ask a run to stop when so many steps are done."""
    seen: list[Any] = []
    return Watch(lambda r: seen.append(r) if "grad_norm" in r else None, lambda: len(seen) >= num_steps)


def test_both_stages_learn_and_give_a_valid_patch(make_inputs: Make, small: TrainConfig) -> None:
    config = replace(small, sft_epochs=15, dpo_epochs=5, schedule="constant", patience=0)
    result = train_patch(make_inputs(), config)
    sft, dpo = losses(result, "sft"), losses(result, "dpo")
    assert sft[-1] < 0.7 * sft[0]
    assert dpo[0] == pytest.approx(math.log(2), abs=1e-4), "the reference is the patch after SFT"
    assert dpo[-1] < dpo[0]
    patch = result.patch
    assert patch is not None
    assert find_problems(encode_patch(patch.manifest, patch.tensors))[1] == []
    assert patch.manifest.num_virtual_tokens == 8
    assert patch.embeddings is not None
    assert patch.embeddings.dtype == torch.float32


def test_equal_seeds_give_equal_digests_and_other_seeds_do_not(make_inputs: Make, small: TrainConfig) -> None:
    first, second = (trained(make_inputs(folder), small) for folder in ("a", "b"))
    assert first.digest == second.digest
    assert trained(make_inputs("c"), replace(small, seed=1)).digest != first.digest


def test_the_manifest_tells_how_it_was_made_without_time_or_path(
    make_inputs: Make, small: TrainConfig, benign_file: Path, tmp_path: Path
) -> None:
    patch = trained(make_inputs(benign=benign_file), small)
    origin = patch.manifest.origin
    assert (origin["method"], origin["seed"]) == ("trained", 0)
    assert origin["config"]["stages"] == ["sft", "dpo"]
    assert origin["data"]["num_train"] == 8
    assert origin["data"]["benign_digest"].startswith("sha256:")
    assert origin["curves"]["sft"]["step"] == [1, 2, 3, 4]
    assert len(origin["curves"]["dpo"]["margin"]) == 4
    assert patch.manifest.evaluation is not None
    assert patch.manifest.evaluation["training"]["dpo"]["benign_kl"] > 0
    text = encode_manifest(patch.manifest)
    assert str(tmp_path) not in text
    assert "seconds" not in text


@pytest.mark.parametrize("num_steps", [1, 3, 4, 5, 7])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(
    num_steps: int, make_inputs: Make, small: TrainConfig, benign_file: Path
) -> None:
    others = {"benign": benign_file}
    whole = train_patch(make_inputs("whole", **others), small)
    inputs = make_inputs("parts", **others)
    first = train_patch(inputs, small, watch=stop_after(num_steps))
    assert first.patch is None
    rest = train_patch(inputs, small, is_resumed=True)
    assert whole.patch is not None
    assert rest.patch is not None
    assert torch.equal(rest.state.values, whole.state.values)
    assert rest.state.curves == whole.state.curves
    assert rest.patch.digest == whole.patch.digest


def test_a_run_is_not_resumed_with_other_settings_or_data(
    make_inputs: Make, small: TrainConfig, pairs_file: Path
) -> None:
    train_patch(make_inputs(), small, watch=stop_after(1))
    with pytest.raises(TrainingError, match="belongs to another configuration"):
        train_patch(make_inputs(), replace(small, beta=0.3), is_resumed=True)
    pairs_file.write_text(pairs_file.read_text() + "\n")
    with pytest.raises(TrainingError, match="belongs to another configuration"):
        train_patch(make_inputs(), small, is_resumed=True)


def test_accumulation_gives_the_steps_of_one_large_batch(make_inputs: Make, small: TrainConfig) -> None:
    large = train_patch(make_inputs("large"), small)
    halves = train_patch(make_inputs("halves"), replace(small, batch_size=2, accumulate=2))
    assert torch.allclose(large.state.values, halves.state.values, atol=1e-3)


def test_the_benign_term_keeps_the_patch_nearer_to_the_model(
    make_inputs: Make, small: TrainConfig, benign_file: Path
) -> None:
    config = replace(small, sft_epochs=10, stages=("sft",), schedule="constant", patience=0)
    divergences = {}
    for weight in (1e-6, 20.0):
        result = train_patch(
            make_inputs(f"weight-{weight}", benign=benign_file), replace(config, benign_weight=weight)
        )
        divergences[weight] = result.state.curves[-1]["benign_kl"]
    assert divergences[20.0] < 0.8 * divergences[1e-6]


def test_dpo_may_learn_from_a_sample_of_the_pairs(make_inputs: Make, small: TrainConfig) -> None:
    """Eight pairs, four a step: DPO on three of them takes one step an epoch, and starts where SFT ended."""
    results = [
        train_patch(make_inputs(f"pairs-{limit}"), replace(small, dpo_pairs=limit)) for limit in (None, 3)
    ]
    assert losses(results[0], "sft") == losses(results[1], "sft")
    assert [len(losses(result, "dpo")) for result in results] == [4, 2]
    # Before the first step patch and reference agree.
    assert losses(results[1], "dpo")[0] == pytest.approx(math.log(2), abs=1e-5)


def test_sft_may_learn_from_a_sample_of_the_pairs(make_inputs: Make, small: TrainConfig) -> None:
    config = replace(small, stages=("sft",))
    full, sample = (
        train_patch(make_inputs(f"pairs-{limit}"), replace(config, sft_pairs=limit)) for limit in (None, 3)
    )
    assert [len(losses(result, "sft")) for result in (full, sample)] == [4, 2]
    assert losses(full, "sft")[0] != losses(sample, "sft")[0]


def test_a_step_may_take_fewer_benign_rows_than_pairs(
    make_inputs: Make, small: TrainConfig, benign_file: Path
) -> None:
    first = {}
    for rows in (None, 1):
        inputs = make_inputs(f"rows-{rows}", benign=benign_file)
        first[rows] = train_patch(inputs, replace(small, benign_rows=rows)).state.curves[0]
    assert first[None]["loss"] == first[1]["loss"]
    # Another mean: over one row instead of as many as there are pairs.
    assert first[None]["benign_kl"] != first[1]["benign_kl"]


def test_kind_prefix_gives_a_patch_of_kv_alone(make_inputs: Make, small: TrainConfig) -> None:
    config = replace(small, kind="prefix", sft_epochs=10, schedule="constant")
    result = train_patch(make_inputs(), config)
    assert result.patch is not None
    assert result.patch.embeddings is None
    assert result.patch.kv is not None
    assert losses(result, "sft")[-1] < losses(result, "sft")[0]


@pytest.mark.parametrize("reference", ["base", "teacher"])
def test_other_references_give_other_margins(reference: str, make_inputs: Make, small: TrainConfig) -> None:
    config = replace(small, dpo_reference=reference)
    result = train_patch(make_inputs(teacher_text="answer politely"), config)
    assert losses(result, "dpo")[0] != pytest.approx(math.log(2), abs=1e-4)


def test_without_a_reference_the_margin_is_that_of_the_answers_themselves(
    make_inputs: Make, small: TrainConfig
) -> None:
    config = replace(small, batch_size=64)  # one step takes all pairs
    states, steps = {}, {}
    for reference in ("sft", "none"):
        seen: list[Any] = []
        watch = Watch(seen.append, lambda seen=seen: any(r.get("margin") is not None for r in seen))
        result = train_patch(make_inputs(reference), replace(config, dpo_reference=reference), watch=watch)
        states[reference] = result.state
        steps[reference] = next(record for record in seen if record.get("margin") is not None)
    after_sft = states["sft"].reference
    assert after_sft is not None
    expected = config.beta * (after_sft[0] - after_sft[1]).mean().item()
    assert steps["none"]["margin"] == pytest.approx(expected, abs=1e-4)
    assert steps["sft"]["margin"] == pytest.approx(0, abs=1e-5)
    assert abs(expected) > 0.01


def test_another_model_can_be_the_teacher(
    make_inputs: Make, small: TrainConfig, make_tiny_model: Callable[..., None], tmp_path: Path
) -> None:
    make_tiny_model(tmp_path / "teacher", seed=5)
    config = replace(small, stages=("dpo",), dpo_reference="teacher")
    result = train_patch(make_inputs(teacher=str(tmp_path / "teacher")), config)
    assert result.patch is not None
    assert "teacher_weights_digest" in result.patch.manifest.origin
    with pytest.raises(TrainingError, match="teacher needs a policy text, or a model"):
        train_patch(make_inputs(), config)


def test_training_among_other_patches_names_them_and_needs_their_values(
    make_inputs: Make, small: TrainConfig, tiny_model: LoadedModel, tmp_path: Path, make: Callable[..., Patch]
) -> None:
    parts = [compile_text(tiny_model, text, Label(text, "1.0.0"), raw=True) for text in ("brief", "warm")]
    files = [write_patch(part, tmp_path / "parts") for part in parts]
    result = train_patch(make_inputs(compose_with=files), replace(small, sft_epochs=4))
    assert result.patch is not None
    named = [other["digest"] for other in result.patch.manifest.origin["composed_with"]]
    assert named == [part.digest for part in parts]
    sizes = {record.get("num_others", 0) for record in result.state.curves if "grad_norm" in record}
    assert sizes == {0, 1, 2}
    side_by_side = train_patch(make_inputs(compose_with=files), replace(small, kind="prefix"))
    assert side_by_side.patch is not None
    assert (
        side_by_side.patch.manifest.origin["composed_with"] == result.patch.manifest.origin["composed_with"]
    )
    stranger = write_patch(make("stranger"), tmp_path / "parts")
    with pytest.raises(BaseModelMismatch, match="stranger"):
        train_patch(make_inputs(compose_with=[stranger]), small)
    bare = write_patch(make_patch(parts[0].manifest, {"kv": parts[0].kv}), tmp_path / "bare")
    with pytest.raises(TrainingError, match="no embeddings to stand beside; choose kind prefix"):
        train_patch(make_inputs(compose_with=[bare]), small)


def test_a_stage_ends_early_when_validation_gets_worse(make_inputs: Make, small: TrainConfig) -> None:
    config = replace(
        small, stages=("sft",), sft_epochs=40, sft_learning_rate=1.0, schedule="constant", patience=2
    )
    result = train_patch(make_inputs(), config)
    validations = losses(result, "sft", is_validation=True)
    assert len(validations) < 40
    assert validations.index(min(validations)) == len(validations) - 3
    assert result.patch is not None
    assert result.patch.manifest.evaluation is not None
    assert result.patch.manifest.evaluation["training"]["sft"]["loss"] == pytest.approx(
        min(validations), rel=1e-4
    )


def test_rows_that_teach_nothing_are_left_out_and_counted(
    make_inputs: Make, small: TrainConfig, pairs_file: Path, make_row: Callable[..., dict[str, Any]]
) -> None:
    rows = [make_row(n) for n in range(4)]
    rows += [make_row(0), make_row(5, split="test"), make_row(6, chosen=" ", rejected="x")]
    rows += [make_row(7, chosen="same", rejected="same"), make_row(8, chosen="long " * 200)]
    pairs_file.write_text("\n".join(map(json.dumps, rows)))
    result = train_patch(make_inputs(), replace(small, stages=("sft",), max_length=200))
    assert result.counts["num_train"] == 4
    expected = {"test": 1, "empty": 1, "same_answer": 1, "duplicate": 1, "too_long": 1}
    assert result.counts["left_out"] == expected


def test_nothing_to_learn_from_is_an_error(make_inputs: Make, small: TrainConfig) -> None:
    with pytest.raises(TrainingError, match="none is left to learn from \\(10 too_long\\)"):
        train_patch(make_inputs(), replace(small, max_length=3))


def test_a_benign_prompt_without_answer_is_answered_once_by_the_model(
    make_inputs: Make, small: TrainConfig, tmp_path: Path
) -> None:
    benign = tmp_path / "benign.txt"
    benign.write_text("\n".join(f"what is {n}" for n in range(6)))
    inputs, told = make_inputs(benign=benign), []
    watch = Watch(told.append)
    train_patch(inputs, small, watch=watch)
    kept = [json.loads(line) for line in (inputs.folder / "benign.jsonl").read_text().splitlines()]
    assert len({answer["id"] for answer in kept}) == 6
    assert [r["total"] for r in told if r.get("event") == "benign"] == [6]
    told.clear()
    train_patch(inputs, small, watch=watch)
    assert [r for r in told if r.get("event") == "benign"] == []


def test_a_run_goes_on_from_the_values_of_a_patch(
    make_inputs: Make, small: TrainConfig, tmp_path: Path
) -> None:
    config = replace(small, kind="prefix", stages=("sft",))
    before = trained(make_inputs("before"), config)
    file = write_patch(before, tmp_path)
    still = replace(config, sft_epochs=1, sft_learning_rate=1e-12)
    after = trained(make_inputs("after", init_text=None, init_patch=file), still)
    assert before.kv is not None
    assert after.kv is not None
    assert torch.allclose(after.kv, before.kv, atol=1e-6)
    assert after.manifest.origin["init_patch_digest"] == before.digest


def test_a_patch_of_another_kind_or_length_is_no_start(
    make_inputs: Make, small: TrainConfig, tmp_path: Path
) -> None:
    config = replace(small, kind="prefix", stages=("sft",))
    file = write_patch(trained(make_inputs("before"), config), tmp_path)
    inputs = make_inputs("after", init_text=None, init_patch=file)
    with pytest.raises(TrainingError, match="holds no values of kind prompt"):
        trained(inputs, replace(config, kind="prompt"))
    with pytest.raises(TrainingError, match="has 8 tokens, expected 4"):
        trained(inputs, replace(config, num_virtual_tokens=4))
