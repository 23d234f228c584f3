"""What is learned: a soft prefix, among other patches or alone, in front of a frozen model.

Two kinds. ``prompt`` learns input embeddings, whose K/V the model computes, behind those of other patches
where there are some: the form of ``policypatch compose``. ``prefix`` learns the K/V of every layer itself
(PEFT's prefix tuning and Cartridge), which can't be computed behind anything; among other patches their K/V
are laid side by side, as a server joins them. Values are float32, whatever the model computes in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from patches.join import join_kv, rotary_of_network
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
            others: The same of the patches to compose with, each with its own N.

        Raises:
            ComposeError: ``prefix`` among others, and this model's keys can't be moved.
        """
        device = network.get_input_embeddings().weight.device
        self.kind = kind
        self.values = torch.nn.Parameter(values.detach().to(device, torch.float32, copy=True))
        self._network = network
        self._others = [other.to(device, torch.float32) for other in others]
        is_joined = kind == "prefix" and len(others) > 0
        self._rotary = rotary_of_network(network, values.shape[-1]) if is_joined else None

    @property
    def num_others(self) -> int:
        """How many patches it may be composed with."""
        return len(self._others)

    def frozen(self, values: torch.Tensor) -> "SoftPrefix":
        """Return a prefix of other values, which don't learn."""
        other = SoftPrefix(self._network, self.kind, values, self._others)
        other.values.requires_grad_(False)
        return other

    def patched(self, context: Context) -> PrefixKv:
        """Compute the K/V of the context with the learned prefix in its place."""
        before, after = ([self._others[i] for i in side] for side in (context.before, context.after))
        return self._kv([*before, self.values, *after])

    def unpatched(self, context: Context) -> PrefixKv | None:
        """Compute the K/V of the context without the learned prefix; ``None`` where nothing is left."""
        if not context.others:
            return None
        with torch.no_grad():
            return self._kv([self._others[i] for i in context.others])

    def _kv(self, parts: Sequence[torch.Tensor]) -> PrefixKv:
        if self.kind == "prompt":
            return prefix_kv(self._network, torch.cat(list(parts)))
        kv = parts[0] if self._rotary is None else join_kv(parts, self._rotary)
        return _split(kv, self._network.get_input_embeddings().weight.dtype)


@dataclass(frozen=True)
class PrefixForm:
    """Soft prefixes of one run: what they have in common."""

    network: Any
    #: ``prompt`` or ``prefix``.
    kind: str
    #: The values of the patches to compose with.
    others: Sequence[torch.Tensor]
    #: Makes the start values; a run that is resumed needs none.
    make_start: Callable[[], torch.Tensor]

    def start(self) -> torch.Tensor:
        """Return the values that the first step begins with."""
        return self.make_start()

    def learned(self, values: torch.Tensor) -> SoftPrefix:
        """Return a prefix of these values."""
        return SoftPrefix(self.network, self.kind, values, self.others)


def _split(values: torch.Tensor, dtype: torch.dtype) -> PrefixKv:
    # [L, 2, N, H, D] -> per layer [1, H, N, D]
    layers = values.to(dtype).transpose(2, 3)
    return [(layer[0][None], layer[1][None]) for layer in layers]
