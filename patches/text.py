"""Text that people wrote: its bytes, its lines and its rows of JSON, read the same way everywhere.

Text is UTF-8, with or without a byte order mark. A line ends at a line feed, or a carriage return and a line
feed, and nowhere else: JSON strings and prompts may hold the other separators that ``str.splitlines`` cuts
at. Errors are plain ``ValueError`` and ``OSError``, which readers turn into their own with ``said``.
"""

import json
from pathlib import Path
from typing import Any

from patches.canonical import short_integer, unique_keys

#: Files of JSON, one value a line.
LINE_SUFFIXES = (".jsonl", ".ndjson")
#: All files of JSON.
JSON_SUFFIXES = (".json", *LINE_SUFFIXES)


def decode_text(data: bytes) -> str:
    """Return bytes as text, without a byte order mark.

    Raises:
        ValueError: They are no UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected UTF-8 text, got byte 0x{data[error.start]:02x} at {error.start}"
        ) from None


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        OSError: It can't be read.
        ValueError: It is no UTF-8.
    """
    return decode_text(path.read_bytes())


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, without their ends; the last one may lack its end."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def parse_row(text: str) -> Any:
    """Return what a text of JSON holds.

    Raises:
        ValueError: It is no JSON, is nested too deeply to be read, holds a key twice in one object, an
            integer that is too long, or half a character.
    """
    try:
        row = json.loads(text, object_pairs_hook=unique_keys, parse_int=short_integer)
        # Half of a surrogate pair is valid JSON, and no text: nothing can be encoded, tokenized or written.
        if "\\ud" in text.lower():
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("expected JSON, got one that is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("expected text, got half of a surrogate pair (such as \\ud83d alone)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, got something else at character {error.pos}: {error.msg}") from None
    return row


def read_rows(path: Path) -> list[tuple[int, Any]]:
    """Return the rows of a file with the number of each: JSON lines, one JSON array, or lines of text.

    The suffix says which, in upper or lower case.

    Raises:
        OSError: It can't be read.
        ValueError: It is not what its suffix says; the message names the row.
    """
    text, suffix = read_text(path), path.suffix.lower()
    if suffix == ".json":
        rows = parse_row(text)
        if not isinstance(rows, list):
            raise ValueError(f"expected a JSON array of rows, got {type(rows).__name__}; is it JSON lines?")
        return list(enumerate(rows, start=1))
    lines = [(number, line) for number, line in enumerate(lines_of(text), start=1) if line.strip()]
    if suffix in LINE_SUFFIXES:
        return [(number, _parse_line(line, number)) for number, line in lines]
    if wanted := _suffix_wanted(text, lines[0][1] if lines else ""):
        raise ValueError(f"expected lines of text, got JSON; give the file the suffix {wanted}")
    binary = next((number for number, line in lines if "\0" in line), None)
    if binary is not None:
        # Such as UTF-16 without its mark: each of its bytes is a character of UTF-8.
        raise ValueError(f"row {binary}: expected UTF-8 text, got a NUL character")
    return list(enumerate(lines_of(text), start=1))


def said(error: OSError | ValueError) -> str:
    """Return what went wrong, for a message that already names the file."""
    return str(getattr(error, "strerror", None) or error)


def _parse_line(line: str, number: int) -> Any:
    try:
        return parse_row(line)
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from None


def _suffix_wanted(text: str, first_line: str) -> str | None:
    """Return the suffix of a file that holds rows of JSON, and is called something else."""
    if _is_array_of_rows(_json_of(text)):
        return JSON_SUFFIXES[0]
    row = _json_of(first_line)
    return LINE_SUFFIXES[0] if isinstance(row, dict) or _is_array_of_rows(row) else None


def _json_of(text: str) -> Any:
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_array_of_rows(value: Any) -> bool:
    # A line such as [3, 1, 2] is a prompt that someone may well have written.
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict | str) for row in value)
