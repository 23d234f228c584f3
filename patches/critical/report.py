"""What scores say, as tables, a heat map and JSON: how much of each layer and module is critical.

They hold figures and names of tensors, no prompt.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patches.critical.scores import Scores
from patches.critical.shares import Shares
from patches.evaluate.report.tables import Table

HEAT_MAP = "heat-map.svg"
#: The title of the long table.
BY_LAYER = "Critical weights by layer"


@dataclass(frozen=True)
class NoiseResult:
    """S under noise on one side of the scores."""

    side: str
    #: One for each seed.
    values: Sequence[float]


@dataclass(frozen=True)
class NoiseTest:
    """S as it is, and under noise."""

    scale: float
    without: float
    results: Sequence[NoiseResult]


def tables(shares: Shares, noise: NoiseTest | None) -> list[Table]:
    """Return what a person should see."""
    whole = shares.whole
    by_module = [
        (module, f"{cell.share:.2%}", f"{cell.num_chosen / whole.num_chosen:.1%}", f"{_most(shares, module)}")
        for module in shares.modules
        for cell in [shares.of_module(module)]
    ]
    made = [
        Table(
            "Critical weights by module",
            ("module", "of its weights", "of the critical ones", "most in layer"),
            tuple(by_module),
            (f"{whole.num_chosen} of {whole.num_weights} weights, {whole.share:.2%}",),
        ),
        Table(
            BY_LAYER,
            ("layer", "all", *shares.modules),
            tuple(
                (
                    str(layer),
                    f"{shares.of_layer(layer).share:.2%}",
                    *(_percent(shares, layer, module) for module in shares.modules),
                )
                for layer in shares.layers
            ),
            ("the share of its weights that is critical",),
        ),
    ]
    return [*made, *([] if noise is None else [_noise_table(noise)])]


def write_report(folder: Path, scores: Scores, shares: Shares, noise: NoiseTest | None) -> list[Path]:
    """Write ``report.md``, ``report.json`` and, where matplotlib is installed, the heat map.

    Raises:
        OSError: The folder can't be written.
    """
    plot = heat_map(shares)
    texts = {
        "report.md": _markdown(tables(shares, noise), plot is not None),
        "report.json": json.dumps(_document(scores, shares, noise), indent=1),
    }
    if plot is not None:
        texts[HEAT_MAP] = plot
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return [folder / name for name in texts]


def heat_map(shares: Shares) -> str | None:
    """Draw layers against modules, coloured by how much is critical; ``None`` without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return None
    layers, modules = shares.layers, shares.modules
    empty = float("nan")
    values = [
        [100 * cell.share if (cell := shares.cells.get((layer, module))) else empty for layer in layers]
        for module in modules
    ]
    width, height = max(5.0, 1.8 + 0.26 * len(layers)), 1.1 + 0.32 * len(modules)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0)
    axes.set_yticks(range(len(modules)), [module.rpartition(".")[2] for module in modules])
    step = max(1, len(layers) // 15)
    axes.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    axes.set_xlabel("layer")
    figure.colorbar(image, ax=axes, label="% critical")
    buffer = io.StringIO()
    # Without a date and with fixed ids, equal figures give equal bytes.
    with matplotlib.rc_context({"svg.hashsalt": "policypatch"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _noise_table(noise: NoiseTest) -> Table:
    rows = [("none", f"{noise.without:+.3f}", "", "")]
    for one in noise.results:
        changes = [value - noise.without for value in one.values]
        spread = f"{min(changes):+.3f} to {max(changes):+.3f}"
        mean = sum(one.values) / len(one.values)
        rows.append((one.side, f"{mean:+.3f}", f"{mean - noise.without:+.3f}", spread))
    return Table(
        "S under noise",
        ("noise on", "S", "change", "over seeds"),
        tuple(rows),
        (f"{noise.scale:g} standard deviations of a weight's tensor, {len(noise.results[0].values)} seeds",),
    )


def _document(scores: Scores, shares: Shares, noise: NoiseTest | None) -> dict[str, Any]:
    cells = [
        {"layer": layer, "module": module, "num_critical": cell.num_chosen, "num_weights": cell.num_weights}
        for (layer, module), cell in sorted(shares.cells.items())
    ]
    document: dict[str, Any] = {"scores": scores.digest, "origin": dict(scores.origin), "cells": cells}
    if noise is not None:
        document["noise"] = {
            "scale": noise.scale,
            "without": noise.without,
            **{one.side: list(one.values) for one in noise.results},
        }
    return document


def _markdown(shown: Sequence[Table], has_plot: bool) -> str:
    parts = ["# Critical weights", *([f"![share of critical weights]({HEAT_MAP})"] if has_plot else [])]
    for table in shown:
        rows = [table.columns, ("---",) * len(table.columns), *table.rows]
        lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts += [f"## {table.title}", *(f"{note}." for note in table.notes), lines]
    return "\n\n".join(parts)


def _most(shares: Shares, module: str) -> int:
    layers = [layer for layer in shares.layers if (layer, module) in shares.cells]
    return max(layers, key=lambda layer: shares.cells[layer, module].share)


def _percent(shares: Shares, layer: int, module: str) -> str:
    cell = shares.cells.get((layer, module))
    return "" if cell is None else f"{cell.share:.2%}"
