"""Which worker vLLM makes, and that compiled graphs with hooks are told apart from those without."""

from types import SimpleNamespace

import pytest
from vllm.config import VllmConfig
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.worker.cpu_worker import CPUWorker

from server.engine.steering_hooks import COMPILE_KEY
from server.engine.worker import PatchedWorker, use_patched_workers


def config_with(worker_cls: str) -> SimpleNamespace:
    return SimpleNamespace(parallel_config=SimpleNamespace(worker_cls=worker_cls, worker_extension_cls=""))


def test_the_platforms_worker_gets_our_half_in_front() -> None:
    config = config_with("vllm.v1.worker.cpu_worker.CPUWorker")
    use_patched_workers(config)  # type: ignore[arg-type]
    made = resolve_obj_by_qualname(config.parallel_config.worker_cls)
    assert made.__mro__[1] is PatchedWorker
    assert issubclass(made, CPUWorker)
    assert config.parallel_config.worker_extension_cls == ""


def test_a_gpu_worker_has_its_own_name() -> None:
    config = config_with("vllm.v1.worker.gpu_worker.Worker")
    use_patched_workers(config)  # type: ignore[arg-type]
    assert config.parallel_config.worker_cls == "server.engine.gpu_worker.PatchedGPUWorker"


def test_a_worker_that_is_unknown_stays_and_serves_prefixes() -> None:
    config = config_with("vllm.v1.worker.xpu_worker.XPUWorker")
    use_patched_workers(config)  # type: ignore[arg-type]
    assert config.parallel_config.worker_cls == "vllm.v1.worker.xpu_worker.XPUWorker"
    extension = resolve_obj_by_qualname(config.parallel_config.worker_extension_cls)
    # What it confirms to the catalog is the reason why there is no steering.
    assert extension.policy_patch_layout is not PatchedWorker.policy_patch_layout


@pytest.mark.parametrize("name", [name for name in dir(PatchedWorker) if name.startswith("policy_patch_")])
def test_vllm_has_no_method_of_the_name_of_ours(name: str) -> None:
    assert not hasattr(CPUWorker, name)


def test_graphs_with_hooks_have_another_place_in_the_compile_cache() -> None:
    """The name of the worker's class is no part of the hash."""
    plain, hooked = VllmConfig(), VllmConfig(additional_config=COMPILE_KEY)
    assert plain.compute_hash() != hooked.compute_hash()
