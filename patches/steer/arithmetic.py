"""The arithmetic of ``patches.kinds.steering``, in plain torch: what all others are held to."""

import torch

from patches.kinds.steering import Steering

#: Keeps a hidden state of zeros from becoming NaN; no other state is as short.
_TINY = 1e-20


def steer(states: torch.Tensor, vector: torch.Tensor, steering: Steering) -> torch.Tensor:
    """Add a vector to hidden states, differentiably in both.

    Args:
        states: ``[…, d]`` of any float dtype.
        vector: ``[d]`` float32, one layer's row.
        steering: How it is added.

    Returns:
        ``[…, d]`` in the dtype of ``states``: computed in float32, rounded once. For x = (3, 4), v = (1, 0)
        and a relative strength of 0.2 it is (4, 4), and (4, 4) · 5 / √32 where renormalised.
    """
    x = states.float()
    length = x.norm(dim=-1, keepdim=True)
    step = steering.strength * (length if steering.scale == "relative" else torch.ones_like(length))
    if steering.opposed_gain:
        cosine = (x @ vector)[..., None] / (length * vector.norm()).clamp_min(_TINY)
        step = step * (1 + steering.opposed_gain * (-cosine).clamp_min(0))
    steered = x + step * vector
    if steering.renormalise:
        steered = steered * (length / steered.norm(dim=-1, keepdim=True).clamp_min(_TINY))
    return steered.to(states.dtype)
