"""Files of lines: whole or not at all, and of one that was cut off everything but the last line."""

from pathlib import Path
from typing import Any

import pytest

from patches.lines import append_lines, whole_lines, write_lines


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path: Path) -> None:
    def lines() -> Any:
        yield "one"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_lines(tmp_path / "out.jsonl", lines())
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_is_cut_off_so_that_the_next_one_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "log.jsonl"
    append_lines(path, ["one", "\N{SNOWMAN}\N{LINE SEPARATOR}"])
    with path.open("ab") as file:
        file.write("torn \N{SNOWMAN}".encode()[:-1])
    assert whole_lines(path) == ["one", "\N{SNOWMAN}\N{LINE SEPARATOR}"]
    append_lines(path, ["three"])
    assert whole_lines(path) == ["one", "\N{SNOWMAN}\N{LINE SEPARATOR}", "three"]


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert whole_lines(tmp_path / "log.jsonl") == []
