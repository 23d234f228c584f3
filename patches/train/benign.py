"""The price of speaking up where a patch has no business: KL divergence to the model without it.

On benign prompts the patched model must say what the unpatched one says, token by token (MOSAIC's
"counterfactual" distillation, arXiv 2603.16210). The direction is forward, from the unpatched model's
distribution, so that nothing that it would say becomes unlikely.
"""

import torch


def benign_kl(base_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Sum ``KL(base || patched)`` over the answers' tokens.

    Args:
        base_logits: ``[K, V]`` of the unpatched model; no gradient flows into it.
        logits: ``[K, V]`` of the patched model.

    Returns:
        A scalar in float32, at least 0. For probabilities (1/2, 1/2) of the base and (3/4, 1/4) of the patch
        one position costs ``ln(2/3)/2 + ln(2)/2 = ln(4/3)/2``.
    """
    base = base_logits.detach().float().log_softmax(-1)
    patched = logits.float().log_softmax(-1)
    return (base.exp() * (base - patched)).sum()
