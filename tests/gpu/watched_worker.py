"""A worker that also writes down what the connector and vectors do on it.

Nothing of the product is replaced: the worker's writer and the connector's ``start_load_kv`` are wrapped from
outside. With real kernels each write is read back from the cache and compared.
"""

import hashlib
import os
from typing import Any
from unittest.mock import patch

import torch
from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group
from vllm.v1.worker.gpu_worker import Worker

from prefix_kernels import joined, moved
from server.engine import worker
from server.engine.gpu_worker import PatchedGPUWorker
from server.engine.steering_selftest import find_problem

#: Environment variable: a stand-in driver is loaded, under which no kernel acts.
NO_KERNELS = "POLICYPATCH_NO_KERNELS"


def _run_and_ignored(*args: Any) -> None:
    find_problem(*args)


def sha256_of(tensor: torch.Tensor) -> str:
    """Digest of a tensor's values, wherever it is."""
    return hashlib.sha256(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def cache_slots(kv_cache: torch.Tensor, slots: torch.Tensor, head_size: int) -> tuple[Any, Any]:
    """Read K and V of slots from a cache in vLLM's view, ``[B, H, block, 2 * D]``."""
    block_size = kv_cache.shape[2]
    rows = kv_cache[slots // block_size, :, slots % block_size, :]
    return rows[..., :head_size], rows[..., head_size:]


class Watch:
    """What was seen since the last ``take``."""

    def __init__(self, *, has_kernels: bool) -> None:
        self.has_kernels = has_kernels
        self.is_loading = False
        self.steps: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.batch: Any = None

    def wrap_loads(self, connector: Any) -> None:
        """Note each step that has a plan, with what the model runner was told about admitted requests."""
        start_load_kv = connector.start_load_kv

        def watched(forward_context: Any, **kwargs: Any) -> None:
            plan = connector._connector_metadata
            if plan is not None:
                output = kwargs.get("scheduler_output")
                new = [] if output is None else output.scheduled_new_reqs
                self.steps.append(
                    {
                        "loads": [
                            {"request": load.request_id, "digest": load.digest, "stop": load.num_tokens}
                            | {"first": [span.first for span in load.spans]}
                            for load in plan.loads
                        ],
                        "admitted": {r.req_id: [list(group) for group in r.block_ids] for r in new},
                        "computed": {r.req_id: r.num_computed_tokens for r in new},
                        "unbacked": sorted(plan.unbacked_block_ids),
                        "writes": [],
                    }
                )
            self.is_loading = True
            try:
                start_load_kv(forward_context, **kwargs)
            finally:
                self.is_loading = False

        connector.start_load_kv = watched

    def wrap_writes(self, worker: Any) -> None:
        """Note what each write of prefixes puts into each layer's cache, whatever writes it."""
        write_prefixes = worker._writer.write

        def watched(writes: Any, rotary: Any = None) -> None:
            write_prefixes(writes, rotary)
            if self.is_loading:
                for cached in worker._layers:
                    chosen = [write for write in moved(writes, rotary) if write.group == cached.group]
                    self.steps[-1]["writes"].append(self._note(cached, chosen))

        worker._writer.write = watched

    def wrap_rows(self, runner: Any, rank: Any) -> None:
        """Note which row of the table each token of a step has, read back from the device."""
        read_flags = rank.read_flags

        def watched() -> None:
            read_flags()
            batch = self.batch
            if batch is None:  # A dummy run.
                return
            rows = rank._rows.tensor[: int(batch.num_scheduled_tokens.sum())].tolist()
            self.rows.append(
                {
                    "requests": list(zip(batch.req_ids, batch.num_scheduled_tokens.tolist(), strict=True)),
                    "rows": rows,
                    "row_of": dict(rank.store._rows),
                }
            )

        prepare = runner.prepare_inputs

        def prepared(*args: Any, **kwargs: Any) -> Any:
            self.batch = prepare(*args, **kwargs)
            return self.batch

        rank.read_flags, runner.prepare_inputs = watched, prepared

    def _note(self, cached: Any, writes: list[Any]) -> dict[str, Any]:
        key, value = joined(writes, cached.row)
        slots = torch.cat([write.slots for write in writes])
        layer = cached.layer
        noted = {
            "layer": layer.layer_name,
            "key": [list(key.shape), str(key.dtype), str(key.device.type)],
            "value": [list(value.shape), str(value.dtype), str(value.device.type)],
            "slots": slots.tolist(),
            "slots_dtype": str(slots.dtype),
            "key_sha256": sha256_of(key),
            "value_sha256": sha256_of(value),
        }
        if self.has_kernels and layer.kv_cache.dtype == key.dtype:  # Quantized caches hold something near it.
            held = cache_slots(layer.kv_cache, slots.to(key.device), layer.head_size)
            noted["is_held"] = torch.equal(held[0], key) and torch.equal(held[1], value)
        return noted


class RunnerFacts:
    """A call that describes the model runner."""

    def watch_facts(self) -> dict[str, Any]:
        """Describe the model runner that this worker ended up with."""
        runner = self.model_runner  # type: ignore[attr-defined]
        config = runner.vllm_config
        graphs = runner.cudagraph_manager
        attention = [
            x for x in config.compilation_config.static_forward_context.values() if hasattr(x, "impl")
        ]
        return {
            "runner": f"{type(runner).__module__}.{type(runner).__name__}",
            "cudagraph_mode": graphs.cudagraph_mode.name,
            "full_graphs": sorted(descriptor.num_tokens for descriptor in graphs.graphs),
            "capture_sizes": list(config.compilation_config.cudagraph_capture_sizes or ()),
            "max_concurrent_batches": config.max_concurrent_batches,
            "async_scheduling": config.scheduler_config.async_scheduling,
            "hybrid_manager": not config.scheduler_config.disable_hybrid_kv_cache_manager,
            "block_size": config.cache_config.block_size,
            "dtype": str(config.model_config.dtype),
            "groups": [
                f"{type(group.kv_cache_spec).__name__} x {len(group.layer_names)}"
                for group in runner.kv_cache_config.kv_cache_groups
            ],
            "backend": sorted({type(layer.impl).__name__ for layer in attention}),
            "cache": [list(attention[0].kv_cache.shape), list(attention[0].kv_cache.stride())],
            "cache_dtype": str(attention[0].kv_cache.dtype),
            "writer": get_kv_transfer_group().worker._writer.choice.implementation
            if has_kv_transfer_group()
            else None,
            "connector": type(get_kv_transfer_group()).__name__ if has_kv_transfer_group() else None,
        }


class PlainWorker(RunnerFacts, Worker):
    """vLLM's, without anything of ours."""


class WatchedWorker(RunnerFacts, PatchedGPUWorker):
    """The worker that the launcher starts on GPUs, with calls of a rehearsal by ``collective_rpc``."""

    def compile_or_warm_up_model(self, *args: Any, **kwargs: Any) -> Any:
        """Compile and capture; where no kernel acts, steering stays on after a self-test that can't pass."""
        if os.environ.get(NO_KERNELS):
            with patch.object(worker, "find_problem", _run_and_ignored):
                return super().compile_or_warm_up_model(*args, **kwargs)
        return super().compile_or_warm_up_model(*args, **kwargs)

    def watch_begin(self, has_kernels: bool) -> None:
        """Start noting."""
        self.watch = Watch(has_kernels=has_kernels)
        connector = get_kv_transfer_group()
        self.watch.wrap_loads(connector)
        self.watch.wrap_writes(connector.worker)
        if self.steering is not None:
            self.watch.wrap_rows(self.model_runner, self.steering)

    def watch_take(self) -> list[dict[str, Any]]:
        """Return and forget what was noted."""
        taken, self.watch.steps = self.watch.steps, []
        return taken

    def watch_rows(self) -> list[dict[str, Any]]:
        """Return and forget which rows the tokens of each step had."""
        taken, self.watch.rows = self.watch.rows, []
        return taken
