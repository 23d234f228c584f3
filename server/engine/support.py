"""What cannot be served rightly under patches is refused at start, with the reason."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.platforms import current_platform

from server.engine.cpu_defaults import BLOCK_SIZE as CPU_BLOCK_SIZE

if TYPE_CHECKING:
    from argparse import Namespace

    from patches.base_model import BaseModel


class UnsupportedSetup(ValueError):
    """The model, or a flag, cannot be combined with policy patches."""


def require_supported_arguments(args: "Namespace") -> None:
    """Check flags before anything is loaded.

    Raises:
        UnsupportedSetup: a launch mode that has no patched engine client, or a second KV connector.
    """
    refusals = {
        "--grpc": args.grpc,
        "--headless": args.headless,
        "--data-parallel-rank": args.data_parallel_rank is not None,
        "--data-parallel-start-rank": args.data_parallel_start_rank is not None,
        "--data-parallel-external-lb": args.data_parallel_external_lb,
        "--data-parallel-hybrid-lb": args.data_parallel_hybrid_lb,
        "--data-parallel-multi-port-external-lb": args.data_parallel_multi_port_external_lb,
        "--data-parallel-size-local below --data-parallel-size": (
            args.data_parallel_size_local not in (None, args.data_parallel_size)
        ),
        "--data-parallel-backend ray": args.data_parallel_backend == "ray",
        "--enable-elastic-ep": args.enable_elastic_ep,
        "--kv-transfer-config": args.kv_transfer_config is not None,
        "--worker-cls": args.worker_cls != "auto",
        "--worker-extension-cls": bool(args.worker_extension_cls),
        "--tokens-only": args.tokens_only,
        "--enable-dbo": args.enable_dbo,
    }
    for flag, is_given in refusals.items():
        if is_given:
            raise UnsupportedSetup(f"{flag} cannot be combined with policy patches; leave it out")


def require_supported_environment(*, skips_model_names: bool) -> None:
    """Check vLLM's environment variables.

    Raises:
        UnsupportedSetup: ``VLLM_SKIP_MODEL_NAME_VALIDATION`` is set, under which vLLM does not check
            model names, so that an alias would be answered by the base model.
    """
    if skips_model_names:
        raise UnsupportedSetup(
            "VLLM_SKIP_MODEL_NAME_VALIDATION cannot be combined with policy patches: aliases would be ignored"
        )


def require_supported_model(config: VllmConfig) -> None:
    """Check the resolved configuration before weights are loaded.

    Raises:
        UnsupportedSetup: pooling or encoder-decoder models, MLA, recurrent layers, or modes that lay out or
            fill the KV cache in ways that a prefix does not follow.
    """
    model, parallel, speculative = config.model_config, config.parallel_config, config.speculative_config
    refusals = {
        f"{model.model} is a pooling model (runner {model.runner_type!r})": model.runner_type != "generate",
        f"{model.model} is an encoder-decoder model": model.is_encoder_decoder,
        f"{model.model} uses multi-head latent attention (MLA)": model.use_mla,
        f"{model.model} has recurrent (state-space or linear-attention) layers": (
            model.is_hybrid or model.is_attention_free
        ),
        "context parallelism spreads a request's slots over ranks": (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1
        ),
        "a speculative draft model keeps a KV cache of its own; use the ngram method": (
            speculative is not None and speculative.method not in ("ngram", "ngram_gpu", "suffix")
        ),
        "--kv-sharing-fast-prefill skips layers of the prompt": config.cache_config.kv_sharing_fast_prefill,
    }
    for reason, applies in refusals.items():
        if applies:
            raise UnsupportedSetup(f"policy patches cannot be served here: {reason}")


def require_supported_on_cpu(config: VllmConfig) -> None:
    """Check what a CPU lacks, which vLLM finds only once its workers load the model.

    Raises:
        UnsupportedSetup: a quantization without kernels in this build, or blocks of a wrong size.
    """
    if not current_platform.is_cpu():
        return
    block_size, quantization = config.cache_config.block_size, config.model_config.quantization or ""
    if block_size % CPU_BLOCK_SIZE:
        raise UnsupportedSetup(
            f"--block-size: expected a multiple of {CPU_BLOCK_SIZE} on a CPU, got {block_size}; leave it out"
        )
    # Where a build has no kernel, an operator of this name without arguments stands in its place.
    has_kernels = bool(torch.ops._C.static_scaled_fp8_quant.default._schema.arguments)
    if not has_kernels and re.search("fp[48]", quantization):
        raise UnsupportedSetup(
            f"--quantization: {quantization} has no kernels on a CPU; leave it out, or serve on a GPU"
        )


def layer_problems(layers: dict[str, object]) -> list[str]:
    """Name the layers that keep a KV cache which a prefix cannot fill; empty for a supported model.

    Args:
        layers: the compilation config's ``static_forward_context``, layer name -> module, on a worker.
    """
    problems = []
    for name, layer in layers.items():
        if not hasattr(layer, "get_kv_cache_spec"):
            continue
        if not isinstance(layer, Attention) or type(layer).__name__ != "Attention":
            problems.append(f"{name}: {type(layer).__name__} is not decoder self-attention")
        elif layer.kv_sharing_target_layer_name is not None:
            problems.append(f"{name}: shares the K/V of {layer.kv_sharing_target_layer_name}")
        elif layer.head_size != layer.head_size_v:
            problems.append(f"{name}: K heads of {layer.head_size} and V heads of {layer.head_size_v}")
        elif not hasattr(layer.impl, "do_kv_cache_update"):
            problems.append(f"{name}: attention backend {layer.backend} offers no cache update of its own")
    return problems


def require_matching_rank_layout(answers: list[dict[str, object]], base_model: "BaseModel") -> None:
    """Check what the workers report against the base model's fingerprint.

    Raises:
        UnsupportedSetup: a layer cannot hold a prefix, or the layers are not the fingerprint's.
    """
    problems = sorted({problem for answer in answers for problem in answer["problems"]})  # type: ignore[attr-defined]
    if problems:
        raise UnsupportedSetup("policy patches cannot be served here: " + "; ".join(problems[:5]))
    indices = sorted({index for answer in answers for index in answer["layer_indices"]})  # type: ignore[attr-defined]
    if indices != list(range(base_model.num_layers)):
        raise UnsupportedSetup(
            "policy patches cannot be served here: "
            f"expected attention layers 0..{base_model.num_layers - 1}, the workers run {indices}"
        )


#: Kind of patch -> why it can't act where a worker says nothing of it.
_SILENCE = {"steering": "its workers have no hooks", "delta": "its workers can't change weights"}


def refused_kinds(answers: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Return which kinds of patch a worker can't let act, and why."""
    refused = {}
    for kind, silence in _SILENCE.items():
        if problems := {str(answer.get(kind, silence)) for answer in answers} - {"None"}:
            refused[kind] = "; ".join(sorted(problems))
    return refused


def require_movable_keys(answers: list[str | None]) -> None:
    """Check what the workers say about moving keys, which ``--composition joined`` needs.

    Raises:
        UnsupportedSetup: a worker cannot move the keys of this model.
    """
    problems = sorted({problem for problem in answers if problem is not None})
    if problems:
        raise UnsupportedSetup(
            "--composition joined cannot be served here, the keys of this model cannot be moved: "
            f"{'; '.join(problems)}; leave it out and prepare compositions with `policypatch compose`"
        )
