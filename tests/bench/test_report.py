"""Reports are made from records alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import RecordInvalid
from bench.report.__main__ import main
from bench.report.figures import METRICS, cells_of, judge_goals, ratios_of, summarise_ratios
from bench.report.record import Record, append_record, mark_cut_short
from bench.report.report_files import markdown_of, write_report

MakeRecord = Callable[..., Record]


@pytest.fixture
def records(make_record: MakeRecord) -> list[Record]:
    """The machine slows down by half after round 2; arms keep their ratios but for noise."""
    speeds = {0: 1.0, 1: 100.0, 2: 110.0, 3: 50.0}
    ratios = {"plain": [1, 1, 1, 1], "idle": [1, 0.99, 1.0, 0.98], "patched": [9, 0.9, 0.95, 0.97]}
    return [
        make_record(arm, i, speeds[i] * ratio)
        for arm, by_round in ratios.items()
        for i, ratio in enumerate(by_round)
    ]


def test_cells_leave_out_the_warm_up(records: list[Record]) -> None:
    assert cells_of(records, "plain", METRICS[0], 1) == {
        ("r1", 1, 1): 100,
        ("r1", 2, 1): 110,
        ("r1", 3, 1): 50,
    }


def test_ratios_cancel_what_the_machine_does(records: list[Record]) -> None:
    ratios = ratios_of(records, "patched", "plain", METRICS[0], 1)
    assert list(ratios.values()) == pytest.approx([0.9, 0.95, 0.97])


def test_ratio_that_was_not_measured_is_left_out(records: list[Record]) -> None:
    pairs = summarise_ratios(records)["1"]
    assert set(pairs) == {"idle/plain", "patched/idle", "patched/plain"}
    assert pairs["patched/plain"]["throughput"] == {
        "count": 3,
        "median": 0.95,
        "minimum": 0.9,
        "maximum": 0.97,
        "p25": 0.925,
        "p75": 0.96,
    }


def test_goals_are_judged_by_the_median(records: list[Record]) -> None:
    verdicts = {verdict["ratio"]: verdict["is_met"] for verdict in judge_goals(records)}
    assert verdicts == {"idle/plain": True, "patched/idle": False}


def test_table_shows_median_and_spread(records: list[Record]) -> None:
    text = markdown_of(records)
    assert "| `patched` / `plain` | 0.950 (0.900 to 0.970) |" in text
    assert "| `idle/plain` | 1 | ≥ 0.98 | 0.990 | met |" in text
    assert "commit abc" in text


def test_runs_are_joined_without_pairing_across_them(make_record: MakeRecord) -> None:
    first = [make_record("plain", 1, 100.0), make_record("idle", 1, 90.0)]
    second = [make_record("plain", 1, 10.0, run_id="r2"), make_record("idle", 1, 11.0, run_id="r2")]
    ratios = ratios_of(first + second, "idle", "plain", METRICS[0], 1)
    assert list(ratios.values()) == pytest.approx([0.9, 1.1])


def test_metric_without_samples_shows_as_missing(make_record: MakeRecord) -> None:
    record = make_record("plain", 1, 5.0)
    record = Record(**{**vars(record), "result": {**record.result, "itl_s": None}})
    assert "| `plain` | `vllm serve`, no policy | 5.00 (5.00 to 5.00) | 2000 (2000 to 2000) | - | - |" in (
        markdown_of([record])
    )


def test_report_makes_table_and_plots_from_records_alone(
    records: list[Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in records:
        append_record(tmp_path / "records.jsonl", record)
    assert main([str(tmp_path / "records.jsonl"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/report.md").read_text() == markdown_of(records)
    assert (tmp_path / "out/report.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (tmp_path / "out/report.svg").read_text()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["ok"] is True
    assert last["ratios"]["1"]["idle/plain"]["throughput"]["median"] == 0.99


def test_records_of_a_warm_up_alone_are_no_report(make_record: MakeRecord, tmp_path: Path) -> None:
    with pytest.raises(RecordInvalid, match="at least one round"):
        write_report([make_record("plain", 0, 1.0)], tmp_path)


def test_file_that_cannot_be_read_ends_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "missing.jsonl")]) == 1
    assert "missing.jsonl" in capsys.readouterr().err


def test_without_matplotlib_the_tables_are_still_written(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "matplotlib is not installed" in write_report(records, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_a_run_that_was_cut_short_says_so_in_every_report_made_of_it(
    tmp_path: Path, records: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "records.jsonl"
    for record in records:
        append_record(path, record)
    mark_cut_short(path, "not done after 9 s")
    assert main([str(path)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cut_short"] == {"r1": "not done after 9 s"}
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("# overhead\n\n**Cut short**, run `r1`: not done after 9 s. ")
    marked = report.split("\n", 3)
    assert "\n".join([marked[0], marked[3]]) == markdown_of(records)
