"""The ``policy_patch_*`` metrics of changes: what was swapped, why, how long it took, and who ordered it."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from server.errors import PolicyPatchError
from server.versions.activation import ACTIONS, BY_FOLDER

#: From a change in memory to one that waits for a slow disk or a process that does not answer.
SWAP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

#: Nothing was changed, because of the order or the file; or because of the server.
SWAP_OUTCOMES = ("ok", "refused", "failed")

#: Orders that the metrics remember.
MAX_ORDERS = 10


@dataclass(frozen=True, slots=True)
class Ordered:
    """One order of an operator, or of a canary's rules, that came to its end."""

    patch: str
    action: str
    #: What was active afterwards; empty where that is unknown.
    version: str
    #: Name of an admin key, or ``rules``.
    by: str
    is_done: bool
    #: Unix time in seconds.
    at_s: float


class SwapMetrics:
    """Counts changes of what names serve, and remembers the last orders."""

    def __init__(self, registry: CollectorRegistry, label_of: Callable[[str], str]) -> None:
        """Define the metrics.

        Args:
            registry: Where they go.
            label_of: Returns the ``patch`` label for a name that someone wrote.
        """
        self._label_of = label_of
        self._swaps = Counter(
            "policy_patch_swaps",
            "Changes of what a name serves, by cause and by what became of them; not those of a start.",
            ("patch", "cause", "outcome"),
            registry=registry,
        )
        self._seconds = Histogram(
            "policy_patch_swap_seconds",
            "From an order, or the look at a file, until every worker and process holds what serves now.",
            ("cause",),
            buckets=SWAP_BOUNDS_S,
            registry=registry,
        )
        for cause in ACTIONS:
            self._seconds.labels(cause)
        self._orders: deque[Ordered] = deque(maxlen=MAX_ORDERS)

    @contextlib.contextmanager
    def ordered(self, name: str, cause: str, by: str, version: Callable[[], str]) -> Iterator[None]:
        """Count an order about ``name``, measure how long it takes, and remember it.

        Args:
            name: What it is about, as it was written.
            cause: What is ordered.
            by: Who orders it.
            version: Returns what is active.
        """
        started_s = time.monotonic()
        outcome = "failed"
        try:
            yield
            outcome = "ok"
        except PolicyPatchError as error:
            if error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                outcome = "refused"
            raise
        finally:
            self._count(name, cause, outcome)
            if outcome == "ok":
                self._seconds.labels(cause).observe(time.monotonic() - started_s)
            self._orders.append(Ordered(name, cause, version(), by, outcome == "ok", time.time()))

    def followed_folder(self, name: str, seconds: float) -> None:
        """Count a change that a file brought about."""
        self._count(name, BY_FOLDER, "ok")
        self._seconds.labels(BY_FOLDER).observe(seconds)

    def file_refused(self, name: str | None) -> None:
        """Count a file that does not serve; ``name`` where it says which patch it would be."""
        self._count(name or "", BY_FOLDER, "refused")

    def dropped(self, name: str) -> None:
        """Drop the series of a name that is gone."""
        for cause in ACTIONS:
            for outcome in SWAP_OUTCOMES:
                with contextlib.suppress(KeyError):
                    self._swaps.remove(name, cause, outcome)

    def collect(self) -> Iterator[Metric]:
        """Describe the last orders."""
        orders = GaugeMetricFamily(
            "policy_patch_order_timestamp_seconds",
            "Unix time of each of the last ten orders, of operators and of canary rules.",
            labels=("patch", "action", "version", "by", "outcome"),
        )
        # The same order may have come twice: one series, with the later time.
        latest = {
            (self._label_of(o.patch), o.action, o.version, o.by, "done" if o.is_done else "failed"): o.at_s
            for o in tuple(self._orders)
        }
        for labels, at_s in latest.items():
            orders.add_metric(labels, at_s)
        yield orders

    def _count(self, name: str, cause: str, outcome: str) -> None:
        self._swaps.labels(self._label_of(name), cause, outcome).inc()
