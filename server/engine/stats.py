"""Counts of injected and shared prefix tokens, on their way from the engine to the front end's metrics.

vLLM carries connector statistics with every step's output; ``InjectionLogger`` picks them up.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
from vllm.v1.metrics.loggers import StatLoggerBase

from server.engine.device_slots import SlotCounts

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from server.metrics.patches import PatchMetrics


def _empty() -> dict[str, Any]:
    return {
        "injected": {},
        "shared": {},
        "seconds": [],
        "slots": {},
        "pins": {},
        "steered": {},
        "conditions": [],
    }


class InjectionStats(KVConnectorStats):
    """Prefix tokens by digest, the seconds of each write, and what happened to device slots.

    ``data`` holds ``injected`` and ``shared`` (digest -> tokens), ``seconds`` (one value per step and
    worker that wrote something), ``slots`` (``loads``, ``evictions``, and ``bytes`` more than before) and
    ``pins`` (``blocks`` that are pinned, and the ``limit`` for them, more than before). ``steered`` are the
    tokens that a vector acted on, by its digest; ``conditions`` are digest, whether it was met, and by how
    much, of each request that was decided.
    """

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        super().__init__(data=data if data else _empty())

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.data = _empty()

    def is_empty(self) -> bool:
        """Return whether there is nothing to report."""
        return not any(self.data.values())

    def record(self, digest: str, num_injected: int, num_shared: int) -> None:
        """Count one admission of a patched request."""
        for key, num_tokens in (("injected", num_injected), ("shared", num_shared)):
            if num_tokens:
                self.data[key][digest] = self.data[key].get(digest, 0) + num_tokens

    def record_seconds(self, seconds: float) -> None:
        """Count one step's write on one worker."""
        self.data["seconds"].append(seconds)

    def record_steered(self, counts: Mapping[str, int]) -> None:
        """Count tokens that vectors acted on, by their digests."""
        self._add("steered", counts)

    def record_condition(self, digest: str, *, is_met: bool, margin: float) -> None:
        """Count one request for which the condition of a vector was decided."""
        self.data["conditions"].append([digest, is_met, margin])

    def record_slots(self, counts: SlotCounts) -> None:
        """Count what happened to one worker's device slots."""
        changes = {"loads": counts.num_loads, "evictions": counts.num_evictions, "bytes": counts.num_bytes}
        self._add("slots", {key: number for key, number in changes.items() if number})

    def record_pins(self, **changes: int) -> None:
        """Record how many blocks more are pinned, or may be, than before."""
        self._add("pins", changes)

    def _add(self, what: str, changes: Mapping[str, int]) -> None:
        for key, number in changes.items():
            self.data[what][key] = self.data[what].get(key, 0) + number

    def aggregate(self, other: KVConnectorStats) -> "InjectionStats":
        """Add the counts of ``other`` to these."""
        for key in ("injected", "shared"):
            for digest, num_tokens in other.data[key].items():
                self.data[key][digest] = self.data[key].get(digest, 0) + num_tokens
        self.data["seconds"].extend(other.data["seconds"])
        self._add("slots", other.data["slots"])
        self._add("pins", other.data["pins"])
        self._add("steered", other.data["steered"])
        self.data["conditions"].extend(other.data["conditions"])
        return self

    def reduce(self) -> dict[str, int | float]:
        """Return the summary for vLLM's periodic log line."""
        return {
            "prefix tokens injected": sum(self.data["injected"].values()),
            "prefix tokens shared": sum(self.data["shared"].values()),
            "tokens steered": sum(self.data["steered"].values()),
            "injection seconds": round(sum(self.data["seconds"]), 6),
        }


class InjectionLogger(StatLoggerBase):
    """Hands the engine's injection counts to the front end's metrics."""

    def __init__(self, metrics: "PatchMetrics") -> None:
        self._metrics = metrics

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Called by vLLM with each batch of engine outputs."""
        data = scheduler_stats.kv_connector_stats if scheduler_stats is not None else None
        if not data:
            return
        for digest in data["injected"].keys() | data["shared"].keys():
            self._metrics.observe_prefix_tokens(
                digest, injected=data["injected"].get(digest, 0), shared=data["shared"].get(digest, 0)
            )
        for seconds in data["seconds"]:
            self._metrics.prefixes.observe_injection(seconds)
        slots = data["slots"]
        self._metrics.tiers.loaded("device", slots.get("loads", 0))
        self._metrics.tiers.evicted("device", slots.get("evictions", 0))
        self._metrics.tiers.device_changed(slots.get("bytes", 0))
        pins = data["pins"]
        self._metrics.prefixes.pins_changed(blocks=pins.get("blocks", 0), limit=pins.get("limit", 0))

        for digest, num_tokens in data["steered"].items():
            self._metrics.steering.steered(digest, num_tokens)
        for digest, is_met, margin in data["conditions"]:
            self._metrics.steering.decided(digest, is_met=is_met, margin=margin)

    def log_engine_initialized(self) -> None:
        """Nothing to say at start."""


def injection_logger_factory(metrics: "PatchMetrics") -> Callable[["VllmConfig", int], InjectionLogger]:
    """Return the factory that vLLM's ``stat_loggers`` wants."""
    return lambda vllm_config, engine_index: InjectionLogger(metrics)
