"""Runs that can't go on: they stop with advice, and lose nothing."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.errors import TrainingError, TrainingStopped
from patches.train import stages
from patches.train.checkpoint import RunState, read_checkpoint, write_checkpoint
from patches.train.config import TrainConfig
from patches.train.inputs import TrainInputs
from patches.train.run import CHECKPOINT, train_patch

Make = Callable[..., TrainInputs]


def test_a_loss_that_is_not_a_number_ends_the_run_and_keeps_the_last_checkpoint(
    make_inputs: Make, small: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, calls = make_inputs(), []
    real = stages.sft_loss

    def break_at_third_step(*args: Any) -> torch.Tensor:
        calls.append(args)
        # Two steps, then the one batch of validation, then the step that breaks.
        return real(*args) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(stages, "sft_loss", break_at_third_step)
    with pytest.raises(
        TrainingStopped, match=r"sft, step 3: loss, grad_norm is not finite.*lower --sft-learning-rate"
    ):
        train_patch(inputs, small)
    state = read_checkpoint(inputs.folder / CHECKPOINT)
    assert state.step == 2
    assert bool(torch.isfinite(state.values).all())
    monkeypatch.undo()
    whole, rest = train_patch(make_inputs("whole"), small), train_patch(inputs, small, is_resumed=True)
    assert torch.equal(whole.state.values, rest.state.values)


@pytest.mark.parametrize(
    "message", ["CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: can't allocate memory"]
)
def test_lack_of_memory_names_the_knobs(
    message: str, make_inputs: Make, small: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> torch.Tensor:
        raise RuntimeError(message)

    monkeypatch.setattr(stages, "sft_loss", fail)
    with pytest.raises(TrainingStopped, match=r"--batch-size.*--accumulate.*--max-length"):
        train_patch(make_inputs(), small)


def test_another_error_of_the_runtime_is_not_taken_for_lack_of_memory(
    make_inputs: Make, small: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(stages, "sft_loss", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train_patch(make_inputs(), small)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run" / CHECKPOINT
    before = RunState("sha256:x", torch.ones(2, 3), step=1)
    write_checkpoint(before, path)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(TrainingStopped, match="No space left on device; the checkpoint before it is kept"):
        write_checkpoint(replace(before, step=2), path)
    assert read_checkpoint(path).step == 1
    assert [file.name for file in path.parent.iterdir()] == [CHECKPOINT]


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    state = RunState(
        "sha256:x",
        torch.randn(2, 3),
        moments=(torch.randn(2, 3), torch.rand(2, 3)),
        best_values=torch.randn(2, 3),
        reference=torch.randn(2, 5),
        stage_idx=1,
        step=7,
        best_loss=0.25,
        num_worse=1,
        curves=[{"stage": "sft", "step": 1, "loss": 0.1}],
    )
    write_checkpoint(state, tmp_path / CHECKPOINT)
    again = read_checkpoint(tmp_path / CHECKPOINT)
    assert again.moments is not None
    assert state.moments is not None
    assert all(torch.equal(a, b) for a, b in zip(again.moments, state.moments, strict=True))
    assert torch.equal(again.values, state.values)
    assert again.stage_start is None
    plain = ("identity", "stage_idx", "step", "best_loss", "num_worse", "is_finished", "curves")
    assert [getattr(again, name) for name in plain] == [getattr(state, name) for name in plain]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    path.write_bytes(b"garbage")
    with pytest.raises(TrainingError, match="is not a checkpoint"):
        read_checkpoint(path)
