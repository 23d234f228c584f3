"""The tables of conditions, and the ledger in which a prompt's scores and their verdict are kept.

The ledger has a place for every slot of the KV cache, so what a token scored lives as long as its K and V:
however a prompt was cut into chunks, cached, preempted or computed anew, its score is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from steering_kernels.checks import check_condition, check_row, check_size

Pool = Literal["mean", "last"]

#: Probes that one condition may have.
MAX_PROBES = 4

#: Values of ``ConditionTable.uses``: whether a probe reads a layer, and whether that is its first.
UNUSED, OPENS, ADDS = 0, 1, 2

#: Columns of ``ConditionTable.settings``. ``num_last`` is how many of the prompt's last tokens count, which a
#: float32 holds exactly; 0 where there is no probe.
SETTING_COLUMNS = ("num_last", "bias", "threshold")
NO_PROBE, ALL_TOKENS = 0, 2**24

#: Columns of ``ConditionTable.rules``.
RULE_COLUMNS = ("num_needed", "is_shadow", "last_layer")

#: Values of ``ScoreLedger.flags``.
UNDECIDED, NOT_MET, MET = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Probe:
    """One score of a prompt, and the line it is compared with.

    Semantics: a token's score is the sum over ``layers`` of its state after the layer times the layer's row
    of the probe. The prompt's is ``bias`` plus the mean over its tokens, of which ``last`` takes the last
    ``num_tokens``, as far as there are so many; the probe is met where it is above ``threshold``.
    """

    #: Layers of this rank, rising.
    layers: tuple[int, ...]
    pool: Pool = "mean"
    bias: float = 0.0
    threshold: float = 0.0
    #: Of ``last``.
    num_tokens: int = 1

    @property
    def num_last(self) -> int:
        """The most tokens of a prompt that count."""
        return ALL_TOKENS if self.pool == "mean" else self.num_tokens

    @property
    def settings(self) -> tuple[float, float, float]:
        """A row of ``ConditionTable.settings``."""
        return (float(self.num_last), self.bias, self.threshold)


@dataclass(frozen=True, slots=True)
class Condition:
    """What a row of the table holds, for the host."""

    probes: tuple[Probe, ...]
    num_needed: int
    is_shadow: bool

    @property
    def last_layer(self) -> int:
        """The layer after which it is decided."""
        return max(probe.layers[-1] for probe in self.probes)


@dataclass(eq=False)
class ConditionTable:
    """The conditions that a rank can check, a row each; a vector and its condition have the same row."""

    #: ``[L, R, MAX_PROBES, d]`` float32.
    vectors: torch.Tensor
    #: ``[L, R, MAX_PROBES]`` int32: what a layer is to a probe.
    uses: torch.Tensor
    #: ``[R, MAX_PROBES, 3]`` float32, columns as in ``SETTING_COLUMNS``.
    settings: torch.Tensor
    #: ``[R, 3]`` int32, columns as in ``RULE_COLUMNS``.
    rules: torch.Tensor
    #: What the tensors say, for the host.
    conditions: list[Condition | None]

    @classmethod
    def allocate(
        cls, num_layers: int, num_rows: int, hidden_size: int, device: torch.device | str
    ) -> "ConditionTable":
        """Allocate a table without a condition.

        Raises:
            ValueError: a size is below 1.
        """
        check_size("num_layers", num_layers)
        check_size("num_rows", num_rows)
        check_size("hidden_size", hidden_size)
        return cls(
            torch.zeros(num_layers, num_rows, MAX_PROBES, hidden_size, device=device),
            torch.zeros(num_layers, num_rows, MAX_PROBES, dtype=torch.int32, device=device),
            torch.zeros(num_rows, MAX_PROBES, len(SETTING_COLUMNS), device=device),
            torch.zeros(num_rows, len(RULE_COLUMNS), dtype=torch.int32, device=device),
            [None] * num_rows,
        )

    @property
    def device(self) -> torch.device:
        """Where the table lies."""
        return self.vectors.device

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return self.vectors.nbytes + self.uses.nbytes + self.settings.nbytes + self.rules.nbytes

    def put(
        self, row: int, vectors: torch.Tensor, probes: Sequence[Probe], num_needed: int, is_shadow: bool
    ) -> None:
        """Fill a row.

        Args:
            row: from 1 on; what it held is replaced.
            vectors: ``[probe layers, d]`` float32, finite, any device, in the order of the probes, then of
                their layers. Not changed.
            probes: 1 to ``MAX_PROBES``.
            num_needed: probes that have to be met: 1 for any, ``len(probes)`` for all.
            is_shadow: score and decide, and steer nothing.

        Raises:
            ValueError: an argument does not fit.
        """
        num_layers, num_rows, _, hidden_size = self.vectors.shape
        check_row(row, num_rows)
        layers = [probe.layers for probe in probes]
        check_condition(vectors, layers, num_layers, hidden_size, MAX_PROBES, num_needed)
        self.clear(row)
        rows_left = iter(vectors)
        uses = torch.zeros(num_layers, MAX_PROBES, dtype=torch.int32)
        for i, probe in enumerate(probes):
            for layer in probe.layers:
                self.vectors[layer, row, i].copy_(next(rows_left))
                uses[layer, i] = OPENS if layer == probe.layers[0] else ADDS
        self.uses[:, row].copy_(uses)
        self.settings[row, : len(probes)].copy_(torch.tensor([probe.settings for probe in probes]))
        condition = Condition(tuple(probes), num_needed, is_shadow)
        rules = (num_needed, int(is_shadow), condition.last_layer)
        self.rules[row].copy_(torch.tensor(rules, dtype=torch.int32))
        self.conditions[row] = condition

    def clear(self, row: int) -> None:
        """Take a row's condition away: nothing is scored and nothing decided for it.

        Raises:
            ValueError: there is no such row, or it is row 0.
        """
        check_row(row, len(self.conditions))
        self.uses[:, row].zero_()
        self.vectors[:, row].zero_()
        self.settings[row].zero_()
        self.rules[row].zero_()
        self.conditions[row] = None


@dataclass(eq=False)
class ScoreLedger:
    """What is known of the token in each slot of the KV cache."""

    #: ``[num_slots, MAX_PROBES]`` float32: a token's scores; NaN where none was computed.
    scores: torch.Tensor
    #: The same for prompts, bias included, at the slot of the prompt's last token.
    pooled: torch.Tensor
    #: ``[num_slots]`` int8, at the same slots: ``UNDECIDED``, ``NOT_MET`` or ``MET``.
    flags: torch.Tensor

    @classmethod
    def allocate(cls, num_slots: int, device: torch.device | str) -> "ScoreLedger":
        """Allocate an empty ledger.

        Args:
            num_slots: of the KV cache: blocks times the size of a block.
            device: the cache's.

        Raises:
            ValueError: there are no slots.
        """
        check_size("num_slots", num_slots)
        scores = torch.full((num_slots, MAX_PROBES), float("nan"), device=device)
        return cls(scores, scores.clone(), torch.zeros(num_slots, dtype=torch.int8, device=device))

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return self.scores.nbytes + self.pooled.nbytes + self.flags.nbytes
