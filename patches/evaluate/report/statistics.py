"""Figures over items, with bootstrap confidence intervals.

Items are drawn anew with replacement, the same draw for both arms of a comparison, so that a difference is
judged on paired items. Percentile intervals, 95 %, seeded: equal input gives equal intervals. A share that is
0 or 1 over all items can't be resampled into anything else: its interval is Wilson's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from patches.evaluate.measures.measure import Value

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
_CHUNK = 200
#: The normal distribution's quantile for ``CONFIDENCE``.
_Z = 1.959964


@dataclass(frozen=True)
class Figure:
    """A metric over n items."""

    value: float | None
    n: int
    #: ``None`` where fewer than two items carry weight.
    low: float | None
    high: float | None


def figure(values: Sequence[Value], *, is_exponential: bool, seed: int = 0) -> Figure:
    """Compute a metric and its interval; an item of weight 0 counts for nothing."""
    rows = np.array([v for v in values if v[1] > 0], dtype=float).reshape(-1, 2)
    if len(rows) == 0:
        return Figure(None, 0, None, None)
    value = float(_ratio(rows.sum(axis=0), is_exponential))
    if len(rows) < 2:
        return Figure(value, len(rows), None, None)
    if not is_exponential and value in (0.0, 1.0) and (rows[:, 0] == value * rows[:, 1]).all():
        return _wilson(value, len(rows))
    low, high = _interval(_resampled(rows[None], is_exponential, seed)[0])
    return Figure(value, len(rows), low, high)


def difference(
    arm: Mapping[str, Value], base: Mapping[str, Value], *, is_exponential: bool, seed: int = 0
) -> Figure:
    """Compute arm minus base over the items that both have, by id."""
    ids = [i for i in arm if i in base and (arm[i][1] > 0 or base[i][1] > 0)]
    rows = np.array([[arm[i] for i in ids], [base[i] for i in ids]], dtype=float).reshape(2, -1, 2)
    sums = rows.sum(axis=1)
    if not ids or (sums[:, 1] == 0).any():
        return Figure(None, len(ids), None, None)
    value = float(_ratio(sums[0], is_exponential) - _ratio(sums[1], is_exponential))
    if len(ids) < 2:
        return Figure(value, len(ids), None, None)
    drawn = _resampled(rows, is_exponential, seed)
    low, high = _interval(drawn[0] - drawn[1])
    return Figure(value, len(ids), low, high)


def _wilson(value: float, n: int) -> Figure:
    width = _Z**2 / (n + _Z**2)
    return Figure(value, n, 1 - width if value else 0.0, 1.0 if value else width)


def _resampled(rows: np.ndarray, is_exponential: bool, seed: int) -> np.ndarray:
    """Draw items anew: ``[S, n, 2]`` -> ``[S, NUM_RESAMPLES]``, one draw for all S."""
    generator = np.random.default_rng(seed)
    n = rows.shape[1]
    parts = []
    for start in range(0, NUM_RESAMPLES, _CHUNK):
        picked = generator.integers(0, n, size=(min(_CHUNK, NUM_RESAMPLES - start), n))
        parts.append(_ratio(rows[:, picked].sum(axis=2), is_exponential))
    return np.concatenate(parts, axis=1)


def _ratio(sums: np.ndarray, is_exponential: bool) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        means = sums[..., 0] / sums[..., 1]
        return np.asarray(np.exp(means) if is_exponential else means)


def _interval(drawn: np.ndarray) -> tuple[float | None, float | None]:
    # A draw may hit items without weight only.
    finite = drawn[np.isfinite(drawn)]
    if len(finite) == 0:
        return None, None
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(finite, [tail, 100 - tail])
    return float(low), float(high)


def relative_change(value: float | None, base: float | None) -> float | None:
    """Return (value - base) / base; ``None`` where there is no base to compare with."""
    if value is None or base is None or base == 0 or not math.isfinite(value / base):
        return None
    return value / base - 1
