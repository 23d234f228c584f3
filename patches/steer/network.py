"""The decoder layers of a transformers model, on the architectures whose hidden states are known.

A layer's output is the hidden state that ``transformers`` lists as ``hidden_states[i + 1]``, but for the last
layer, whose listed state is normalised already. The hooks of this package see it as the layer leaves it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from patches.errors import ModelUnusable

#: Each is held against plain arithmetic by a test; servers have a list of their own.
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


class Acting(Protocol):
    """What the hooks call, pass by pass."""

    def before_pass(self, positions: torch.Tensor, is_real: torch.Tensor) -> None:
        """Learn where the pass's tokens are.

        Args:
            positions: ``[B, T]`` or ``[1, T]``: places within the requests, from 0.
            is_real: ``[B, T]``, false for padding.
        """

    def after_layer(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """Return what takes the place of a decoder layer's output, ``[B, T, d]``."""

    def after_mlp(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """Return what takes the place of the output of a layer's MLP, ``[B, T, d]``."""


def layers_of(network: Any) -> Sequence[Any]:
    """Return the decoder layers of a model.

    Raises:
        ModelUnusable: Its architecture is not one of ``ARCHITECTURES``.
    """
    architecture = type(network).__name__
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelUnusable(f"model: hidden states can be steered in {known}; got {architecture}")
    layers: Sequence[Any] = network.get_decoder().layers
    return layers


@contextmanager
def hooked(network: Any, acting: Acting) -> Iterator[None]:
    """Have something act on each pass of a model, until the context ends.

    Raises:
        ModelUnusable: The model's architecture is not one of ``ARCHITECTURES``.
    """
    handles = hook(network, acting)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hook(network: Any, acting: Acting) -> list[Any]:
    """Have something act on each pass of a model; return the hooks, to be removed.

    Raises:
        ModelUnusable: The model's architecture is not one of ``ARCHITECTURES``.
    """
    layers = layers_of(network)
    handles = [network.get_decoder().register_forward_pre_hook(_before(acting), with_kwargs=True)]
    for index, layer in enumerate(layers):
        handles.append(layer.register_forward_hook(_after(acting.after_layer, index)))
        handles.append(layer.mlp.register_forward_hook(_after(acting.after_mlp, index)))
    return handles


def _before(acting: Acting) -> Callable[..., None]:
    def before(module: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids")
        tokens = kwargs["inputs_embeds"] if tokens is None else tokens
        num_rows, num_tokens = tokens.shape[:2]
        positions, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
        if positions is None:
            cache = kwargs.get("past_key_values")
            num_before = 0 if cache is None else cache.get_seq_length()
            positions = torch.arange(num_before, num_before + num_tokens, device=tokens.device)[None]
        is_real = torch.ones(num_rows, num_tokens, dtype=torch.bool, device=tokens.device)
        # A mask of another shape, or one per kind of layer, was made by a caller that pads nothing.
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            is_real = mask[:, -num_tokens:].bool()
        acting.before_pass(positions.expand(num_rows, -1), is_real)

    return before


def _after(act: Callable[[int, torch.Tensor], torch.Tensor], index: int) -> Callable[..., Any]:
    def after(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        # Some versions of transformers return a layer's output with attention weights behind it.
        if isinstance(output, tuple):
            return (act(index, output[0]), *output[1:])
        return act(index, output)

    return after
