"""A real Prometheus and a real Alertmanager as processes, with the configuration that ``deploy/`` ships.

Only addresses and intervals differ from it, so that what is seen here holds for what operators run.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import yaml

from tools.debian_programs import working_folder

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 60.0
#: A server loads vLLM and a model, maybe beside another.
_SERVER_TIMEOUT_S = 600.0
#: As README and `make demo` have it.
MODEL_NAME = "smollm2"


class WatchFailed(Exception):
    """A process ended or did not become ready; the text has the end of its log."""


def free_port() -> int:
    """Return a port of this machine that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def prometheus_configuration(
    targets: Sequence[str], interval: str, alertmanager: str, runbooks: str
) -> dict[str, Any]:
    """Return the shipped configuration with other addresses and intervals."""
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text("utf-8"))
    document["global"] |= {
        "scrape_interval": interval,
        "scrape_timeout": interval,
        "evaluation_interval": interval,
        "external_labels": {"runbooks": runbooks},
    }
    document["rule_files"] = [str(DEPLOY / "prometheus" / pattern) for pattern in document["rule_files"]]
    document["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}]
    ours = [job for job in document["scrape_configs"] if job["job_name"] == "policypatch"]
    for job in ours:
        job["static_configs"] = [{"targets": list(targets)}]
    document["scrape_configs"] = ours
    return document


class DemoServer:
    """A server of the demo model on this machine, from ``with`` to its end."""

    def __init__(self, model: Path, port: int, flags: Sequence[str], log: Path) -> None:
        """Remember how it is started.

        Args:
            model: Its folder.
            port: Where it listens.
            flags: Of ``serve``, beside model, address and name.
            log: Takes what it prints.
        """
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "server", "serve", "--model", str(model), "--host", "127.0.0.1"]
        self._command = [*command, "--port", str(port), "--served-model-name", MODEL_NAME, *flags]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "DemoServer":
        """Start it; it is not ready yet."""
        quiet = {"VLLM_LOGGING_CONFIG_PATH": "examples/quiet-log.json", "PYTHONWARNINGS": "ignore"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | quiet
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        assert self._process is not None
        _stop(self._process)

    def wait_ready(self) -> None:
        """Wait until it takes requests.

        Raises:
            WatchFailed: It ended, or took too long.
        """
        assert self._process is not None
        deadline = time.monotonic() + _SERVER_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            time.sleep(0.5)
        text = self._log.read_text(encoding="utf-8", errors="replace")
        raise WatchFailed(f"the server did not become ready; the end of its log:\n{text[-3000:]}")


class Watch:
    """Prometheus and Alertmanager, from ``with`` to its end."""

    def __init__(
        self,
        folder: Path,
        programs: Mapping[str, Path],
        targets: Sequence[str],
        *,
        interval: str = "1s",
        ports: tuple[int, int] | None = None,
    ) -> None:
        """Write the configuration.

        Args:
            folder: For configuration, logs and data.
            programs: Where ``prometheus`` and ``alertmanager`` lie.
            targets: ``HOST:PORT`` of each server.
            interval: Between scrapes and between evaluations.
            ports: Of Prometheus and Alertmanager; free ones if left out.
        """
        self._folder = folder
        self._programs = programs
        prometheus, alertmanager = ports or (free_port(), free_port())
        self.prometheus_url = f"http://127.0.0.1:{prometheus}"
        self.alertmanager_url = f"http://127.0.0.1:{alertmanager}"
        self._stack = contextlib.ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        address = self.alertmanager_url.removeprefix("http://")
        document = prometheus_configuration(targets, interval, address, str(ROOT / "docs/runbooks.md"))
        (folder / "prometheus.yml").write_text(yaml.safe_dump(document), encoding="utf-8")

    def __enter__(self) -> "Watch":
        """Start both, and wait until they answer."""
        with contextlib.ExitStack() as stack:
            alertmanager = self._start(
                stack,
                "alertmanager",
                f"--config.file={DEPLOY / 'alertmanager/alertmanager.yml'}",
                f"--storage.path={self._folder / 'alertmanager-data'}",
                f"--web.listen-address={self.alertmanager_url.removeprefix('http://')}",
                # Without peers.
                "--cluster.listen-address=",
            )
            prometheus = self._start(
                stack,
                "prometheus",
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'prometheus-data'}",
                f"--web.listen-address={self.prometheus_url.removeprefix('http://')}",
            )
            self._wait_ready(alertmanager, "alertmanager", self.alertmanager_url)
            self._wait_ready(prometheus, "prometheus", self.prometheus_url)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End both."""
        self._stack.close()

    def _start(self, stack: contextlib.ExitStack, name: str, *flags: str) -> subprocess.Popen[bytes]:
        log = stack.enter_context((self._folder / f"{name}.log").open("wb"))
        command = [str(self._programs[name]), *flags, "--log.level=warn"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=working_folder(self._programs[name]),
        )
        stack.callback(_stop, process)
        return process

    def _wait_ready(self, process: subprocess.Popen[bytes], name: str, url: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/-/ready").status_code == 200:
                    return
            time.sleep(0.1)
        log = (self._folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        raise WatchFailed(f"{name} did not become ready; the end of its log:\n{log[-2000:]}")

    def now(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression is now: ``metric`` and ``value`` of each series."""
        return self._ask("query", query=expression)

    def over(self, expression: str, start: float, end: float, step_s: float) -> list[dict[str, Any]]:
        """Return what an expression was: ``metric`` and ``values`` of each series."""
        return self._ask("query_range", query=expression, start=start, end=end, step=step_s)

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that reached Alertmanager."""
        answer = httpx.get(f"{self.alertmanager_url}/api/v2/alerts").raise_for_status()
        alerts: list[dict[str, Any]] = answer.json()
        return alerts

    def _ask(self, call: str, **arguments: Any) -> list[dict[str, Any]]:
        answer = httpx.post(f"{self.prometheus_url}/api/v1/{call}", data=arguments, timeout=60)
        if answer.status_code != 200:
            raise WatchFailed(f"{arguments['query']}: {answer.text}")
        series: list[dict[str, Any]] = answer.json()["data"]["result"]
        return series


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
