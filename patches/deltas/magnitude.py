"""The k-th largest magnitude of more values than fit into memory, exactly.

The bits of float32 numbers that are not negative, read as integers, are in the numbers' own order. So two
passes are enough: one counts magnitudes by their upper 16 bits, the other, among those with the upper bits of
the one that is sought, by their lower 16.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

_BINS = 2**16
#: Values counted together, for which integers of twice their size are needed.
_PIECE = 2**22

#: Yields float32 tensors, each time anew; the same ones in the same order.
Values = Callable[[], Iterable[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Threshold:
    """What the largest values have in common."""

    #: All that are larger belong to them.
    value: float
    #: How many that are equal to it do, too.
    num_equal: int


def largest(values: Values, k: int) -> Threshold:
    """Return which values are the k of the largest magnitude; never one that is zero.

    Args:
        values: Where they are; finite. They are gone through twice.
        k: How many; where fewer are not zero, all of those are.
    """
    upper = _counts(values, lambda bits: bits >> 16)
    upper_bin, above = _bin_of(upper, k)
    lower = _counts(values, lambda bits: bits[(bits >> 16) == upper_bin] & (_BINS - 1))
    lower_bin, above_in_bin = _bin_of(lower, k - above)
    bits = upper_bin << 16 | lower_bin
    value = float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
    num_equal = min(int(lower[lower_bin]), k - above - above_in_bin) if value else 0
    return Threshold(value, num_equal)


def chosen(magnitudes: torch.Tensor, threshold: Threshold, num_equal: int) -> tuple[torch.Tensor, int]:
    """Return the positions of those that belong to the largest, rising, and how many of them are equal to it.

    Args:
        magnitudes: float32, 1-D.
        threshold: What ``largest`` returned.
        num_equal: How many equal ones may still be taken; the first ones are.
    """
    is_chosen = magnitudes > threshold.value
    equal = (magnitudes == threshold.value).nonzero().flatten()[:num_equal]
    is_chosen[equal] = True
    return is_chosen.nonzero().flatten(), len(equal)


def _counts(values: Values, bins_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for tensor in values():
        for piece in torch.split(tensor.reshape(-1), _PIECE):
            bits = piece.abs().view(torch.int32)
            counts += torch.bincount(bins_of(bits), minlength=_BINS)
    return counts


def _bin_of(counts: torch.Tensor, k: int) -> tuple[int, int]:
    """Return the bin of the k-th largest, the lowest where there are fewer, and how many lie above it."""
    from_above = counts.flip(0).cumsum(0)
    index = min(int(torch.searchsorted(from_above, k)), _BINS - 1)
    return _BINS - 1 - index, int(from_above[index] - counts.flip(0)[index])
