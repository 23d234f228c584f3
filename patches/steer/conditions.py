"""Scores of requests as their prompts are read, and whether each condition is met.

The score of a token is the sum of one dot product at each of a probe's layers; that of a request is the
probe's bias and the mean over the prompt's tokens, or over the last few. Everything is float32. A
prompt may be read in several passes; the decision falls in the one that holds its last token.
"""

from dataclasses import dataclass, field

import torch

from patches.kinds.condition import Condition


@dataclass
class Scoring:
    """One request's way to a decision."""

    condition: Condition
    #: ``[rows, d]``.
    probes: torch.Tensor
    #: Where the prompt's tokens begin, behind a prefix, and where they end.
    num_prefix: int
    num_prompt: int
    #: What the tokens read so far add up to, per probe.
    sums: list[torch.Tensor] = field(default_factory=list)
    #: Per probe, bias included; empty before the decision.
    scores: tuple[float, ...] = ()

    @property
    def is_met(self) -> bool | None:
        """Whether the condition is met; None before the decision."""
        if not self.scores:
            return None
        each = [s > p.threshold for s, p in zip(self.scores, self.condition.probes, strict=True)]
        return any(each) if self.condition.combine == "any" else all(each)

    def read(self, layer: int, states: torch.Tensor, positions: torch.Tensor, is_real: torch.Tensor) -> None:
        """Score one pass's output of a layer.

        Args:
            layer: Whose output it is.
            states: ``[T, d]``.
            positions: ``[T]``.
            is_real: ``[T]``, false for padding.
        """
        if self.scores:
            return
        row = 0
        self.sums = self.sums or [torch.zeros((), device=states.device) for _ in self.condition.probes]
        for index, probe in enumerate(self.condition.probes):
            if layer in probe.layers:
                first = probe.first_token(self.num_prefix, self.num_prompt)
                counts = is_real & (positions >= first) & (positions < self.num_prompt)
                of_tokens = states[counts].float() @ self.probes[row + probe.layers.index(layer)]
                self.sums[index] = self.sums[index] + of_tokens.sum()
            row += len(probe.layers)
        if layer == self.condition.last_layer and bool((is_real & (positions == self.num_prompt - 1)).any()):
            self.scores = tuple(self._score(index) for index in range(len(self.sums)))

    def _score(self, index: int) -> float:
        probe = self.condition.probes[index]
        num_tokens = self.num_prompt - probe.first_token(self.num_prefix, self.num_prompt)
        return float(self.sums[index] / num_tokens) + probe.bias
