"""What is learned: a soft prefix, among other patches or alone, in front of a frozen model.

Two kinds. ``prompt`` learns input embeddings, whose K/V the model computes; it can stand beside other
patches. ``prefix`` learns the K/V of every layer itself (PEFT's prefix tuning and Cartridge), so it can
only stand alone. Values are float32, whatever the model computes in.
"""

from collections.abc import Sequence
from typing import Any

import torch

from patches.errors import TrainingError
from patches.train.contexts import Context
from patches.train.forward import PrefixKv, prefix_kv


class SoftPrefix:
    """The learned values, and the K/V of a context with and without them."""

    def __init__(
        self, network: Any, kind: str, values: torch.Tensor, others: Sequence[torch.Tensor] = ()
    ) -> None:
        """Take start values.

        Args:
            network: The frozen model.
            kind: ``prompt`` or ``prefix``.
            values: ``[N, hidden_size]``, or ``[L, 2, N, H_kv, D]`` for ``prefix``.
            others: Embeddings ``[N_i, hidden_size]`` of the patches to compose with.

        Raises:
            TrainingError: K/V can't be composed.
        """
        if kind == "prefix" and others:
            raise TrainingError(
                "compose_with: expected kind prompt, got prefix; K/V can't stand behind a patch"
            )
        device = network.get_input_embeddings().weight.device
        self.kind = kind
        self.values = torch.nn.Parameter(values.detach().to(device, torch.float32, copy=True))
        self._network = network
        self._others = [rows.to(device, torch.float32) for rows in others]

    @property
    def num_others(self) -> int:
        """How many patches it may be composed with."""
        return len(self._others)

    def frozen(self, values: torch.Tensor) -> "SoftPrefix":
        """Give a prefix of other values that does not learn."""
        other = SoftPrefix(self._network, self.kind, values, self._others)
        other.values.requires_grad_(False)
        return other

    def patched(self, context: Context) -> PrefixKv:
        """Compute the K/V of the context with the learned prefix in its place."""
        if self.kind == "prefix":
            return _split(self.values, self._network.get_input_embeddings().weight.dtype)
        rows = [self._others[i] for i in context.before]
        rows += [self.values, *(self._others[i] for i in context.after)]
        return prefix_kv(self._network, torch.cat(rows))

    def unpatched(self, context: Context) -> PrefixKv | None:
        """Compute the K/V of the context without the learned prefix; ``None`` where nothing is left."""
        if not context.others:
            return None
        with torch.no_grad():
            return prefix_kv(self._network, torch.cat([self._others[i] for i in context.others]))


def _split(values: torch.Tensor, dtype: torch.dtype) -> PrefixKv:
    # [L, 2, N, H, D] -> per layer [1, H, N, D]
    layers = values.to(dtype).transpose(2, 3)
    return [(layer[0][None], layer[1][None]) for layer in layers]
