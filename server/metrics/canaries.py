"""The ``policy_patch_*`` metrics that distinguish a canary from the version that it is to replace."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from server.metrics.latency import FIRST_TOKEN_BOUNDS_S


class CanaryMetrics:
    """Counts by arm; only requests of names that have a canary are counted."""

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

    def finished(self, name: str, arm: str, outcome: str, first_token_s: float | None) -> None:
        """Count one request."""
        self._requests.labels(name, arm, outcome).inc()
        if first_token_s is not None:
            self._first_token.labels(name, arm).observe(first_token_s)
