"""Every ``policy_patch_*`` metric, in one class on an injected registry.

Label values come from closed sets: ``patch`` is the name of a patch in the catalog, ``none`` for the base
model, ``composed:joined`` or ``unknown``; reasons, outcomes and codes are listed in the code. What a
removed patch counted goes with it. Gauges are read from the catalog when scraped, so they can't drift from
it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from server.errors import REQUEST_CODES
from server.metrics.canaries import CanaryMetrics
from server.metrics.control import ControlMetrics
from server.metrics.latency import PatchLatency
from server.metrics.prefixes import PrefixMetrics
from server.metrics.tiers import TierMetrics
from server.versions.composition import COMPOSED_LABEL, SelectedPatch
from server.versions.view import ServedPatch

#: ``patch`` label of requests that the base model answered.
BASE_LABEL = "none"

#: ``patch`` label of requests for something that the catalog does not hold.
UNKNOWN_LABEL = "unknown"

LOAD_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

#: How a request can end: answered; refused by the policy patch surface; another 4xx; 5xx or an error after
#: the first byte; the client went away.
OUTCOMES = ("ok", "rejected", "client_error", "server_error", "cancelled")


class Row(Protocol):
    """What a scrape needs to know about one content on the workers; the catalog has the class."""

    @property
    def patch(self) -> ServedPatch:
        """The content."""

    @property
    def is_active(self) -> bool:
        """Whether its bare name means it."""

    @property
    def num_in_flight(self) -> int:
        """How many requests use it."""

    @property
    def is_previous(self) -> bool:
        """Whether only a rollback would serve it."""


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
        self._rows: Callable[[], Iterable[Row]] = tuple
        self._latency: dict[str, PatchLatency] = {}
        #: digest -> name of everything resident.
        self._names: dict[str, str] = {}
        self._requests = counter(
            "policy_patch_requests",
            "Requests that could run the model, by how they ended.",
            ("patch", "outcome"),
        )
        self._rejected = counter(
            "policy_patch_rejected_requests",
            "Requests that were refused, by error code.",
            ("code",),
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
        self._define_files(registry)
        self.control = ControlMetrics(registry)
        self.canary = CanaryMetrics(registry)
        self.tiers = TierMetrics(registry)
        self.prefixes = PrefixMetrics(registry)
        for code in REQUEST_CODES:
            self._rejected.labels(code)
        self._is_shared = is_shared
        #: What other processes counted, as ``figures`` gives it; refreshed before a scrape.
        self.others: Sequence[Mapping[str, Any]] = ()
        self.catalog_collector = _CatalogCollector(self)
        if not is_shared:
            registry.register(self.catalog_collector)

    def _define_files(self, registry: CollectorRegistry) -> None:
        self._load = Histogram(
            "policy_patch_load_seconds",
            "From reading a patch file to its being served.",
            buckets=LOAD_BOUNDS_S,
            registry=registry,
        )
        self._load_failures = Counter(
            "policy_patch_load_failures",
            "Refused patch files, failed scans of the folder, and prefixes that could not be dropped.",
            ("reason",),
            registry=registry,
        )
        self._refused_files = Gauge(
            "policy_patch_refused_files",
            "Files in the patch folder that are refused now.",
            multiprocess_mode="max",
            registry=registry,
        )
        self._folder_readable = Gauge(
            "policy_patch_folder_readable",
            "1 where the last scan of the patch folder worked.",
            multiprocess_mode="max",
            registry=registry,
        )

    def bind(self, rows: Callable[[], Iterable[Row]]) -> None:
        """Read gauges from ``rows`` from now on. For the catalog."""
        self._rows = rows

    def rows(self) -> Iterable[Row]:
        """Return what is resident now."""
        return self._rows()

    def latencies(self) -> list[tuple[str, PatchLatency]]:
        """Return the latencies of each patch that was used."""
        if not self.others:
            return list(self._latency.items())
        merged: dict[str, PatchLatency] = {}
        for figures in (self.figures(), *self.others):
            for name, state in figures["latency"].items():
                merged.setdefault(name, PatchLatency()).add(state)
        return list(merged.items())

    def num_base(self) -> int:
        """Return how many requests the base model answers now."""
        return self.num_base_running + sum(int(figures["num_base_running"]) for figures in self.others)

    def figures(self) -> dict[str, Any]:
        """Return what this process alone knows, and no counter holds."""
        latency = {name: latency.state() for name, latency in self._latency.items()}
        return {"num_base_running": self.num_base_running, "latency": latency}

    def patch_added(self, digest: str, name: str) -> None:
        """Allow ``name`` as a label value, and map ``digest`` to it."""
        self._names[digest] = name

    def patch_removed(self, digest: str) -> None:
        """Forget ``digest``; with the last one of a name, drop the name's series."""
        name = self._names.pop(digest, None)
        if name is None or name in self._names.values():
            return
        self._latency.pop(name, None)
        if self._is_shared:
            return
        for outcome in OUTCOMES:
            self._requests.remove(name, outcome)
        for metric in (self._injected, self._shared):
            metric.remove(name)

    def request_finished(self, patch: SelectedPatch | None, outcome: str) -> None:
        """Count a request that the base model or ``patch`` was decided for."""
        self._requests.labels(BASE_LABEL if patch is None else self._label_of(patch), outcome).inc()
        if patch is not None and patch.form is not None:
            self.prefixes.composed(patch.form)

    def request_rejected(self, code: str, patch: SelectedPatch | None) -> None:
        """Count a refusal; ``patch`` where one was decided before."""
        self._requests.labels(UNKNOWN_LABEL if patch is None else self._label_of(patch), "rejected").inc()
        self._rejected.labels(code).inc()

    def latency(self, name: str) -> PatchLatency:
        """Return the histograms that generations under ``name`` observe."""
        latency = self._latency.get(name)
        if latency is None:
            latency = PatchLatency()
            # A name that just went must not come back as a series.
            if name == COMPOSED_LABEL or name in self._names.values():
                self._latency[name] = latency
        return latency

    def observe_prefix_tokens(self, digest: str, *, injected: int, shared: int) -> None:
        """Count prefix tokens: written into the KV cache, and found there."""
        label = self._label(digest)
        self._injected.labels(label).inc(injected)
        self._shared.labels(label).inc(shared)

    def load_succeeded(self, seconds: float) -> None:
        """Observe a load."""
        self._load.observe(seconds)

    def load_failed(self, reason: str) -> None:
        """Count a refused file or a failed scan."""
        self._load_failures.labels(reason).inc()

    def set_refused_files(self, num_files: int) -> None:
        """Set how many files are refused now."""
        self._refused_files.set(num_files)

    def set_folder_readable(self, is_readable: bool) -> None:
        """Set whether the last scan worked."""
        self._folder_readable.set(is_readable)

    def _label_of(self, patch: SelectedPatch) -> str:
        return patch.name if patch.name == COMPOSED_LABEL else self._label(patch.digest)

    def _label(self, digest: str) -> str:
        return self._names.get(digest, UNKNOWN_LABEL)


