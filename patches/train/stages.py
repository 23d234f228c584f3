"""From rows to losses: what one forward pass of each stage computes.

Each loss is a share: the sum over the rows at hand, divided by the total of the whole step. Adding the
shares of several forward passes, or of several processes, gives the loss of the step.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch

from patches.train.benign import benign_kl
from patches.train.contexts import ALONE, Context
from patches.train.data import PairSample, Sample
from patches.train.dpo import dpo_loss, dpo_margins
from patches.train.forward import PrefixKv, answer_logits
from patches.train.learned import Learned
from patches.train.sft import answer_logprobs, sft_loss

#: Memory of the host for what the unpatched model says to benign prompts; what finds no room is read anew.
_MAX_KEPT_BYTES = 1 << 30
#: A share of the loss, and other figures of the step, as shares too.
Shares = tuple[torch.Tensor, Mapping[str, torch.Tensor]]


class Objective(Protocol):
    """Something to minimise over rows."""

    def __len__(self) -> int:
        """Count the rows."""

    def length_of(self, row: int) -> int:
        """Return the tokens of a row, padding excluded."""

    def total_of(self, rows: Sequence[int]) -> int:
        """Count what the loss is a mean over."""

    def shares(self, rows: Sequence[int], learned: Learned, context: Context, total: int) -> Shares:
        """Compute the shares of some rows."""


class Sft:
    """Learn to give the chosen answers."""

    def __init__(self, network: Any, samples: Sequence[PairSample]) -> None:
        self._network = network
        self._samples = [pair.chosen for pair in samples]

    def __len__(self) -> int:
        return len(self._samples)

    def length_of(self, row: int) -> int:
        """Return the tokens of a row."""
        return len(self._samples[row])

    def total_of(self, rows: Sequence[int]) -> int:
        """Count tokens of answers."""
        return sum(len(self._samples[row].answer_ids) for row in rows)

    def shares(self, rows: Sequence[int], learned: Learned, context: Context, total: int) -> Shares:
        """Compute the mean negative log-likelihood of a token."""
        samples = [self._samples[row] for row in rows]
        output = answer_logits(self._network, learned.patched(context), samples)
        return sft_loss(output.logits, output.labels) / total, {}


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
        """Return the tokens of a row's longer half."""
        return max(len(self._samples[row].chosen), len(self._samples[row].rejected))

    def total_of(self, rows: Sequence[int]) -> int:
        """Count pairs."""
        return len(rows)

    def shares(self, rows: Sequence[int], learned: Learned, context: Context, total: int) -> Shares:
        """Compute the mean loss, margin and accuracy of a pair."""
        pairs = [self._samples[row] for row in rows]
        chosen, rejected = pair_logprobs(self._network, learned.patched(context), pairs)
        margins = dpo_margins(chosen, rejected, *self._reference.of_rows(rows, pairs, context), self._beta)
        told = {"margin": margins.detach().sum() / total, "accuracy": (margins > 0).sum() / total}
        return dpo_loss(margins) / total, told


class Benign:
    """Stay silent on benign prompts."""

    def __init__(self, network: Any, samples: Sequence[Sample]) -> None:
        self._network = network
        self._samples = samples
        self._base_logits: dict[int, torch.Tensor] = {}
        self._num_kept = self._count_kept()

    def __len__(self) -> int:
        return len(self._samples)

    def length_of(self, row: int) -> int:
        """Return the tokens of a row."""
        return len(self._samples[row])

    def total_of(self, rows: Sequence[int]) -> int:
        """Count tokens of answers."""
        return sum(len(self._samples[row].answer_ids) for row in rows)

    def shares(self, rows: Sequence[int], learned: Learned, context: Context, total: int) -> Shares:
        """Compute the mean divergence at a token, from the context without the learned prefix."""
        # One after the other: these calls may switch something in the model on and off.
        with torch.no_grad():
            base = self._base(rows, learned.unpatched(context))
        samples = [self._samples[row] for row in rows]
        output = answer_logits(self._network, learned.patched(context), samples)
        return benign_kl(base, output.logits) / total, {}

    def _base(self, rows: Sequence[int], kv: PrefixKv | None) -> torch.Tensor:
        # What the model says by itself never changes. Rows that are kept are read one by one, so that a
        # value is the same to the last bit whatever it is read beside, and whether a run was resumed.
        if kv is not None or any(row >= self._num_kept for row in rows):
            return answer_logits(self._network, kv, [self._samples[row] for row in rows]).logits
        for row in rows:
            if row not in self._base_logits:
                output = answer_logits(self._network, None, [self._samples[row]])
                self._base_logits[row] = output.logits.cpu()
        device = self._network.get_input_embeddings().weight.device
        return torch.cat([self._base_logits[row] for row in rows]).to(device)

    def _count_kept(self) -> int:
        weight = self._network.get_input_embeddings().weight
        bytes_per_token = weight.shape[0] * weight.element_size()
        lengths = accumulate(len(sample.answer_ids) for sample in self._samples)
        return sum(length * bytes_per_token <= _MAX_KEPT_BYTES for length in lengths)


class Reference:
    """The policy that DPO must not leave, as log-probabilities of every pair.

    Those of what was learned, alone, are computed once for all, before the first step. Among other patches
    they depend on the context and are computed when needed; the teacher knows no context. ``none`` holds the
    answers against each other alone, as CPO does (arXiv 2401.08417): zeros.
    """

    def __init__(self, network: Any, kind: str, alone: torch.Tensor, learned: Learned) -> None:
        """Take what was computed before.

        Args:
            network: The frozen model.
            kind: ``sft``, ``base``, ``teacher`` or ``none``.
            alone: ``[2, num_rows]`` in float32: log-probabilities of chosen and rejected answers.
            learned: What was learned before the stage began, frozen.
        """
        self._network = network
        self._kind = kind
        self._alone = alone
        self._learned = learned

    def of_rows(
        self, rows: Sequence[int], pairs: Sequence[PairSample], context: Context
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probabilities of chosen and rejected answers, ``[B]`` each."""
        if context == ALONE or self._kind in ("teacher", "none"):
            chosen, rejected = self._alone[:, list(rows)]
            return chosen, rejected
        with torch.no_grad():
            is_patched = self._kind == "sft"
            kv = (self._learned.patched if is_patched else self._learned.unpatched)(context)
            return pair_logprobs(self._network, kv, pairs)


def pair_logprobs(
    network: Any, kv: PrefixKv | None, pairs: Sequence[PairSample]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities of chosen and rejected answers behind a prefix, ``[B]`` each."""
    # Two answers to one prompt side by side: the prompt is read once.
    samples = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    output = answer_logits(network, kv, samples)
    logprobs = answer_logprobs(output.logits, output.labels, output.rows, len(samples))
    return logprobs[0::2], logprobs[1::2]
