"""The dashboards are what the code writes, and have what a person expects of each panel."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana.boards import FOLDER, documents

DOCS = Path(__file__).resolve().parents[2] / "docs"
DOCUMENTS = {name: json.loads(text) for name, text in documents().items()}
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, document in DOCUMENTS.items()
    for panel in document["panels"]
    if panel["type"] != "row"
]


def test_the_files_are_what_the_code_writes() -> None:
    there = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert there == documents(), "run `make dashboards`"


def expressions(value: Any) -> Iterator[str]:
    match value:
        case {"expr": str(expression)}:
            yield expression
        case dict():
            for inner in value.values():
                yield from expressions(inner)
        case list():
            for inner in value:
                yield from expressions(inner)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_looks_at_the_chosen_servers_through_the_chosen_data_source(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        for selector in re.findall(r"(?:policy_patch_|vllm:)\w+(\{[^}]*\})?", target["expr"]):
            assert 'instance=~"$instance"' in selector


@pytest.mark.parametrize("panel", PANELS)
def test_a_rate_looks_back_as_far_as_grafana_says_or_as_the_reader_chose(panel: dict[str, Any]) -> None:
    windows = {w for target in panel["targets"] for w in re.findall(r"\[([^\]]+)\]", target["expr"])}
    assert windows <= {"$__rate_interval", "$__range", "$window", "1h"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_panels_fill_whole_rows_of_the_grid_and_do_not_overlap(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DOCUMENTS[name]["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    assert {x for x, _ in taken} == set(range(24))
    height = 1 + max(y for _, y in taken)
    assert len(taken) == 24 * height


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_variable_is_used_and_every_used_one_exists(name: str) -> None:
    document = DOCUMENTS[name]
    defined = {variable["name"] for variable in document["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(document)))
    # Filled in by Grafana itself, in the steps that reach for `$__all` too.
    assert used == defined


@pytest.mark.parametrize("name", DOCUMENTS)
def test_changes_are_marked_and_the_other_dashboards_are_one_click_away(name: str) -> None:
    document = DOCUMENTS[name]
    marks = {mark["name"]: mark["expr"] for mark in document["annotations"]["list"]}
    assert "policy_patch_active_since_timestamp_seconds" in marks["Activations"]
    assert '"rollback|abort"' in marks["Rollbacks and aborts"]
    (link,) = document["links"]
    assert set(link["tags"]) <= set(document["tags"])
    assert link["includeVars"]
    assert link["keepTime"]


def test_the_dashboard_of_a_patch_shows_steering_and_zeros_where_there_was_none() -> None:
    shown = "\n".join(expressions(DOCUMENTS["patch"]))
    for series in ("steered_tokens_total", "condition_total", "condition_margin_bucket"):
        assert f"rate(policy_patch_{series}{{" in shown
    for line in re.findall(r".*policy_patch_(?:steered|condition)_.*total.*", shown):
        assert line.endswith(") or vector(0)")


def test_ids_tell_the_dashboards_and_their_panels_apart() -> None:
    assert len({document["uid"] for document in DOCUMENTS.values()}) == len(DOCUMENTS)
    for document in DOCUMENTS.values():
        ids = [panel["id"] for panel in document["panels"]]
        assert len(set(ids)) == len(ids)
        titles = [panel["title"] for panel in document["panels"]]
        assert len(set(titles)) == len(titles)


def test_pictures_of_the_dashboards_are_small() -> None:
    pictures = {path: path.stat().st_size for path in (DOCS / "dashboards").glob("*.png")}
    assert pictures
    assert [str(path) for path, size in pictures.items() if size > 200_000] == []
