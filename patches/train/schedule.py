"""Which rows a step takes and how large it is: pure functions of seed and step.

Nothing here has a state, so a run that is resumed at step k continues exactly as one that never stopped.
"""

import hashlib
import math

import torch


def num_steps(num_rows: int, rows_per_step: int, epochs: int) -> int:
    """Return the steps of a stage; the last step of an epoch may be smaller."""
    return math.ceil(num_rows / rows_per_step) * epochs


def rows_of_step(num_rows: int, rows_per_step: int, step: int, key: str) -> list[int]:
    """Return the rows of a step: each row once in an epoch, in an order of the epoch's own.

    Args:
        num_rows: Rows there are.
        rows_per_step: Rows a step takes.
        step: From 0.
        key: Names what is shuffled and the run's seed.
    """
    steps_per_epoch = math.ceil(num_rows / rows_per_step)
    epoch, place = divmod(step, steps_per_epoch)
    order = _permutation(num_rows, f"{key}:{epoch}")
    return order[place * rows_per_step : (place + 1) * rows_per_step]


def sample_rows(num_rows: int, limit: int | None, key: str) -> list[int]:
    """Choose rows for a whole run, in their order; all of them where ``limit`` is ``None`` or no less."""
    return sorted(_permutation(num_rows, key)[:limit])


def learning_rate(step: int, total: int, peak: float, schedule: str, warmup: float) -> float:
    """Return the learning rate of a step: a linear rise to the peak, then what the schedule says.

    Args:
        step: From 0 to ``total - 1``.
        total: Steps of the stage.
        peak: The highest rate.
        schedule: ``constant``, ``linear`` or ``cosine``; the latter two reach 0 after the last step.
        warmup: Share of the steps that rise.

    Returns:
        For 10 steps, peak 1 and no warm-up, step 5 of ``linear`` gives 0.5, and so does ``cosine``.
    """
    num_rising = math.ceil(total * warmup)
    if step < num_rising:
        return peak * (step + 1) / (num_rising + 1)
    progress = (step - num_rising) / max(1, total - num_rising)
    if schedule == "linear":
        return peak * (1 - progress)
    return peak * (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else peak


def _permutation(num_rows: int, key: str) -> list[int]:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    order: list[int] = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed)).tolist()
    return order
