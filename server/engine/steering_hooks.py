"""Where vectors act: hooks on the decoder layers of the loaded model, and on which models they are right.

vLLM keeps the residual stream as two tensors whose sum is what transformers calls the hidden state. That is
no law: some models return the whole stream beside an old residual, or one tensor. So only architectures are
served that tests hold against transformers, by the exact class that vLLM loaded.

Hooks are set right after loading, before anything is traced. In eager mode they are plain Python. Where the
model is compiled they call one opaque operator, which tracing leaves alone: the code around it stays as it is
without hooks.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import nn
from vllm.config import CompilationMode
from vllm.model_executor.models.utils import PPMissingLayer
from vllm.utils.torch_utils import direct_register_custom_op

if TYPE_CHECKING:
    from vllm.config import VllmConfig

#: Classes of vLLM whose layers return (hidden, residual) with the stream as their sum.
ARCHITECTURES = frozenset(
    {
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    }
)

#: Those of them whose layers put a norm behind the MLP, so that its output is not what leaves the layer.
_NORM_BEHIND_MLP = frozenset({"Gemma2ForCausalLM", "Gemma3ForCausalLM"})

#: Of vLLM's `additional_config`: its hash is what tells compiled graphs with hooks from those without.
COMPILE_KEY = {"policypatch": "steering/1"}

_OPERATOR = "steer"
_NAMESPACE = "policypatch"
#: The one rank of this process, by a name that is the same in every process, since it is compiled in.
_ACTING: "WeakValueDictionary[str, Acting]" = WeakValueDictionary()
_KEY = "rank"


class Acting(Protocol):
    """What the hooks call, with the layer's index in the whole model."""

    def after_layer(self, layer_idx: int, hidden: torch.Tensor, residual: torch.Tensor) -> None:
        """Act on the stream after a decoder layer; both ``[tokens, d]``, changed in place.

        Where ``has_own_mlp_hook`` is false, ``hidden`` is the output of the layer's MLP, too.
        """

    def after_mlp(self, layer_idx: int, output: torch.Tensor) -> None:
        """Act on the output of a layer's MLP, ``[tokens, d]``, changed in place."""


def config_problem(config: "VllmConfig") -> str | None:
    """Return why vectors can't act under this configuration, or ``None``. Known before anything is loaded."""
    model, speculative = config.model_config, config.speculative_config
    reasons = {
        f"{model.model} is quantised ({model.quantization})": model.quantization is not None,
        "sequence parallelism spreads a token's hidden state over ranks": (
            config.parallel_config.use_sequence_parallel_moe
        ),
        "adaptive verification leaves open on the host which token is whose": (
            speculative is not None and speculative.enable_adaptive_verification
        ),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def model_problem(network: nn.Module) -> str | None:
    """Return why vectors can't act on the loaded model, or ``None``."""
    kind = type(network)
    if kind.__name__ not in ARCHITECTURES or not kind.__module__.startswith("vllm.model_executor.models."):
        return f"architecture: expected one of {', '.join(sorted(ARCHITECTURES))}, got {kind.__name__}"
    return None


def has_own_mlp_hook(network: nn.Module) -> bool:
    """Return whether the MLP's output has to be caught inside the layer."""
    return type(network).__name__ in _NORM_BEHIND_MLP


def layers_of(network: nn.Module) -> dict[int, nn.Module]:
    """Return the decoder layers that this rank has, by their index in the whole model."""
    layers = network.get_submodule("model.layers")
    return {i: layer for i, layer in enumerate(layers.children()) if not isinstance(layer, PPMissingLayer)}


def install(network: nn.Module, acting: Acting, config: "VllmConfig") -> None:
    """Set the hooks on every decoder layer that this rank has."""
    if config.compilation_config.mode != CompilationMode.NONE:
        _register_operator()
        _ACTING[_KEY] = acting
        after_layer, after_mlp = _operator_hooks()
    else:
        after_layer, after_mlp = acting.after_layer, acting.after_mlp
    for layer_idx, layer in layers_of(network).items():
        layer.register_forward_hook(_layer_hook(after_layer, layer_idx))
        if has_own_mlp_hook(network):
            layer.get_submodule("mlp").register_forward_hook(_mlp_hook(after_mlp, layer_idx))


def _layer_hook(act: Any, layer_idx: int) -> Any:
    def hook(module: nn.Module, inputs: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        act(layer_idx, output[0], output[1])

    return hook


def _mlp_hook(act: Any, layer_idx: int) -> Any:
    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        act(layer_idx, output)

    return hook


def _operator_hooks() -> tuple[Any, Any]:
    operator = getattr(getattr(torch.ops, _NAMESPACE), _OPERATOR)

    def after_layer(layer_idx: int, hidden: torch.Tensor, residual: torch.Tensor) -> None:
        operator(hidden, residual, _KEY, layer_idx)

    def after_mlp(layer_idx: int, output: torch.Tensor) -> None:
        operator(output, None, _KEY, layer_idx)

    return after_layer, after_mlp


@cache
def _register_operator() -> torch.library.Library:
    """Register the operator, once; it lives as long as the library that this returns."""
    library = torch.library.Library(_NAMESPACE, "FRAGMENT")
    direct_register_custom_op(
        _OPERATOR, _steer, mutates_args=["x", "residual"], fake_impl=_nothing, target_lib=library
    )
    return library


def _steer(x: torch.Tensor, residual: torch.Tensor | None, key: str, layer_idx: int) -> None:
    acting = _ACTING[key]
    if residual is None:
        acting.after_mlp(layer_idx, x)
    else:
        acting.after_layer(layer_idx, x, residual)


def _nothing(x: torch.Tensor, residual: torch.Tensor | None, key: str, layer_idx: int) -> None:
    return None
