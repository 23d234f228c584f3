"""Looks at a file or a folder again and again, so that what changes there is noticed.

File-system events only say *when* to look; each watcher finds *what* changed by comparing with its last look.
So lost events end well, and where there are none (network file systems, targets of links, a folder that is
gone) looking at intervals does the same. Invariant: nothing that a look raises ends the watch.
"""

import asyncio
import contextlib
import logging
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from watchfiles import awatch
from watchfiles._rust_notify import WatchfilesRustInternalError

logger = logging.getLogger(__name__)

#: Seconds between looks where events work.
RESCAN_S = 2.0

#: Seconds between looks where they don't, at most.
_POLL_S = 0.5

#: Milliseconds without a further event after which a burst of events is over, and the longest burst.
_EVENT_STEP_MS = 50
_EVENT_DEBOUNCE_MS = 300


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Differs where a file's content may differ."""

    inode: int
    modified_ns: int
    changed_ns: int
    num_bytes: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileStamp":
        """Return the stamp of a file with these attributes."""
        return cls(status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def folder_identity(folder: Path) -> tuple[int, int]:
    """Return what differs where a path means another folder than before: device and inode.

    Raises:
        OSError: It means none.
    """
    status = os.stat(folder)
    return status.st_dev, status.st_ino


class Watcher(ABC):
    """Looks while its context lasts: at each event in a folder, and at intervals."""

    def __init__(self, what: str, *, every_s: float, folder: Path | None = None) -> None:
        """Prepare to watch.

        Args:
            what: What the log calls it.
            every_s: Seconds between looks without an event.
            folder: Where events come from; ``None`` where every look is cheap enough to do without.
        """
        self._what = what
        self._every_s = every_s
        self._folder = folder
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def look(self) -> None:
        """Look once, and bring what follows in line."""

    def identity(self) -> object:
        """Return what differs where the path means another folder; ``None`` where none can be followed.

        Raises:
            OSError: None can be followed.
        """
        return folder_identity(self._folder) if self._folder is not None else None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._task is not None:
            await self._task

    async def _watch(self) -> None:
        pause_s = self._every_s if self._folder is None else min(_POLL_S, self._every_s / 4)
        while not self._stop.is_set():
            try:
                await self._follow_events()
            except OSError as error:
                # The folder is gone, or the kernel has no more watches to give.
                logger.debug("%s: no events (%s), looking every %s s", self._what, error, pause_s)
            except Exception as error:
                # Nothing may end the watch: changes would go unnoticed for the rest of the process.
                if _is_of_watchfiles(error):
                    # It can't name a file whose name is no text; the look that follows finds it all the same.
                    logger.debug("%s: an event was lost (%s), looking now", self._what, error)
                else:
                    logger.exception("%s: watching failed; the watch continues", self._what)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)
            await self._look_safely()

    async def _look_safely(self) -> None:
        try:
            await self.look()
        except Exception:
            logger.exception("%s: a look failed; the watch continues", self._what)

    async def _follow_events(self) -> None:
        """Look at each event, until the path means another folder than at the beginning."""
        if self._folder is None or (identity := self.identity()) is None:
            return
        events = awatch(
            self._folder,
            watch_filter=None,
            recursive=False,
            stop_event=self._stop,
            step=_EVENT_STEP_MS,
            debounce=_EVENT_DEBOUNCE_MS,
            rust_timeout=int(self._every_s * 1000),
            yield_on_timeout=True,
        )
        async with contextlib.aclosing(events):
            async for _ in events:
                await self._look_safely()
                if self.identity() != identity:
                    return


def _is_of_watchfiles(error: Exception) -> bool:
    """Return whether nothing but watchfiles' own errors is in ``error``, alone or in a group of its tasks."""
    if isinstance(error, ExceptionGroup):
        return error.split(WatchfilesRustInternalError)[1] is None
    return isinstance(error, WatchfilesRustInternalError)
