"""Sweeps: cells along an axis, every cell once a round, in an order that favours none.

The frame of every question but ``overhead``: a question says what its cells are and how one is measured; this
module takes turns, and writes a record as soon as a cell is measured.
"""

import argparse
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.load.workloads import arm_orders
from bench.report.record import Record, append_record
from bench.run.question import RECORDS, add_out_argument
from bench.run.rounds import NUM_WARMUP_ROUNDS, progress
from bench.servers.environment import describe_environment


@dataclass(frozen=True)
class Cell:
    """One place of a sweep.

    Attributes:
        x: its value on the axis.
        x_idx: its position on the axis; 0 is what ratios refer to.
        series: which of several lines it belongs to.
    """

    x: int | str
    x_idx: int
    series: str = ""

    @property
    def name(self) -> str:
        """What progress and orders call it."""
        return f"{self.series} {self.x}".strip()


def cells_along(xs: Sequence[int | str], series: Sequence[str] = ("",)) -> list[Cell]:
    """Make a cell for each value of each series."""
    return [Cell(x, i, name) for name in series for i, x in enumerate(xs)]


#: Measures one cell in one round.
Measure = Callable[[Cell, int], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True)
class SweepRun:
    """What the cells of a run have in common."""

    question: str
    cells: tuple[Cell, ...]
    num_rounds: int
    seed: int
    setup: Mapping[str, Any]
    folder: Path
    environment: Mapping[str, Any] = field(default_factory=describe_environment)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def records_path(self) -> Path:
        """Takes the records."""
        return self.folder / RECORDS

    async def measure(self, measure: Measure) -> None:
        """Measure every cell once a round, the round that warms up included.

        Raises:
            BenchError: a cell could not be measured; the cells before it are on record.
        """
        by_name = {cell.name: cell for cell in self.cells}
        num_rounds = NUM_WARMUP_ROUNDS + self.num_rounds
        orders = arm_orders(list(by_name), num_rounds=num_rounds, seed=self.seed, label=self.question)
        for round_idx, order in enumerate(orders):
            for position, name in enumerate(order):
                cell = by_name[name]
                result = await measure(cell, round_idx)
                place = {"x": cell.x, "x_idx": cell.x_idx, "series": cell.series, "position": position}
                turn = {"round": round_idx, "is_warmup": round_idx < NUM_WARMUP_ROUNDS}
                setup = {**self.setup, **place, **turn}
                record = Record(self.question, self.run_id, setup, result, self.environment)
                append_record(self.records_path, record)
                progress(f"round {round_idx}/{num_rounds - 1}  {name:<24} {_brief(result)}")


def _brief(result: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in result.items() if isinstance(value, int | float)}
    return "  ".join(f"{key} {value:.4g}" for key, value in list(shown.items())[:5])


def add_sweep_arguments(parser: argparse.ArgumentParser, *, num_rounds: int = 5) -> None:
    """Add the flags that every sweep has."""
    parser.add_argument(
        "--rounds",
        type=at_least_one,
        default=num_rounds,
        metavar="N",
        help=f"rounds, after one that warms up ({num_rounds})",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides orders and requests (0)")
    add_out_argument(parser)


def at_least_one(text: str) -> int:
    """Read a number of things.

    Raises:
        argparse.ArgumentTypeError: it is no number, or below 1.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """Read ``1,4,16``, ascending and without repetition.

    Raises:
        argparse.ArgumentTypeError: one of them is no number, or below 1.
    """
    return tuple(sorted({at_least_one(part) for part in text.split(",")}))


def model_name(model: str) -> str:
    """Name a model in records: of a folder only the last part, for records are published."""
    return f"…/{Path(os.path.abspath(model)).name}" if Path(model).is_dir() else model
