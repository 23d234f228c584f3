"""Real Prometheus and Alertmanager beside a real server: panels have data, rules values, an alert fires."""

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from patches.format import Patch, make_patch, write_patch
from patches.kinds.condition import Condition, Probe
from patches.kinds.steering import Steering, SteeringBody
from patches.label import Label
from tools.debian_programs import programs
from tools.watch.processes import DEPLOY, Watch
from tools.watch.story import Story
from tools.watch.targets import Reader, Target, has_number, load, names, targets
from tools.watch.traffic import Traffic

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("own", why="a quiet server is looked at first; orders and signatures need keys"),
]

POLICY = """
version: 1
others: {allow: all, allow_none: true}
tenants: {header: X-Tenant, trusted: [127.0.0.1], rules: {acme: {allow: all, default: tone}}}
"""
#: More than there is between two scrapes, so that rates have two samples on a busy machine too.
SCRAPE_S = 4.0
RULES = [
    rule["record"]
    for group in yaml.safe_load((DEPLOY / "prometheus/rules/recording.yml").read_text())["groups"]
    for rule in group["rules"]
]


@dataclass
class Scene:
    """A server that is watched: what its dashboards showed before any request, and what they show now."""

    watch: Watch
    busy: Reader
    quiet: dict[str, dict[Target, list[dict[str, Any]]]]


def wait_for_scrapes(watch: Watch, num_scrapes: int) -> None:
    """Return once Prometheus has read the server's metrics so many times more: a busy machine misses some."""
    count = 'sum_over_time(up{job="policypatch"}[10m])'
    before = float(watch.now(f"{count} or vector(0)")[0]["value"][1])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if watch.now(f"{count} >= {before + num_scrapes}"):
            return
        time.sleep(0.2)
    raise AssertionError(f"no {num_scrapes} scrapes in two minutes: {watch.now('up')}")


def steering_patch(name: str, model: Any) -> Patch:
    """Make a vector with a condition, which all prompts meet."""
    shape = (model.base_model.num_layers, model.base_model.hidden_size)
    generator = torch.Generator().manual_seed(5)
    vector, probe = torch.randn(shape, generator=generator), torch.randn(1, shape[1], generator=generator)
    vector /= vector.norm(dim=1, keepdim=True)
    # Conditions look at the first layer, so that vectors begin behind it.
    vector[0] = 0
    body = SteeringBody(
        Steering("residual", "relative", 0.1, tokens="answer"), Condition((Probe((0,), "mean", 0.0, -100.0),))
    )
    manifest = Label(name, "1.0.0").manifest(model.base_model, body, {"method": "icv"})
    return make_patch(manifest, {"vector": vector, "probes": probe / 8})


