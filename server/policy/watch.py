"""Keeps the decider's policy equal to a file: as a whole, or not at all.

A file that can't be read or is no policy changes nothing: the old policy stays in force, and the log and the
metrics say so. A file that is being written is left alone until it rests, since half of a policy may well be
a policy. Renaming a finished file into place is still the way to change one.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from patches.text import lines_of
from server.audit import Audit, AuditEvent
from server.metrics.control import ControlMetrics
from server.policy.errors import PolicyFileError
from server.policy.file import PolicyFile, load_policy
from server.policy.rules import Policy
from server.watcher import RESCAN_S, FileStamp, Watcher

logger = logging.getLogger(__name__)

#: Seconds that a changed file has to rest before it is read.
SETTLE_S = 0.2


class PolicyHolder(Protocol):
    """What decides by a policy."""

    policy: Policy


class PolicyWatch(Watcher):
    """Follows one policy file for one decider."""

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
        # Events of the folder, since a file that is renamed into place is another file.
        super().__init__(f"policy file {path}", every_s=rescan_s, folder=path.parent)
        self._path = path
        self._digest = loaded.digest
        self._holder = holder
        self._metrics = metrics
        self._audit = audit
        self._settle_s = settle_s
        self._moved = moved
        #: Of the file that was read last; ``None`` where the next look has to read it.
        self._seen: FileStamp | None = None
        self._problem: str | None = None

    async def look(self) -> None:
        """Bring the policy in line with the file, where that changed and rests."""
        try:
            before = await self._settled()
            if before is None or before == self._seen:
                return
            loaded = await asyncio.to_thread(load_policy, self._path)
            if self._stamp() != before:
                # Written while it was read: the next look reads it again.
                return
        except (OSError, PolicyFileError) as error:
            self._seen = None if isinstance(error, OSError) else before
            self._refuse(error)
            return
        self._seen = before
        await self._accept(loaded)

    async def _settled(self) -> FileStamp | None:
        """Return the file's stamp once it did not change for a while; ``None`` where it does not rest."""
        first = self._stamp()
        if first == self._seen:
            return first
        await asyncio.sleep(self._settle_s)
        return first if self._stamp() == first else None

    def _stamp(self) -> FileStamp:
        return FileStamp.of(self._path.stat())

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
            "policy file %s is refused, the previous policy (%s) stays in force: %s",
            self._path,
            self._digest,
            "; ".join(lines_of(problem)),
        )
        self._audit.record(
            AuditEvent(event="policy.reload", decision="failed", digest=self._digest, reason=problem)
        )
