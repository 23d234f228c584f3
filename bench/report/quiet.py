"""What a sweep measured where other work disturbed it least: the fastest fifth of the rounds of each cell.

Processor time is that of the process alone, and still grows by half where neighbours take caches and memory.
They only ever add. So a low quantile over many short cells says what the work itself takes, and an interval
by resampling the rounds says how well that is known.
"""

import random
from collections.abc import Mapping, Sequence

from bench.load.timing import quantile

#: Of the rounds.
QUIET = 0.2
_NUM_RESAMPLES = 400


def quiet_ratio(
    values: Mapping[tuple[str, int], float], first: Mapping[tuple[str, int], float]
) -> tuple[float, float, float] | None:
    """Return the ratio of two cells' low quantiles, and its 5th and 95th percentile over resampled rounds.

    Args:
        values: (run, round) -> value of one cell.
        first: The same of the cell that it is divided by.

    Returns:
        ``None`` where they have no round in common, or the first one is zero in one.
    """
    rounds = sorted(values.keys() & first.keys())
    if not rounds or min(first[key] for key in rounds) <= 0:
        return None
    rng = random.Random(0)
    resampled = [_ratio(rng.choices(rounds, k=len(rounds)), values, first) for _ in range(_NUM_RESAMPLES)]
    return _ratio(rounds, values, first), quantile(resampled, 0.05), quantile(resampled, 0.95)


def _ratio(
    rounds: Sequence[tuple[str, int]],
    values: Mapping[tuple[str, int], float],
    first: Mapping[tuple[str, int], float],
) -> float:
    return quantile([values[key] for key in rounds], QUIET) / quantile([first[key] for key in rounds], QUIET)
