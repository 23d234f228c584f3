"""The card of a patch that ``policypatch inspect`` prints: rows of a key and lines of text.

Nothing is coloured or drawn here, and every line stands for itself: the card reads the same on a terminal of
any width and in a pipe.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patches.canonical import JsonValue, canonical_json
from patches.content import PatchContent, StoredTensor
from patches.manifest import Manifest
from server.commands.figures import BLOCKS, columns, number, sparkline

#: Curves whose high values are the good ones, and those whose low ones are; of others no value is best.
_HIGH_IS_GOOD, _LOW_IS_GOOD = {"accuracy", "margin"}, {"loss", "benign_kl"}
_SPARKLINE_WIDTH = 24


@dataclass(frozen=True, slots=True)
class Row:
    """A key and its text, which may be wrapped; or the lines of a table, which may not."""

    key: str = ""
    text: str = ""
    table: Sequence[str] = ()


def patch_rows(patch: PatchContent, blocks: str = BLOCKS) -> Iterator[Row]:
    """Yield what the manifest and the tensors say; curves are drawn with ``blocks``."""
    manifest = patch.manifest
    for word, text in manifest.body.facts():
        yield Row(word, text)
    for name in manifest.body.tensor_rules(manifest.base_model):
        tensor = patch.tensors.get(name)
        yield Row(name, "none" if tensor is None else _layout(tensor))
        if name == "vector" and tensor is not None:
            yield Row("  by layer", _norms(tensor.values, blocks))
    for key in ("license", "changelog", "supersedes"):
        if (value := getattr(manifest, key)) is not None:
            yield Row(key, value)
    yield from _base_model_rows(manifest)
    yield from _origin_rows(manifest, blocks)
    if manifest.evaluation:
        yield Row(table=evaluation_table(manifest.evaluation))


def _base_model_rows(manifest: Manifest) -> Iterator[Row]:
    model = manifest.base_model
    yield Row(
        "base model",
        f"{model.architecture}, {model.num_layers} layers, {model.num_kv_heads} KV heads of "
        f"{model.head_size}, hidden size {model.hidden_size}",
    )
    yield Row("  dtype", model.dtype)
    yield Row("  rope", _pairs(model.rope) or "none")
    yield Row("  tokenizer", model.tokenizer_digest)
    yield Row("  weights", model.weights_digest)


def _origin_rows(manifest: Manifest, blocks: str) -> Iterator[Row]:
    origin = manifest.origin
    yield Row("made by", str(origin["method"]))
    for i, part in enumerate(manifest.components):
        yield Row(f"  part {i + 1}", f"{part.name}@{part.version} {part.digest}")
    for key, value in origin.items():
        if key in ("method", "components"):
            continue
        if key == "curves" and isinstance(value, Mapping):
            yield from _curve_rows(value, blocks)
        elif key == "composed_with" and isinstance(value, list):
            for part in value:
                yield Row("  beside", _part(part))
        else:
            yield from _value_rows(f"  {_word(key)}", value)


def _value_rows(key: str, value: JsonValue) -> Iterator[Row]:
    """Yield a value, and below it a row for each digest that it holds."""
    if not isinstance(value, Mapping):
        yield Row(key, _shown(value))
        return
    digests = {name: text for name, text in value.items() if name.endswith("_digest")}
    yield Row(key, _pairs({name: one for name, one in value.items() if name not in digests}) or "none")
    for name, digest in digests.items():
        yield Row(f"    {_word(name)}", _shown(digest))


def _curve_rows(curves: Mapping[str, JsonValue], blocks: str) -> Iterator[Row]:
    for stage, series in curves.items():
        title = f"  {stage.replace('_', ' ')}"
        if isinstance(series, Mapping) and (table := curve_table(title, series, blocks)):
            yield Row(table=table)
        else:
            yield Row(title, canonical_json(series))


def curve_table(title: str, series: Mapping[str, JsonValue], blocks: str = BLOCKS) -> list[str]:
    """Return a line for each curve of a stage: its first, last and best value, and how it ran.

    Empty where there is none.
    """
    steps = series.get("step")
    rows = [[title, "first", "last", "best", ""]]
    for name, values in series.items():
        points = _points(values, steps)
        if name == "step" or not points:
            continue
        rows.append([f"    {_word(name)}", *_summary(name, points, blocks)])
    return columns(rows) if len(rows) > 1 else []


def _summary(name: str, points: Sequence[tuple[Any, float]], blocks: str) -> tuple[str, str, str, str]:
    figures = [value for _, value in points]
    if len(points) == 1:
        return "", number(figures[0]), f"at {points[0][0]}", ""
    curve = sparkline(figures, _SPARKLINE_WIDTH, blocks)
    return number(figures[0]), number(figures[-1]), _best(name, points), curve


def _points(values: JsonValue, steps: JsonValue) -> list[tuple[Any, float]]:
    """Return (step, value) of each value that is there; none where it is no curve."""
    if not isinstance(values, list) or not all(value is None or _is_number(value) for value in values):
        return []
    marks = steps if isinstance(steps, list) and len(steps) == len(values) else range(len(values))
    return [(step, value) for step, value in zip(marks, values, strict=True) if _is_number(value)]


def _best(name: str, points: Sequence[tuple[Any, float]]) -> str:
    if name not in _HIGH_IS_GOOD | _LOW_IS_GOOD:
        return ""
    choose = max if name in _HIGH_IS_GOOD else min
    step, value = choose(points, key=lambda point: point[1])
    return f"{number(value)} at {step}"


def evaluation_table(evaluation: Mapping[str, JsonValue]) -> list[str]:
    """Return a line for each figure, and a column for each group that has figures of its own."""
    groups = dict(_groups(evaluation))
    figures = list(dict.fromkeys(name for group in groups.values() for name in group))
    rows = [["evaluation", *map(_word, map(" ".join, groups))]]
    for name in figures:
        rows.append([f"  {_word(name)}", *(group.get(name, "") for group in groups.values())])
    return columns(rows)


def _groups(
    values: Mapping[str, JsonValue], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """Yield each object of a nested one with the values that it holds itself."""
    if own := {key: _shown(value) for key, value in values.items() if not isinstance(value, Mapping)}:
        yield path, own
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _groups(value, (*path, key))


def _shown(value: JsonValue) -> str:
    if isinstance(value, Mapping):
        return _pairs(value) or "none"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else canonical_json(value)


def _pairs(values: Mapping[str, JsonValue]) -> str:
    """Return counts and settings as text: ``2788 train, 317 validation, seed 0``."""
    return ", ".join(
        f"{_shown(value)} {key.removeprefix('num_').replace('_', ' ')}"
        if key.startswith("num_")
        else f"{key.replace('_', ' ')} {_shown(value)}"
        for key, value in values.items()
    )


def _part(part: JsonValue) -> str:
    if isinstance(part, Mapping) and {"name", "version", "digest"} <= part.keys():
        return f"{part['name']}@{part['version']} {part['digest']}"
    return _shown(part)


def _word(key: str) -> str:
    return key.removeprefix("num_").removesuffix("_digest").replace("_", " ")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _norms(vector: np.ndarray, blocks: str) -> str:
    """Draw how long the vector is in each layer, one block a layer."""
    norms = np.linalg.norm(vector, axis=1).tolist()
    acting = [layer for layer, norm in enumerate(norms) if norm]
    ends = f"layers {acting[0]} to {acting[-1]}, longest {number(max(norms))}"
    return f"{sparkline(norms, len(norms), blocks)}  {ends}"


def _layout(tensor: StoredTensor) -> str:
    return f"{tensor.word} {list(tensor.shape)}, {mebibytes(tensor.nbytes)}"


def mebibytes(num_bytes: int) -> str:
    """Return a size for people."""
    return f"{num_bytes / 2**20:.2f} MiB"
