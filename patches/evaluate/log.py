"""The log of a run: one JSON line for each item under each arm, appended as it is measured.

``run.json`` beside it says what was asked for. A run that was cut off continues where it stopped, if it is
asked for the same thing; a last line that was torn is dropped. Round trip: ``rows`` gives back what
``append`` wrote.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patches.errors import EvaluationError
from patches.evaluate.measures.measure import Scored
from patches.lines import append_lines, whole_lines

SCHEMA = 1
SETUP_FILE, ITEMS_FILE = "run.json", "items.jsonl"


@dataclass(frozen=True)
class Row:
    """One item of one task under one arm."""

    task: str
    arm: str
    scored: Scored


class ItemLog:
    """The log in one folder."""

    def __init__(self, folder: Path, setup: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Open the log of a run, or begin it.

        Args:
            folder: Made where it does not exist.
            setup: What decides the figures.
            overwrite: Start over where the folder holds a run of another kind.

        Raises:
            EvaluationError: The folder holds a run that was asked for something else.
            OSError: The folder can't be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / ITEMS_FILE
        setup_path = folder / SETUP_FILE
        text = json.dumps({"schema": SCHEMA, **setup}, indent=1, sort_keys=True) + "\n"
        if setup_path.exists() and setup_path.read_text(encoding="utf-8") != text:
            if not overwrite:
                different = ", ".join(_differences(setup_path.read_text(encoding="utf-8"), text))
                raise EvaluationError(
                    f"{folder}: holds another run (different: {different}); choose another folder, or --force"
                )
            self._path.unlink(missing_ok=True)
        setup_path.write_text(text, encoding="utf-8")
        self.rows = self._read()

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows to disk before they count."""
        append_lines(self._path, map(_encode, rows))
        self.rows += rows

    def _read(self) -> list[Row]:
        lines = whole_lines(self._path)
        return [_decode(line, f"{self._path}, line {n}") for n, line in enumerate(lines, start=1)]


def _encode(row: Row) -> str:
    scored = row.scored
    document: dict[str, Any] = {
        "task": row.task,
        "arm": row.arm,
        "id": scored.id,
        "category": scored.category,
        "values": {name: list(value) for name, value in scored.values.items()},
    }
    texts = {"verdict": scored.verdict, "prompt": scored.prompt, "answer": scored.answer}
    document |= {key: text for key, text in texts.items() if text is not None and text != ""}
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def _decode(line: str, where: str) -> Row:
    try:
        fields = json.loads(line)
        values = {name: (float(a), float(w)) for name, (a, w) in fields["values"].items()}
        texts = fields.get("verdict", ""), fields.get("prompt"), fields.get("answer")
        return Row(fields["task"], fields["arm"], Scored(fields["id"], fields["category"], values, *texts))
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{where}: expected a row of a run: {error}; use --force to start over"
        ) from None


def _differences(old: str, new: str) -> list[str]:
    try:
        before = json.loads(old)
    except ValueError:
        return ["unreadable"]
    after = json.loads(new)
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
