"""What is known of a condition, as tables, a plot and JSON.

They hold figures and names of files, no prompt.
"""

import io
import json
from pathlib import Path
from typing import Any

from patches.evaluate.report.tables import Table
from patches.steer.condition_rows import EARLY
from patches.steer.fit_condition import Fitted
from patches.steer.roc import Measured

_ROLES = {
    "positive": "to be met",
    "negative": "not to be met",
    "hard": "not to be met, looks alike",
    "text": "not to be met, no chat",
    "also": "reported alone",
}
_COLOURS = {
    "positive": "#c0392b",
    "negative": "#2e6fd0",
    "hard": "#d08a2e",
    "text": "#3a9a5b",
    "also": "#888888",
}
_NUM_CANDIDATES = 8


def tables(fitted: Fitted) -> list[Table]:
    """Return what a person should see."""
    probe = fitted.condition.probes[0]
    pool = probe.pool if probe.num_tokens == 1 else f"mean of the last {probe.num_tokens} tokens"
    chosen = f"{pool} of layers {', '.join(map(str, probe.layers))}"
    sets = [
        (one.name, _ROLES[one.role], str(one.num_fitted), str(one.num_tested), _percent(one.met))
        for one in fitted.sets
    ]
    best = sorted(fitted.candidates, key=lambda one: (-one.early, -one.auc))[:_NUM_CANDIDATES]
    tried = [
        (", ".join(map(str, one.layers)), one.pool, f"{one.early:.1%}", f"{one.auc:.4f}") for one in best
    ]
    return [
        Table(
            "Condition",
            ("what", "value", "95 % interval"),
            (
                ("reads", chosen, ""),
                ("threshold", f"{fitted.threshold.value:.4g}", _interval(fitted.threshold)),
                ("area under the ROC curve", f"{fitted.auc.value:.4f}", _interval(fitted.auc)),
                (
                    f"of {fitted.num_negatives} held-back negatives meet it",
                    f"{fitted.false_positives.value:.1%}",
                    f"{fitted.false_positives.low:.1%} to {fitted.false_positives.high:.1%}",
                ),
                ("wanted at most", f"{fitted.wanted_rate:.3g}", ""),
                ("calibration error", f"{fitted.calibration_error:.1%}", ""),
            ),
        ),
        Table(
            "How often it is met",
            ("set", "is", "fitted to", "tested on", "met"),
            tuple(sets),
            ("prompts that took no part in fitting, choosing or drawing the line",),
        ),
        Table(
            "Where a probe reads best",
            ("layers", "pool", "found early", "area"),
            tuple(tried),
            (
                f"the {len(tried)} best of {len(fitted.candidates)}, on prompts that they had not seen",
                f"early: share of positives above lines that up to {EARLY:.0%} of the negatives cross",
            ),
        ),
    ]


def write_report(folder: Path, fitted: Fitted) -> list[Path]:
    """Write ``report.md``, ``report.json`` and, where matplotlib is installed, ``roc.svg``.

    Raises:
        OSError: The folder can't be written.
    """
    plot = _plot(fitted)
    document = {
        "condition": fitted.condition.document(),
        **fitted.origin(),
        "curve": [[round(a, 5), round(b, 5)] for a, b in fitted.curve],
        "candidates": [
            {"layers": list(c.layers), "pool": c.pool, "early": round(c.early, 4), "auc": round(c.auc, 4)}
            for c in fitted.candidates
        ],
    }
    texts = {"report.md": _markdown(fitted, plot is not None), "report.json": json.dumps(document)}
    if plot is not None:
        texts["roc.svg"] = plot
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return [folder / name for name in texts]


def _markdown(fitted: Fitted, has_plot: bool) -> str:
    parts = ["# Condition"]
    if fitted.warning is not None:
        parts.append(f"**Warning:** {fitted.warning}.")
    for table in tables(fitted):
        rows = [table.columns, ("---",) * len(table.columns), *table.rows]
        lines = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        parts += [f"## {table.title}", *(f"{note}." for note in table.notes), lines]
    return "\n\n".join([*parts, *(["![ROC curve and scores](roc.svg)"] if has_plot else [])])


def _plot(fitted: Fitted) -> str | None:
    """Draw the ROC curve, and the scores of each set."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    _draw_curve(figure.add_subplot(1, 2, 1), fitted)
    _draw_scores(figure.add_subplot(1, 2, 2), fitted)
    buffer = io.StringIO()
    # Without a date and with fixed ids, equal figures give equal bytes.
    with matplotlib.rc_context({"svg.hashsalt": "policypatch"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _draw_curve(axes: Any, fitted: Fitted) -> None:
    false, true = zip(*fitted.curve, strict=True)
    axes.step(false, true, where="post", color="#2e6fd0")
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=0.8)
    roles = {one.role: one.met for one in fitted.sets if one.role in ("positive", "negative")}
    positive, negative = roles["positive"], roles["negative"]
    axes.errorbar(
        [negative.value],
        [positive.value],
        xerr=[[negative.value - negative.low], [negative.high - negative.value]],
        yerr=[[positive.value - positive.low], [positive.high - positive.value]],
        fmt="o",
        color="#c0392b",
        capsize=3,
        label=f"threshold {fitted.threshold.value:.3g}",
    )
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("share of negatives that meet it")
    axes.set_ylabel("share of positives that meet it")
    axes.set_title(f"ROC, area {fitted.auc.value:.4f}", fontsize=10)
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(alpha=0.3)


def _draw_scores(axes: Any, fitted: Fitted) -> None:
    for one in fitted.sets:
        if len(scores := fitted.scores[one.name]):
            colour = _COLOURS[one.role]
            axes.hist(scores, bins=40, density=True, histtype="step", color=colour, label=one.name)
    axes.axvline(fitted.threshold.value, color="#333333", linewidth=1)
    axes.axvspan(fitted.threshold.low, fitted.threshold.high, color="#333333", alpha=0.15)
    axes.set_xlabel("score (log-odds)")
    axes.set_yticks([])
    axes.set_title("scores of prompts that it was not fitted to", fontsize=10)
    axes.legend(fontsize=8)


def _percent(measured: Measured) -> str:
    return f"{measured.value:.1%} ({measured.low:.1%} to {measured.high:.1%})"


def _interval(measured: Measured) -> str:
    return f"{measured.low:.4g} to {measured.high:.4g}"
