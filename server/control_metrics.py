"""The ``policy_patch_*`` metrics of control: whether the policy file is in force and the audit log whole."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from server.audit import DROP_REASONS

#: What becomes of a policy file that changed: in force, or refused while the old one stays.
RELOAD_OUTCOMES = ("ok", "refused")


class ControlMetrics:
    """Counts what goes wrong with the means of control themselves."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._audit_dropped = Counter(
            "policy_patch_audit_dropped",
            "Events that are missing from the audit log.",
            ("reason",),
            registry=registry,
        )
        self._policy_reloads = Counter(
            "policy_patch_policy_reloads",
            "Changes of the policy file, by what became of them.",
            ("outcome",),
            registry=registry,
        )
        self._policy_current = Gauge(
            "policy_patch_policy_current",
            "1 where the policy file, as it is now, is in force.",
            registry=registry,
        )
        self._policy_current.set(1)
        for reason in DROP_REASONS:
            self._audit_dropped.labels(reason)
        for outcome in RELOAD_OUTCOMES:
            self._policy_reloads.labels(outcome)

    def audit_dropped(self, reason: str, num_events: int) -> None:
        """Count events that the audit log lacks. Any thread."""
        self._audit_dropped.labels(reason).inc(num_events)

    def policy_reloaded(self, *, is_ok: bool) -> None:
        """Count a change of the policy file, and note whether what it says now is in force."""
        self._policy_reloads.labels("ok" if is_ok else "refused").inc()
        self._policy_current.set(is_ok)

    def set_policy_current(self, is_current: bool) -> None:
        """Note whether what the policy file says now is in force."""
        self._policy_current.set(is_current)
