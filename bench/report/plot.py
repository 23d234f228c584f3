"""The plot of a report: every ratio of every round as a dot, its median as a line."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.load.arms import PAIRS
from bench.load.timing import quantile
from bench.report.figures import METRICS, Metric, concurrencies_of, ratios_of
from bench.report.record import Record

#: Colour-blind safe (Okabe and Ito), by concurrency in ascending order.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_ratios(records: Sequence[Record], paths: Sequence[Path]) -> None:
    """Draw one panel per metric and save it under each path; the suffix decides the format.

    Raises:
        OSError: a path cannot be written.
    """
    # A figure of its own instead of pyplot's: no global state, no display.
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharey=True)
    pairs = [pair for pair in PAIRS if _is_measured(records, pair)][::-1]
    for panel, metric in zip(panels.flat, METRICS, strict=True):
        _draw_panel(panel, records, metric, pairs)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), title="concurrency", loc="outside right upper")
    figure.suptitle(f"{records[0].question}: ratios within a round, {records[0].setup['model']}")
    for path in paths:
        # Without dates, equal records give equal files.
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, metadata=metadata)


def _is_measured(records: Sequence[Record], pair: tuple[str, str]) -> bool:
    return any(
        ratios_of(records, *pair, METRICS[0], concurrency) for concurrency in concurrencies_of(records)
    )


def _draw_panel(
    panel: Axes, records: Sequence[Record], metric: Metric, pairs: Sequence[tuple[str, str]]
) -> None:
    concurrencies = concurrencies_of(records)
    for index, concurrency in enumerate(concurrencies):
        colour = COLOURS[index % len(COLOURS)]
        shift = 0.16 * ((len(concurrencies) - 1) / 2 - index)
        label: str | None = str(concurrency)
        for row, (arm, reference) in enumerate(pairs):
            ratios = list(ratios_of(records, arm, reference, metric, concurrency).values())
            if not ratios:
                continue
            panel.plot(ratios, [row + shift] * len(ratios), "o", color=colour, alpha=0.45, ms=4, label=label)
            panel.plot([quantile(ratios, 0.5)], [row + shift], "|", color=colour, ms=13, mew=2.5)
            label = None
    panel.axvline(1, color="0.5", lw=0.8)
    panel.set_yticks(range(len(pairs)), [f"{arm} / {reference}" for arm, reference in pairs])
    panel.set_xlabel(f"{metric.label} ({'higher' if metric.is_higher_better else 'lower'} is better)")
    panel.grid(axis="x", alpha=0.3)
