"""The loss of supervised fine-tuning: the answers' negative log-likelihood.

Only tokens of answers count. Prompt and prefix have no label, so they can't change the loss.
"""

import torch


def token_logprobs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of each label.

    Args:
        logits: ``[…, V]``, any float dtype; computed in float32.
        labels: ``[…]``, token ids.

    Returns:
        ``[…]`` in float32. Semantics: ``out[i] = log softmax(logits[i])[labels[i]]``.
        For logits ``[0, ln 3]``: label 0 gives ln(1/4), label 1 gives ln(3/4).
    """
    logits = logits.float()
    return logits.gather(-1, labels[..., None])[..., 0] - logits.logsumexp(-1)


def sft_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum the negative log-likelihood of the answers' tokens.

    A sum, not a mean: the caller divides by the tokens of the whole step, so that a step over several forward
    passes, or several processes, weighs every token alike.

    Args:
        logits: ``[K, V]``.
        labels: ``[K]``, token ids.

    Returns:
        A scalar in float32. For logits ``[0, ln 3]`` at two positions with labels 1 and 0 it is
        ``-ln(3/4) - ln(1/4) = ln(16/3)``; with the second one left out, ``ln(4/3)``.
    """
    return -token_logprobs(logits, labels).sum()


def answer_logprobs(
    logits: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor, num_rows: int
) -> torch.Tensor:
    """Sum the log-probabilities of each answer's tokens.

    Args:
        logits: ``[K, V]``.
        labels: ``[K]``, token ids.
        rows: ``[K]``, the answer that each token belongs to.
        num_rows: B, how many answers there are.

    Returns:
        ``[B]`` in float32.
    """
    logprobs = token_logprobs(logits, labels)
    return logprobs.new_zeros(num_rows).index_add(0, rows, logprobs)
