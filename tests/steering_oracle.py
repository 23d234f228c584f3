"""What a vector does, by transformers: hooks on the layers, teacher-forced on somebody's tokens."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def steered(x: torch.Tensor, vector: torch.Tensor, steering: Mapping[str, Any]) -> torch.Tensor:
    """Return hidden states ``[..., d]`` under one row of a vector: the arithmetic of docs/format.md."""
    strength = steering["strength"]
    absolute, relative = (strength, 0.0) if steering["scale"] == "absolute" else (0.0, strength)
    norm = x.norm(dim=-1, keepdim=True)
    cosine = (x * vector).sum(-1, keepdim=True) / (norm * vector.norm())
    gain = 1 + steering["opposed_gain"] * (-cosine).clamp(min=0)
    moved = x + (absolute + relative * norm) * gain * vector
    return moved * norm / moved.norm(dim=-1, keepdim=True) if steering["renormalise"] else moved


@contextmanager
def hooks(network: Any, vector: torch.Tensor, steering: Mapping[str, Any], first: int) -> Iterator[None]:
    """Steer positions from ``first`` on, while the context lasts."""
    handles = []
    for row, layer in zip(vector, network.model.layers, strict=True):
        if row.any():
            module = layer if steering["site"] == "residual" else layer.mlp
            handles.append(module.register_forward_hook(_hook(row, steering, first)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(row: torch.Tensor, steering: Mapping[str, Any], first: int) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        moved = steered(x[:, first:].float(), row, steering).to(x.dtype)
        changed = torch.cat([x[:, :first], moved], dim=1)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


@torch.no_grad()
def logprobs(network: Any, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """Return log-probabilities ``[len(answer), vocabulary]`` of each token of an answer."""
    logits = network(torch.tensor([[*prompt, *answer]])).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1].float(), dim=-1)