@pytest.fixture(scope="module")
def scene(
    start_module_server: Any, tiny_model: Path, tiny_patches: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("watch")
    (folder / "made").mkdir()
    # The first one, which the story and the dashboards are about.
    write_patch(steering_patch("alarm", tiny_patches.model), folder / "made")
    for seed, name in enumerate(("tone", "voice")):
        write_patch(tiny_patches.of_random_embeddings(name, 40, seed=seed), folder / "made")
    (folder / "policy.yaml").write_text(POLICY)
    story = Story(folder / "made", folder)
    flags = [*story.flags(), "--policy", str(folder / "policy.yaml")]
    flags += ["--dtype", "float32", "--max-model-len", "512"]
    server = start_module_server(tiny_model, *flags, patches=story.folder)
    server.wait_ready()
    choice = story.choice() | {"window": "1m"}
    start = time.time()
    with Watch(folder / "data", programs(), [server.url.removeprefix("http://")]) as watch:
        wait_for_scrapes(watch, 4)
        quiet = Reader(watch, choice, start, time.time(), scrape_s=SCRAPE_S)
        before = {name: {target: quiet.read(target) for target in targets(name)} for name in names()}
        with Traffic(server.url, "base", story.names(), num_threads=3):
            wait_for_scrapes(watch, 3)
            story.tell(server.url, 1)
            wait_for_scrapes(watch, 9)
            yield Scene(watch, Reader(watch, choice, start, time.time(), scrape_s=SCRAPE_S), before)


@pytest.mark.parametrize("name", names())
def test_every_query_of_every_panel_has_data(scene: Scene, name: str) -> None:
    # This server follows no catalog; tests/server/fleet/test_judge.py has data for those panels.
    answers = {t: scene.busy.read(t) for t in targets(name) if "policy_patch_catalog" not in t.expression}
    empty = [str(target) for target, series in answers.items() if not has_number(series)]
    assert not empty, "\n".join(empty)
    unnamed = [
        f"{target}: no {label} for {target.legend}"
        for target, series in answers.items()
        for label in re.findall(r"\{\{(\w+)\}\}", target.legend)
        if not all(label in one["metric"] for one in series)
    ]
    assert not unnamed, "\n".join(unnamed)


def test_the_panels_of_steering_show_more_than_zeros(scene: Scene) -> None:
    panels = load("patch")["panels"]
    titles = [panel["title"] for panel in panels]
    row = panels[titles.index("Steering") + 1 :]
    ids = {panel["id"] for panel in row[: next(i for i, one in enumerate(row) if one["type"] == "row")]}
    assert ids
    for panel in ids:
        values = [
            float(value)
            for target in targets("patch")
            if target.panel_id == panel
            for one in scene.busy.read(target)
            for _, value in one["values"]
        ]
        assert any(math.isfinite(value) and value != 0 for value in values), panel


@pytest.mark.parametrize("name", names())
def test_every_column_of_a_table_is_a_label_of_what_it_asks_for(scene: Scene, name: str) -> None:
    for panel in load(name)["panels"]:
        if panel["type"] != "table":
            continue
        # Which of these an alert has depends on what it is about.
        found = {"Value", *(("patch", "instance") if panel["title"] == "Alerts firing" else ())} | {
            f"Value #{target['refId']}" for target in panel["targets"]
        }
        for target in (t for t in targets(name) if t.panel_id == panel["id"]):
            found |= {label for one in scene.busy.read(target) for label in one["metric"]}
        (order,) = (step for step in panel["transformations"] if step["id"] == "organize")
        assert set(order["options"]["renameByName"]) <= found, panel["title"]


def labels_of(expression: str) -> set[tuple[str, str]]:
    """Return each metric of an expression with each label that it is chosen by."""
    return {
        (metric, label)
        for metric, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", expression)
        for label in re.findall(r"(\w+)\s*(?:=|!)", matchers)
    }


def test_what_queries_and_rules_choose_by_is_there(scene: Scene) -> None:
    """A misspelt metric or label would go unseen where a query says 0 for what is absent."""
    expressions = [target.expression for name in names() for target in targets(name)]
    for file in ("recording", "alerts"):
        document = yaml.safe_load((DEPLOY / f"prometheus/rules/{file}.yml").read_text(encoding="utf-8"))
        expressions += [rule["expr"] for group in document["groups"] for rule in group["rules"]]
    chosen = {pair for text in expressions for pair in labels_of(text)}
    absent = {pair for pair in chosen if not scene.watch.now(f'count({pair[0]}{{{pair[1]}!=""}})')}
    assert absent == set()


def test_every_recording_rule_has_a_value(scene: Scene) -> None:
    start, end = scene.busy.start, scene.busy.end
    assert [rule for rule in RULES if not has_number(scene.watch.over(rule, start, end, 1))] == []


@pytest.mark.parametrize("name", names())
def test_a_quiet_server_shows_zeros_or_says_why_it_shows_nothing(scene: Scene, name: str) -> None:
    full = {target.panel_id for target, series in scene.quiet[name].items() if has_number(series)}
    silent = [
        panel["title"]
        for panel in load(name)["panels"]
        if panel["type"] != "row" and panel["id"] not in full
        if not panel["fieldConfig"]["defaults"].get("noValue")
    ]
    assert silent == []


def test_a_bad_signature_raises_an_alert_that_reaches_alertmanager(scene: Scene) -> None:
    deadline = time.monotonic() + 30
    name = "PolicyPatchSignatureFailures"
    found: list[dict[str, Any]] = []
    while time.monotonic() < deadline and not found:
        found = [alert for alert in scene.watch.alerts() if alert["labels"]["alertname"] == name]
        time.sleep(0.2)
    (alert,) = found
    assert alert["labels"] | {"severity": "critical", "reason": "bad_signature"} == alert["labels"]
    assert alert["annotations"]["runbook_url"].endswith("docs/runbooks.md#policypatchsignaturefailures")
    assert [receiver["name"] for receiver in alert["receivers"]] == ["on-call"]
