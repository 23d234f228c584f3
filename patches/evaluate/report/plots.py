"""The plot of a report: one small panel for each metric, arms with their intervals, as inline SVG."""

import io
import math
from typing import Any

from patches.evaluate.arms import BASE, SYSTEM
from patches.evaluate.report.summary import Summary

_COLOURS = {BASE: "#888888", SYSTEM: "#d08a2e"}
_PATCH_COLOUR = "#2e6fd0"
_COLUMNS = 3


def plot_figures(summary: Summary) -> str | None:
    """Draw every overall figure; ``None`` where matplotlib is not installed, or there is nothing to draw."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return None
    paths = [
        path
        for path in summary.metrics
        if any(r.path == path and r.value is not None for r in summary.results)
    ]
    if not paths:
        return None
    num_rows = math.ceil(len(paths) / _COLUMNS)
    height = num_rows * (0.8 + 0.32 * len(summary.arms))
    figure = Figure(figsize=(4.0 * _COLUMNS, height), layout="constrained")
    for place, path in enumerate(paths, start=1):
        _draw(figure.add_subplot(num_rows, _COLUMNS, place), summary, path)
    buffer = io.StringIO()
    # Without a date and with fixed ids, equal figures give equal bytes.
    with matplotlib.rc_context({"svg.hashsalt": "policypatch"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _draw(axes: Any, summary: Summary, path: str) -> None:
    scale = 100.0 if summary.metrics[path].unit == "share" else 1.0
    found = [r for arm in reversed(summary.arms) if (r := summary.find(path, arm)) and r.value is not None]
    for place, result in enumerate(found):
        assert result.value is not None
        value = result.value * scale
        low = value if result.low is None else result.low * scale
        high = value if result.high is None else result.high * scale
        colour = _COLOURS.get(result.arm, _PATCH_COLOUR)
        errors = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar([value], [place], xerr=errors, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(found)), [r.arm for r in found])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_title(path + (" (%)" if scale == 100.0 else ""), fontsize=9)
    axes.grid(axis="x", alpha=0.3)