class _CatalogCollector:
    """Turns the catalog and the latencies into metric families, at scrape time."""

    def __init__(self, metrics: PatchMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        running = GaugeMetricFamily(
            "policy_patch_requests_running",
            "Requests in flight, by the patch that answers them.",
            labels=("patch",),
        )
        resident = GaugeMetricFamily(
            "policy_patch_resident_bytes",
            "Bytes of a patch's K/V over all workers, in whichever memory they are.",
            labels=("patch", "version"),
        )
        active = GaugeMetricFamily(
            "policy_patch_active_info",
            "1 for the version that a patch's bare name means.",
            labels=("patch", "version", "digest"),
        )
        previous = GaugeMetricFamily(
            "policy_patch_previous_bytes",
            "Device bytes of versions that only a rollback would serve, over all workers.",
            labels=("patch",),
        )
        previous_nbytes: dict[str, int] = {}
        num_running: dict[str, int] = {BASE_LABEL: self._metrics.num_base()}
        nbytes: dict[tuple[str, str], int] = {}
        for row in self._metrics.rows():
            patch = row.patch
            num_running[patch.name] = num_running.get(patch.name, 0) + row.num_in_flight
            # Replaced content of one version may still drain beside the new: two digests, one series.
            nbytes[patch.name, patch.version] = nbytes.get((patch.name, patch.version), 0) + patch.nbytes
            previous_nbytes.setdefault(patch.name, 0)
            previous_nbytes[patch.name] += patch.nbytes * row.is_previous
            if row.is_active:
                active.add_metric((patch.name, patch.version, patch.digest), 1)
        for name, number in num_running.items():
            running.add_metric((name,), number)
        for key, number in nbytes.items():
            resident.add_metric(key, number)
        for name, number in previous_nbytes.items():
            previous.add_metric((name,), number)
        yield from (running, resident, active, previous)
        yield from self._histograms()

    def _histograms(self) -> Iterator[Metric]:
        first = HistogramMetricFamily(
            "policy_patch_time_to_first_token_seconds",
            "From a generation's admission to its first token.",
            labels=("patch",),
        )
        inter = HistogramMetricFamily(
            "policy_patch_inter_token_latency_seconds",
            "Between two tokens of a generation.",
            labels=("patch",),
        )
        for name, latency in self._metrics.latencies():
            first.add_metric((name,), latency.first_token.buckets(), latency.first_token.sum_s)
            inter.add_metric((name,), latency.inter_token.buckets(), latency.inter_token.sum_s)
        yield from (first, inter)
