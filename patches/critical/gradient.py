"""The gradient of S, added up over its parts in place: one gradient is all that is held beside the model."""

from collections.abc import Callable
from typing import Any

import torch

from patches.critical.scorer import Scorer
from patches.deltas.linear import is_linear
from patches.errors import ScoresError

#: Told how many of how many parts are done.
Tell = Callable[[int, int], None]

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


def linear_parameters(network: Any) -> dict[str, torch.nn.Parameter]:
    """Return the weights that count, by their names in the checkpoint.

    Raises:
        ScoresError: There are none.
    """
    found = {
        name: weight
        for name, weight in sorted(network.named_parameters())
        if is_linear(name, tuple(weight.shape))
    }
    if not found:
        raise ScoresError("model: expected weights of linear layers in decoder layers, got none")
    return found


def gradient_of(
    network: Any, scorer: Scorer, tell: Tell = lambda done, total: None
) -> dict[str, torch.Tensor]:
    """Return the gradient of S with regard to every weight that counts.

    Args:
        network: In evaluation mode; its weights stay as they are.
        scorer: S.
        tell: Told how far it is.

    Raises:
        ScoresError: A part of S is not finite, has no gradient, or memory does not suffice.
    """
    weights = linear_parameters(network)
    try:
        network.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        for index in range(len(scorer)):
            _add(network, scorer, index)
            tell(index + 1, len(scorer))
        return {name: _taken(name, weight) for name, weight in weights.items()}
    finally:
        network.requires_grad_(False)
        for weight in weights.values():
            weight.grad = None


def value_of(network: Any, scorer: Scorer, tell: Tell = lambda done, total: None) -> float:
    """Return S itself."""
    total = 0.0
    with torch.no_grad():
        for index in range(len(scorer)):
            total += float(scorer.part(network, index))
            tell(index + 1, len(scorer))
    return total


def _add(network: Any, scorer: Scorer, index: int) -> None:
    try:
        part = scorer.part(network, index)
        if not bool(torch.isfinite(part)):
            raise ScoresError(
                f"scorer: expected a finite score, got {float(part.detach())} for part {index + 1}"
            )
        if not part.requires_grad:
            raise ScoresError(
                f"scorer: expected a score that gradients flow from, got a constant for part {index + 1}; "
                "compute it from the network's logits, without torch.no_grad()"
            )
        part.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if not any(text in str(error).lower() for text in _OUT_OF_MEMORY):
            raise
        raise ScoresError(
            "out of memory: the model, its gradient and one prompt don't fit; take --compute-dtype bfloat16, "
            "or shorter prompts"
        ) from error


def _taken(name: str, weight: torch.nn.Parameter) -> torch.Tensor:
    """Take the gradient off a weight, so that it is held once."""
    gradient, weight.grad = weight.grad, None
    if gradient is None:
        return torch.zeros_like(weight, requires_grad=False)
    if not bool(torch.isfinite(gradient).all()):
        raise ScoresError(
            f"{name}: expected a finite gradient, got NaN or infinite values; use --compute-dtype float32"
        )
    return gradient
