"""The ``policy_patch_*`` metrics of control: whether policy, audit log, state and trust are in order."""

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
            multiprocess_mode="min",
            registry=registry,
        )
        self._policy_current.set(1)
        for reason in DROP_REASONS:
            self._audit_dropped.labels(reason)
        for outcome in RELOAD_OUTCOMES:
            self._policy_reloads.labels(outcome)

        self._state_saved = Gauge(
            "policy_patch_state_saved",
            "0 where the last change of the catalog could not be written to the state folder.",
            multiprocess_mode="min",
            registry=registry,
        )
        self._state_saved.set(1)
        self._trust_readable = Gauge(
            "policy_patch_trust_readable",
            "1 where trusted keys and revocations could be read at the last look, and signed bounds saved.",
            multiprocess_mode="min",
            registry=registry,
        )
        self._trust_readable.set(1)

    def set_trust_readable(self, is_readable: bool) -> None:
        """Set whether keys and revocations are up to date, and signed bounds on disk."""
        self._trust_readable.set(is_readable)

    def state_saved(self, is_saved: bool) -> None:
        """Set whether the last write to the state folder worked."""
        self._state_saved.set(is_saved)

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
