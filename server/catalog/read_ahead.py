"""Files that will be loaded one after the other are read in threads before their turn comes.

Reading one takes longer than all else that a start does with it, and threads hash on several cores at once.
Invariant: of what is read and not yet taken there are never more bytes than ``MAX_AHEAD_BYTES``, or one file.
"""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from patches.format import Patch, read_patch
from server.catalog.checked_ahead import CheckedAhead

MAX_AHEAD_BYTES = 64 * 1024**2

#: Files that are read at once.
_MAX_AHEAD = min(16, (os.cpu_count() or 1) + 1)


class ReadAhead:
    """Reads patch files; used by one task of an event loop at a time."""

    def __init__(self) -> None:
        #: What was checked before; it is asked once for each file.
        self.checked: CheckedAhead | None = None
        #: What will be asked for, in this order, and how large it is.
        self._coming: deque[tuple[Path, int]] = deque()
        self._reading: dict[Path, tuple[asyncio.Task[Patch], int]] = {}

    @contextlib.contextmanager
    def expecting(self, files: Iterable[tuple[Path, int]]) -> Iterator[None]:
        """Expect that while this lasts these ``files`` are read, in this order; with each, its bytes."""
        self._coming.extend(files)
        try:
            yield
        finally:
            self._coming.clear()
            for task, _ in self._reading.values():
                task.add_done_callback(_ignore)
            self._reading.clear()

    def drop_checked(self) -> None:
        """Use nothing any more that was checked before."""
        if self.checked is not None:
            self.checked.stop()
            self.checked = None

    async def read(self, path: Path) -> Patch:
        """Return what a file holds; what was read ahead is at most a few files old.

        What was checked while the engine started has tensors without values.

        Raises:
            PatchFormatError: It is no valid patch.
        """
        if (patch := self._checked(path)) is not None:
            return patch
        self._begin(path)
        task, _ = self._reading.pop(path, (None, 0))
        if task is None:
            return await asyncio.to_thread(read_patch, path)
        try:
            return await task
        finally:
            self._begin(None)

    def _checked(self, path: Path) -> Patch | None:
        patch = self.checked.take(path) if self.checked is not None else None
        if patch is not None and self._coming and self._coming[0][0] == path:
            self._coming.popleft()
        return patch

    def _begin(self, wanted: Path | None) -> None:
        """Read what is coming, as far as it may be; ``wanted`` in any case, where it is next."""
        while self._coming:
            path, num_bytes = self._coming[0]
            ahead = sum(size for _, size in self._reading.values())
            has_room = len(self._reading) < _MAX_AHEAD and ahead + num_bytes <= MAX_AHEAD_BYTES
            if not has_room and self._reading and path != wanted:
                return
            self._coming.popleft()
            task = asyncio.create_task(asyncio.to_thread(read_patch, path))
            self._reading[path] = task, num_bytes


def _ignore(task: "asyncio.Task[Patch]") -> None:
    # It was read for nothing: why it may have failed is found when it is read again.
    if not task.cancelled():
        task.exception()
