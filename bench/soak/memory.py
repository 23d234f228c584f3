"""The memory of a server's processes over time: samples by role, and how fast they grow.

A slope is a least-squares line through the samples of one role, in MiB a minute. Its spread is that of the
lines through each third of the time: where they disagree in sign, memory went up and down, and did not grow.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
SAMPLE_S = 2.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Slope:
    """How memory changed, in MiB and MiB a minute."""

    first_mib: float
    last_mib: float
    per_minute: float
    #: Least and greatest of the thirds.
    least: float
    greatest: float

    def as_dict(self) -> dict[str, float]:
        """For records."""
        return {key: round(value, 3) for key, value in vars(self).items()}


@dataclass
class MemorySamples:
    """What was seen: role -> (seconds since the start, bytes)."""

    by_role: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    def add(self, at_s: float, roles: dict[str, int]) -> None:
        """Sample the memory of the processes ``roles`` names by their process id."""
        found: dict[str, int] = {}
        for role, pid in roles.items():
            # It may end while it is looked at.
            with contextlib.suppress(OSError, ValueError, IndexError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                found[role] = found.get(role, 0) + pages * _PAGE
        for role, num_bytes in found.items():
            self.by_role.setdefault(role, []).append((at_s, num_bytes))

    def slopes(self, warmup_s: float) -> dict[str, Slope]:
        """Return the slope of each role, without the samples of the first ``warmup_s`` seconds."""
        slopes = {}
        for role, samples in self.by_role.items():
            kept = [(at_s, num_bytes) for at_s, num_bytes in samples if at_s >= warmup_s]
            if len(kept) >= 6:
                slopes[role] = _slope(kept)
        return slopes


async def sample_until(
    is_over: asyncio.Event, samples: MemorySamples, roles: Callable[[], dict[str, int]]
) -> None:
    """Look every ``SAMPLE_S`` seconds, until it is over."""
    started_s = time.monotonic()
    while not is_over.is_set():
        samples.add(time.monotonic() - started_s, await asyncio.to_thread(roles))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(is_over.wait(), SAMPLE_S)


def line_slope(samples: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line through (x, y); 0 where all x are equal."""
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


def _slope(samples: Sequence[tuple[float, int]]) -> Slope:
    points = [(at_s / 60, num_bytes / MIB) for at_s, num_bytes in samples]
    third = len(points) // 3
    thirds = [line_slope(points[i * third : (i + 1) * third]) for i in range(3)]
    return Slope(points[0][1], points[-1][1], line_slope(points), min(thirds), max(thirds))
