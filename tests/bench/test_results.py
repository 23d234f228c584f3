"""Runs on record: each has records that can be read, a report that says something, and a row in the index."""

import re
from pathlib import Path

import pytest

from bench.report.record import read_records

BENCH = Path(__file__).resolve().parents[2] / "bench"
RUNS = sorted(path for path in (BENCH / "results").iterdir() if path.is_dir())
INDEX = (BENCH / "README.md").read_text(encoding="utf-8").split("## Runs on record")[1]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_run_on_record_can_be_read_and_says_what_it_found(run: Path) -> None:
    (question,) = {record.question for record in read_records([run / "records.jsonl"])}
    heading, _, rest = (run / "report.md").read_text(encoding="utf-8").partition("\n")
    assert heading == f"# {question}"
    assert rest.startswith("\n## What it says\n\n")


def test_the_index_has_one_row_for_each_run() -> None:
    linked = re.findall(r"^\| (\S+) \| `\S+` \|.*\]\(results/([^/)]+)/report\.md\) \|$", INDEX, re.MULTILINE)
    assert sorted(name for _, name in linked) == [run.name for run in RUNS]
    assert all(name.startswith(date) for date, name in linked)
