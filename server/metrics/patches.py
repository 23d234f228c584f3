"""Every ``policy_patch_*`` metric, in one class on an injected registry.

Label values come from closed sets: ``patch`` is the name of a patch in the catalog, ``none`` for the base
model, ``composed:joined``, ``composed:steered`` or ``unknown``; reasons, outcomes and codes are listed in
the code. What a removed patch counted goes with it. Gauges are read from the catalog when scraped, so they
can't drift from it.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from server.errors import REQUEST_CODES
from server.metrics.callers import CallerMetrics
from server.metrics.canaries import CanaryMetrics
from server.metrics.control import ControlMetrics
from server.metrics.files import FileMetrics
from server.metrics.fleet import FleetMetrics
from server.metrics.prefixes import PrefixMetrics
from server.metrics.scrape import CatalogCollector, Row
from server.metrics.serving import ServingMetrics
from server.metrics.steering import SteeringMetrics
from server.metrics.swaps import SwapMetrics
from server.metrics.tiers import TierMetrics
from server.metrics.use import PatchUse
from server.metrics.weights import WeightMetrics
from server.versions.activation import NameRecord
from server.versions.composition import COMPOSED_LABELS, SelectedPatch

#: ``patch`` label of requests that the base model answered, or that named nothing.
BASE_LABEL = "none"

#: ``patch`` label of requests for something that the catalog does not hold.
UNKNOWN_LABEL = "unknown"

#: How a request can end: answered; refused by the policy patch surface; another 4xx; 5xx or an error after
#: the first byte; the client went away.
OUTCOMES = ("ok", "rejected", "client_error", "server_error", "cancelled")


class PatchMetrics:
    """Counts and measures everything that happens to patches."""

    def __init__(self, registry: CollectorRegistry, *, is_shared: bool = False) -> None:
        """Define every metric.

        Args:
            registry: Where they go.
            is_shared: Several processes count together, by Prometheus' multiprocess mode: it has no way to
                drop a series, and what is read from the catalog is collected apart (``catalog_collector``).
        """
        counter = partial(Counter, registry=registry)
        self.num_base_running = 0
        self._uses: dict[str, PatchUse] = {}
        #: digest -> name of everything resident, and name -> how many digests have it.
        self._names: dict[str, str] = {}
        self._num_digests: dict[str, int] = {}
        self._requests = counter(
            "policy_patch_requests",
            "Requests that could run the model, by how they ended.",
            ("patch", "outcome"),
        )
        #: (patch, outcome) -> its series.
        self._series: dict[tuple[str, str], Counter] = {}
        self._rejected = counter(
            "policy_patch_rejected_requests",
            "Requests that were refused, by error code.",
            ("code",),
        )
        self._denied = counter(
            "policy_patch_denied_requests",
            "Requests that were refused, by error code and by the patch that they named.",
            ("patch", "reason"),
        )
        self._injected = counter(
            "policy_patch_injected_tokens",
            "Prefix tokens written into the KV cache.",
            ("patch",),
        )
        self._shared = counter(
            "policy_patch_shared_tokens",
            "Prefix tokens that the prefix cache already held.",
            ("patch",),
        )
        self.files = FileMetrics(registry)
        self.control = ControlMetrics(registry)
        self.canary = CanaryMetrics(registry)
        self.callers = CallerMetrics(registry)
        self.swaps = SwapMetrics(registry, self._label_of_name)
        self.tiers = TierMetrics(registry)
        self.prefixes = PrefixMetrics(registry)
        self.steering = SteeringMetrics(registry, self._label)
        self.serving = ServingMetrics(registry)
        self.weights, self.fleet = WeightMetrics(registry), FleetMetrics(registry)
        for code in REQUEST_CODES:
            self._rejected.labels(code)
        self._begin_requests(BASE_LABEL)
        self._is_shared = is_shared
        #: What other processes counted, as ``figures`` gives it; refreshed before a scrape.
        self.others: Sequence[Mapping[str, Any]] = ()
        self.catalog_collector = CatalogCollector(self, BASE_LABEL)
        if not is_shared:
            registry.register(self.catalog_collector)

    def bind(
        self,
        rows: Callable[[], Iterable[Row]],
        record: Callable[[str], NameRecord] = lambda name: NameRecord(),
    ) -> None:
        """Read gauges from ``rows``, and from the ``record`` of each name, from now on. For the catalog."""
        self.catalog_collector.bind(rows, record)

    def uses(self) -> list[tuple[str, PatchUse]]:
        """Return the use of each patch that was used, in all processes."""
        if not self.others:
            return list(self._uses.items())
        merged: dict[str, PatchUse] = {}
        for figures in (self.figures(), *self.others):
            for name, state in figures["uses"].items():
                merged.setdefault(name, PatchUse()).add(state)
        return list(merged.items())

    def num_base(self) -> int:
        """Return how many requests the base model answers now."""
        return self.num_base_running + sum(int(figures["num_base_running"]) for figures in self.others)

    def figures(self) -> dict[str, Any]:
        """Return what this process alone knows, and no counter holds."""
        uses = {name: use.state() for name, use in list(self._uses.items())}
        return {"num_base_running": self.num_base_running, "uses": uses}

    def patch_added(self, digest: str, name: str) -> None:
        """Allow ``name`` as a label value, and map ``digest`` to it."""
        if digest not in self._names:
            self._num_digests[name] = self._num_digests.get(name, 0) + 1
        self._names[digest] = name
        self._begin_requests(name)
        self.weights.begin(name)

    def _begin_requests(self, label: str) -> None:
        """Have the first request that ends in a way be an increase: a series that begins at 1 shows none."""
        for outcome in OUTCOMES:
            self._requests.labels(label, outcome)

    def patch_removed(self, digest: str) -> None:
        """Forget ``digest``; with the last one of a name, drop the name's series."""
        name = self._names.pop(digest, None)
        if name is None:
            return
        self._num_digests[name] -= 1
        if self._num_digests[name]:
            return
        del self._num_digests[name]
        self._uses.pop(name, None)
        if self._is_shared:
            return
        for outcome in OUTCOMES:
            self._series.pop((name, outcome), None)
            _remove(self._requests, name, outcome)
        for code in REQUEST_CODES:
            _remove(self._denied, name, code)
        for metric in (self._injected, self._shared):
            _remove(metric, name)
        self.swaps.dropped(name)
        self.steering.dropped(name)
        self.weights.dropped(name)

    def request_finished(
        self,
        patch: SelectedPatch | None,
        outcome: str,
        *,
        caller: str | None = None,
        is_mismatched: bool = False,
    ) -> None:
        """Count a request that the base model or ``patch`` was decided for."""
        self._finished(BASE_LABEL if patch is None else self._label_of(patch), outcome).inc()
        self.callers.finished(caller, outcome)
        if patch is not None and patch.form is not None:
            self.prefixes.composed(patch.form)
        if patch is not None and is_mismatched:
            self.weights.answered_mismatched(self._label_of(patch))

    def request_rejected(
        self,
        code: str,
        patch: SelectedPatch | None,
        *,
        asked: str | None = None,
        caller: str | None = None,
    ) -> None:
        """Count a refusal.

        Args:
            code: Of the error.
            patch: What was decided before, where something was.
            asked: The name that the request asked for first; ``None`` where it asked for none.
            caller: The label of the policy's rule for its caller.
        """
        label = UNKNOWN_LABEL if patch is None else self._label_of(patch)
        self._requests.labels(label, "rejected").inc()
        self._rejected.labels(code).inc()
        if patch is None:
            label = BASE_LABEL if asked is None else self._label_of_name(asked)
        self._denied.labels(label, code).inc()
        self.callers.finished(caller, "rejected")

    def use(self, name: str) -> PatchUse:
        """Return what generations under ``name`` add to; ``BASE_LABEL`` for those of the base model."""
        use = self._uses.get(name)
        if use is None:
            use = PatchUse()
            # A name that just went must not come back as a series.
            if name == BASE_LABEL or name in COMPOSED_LABELS or name in self._num_digests:
                self._uses[name] = use
        return use

    def observe_prefix_tokens(self, digest: str, *, injected: int, shared: int) -> None:
        """Count prefix tokens: written into the KV cache, and found there."""
        label = self._label(digest)
        self._injected.labels(label).inc(injected)
        self._shared.labels(label).inc(shared)

    def _finished(self, label: str, outcome: str) -> Counter:
        """Return the series; looking one up by its labels takes longer than all that a request counts."""
        series = self._series.get((label, outcome))
        if series is None:
            series = self._series[label, outcome] = self._requests.labels(label, outcome)
        return series

    def _label_of(self, patch: SelectedPatch) -> str:
        return patch.name if patch.name in COMPOSED_LABELS else self._label(patch.digest)

    def _label(self, digest: str) -> str:
        return self._names.get(digest, UNKNOWN_LABEL)

    def _label_of_name(self, name: str) -> str:
        return name if name in self._num_digests else UNKNOWN_LABEL


def _remove(metric: Counter, *labels: str) -> None:
    with contextlib.suppress(KeyError):
        metric.remove(*labels)
