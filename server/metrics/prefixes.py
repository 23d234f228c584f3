"""The ``policy_patch_*`` metrics of prefixes on their way into the KV cache."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.versions.composition import FORMS

INJECTION_BOUNDS_S = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1)


class PrefixMetrics:
    """Counts and measures how prefixes are put together and written."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._compositions = Counter(
            "policy_patch_compositions",
            "Requests that a composition was decided for, by how its parts relate.",
            ("form",),
            registry=registry,
        )
        self._injection = Histogram(
            "policy_patch_injection_seconds",
            "Time that one worker's writing of prefixes took in one engine step.",
            buckets=INJECTION_BOUNDS_S,
            registry=registry,
        )
        self._writer = Gauge(
            "policy_patch_writer_info",
            "1 for what writes prefixes.",
            ("writer",),
            registry=registry,
            multiprocess_mode="max",
        )
        self._writers: set[str] = set()
        self._pinned = Gauge(
            "policy_patch_pinned_blocks",
            "Blocks of the KV cache that prefixes keep from being evicted, over all engines.",
            registry=registry,
            multiprocess_mode="sum",
        )
        self._pinned_limit = Gauge(
            "policy_patch_pinned_blocks_limit",
            "How many blocks --pin-blocks-share lets them keep, over all engines.",
            registry=registry,
            multiprocess_mode="sum",
        )
        for form in FORMS:
            self._compositions.labels(form)

    def composed(self, form: str) -> None:
        """Count a request for which a composition of ``form`` was decided."""
        self._compositions.labels(form).inc()

    def observe_injection(self, seconds: float) -> None:
        """Observe what one worker's write of prefixes took in one step."""
        self._injection.observe(seconds)

    def pins_changed(self, *, blocks: int, limit: int) -> None:
        """Add what is pinned, and may be, more than before."""
        self._pinned.inc(blocks)
        self._pinned_limit.inc(limit)

    def set_writers(self, writers: Iterable[str]) -> None:
        """Set what writes prefixes on the workers."""
        now = set(writers)
        # Not removed: several processes that count together can't drop a series.
        for writer in self._writers | now:
            self._writer.labels(writer).set(int(writer in now))
        self._writers |= now
