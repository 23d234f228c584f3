"""The ``policy_patch_*`` metrics of callers: which rule of the policy stands for them, and how they fared.

The label is the rule's place in the policy file, so the file bounds it; what callers send becomes none.
"""

from prometheus_client import CollectorRegistry, Counter

#: ``caller`` label of requests that no rule fits, or whose caller was never asked for.
UNKNOWN_CALLER = "unknown"

#: ``caller`` label of rules beyond ``MAX_CALLERS``.
MORE_CALLERS = "more"

#: Rules that get a label of their own: a policy file may list thousands of tenants.
MAX_CALLERS = 200


#: Those that are found at once, without their labels.
_MAX_SERIES = 1000


class CallerMetrics:
    """Counts requests by the class of their caller."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "policy_patch_caller_requests",
            "Requests that could run the model, by the policy's rule for their caller and by how they ended.",
            ("caller", "outcome"),
            registry=registry,
        )
        self._unpatched = Counter(
            "policy_patch_unpatched_answers",
            "Answers of the base model although a patch that their caller may choose was served.",
            ("caller",),
            registry=registry,
        )
        self._labels: dict[str, str] = {}
        #: (caller, outcome) -> its series.
        self._series: dict[tuple[str | None, str], Counter] = {}

    def finished(self, caller: str | None, outcome: str) -> None:
        """Count a request; ``caller`` is the label of the rule that stands for who sent it."""
        series = self._series.get((caller, outcome))
        if series is None:
            series = self._requests.labels(self._label(caller), outcome)
            if len(self._series) < _MAX_SERIES:
                self._series[caller, outcome] = series
        series.inc()

    def answered_unpatched(self, caller: str | None) -> None:
        """Count an answer of the base model to a caller that could have had a patch."""
        self._unpatched.labels(self._label(caller)).inc()

    def _label(self, caller: str | None) -> str:
        if caller is None:
            return UNKNOWN_CALLER
        label = self._labels.get(caller)
        if label is None:
            label = caller if len(self._labels) < MAX_CALLERS else MORE_CALLERS
            if label == caller:
                self._labels[caller] = label
        return label
