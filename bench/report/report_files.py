"""The files of a report, from records alone: ``report.md``, and a plot for what has arms or an axis."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import RecordInvalid
from bench.report.arm_report import arm_markdown
from bench.report.figures import judge_goals, summarise_ratios
from bench.report.record import Record, split_cut_short
from bench.report.sweep_axes import SWEEPS
from bench.report.sweep_report import draw_sweep, summarise_sweep, sweep_markdown

#: From records to the Markdown of a report.
Render = Callable[[Sequence[Record]], str]
#: Draws records into files.
Draw = Callable[[Sequence[Record], Sequence[Path]], None]


def figures_of(records: Sequence[Record]) -> dict[str, Any]:
    """Return the figures of arms, or of a sweep, that the last line of stdout shows."""
    if records[0].question in SWEEPS:
        return {"cells": summarise_sweep(records)}
    return {"goals": judge_goals(records), "ratios": summarise_ratios(records)}


def markdown_of(records: Sequence[Record]) -> str:
    """Render the report of arms, or of a sweep."""
    return (sweep_markdown if records[0].question in SWEEPS else arm_markdown)(records)


def draw_figures(records: Sequence[Record], paths: Sequence[Path]) -> None:
    """Draw arms, or a sweep.

    Raises:
        OSError: a path cannot be written.
    """
    # Takes a second to import, and a run that fails never needs it.
    from bench.report.plot import draw_ratios

    (draw_sweep if records[0].question in SWEEPS else draw_ratios)(records, paths)


def write_report(
    records: Sequence[Record],
    folder: Path,
    *,
    render: Render = markdown_of,
    draw: Draw | None = draw_figures,
) -> str:
    """Write ``report.md``, and ``report.svg`` and ``report.png`` where it can be drawn; return the Markdown.

    A run that was cut short is marked as such. Without matplotlib there are no pictures.

    Raises:
        RecordInvalid: there is nothing to report.
        OSError: the folder cannot be written.
    """
    cells, cut_short = split_cut_short(records)
    if all(record.setup.get("is_warmup", False) for record in cells):
        raise RecordInvalid("records: expected at least one round after the warm-up, got none")
    folder.mkdir(parents=True, exist_ok=True)
    text = _marked(render(cells), cut_short)
    (folder / "report.md").write_text(text, encoding="utf-8")
    if draw is None:
        return text
    if importlib.util.find_spec("matplotlib") is None:
        # A GPU machine without a package index may lack it; the records are what is worth having.
        return (
            text + "\nNo plot: matplotlib is not installed here. `policypatch bench report` draws it later.\n"
        )
    draw(cells, [folder / "report.svg", folder / "report.png"])
    return text


def _marked(text: str, cut_short: Mapping[str, str]) -> str:
    """Put a line for each run that was cut short under the heading."""
    if not cut_short:
        return text
    heading, _, rest = text.partition("\n")
    lines = [
        f"**Cut short**, run `{run_id}`: {reason}. The figures are of what was measured until then."
        for run_id, reason in cut_short.items()
    ]
    return "\n\n".join([heading, *lines]) + "\n" + rest
