"""Files of lines that a run leaves behind: written whole, or line by line so that a crash loses one at most.

Law: what ``append_lines`` returned from is among ``whole_lines``, whatever happens afterwards.
"""

import os
from collections.abc import Iterable
from pathlib import Path


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        OSError: It can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines, which are on disk once this returns.

    Raises:
        OSError: They can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[str]:
    """Read the lines of a file, none where there is no file; cut off a last line that was torn.

    Raises:
        OSError: The file can't be read, or not be cut.
    """
    if not path.exists():
        return []
    # Only line feeds end a line: JSON strings may hold other separators that splitlines() would cut at.
    *lines, torn = path.read_bytes().split(b"\n")
    if torn:
        os.truncate(path, sum(len(line) + 1 for line in lines))
    return [line.decode("utf-8") for line in lines]
