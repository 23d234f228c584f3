"""The ``policy_patch_*`` metrics of control: whether the audit log is whole."""

from prometheus_client import CollectorRegistry, Counter

from server.audit import DROP_REASONS


class ControlMetrics:
    """Counts what goes wrong with the means of control themselves."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._audit_dropped = Counter(
            "policy_patch_audit_dropped",
            "Events that are missing from the audit log.",
            ("reason",),
            registry=registry,
        )
        for reason in DROP_REASONS:
            self._audit_dropped.labels(reason)

    def audit_dropped(self, reason: str, num_events: int) -> None:
        """Count events that the audit log lacks. Any thread."""
        self._audit_dropped.labels(reason).inc(num_events)
