"""The reference's log-probabilities of every pair, computed once before DPO's first step.

Rows are taken in their own order and always in the same batches, so that a run that is resumed has the same
values to the last bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from patches.train.contexts import ALONE
from patches.train.data import PairSample
from patches.train.learned import Learned
from patches.train.stages import pair_logprobs

#: Pairs between two words about progress.
_TELL_EVERY = 100


def reference_logprobs(
    network: Any,
    learned: Learned | None,
    pairs: Sequence[PairSample],
    batch_size: int,
    is_under_policy: bool,
    tell: Callable[[int], None] = lambda num_done: None,
) -> torch.Tensor:
    """Compute the log-probabilities of chosen and rejected answers under the reference.

    Args:
        network: The model that is the reference.
        learned: What acts in it, such as a prefix; ``None`` for nothing.
        pairs: What to read.
        batch_size: Pairs in one forward pass.
        is_under_policy: Read each prompt under the teacher's policy text.
        tell: Gets the number of pairs that are done, now and then.

    Returns:
        ``[2, num_pairs]`` in float32, on the CPU.
    """
    if is_under_policy:
        pairs = [_under_policy(pair) for pair in pairs]
    parts = []
    with torch.no_grad():
        kv = None if learned is None else learned.patched(ALONE)
        for start in range(0, len(pairs), batch_size):
            if start % _TELL_EVERY < batch_size:
                tell(start)
            logprobs = pair_logprobs(network, kv, pairs[start : start + batch_size])
            parts.append(torch.stack(logprobs).cpu())
    return torch.cat(parts, dim=1) if parts else torch.zeros(2, 0)


def _under_policy(pair: PairSample) -> PairSample:
    prompt_ids = pair.teacher_prompt_ids
    assert prompt_ids is not None
    return replace(
        pair,
        chosen=replace(pair.chosen, prompt_ids=prompt_ids),
        rejected=replace(pair.rejected, prompt_ids=prompt_ids),
    )
