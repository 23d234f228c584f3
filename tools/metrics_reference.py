"""Writes the table of docs/metrics.md from the registry: each metric with its type, its labels and its help.

What stands around the table is written by people.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from server.metrics.patches import PatchMetrics

#: The table stands between these two lines.
BEGIN, END = "<!-- the table: written by `make docs` -->", "<!-- end of the table -->"


class Described(NamedTuple):
    """One metric."""

    #: As a query writes it: of a histogram without ``_bucket``, ``_sum`` and ``_count``.
    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def metrics() -> Iterator[Described]:
    """Yield every metric of ours, in no special order."""
    registry = CollectorRegistry()
    # Some are there only where a catalog is followed.
    PatchMetrics(registry).fleet.model = "model"
    for collector in registry._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            described = [(collector, collector._name, collector._type, collector._documentation)]
        else:
            described = [(f, f.name, f.type, f.documentation) for f in collector.collect()]
        for family, name, kind, meaning in described:
            full_name = f"{name}_total" if kind == "counter" else name
            yield Described(full_name, kind, tuple(family._labelnames), meaning)


def table() -> str:
    """Return the table."""
    rows = [
        f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.meaning} |"
        for m in sorted(metrics())
    ]
    return "\n".join(["| metric | type | labels | what |", "| --- | --- | --- | --- |", *rows])


def with_table(page: str) -> str:
    """Return ``page`` with the table as it has to be now.

    Raises:
        ValueError: The page has no place for it.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
