"""The loss of direct preference optimisation, and the margin that it widens.

With reward ``r(y) = beta * (log p(y) - log p_ref(y))`` the loss of a pair is ``-log sigmoid(r(chosen) -
r(rejected))`` (arXiv 2305.18290, Eq. 7). TRL's ``loss_type="sigmoid"`` is the same; a test compares.
"""

import torch
from torch.nn.functional import logsigmoid


def dpo_margins(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Return ``r(chosen) - r(rejected)`` of each pair.

    Args:
        chosen: ``[B]``, log-probabilities of whole answers under the patch.
        rejected: ``[B]``, the same of the other answers.
        reference_chosen: ``[B]``, under the reference.
        reference_rejected: ``[B]``, under the reference.
        beta: How strongly the reference holds.

    Returns:
        ``[B]``. For -10, -12 under the patch and -11, -11.5 under the reference, beta 0.1:
        ``0.1 * ((-10 + 11) - (-12 + 11.5)) = 0.15``.
    """
    return beta * ((chosen - reference_chosen) - (rejected - reference_rejected))


def dpo_loss(margins: torch.Tensor) -> torch.Tensor:
    """Sum ``-log sigmoid(margin)`` over pairs; the caller divides by the pairs of the whole step.

    Returns:
        A scalar. Where patch and reference agree the margin is 0 and a pair costs ``ln 2``; a margin of
        ``ln 3`` costs ``-ln(3/4)``.
    """
    return -logsigmoid(margins).sum()
