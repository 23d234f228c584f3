"""Layers as people write them: ``19-29``, ``0,4,8-11`` or ``all``, counted from 0."""

import re

from patches.errors import CompileError

ALL = "all"
_PART = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


def read_layers(text: str, num_layers: int) -> list[int]:
    """Return the layers that a text names, rising.

    Raises:
        CompileError: It is no such text, or names a layer that the model does not have.
    """
    if text.strip() == ALL:
        return list(range(num_layers))
    layers: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if first > last:
            raise CompileError(f"layers: expected layers such as 19-29, 0,4,8 or all, got {text!r}")
        if last >= num_layers:
            raise CompileError(f"layers: expected 0 to {num_layers - 1}, which the model has, got {last}")
        layers |= {*range(first, last + 1)}
    return sorted(layers)


def last_third(num_layers: int) -> list[int]:
    """Return the last third of a model's layers: what a vector acts on unless told otherwise.

    Steering of all layers adds up from each to the next, and leaves none before it for a condition to read.
    """
    return list(range(num_layers - max(1, num_layers // 3), num_layers))


def written_layers(layers: list[int]) -> str:
    """Return rising layers as such a text; ``read_layers`` is the inverse."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
