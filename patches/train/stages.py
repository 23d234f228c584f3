"""From rows to losses: what one forward pass of each stage computes.

Each loss is a share: the sum over the rows at hand, divided by the total of the whole step. Adding the
shares of several forward passes, or of several processes, gives the loss of the step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from patches.train.benign import benign_kl
from patches.train.contexts import ALONE, Context
from patches.train.data import PairSample, Sample
from patches.train.dpo import dpo_loss, dpo_margins
from patches.train.forward import PrefixKv, answer_logits, collate
from patches.train.sft import answer_logprobs, sft_loss
from patches.train.soft_prefix import SoftPrefix

#: A share of the loss, and what else is worth telling, as shares too.
Shares = tuple[torch.Tensor, Mapping[str, torch.Tensor]]


class Objective(Protocol):
    """Something to minimise over rows."""

    def __len__(self) -> int:
        """Count the rows."""

    def length_of(self, row: int) -> int:
        """Give the tokens of a row, padding excluded."""

    def total_of(self, rows: Sequence[int]) -> int:
        """Count what the loss is a mean over."""

    def shares(self, rows: Sequence[int], prefix: SoftPrefix, context: Context, total: int) -> Shares:
        """Compute the shares of some rows."""


class Sft:
    """Learn to give the chosen answers."""

    def __init__(self, network: Any, samples: Sequence[PairSample]) -> None:
        self._network = network
        self._samples = [pair.chosen for pair in samples]

    def __len__(self) -> int:
        return len(self._samples)

    def length_of(self, row: int) -> int:
        """Give the tokens of a row."""
        return len(self._samples[row])

    def total_of(self, rows: Sequence[int]) -> int:
        """Count tokens of answers."""
        return sum(len(self._samples[row].answer_ids) for row in rows)

    def shares(self, rows: Sequence[int], prefix: SoftPrefix, context: Context, total: int) -> Shares:
        """Compute the mean negative log-likelihood of a token."""
        batch = collate([self._samples[row] for row in rows], prefix.values.device)
        output = answer_logits(self._network, prefix.patched(context), batch)
        return sft_loss(output.logits, output.labels, output.mask) / total, {}


class Dpo:
    """Learn to prefer the chosen answers, without leaving the reference far behind."""

    def __init__(
        self,
        network: Any,
        samples: Sequence[PairSample],
        beta: float,
        reference: "Reference",
    ) -> None:
        self._network = network
        self._samples = samples
        self._beta = beta
        self._reference = reference

    def __len__(self) -> int:
        return len(self._samples)

    def length_of(self, row: int) -> int:
        """Give the tokens of a row's longer half."""
        return max(len(self._samples[row].chosen), len(self._samples[row].rejected))

    def total_of(self, rows: Sequence[int]) -> int:
        """Count pairs."""
        return len(rows)

    def shares(self, rows: Sequence[int], prefix: SoftPrefix, context: Context, total: int) -> Shares:
        """Compute the mean loss, margin and accuracy of a pair."""
        pairs = [self._samples[row] for row in rows]
        chosen, rejected = pair_logprobs(self._network, prefix.patched(context), pairs)
        margins = dpo_margins(chosen, rejected, *self._reference.of_rows(rows, pairs, context), self._beta)
        told = {"margin": margins.detach().sum() / total, "accuracy": (margins > 0).sum() / total}
        return dpo_loss(margins) / total, told


class Benign:
    """Stay silent on benign prompts."""

    def __init__(self, network: Any, samples: Sequence[Sample]) -> None:
        self._network = network
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def length_of(self, row: int) -> int:
        """Give the tokens of a row."""
        return len(self._samples[row])

    def total_of(self, rows: Sequence[int]) -> int:
        """Count tokens of answers."""
        return sum(len(self._samples[row].answer_ids) for row in rows)

    def shares(self, rows: Sequence[int], prefix: SoftPrefix, context: Context, total: int) -> Shares:
        """Compute the mean divergence at a token, from the context without the learned prefix."""
        kv, unpatched = prefix.patched(context), prefix.unpatched(context)
        loss = prefix.values.new_zeros(())
        for samples in _chats_and_documents([self._samples[row] for row in rows]):
            batch = collate(samples, prefix.values.device)
            with torch.no_grad():
                base = answer_logits(self._network, unpatched, batch)
            output = answer_logits(self._network, kv, batch)
            loss = loss + benign_kl(base.logits, output.logits, output.mask)
        return loss / total, {}


class Reference:
    """The policy that DPO must not leave, as log-probabilities of every pair.

    Those of the prefix alone are computed once for all, before the first step. Among other patches they
    depend on the context and are computed when needed; the teacher knows no context. ``none`` holds the
    answers against each other alone, as CPO does (arXiv 2401.08417): zeros.
    """

    def __init__(self, network: Any, kind: str, alone: torch.Tensor, prefix: SoftPrefix) -> None:
        """Take what was computed before.

        Args:
            network: The frozen model.
            kind: ``sft``, ``base``, ``teacher`` or ``none``.
            alone: ``[2, num_rows]`` in float32: log-probabilities of chosen and rejected answers.
            prefix: The prefix at the beginning of the stage, frozen.
        """
        self._network = network
        self._kind = kind
        self._alone = alone
        self._prefix = prefix

    def of_rows(
        self, rows: Sequence[int], pairs: Sequence[PairSample], context: Context
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the log-probabilities of chosen and rejected answers, ``[B]`` each."""
        if context == ALONE or self._kind in ("teacher", "none"):
            chosen, rejected = self._alone[:, list(rows)]
            return chosen, rejected
        with torch.no_grad():
            is_patched = self._kind == "sft"
            kv = self._prefix.patched(context) if is_patched else self._prefix.unpatched(context)
            return pair_logprobs(self._network, kv, pairs)


def _chats_and_documents(samples: Sequence[Sample]) -> list[list[Sample]]:
    # Chats begin alike, and what they begin with is read once for all of them: one document among them
    # would end that.
    parts = [[s for s in samples if (len(s.prompt_ids) == 1) == is_document] for is_document in (False, True)]
    return [part for part in parts if part]


def pair_logprobs(
    network: Any, kv: PrefixKv | None, pairs: Sequence[PairSample]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the log-probabilities of chosen and rejected answers behind a prefix, ``[B]`` each."""
    device = network.get_input_embeddings().weight.device
    batch = collate([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], device)
    output = answer_logits(network, kv, batch)
    chosen, rejected = answer_logprobs(output.logits, output.labels, output.mask).chunk(2)
    return chosen, rejected
