"""Turns what is read rather than counted into metric families: the catalog, and the use of each patch.

``CatalogCollector.freeze`` takes on the event loop's thread what another thread may then put into words;
without it, ``collect`` reads what holds at the time.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from server.metrics.canaries import CanaryMetrics
from server.metrics.fleet import FleetMetrics
from server.metrics.serving import ServingMetrics
from server.metrics.swaps import SwapMetrics
from server.metrics.use import PatchUse
from server.metrics.use_text import FIRST_TOKEN, GENERATION_TOKENS, INTER_TOKEN, PROMPT_TOKENS
from server.versions.activation import NameRecord
from server.versions.view import ServedPatch


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
    def is_in_memory(self) -> bool:
        """Whether a request for it would not have to wait for its file."""

    @property
    def is_previous(self) -> bool:
        """Whether only a rollback would serve it."""


class Sources(Protocol):
    """What is described beside the catalog; ``PatchMetrics`` has it."""

    canary: CanaryMetrics
    swaps: SwapMetrics
    serving: ServingMetrics
    fleet: FleetMetrics

    def uses(self) -> list[tuple[str, PatchUse]]:
        """Return the use of each patch that was used, in all processes."""
        ...

    def num_base(self) -> int:
        """Return how many requests the base model answers now."""
        ...


class CatalogCollector:
    """What a registry asks at scrape time."""

    def __init__(self, metrics: Sources, base_label: str) -> None:
        self._metrics = metrics
        self._base_label = base_label
        self._rows: Callable[[], Iterable[Row]] = tuple
        self._record: Callable[[str], NameRecord] = lambda name: NameRecord()
        self._frozen: tuple[list[Row], list[Metric]] | None = None

    def bind(self, rows: Callable[[], Iterable[Row]], record: Callable[[str], NameRecord]) -> None:
        """Read ``rows``, and the ``record`` of each name, from now on."""
        self._rows, self._record = rows, record

    def freeze(self) -> None:
        """Take what holds now for every ``collect`` until ``thaw``, which leaves out the uses of patches."""
        rows = list(self._rows())
        self._frozen = rows, list(self._small(rows))

    def thaw(self) -> None:
        """Read anew from now on."""
        self._frozen = None

    def collect(self) -> Iterator[Metric]:
        """Describe everything."""
        if self._frozen is not None:
            rows, small = self._frozen
        else:
            rows = list(self._rows())
            small = list(self._small(rows))
        uses = self._uses() if self._frozen is None else ()
        return chain(self._contents(rows), small, uses)

    def _small(self, rows: Iterable[Row]) -> Iterator[Metric]:
        """Describe what is only a few lines, and what no other thread may read."""
        since = GaugeMetricFamily(
            "policy_patch_active_since_timestamp_seconds",
            "Unix time at which the version that a bare name means became active.",
            labels=("patch", "version"),
        )
        canaries = {}
        for row in rows:
            name = row.patch.name
            record = self._record(name)
            if record.canary is not None:
                canaries[name] = record.canary
            if row.is_active and record.active_since_s is not None:
                since.add_metric((name, row.patch.version), record.active_since_s)
        metrics = self._metrics
        yield since
        yield from metrics.canary.collect(canaries.items())
        yield from metrics.swaps.collect()
        yield from metrics.serving.collect()
        yield from metrics.fleet.collect(r.patch.name for r in rows if r.is_active and r.is_in_memory)

    def _contents(self, rows: Iterable[Row]) -> Iterator[Metric]:
        running = GaugeMetricFamily(
            "policy_patch_requests_running",
            "Requests in flight, background responses included, by the patch that answers them.",
            labels=("patch",),
        )
        resident = GaugeMetricFamily(
            "policy_patch_resident_bytes",
            "Bytes of a patch's K/V over all workers, in any memory; while replaced content of a version "
            "drains, old and new together.",
            labels=("patch", "version"),
        )
        active = GaugeMetricFamily(
            "policy_patch_active_info",
            "1 for the version that a patch's bare name means.",
            labels=("patch", "version", "digest"),
        )
        previous = GaugeMetricFamily(
            "policy_patch_previous_bytes",
            "The part of policy_patch_resident_bytes that only a rollback would serve.",
            labels=("patch",),
        )
        previous_nbytes: dict[str, int] = {}
        num_running: dict[str, int] = {self._base_label: self._metrics.num_base()}
        nbytes: dict[tuple[str, str], int] = {}
        for row in rows:
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

    def _uses(self) -> Iterator[Metric]:
        first = HistogramMetricFamily(*FIRST_TOKEN, labels=("patch",))
        inter = HistogramMetricFamily(*INTER_TOKEN, labels=("patch",))
        prompt = CounterMetricFamily(*PROMPT_TOKENS, labels=("patch",))
        generated = CounterMetricFamily(*GENERATION_TOKENS, labels=("patch",))
        for name, use in self._metrics.uses():
            _add(first, inter, name, use)
            prompt.add_metric((name,), use.num_prompt_tokens)
            generated.add_metric((name,), use.num_generated_tokens)
        yield from (first, inter, prompt, generated)


def _add(first: HistogramMetricFamily, inter: HistogramMetricFamily, name: str, use: PatchUse) -> None:
    # An exemplar in it is right; the library types buckets of its own two forms, and not their mixture.
    first.add_metric((name,), use.first_token.buckets(), use.first_token.sum_s)  # type: ignore[arg-type]
    inter.add_metric((name,), use.inter_token.buckets(), use.inter_token.sum_s)  # type: ignore[arg-type]
