"""The ``policy_patch_catalog_*`` metrics: how far a server follows its fleet's catalog."""

from prometheus_client import CollectorRegistry, Counter, Gauge

#: Why a catalog could not be read, or not be followed.
SYNC_REASONS = (
    "unreachable",
    "http_error",
    "slow",
    "too_long",
    "altered",
    "unsigned",
    "rolled_back",
    "expired",
    "malformed",
    "invalid",
    "clock",
    "file_refused",
    "policy_refused",
    "not_in_step",
    "state",
)


class FleetMetrics:
    """Gauges are of the process that leads; without a catalog they stay away."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._failures = Counter(
            "policy_patch_catalog_sync_failures",
            "Looks at the fleet's catalog that brought nothing in, by reason.",
            ("reason",),
            registry=registry,
        )
        for reason in SYNC_REASONS:
            self._failures.labels(reason)

        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(name, meaning, multiprocess_mode="max", registry=registry)

        self._revision = gauge(
            "policy_patch_catalog_revision", "Revision of the fleet's catalog that is in force; 0 for none."
        )
        self._heard = gauge(
            "policy_patch_catalog_heard_revision", "Newest revision that was verified; 0 for none."
        )
        self._lease_ends = gauge(
            "policy_patch_catalog_lease_end_timestamp_seconds",
            "Unix time at which the lease of the catalog ends; 0 where none is followed.",
        )
        self._in_step = gauge(
            "policy_patch_catalog_in_step",
            "1 where the newest revision is in force, or waits for its instant; 1 without a catalog.",
        )
        self._in_step.set(1)

    def failed(self, reason: str) -> None:
        """Count a look that brought nothing in."""
        self._failures.labels(reason).inc()

    def stands_at(self, revision: int, heard: int, lease_ends_s: float, *, is_in_step: bool) -> None:
        """Set where the server stands.

        Args:
            revision: In force.
            heard: The newest that was verified.
            lease_ends_s: Unix time in seconds.
            is_in_step: Whether nothing is overdue.
        """
        self._revision.set(revision)
        self._heard.set(heard)
        self._lease_ends.set(lease_ends_s)
        self._in_step.set(is_in_step)
