"""Worker side of the connector: keeps prefixes on the device and writes them into requests' blocks.

Runs in every worker process, on the model runner's thread. Writes are launched on the stream of the forward
pass that reads them, so the stream orders them; nothing waits.
"""

import time
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load as load_safetensors
from vllm.distributed.parallel_state import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.utils import extract_layer_index

from prefix_kernels import PrefixWrite, rank_heads, shard_prefix_kv, slot_mapping_of_span
from server.engine.cache_writer import CachedLayer, CacheWriter
from server.engine.plan import PrefixLoad, StepPlan
from server.engine.stats import InjectionStats
from server.engine.support import layer_problems

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = init_logger(__name__)


class WorkerSide:
    """Holds the resident prefixes of this rank and writes them.

    ``load`` and ``unload`` come over vLLM's worker RPC, between steps; ``run`` once per step.
    """

    def __init__(self, vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> None:
        self._static_layers = vllm_config.compilation_config.static_forward_context
        self._num_kv_heads = vllm_config.model_config.get_total_num_kv_heads()
        self._groups = kv_cache_config.kv_cache_groups
        self._layers: list[CachedLayer] = []
        self._writer: CacheWriter | None = None
        self._layer_indices: list[int] = []
        self._device = torch.device("cpu")
        self._dtype = vllm_config.model_config.dtype
        # digest -> [L_rank, 2, N, h_kv, D] on the device, in the model's dtype: quantized caches are
        # quantized by the attention backend as it writes.
        self._resident: dict[str, torch.Tensor] = {}
        self._failed_block_ids: set[int] = set()
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

    def layout(self) -> dict[str, object]:
        """Return what the front end has to know about this rank.

        ``layer_indices``; ``problems``, layers that cannot hold a prefix; ``writer``, what writes prefixes.
        """
        return {
            "layer_indices": self._layer_indices,
            "problems": layer_problems(self._static_layers),
            "writer": self._writer.choice.implementation if self._writer is not None else None,
        }

    def load(self, digest: str, blob: bytes) -> dict[str, object]:
        """Make a prefix resident. Loading what is resident already changes nothing.

        Args:
            digest: the patch's digest.
            blob: safetensors bytes with one tensor ``kv``, ``[L, 2, N, H_kv, D]``, of the whole model.

        Returns:
            ``digest``, ``shape`` of the whole prefix and ``nbytes`` held here, for the caller to compare.

        Raises:
            ValueError: the prefix does not have this model's shape or dtype.
        """
        kv = load_safetensors(blob)["kv"]
        if digest not in self._resident:
            self._check_shape(kv)
            heads = rank_heads(
                self._num_kv_heads, get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
            )
            self._resident[digest] = shard_prefix_kv(kv, self._layer_indices, heads).to(self._device)
        return {"digest": digest, "shape": list(kv.shape), "nbytes": self._resident[digest].nbytes}

    def _check_shape(self, kv: torch.Tensor) -> None:
        head_size = self._layers[0].layer.head_size
        num_layers, two, _, num_kv_heads, kv_head_size = kv.shape
        if (two, num_kv_heads, kv_head_size) != (2, self._num_kv_heads, head_size) or kv.dtype != self._dtype:
            raise ValueError(
                f"kv: expected [L, 2, N, {self._num_kv_heads}, {head_size}] {self._dtype}, "
                f"got {list(kv.shape)} {kv.dtype}"
            )
        if self._layer_indices[-1] >= num_layers:
            raise ValueError(f"kv: expected at least {self._layer_indices[-1] + 1} layers, got {num_layers}")

    def unload(self, digest: str) -> int:
        """Drop a prefix and return the bytes set free; 0 where it was not resident."""
        dropped = self._resident.pop(digest, None)
        return 0 if dropped is None else dropped.nbytes

    def resident(self) -> dict[str, int]:
        """Return digest -> bytes for what is resident."""
        return {digest: kv.nbytes for digest, kv in self._resident.items()}

    def run(self, plan: StepPlan) -> None:
        """Carry out one step's plan. A prefix that is not resident fails the requests that need it."""
        self._failed_block_ids |= plan.unbacked_block_ids
        ready: list[PrefixLoad] = []
        for load in plan.loads:
            if load.digest in self._resident:
                ready.append(load)
            else:
                logger.error(
                    "prefix %s of request %s is not resident: failing it", load.digest, load.request_id
                )
                self._failed_block_ids |= load.block_ids
        if not ready:
            return
        started = time.perf_counter()
        self._write(ready)
        self._stats.record_seconds(time.perf_counter() - started)

    def _write(self, loads: list[PrefixLoad]) -> None:
        assert self._writer is not None, "caches are bound before the first step"
        block_sizes = [group.kv_cache_spec.block_size for group in self._groups]
        # A pipeline stage need not have layers of every group.
        groups = {cached.group for cached in self._layers}
        self._writer.write(
            [
                PrefixWrite(
                    self._resident[load.digest],
                    span.first,
                    slot_mapping_of_span(span.block_ids, span.first, load.num_tokens, block_sizes[group]),
                    group,
                )
                for load in loads
                for group, span in enumerate(load.spans)
                if group in groups
            ]
        )

    def take_failed_block_ids(self) -> set[int]:
        """Return the blocks whose load failed since the last call."""
        taken, self._failed_block_ids = self._failed_block_ids, set()
        return taken

    def take_stats(self) -> InjectionStats:
        """Return the write times since the last call."""
        taken, self._stats = self._stats, InjectionStats()
        return taken
