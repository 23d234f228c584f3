"""What a leading process makes of its workers before it serves."""

from typing import Any

from patches.base_model import BaseModel
from server.catalog.weights import WeightControl
from server.engine.client import PatchedAsyncLLM
from server.engine.engine_weights import PausedEngineWeights
from server.engine.rpc_workers import RPC_TIMEOUT_S, RpcWorkers
from server.engine.support import require_matching_rank_layout, require_movable_keys
from server.memory.tiers import TieredResidency
from server.metrics.patches import PatchMetrics
from server.options import MemoryOptions, WeightOptions


async def prepare_workers(
    engine: PatchedAsyncLLM, base_model: BaseModel, metrics: PatchMetrics, *, may_compose: bool
) -> list[dict[str, Any]]:
    """Check that every worker can hold prefixes, and move their keys where patches may be joined.

    Returns:
        What each worker says of itself.

    Raises:
        UnsupportedSetup: One cannot.
    """
    layouts = await engine.ask_workers("policy_patch_layout", timeout_s=RPC_TIMEOUT_S)
    require_matching_rank_layout(layouts, base_model)
    metrics.prefixes.set_writers({answer["writer"] for answer in layouts})
    if may_compose:
        problems = await engine.ask_workers("policy_patch_enable_composition", timeout_s=RPC_TIMEOUT_S)
        require_movable_keys(problems)
    return layouts


def tiered_residency(
    engine: PatchedAsyncLLM, num_workers: int, memory: MemoryOptions, metrics: PatchMetrics
) -> TieredResidency:
    """Return what keeps tensors on so many workers, in the tiers that the flags give room."""
    device_bytes = memory.patch_device_memory * num_workers
    metrics.tiers.set_limits(device_bytes=device_bytes, host_bytes=memory.patch_host_memory)
    return TieredResidency(RpcWorkers(engine), memory, metrics.tiers)


def weight_control(engine: PatchedAsyncLLM, weights: WeightOptions) -> WeightControl | None:
    """Return what the weights of the workers are changed with; ``None`` where they never change."""
    if not weights.weight_patches:
        return None
    is_kept = weights.mismatched == "keep"
    return WeightControl(PausedEngineWeights(engine), weights.weight_drain_timeout, keeps_mismatched=is_kept)
