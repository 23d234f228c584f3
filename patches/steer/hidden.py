"""Hidden states as makers of vectors and conditions read them: behind each layer, pooled over tokens."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from patches.steer.network import hooked, layers_of

#: Padded tokens of one pass: what a pass needs beside the weights grows with them.
_MAX_TOKENS = 2048

#: Told the number of texts that are read, and of all.
Tell = Callable[[int, int], None]


class _Enough(Exception):
    """Ends a pass behind the last layer that is wanted."""


@dataclass(frozen=True)
class Pool:
    """Which tokens of a text are averaged."""

    #: The last so many; all of them where ``None``.
    num_last: int | None = None

    def of(self, states: torch.Tensor, length: int) -> torch.Tensor:
        """Average ``[T, d]``, of which ``length`` tokens are real, in float32."""
        first = 0 if self.num_last is None else max(0, length - self.num_last)
        return states[first:length].float().mean(0)


@dataclass
class _Collector:
    """Pools what a pass leaves behind some layers, layer by layer, and ends it there; keeps no token."""

    layers: Collection[int]
    pools: Sequence[Pool]
    #: Of each layer, ``[rows, pools, d]`` float32.
    pooled: list[torch.Tensor] = field(default_factory=list)
    _lengths: Sequence[int] = ()

    def before_pass(self, positions: torch.Tensor, is_real: torch.Tensor) -> None:
        self.pooled, self._lengths = [], is_real.sum(1).tolist()

    def after_layer(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        if layer in self.layers:
            rows = [
                torch.stack([pool.of(row, length) for pool in self.pools])
                for row, length in zip(states, self._lengths, strict=True)
            ]
            self.pooled.append(torch.stack(rows).cpu())
        if len(self.pooled) == len(self.layers):
            raise _Enough
        return states

    def after_mlp(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        return states


MEAN, LAST, LAST_FOUR, LAST_SIXTEEN = Pool(), Pool(1), Pool(4), Pool(16)


def pooled_states(
    network: Any,
    rows: Sequence[Sequence[int]],
    pools: Sequence[Pool],
    tell: Tell = lambda done, total: None,
    layers: Collection[int] | None = None,
) -> torch.Tensor:
    """Read texts and pool what each layer makes of them.

    What is held at a time, beside the weights and the result, is one pass over ``_MAX_TOKENS`` tokens, or
    over one text that is longer.

    Args:
        network: A transformers model.
        rows: Token ids; none is empty.
        pools: How tokens are averaged.
        tell: Told of progress.
        layers: Whose output is wanted; that of all where ``None``.

    Returns:
        ``[rows, pools, layers, d]`` float32 on the CPU.

    Raises:
        ModelUnusable: The model's architecture can't be steered.
    """
    embeddings = network.get_input_embeddings().weight
    # Rows of like length side by side need little padding.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    wanted = range(len(layers_of(network))) if layers is None else layers
    collector, num_done = _Collector(wanted, pools), 0
    found = torch.empty(len(rows), len(pools), len(wanted), embeddings.shape[1])
    with torch.inference_mode(), hooked(network, collector):
        for part in _batches([len(rows[index]) for index in order]):
            indices = order[part]
            width = max(len(rows[index]) for index in indices)
            ids = torch.tensor(
                [[*rows[i], *[0] * (width - len(rows[i]))] for i in indices], device=embeddings.device
            )
            mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in indices])
            with suppress(_Enough):
                network.get_decoder()(input_ids=ids, attention_mask=mask.to(ids.device), use_cache=False)
            found[indices] = torch.stack(collector.pooled, 2)
            num_done += len(indices)
            tell(num_done, len(rows))
    return found


def _batches(lengths: Sequence[int]) -> list[slice]:
    """Cut rising lengths into parts of at most ``_MAX_TOKENS`` padded tokens, or of one row."""
    parts, start = [], 0
    for end, length in enumerate(lengths):
        if end > start and (end + 1 - start) * length > _MAX_TOKENS:
            parts.append(slice(start, end))
            start = end
    return [*parts, slice(start, len(lengths))]
