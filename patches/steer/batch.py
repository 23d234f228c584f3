"""A batch whose rows are steered, each by its own vector or not at all.

``with steered(network, rows) as batch: network(...)`` or ``network.generate(...)``: the model's passes within
the context belong to one batch, as a prefill and the steps after it do, behind a cache that holds a prefix or
not, padded on either side. Rows that no vector acts on keep the model's own values to the last bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from patches.steer.arithmetic import steer
from patches.steer.conditions import Scoring
from patches.steer.network import hooked
from patches.steer.vector import Vector


@dataclass(frozen=True, eq=False)
class SteeredRow:
    """One row of a batch, and what acts on it."""

    vector: Vector
    #: Tokens of prefix and prompt; the answer begins behind them.
    num_prompt: int
    #: Tokens of a prefix patch in front, which are never steered.
    num_prefix: int = 0


class SteeredBatch:
    """Rows at work; afterwards, what happened to them."""

    def __init__(self, rows: Sequence[SteeredRow | None]) -> None:
        self._rows = rows
        #: Per row; None where it has no condition.
        self.scorings = [_scoring(row) for row in rows]
        #: Tokens of each row that were steered.
        self.num_steered = [0] * len(rows)
        self._positions = torch.empty(0)
        self._is_real = torch.empty(0)
        #: For each vector, the tokens of this pass that it acts on, ``[B, T]``.
        self._acts: dict[Vector, torch.Tensor] = {}

    def before_pass(self, positions: torch.Tensor, is_real: torch.Tensor) -> None:
        """See ``Acting``."""
        self._positions, self._is_real = positions, is_real
        self._acts = {}
        for index in range(len(self._rows)):
            self._act(index)

    def after_layer(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """See ``Acting``."""
        for index, scoring in enumerate(self.scorings):
            if scoring is not None and scoring.is_met is None:
                scoring.read(layer, states[index], self._positions[index], self._is_real[index])
                self._act(index)
        return self._steered("residual", layer, states)

    def after_mlp(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """See ``Acting``."""
        return self._steered("mlp", layer, states)

    def _steered(self, site: str, layer: int, states: torch.Tensor) -> torch.Tensor:
        for vector, acts in self._acts.items():
            if vector.steering.site == site and layer in vector.layers:
                changed = steer(states[acts], vector.values[layer], vector.steering)
                states = states.index_put((acts,), changed)
        return states

    def _act(self, index: int) -> None:
        """Mark the tokens of a row that its vector acts on, as far as that is decided."""
        row, scoring = self._rows[index], self.scorings[index]
        if row is None or (scoring is not None and (scoring.condition.shadow or not scoring.is_met)):
            return
        first = row.num_prefix if row.vector.steering.tokens == "all" else row.num_prompt - 1
        tokens = self._is_real[index] & (self._positions[index] >= first)
        if num_tokens := int(tokens.sum()):
            acts = self._acts.setdefault(row.vector, torch.zeros_like(self._is_real))
            acts[index] = tokens
            self.num_steered[index] += num_tokens


@contextmanager
def steered(network: Any, rows: Sequence[SteeredRow | None]) -> Iterator[SteeredBatch]:
    """Steer the rows of one batch.

    Args:
        network: A transformers model.
        rows: Of the batch, in order; None for one that is left alone.

    Raises:
        ModelUnusable: The model's architecture can't be steered.
    """
    batch = SteeredBatch(rows)
    with hooked(network, batch):
        yield batch


def _scoring(row: SteeredRow | None) -> Scoring | None:
    if row is None or row.vector.condition is None:
        return None
    assert row.vector.probes is not None
    return Scoring(row.vector.condition, row.vector.probes, row.num_prefix, row.num_prompt)
