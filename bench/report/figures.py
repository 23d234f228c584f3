"""Figures from records: medians and spreads of each arm, ratios of arms within a round, goals.

Every figure is a pure function of the records. Rounds that warm up are left out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.load.arms import PAIRS
from bench.load.timing import CellKey, paired_ratios, quantile
from bench.report.record import Record


@dataclass(frozen=True)
class Metric:
    """One measured quantity: where a result holds it, and how a table shows it."""

    name: str
    label: str
    unit: str
    path: tuple[str, ...]
    scale: float
    is_higher_better: bool

    def value(self, record: Record) -> float | None:
        """Return the value in base units; ``None`` where the cell has no such samples."""
        found: Any = record.result
        for key in self.path:
            if found is None:
                return None
            found = found.get(key)
        return None if found is None else float(found)


METRICS = (
    Metric("throughput", "throughput", "tok/s", ("output_tokens_per_s",), 1, True),
    Metric("ttft_p50", "TTFT p50", "ms", ("ttft_s", "p50"), 1000, False),
    Metric("itl_p50", "ITL p50", "ms", ("itl_s", "p50"), 1000, False),
    Metric("itl_p99", "ITL p99", "ms", ("itl_s", "p99"), 1000, False),
)

#: (arm, reference, least ratio of throughput) by device.
GOALS = {
    "cpu": (("idle", "plain", 0.98), ("patched", "idle", 0.97)),
    "gpu": (("idle", "plain", 0.99), ("patched", "idle", 0.99)),
}


@dataclass(frozen=True)
class Spread:
    """The median of a list of values and how far they lie apart."""

    count: int
    median: float
    minimum: float
    maximum: float
    p25: float
    p75: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Describe one or more values."""
        samples = list(values)
        p25, median, p75 = (quantile(samples, q) for q in (0.25, 0.5, 0.75))
        return cls(len(samples), median, min(samples), max(samples), p25, p75)

    def as_dict(self) -> dict[str, float]:
        """Return it JSON-able, rounded to five places."""
        return {name: round(value, 5) for name, value in vars(self).items()}


def cells_of(records: Sequence[Record], arm: str, metric: Metric, concurrency: int) -> dict[CellKey, float]:
    """Return an arm's values by cell, without the rounds that warm up."""
    cells = {}
    for record in records:
        setup = record.setup
        if setup["arm"] != arm or setup["concurrency"] != concurrency or setup["is_warmup"]:
            continue
        value = metric.value(record)
        if value is not None:
            cells[record.run_id, int(setup["round"]), concurrency] = value
    return cells


def ratios_of(
    records: Sequence[Record], arm: str, reference: str, metric: Metric, concurrency: int
) -> dict[CellKey, float]:
    """Return the ratios of two arms, round by round."""
    return paired_ratios(
        cells_of(records, arm, metric, concurrency), cells_of(records, reference, metric, concurrency)
    )


def concurrencies_of(records: Sequence[Record]) -> list[int]:
    """Return the concurrencies that were measured, ascending."""
    return sorted({int(record.setup["concurrency"]) for record in records})


def summarise_ratios(records: Sequence[Record]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return concurrency -> "arm/reference" -> metric -> spread of the ratio, as far as measured."""
    summary: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for concurrency in concurrencies_of(records):
        pairs = {}
        for arm, reference in PAIRS:
            spreads = {
                metric.name: Spread.of(ratios.values()).as_dict()
                for metric in METRICS
                if (ratios := ratios_of(records, arm, reference, metric, concurrency))
            }
            if spreads:
                pairs[f"{arm}/{reference}"] = spreads
        summary[str(concurrency)] = pairs
    return summary


def judge_goals(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Hold the medians of throughput against the goals of the device that was measured."""
    verdicts = []
    for concurrency in concurrencies_of(records):
        for arm, reference, least in GOALS[str(records[0].setup["device"])]:
            ratios = ratios_of(records, arm, reference, METRICS[0], concurrency)
            if ratios:
                median = Spread.of(ratios.values()).median
                verdicts.append(
                    {
                        "ratio": f"{arm}/{reference}",
                        "concurrency": concurrency,
                        "goal": least,
                        "median": round(median, 5),
                        "is_met": median >= least,
                    }
                )
    return verdicts
