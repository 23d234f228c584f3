"""Writes down what every query of every dashboard returned, for the pictures of the dashboards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.watch.processes import Watch
from tools.watch.targets import Reader, names, targets

#: Points of a line.
_NUM_POINTS = 150


def write_answers(path: Path, watch: Watch, values: Mapping[str, str], start: float, end: float) -> None:
    """Write the answers of all panels for the time from ``start`` to ``end``."""
    step_s = max(1, round((end - start) / _NUM_POINTS))
    start, end = int(start), int(end)
    reader = Reader(watch, values, start, end, step_s=step_s, scrape_s=2)
    dashboards: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in names():
        panels = dashboards[name] = {}
        for target in (target for target in targets(name) if target.panel_id is not None):
            answer = {
                "refId": target.ref_id,
                "legend": target.legend,
                "isInstant": target.is_instant,
                "isTable": target.is_table,
                "series": reader.read(target),
            }
            panels.setdefault(str(target.panel_id), []).append(answer)
    document = {
        "range": {"from": start, "to": end, "step": step_s},
        "values": dict(values),
        "dashboards": dashboards,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
