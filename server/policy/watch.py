"""Keeps the decider's policy equal to a file: as a whole, or not at all.

A file that can't be read or is no policy changes nothing: the old policy goes on deciding, the log and the
metrics say so. A file that is being written is left alone until it rests, since half of a policy may well be
a policy. Renaming a finished file into place is still the way to change one.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol

from watchfiles import awatch

from server.audit import Audit, AuditEvent
from server.metrics.control import ControlMetrics
from server.policy.errors import PolicyFileError
from server.policy.file import PolicyFile, load_policy
from server.policy.rules import Policy

logger = logging.getLogger(__name__)

#: Seconds between looks, for changes that cause no event: network file systems, targets of links.
RESCAN_S = 2.0

#: Seconds that a changed file has to rest before it is read.
SETTLE_S = 0.2

#: Inode, times and size: differ where the content may.
_Signature = tuple[int, int, int, int]


class PolicyHolder(Protocol):
    """What decides by a policy."""

    policy: Policy


class PolicyWatch:
    """Follows one policy file for one decider; an async context manager."""

    def __init__(
        self,
        path: Path,
        loaded: PolicyFile,
        holder: PolicyHolder,
        metrics: ControlMetrics,
        audit: Audit,
        *,
        rescan_s: float = RESCAN_S,
        settle_s: float = SETTLE_S,
        moved: Callable[[bytes], AbstractAsyncContextManager[None]] = lambda data: contextlib.nullcontext(),
    ) -> None:
        """Make a watch.

        Args:
            path: The file.
            loaded: What was read from it at start-up, and is in force.
            holder: Its ``policy`` is replaced.
            metrics: Count reloads.
            audit: Records them.
            rescan_s: Seconds between looks where no event comes.
            settle_s: Seconds that a changed file has to rest.
            moved: Entered with the file's bytes around each replacement; see ``server.catalog.processes``.
        """
        self._path = path
        self._digest = loaded.digest
        self._holder = holder
        self._metrics = metrics
        self._audit = audit
        self._rescan_s = rescan_s
        self._settle_s = settle_s
        self._moved = moved
        #: Of the file that was read last; ``None`` where the next look has to read it.
        self._seen: _Signature | None = None
        self._problem: str | None = None
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "PolicyWatch":
        self._task = asyncio.create_task(self._watch_forever())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._task is not None:
            await self._task

    async def look(self) -> None:
        """Bring the policy in line with the file, where that changed and rests."""
        try:
            before = await self._settled()
            if before is None or before == self._seen:
                return
            loaded = await asyncio.to_thread(load_policy, self._path)
            if _signature(self._path) != before:
                # Written while it was read: the next look reads it again.
                return
        except (OSError, PolicyFileError) as error:
            self._seen = None if isinstance(error, OSError) else before
            self._refuse(error)
            return
        self._seen = before
        await self._accept(loaded)

    async def _settled(self) -> _Signature | None:
        """Give the file's signature once it did not change for a while; ``None`` where it does not rest."""
        first = _signature(self._path)
        if first == self._seen:
            return first
        await asyncio.sleep(self._settle_s)
        return first if _signature(self._path) == first else None

    async def _accept(self, loaded: PolicyFile) -> None:
        if loaded.digest == self._digest:
            self._problem = None
            self._metrics.set_policy_current(True)
            return
        async with self._moved(loaded.data):
            self._holder.policy = loaded.policy
        self._digest, self._problem = loaded.digest, None
        self._metrics.policy_reloaded(is_ok=True)
        logger.info("policy file %s (%s) is in force", self._path, loaded.digest)
        self._audit.record(AuditEvent(event="policy.reload", decision="done", digest=loaded.digest))

    def _refuse(self, error: OSError | PolicyFileError) -> None:
        problem = str(error)
        if problem == self._problem:
            return
        self._problem = problem
        self._metrics.policy_reloaded(is_ok=False)
        logger.error(
            "policy file %s is refused, the policy of before (%s) stays in force: %s",
            self._path,
            self._digest,
            "; ".join(problem.splitlines()),
        )
        self._audit.record(
            AuditEvent(event="policy.reload", decision="failed", digest=self._digest, reason=problem)
        )

    async def _watch_forever(self) -> None:
        while not self._stop.is_set():
            try:
                await self._follow_events()
            except OSError as error:
                # The folder is gone, or the kernel has no more watches to give.
                logger.debug("policy file %s: no events (%s)", self._path, error)
            except Exception:
                # Nothing may end the watch: a policy that was tightened would never come into force.
                logger.exception("policy file %s: watching it failed, going on", self._path)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._rescan_s / 4)
            await self._look_safely()

    async def _look_safely(self) -> None:
        try:
            await self.look()
        except Exception:
            logger.exception("policy file %s: a look at it failed, going on", self._path)

    async def _follow_events(self) -> None:
        # The folder, since a file that is renamed into place is another file.
        folder = self._path.parent
        identity = os.stat(folder)
        events = awatch(
            folder,
            watch_filter=None,
            recursive=False,
            stop_event=self._stop,
            step=50,
            debounce=300,
            rust_timeout=int(self._rescan_s * 1000),
            yield_on_timeout=True,
        )
        async with contextlib.aclosing(events):
            async for _ in events:
                await self._look_safely()
                if not os.path.samestat(os.stat(folder), identity):
                    return


def _signature(path: Path) -> _Signature:
    attributes = os.stat(path)
    return attributes.st_ino, attributes.st_mtime_ns, attributes.st_ctime_ns, attributes.st_size
