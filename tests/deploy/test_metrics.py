"""No dashboard or rule without the metric that it names, and no metric that nothing looks at."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.metrics_reference import BEGIN, END, metrics

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"\bpolicy_patch_[a-z_]*[a-z]\b")
METRICS = {metric.name: metric for metric in metrics()}
SERIES = {
    series: metric
    for metric in METRICS.values()
    for series in (
        [metric.name]
        if metric.kind != "histogram"
        else [f"{metric.name}_{part}" for part in ("bucket", "sum", "count")]
    )
}
#: Labels that come from the scrape, from the exposition, or from the rules themselves.
OTHER_LABELS = {"le", "instance", "job", "quantile", "alertname", "alertstate", "severity"}


def deployed() -> Iterator[tuple[str, str]]:
    """Yield each file that asks for metrics, as text in which quotes stand as a query has them."""
    for pattern in ("deploy/grafana/dashboards/*.json", "deploy/prometheus/**/*.yml"):
        for path in sorted(ROOT.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            yield str(path.relative_to(ROOT)), text.replace('\\"', '"')


def unknown_names(text: str) -> set[str]:
    return {name for name in NAME.findall(text) if name not in SERIES and name not in METRICS}


def unknown_labels(text: str) -> set[tuple[str, str]]:
    """Return what is selected by a label that the metric does not have."""
    wrong = set()
    for name, selectors in re.findall(r"\b(policy_patch_[a-z_]*[a-z])\{([^{}]*)\}", text):
        known = {*(SERIES[name].labels if name in SERIES else ()), *OTHER_LABELS}
        used = re.findall(r"(?:^|,)\s*([a-z_]+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', selectors))
        wrong |= {(name, label) for label in used if label not in known}
    return wrong


def used_names() -> set[str]:
    """Return what is looked at: in a dashboard, a rule, or a page beside the table of all metrics."""
    texts = [text for _, text in deployed()]
    for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        texts.append(before + rest.partition(END)[2])
    return {SERIES[name].name if name in SERIES else name for text in texts for name in NAME.findall(text)}


@pytest.mark.parametrize(
    ("file", "text"), list(deployed()), ids=lambda value: value if len(value) < 80 else ""
)
def test_a_dashboard_or_rule_names_only_metrics_that_exist(file: str, text: str) -> None:
    assert unknown_names(text) == set(), file
    assert unknown_labels(text) == set(), file


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_is_looked_at_somewhere(name: str) -> None:
    assert name in used_names()


def test_a_metric_that_is_gone_and_a_label_with_another_name_are_noticed() -> None:
    assert unknown_names("rate(policy_patch_gone_total[5m])") == {"policy_patch_gone_total"}
    query = 'sum(policy_patch_requests_total{instance="a", patches=~"x,y=\\"z", outcome="ok"})'
    assert unknown_labels(query) == {("policy_patch_requests_total", "patches")}
