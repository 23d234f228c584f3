"""From the rows of a run to its figures: per task, metric, arm and category, with intervals and changes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from patches.evaluate.arms import BASE
from patches.evaluate.judges.calibration import Calibration
from patches.evaluate.log import SCHEMA, Row
from patches.evaluate.measures.measure import Metric, Value
from patches.evaluate.report.statistics import difference, figure, relative_change
from patches.evaluate.suite import Task

#: Categories with fewer items are left to the overall figure.
MIN_CATEGORY_ITEMS = 2
MAX_TRANSCRIPTS = 5


@dataclass(frozen=True)
class Result:
    """One figure of a report."""

    #: ``suite/task/metric``, by which gates name it.
    path: str
    arm: str
    #: ``None`` over all items.
    category: str | None
    value: float | None
    n: int
    low: float | None
    high: float | None
    #: Arm minus base over the same items; ``None`` for the base itself.
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    relative_change: float | None = None


@dataclass(frozen=True)
class Transcript:
    """One item, answered by every arm; only text that may be shown."""

    task: str
    id: str
    prompt: str | None
    #: arm -> (verdict, answer)
    answers: Mapping[str, tuple[str, str | None]]


@dataclass(frozen=True)
class Summary:
    """Everything that a report says."""

    setup: Mapping[str, Any]
    arms: tuple[str, ...]
    #: path -> metric
    metrics: Mapping[str, Metric]
    results: tuple[Result, ...]
    calibrations: tuple[Calibration, ...]
    transcripts: tuple[Transcript, ...]

    def find(self, path: str, arm: str) -> Result | None:
        """Return the overall figure of an arm."""
        for result in self.results:
            if (result.path, result.arm, result.category) == (path, arm, None):
                return result
        return None

    def to_document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "schema": SCHEMA,
            "setup": dict(self.setup),
            "arms": list(self.arms),
            "metrics": {path: asdict(metric) for path, metric in self.metrics.items()},
            "results": [asdict(result) for result in self.results],
            "calibrations": [calibration.to_document() for calibration in self.calibrations],
        }


def summarise(
    rows: Sequence[Row],
    tasks: Sequence[Task],
    arms: Sequence[str],
    calibrations: Sequence[Calibration],
    setup: Mapping[str, Any],
) -> Summary:
    """Compute every figure; metrics that no item has are left out."""
    results: list[Result] = []
    metrics: dict[str, Metric] = {}
    for task in tasks:
        of_task = [row for row in rows if row.task == task.name]
        for metric in task.measure.metrics:
            path = f"{task.name}/{metric.name}"
            found = _metric_results(path, metric, of_task, arms)
            if found:
                metrics[path] = metric
                results += found
    transcripts = tuple(t for task in tasks for t in _transcripts(task.name, rows, arms))
    return Summary(setup, tuple(arms), metrics, tuple(results), tuple(calibrations), transcripts)


def _metric_results(path: str, metric: Metric, rows: Sequence[Row], arms: Sequence[str]) -> list[Result]:
    counts: dict[str, int] = {}
    for row in rows:
        if row.arm == BASE:
            counts[row.scored.category] = counts.get(row.scored.category, 0) + 1
    kept = sorted(category for category, n in counts.items() if n >= MIN_CATEGORY_ITEMS)
    categories = [None, *(kept if len(counts) > 1 else [])]
    results = []
    for category in categories:
        values = {arm: _values(rows, arm, metric.name, category) for arm in arms}
        results += [
            _result(path, metric, arm, category, values[arm], values.get(BASE, {}))
            for arm in arms
            if values[arm]
        ]
    return results


def _values(rows: Sequence[Row], arm: str, name: str, category: str | None) -> dict[str, Value]:
    return {
        row.scored.id: row.scored.values[name]
        for row in rows
        if row.arm == arm and name in row.scored.values and category in (None, row.scored.category)
    }


def _result(
    path: str,
    metric: Metric,
    arm: str,
    category: str | None,
    values: Mapping[str, Value],
    base: Mapping[str, Value],
) -> Result:
    own = figure(list(values.values()), is_exponential=metric.is_exponential)
    plain = Result(path, arm, category, own.value, own.n, own.low, own.high)
    if arm == BASE or not base:
        return plain
    change = difference(values, base, is_exponential=metric.is_exponential)
    base_value = figure(list(base.values()), is_exponential=metric.is_exponential).value
    return Result(
        *(path, arm, category, own.value, own.n, own.low, own.high),
        *(change.value, change.low, change.high, relative_change(own.value, base_value)),
    )


def _transcripts(task: str, rows: Sequence[Row], arms: Sequence[str]) -> list[Transcript]:
    """Take the first items of which some arm's answer may be shown; their order is the run's seeded one."""
    by_id: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.task == task:
            by_id.setdefault(row.scored.id, {})[row.arm] = row
    shown = [found for found in by_id.values() if any(row.scored.answer for row in found.values())]
    return [
        Transcript(
            task,
            next(iter(found.values())).scored.id,
            next(iter(found.values())).scored.prompt,
            {arm: (found[arm].scored.verdict, found[arm].scored.answer) for arm in arms if arm in found},
        )
        for found in shown[:MAX_TRANSCRIPTS]
    ]
