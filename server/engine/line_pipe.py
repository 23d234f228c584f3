"""What reaches a standard stream past the log, as lines of JSON.

Libraries in C, progress bars and what a child process says before its log is configured write to the file
itself, with whatever format. In a log that programs read, each such line becomes an object of its own.
"""

import json
import os
import re
import threading
import time
from types import TracebackType
from typing import Protocol

from patches.terminal import one_line

#: A line is given on in pieces beyond this.
MAX_LINE_BYTES = 1 << 16
_READ_BYTES = 1 << 16
_STOP_S = 2.0
#: As tqdm draws it, again and again.
_PROGRESS = re.compile(r"\d+%.*\[\d+:\d\d")


class Lines(Protocol):
    """Where the lines go; never waits."""

    def write(self, text: str, /) -> int:
        """Take a line."""


class LinePipe:
    """Stands for the file ``number`` of this process and its children; a context manager, entered once.

    A thread reads it: lines of JSON pass as they are, others are put into one.
    """

    def __init__(self, number: int, name: str, lines: Lines) -> None:
        self._number, self._name, self._lines = number, name, lines
        self._shown = os.dup(number)
        self._reader, writer = os.pipe()
        os.dup2(writer, number)
        os.close(writer)
        self._thread = threading.Thread(target=self._read, name=f"lines of {name}", daemon=True)

    def __enter__(self) -> "LinePipe":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The last writer's end, unless a child still lives.
        os.dup2(self._shown, self._number)
        os.close(self._shown)
        self._thread.join(_STOP_S)

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._reader, _READ_BYTES):
            # A carriage return begins a line anew.
            *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            self._pass([line for line in lines if line.strip()])
        self._pass([rest] if rest.strip() else [])
        os.close(self._reader)

    def _pass(self, lines: list[bytes]) -> None:
        for line in lines:
            self._lines.write(as_json(line.decode("utf-8", "backslashreplace"), self._name) + "\n")


def as_json(line: str, name: str) -> str:
    """Return a line as JSON: as it is, or as the message of an object."""
    if line.startswith("{") and _is_json(line):
        return line
    level = "WARNING" if name == "stderr" and not _PROGRESS.search(line) else "INFO"
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    return json.dumps(
        {"asctime": stamp, "levelname": level, "name": name, "message": one_line(line.strip(" \t"))}
    )


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
