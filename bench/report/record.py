"""Records: one JSON object per line, each complete in itself.

A record is ``{"schema", "question", "run_id", "setup", "result", "environment"}``. ``setup`` says what was
asked for, ``result`` what was measured, ``environment`` where. Repeating the environment in every line costs
about a kilobyte and lets lines be cut out, joined and sorted without losing what they mean.

Round trip: ``read_records`` of what ``append_record`` wrote gives equal records.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import RecordInvalid

SCHEMA = 1


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
