"""The ``policy_patch_*`` metrics that distinguish a canary from the version that it is to replace."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from server.metrics.latency import FIRST_TOKEN_BOUNDS_S
from server.metrics.steering import OUTCOMES
from server.versions.activation import Canary
from server.versions.canary import Progress


class CanaryMetrics:
    """Counts by arm, and says how far a canary is; only requests of names that have one are counted."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "policy_patch_arm_requests",
            "Requests of names that have a canary, by arm and by how they ended.",
            ("patch", "arm", "outcome"),
            registry=registry,
        )
        self._first_token = Histogram(
            "policy_patch_arm_first_token_seconds",
            "Time to the first token of names that have a canary, by arm.",
            ("patch", "arm"),
            buckets=FIRST_TOKEN_BOUNDS_S,
            registry=registry,
        )
        self._conditions = Counter(
            "policy_patch_arm_condition",
            "Requests of names that have a canary and a condition, by arm and by whether it was met.",
            ("patch", "arm", "outcome"),
            registry=registry,
        )
        self._progress: Callable[[str, Canary], Progress] = lambda name, canary: Progress()

    def bind(self, progress: Callable[[str, Canary], Progress]) -> None:
        """Ask ``progress`` from now on how a canary of a name goes."""
        self._progress = progress

    def finished(
        self, name: str, arm: str, outcome: str, first_token_s: float | None, is_met: bool | None = None
    ) -> None:
        """Count one request."""
        self._requests.labels(name, arm, outcome).inc()
        if is_met is not None:
            self._conditions.labels(name, arm, OUTCOMES[is_met]).inc()
        if first_token_s is not None:
            self._first_token.labels(name, arm).observe(first_token_s)

    def _begin(self, name: str) -> None:
        """Show counters before their first request: one that is born with it hides it from ``increase()``."""
        for arm in ("canary", "stable"):
            for outcome in ("ok", "server_error"):
                self._requests.labels(name, arm, outcome)
            for outcome in OUTCOMES.values():
                self._conditions.labels(name, arm, outcome)
            self._first_token.labels(name, arm)

    def collect(self, canaries: Iterable[tuple[str, Canary]]) -> Iterator[Metric]:
        """Describe the canaries that run."""
        wanted = GaugeMetricFamily(
            "policy_patch_canary_wanted_ratio",
            "Share of the requests that a running canary is to get.",
            labels=("patch", "version"),
        )
        given = GaugeMetricFamily(
            "policy_patch_canary_given_ratio",
            "Share of the requests that a running canary got since it began; 0 before the first.",
            labels=("patch", "version"),
        )
        limits = GaugeMetricFamily(
            "policy_patch_canary_rule_limit",
            "What a rule of a running canary allows, in the unit of the rule.",
            labels=("patch", "rule"),
        )
        values = GaugeMetricFamily(
            "policy_patch_canary_rule_value",
            "What a rule of a running canary looks at now, in its unit; absent where there is nothing yet.",
            labels=("patch", "rule"),
        )
        for name, canary in canaries:
            self._begin(name)
            progress = self._progress(name, canary)
            wanted.add_metric((name, canary.target.version), canary.share)
            given.add_metric((name, canary.target.version), progress.given_ratio)
            for rule, limit in canary.rules.limits():
                limits.add_metric((name, rule), limit)
                if (value := progress.value_of(rule)) is not None:
                    values.add_metric((name, rule), value)
        yield from (wanted, given, limits, values)
