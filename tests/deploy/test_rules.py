"""The files for Prometheus and Alertmanager, by their own tools; each alert has tests and a runbook."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = PROMETHEUS / "rules" / "alerts.yml"
ALERT_TESTS = Path(__file__).parent / "alerts_test.yml"
RUNBOOKS = ROOT / "docs" / "runbooks.md"


def run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


NAMES = [rule["alert"] for rule in alerts()]


def sections(page: str) -> dict[str, str]:
    return dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))


def test_prometheus_takes_its_configuration_and_the_rules(real_programs: dict[str, Path]) -> None:
    printed = run(real_programs["promtool"], "check", "config", PROMETHEUS / "prometheus.yml")
    assert f"{len(NAMES)} rules found" in printed


def test_alertmanager_takes_the_sample(real_programs: dict[str, Path]) -> None:
    run(real_programs["amtool"], "check-config", ROOT / "deploy" / "alertmanager" / "alertmanager.yml")


def test_alerts_fire_where_they_have_to_and_nowhere_else(real_programs: dict[str, Path]) -> None:
    run(real_programs["promtool"], "test", "rules", ALERT_TESTS)


def test_a_rule_that_is_broken_fails_its_test(real_programs: dict[str, Path], tmp_path: Path) -> None:
    alert = "policy_patch_state_saved == 0"
    broken = tmp_path / "alerts.yml"
    broken.write_text(ALERTS.read_text(encoding="utf-8").replace(alert, "policy_patch_state_kept == 0"))
    document = yaml.safe_load(ALERT_TESTS.read_text(encoding="utf-8"))
    document["rule_files"] = [str(broken)]
    document["tests"] = [test for test in document["tests"] if "StateNotSaved" in test["name"]]
    tests = tmp_path / "tests.yml"
    tests.write_text(yaml.safe_dump(document))
    command = [str(real_programs["promtool"]), "test", "rules", str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "PolicyPatchStateNotSaved" in done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_is_seen_to_fire_and_to_be_quiet(name: str) -> None:
    document = yaml.safe_load(ALERT_TESTS.read_text(encoding="utf-8"))
    seen = set()
    for test in document["tests"]:
        for check in test.get("promql_expr_test", ()):
            if check["expr"] == f'count(ALERTS{{alertname="{name}", alertstate="firing"}})':
                seen.add(bool(check["exp_samples"]))
    assert seen == {True, False}


@pytest.mark.parametrize("rule", alerts(), ids=NAMES)
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    anchor = rule["annotations"]["runbook_url"].removeprefix("{{ $externalLabels.runbooks }}#")
    assert anchor == rule["alert"].lower()


def test_each_alert_has_its_section_in_the_runbooks_and_no_section_is_left_over() -> None:
    assert list(sections(RUNBOOKS.read_text(encoding="utf-8"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_runbook_says_what_it_means_what_to_check_and_how_to_mend_it(name: str) -> None:
    text = sections(RUNBOOKS.read_text(encoding="utf-8"))[name]
    assert re.findall(r"^\*\*(\w+)\.\*\* \S", text, re.MULTILINE) == ["Meaning", "Check", "Fix"]
