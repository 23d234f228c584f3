"""The ``policy_patch_tier_*`` metrics: how much of each memory patches take, and what moves between them."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

#: Label values. ``device``: the workers' slots; ``host``: their host memory; ``disk``: only the file.
TIERS = ("device", "host", "disk")

WAIT_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class TierMetrics:
    """Counts what each tier holds, takes in and gives up, added up over all workers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # Each process adds what it was given; the sum is the server's.
        gauge = partial(Gauge, registry=registry, labelnames=("tier",), multiprocess_mode="sum")
        counter = partial(Counter, registry=registry, labelnames=("tier",))
        self._bytes = gauge("policy_patch_tier_bytes", "Bytes of prefixes in a tier, over all workers.")
        self._limit = gauge("policy_patch_tier_limit_bytes", "Bytes that prefixes may take in a tier.")
        self._patches = gauge(
            "policy_patch_tier_patches", "Patches by the best tier that the front end keeps them in."
        )
        self._loads = counter("policy_patch_tier_loads", "Prefixes that were brought into a tier.")
        self._evictions = counter(
            "policy_patch_tier_evictions", "Prefixes that made room in a tier for others."
        )
        self._wait = Histogram(
            "policy_patch_tier_wait_seconds",
            "From the first request that had to wait for a prefix to its being in host memory.",
            registry=registry,
            buckets=WAIT_BOUNDS_S,
        )
        for tier in ("device", "host"):
            for metric in (self._bytes, self._limit, self._loads, self._evictions):
                metric.labels(tier)
        for tier in ("host", "disk"):
            self._patches.labels(tier)

    def set_limits(self, *, device_bytes: int, host_bytes: int) -> None:
        """Set how much prefixes may take, over all workers."""
        self._limit.labels("device").set(device_bytes)
        self._limit.labels("host").set(host_bytes)

    def set_host(self, num_bytes: int, num_patches: int, num_on_disk: int) -> None:
        """Set what host memory holds, and how many patches only their files hold."""
        self._bytes.labels("host").set(num_bytes)
        self._patches.labels("host").set(num_patches)
        self._patches.labels("disk").set(num_on_disk)

    def loaded(self, tier: str, num_prefixes: int = 1) -> None:
        """Count prefixes that a tier took in."""
        self._loads.labels(tier).inc(num_prefixes)

    def evicted(self, tier: str, num_prefixes: int = 1) -> None:
        """Count prefixes that a tier gave up for others."""
        self._evictions.labels(tier).inc(num_prefixes)

    def device_changed(self, num_bytes: int) -> None:
        """Add what the workers' slots hold more, or less, than before."""
        self._bytes.labels("device").inc(num_bytes)

    def waited(self, seconds: float) -> None:
        """Observe what the first of the requests that needed a prefix waited for it."""
        self._wait.observe(seconds)
