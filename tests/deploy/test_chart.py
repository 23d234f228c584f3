"""The chart: rendered by a real Helm, and held to the schemas of Kubernetes."""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server.cli import build_parser
from tools.helm import helm

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "chart"
KUBERNETES = "1.37"
VALUES = {
    "model": {"path": "/models/llama", "name": "llama", "claim": "models"},
    "catalog": {"url": "https://store.example", "root": "{}", "leaseSeconds": 60},
}
EVERYTHING = {
    "monitoring": {"enabled": True, "dashboards": True},
    "autoscaling": {"by": "hpa"},
    "inferencePool": {"enabled": True, "picker": "picker", "gateway": "gateway"},
    "apiKeySecret": "keys",
    "adminKeysSecret": "admins",
    "stamper": {"enabled": True, "secret": "stamper"},
    "args": ["--require-choice"],
}
PERSISTENT: dict[str, Any] = {"storage": {"persistent": True}, "catalog": {"leaseSeconds": 600}}


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            result[key] = merged(result[key], value) if isinstance(value, dict) and key in result else value
    return result


def run(action: str, tmp_path: Path, *parts: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(merged(VALUES, *parts)))
    name = ["one"] if action == "template" else []
    command = [helm(), action, *name, CHART, "-f", values]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def rendered(tmp_path: Path, *parts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    done = run("template", tmp_path, *parts)
    assert done.returncode == 0, done.stderr
    return {f"{one['kind']} {one['metadata']['name']}": one for one in yaml.safe_load_all(done.stdout) if one}


def of_kind(objects: dict[str, dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [one for one in objects.values() if one["kind"] in kinds]


def workload(objects: dict[str, dict[str, Any]]) -> Any:
    found = [objects.get(f"{kind} one") for kind in ("Deployment", "StatefulSet")]
    (one,) = [each for each in found if each is not None]
    return one["spec"]


def container(objects: dict[str, dict[str, Any]]) -> Any:
    (one,) = workload(objects)["template"]["spec"]["containers"]
    return one


#: Kinds that Kubernetes itself does not know.
OTHERS = {"ServiceMonitor", "PrometheusRule", "InferencePool", "HTTPRoute", "ScaledObject"}


@pytest.mark.parametrize("parts", [[], [EVERYTHING], [PERSISTENT], [EVERYTHING, PERSISTENT]])
def test_what_is_rendered_is_what_kubernetes_takes(parts: Iterable[dict[str, Any]], tmp_path: Path) -> None:
    assert run("lint", tmp_path, *parts).returncode == 0
    objects = rendered(tmp_path, *parts)
    checked = [one for one in objects.values() if one["kind"] not in OTHERS]
    assert len(checked) >= 5
    for one in checked:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_a_wrong_field_would_be_found(tmp_path: Path) -> None:
    (one,) = of_kind(rendered(tmp_path), "Deployment")
    one["spec"]["strategy"]["rollingUpdate"]["maxSurges"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_readiness_is_ready_and_liveness_is_health(tmp_path: Path) -> None:
    one = container(rendered(tmp_path))
    paths = {probe: one[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}


def test_an_update_starts_the_new_pod_first(tmp_path: Path) -> None:
    update = workload(rendered(tmp_path))["strategy"]["rollingUpdate"]
    assert update == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_long_lease_needs_a_memory_that_outlives_the_pod(tmp_path: Path) -> None:
    refused = run("template", tmp_path, {"catalog": {"leaseSeconds": 61}})
    assert refused.returncode != 0
    assert "leaseSeconds" in refused.stderr
    objects = rendered(tmp_path, PERSISTENT)
    (claim,) = workload(objects)["volumeClaimTemplates"]
    mounts = {one["name"]: one["mountPath"] for one in container(objects)["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == "/patches"


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"model": {"name": ""}}, "model/name"),
        ({"model": {"name": "a:b"}}, "model/name"),
        ({"catalog": {"url": "ftp://x"}}, "catalog/url"),
        ({"catalog": {"root": ""}}, "catalog"),
        ({"catalog": {"rootConfigMap": "also"}}, "catalog"),
        ({"autoscaling": {"by": "keda"}}, "autoscaling"),
        ({"inferencePool": {"enabled": True}}, "inferencePool"),
        ({"stamper": {"enabled": True}}, "stamper"),
        ({"replica": 3}, "replica"),
    ],
)
def test_values_that_can_not_work_are_refused(part: dict[str, Any], named: str, tmp_path: Path) -> None:
    refused = run("template", tmp_path, part)
    assert refused.returncode != 0
    assert named in refused.stderr


def test_the_container_is_as_restricted_as_pods_can_be(tmp_path: Path) -> None:
    objects = rendered(tmp_path)
    assert container(objects)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    pod = workload(objects)["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    # Of the user in the image.
    assert f"--uid {pod['securityContext']['runAsUser']} " in (ROOT / "Dockerfile").read_text()


def test_the_server_knows_every_flag_that_it_is_given(tmp_path: Path) -> None:
    words = container(rendered(tmp_path, EVERYTHING))["args"]
    args, of_vllm = build_parser("serve").parse_known_args(words)
    assert {word.split("=")[0] for word in of_vllm} == {"--served-model-name", "--host", "--port"}
    assert (args.catalog, str(args.catalog_root)) == ("https://store.example", "/etc/policypatch/root.json")
    assert args.require_choice is True


def test_alerts_and_dashboards_arrive_as_they_are(tmp_path: Path) -> None:
    objects = rendered(tmp_path, EVERYTHING)
    (rule,) = of_kind(objects, "PrometheusRule")
    files = [yaml.safe_load(path.read_text())["groups"] for path in sorted((CHART / "rules").glob("*.yml"))]
    assert rule["spec"]["groups"] == [group for groups in files for group in groups]
    boards = sorted((CHART / "dashboards").glob("*.json"))
    assert boards
    for board in boards:
        one = objects[f"ConfigMap one-dashboard-{board.stem}"]
        assert one["data"] == {board.name: board.read_text()}
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_each_pod_is_scraped_once_under_the_job_of_the_alerts(tmp_path: Path) -> None:
    objects = rendered(tmp_path, EVERYTHING, PERSISTENT)
    (monitor,) = of_kind(objects, "ServiceMonitor")
    selector = monitor["spec"]["selector"]
    left_out = [one["key"] for one in selector["matchExpressions"]]
    scraped = [
        service["metadata"]["labels"]
        for service in of_kind(objects, "Service")
        if not any(key in service["metadata"]["labels"] for key in left_out)
    ]
    (labels,) = scraped
    assert selector["matchLabels"].items() <= labels.items()
    assert labels[monitor["spec"]["jobLabel"]] == "policypatch"


def test_the_pool_holds_the_pods_and_its_picker_their_metrics(tmp_path: Path) -> None:
    objects = rendered(tmp_path, EVERYTHING)
    (pool,) = of_kind(objects, "InferencePool")
    pod = workload(objects)["template"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert pool["spec"]["targetPorts"] == [{"number": container(objects)["ports"][0]["containerPort"]}]
    assert pool["spec"]["endpointPickerRef"]["name"] == "picker"
    picker = yaml.safe_load(objects["ConfigMap one-picker"]["data"]["picker.yaml"])
    named = {one["type"] for one in picker["plugins"]}
    (profile,) = picker["schedulingProfiles"]
    assert {one["pluginRef"] for one in profile["plugins"]} <= named
    (metrics,) = [one["parameters"] for one in picker["plugins"] if one["type"] == "core-metrics-extractor"]
    (engine,) = metrics["engineConfigs"]
    assert pod["metadata"]["labels"][metrics["engineLabelKey"]] == engine["name"]
    documented = (ROOT / "docs" / "metrics.md").read_text()
    assert f"`{engine['loraSpec']}`" in documented
    (route,) = of_kind(objects, "HTTPRoute")
    (backend,) = route["spec"]["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"]) == ("InferencePool", pool["metadata"]["name"])


def test_the_stamper_has_one_key_and_stamps_far_within_the_lease(tmp_path: Path) -> None:
    objects = rendered(tmp_path, EVERYTHING)
    stamper = objects["Deployment one-stamper"]["spec"]
    assert stamper["replicas"] == 2
    pod = stamper["template"]["spec"]
    (volume,) = pod["volumes"]
    paths = [item["path"] for item in volume["secret"]["items"]]
    assert [path for path in paths if path.startswith("keys/")] == ["keys/timestamp.key"]
    (one,) = pod["containers"]
    args = build_parser("fleet").parse_args(one["args"])
    assert (args.action, args.every) == ("stamp", 3.0)
    assert one["securityContext"] == container(objects)["securityContext"]
    # No request may be sent to it.
    (service,) = of_kind(objects, "Service")
    assert not service["spec"]["selector"].items() <= stamper["template"]["metadata"]["labels"].items()


def test_keda_asks_for_the_queue_of_these_pods(tmp_path: Path) -> None:
    parts = {"autoscaling": {"by": "keda", "prometheus": "http://prometheus:9090"}}
    objects = rendered(tmp_path, parts)
    (scaled,) = of_kind(objects, "ScaledObject")
    assert scaled["spec"]["scaleTargetRef"] == {"kind": "Deployment", "name": "one"}
    assert "vllm:num_requests_waiting{" in scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert "replicas" not in workload(objects)
