"""Worker side of the connector: writes prefixes into requests' blocks.

Runs in every worker process, on the model runner's thread. Writes are launched on the stream of the forward
pass that reads them, so the stream orders them; nothing waits.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from vllm.distributed.parallel_state import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.utils import extract_layer_index

from prefix_kernels import PrefixWrite, Rotary, rank_heads, slot_mapping_of_span
from server.engine.cache_writer import CachedLayer, CacheWriter
from server.engine.injection_spans import tell_injections
from server.engine.plan import PrefixLoad, StepPlan
from server.engine.prefix_store import PrefixStore, RankLayout
from server.engine.relocation import KeysNotMovable, rotary_of_model
from server.engine.stats import InjectionStats
from server.engine.steering_report import SteeringReport
from server.engine.stores import Stores
from server.engine.support import layer_problems

if TYPE_CHECKING:
    from torch import nn
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from server.engine.steering_rows import SteeringRank

logger = logging.getLogger(__name__)

#: Key of the connector's extra configuration: bytes of device memory that prefixes may take on each device.
DEVICE_BYTES_KEY = "device_bytes"

#: Where the configuration does not say it, as in tests that start an engine without the launcher.
DEFAULT_DEVICE_BYTES = 1 << 30


class WorkerSide:
    """Writes the prefixes of this rank, once per step; ``stores`` are filled over vLLM's worker RPC."""

    def __init__(self, vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> None:
        self._static_layers = vllm_config.compilation_config.static_forward_context
        self._model_config = vllm_config.model_config
        self._num_kv_heads = vllm_config.model_config.get_total_num_kv_heads()
        self._groups = kv_cache_config.kv_cache_groups
        self._layers: list[CachedLayer] = []
        self._writer: CacheWriter | None = None
        self._layer_indices: list[int] = []
        self._device = torch.device("cpu")
        self._dtype = vllm_config.model_config.dtype
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None, "the launcher configures the connector"
        self._max_device_bytes = int(transfer.get_from_extra_config(DEVICE_BYTES_KEY, DEFAULT_DEVICE_BYTES))
        #: What this rank holds of patches, of every kind.
        self.stores = Stores()
        self._store: PrefixStore | None = None
        # None until keys may be moved: prefixes of several parts fail before that.
        self._rotary: Rotary | None = None
        self._failed_block_ids: set[int] = set()
        self._steering: SteeringRank | None = None
        self._stats = InjectionStats()

    def bind_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Find this rank's attention layers, in the model's order, once the caches exist."""
        found: list[tuple[int, int, Attention]] = []
        for group_idx, group in enumerate(self._groups):
            for name in group.layer_names:
                layer = self._static_layers.get(name)
                if isinstance(layer, Attention) and name in kv_caches:
                    found.append((extract_layer_index(name), group_idx, layer))
        found.sort(key=lambda item: item[0])
        self._layer_indices = [index for index, _, _ in found]
        self._layers = [CachedLayer(row, group, layer) for row, (_, group, layer) in enumerate(found)]
        self._device = next(iter(kv_caches.values())).device
        self._writer = CacheWriter(self._layers, self._dtype)
        # Caches may be bound anew; what is held of prefixes does not depend on them.
        if self._store is None:
            self._store = self._make_store()
            self.stores.add("prefix", self._store)

    def _make_store(self) -> PrefixStore:
        heads = rank_heads(
            self._num_kv_heads, get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        )
        head_size = self._layers[0].layer.head_size
        layout = RankLayout(self._layer_indices, heads, self._num_kv_heads, head_size, self._dtype)
        return PrefixStore(layout, self._device, self._max_device_bytes)

    def bind_steering(self, steering: "SteeringRank") -> None:
        """Take the rank's other half, which the worker made before there was a connector."""
        self._steering = steering
        self.stores.add("steering", steering.store)

    @property
    def store(self) -> PrefixStore:
        """The prefixes of this rank, once the caches are bound."""
        assert self._store is not None, "caches are bound before anything is served"
        return self._store

    def layout(self) -> dict[str, object]:
        """Return what the front end has to know about this rank.

        ``layer_indices``; ``problems``, layers that cannot hold a prefix; ``writer``, what writes prefixes.
        """
        return {
            "layer_indices": self._layer_indices,
            "problems": layer_problems(self._static_layers),
            "writer": self._writer.choice.implementation if self._writer is not None else None,
        }

    def enable_composition(self, network: "nn.Module") -> str | None:
        """Allow prefixes to lie behind others from now on.

        Args:
            network: the loaded model.

        Returns:
            Why that cannot be, or None.
        """
        config = self._model_config
        try:
            self._rotary = rotary_of_model(
                config.architecture,
                getattr(config.hf_text_config, "rope_parameters", None),
                self._layers[0].layer.head_size,
                network,
            )
        except KeysNotMovable as error:
            return str(error)
        return None

    def run(self, plan: StepPlan) -> None:
        """Carry out one step's plan. A prefix that is not resident fails the requests that need it."""
        self._failed_block_ids |= plan.unbacked_block_ids
        ready: list[PrefixLoad] = []
        for load in plan.loads:
            problem = self._problem(load)
            if problem is None:
                ready.append(load)
            else:
                logger.error("prefix %s of request %s %s: failing it", load.digest, load.request_id, problem)
                self._failed_block_ids |= load.block_ids
        if not ready:
            return
        started, start_ns = time.perf_counter(), time.time_ns()
        # Where slots are short, the parts of a composition may come one after the other.
        for tensors in self.store.together(dict.fromkeys(p.digest for load in ready for p in load.parts)):
            self._write(ready, tensors)
        self._stats.record_seconds(time.perf_counter() - started)
        tell_injections(ready, start_ns, time.time_ns())

    def _problem(self, load: PrefixLoad) -> str | None:
        if any(part.digest not in self.store for part in load.parts):
            return "is not resident"
        if len(load.parts) > 1 and self._rotary is None:
            return "is put together from several, and keys may not be moved"
        return None

    def _write(self, loads: list[PrefixLoad], tensors: Mapping[str, torch.Tensor]) -> None:
        assert self._writer is not None, "caches are bound before the first step"
        writes = [write for load in loads for write in self._writes_of(load, tensors)]
        self._writer.write(writes, self._rotary)

    def _writes_of(self, load: PrefixLoad, tensors: Mapping[str, torch.Tensor]) -> Iterator[PrefixWrite]:
        """Return the writes of those parts that are in ``tensors``."""
        # A pipeline stage need not have layers of every group.
        for group in sorted({cached.group for cached in self._layers}):
            span, block_size = load.spans[group], self._groups[group].kv_cache_spec.block_size
            slots = slot_mapping_of_span(span.block_ids, span.first, load.num_tokens, block_size)
            start = 0
            for part in load.parts:
                first, stop = max(span.first, start), start + part.num_tokens
                if first < stop and part.digest in tensors:
                    chosen = slots[first - span.first : stop - span.first]
                    yield PrefixWrite(tensors[part.digest], first - start, chosen, group, shift=start)
                start = stop

    def clear(self, slots: Mapping[int, torch.Tensor]) -> None:
        """Write zeros over the K/V in these slots, by KV-cache group."""
        assert self._writer is not None, "caches are bound before the first step"
        self._writer.clear(slots)

    def take_failed_block_ids(self) -> set[int]:
        """Return the blocks whose load failed since the last call."""
        taken, self._failed_block_ids = self._failed_block_ids, set()
        return taken

    def take_report(self) -> SteeringReport | None:
        """Return what the scheduler side has to know of steered requests since the last call."""
        return None if self._steering is None else self._steering.take_report()

    def take_stats(self) -> InjectionStats:
        """Return write times, steered tokens and what happened to the device slots since the last call."""
        taken, self._stats = self._stats, InjectionStats()
        if self._steering is not None:
            taken.record_steered(self._steering.take_counts())
        if self._store is not None:
            taken.record_slots(self._store.take_counts())
        return taken
