"""A run on disk: everything that the next step depends on, in one safetensors file.

The file appears whole or not at all, so a crash, a full disk or a second Ctrl-C leaves the one before. Random
state is not part of it: rows, contexts and learning rates are functions of seed and step.

Law: ``read_checkpoint(write_checkpoint(state)) == state``, and a run from there equals one that never
stopped.
"""

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from patches.errors import TrainingError, TrainingStopped

_KEY = "policypatch.training"


@dataclass(frozen=True)
class RunState:
    """Where a run is. Tensors are on the CPU."""

    #: Digest of everything that the result depends on; another one must not be continued.
    identity: str
    #: The learned values, their optimizer's moments, and the values of the best validation.
    values: torch.Tensor
    moments: tuple[torch.Tensor, torch.Tensor] | None = None
    best_values: torch.Tensor | None = None
    #: The values that the stage began with; DPO's reference ``sft``.
    stage_start: torch.Tensor | None = None
    #: ``[2, num_rows]``: DPO's reference log-probabilities, for training and for validation.
    reference: torch.Tensor | None = None
    validation_reference: torch.Tensor | None = None
    stage_idx: int = 0
    #: Steps of the stage that are done.
    step: int = 0
    best_loss: float | None = None
    num_worse: int = 0
    is_finished: bool = False
    #: One record per step and per validation, of all stages so far.
    curves: list[dict[str, Any]] = field(default_factory=list)


_TENSORS = ("values", "best_values", "stage_start", "reference", "validation_reference")


def write_checkpoint(state: RunState, path: Path) -> None:
    """Write a checkpoint in the place of the one before.

    Raises:
        TrainingStopped: The disk is full or can't be written; the checkpoint before is still there.
    """
    tensors = {name: t for name in _TENSORS if (t := getattr(state, name)) is not None}
    if state.moments is not None:
        tensors["first_moment"], tensors["second_moment"] = state.moments
    rest = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in (*_TENSORS, "moments")}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Copies, since values and best values may be one tensor, which safetensors refuses.
        save_file(
            {k: v.contiguous().clone() for k, v in tensors.items()}, temporary, {_KEY: json.dumps(rest)}
        )
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise TrainingStopped(
            f"{path}: can't be written: {reason}; the checkpoint before it is kept: make room, then --resume"
        ) from error


def read_checkpoint(path: Path) -> RunState:
    """Read a checkpoint.

    Raises:
        TrainingError: It is not a checkpoint, or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            rest = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path}: is not a checkpoint of a training run: {error}") from None
    moments = None
    if "first_moment" in tensors:
        moments = (tensors.pop("first_moment"), tensors.pop("second_moment"))
    return RunState(**rest, **tensors, moments=moments)
