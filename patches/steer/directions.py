"""From pairs to a direction for each layer, in the ways of the literature.

``mean`` and ``pc1`` read the last token of each answer. ``paper`` is Safety Arithmetic as written (arXiv
2406.11801): the first principal direction of the differences, over all layers at once, not centred.
``authors`` is its code, which differs: the mean of the last four tokens, the first principal direction of the
*centred* differences and their mean, added to the output of the MLP.

Uncentred, the first principal direction hardly differs from the mean, whose sign it takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from patches.errors import CompileError
from patches.kinds.steering import Steering
from patches.steer.hidden import LAST, LAST_FOUR, Pool


@dataclass(frozen=True)
class Method:
    """A way from differences to directions, and the form that it is meant for."""

    pool: Pool
    #: ``mean``, ``pc1`` or ``pc1+mean``.
    direction: str
    form: Steering
    #: Whether it is meant for all layers, or for the last third of them.
    is_for_all_layers: bool = False


#: Of a hidden state's length, where not asked otherwise. A small model still writes sentences under it in the
#: last third of its layers; under 0.05 it babbles.
RELATIVE_STRENGTH = 0.02

METHODS: Mapping[str, Method] = {
    "mean": Method(LAST, "mean", Steering("residual", "relative", RELATIVE_STRENGTH)),
    "pc1": Method(LAST, "pc1", Steering("residual", "relative", RELATIVE_STRENGTH)),
    "paper": Method(LAST, "pc1", Steering("residual", "absolute", 0.12), is_for_all_layers=True),
    # 0.1 and alpha = 0.12 of the code; each layer's direction has length 1 there, as it is relative here.
    "authors": Method(
        LAST_FOUR, "pc1+mean", Steering("mlp", "relative", 0.012, opposed_gain=1), is_for_all_layers=True
    ),
}


def directions(chosen: torch.Tensor, rejected: torch.Tensor, how: str) -> torch.Tensor:
    """Compute one direction for each layer, from the rejected answers to the chosen ones.

    Args:
        chosen: ``[pairs, L, d]``, states of the chosen answers.
        rejected: The same of the rejected ones.
        how: ``mean``; ``pc1``, the direction of length 1 over all layers along which squared differences are
            largest; or ``pc1+mean``, the first principal direction of the centred differences and their mean.

    Returns:
        ``[L, d]`` float32. For differences (3, 0) and (1, 0) at one layer it is (2, 0), (1, 0) and
        (3, 0).

    Raises:
        CompileError: Chosen and rejected answers have the same states.
    """
    differences = (chosen - rejected).double().flatten(1)
    mean = differences.mean(0)
    if not bool(mean.any()):
        raise CompileError("pairs: the chosen answers leave the same hidden states as the rejected ones")
    if how == "mean":
        return _shaped(mean, chosen)
    if how == "pc1":
        first, _ = _first_direction(differences)
        return _shaped(first if bool(first @ mean >= 0) else -first, chosen)
    if len(differences) < 2:
        raise CompileError("pairs: expected at least 2 for centred differences, got 1; choose another method")
    # Of its two signs the code takes the one by which the pair that it describes best has a positive share.
    first, shares = _first_direction(differences - mean)
    is_positive = bool(shares[shares.abs().argmax()] > 0)
    return _shaped((first if is_positive else -first) + mean, chosen)


def fitted(vector: torch.Tensor, scale: str, layers: Sequence[int] | None = None) -> torch.Tensor:
    """Make rows fit a scale, and leave only those of some layers.

    Args:
        vector: ``[L, d]``.
        scale: ``relative`` makes each row 1 long; ``absolute`` leaves them as they are.
        layers: Whose rows are kept; all where ``None``.
    """
    if scale == "relative":
        vector = vector / vector.norm(dim=1, keepdim=True).clamp_min(1e-30)
    if layers is None:
        return vector
    kept = torch.zeros_like(vector)
    kept[list(layers)] = vector[list(layers)]
    return kept


def form_of(method: Method, **changes: Any) -> Steering:
    """Return the form of a method with the caller's changes; a change to ``None`` is none."""
    made = {key: value for key, value in changes.items() if value is not None}
    scale = made.get("scale", method.form.scale)
    if scale != method.form.scale:
        # The strength of the other scale would be next to nothing here, or far too much.
        made.setdefault("strength", RELATIVE_STRENGTH if scale == "relative" else 1.0)
    return replace(method.form, **made)


def _first_direction(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the direction of length 1, and each row's share in it."""
    # Of n rows of length L·d the right singular vectors come cheapest from the n x n products.
    _, vectors = torch.linalg.eigh(rows @ rows.T)
    shares = vectors[:, -1]
    first = rows.T @ shares
    return first / first.norm(), shares


def _shaped(flat: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return flat.reshape(like.shape[1:]).float()
