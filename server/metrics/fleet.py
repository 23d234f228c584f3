"""The ``policy_patch_catalog_*`` metrics: how far a server follows its fleet's catalog."""

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

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
        #: What clients call the model; ``None`` where no catalog is followed.
        self.model: str | None = None
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

    def collect(self, names: Iterable[str]) -> Iterator[Metric]:
        """Describe what is in memory, as routers read it that send requests where an adapter is loaded.

        Args:
            names: Bare names whose content is in host or device memory.
        """
        if self.model is None:
            return
        residents = GaugeMetricFamily(
            "policy_patch_resident_info",
            "Unix time; its labels are the aliases of patches in memory, in the form of vLLM's own for LoRA "
            "adapters. Only where a catalog is followed.",
            labels=("running_lora_adapters", "waiting_lora_adapters", "max_lora"),
        )
        aliases = [f"{self.model}:{name}" for name in sorted(set(names))]
        # Room for another there always is: it takes milliseconds to bring one in.
        residents.add_metric((",".join(aliases), "", str(len(aliases) + 1)), time.time())
        yield residents

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
