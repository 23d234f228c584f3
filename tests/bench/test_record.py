"""Records: the round trip, and lines that are none."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import RecordInvalid
from bench.report.record import Record, append_record, read_records

MakeRecord = Callable[..., Record]


def test_records_read_back_equal_in_order(tmp_path: Path, make_record: MakeRecord) -> None:
    records = [make_record("plain", i, 10.0 + i) for i in range(3)]
    for record in records:
        append_record(tmp_path / "r.jsonl", record)
    assert read_records([tmp_path / "r.jsonl"]) == records


def test_record_is_one_line(tmp_path: Path, make_record: MakeRecord) -> None:
    append_record(tmp_path / "r.jsonl", make_record("plain", 1, 1.0, model="two\nlines"))
    assert (tmp_path / "r.jsonl").read_text().count("\n") == 1


def test_record_with_a_number_that_is_not_finite_is_refused(tmp_path: Path, make_record: MakeRecord) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        append_record(tmp_path / "r.jsonl", make_record("plain", 1, math.inf))


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"schema": 99}', '{"schema": 1, "question": "overhead"}', '{"schema": 1, "x": 2}'],
)
def test_line_that_is_no_record_is_named(tmp_path: Path, make_record: MakeRecord, line: str) -> None:
    path = tmp_path / "r.jsonl"
    append_record(path, make_record("plain", 1, 1.0))
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RecordInvalid, match=r"r\.jsonl, line 2"):
        read_records([path])
