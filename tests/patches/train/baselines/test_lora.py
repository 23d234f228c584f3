"""The LoRA arm: the same trainer and pairs, an adapter that PEFT and `policypatch eval` load."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.compile import compile_text
from patches.errors import TrainingError
from patches.evaluate.session import baseline_subject
from patches.evaluate.subjects.subject import Reading
from patches.format import write_patch
from patches.label import Label
from patches.model import LoadedModel, load_model
from patches.train.baselines.lora import LoraAdapter, LoraFactors
from patches.train.config import TrainConfig
from patches.train.contexts import ALONE
from patches.train.inputs import TrainInputs
from patches.train.run import Watch, train_patch
from server.cli import main

Make = Callable[..., TrainInputs]
RANK = 2


@pytest.fixture
def config(small: TrainConfig) -> TrainConfig:
    return replace(small, baseline=("lora_rank", RANK), sft_epochs=8, schedule="constant", patience=0)


def test_it_begins_as_the_model_and_can_be_switched_off(tiny_model_folder: Path) -> None:
    network = load_model(tiny_model_folder).network
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = network(ids).logits
        factors = LoraFactors(network, RANK)
        start = factors.learned(factors.start())
        start.patched(ALONE)
        assert torch.equal(network(ids).logits, before)
        other = LoraAdapter(factors, network, torch.full((factors.num_values,), 0.1))
        other.patched(ALONE)
        assert not torch.allclose(network(ids).logits, before, atol=1e-3)
        other.unpatched(ALONE)
        assert torch.equal(network(ids).logits, before)


def test_both_stages_learn_and_peft_reads_what_was_learned(
    make_inputs: Make, config: TrainConfig, tiny_model: LoadedModel, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Merged by PEFT, the adapter gives the likelihoods that the trainer's hooks give."""
    result = train_patch(make_inputs(), config)
    records = [r for r in result.state.curves if r["stage"] == "sft" and "grad_norm" in r]
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    assert {r["stage"] for r in result.state.curves} == {"sft", "dpo"}
    assert result.patch is None
    assert result.baseline is not None
    assert "kind.lora: a LoRA adapter" in result.baseline.save(result.state.values, tmp_path / "kind")
    merged = baseline_subject(
        "lora", str(tiny_model_folder), tmp_path / "kind.lora", dtype="float32", device="cpu", batch_size=2
    )
    network = load_model(tiny_model_folder).network
    factors = LoraFactors(network, RANK)
    LoraAdapter(factors, network, result.state.values).patched(ALONE)
    with torch.no_grad():
        logits = network(torch.tensor([[5, 6, 7]])).logits.log_softmax(-1)
        base = tiny_model.network(torch.tensor([[5, 6, 7]])).logits.log_softmax(-1)
    (steps,) = merged.score([Reading((5, 6, 7), (8,))])
    assert steps[0] == pytest.approx(float(logits[0, 2, 8]), abs=1e-4)
    assert steps[0] != pytest.approx(float(base[0, 2, 8]), abs=1e-3)


def test_the_reference_base_is_the_model_without_the_adapter(make_inputs: Make, config: TrainConfig) -> None:
    """After SFT the adapter differs from the base, so first margins are zero against ``sft`` alone."""
    first = {}
    for reference in ("sft", "base"):
        result = train_patch(make_inputs(reference), replace(config, dpo_reference=reference, dpo_epochs=1))
        first[reference] = next(r for r in result.state.curves if r["stage"] == "dpo")
    assert first["sft"]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert abs(first["base"]["margin"]) > 1e-3


def test_a_resumed_run_equals_one_that_never_stopped(make_inputs: Make, config: TrainConfig) -> None:
    whole = train_patch(make_inputs("whole"), config)
    seen: list[Any] = []
    watch = Watch(lambda r: seen.append(r) if "grad_norm" in r else None, lambda: len(seen) >= 3)
    assert not train_patch(make_inputs("cut"), config, watch=watch).state.is_finished
    resumed = train_patch(make_inputs("cut"), config, is_resumed=True)
    assert torch.equal(resumed.state.values, whole.state.values)


def test_an_adapter_beside_patches_is_refused(
    make_inputs: Make, config: TrainConfig, tiny_model: LoadedModel, tmp_path: Path
) -> None:
    path = write_patch(compile_text(tiny_model, "answer politely", Label("tone", "1.0.0")), tmp_path)
    with pytest.raises(TrainingError, match="lora_rank: an adapter can't stand beside patches"):
        train_patch(make_inputs(compose_with=[path]), config)


def test_the_command_writes_an_adapter(
    tiny_model_folder: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["train", "--model", str(tiny_model_folder), "--pairs", str(pairs_file), "--lora-rank", str(RANK)]
    assert main([*call, "--name", "kind", "--version", "1.0.0", "-o", str(tmp_path / "out")]) == 0
    assert "kind-1.0.0.lora: a LoRA adapter" in capsys.readouterr().out
    assert (tmp_path / "out" / "kind-1.0.0.lora" / "adapter_config.json").is_file()
