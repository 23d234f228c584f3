"""The KV connector that puts prefixes in front of requests.

vLLM makes one instance in the scheduler's process and one in each worker; each role is a class of its own and
this one only passes calls on. The launcher names it in vLLM's configuration.
Both model runners (V1, V2) call it.
"""

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from server.engine.block_pins import PINNED_SHARE_KEY
from server.engine.logs import log_through_vllm
from server.engine.plan import StepPlan
from server.engine.scheduler_side import SchedulerSide
from server.engine.stats import InjectionStats
from server.engine.steering_report import SteeringReport
from server.engine.tracing import quiet_exporters
from server.engine.worker_side import WorkerSide

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


class PolicyPatchConnector(KVConnectorBase_V1, SupportsHMA):
    """Answers "the first N tokens are already computed" for patched requests, and makes it true."""

    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        # The first code of ours that runs in the processes that vLLM starts.
        log_through_vllm()
        if vllm_config.observability_config.otlp_traces_endpoint is not None:
            quiet_exporters()
        self._scheduler = (
            SchedulerSide(vllm_config, kv_cache_config) if role == KVConnectorRole.SCHEDULER else None
        )
        self._worker = WorkerSide(vllm_config, kv_cache_config) if role == KVConnectorRole.WORKER else None

    @property
    def requires_kv_delivery(self) -> bool:
        """Nothing is ever handed off."""
        return False

    @property
    def scheduler(self) -> SchedulerSide:
        """The scheduler's half; only in the scheduler's process."""
        assert self._scheduler is not None
        return self._scheduler

    @property
    def worker(self) -> WorkerSide:
        """The worker's half; only in worker processes."""
        assert self._worker is not None
        return self._worker

    # Worker side.

    def register_kv_caches(self, kv_caches: dict[str, "torch.Tensor"]) -> None:  # noqa: D102
        self.worker.bind_caches(kv_caches)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:  # noqa: D102
        # Attention layers call back into a connector that has metadata; steps with nothing to load have none.
        assert isinstance(connector_metadata, StepPlan)
        self._connector_metadata = connector_metadata if connector_metadata else None

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:  # noqa: D102
        if self._connector_metadata is not None:
            self.worker.run(self._connector_metadata)

    def get_block_ids_with_load_errors(self) -> set[int]:  # noqa: D102
        return self.worker.take_failed_block_ids()

    def build_connector_worker_meta(self) -> SteeringReport | None:  # noqa: D102
        return self.worker.take_report()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: the writes are on the stream of the forward pass."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: "torch.Tensor", attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing is ever saved."""

    def wait_for_save(self) -> None:
        """Nothing is ever saved."""

    # Scheduler side.

    def bind_gpu_block_pool(self, gpu_block_pool: "BlockPool") -> None:  # noqa: D102
        share = float(self._kv_transfer_config.get_from_extra_config(PINNED_SHARE_KEY, 0.0))
        if share:
            max_model_len = self._vllm_config.model_config.max_model_len
            self.scheduler.bind_pool(gpu_block_pool, share, max_model_len)

    def reset_cache(self) -> bool:  # noqa: D102
        self.scheduler.reset()
        return True

    def on_new_request(self, request: "Request") -> None:  # noqa: D102
        self.scheduler.on_new_request(request)

    def get_num_new_matched_tokens(  # noqa: D102
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        return self.scheduler.num_matched_tokens(request, num_computed_tokens), False

    def update_state_after_alloc(  # noqa: D102
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        self.scheduler.after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:  # noqa: D102
        return self.scheduler.build_plan(scheduler_output)

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:  # noqa: D102
        report = connector_output.kv_connector_worker_meta
        if isinstance(report, SteeringReport):
            self.scheduler.take_report(report)

    def request_finished(  # noqa: D102
        self, request: "Request", block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return False, self.scheduler.forget(request)

    def request_finished_all_groups(  # noqa: D102
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return False, self.scheduler.forget(request)

    # Both.

    def get_kv_connector_stats(self) -> InjectionStats | None:  # noqa: D102
        stats = (self._scheduler or self.worker).take_stats()
        return None if stats.is_empty() else stats

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> InjectionStats:  # noqa: D102
        return InjectionStats(data)
