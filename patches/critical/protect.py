"""Holds chosen weights while an optimizer of any kind changes all others (SPA, arXiv 2604.08297).

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    protect(optimizer, model, "scores")

After each step the chosen weights are written back, so that they are what they were to the last bit, whatever
the optimizer did: decay, momentum, noise. All other weights change as they would without it; the authors'
masked AdamW comes to the same. With transformers' or TRL's trainers, do so in ``create_optimizer``, or pass
the optimizer as ``optimizers=(optimizer, None)``.

It needs full tuning: an adapter such as LoRA adds to every weight of a layer, so that none can be held. A
model whose parameters are cut up or renamed, as FSDP and DeepSpeed's third stage do, is refused, too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from patches.critical.scores import Scores, read_scores
from patches.critical.selection import Selection, select
from patches.deltas.sides import DEFAULT_SHARE
from patches.errors import ScoresError

_SHOWN = 3


class Protection:
    """Weights that are held, and what they are."""

    def __init__(self, optimizer: torch.optim.Optimizer, weights: Mapping[str, torch.Tensor]) -> None:
        self._held: list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._weights = weights
        self._handle: Any = optimizer.register_step_post_hook(self._after_step)

    def hold(self, name: str, places: torch.Tensor) -> None:
        """Hold some weights of a tensor at what they are now."""
        flat = self._weights[name].detach().view(-1)
        places = places.to(flat.device)
        self._held.append((name, flat, places, flat[places].clone()))

    @property
    def num_held(self) -> int:
        """How many weights are held."""
        return sum(len(places) for _, _, places, _ in self._held)

    def changed(self) -> list[str]:
        """Return the tensors in which a held weight is not what it was; none, unless others write."""
        return [name for name, flat, places, values in self._held if not torch.equal(flat[places], values)]

    def release(self) -> None:
        """Hold nothing any more."""
        self._handle.remove()

    def _after_step(self, optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        with torch.no_grad():
            for _, flat, places, values in self._held:
                flat[places] = values


def protect(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    scores: Scores | Selection | str | Path,
    share: float = DEFAULT_SHARE,
) -> Protection:
    """Hold the critical weights of a model from now on, through every step of an optimizer.

    Args:
        optimizer: It trains the model's own parameters; made before this call.
        model: A transformers model, not wrapped.
        scores: A folder that ``policypatch esi`` made, what was read from there, or chosen weights. That they
            are this model's is not checked beyond names and shapes.
        share: Of all weights, where scores are given.

    Raises:
        ScoresError: The scores can't be read, the model has other weights, or the optimizer trains none of
            them.
    """
    if not isinstance(scores, Scores | Selection):
        scores = read_scores(Path(scores))
    chosen = select(scores, share) if isinstance(scores, Scores) else scores
    weights = dict(model.named_parameters())
    trained = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    _require_own_weights(weights, chosen, trained)
    protection = Protection(optimizer, weights)
    for name, places in chosen.positions.items():
        protection.hold(name, places)
    return protection


def _require_own_weights(weights: Mapping[str, torch.Tensor], chosen: Selection, trained: set[int]) -> None:
    missing = [name for name in chosen.positions if name not in weights]
    if missing and any("lora_" in name for name in weights):
        raise ScoresError(
            "model: expected full tuning, got a LoRA adapter, which adds to every weight of a layer, so that "
            "none can be held; tune the model's own weights"
        )
    if missing:
        raise ScoresError(
            f"model: expected the weights that the scores are of, got none named {_named(missing)}; give the "
            "model itself, not wrapped or cut up by FSDP or DeepSpeed"
        )
    others = [name for name in chosen.positions if tuple(weights[name].shape) != chosen.shapes[name]]
    if others:
        raise ScoresError(
            f"model: expected weights in the shapes that the scores have, got others in {_named(others)}; "
            "make scores of this model, and don't cut it up by FSDP or DeepSpeed"
        )
    if not any(id(weights[name]) in trained for name in chosen.positions):
        raise ScoresError(
            "optimizer: expected one that trains the weights to protect, got one that trains none of them; a "
            "LoRA adapter adds to every weight of a layer, so that none can be held: tune the model's own "
            "weights"
        )


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
