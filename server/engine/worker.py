"""What a worker of vLLM's has beside: hooks for vectors, set as its model is loaded, and the RPC of patches.

vLLM traces and captures the model before the connector exists, so the hooks can't be the connector's: the
launcher names a subclass of the worker that the platform chose (``worker_cls``).
"""

import logging
from typing import TYPE_CHECKING, Any, cast

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer import get_kv_transfer_group

from patches.model_files import model_folder
from server.engine import weight_places
from server.engine.connector import PolicyPatchConnector
from server.engine.delta_store import DeltaStore
from server.engine.steering_hooks import config_problem, install, model_problem
from server.engine.steering_plan import num_slots
from server.engine.steering_rows import SteeringRank, watch_steps
from server.engine.steering_selftest import find_problem, without_attention
from server.engine.weight_places import Places, weights_in_place
from server.engine.worker_extension import PatchWorkerExtension
from steering_kernels import choose_implementation

if TYPE_CHECKING:
    import torch
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger(__name__)

#: Worker classes of vLLM's platforms -> ours.
_OURS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "server.engine.cpu_worker.PatchedCPUWorker",
    "vllm.v1.worker.gpu_worker.Worker": "server.engine.gpu_worker.PatchedGPUWorker",
}


class PatchedWorker(PatchWorkerExtension):
    """A mixin in front of a worker class of vLLM's."""

    steering: SteeringRank | None = None
    #: Why vectors can't act here.
    steering_problem: str | None = None
    #: Why weights can't change here.
    weights_problem: str | None = None

    if TYPE_CHECKING:
        vllm_config: VllmConfig
        model_runner: Any
        device: torch.device

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, and set the hooks before anything is traced."""
        with weights_in_place(self.vllm_config):
            super().load_model(*args, **kwargs)  # type: ignore[misc]
        network = self.model_runner.get_model()
        self.weights_problem = weight_places.config_problem(self.vllm_config) or model_problem(network)
        slots = num_slots(self.vllm_config)
        self.steering_problem = (
            "--steering-slots is 0"
            if slots == 0
            else config_problem(self.vllm_config) or model_problem(network) or _kernel_problem(self.device)
        )
        if self.steering_problem is not None:
            logger.info("steering patches are refused: %s", self.steering_problem)
            return
        self.steering = SteeringRank(self.vllm_config, network, self.device, slots)
        install(network, self.steering, self.vllm_config)
        watch_steps(self.model_runner, self.steering)

    def initialize_from_config(self, kv_cache_config: "KVCacheConfig") -> None:
        """Make the caches and with them the connector, which carries what the ranks have to say."""
        super().initialize_from_config(kv_cache_config)  # type: ignore[misc]
        side = cast(PolicyPatchConnector, get_kv_transfer_group()).worker
        if self.weights_problem is None:
            side.stores.add("delta", self._delta_store())
        else:
            side.stores.refuse("delta", self.weights_problem)
        if self.steering is not None:
            self.steering.bind_caches(self.model_runner, kv_cache_config, side.clear)
            side.bind_steering(self.steering)
        elif self.steering_problem is not None:
            side.stores.refuse("steering", self.steering_problem)

    def compile_or_warm_up_model(self, *args: Any, **kwargs: Any) -> Any:
        """Compile and capture; then try whether vectors act rightly, and switch them off where they don't."""
        done = super().compile_or_warm_up_model(*args, **kwargs)  # type: ignore[misc]
        if self.steering is not None:
            with without_attention(self.vllm_config.compilation_config.static_forward_context.values()):
                problem = find_problem(self.steering, self.model_runner, self.model_runner.get_model())
            if problem is not None:
                logger.error("steering patches are refused: %s", problem)
                self.steering_problem = problem
                cast(PolicyPatchConnector, get_kv_transfer_group()).worker.stores.refuse("steering", problem)
        return done

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Sample, and keep back the tokens of requests whose vector can't be answered for."""
        output = super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        return output if self.steering is None else self.steering.without_failed(output)

    def execute_dummy_batch(self) -> None:
        """Run along with other data-parallel ranks; nothing of the last step is steered any more."""
        if self.steering is not None:
            self.steering.end_steps()
        super().execute_dummy_batch()  # type: ignore[misc]

    def policy_patch_layout(self) -> dict[str, object]:
        """See ``PatchWorkerExtension``; each kind has why its patches can't act here, or ``None``."""
        problems = {"steering": self.steering_problem, "delta": self.weights_problem}
        return {**super().policy_patch_layout(), **problems}

    def _delta_store(self) -> DeltaStore:
        model = self.vllm_config.model_config
        folder = model_folder(model.model, model.revision)
        return DeltaStore(Places(self.model_runner.get_model()), folder, model.dtype, self.device)


def _kernel_problem(device: "torch.device") -> str | None:
    try:
        choice = choose_implementation(device)
    except ValueError as error:
        return str(error)
    logger.info("vectors act by %s: %s", choice.implementation, choice.reason)
    return None


def use_patched_workers(config: VllmConfig) -> None:
    """Have our subclass of the worker that vLLM's platform chose made; elsewhere the RPC alone is added."""
    parallel = config.parallel_config
    ours = _OURS.get(str(parallel.worker_cls))
    if ours is None:
        parallel.worker_extension_cls = "server.engine.worker_extension.PatchWorkerExtension"
    else:
        parallel.worker_cls = ours
