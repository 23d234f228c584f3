"""The tables of a report, before they become Markdown or HTML: plain cells, so that both say the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from patches.evaluate.arms import BASE
from patches.evaluate.gate import Check
from patches.evaluate.judges.calibration import Calibration
from patches.evaluate.measures.measure import Metric
from patches.evaluate.report.summary import Result, Summary

_BETTER = {"lower": "lower is better", "higher": "higher is better", "none": ""}


@dataclass(frozen=True)
class Table:
    """A heading, notes, columns and rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def figure_tables(summary: Summary) -> list[Table]:
    """One table for each metric: arms as rows, with interval, change against the base and n."""
    by_judge = {calibration.judge: calibration for calibration in summary.calibrations}
    return [_figure_table(path, metric, summary, by_judge) for path, metric in summary.metrics.items()]


def category_tables(summary: Summary) -> list[Table]:
    """One table for each metric that has categories: categories as rows, arms as columns."""
    tables = []
    for path, metric in summary.metrics.items():
        found = [result for result in summary.results if result.path == path and result.category is not None]
        if not found:
            continue
        cells = {(r.category, r.arm): r for r in found}
        categories = sorted({str(r.category) for r in found})
        rows = [
            (
                category,
                *(_with_interval(cells.get((category, arm)), metric) for arm in summary.arms),
                str(cells[category, BASE].n) if (category, BASE) in cells else "",
            )
            for category in categories
        ]
        tables.append(Table(path, ("category", *summary.arms, "n"), tuple(rows)))
    return tables


def judge_table(calibrations: Sequence[Calibration]) -> Table:
    """Show what each judge gets wrong."""
    rows = tuple(
        (c.judge, c.labels, str(c.n), f"{c.false_positive_rate:.1%}", f"{c.false_negative_rate:.1%}")
        for c in calibrations
    )
    return Table("Judges", ("judge", "labels", "n", "says yes wrongly", "says no wrongly"), rows)


def gate_table(checks: Sequence[Check]) -> Table:
    """Show every threshold with what it was compared with."""
    rows = tuple(
        (
            "pass" if check.passed else "FAIL",
            check.path,
            check.arm,
            f"{check.threshold.condition} {check.threshold.limit:g}"
            + (f" of {check.threshold.of}" if check.threshold.of else "")
            + (" (interval)" if check.threshold.uses_interval else ""),
            check.reason if check.actual is None else f"{check.actual:.4g}",
        )
        for check in checks
    )
    return Table("Gate", ("", "figure", "arm", "threshold", "actual"), rows)


def setup_rows(setup: Mapping[str, object]) -> list[tuple[str, str]]:
    """Flatten what was asked for into names and values."""
    rows = []
    for key, value in setup.items():
        if isinstance(value, Mapping):
            rows += [(f"{key}.{name}", str(inner)) for name, inner in value.items()]
        elif isinstance(value, list):
            rows += [(key, str(inner)) for inner in value]
        else:
            rows.append((key, str(value)))
    return rows


def judge_note(metric: Metric, calibrations: Mapping[str, Calibration]) -> str | None:
    """Return what stands beside a figure: how often its judge is wrong."""
    if metric.judge is None:
        return None
    found = calibrations.get(metric.judge)
    if found is None:
        return f"judge {metric.judge}: not calibrated in this run"
    return (
        f"judge {found.judge}: on {found.n} answers that people labelled it says yes wrongly in "
        f"{found.false_positive_rate:.1%} and no wrongly in {found.false_negative_rate:.1%}"
    )


def shown(value: float | None, metric: Metric) -> str:
    """Write a figure in its unit."""
    if value is None:
        return "n/a"
    if metric.unit == "share":
        return f"{value:.1%}"
    return f"{value:.1f}" if metric.unit == "ms" or abs(value) >= 100 else f"{value:.3g}"


def _figure_table(path: str, metric: Metric, summary: Summary, by_judge: Mapping[str, Calibration]) -> Table:
    results = [r for arm in summary.arms if (r := summary.find(path, arm)) is not None]
    rows = tuple(
        (
            result.arm,
            shown(result.value, metric),
            _interval(result.low, result.high, metric),
            _change(result, metric),
            _interval(result.change_low, result.change_high, metric, is_change=True),
            str(result.n),
        )
        for result in results
    )
    notes = [f"{metric.meaning}; {_BETTER[metric.better]}".removesuffix("; ")]
    if (note := judge_note(metric, by_judge)) is not None:
        notes.append(note)
    columns = ("arm", metric.name, "95 % interval", "against base", "95 % interval of the change", "n")
    return Table(path, columns, rows, tuple(notes))


def _with_interval(result: Result | None, metric: Metric) -> str:
    if result is None:
        return "n/a"
    interval = _interval(result.low, result.high, metric)
    return shown(result.value, metric) + (f" ({interval})" if interval else "")


def _interval(low: float | None, high: float | None, metric: Metric, *, is_change: bool = False) -> str:
    if low is None or high is None:
        return ""
    if is_change:
        return f"{_signed(low, metric)} to {_signed(high, metric)}"
    return f"{shown(low, metric)} to {shown(high, metric)}"


def _change(result: Result, metric: Metric) -> str:
    if result.change is None:
        return ""
    relative = "" if result.relative_change is None else f" ({result.relative_change:+.0%})"
    return _signed(result.change, metric) + relative


def _signed(value: float, metric: Metric) -> str:
    if metric.unit == "share":
        return f"{value * 100:+.1f} points"
    return f"{value:+.1f}" if metric.unit == "ms" else f"{value:+.3g}"
