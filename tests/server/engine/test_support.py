"""What is refused at start, with configurations of vLLM's shape."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.platforms import current_platform

from server.engine.support import (
    UnsupportedSetup,
    layer_problems,
    refused_kinds,
    require_matching_rank_layout,
    require_supported_arguments,
    require_supported_environment,
    require_supported_model,
    require_supported_on_cpu,
)


def _arguments(**changes: Any) -> Any:
    plain = {
        "grpc": False,
        "headless": False,
        "api_server_count": None,
        "data_parallel_size": 1,
        "data_parallel_size_local": None,
        "data_parallel_rank": None,
        "data_parallel_start_rank": None,
        "data_parallel_external_lb": False,
        "data_parallel_hybrid_lb": False,
        "data_parallel_multi_port_external_lb": False,
        "data_parallel_backend": "mp",
        "enable_elastic_ep": False,
        "kv_transfer_config": None,
        "worker_cls": "auto",
        "worker_extension_cls": "",
        "tokens_only": False,
        "enable_dbo": False,
    }
    return SimpleNamespace(**plain | changes)


def _config(model: dict[str, Any] | None = None, **changes: Any) -> Any:
    plain_model = {
        "model": "m",
        "runner_type": "generate",
        "is_encoder_decoder": False,
        "use_mla": False,
        "is_hybrid": False,
        "is_attention_free": False,
    }
    plain = {
        "parallel_config": SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1),
        "speculative_config": None,
        "cache_config": SimpleNamespace(kv_sharing_fast_prefill=False),
    }
    return SimpleNamespace(model_config=SimpleNamespace(**plain_model | (model or {})), **plain | changes)


def on_cpu(block_size: int = 32, quantization: str | None = None) -> Any:
    cache = SimpleNamespace(kv_sharing_fast_prefill=False, block_size=block_size)
    return _config({"quantization": quantization}, cache_config=cache)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (on_cpu(block_size=16), "^--block-size: expected a multiple of 32 on a CPU, got 16; leave it out$"),
        (on_cpu(quantization="fp8"), "^--quantization: fp8 has no kernels on a CPU; leave it out"),
        (on_cpu(quantization="nvfp4_per_token"), "^--quantization: nvfp4_per_token has no kernels"),
    ],
)
def test_what_only_a_gpu_can_do_is_refused_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, config: Any, message: str
) -> None:
    stub = SimpleNamespace(default=SimpleNamespace(_schema=SimpleNamespace(arguments=[])))
    monkeypatch.setattr(torch.ops._C, "static_scaled_fp8_quant", stub)
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda platform: True)
    with pytest.raises(UnsupportedSetup, match=message):
        require_supported_on_cpu(config)
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda platform: False)
    require_supported_on_cpu(config)


def test_other_quantizations_and_builds_with_kernels_pass_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda platform: True)
    for quantization in (None, "awq", "compressed-tensors"):
        require_supported_on_cpu(on_cpu(64, quantization))
    whole = SimpleNamespace(default=SimpleNamespace(_schema=SimpleNamespace(arguments=["out"])))
    monkeypatch.setattr(torch.ops._C, "static_scaled_fp8_quant", whole)
    require_supported_on_cpu(on_cpu(quantization="fp8"))


def test_a_plain_setup_passes() -> None:
    require_supported_arguments(_arguments(api_server_count=2))
    require_supported_arguments(_arguments(data_parallel_size=2))
    require_supported_model(_config())


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"grpc": True}, "--grpc"),
        ({"headless": True}, "--headless"),
        ({"data_parallel_rank": 0}, "--data-parallel-rank"),
        ({"data_parallel_size": 4, "data_parallel_size_local": 2}, "--data-parallel-size-local"),
        ({"data_parallel_hybrid_lb": True}, "--data-parallel-hybrid-lb"),
        ({"data_parallel_backend": "ray"}, "--data-parallel-backend"),
        ({"enable_elastic_ep": True}, "--enable-elastic-ep"),
        ({"kv_transfer_config": object()}, "--kv-transfer-config"),
        ({"worker_cls": "a.B"}, "--worker-cls"),
        ({"worker_extension_cls": "a.B"}, "--worker-extension-cls"),
        ({"tokens_only": True}, "--tokens-only"),
        ({"enable_dbo": True}, "--enable-dbo"),
    ],
)
def test_launch_modes_without_a_patched_client_are_refused(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(UnsupportedSetup, match=flag):
        require_supported_arguments(_arguments(**changes))


def test_a_server_that_would_ignore_aliases_is_refused() -> None:
    require_supported_environment(skips_model_names=False)
    with pytest.raises(UnsupportedSetup, match="VLLM_SKIP_MODEL_NAME_VALIDATION"):
        require_supported_environment(skips_model_names=True)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (_config({"runner_type": "pooling"}), "pooling model"),
        (_config({"is_encoder_decoder": True}), "encoder-decoder"),
        (_config({"use_mla": True}), "MLA"),
        (_config({"is_hybrid": True}), "recurrent"),
        (_config({"is_attention_free": True}), "recurrent"),
        (
            _config(
                parallel_config=SimpleNamespace(
                    decode_context_parallel_size=2, prefill_context_parallel_size=1
                )
            ),
            "context parallelism",
        ),
        (_config(speculative_config=SimpleNamespace(method="eagle")), "draft model"),
        (_config(cache_config=SimpleNamespace(kv_sharing_fast_prefill=True)), "kv-sharing-fast-prefill"),
    ],
)
def test_models_and_modes_that_cannot_be_served_rightly_are_refused(config: Any, reason: str) -> None:
    with pytest.raises(UnsupportedSetup, match=reason):
        require_supported_model(config)


def test_ngram_speculation_passes() -> None:
    require_supported_model(_config(speculative_config=SimpleNamespace(method="ngram")))


class _Recurrent:
    def get_kv_cache_spec(self) -> None:
        return None


def test_a_layer_with_another_kind_of_cache_is_named() -> None:
    assert layer_problems({"l.0.mixer": _Recurrent(), "l.0.norm": torch.nn.Identity()}) == [
        "l.0.mixer: _Recurrent is not decoder self-attention"
    ]


def _answer(layer_indices: list[int], problems: list[str] | None = None) -> dict[str, object]:
    return {"layer_indices": layer_indices, "problems": problems or []}


def test_pipeline_stages_together_must_run_every_layer() -> None:
    base_model = SimpleNamespace(num_layers=4)
    require_matching_rank_layout([_answer([0, 1]), _answer([2, 3])], base_model)
    with pytest.raises(
        UnsupportedSetup, match=r"expected attention layers 0\.\.3, the workers run \[0, 1, 3\]"
    ):
        require_matching_rank_layout([_answer([0, 1]), _answer([3])], base_model)


def test_a_workers_problem_ends_the_start() -> None:
    with pytest.raises(UnsupportedSetup, match=r"l\.0: shares the K/V"):
        require_matching_rank_layout(
            [_answer([0], ["l.0: shares the K/V of x"])], SimpleNamespace(num_layers=1)
        )


def test_a_kind_that_one_worker_cannot_let_act_is_refused_with_its_reason() -> None:
    works = {"steering": None, "delta": None}
    assert refused_kinds([works, works]) == {}
    assert refused_kinds([works, works | {"steering": "it is quantised"}]) == {"steering": "it is quantised"}
    assert refused_kinds([{"steering": None}]) == {"delta": "its workers can't change weights"}
