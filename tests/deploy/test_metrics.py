"""No dashboard or rule without the metric that it names, and no metric that nothing looks at."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from patches.yaml_text import parse_yaml
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


def labels_of(expression: str) -> set[str] | None:
    """Return the labels that the series of an expression can have; ``None`` where others' are among them."""
    names = NAME.findall(expression)
    if not names or re.search(r"\bvllm:|\b[a-z_]+:[a-z_:]+|\bALERTS\b|\bup\b", expression):
        return None
    made = re.findall(r'label_replace\(.*?,\s*"([a-z_]+)"', expression, re.DOTALL)
    return {label for name in names if name in SERIES for label in SERIES[name].labels} | {
        *made,
        *OTHER_LABELS,
    }


def operand(text: str) -> str:
    """Return what stands between the parenthesis that the text begins with and its other half."""
    depth = 0
    for end, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return text[: end + 1]
    return text


def unknown_groupings(expression: str, legend: str = "") -> set[str]:
    """Return the labels that a query groups or joins by, or its legend shows, and that no series has."""
    wrong = set()
    for match in re.finditer(r"\b(by|on|group_left|group_right)\s*\(([^()]*)\)\s*", expression):
        rest = expression[match.end() :]
        known = labels_of(operand(rest) if match[1] == "by" and rest.startswith("(") else expression)
        if known is not None:
            wrong |= {label for label in re.findall(r"[a-z_]+", match[2]) if label not in known}
    known = labels_of(expression)
    return wrong if known is None else wrong | set(re.findall(r"\{\{([a-z_]+)\}\}", legend)) - known


def expressions(document: Any) -> Iterator[tuple[str, str]]:
    """Yield the queries of a dashboard or of a file of rules, each with its legend."""
    if isinstance(document, list):
        for entry in document:
            yield from expressions(entry)
    elif isinstance(document, dict):
        if isinstance(document.get("expr"), str):
            yield document["expr"], str(document.get("legendFormat", ""))
        for value in document.values():
            yield from expressions(value)


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


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("deploy/grafana/dashboards/*.json"), *ROOT.glob("deploy/prometheus/rules/*.yml")],
    ids=lambda path: path.stem,
)
def test_a_query_groups_joins_and_shows_only_labels_that_its_series_have(path: Path) -> None:
    found = list(expressions(parse_yaml(path.read_text(encoding="utf-8"))))
    assert found
    problems = [(query, wrong) for query, legend in found if (wrong := unknown_groupings(query, legend))]
    assert problems == []


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_is_looked_at_somewhere(name: str) -> None:
    assert name in used_names()


def test_a_metric_that_is_gone_and_a_label_with_another_name_are_noticed() -> None:
    assert unknown_names("rate(policy_patch_gone_total[5m])") == {"policy_patch_gone_total"}
    query = 'sum(policy_patch_requests_total{instance="a", patches=~"x,y=\\"z", outcome="ok"})'
    assert unknown_labels(query) == {("policy_patch_requests_total", "patches")}
    requests = "policy_patch_requests_total"
    query = f"sum by (patch, level) (rate({requests}[5m])) / on (tier) {requests}"
    assert unknown_groupings(query, "{{outcome}} {{level}}") == {"level", "tier"}
