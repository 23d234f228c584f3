"""A stream for log lines that never makes its writer wait: a thread writes them to the real one.

Where the disk is full, or nothing reads the pipe, lines are dropped, counted, and named in a later line.
"""

import io
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import BinaryIO, TextIO

from server.engine.line_pipe import LinePipe

#: Lines that wait for the writer.
MAX_WAITING = 8192

_MAX_BATCH = 256
_STOP_S = 5.0

Dropped = Callable[[str, int], None]


class LineWriter(io.TextIOBase):
    """Stands for ``stream``; a context manager whose end writes what is waiting."""

    def __init__(self, stream: TextIO, *, max_waiting: int = MAX_WAITING, file: int | None = None) -> None:
        self._stream = stream
        self._file = stream.fileno() if file is None else file
        self._waiting: queue.Queue[str | None] = queue.Queue(max_waiting)
        self._dropped: Dropped | None = None
        #: Lines that no later line has told of yet, and those that were not counted for want of a counter.
        self._num_lost = 0
        self._uncounted: dict[str, int] = {}
        self._thread = threading.Thread(target=self._write_forever, name="log-lines", daemon=True)

    def __enter__(self) -> "LineWriter":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._waiting.put(None, timeout=_STOP_S)
        except queue.Full:
            return
        self._thread.join(_STOP_S)

    def count_with(self, dropped: Dropped) -> None:
        """Call ``dropped`` from now on with a reason and a number of lines; any thread."""
        self._dropped = dropped
        for reason, number in self._uncounted.items():
            dropped(reason, number)
        self._uncounted = {}

    def write(self, text: str) -> int:
        """Queue ``text``."""
        try:
            self._waiting.put_nowait(text)
        except queue.Full:
            self._lose("queue_full", 1)
        return len(text)

    def flush(self) -> None:
        """Do nothing: who writes waits for nothing."""

    def fileno(self) -> int:
        """Return the number of the stream's file."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Return whether a person reads it."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """Return that it can be written to."""
        return True

    @property
    def buffer(self) -> BinaryIO:
        """The real stream for bytes, which makes whoever writes to it wait."""
        return self._stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the real stream."""
        return self._stream.encoding

    def _lose(self, reason: str, num_lines: int) -> None:
        # Racing threads may lose count by a few here; the metric is exact.
        self._num_lost += num_lines
        if self._dropped is not None:
            self._dropped(reason, num_lines)
        else:
            self._uncounted[reason] = self._uncounted.get(reason, 0) + num_lines

    def _write_forever(self) -> None:
        is_open = True
        while is_open:
            batch = [self._waiting.get()]
            while len(batch) < _MAX_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get())
            is_open = None not in batch
            texts = [text for text in batch if text is not None]
            num_lost, self._num_lost = self._num_lost, 0
            gap = [_gap(num_lost)] if num_lost else []
            try:
                self._write("".join([*gap, *texts]))
            except OSError:
                self._num_lost += num_lost
                self._lose("write_failed", sum(text.count("\n") for text in texts))

    def _write(self, text: str) -> None:
        rest = memoryview(text.encode(self.encoding, "backslashreplace"))
        while rest:
            rest = rest[os.write(self._file, rest) :]


@contextmanager
def streams_beside(is_wanted: bool, *, is_first: bool = False) -> Iterator[tuple[LineWriter, ...]]:
    """Put such streams in the place of this process' standard ones while the context lasts.

    In the first process of a server, whatever it or its children write there otherwise becomes JSON.
    """
    if not is_wanted:
        yield ()
        return
    before = sys.stdout, sys.stderr
    with ExitStack() as stack:
        files = [os.dup(stream.fileno()) for stream in before]
        out, err = (
            stack.enter_context(LineWriter(stream, file=file))
            for stream, file in zip(before, files, strict=True)
        )
        if is_first:
            stack.enter_context(LinePipe(before[0].fileno(), "stdout", out))
            stack.enter_context(LinePipe(before[1].fileno(), "stderr", err))
        sys.stdout, sys.stderr = out, err
        try:
            yield out, err
        finally:
            sys.stdout, sys.stderr = before


def _gap(num_lines: int) -> str:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    line = {
        "asctime": stamp,
        "levelname": "ERROR",
        "name": __name__,
        "message": "lines are missing here",
    }
    return json.dumps({**line, "num_lines": num_lines}) + "\n"
