"""Figures on a terminal: numbers in a few digits, and curves as a line of blocks."""

from collections.abc import Sequence
from itertools import pairwise

#: From low to high; the second where the output's encoding has no blocks.
BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-:=+*#"


def number(value: float) -> str:
    """Return a number with three significant digits, large whole ones in full."""
    if isinstance(value, int) or (abs(value) >= 1000 and float(value).is_integer()):
        return str(int(value))
    return f"{value:.3g}"


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """Return at most ``width`` blocks, from left to right means of equal parts of ``values``.

    A curve that stays where it is has no low and no high: it runs through the middle.
    """
    num = min(width, len(values))
    bounds = [round(i * len(values) / num) for i in range(num + 1)]
    parts = [values[a:b] for a, b in pairwise(bounds)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    if high <= low:
        return blocks[len(blocks) // 2] * num
    scale = (len(blocks) - 1) / (high - low)
    return "".join(blocks[round((mean - low) * scale)] for mean in means)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line a row, the cells of a column below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
