"""What `make watch` and the test of the dashboards are made of, without a server."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tools.watch.__main__ import banner
from tools.watch.processes import DEPLOY, Watch, WatchFailed, prometheus_configuration
from tools.watch.story import Story
from tools.watch.targets import fill, has_number, names, targets


def test_variables_are_filled_as_grafana_does() -> None:
    expression = 'rate(a{b=~"$b"}[$__rate_interval]) + increase(c{b="${b}"}[$__range])'
    filled = fill(expression, {"b": "x"}, scrape_s=15, step_s=60, range_s=3600)
    assert filled == 'rate(a{b=~"x"}[75s]) + increase(c{b="x"}[3600s])'
    with pytest.raises(KeyError, match="unknown"):
        fill("$unknown", {}, scrape_s=15, step_s=60, range_s=3600)


def test_the_shipped_configuration_is_used_with_other_addresses_and_intervals() -> None:
    shipped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    used = prometheus_configuration(["a:1", "b:2"], "1s", "c:3", "runbooks.md")
    assert used["global"].keys() >= shipped["global"].keys()
    (job,) = used["scrape_configs"]
    assert job == {"job_name": "policypatch", "static_configs": [{"targets": ["a:1", "b:2"]}]}
    assert used["rule_files"] == [f"{DEPLOY}/prometheus/rules/*.yml"]
    assert used["alerting"]["alertmanagers"] == [{"static_configs": [{"targets": ["c:3"]}]}]


def test_every_query_and_every_mark_of_the_dashboards_is_found() -> None:
    for name in names():
        found = list(targets(name))
        assert len({(target.panel, target.ref_id) for target in found}) == len(found)
        assert {target.panel for target in found if target.panel_id is None} >= {"Activations"}


@pytest.mark.parametrize(
    ("values", "is_number"), [([], False), (["NaN"], False), (["+Inf"], False), (["NaN", "0"], True)]
)
def test_what_is_not_a_number_is_no_data(values: list[str], is_number: bool) -> None:
    assert has_number([{"metric": {}, "values": [(0, value) for value in values]}]) == is_number


def test_the_banner_has_a_request_that_the_server_answers(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[2] / "examples" / "patches"
    story = Story(folder, tmp_path)
    text = banner("http://h:1", Watch(tmp_path / "watch", {}, ["h:1"]), story)
    (call,) = re.findall(r"curl.*\\\n.*", text)
    words = shlex.split(call.replace("\\\n", ""))
    assert words[2] == "http://h:1/v1/chat/completions"
    assert words[6] == f"X-Policy-Patch: {story.names()[0]}"
    makefile = (folder.parents[1] / "Makefile").read_text(encoding="utf-8")
    assert f"--served-model-name {json.loads(words[-1])['model']} " in makefile


def test_an_empty_patch_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(WatchFailed, match="--patches: expected a folder with patches"):
        Story(tmp_path / "none", tmp_path)
