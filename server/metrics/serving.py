"""The ``policy_patch_*`` metrics of the server as a whole: what it is, since when, in how many processes."""

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

#: Why a line is not in the log: the label values of ``policy_patch_log_dropped_total``.
LOG_DROP_REASONS = ("queue_full", "write_failed")


class ServingMetrics:
    """Describes the server; what only one process knows is asked for at scrape time."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._build = Gauge(
            "policy_patch_build_info",
            "1 for what is running: this project's version, vLLM's, and the served name of the model.",
            ("version", "vllm", "model"),
            multiprocess_mode="max",
            registry=registry,
        )
        start = Gauge(
            "policy_patch_start_timestamp_seconds",
            "Unix time at which the server started.",
            multiprocess_mode="min",
            registry=registry,
        )
        start.set(time.time())
        self._log_dropped = Counter(
            "policy_patch_log_dropped",
            "Lines that are missing from the log of --log-format json.",
            ("reason",),
            registry=registry,
        )
        for reason in LOG_DROP_REASONS:
            self._log_dropped.labels(reason)
        self._spans_dropped = Counter(
            "policy_patch_spans_dropped",
            "Spans of requests that could not be sent to --otlp-traces-endpoint.",
            registry=registry,
        )
        self._front_ends: Callable[[], tuple[int, int]] = lambda: (1, 0)
        self._references: Callable[[], Iterable[tuple[str, bool]]] = tuple

    def built(self, *, version: str, vllm: str, model: str) -> None:
        """Note what is running."""
        self._build.labels(version, vllm, model).set(1)

    def bind_front_ends(self, count: Callable[[], tuple[int, int]]) -> None:
        """Ask ``count`` from now on how many processes are in step, and how many are not."""
        self._front_ends = count

    def bind_references(self, references: Callable[[], Iterable[tuple[str, bool]]]) -> None:
        """Ask ``references`` from now on what the policy refers to, and whether it serves."""
        self._references = references

    def log_dropped(self, reason: str, num_lines: int) -> None:
        """Count lines that the log lacks. Any thread."""
        self._log_dropped.labels(reason).inc(num_lines)

    def spans_dropped(self, num_spans: int) -> None:
        """Count spans that did not arrive. Any thread."""
        self._spans_dropped.inc(num_spans)

    def collect(self) -> Iterator[Metric]:
        """Describe the processes, and what the policy needs."""
        front_ends = GaugeMetricFamily(
            "policy_patch_front_ends",
            "Processes that answer HTTP; those that are out of step refuse every request.",
            labels=("state",),
        )
        for state, number in zip(("in_step", "out_of_step"), self._front_ends(), strict=True):
            front_ends.add_metric((state,), number)
        references = GaugeMetricFamily(
            "policy_patch_policy_reference_served",
            "0 for a patch that the policy requires or has as a default and that nothing served fulfils.",
            labels=("reference",),
        )
        for reference, is_served in dict(self._references()).items():
            references.add_metric((reference,), is_served)
        yield from (front_ends, references)
