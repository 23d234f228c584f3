"""What the dashboards ask Prometheus, with Grafana's variables filled in as Grafana does."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deploy.grafana.boards import FOLDER
from tools.watch.processes import Watch


@dataclass(frozen=True)
class Target:
    """One query of a dashboard: of a panel, or for the marks across all panels."""

    dashboard: str
    panel: str
    panel_id: int | None
    ref_id: str
    expression: str
    legend: str = ""
    is_instant: bool = False
    is_table: bool = False

    def __str__(self) -> str:
        """Return where it stands, for messages."""
        return f"{self.dashboard} / {self.panel} / {self.ref_id}: {self.expression}"


def load(name: str) -> dict[str, Any]:
    """Return a dashboard as Grafana reads it."""
    document: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return document


def names() -> list[str]:
    """Return the names of all dashboards."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def targets(name: str) -> Iterator[Target]:
    """Yield every query of a dashboard."""
    document = load(name)
    for panel in document["panels"]:
        for target in panel.get("targets", ()):
            yield Target(
                name,
                panel["title"],
                panel["id"],
                target["refId"],
                target["expr"],
                target.get("legendFormat", ""),
                target.get("instant", False),
                target.get("format") == "table",
            )
    for mark in document["annotations"]["list"]:
        yield Target(name, mark["name"], None, "mark", mark["expr"])


def fill(
    expression: str, values: Mapping[str, str], *, scrape_s: float, step_s: float, range_s: float
) -> str:
    """Return an expression without variables.

    Args:
        expression: As it stands in a dashboard.
        values: Variable -> what was chosen; ``.*`` for all.
        scrape_s: The data source's scrape interval.
        step_s: Between two points of the panel.
        range_s: The time that is shown.

    Raises:
        KeyError: A variable has no value.
    """
    own = {
        "__rate_interval": f"{math.ceil(max(step_s + scrape_s, 4 * scrape_s))}s",
        "__interval": f"{math.ceil(step_s)}s",
        "__range": f"{math.ceil(range_s)}s",
    }
    known = {**values, **own}
    # What a regular expression has caught begins with a digit.
    return re.sub(
        r"\$([a-zA-Z_]\w*)|\$\{([a-zA-Z_]\w*)\}", lambda match: known[match[1] or match[2]], expression
    )


@dataclass(frozen=True)
class Reader:
    """Runs the queries of dashboards against one Prometheus, as panels of a given time do."""

    watch: Watch
    values: Mapping[str, str]
    start: float
    end: float
    step_s: float = 1.0
    scrape_s: float = 1.0

    def read(self, target: Target) -> list[dict[str, Any]]:
        """Return the series of a query: ``metric``, and ``values`` over time, one where it is instant."""
        expression = fill(
            target.expression,
            self.values,
            scrape_s=self.scrape_s,
            step_s=self.step_s,
            range_s=self.end - self.start,
        )
        if not target.is_instant:
            return self.watch.over(expression, self.start, self.end, self.step_s)
        return [{**series, "values": [series["value"]]} for series in self.watch.now(expression)]


def has_number(series: list[dict[str, Any]]) -> bool:
    """Return whether there is a number among all values."""
    return any(math.isfinite(float(value)) for one in series for _, value in one["values"])
