"""The ``policy_patch_*`` metrics of vectors: what they act on, and how often their conditions are met."""

import contextlib
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram

#: Words for whether a condition was met, in metrics, headers and the audit log.
OUTCOMES = {True: "met", False: "not_met"}

#: Of probes that are logistic, these are natural units of odds.
MARGIN_BOUNDS = (-16, -8, -4, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 4, 8, 16)


class SteeringMetrics:
    """Counts what vectors do."""

    def __init__(self, registry: CollectorRegistry, label_of: Callable[[str], str]) -> None:
        """Define the metrics.

        Args:
            registry: Where they go.
            label_of: The patch that a digest is counted under.
        """
        self._label_of = label_of
        self._steered = Counter(
            "policy_patch_steered_tokens",
            "Tokens of prompts and answers that a steering patch acted on, as often as they were computed.",
            ("patch",),
            registry=registry,
        )
        self._conditions = Counter(
            "policy_patch_condition",
            "Requests under a steering patch with a condition, by whether it was met; in shadow mode too.",
            ("patch", "outcome"),
            registry=registry,
        )
        self._margin = Histogram(
            "policy_patch_condition_margin",
            "By how much the score that decides a condition is above its threshold.",
            ("patch",),
            buckets=MARGIN_BOUNDS,
            registry=registry,
        )

    def steered(self, digest: str, num_tokens: int) -> None:
        """Count tokens that the vector ``digest`` acted on."""
        self._steered.labels(self._label_of(digest)).inc(num_tokens)

    def decided(self, digest: str, *, is_met: bool, margin: float) -> None:
        """Count a request for which the condition of the vector ``digest`` was decided."""
        label = self._label_of(digest)
        self._conditions.labels(label, OUTCOMES[is_met]).inc()
        self._margin.labels(label).observe(margin)

    def dropped(self, name: str) -> None:
        """Drop the series of a name that is gone."""
        for metric, labels in (
            (self._steered, (name,)),
            (self._margin, (name,)),
            *((self._conditions, (name, outcome)) for outcome in OUTCOMES.values()),
        ):
            with contextlib.suppress(KeyError):
                metric.remove(*labels)
