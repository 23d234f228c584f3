"""How well scores tell positives from negatives: the ROC curve, its area, a threshold, with intervals.

Intervals are of 95 %: Wilson's for shares, percentiles of seeded bootstrap draws for the rest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 1000
_Z = 1.959964

Scores = np.ndarray


@dataclass(frozen=True)
class Measured:
    """A value with its interval."""

    value: float
    low: float
    high: float


def share(num: int, total: int) -> Measured:
    """Return ``num`` of ``total`` as a share with Wilson's interval; 0 of 0 is unknown: 0 to 1."""
    if total == 0:
        return Measured(math.nan, 0.0, 1.0)
    value, spread = num / total, _Z**2 / total
    middle = (value + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(value * (1 - value) / total + spread / (4 * total)) / (1 + spread)
    low = 0.0 if num == 0 else middle - half
    return Measured(value, low, 1.0 if num == total else middle + half)


def crossing(scores: Scores, threshold: float) -> Measured:
    """Return the share of scores above a threshold."""
    return share(int((scores > threshold).sum()), len(scores))


def area(positives: Scores, negatives: Scores) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative; a tie is half.

    For positives (3, 1) and negatives (2, 0) it is 3/4.
    """
    ranked = np.sort(negatives)
    below = np.searchsorted(ranked, positives, "left") + np.searchsorted(ranked, positives, "right")
    return float(below.sum()) / (2 * len(positives) * len(negatives))


def early_area(positives: Scores, negatives: Scores, rate: float) -> float:
    """Return the mean share of positives above the line, over lines that up to ``rate`` of negatives cross.

    For positives (5, 3, 1) and negatives (4, 2, 0, 0) at 0.5 it is the mean of 1/3 and 2/3.
    """
    highest = np.sort(negatives)[::-1][: max(1, round(rate * len(negatives)))]
    ranked = np.sort(positives)
    above = len(ranked) - np.searchsorted(ranked, highest, "right")
    return float(above.mean()) / len(ranked)


def measured_area(positives: Scores, negatives: Scores, seed: int = 0) -> Measured:
    """Return the area with its interval; both sides are drawn anew."""
    generator = np.random.default_rng(seed)
    drawn = [
        area(generator.choice(positives, len(positives)), generator.choice(negatives, len(negatives)))
        for _ in range(NUM_RESAMPLES)
    ]
    return Measured(area(positives, negatives), *_tails(drawn))


def threshold_at(negatives: Scores, rate: float) -> float:
    """Return the lowest threshold that at most a share ``rate`` of the negatives exceeds.

    Of (4, 3, 2, 1) at 0.25 it is 3: one of the four is above.
    """
    falling = np.sort(negatives)[::-1]
    return float(falling[min(int(rate * len(falling)), len(falling) - 1)])


def measured_threshold(negatives: Scores, rate: float, seed: int = 0) -> Measured:
    """Return the threshold with its interval."""
    generator = np.random.default_rng(seed)
    drawn = [threshold_at(generator.choice(negatives, len(negatives)), rate) for _ in range(NUM_RESAMPLES)]
    return Measured(threshold_at(negatives, rate), *_tails(drawn))


def curve(positives: Scores, negatives: Scores) -> list[tuple[float, float]]:
    """Return the ROC curve: shares of negatives and positives above each threshold, from none to all."""
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]
    return [
        (0.0, 0.0),
        *((float((negatives >= t).mean()), float((positives >= t).mean())) for t in thresholds),
    ]


def _tails(drawn: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
