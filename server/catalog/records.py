"""The records of all names: in memory for decisions, in the state folder for the next start.

A record takes effect only after it is written. An operator's order that can't be written is refused. A change
that the folder causes takes effect all the same: the next start looks at the same folder and comes to the
same result, and only the history of that name has a gap.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Set
from pathlib import Path

from server.catalog.state_folder import CatalogState
from server.errors import StateNotSaved
from server.versions.activation import NameRecord, Target

logger = logging.getLogger(__name__)

#: Names without a served version whose records are remembered.
MAX_IDLE_NAMES = 1000


class Records:
    """Knows the record of each name, and which contents the records keep on the workers."""

    def __init__(
        self,
        state: CatalogState | None = None,
        *,
        keep_previous: int = 0,
        saved: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Read what ``state`` holds.

        Args:
            state: Where records survive the process; ``None`` where they need not.
            keep_previous: Versions of each name that were active before and stay on the workers.
            saved: Called after each write with whether it worked.

        Raises:
            StateError: The state folder can't be used.
        """
        self._state = state
        self._keep_previous = keep_previous
        self._saved = saved
        #: What the state folder was last brought down to; ``None`` where it may hold more.
        self._pruned: frozenset[str] | None = None
        self._records: dict[str, NameRecord] = dict(state.open()) if state is not None else {}
        self._kept: dict[str, tuple[Target, ...]] = {}
        for name, record in self._records.items():
            self._note_kept(name, record)
        #: Of ``_kept``; made anew when it is asked for, since a start changes all records one by one.
        self._kept_digests: frozenset[str] | None = None

    @property
    def kept_digests(self) -> frozenset[str]:
        """Digests that stay on the workers without a file."""
        if self._kept_digests is None:
            self._kept_digests = frozenset(t.digest for targets in self._kept.values() for t in targets)
        return self._kept_digests

    @property
    def names(self) -> Set[str]:
        """All names that have a record."""
        return self._records.keys()

    def record(self, name: str) -> NameRecord:
        """Return the record of ``name``, an empty one where it has none."""
        return self._records.get(name, NameRecord())

    def kept(self, name: str) -> tuple[Target, ...]:
        """Return what the record of ``name`` keeps on the workers, the active version first."""
        return self._kept.get(name, ())

    def stored_path(self, digest: str) -> Path | None:
        """Return where a copy of this content lies, if there is a state folder."""
        return self._state.path_of(digest) if self._state is not None else None

    async def commit(self, name: str, record: NameRecord, sources: Mapping[str, Collection[Path]]) -> None:
        """Make ``record`` the one that holds, and that the next start finds.

        Args:
            name: Whose record it is.
            record: It takes effect when this returns.
            sources: Digest -> files that hold this content now.

        Raises:
            StateNotSaved: It can't be written; the record before it holds.
        """
        if self._state is not None:
            try:
                await asyncio.to_thread(self._write, name, record, sources)
            except OSError as error:
                self._pruned = None
                self._saved(False)
                message = f"the state could not be saved ({error.strerror or error}); nothing was changed"
                raise StateNotSaved(message) from error
            self._saved(True)
        self._adopt(name, record)

    async def note(self, name: str, record: NameRecord, sources: Mapping[str, Collection[Path]]) -> None:
        """Make ``record`` the one that holds, written or not; for what the folder brings about."""
        try:
            await self.commit(name, record, sources)
        except StateNotSaved as error:
            logger.error("patch %s: %s", name, error.message.replace("; nothing was changed", ""))
            self._adopt(name, record)

    async def prune(self, idle: Collection[str], in_folder: Collection[str] = ()) -> None:
        """Remove copies that nothing needs, and the oldest records beyond the limit of ``idle`` names.

        Args:
            idle: Names without a served version.
            in_folder: Digests that files of the patch folder hold. Their copies stay, where there are any:
                orders that go round among them would make the same copies again and again.
        """
        by_age = sorted(idle, key=self._changed_s)
        for name in by_age[: max(0, len(by_age) - MAX_IDLE_NAMES)]:
            if not self._records[name].is_pinned:
                del self._records[name]
                self._kept.pop(name, None)
                if self._state is not None:
                    await asyncio.to_thread(self._state.forget, name)
        if self._state is not None:
            copied = (t.digest for record in self._records.values() for t in self._copied(record))
            needed = frozenset((*copied, *in_folder))
            if needed != self._pruned:
                await asyncio.to_thread(self._state.prune, needed)
                self._pruned = needed

    def close(self) -> None:
        """Release the state folder for another server."""
        if self._state is not None:
            self._state.close()

    def _write(self, name: str, record: NameRecord, sources: Mapping[str, Collection[Path]]) -> None:
        assert self._state is not None
        for target in self._copied(record):
            if self._state.keep(target.digest, sources.get(target.digest, ())):
                continue
            if target == record.active and record.needs_no_file:
                raise FileNotFoundError(0, f"no file holds {target.digest} any more, so it can't be copied")
            # Loaded, but its file changed before it could be copied.
            logger.warning("patch %s: a restart can't go back to %s: no copy", name, target.version)
        self._state.save(name, record)

    def _copied(self, record: NameRecord) -> tuple[Target, ...]:
        return record.copied(self._keep_previous)

    def _changed_s(self, name: str) -> float:
        history = self._records[name].history
        return history[0].at_s if history else 0.0

    def _adopt(self, name: str, record: NameRecord) -> None:
        self._records[name] = record
        self._note_kept(name, record)
        self._kept_digests = None

    def _note_kept(self, name: str, record: NameRecord) -> None:
        self._kept[name] = record.kept(self._keep_previous)
