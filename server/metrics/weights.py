"""The ``policy_patch_*`` metrics of weight patches; ``policy_patch_active_info`` tells what is in force."""

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram

from server.metrics.swaps import SWAP_BOUNDS_S


class WeightMetrics:
    """Measures what a change of weights costs requests, and counts answers under other weights."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._held = Histogram(
            "policy_patch_weight_hold_seconds",
            "How long new requests waited for a change of the model's weights, done or given up.",
            buckets=SWAP_BOUNDS_S,
            registry=registry,
        )
        self._mismatched = Counter(
            "policy_patch_mismatched_requests",
            "Requests answered under a patch for other weights than those in force (--mismatched keep).",
            ("patch",),
            registry=registry,
        )

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Measure how long requests are kept out while the context lasts."""
        with self._held.time():
            yield

    def begin(self, label: str) -> None:
        """Have the first request of a patch be an increase: a series that begins at 1 shows none."""
        self._mismatched.labels(label)

    def answered_mismatched(self, label: str) -> None:
        """Count a request that a patch for other weights answered."""
        self._mismatched.labels(label).inc()

    def dropped(self, label: str) -> None:
        """Drop the series of a patch that is gone."""
        with contextlib.suppress(KeyError):
            self._mismatched.remove(label)
