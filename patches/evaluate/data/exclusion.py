"""Prompts that training saw, so that an evaluation leaves them out."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from patches.errors import EvaluationError
from patches.evaluate.data.items import normalised
from patches.text import read_rows, said


def read_training_prompts(paths: Iterable[Path]) -> frozenset[str]:
    """Read the prompts of files of JSON lines, in their normalised form.

    A line is an object with ``prompt``: a text, or messages as in TRL's formats, of which each user's counts.
    Lines that ``policypatch pairs`` put aside (``"split": "test"``) are passed over: training doesn't read
    them.

    Raises:
        EvaluationError: A file can't be read, or a line has no prompt; the message names the line.
    """
    return frozenset(normalised(prompt) for path in paths for prompt in _prompts(path))


def _prompts(path: Path) -> Iterable[str]:
    try:
        rows = read_rows(path)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: can't be read: {said(error)}") from None
    for number, row in rows:
        yield from _texts(row, f"{path}, row {number}")


def _texts(row: Any, where: str) -> list[str]:
    try:
        prompt = row["prompt"]
        if row.get("split") == "test":
            return []
        if isinstance(prompt, str):
            return [prompt]
        return [str(message["content"]) for message in prompt if message["role"] == "user"]
    except (AttributeError, KeyError, TypeError) as error:
        raise EvaluationError(f"{where}: expected an object with a prompt: {error}") from None
