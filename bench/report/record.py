"""Records: one JSON object per line, each complete in itself.

A record is ``{"schema", "question", "run_id", "setup", "result", "environment"}``. ``setup`` says what was
asked for, ``result`` what was measured, ``environment`` where. Repeating the environment in every line costs
about a kilobyte and lets lines be cut out, joined and sorted without losing what they mean.

A run that was cut short ends with a record that has no result and says why in its setup; see
``mark_cut_short``.

Round trip: ``read_records`` of what ``append_record`` wrote gives equal records.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import RecordInvalid

SCHEMA = 1
#: In the setup of a run's last line, which has no result: why the run ended before it was done.
_CUT_SHORT = "cut_short"


@dataclass(frozen=True)
class Record:
    """One measured cell."""

    question: str
    run_id: str
    setup: Mapping[str, Any]
    result: Mapping[str, Any]
    environment: Mapping[str, Any]


def append_record(path: Path, record: Record) -> None:
    """Append a record as one line, so that a run that is cut off keeps what it had measured.

    Raises:
        ValueError: a number is not finite.
    """
    line = json.dumps({"schema": SCHEMA, **asdict(record)}, allow_nan=False, sort_keys=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def mark_cut_short(path: Path, reason: str) -> None:
    """Append the line that says that a run ended before it was done; ``path`` holds what it had measured.

    Raises:
        RecordInvalid: the last line is no record.
    """
    last = read_records([path])[-1]
    append_record(path, replace(last, setup={**last.setup, _CUT_SHORT: reason}, result={}))


def split_cut_short(records: Iterable[Record]) -> tuple[list[Record], dict[str, str]]:
    """Return the measured cells, and for each run that was cut short its id and the reason."""
    cells, cut_short = [], {}
    for record in records:
        if _CUT_SHORT in record.setup:
            cut_short[record.run_id] = str(record.setup[_CUT_SHORT])
        else:
            cells.append(record)
    return cells, cut_short


def read_records(paths: Iterable[Path]) -> list[Record]:
    """Read every record of the files, in order.

    Raises:
        RecordInvalid: a line is not a record of this schema; the message names file and line.
        OSError: a file cannot be read.
    """
    return [
        _decode(line, where=f"{path.name}, line {number}")
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if line.strip()
    ]


def _decode(line: str, *, where: str) -> Record:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise RecordInvalid(f"{where}: expected a JSON object, got {line[:40]!r}") from error
    if not isinstance(fields, dict) or fields.pop("schema", None) != SCHEMA:
        raise RecordInvalid(f"{where}: expected a record of schema {SCHEMA}")
    try:
        return Record(**fields)
    except TypeError as error:
        raise RecordInvalid(f"{where}: {error}") from error
