"""From learned values to a patch, and what its manifest says about how they were learned.

No time and no path goes into it: equal configuration, data and seed give an equal digest on one machine.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from patches.canonical import JsonValue
from patches.compile import compile_patch
from patches.format import Patch, make_patch
from patches.kinds.prefix import PrefixBody
from patches.kinds.steering import SteeringBody
from patches.label import Label
from patches.model import LoadedModel
from patches.train.config import TrainConfig
from patches.train.vectors import layers_to_learn, vector_of_values

#: A curve keeps at most so many points, evenly chosen, the last one always.
MAX_CURVE_POINTS = 100
_DIGITS = 6


def make_trained_patch(
    model: LoadedModel,
    config: TrainConfig,
    values: torch.Tensor,
    label: Label,
    origin: Mapping[str, JsonValue],
) -> Patch:
    """Make the patch.

    Args:
        model: The base model in the dtype that the server runs it in.
        config: What was learned.
        values: ``[N, hidden_size]``; ``[L, 2, N, H_kv, D]`` for ``prefix``, ``[k, hidden_size]`` for k layers
            that are steered.
        label: Name, version and notes.
        origin: How the values were learned.

    Raises:
        PatchFormatError: The values are not finite, or the notes do not fit into a manifest.
    """
    if config.kind == "prompt":
        return compile_patch(model, values, label, origin)
    if config.kind == "steering":
        num_layers = model.base_model.num_layers
        vector = vector_of_values(values, layers_to_learn(config, num_layers), num_layers)
        steering = label.manifest(model.base_model, SteeringBody(config.steering), origin)
        return make_patch(steering, {"vector": vector})
    manifest = label.manifest(model.base_model, PrefixBody(values.shape[2]), origin)
    return make_patch(manifest, {"kv": values.to(getattr(torch, model.base_model.dtype))})


def curves_for_manifest(records: Sequence[Mapping[str, Any]]) -> dict[str, JsonValue]:
    """Return the curves of each stage, thinned out and rounded: ``{"sft": {"step": […], "loss": […]}, …}``.

    Validations stand apart, as ``sft_validation``. A value that a step lacks is ``null``.
    """
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        name = str(record["stage"]) + ("_validation" if record.get("is_validation") else "")
        curves.setdefault(name, []).append(record)
    return {name: _columns(_thinned(rows)) for name, rows in curves.items()}


def best_validations(records: Sequence[Mapping[str, Any]]) -> dict[str, JsonValue]:
    """Return the best validation of each stage, by loss and benign divergence together, as it was told."""
    best: dict[str, Mapping[str, Any]] = {}
    for record in records:
        if record.get("is_validation"):
            before = best.get(record["stage"])
            if before is None or _cost(record) < _cost(before):
                best[record["stage"]] = record
    return {
        stage: {k: _rounded(v) for k, v in record.items() if k not in ("stage", "is_validation")}
        for stage, record in best.items()
    }


def _cost(record: Mapping[str, Any]) -> float:
    return float(record["loss"]) + float(record.get("benign_kl", 0.0))


def _thinned(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if len(rows) <= MAX_CURVE_POINTS:
        return rows
    last = len(rows) - 1
    return [rows[round(i * last / (MAX_CURVE_POINTS - 1))] for i in range(MAX_CURVE_POINTS)]


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, JsonValue]:
    names = ("step", "loss", "margin", "accuracy", "benign_kl", "grad_norm")
    present = [name for name in names if any(name in row for row in rows)]
    return {name: [_rounded(row.get(name)) for row in rows] for name in present}


def _rounded(value: Any) -> JsonValue:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
