"""Which weights are chosen by their scores: a share of all, over all tensors together.

``top`` takes those of the largest scores, ``bottom`` of the smallest, ``random`` any: the other two are what
``top`` is compared with. Among equal ones the first by name and position are taken, so that there are exactly
as many as the share says. One tensor of scores is in memory at a time.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from patches.critical.scores import Scores
from patches.deltas.magnitude import chosen, largest
from patches.deltas.sides import DEFAULT_SHARE, MAX_SHARE, RANDOM, TOP
from patches.errors import ScoresError

#: The largest finite float32, as its bits.
_LARGEST_BITS = 0x7F7FFFFF


@dataclass(frozen=True)
class Selection:
    """Chosen weights."""

    #: Of each tensor that has some: int64, rising, places in the flattened tensor.
    positions: Mapping[str, torch.Tensor]
    #: Of all tensors that have scores, chosen or not.
    shapes: Mapping[str, tuple[int, int]]
    #: The score that parts them from the rest; of ``random``, no score at all.
    threshold: float | None

    @property
    def num_chosen(self) -> int:
        """How many weights are chosen."""
        return sum(len(places) for places in self.positions.values())

    def share_of(self, name: str) -> float:
        """Return how much of a tensor is chosen."""
        rows, columns = self.shapes[name]
        return len(self.positions.get(name, ())) / (rows * columns)


def select(scores: Scores, share: float = DEFAULT_SHARE, side: str = TOP, seed: int = 0) -> Selection:
    """Choose a share of the weights that have scores.

    Args:
        scores: Of a model.
        share: More than 0, at most a quarter.
        side: One of ``SIDES``.
        seed: Of ``random``.

    Raises:
        ScoresError: The share is out of range, or scores are not finite.
    """
    if not 0 < share <= MAX_SHARE:
        raise ScoresError(
            f"share: expected more than 0, at most {MAX_SHARE:g}, got {share:g}; the paper takes 0.01"
        )

    def values() -> Iterator[torch.Tensor]:
        return (_ranked(scores, name, side, seed) for name in scores.tensors)

    threshold = largest(values, max(1, round(share * scores.num_weights)))
    positions, num_equal = {}, threshold.num_equal
    for name in scores.tensors:
        places, num_taken = chosen(_ranked(scores, name, side, seed), threshold, num_equal)
        num_equal -= num_taken
        if len(places):
            positions[name] = places
    shapes = {name: (tensor.shape[0], tensor.shape[1]) for name, tensor in scores.tensors.items()}
    return Selection(positions, shapes, _threshold(threshold.value, side))


def _ranked(scores: Scores, name: str, side: str, seed: int) -> torch.Tensor:
    """Return float32 numbers, not negative, of which the largest are chosen."""
    if side == RANDOM:
        key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1
        generator = torch.Generator().manual_seed(key)
        return torch.rand(scores.tensors[name].size, generator=generator)
    tensor = scores.tensors[name].read().float().reshape(-1)
    if not bool(torch.isfinite(tensor).all()) or bool((tensor < 0).any()):
        raise ScoresError(f"{name}: expected finite scores of at least 0, got others; make the scores anew")
    return tensor if side == TOP else _turned(tensor)


def _turned(tensor: torch.Tensor) -> torch.Tensor:
    # The bits of numbers that are not negative are in the numbers' own order. -0.0 has the highest bit.
    return (_LARGEST_BITS - tensor.abs().view(torch.int32)).view(torch.float32)


def _threshold(value: float, side: str) -> float | None:
    if side == RANDOM:
        return None
    return value if side == TOP else float(_turned(torch.tensor([value], dtype=torch.float32)))
