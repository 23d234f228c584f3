"""What the compose file starts beside a server: pinned, on loopback, with the files that are here."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text(encoding="utf-8"))
WATCHERS = {name: one for name, one in COMPOSE["services"].items() if one["profiles"] == ["watch"]}


def test_a_profile_starts_prometheus_alertmanager_and_grafana() -> None:
    assert sorted(WATCHERS) == ["alertmanager", "grafana", "prometheus"]


@pytest.mark.parametrize("service", WATCHERS.values(), ids=WATCHERS)
def test_a_watcher_is_of_one_version_and_listens_on_loopback_only(service: dict[str, Any]) -> None:
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    assert "ports" not in service
    words = [*service.get("command", ()), *service.get("environment", {}).values()]
    assert [word for word in words if re.search(r"(?:address=)?127\.0\.0\.1(?::\d+)?$", word)]


@pytest.mark.parametrize("service", WATCHERS.values(), ids=WATCHERS)
def test_a_watcher_reads_files_that_are_here_and_keeps_its_data(service: dict[str, Any]) -> None:
    own = [volume for volume in service["volumes"] if volume.startswith("./")]
    kept = [volume.split(":")[0] for volume in service["volumes"] if not volume.startswith("./")]
    assert own
    for volume in own:
        here, there, mode = volume.split(":")
        assert mode == "ro"
        assert (DEPLOY / here).is_dir()
        named = [word for word in str(service).split("'") if f"{there}/" in word and ":" not in word]
        for word in named:
            path = word.partition("=")[2] or word
            assert (DEPLOY / here / path.removeprefix(f"{there}/")).exists(), word
    assert set(kept) <= COMPOSE["volumes"].keys()


def test_grafana_finds_the_data_source_and_the_dashboards() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    listen = next(word for word in WATCHERS["prometheus"]["command"] if "listen-address" in word)
    assert source["url"] == f"http://{listen.partition('=')[2]}"
    scrape = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
    (provider,) = yaml.safe_load((provisioning / "dashboards/policypatch.yml").read_text())["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in WATCHERS["grafana"]["volumes"]
